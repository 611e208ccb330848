"""How well scores find labelled segments: point F1, event F1 and false alarms, by any threshold.

The point metric is that of the AIOps 2018 KPI challenge: a labelled segment is found if one of its first `k` + 1
points is flagged, and then all its points count as found, otherwise all as missed; a flagged normal point is a false
one. It rewards noise. The event metric counts a segment once, and a run of flagged normal points once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DELAY = 7
"""Points after the first within which a segment must be found."""
AS_GOOD = 0.99
"""Of the best F1, what counts as no worse when a threshold is fitted."""


@dataclass(frozen=True)
class Found:
    """What a threshold finds."""

    point_f1: float
    event_f1: float
    false_alarms: float
    """Runs of flagged normal points a series and day."""
    recall: float
    """Of segments."""


@dataclass(frozen=True)
class Pool:
    """The scores of some series, put together: one threshold holds for all."""

    segments: Floats
    """The largest score of each labelled segment within the delay."""
    lengths: Floats
    """Points of each segment."""
    normal: Floats
    """Scores of the normal points, ascending."""
    continued: Floats
    """Scores up to which a normal point continues the run of the one before, ascending."""
    days: float
    """Of all series together."""

    @classmethod
    def of(cls, series: Iterable[tuple[Floats, Bools, float]], k: int = DELAY) -> Pool:
        """From (scores, labels, days) of each series; a score that is NaN is below every threshold."""
        parts = [_parts(np.where(np.isnan(scores), -np.inf, scores), labels, k) for scores, labels, _ in series]
        segments, lengths, normal, continued = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(segments, lengths, np.sort(normal), np.sort(continued), sum(days for _, _, days in series))

    def at(self, threshold: float) -> Found:
        """What scores of at least `threshold` find."""
        found = self.segments >= threshold
        points = float(self.lengths[found].sum())
        flagged = _reaching(self.normal, threshold)
        runs = flagged - _reaching(self.continued, threshold)
        missed = len(self.segments) - int(found.sum())
        return Found(
            point_f1=_f1(points, flagged, float(self.lengths.sum()) - points),
            event_f1=_f1(int(found.sum()), runs, missed),
            false_alarms=runs / self.days if self.days else 0.0,
            recall=float(found.mean()) if len(found) else 0.0,
        )

    def best(self, metric: str, most: float = np.inf) -> float:
        """The threshold with the largest `point_f1` or `event_f1` at no more than `most` false alarms.

        Where many are as good, the median of them: a maximum over a few long segments is a matter of luck. Infinite
        where there is none.
        """
        tried = np.unique(self.segments[np.isfinite(self.segments)])
        found = [self.at(threshold) for threshold in tried]
        f1 = np.array([getattr(f, metric) if f.false_alarms <= most else 0.0 for f in found])
        if not f1.any():
            return np.inf
        return float(np.median(tried[f1 >= AS_GOOD * f1.max()]))


def _parts(scores: Floats, labels: Bools, k: int) -> tuple[Floats, Floats, Floats, Floats]:
    edges = np.diff(np.concatenate([[0], labels.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    segments = [scores[a : min(b, a + k + 1)].max() for a, b in zip(starts, ends, strict=True)]
    before = np.concatenate([[-np.inf], np.where(labels[:-1], -np.inf, scores[:-1])])[: len(scores)]
    normal = ~labels
    lengths = (ends - starts).astype(np.float64)
    return np.array(segments), lengths, scores[normal], np.minimum(scores, before)[normal]


def _reaching(ascending: Floats, threshold: float) -> int:
    return len(ascending) - int(np.searchsorted(ascending, threshold, "left"))


def _f1(found: float, false: float, missed: float) -> float:
    return 2 * found / (2 * found + false + missed) if found else 0.0
