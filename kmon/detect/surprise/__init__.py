"""A detector for one series, streaming: how surprising is each point, by the series' own past and no labels.

Five oddities of a point (`kmon.detect.surprise.oddities`) are each put on the scale of their own recent tail
(`peaks`), in nats. The largest counts. Two scales come of it:

    surprise   -log of the chance of a point like this, by the bulk of the past, which earlier incidents do not bend:
               for judging points, with a threshold that is fitted to labels
    alarm      log of the days between two points like this, by the far tail of the past: for waking somebody, with
               the threshold `alarm_at`, which needs no labels

An event is told where it begins and where it gets worse: a score that is not larger than those before it is 0. The
chances that `judge` tells a sweep are of each point by itself, by the far tail.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.detect.contract import Points
from kmon.detect.surprise import oddities, peaks
from kmon.errors import UsageError

Floats = npt.NDArray[np.float64]
DAY = 86_400
KINDS = 5
"""Oddities."""
MOST_SLOTS = 20_000_000
"""Of a regular grid; more would mean a step that does not fit the times."""


@dataclass(frozen=True)
class SeriesScores:
    """Of each point, as long as the series, in nats; high is abnormal.

    0 where an event goes on or nothing is odd; NaN where there is no value, or too little history to judge.
    """

    surprise: Floats
    alarm: Floats


@dataclass(frozen=True)
class Surprise:
    """Scores every point of a series from the points before it.

    All settings are points unless they say days. One setting serves series of every step and kind. An abnormal point
    is learnt like any other: the level follows within `span`, and a fit of the tails bears a few incidents.
    """

    name: ClassVar[str] = "surprise"

    span: int = 10
    """Of the exponentially weighted level, and of the window whose spread a point may widen."""
    held: int = 5
    """How long a shift has to last to count as one."""
    around: int = 60
    """Of the median that a point may depart from."""
    days: int = 7
    """Of the same time of day that serve as references."""
    near: int = 2
    """How far off its usual time an oddity recurs."""
    slack: int = 6
    """To either side of the time of day, when the range of a day is taken."""
    fit_days: int = 20
    """That a tail is fitted to."""
    least: int = 250
    """Known oddities that a tail needs, and no less than a day's: the warm-up."""
    settle: int = 10
    """A surprise is told if none of so many points before was as large, less `worse`."""
    rest: int = 60
    """An alarm is raised if none of so many points before was as large, less `worse`."""
    worse: float = 1.0
    """Nats by which an event that goes on must get worse to be told again."""
    bulk: tuple[float, float] = (0.9, 0.98)
    tail: tuple[float, float] = (0.99, 0.998)
    alarm_at: float = float(np.log(14))
    """Where `alarm` should wake somebody: what one of the oddities shows once in 14 days."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = value if isinstance(value, tuple) else (0, 1)
            if field.name in ("bulk", "tail"):
                good = 0 < low < high < 1
            else:
                good = value >= (0 if field.name in ("near", "slack", "worse", "alarm_at") else 1)
            if not good:
                message = f"the detector {self.name!r} cannot work with {field.name} = {value!r}"
                raise UsageError(message)

    @property
    def memory_days(self) -> int:
        """So many days before a point decide its score; at steps of over a minute, `around` + 200 points more."""
        return self.days + self.fit_days + 1

    def score(
        self, times: npt.ArrayLike, values: npt.ArrayLike, *, step: float | None = None, last: int | None = None
    ) -> SeriesScores:
        """Scores for a series in its order; `times` in epoch seconds, `values` NaN where nothing was measured.

        The points are put on a grid of one every `step` seconds, by default the median of their distances; a point
        whose slot is taken, or that is late, takes the next. With `last` only so many of the newest points are scored,
        which is faster and gives the same: a job reads the last `memory_days` days and scores what is new. UsageError
        where there are not as many times as values, or the step does not fit the times.
        """
        t, v = _series(times, values)
        if not len(t):
            return SeriesScores(v, v.copy())
        grid = _Grid.of(t, step)
        start = 0 if last is None else grid.start(last)
        bulk, tail = self._scores(grid.filled(v), grid, max(0, start - max(self.rest, self.settle)))
        told = (onsets(bulk, self.settle, self.worse), onsets(tail - np.log(grid.day), self.rest, self.worse))
        return SeriesScores(*(grid.of_points(scores, v, start) for scores in told))

    def judge(self, times: npt.ArrayLike, values: npt.ArrayLike, *, last: int) -> Points:
        """See `kmon.detect.contract.SeriesDetector`: the chance that any of the oddities is as large, by the far tail.

        No more than the sum of their chances, be they related or not (Bonferroni), and no less than `peaks.MOST` tells.
        """
        t, v = _series(times, values)
        if not len(t):
            return Points(v)
        grid = _Grid.of(t, None)
        start = grid.start(last)
        _, tail = self._scores(grid.filled(v), grid, start)
        return Points(np.minimum(KINDS * np.exp(-grid.of_points(tail, v, start)), 1.0))

    def oddities(self, x: Floats, day: int) -> list[Floats]:
        """The oddities of a regular series with `day` points a day."""
        usual = oddities.level(x, self.span)
        residual = x - usual
        recurring = [
            oddities.jump(residual),
            oddities.fluctuation(residual, self.span),
            oddities.departure(x, self.around),
        ]
        return [
            *(oddities.unusual(oddity, day, self.days, self.near) for oddity in recurring),
            oddities.shift(x, usual, self.held),
            oddities.excursion(x, day, self.days, self.slack),
        ]

    def _scores(self, x: Floats, grid: _Grid, start: int) -> list[Floats]:
        """The largest surprise of all oddities, by the bulk and by the tail."""
        parts = [
            peaks.surprise(
                oddity,
                x,
                (self.bulk, self.tail),
                history=self.fit_days * grid.day,
                least=max(self.least, grid.day),
                every=max(1, grid.day // 4),
                phase=grid.phase,
                start=start,
            )
            for oddity in self.oddities(x, grid.day)
        ]
        return [np.fmax.reduce(scale) for scale in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Grid:
    """Where the points of a series lie on a regular grid that is the same whenever the series begins."""

    slots: npt.NDArray[np.int64]
    day: int
    """Slots a day."""
    phase: int
    """Of the first slot, counted from 1970."""

    @classmethod
    def of(cls, t: Floats, step: float | None) -> _Grid:
        distances = np.diff(t)
        distances = distances[distances > 0]
        step = step or (float(np.median(distances)) if len(distances) else 60.0)
        order = np.arange(len(t))
        slots = np.maximum.accumulate(np.rint(t / step).astype(np.int64) - order) + order
        if slots[-1] - slots[0] >= MOST_SLOTS:
            message = f"the series spans {slots[-1] - slots[0]:,} steps of {step:g} s: pass the step that it has"
            raise UsageError(message)
        return cls(slots - slots[0], max(1, round(DAY / step)), int(slots[0]))

    def start(self, last: int) -> int:
        """The slot of the first of the `last` points."""
        return int(self.slots[-min(max(last, 1), len(self.slots))])

    def filled(self, v: Floats) -> Floats:
        """The values by slot; NaN where there is none."""
        x = np.full(self.slots[-1] + 1, np.nan)
        x[self.slots] = np.where(np.isfinite(v), v, np.nan)
        return x

    def of_points(self, scores: Floats, v: Floats, start: int) -> Floats:
        """Scores by slot, from the slot `start` on, as those of the points; NaN where there is no value."""
        return np.where(np.isfinite(v) & (self.slots >= start), scores[self.slots], np.nan)


def _series(times: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Copies; UsageError where it is no series."""
    t, v = np.array(times, dtype=np.float64), np.array(values, dtype=np.float64)
    if t.shape != v.shape or t.ndim != 1 or not np.isfinite(t).all():
        message = "a series needs as many values as times"
        raise UsageError(message)
    return t, v


def onsets(scores: Floats, rest: int, worse: float = 0.0) -> Floats:
    """The positive scores that are larger than each of the `rest` before, by more than `worse` where that is positive.

    0 elsewhere; NaN remains.
    """
    floor = np.where(np.isnan(scores), 0.0, np.maximum(scores, 0))
    highest = pl.Series(floor).shift(1, fill_value=0.0).rolling_max(rest, min_samples=1).to_numpy()
    told = floor > np.where(highest > 0, highest + worse, 0.0)
    return np.where(np.isnan(scores), np.nan, np.where(told, floor, 0.0))
