"""The score of the Numenta Anomaly Benchmark, standard profile (Lavin and Ahmad 2015), from its definition.

A file's labelled windows each earn what their first detection is worth: 1 at the left edge, falling along a sigmoid to
0 at the right one. A window without a detection costs 1, a detection outside of windows 0.11, and less just behind
one. Nothing is counted in the first 15 % of a file, of at most 750 points. Over all files, no detection at all is 0
and a perfect detector 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FALSE = 0.11
"""What a false detection costs; a missed window costs 1, and an early detection is worth 1."""
PROBATION, LONGEST = 0.15, 750


@dataclass(frozen=True)
class Worth:
    """What detections in one file are worth."""

    point: Floats
    window: npt.NDArray[np.int64]
    """Number of the window that a point lies in; -1 outside of all, -2 in the probation."""
    windows: int

    @classmethod
    def of(cls, size: int, windows: Sequence[tuple[int, int]]) -> Worth:
        """For a file of `size` points, with the first and last index of each window."""
        point, window = np.full(size, -FALSE), np.full(size, -1)
        for number, (first, last) in enumerate(windows):
            width = last - first + 1
            inside = np.arange(first, last + 1)
            point[inside] = _sigmoid((inside - last - 1) / width) / _sigmoid(-1.0)
            window[inside] = number
            end = windows[number + 1][0] if number + 1 < len(windows) else size
            behind = np.arange(last + 1, end)
            away = (behind - last) / max(1, width - 1)
            point[behind] = FALSE * np.where(away < 3, _sigmoid(away), -1.0)
        window[: min(int(PROBATION * size), LONGEST)] = -2
        return cls(point, window, len(windows))


def score(files: Sequence[tuple[Worth, Floats]], threshold: float) -> float:
    """Of a detector that detects where its scores, given for each file, reach the threshold."""
    levels, totals = _totals(files)
    reached = int(np.searchsorted(-levels, -threshold, "right"))
    return float(totals[reached])


def best(files: Sequence[tuple[Worth, Floats]]) -> tuple[float, float]:
    """The largest score by any one threshold, which is how the published figures came about, and that threshold."""
    levels, totals = _totals(files)
    last_of_equal = np.append(levels[1:] != levels[:-1], True)
    totals[1:][~last_of_equal] = -np.inf
    top = int(totals.argmax())
    return float(totals[top]), float(levels[top - 1]) if top else np.inf


def _totals(files: Sequence[tuple[Worth, Floats]]) -> tuple[Floats, Floats]:
    """All scores, descending, and what the benchmark gives for none, the first, the first two, ... of them."""
    count = sum(worth.windows for worth, _ in files)
    parts = [_gains(worth, scores) for worth, scores in files]
    levels, gains = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-levels, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(gains[order])])
    return levels[order], 100 * total / max(1, 2 * count)


def _gains(worth: Worth, scores: Floats) -> tuple[Floats, Floats]:
    """Scores, and what each adds if detections are made in descending order of the scores."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    outside = worth.window == -1
    levels, gains = [scores[outside]], [worth.point[outside]]
    for number in range(worth.windows):
        inside = worth.window == number
        order = np.argsort(-scores[inside], kind="stable")
        earned = np.maximum.accumulate(np.concatenate([[-1.0], worth.point[inside][order]]))
        levels.append(scores[inside][order])
        gains.append(np.diff(earned))
    return np.concatenate(levels), np.concatenate(gains)


def _sigmoid(position: float | Floats) -> Floats:
    """2 / (1 + exp(5 position)) - 1."""
    return np.asarray(-np.tanh(2.5 * np.asarray(position)))
