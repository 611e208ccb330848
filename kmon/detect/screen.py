"""Who is looked at closely: the few monitors that could be anomalies, and as many others as tell what is usual.

A window can be no anomaly unless its count (or rate) is unlikely against the most distant level that its references
could make one expect: noise, drift and doubt only make it likelier. That bound takes a few sums of vectors over all
monitors, where the expectation itself takes hundreds of numbers of each. The levels of the fleet, such as its noise,
are estimated from a sample that is drawn without regard to what happens now.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Metric
from kmon.detect.calendar import Calendar
from kmon.detect.cube import Cube, Day
from kmon.detect.expect import FEW, NEAR, RECENT
from kmon.detect.fleet import FINE, TODAY
from kmon.detect.tails import divergence

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
COMPANY = 1_000
"""Monitors that tell what is usual in the fleet; with no more than that all are looked at."""
LOOSE = 2.5
"""Nats by which Chernoff's bound of a tail is too large: 1.7 at four or five standard deviations of a large count, and
some more of a small one."""
TELLING = 25.0
"""Events without which a piece of today tells no level of its own."""
MOVED = 2.0
"""Standard deviations by which a monitor has moved against the fleet since another day."""
JUDGED = 0.5
"""The share at least of the monitors with enough volume that are judged."""
SLACK = 0.02
"""Relative distance by which the expected level may lie beyond all of its references."""


@dataclass(frozen=True)
class Pick:
    """The monitors of one metric and width that are scored."""

    rows: Ints
    """In ascending order: those that could be anomalies, those that are wanted in any case, and the company."""
    company: Bools
    """Which of them tell what is usual."""
    large: int
    """How many monitors have enough volume to be judged."""

    def among(self, rows: Ints) -> Pick:
        """The same in places among `rows`."""
        return Pick(np.searchsorted(rows, self.rows), self.company, self.large)

    def tests(self, judged: pl.Series) -> float:
        """How many monitors were tested, where `judged` says of those that could be whether they are company.

        All where all were looked at; else as many of the large ones as of the company.
        """
        if self.large == len(self.rows):
            return float(len(judged))
        return self.large * float(judged.sum()) / float(self.company.sum())


@dataclass(frozen=True)
class Asked:
    """What anomalies of a metric are looked for."""

    metric: Metric
    least: float
    """The volume that a window has, now or usually, so that it is judged."""
    change: tuple[float, float] | None
    """The least relative fall and rise; None: there is no bound, and all are looked at."""


def pick(sums: Sums, width: dt.timedelta, asked: Mapping[str, Asked], *, keep: Ints, rate: float) -> dict[str, Pick]:
    """Which rows of a cube are worth scoring in the windows of `width`, by metric; with all of `keep` that are large.

    `rate` is the false discovery rate of all metrics together. The cut-off of Benjamini and Hochberg (1995) grows as
    p-values shrink, so that their lower bounds tell the largest that it can be.
    """
    found: dict[str, Pick] = {}
    bounds: dict[str, _Bounds] = {}
    for name, one in asked.items():
        place = np.flatnonzero(sums.volume(one.metric, width) >= one.least)
        found[name] = Pick(sums.rows[place], np.ones(len(place), dtype=bool), len(place))
        if len(place) > COMPANY and one.metric.kind != "mean" and one.change is not None:
            bounds[name] = _bounds(sums, one.metric, width, place, one.change)
    large = sum(one.large for one in found.values())
    unbounded = sum(found[name].large for name in found.keys() - bounds.keys())
    known = {name: _company(sums.cube, found[name].rows) for name in bounds}
    wanted = {name: known[name] | np.isin(found[name].rows, keep) for name in bounds}
    tested = [bound.p[bound.far | wanted[name]] for name, bound in bounds.items()]
    most = _most(np.concatenate([np.zeros(unbounded), *tested]), rate, large)
    for name, bound in bounds.items():
        chosen = wanted[name] | (bound.far & (bound.p <= most))
        found[name] = Pick(found[name].rows[chosen], known[name][chosen], found[name].large)
    return found


def _company(cube: Cube, rows: Ints) -> Bools:
    """Which of them tell what is usual: as many as suffice, drawn without regard to what happens."""
    order = cube.lot[rows]
    return np.asarray(order <= np.partition(order, COMPANY - 1)[COMPANY - 1])


def _most(p: Floats, rate: float, tests: int) -> float:
    """The largest that the cut-off can be, if no p-value is below these and all others of so many tests are large."""
    ordered = np.sort(p)
    share = rate * np.arange(1, len(p) + 1) / max(JUDGED * tests, 1.0)
    passed = np.flatnonzero(ordered <= share)
    return min(float(share[passed[-1]]), rate) if len(passed) else 0.0


@dataclass(frozen=True)
class _Bounds:
    """What is certain of the windows of some monitors."""

    p: Floats
    """No p-value is smaller; 0 where no reference tells."""
    far: Bools
    """Whether the window can be so far from what is expected that it is worth an alert."""


def _bounds(sums: Sums, metric: Metric, width: dt.timedelta, place: Ints, change: tuple[float, float]) -> _Bounds:
    """By the lowest and the highest level of its references; of a quantile whichever edge its share may be beyond."""
    now = [sums.window(measure, width)[place] for measure in metric.measures]
    if metric.kind == "count":
        return _between(now[0], None, sums.levels(metric.volume, width, place), change)
    trials = sums.totals(metric.volume, width, place)
    if metric.kind == "rate":
        return _between(now[0], now[1], _shares(sums.totals(metric.measures[0], width, place), trials), change)
    value, hits, p = np.zeros(len(place)), [np.zeros(len(place)) for _ in trials], np.ones(len(place))
    for measure, part in zip(metric.measures[:0:-1], now[:0:-1], strict=True):
        value = value + part
        hits = [sum_ + more for sum_, more in zip(hits, sums.parts(measure, width, place), strict=True)]
        p = np.minimum(p, _between(value, now[0], _shares(hits, trials), (0.0, 0.0)).p)
    return _Bounds(p, np.ones(len(place), dtype=bool))


def _shares(hits: Sequence[Floats], trials: Sequence[Floats]) -> list[Floats]:
    with np.errstate(all="ignore"):
        return [np.where(of > 0, (some + 0.5) / (of + 1), np.nan) for some, of in zip(hits, trials, strict=True)]


def _between(value: Floats, size: Floats | None, levels: Sequence[Floats], change: tuple[float, float]) -> _Bounds:
    """Of counts, or of parts of a `size`, against the lowest and the highest level."""
    with np.errstate(all="ignore"):
        value = value if size is None else np.minimum(value, size)
        low, high = np.fmin.reduce(levels) * (1 - SLACK), np.fmax.reduce(levels) * (1 + SLACK)
        share = value if size is None else value / size

        def least(level: Floats) -> Floats:  # what no reference tells of may be anything
            own = level if size is None else np.minimum(level, 1 - 1e-9)
            return np.asarray(np.exp(-LOOSE - np.nan_to_num(divergence(value, own, size), nan=np.inf)))

        far = ~(share > (1 - change[0]) * high) | ~(share < (1 + change[1]) * low)
        p = np.minimum(np.where(share <= high, least(high), 1.0), np.where(share >= low, least(low), 1.0))
    return _Bounds(np.where(np.isfinite(high + low + share), p, 0.0), far)


class Sums:
    """What windows that end at one time have, and their references, each as one sum.

    What several windows and metrics have in common is added up once, of the monitors that matter to any of them.
    """

    def __init__(
        self,
        cube: Cube,
        at: dt.datetime,
        among: Ints,
        asked: Mapping[str, Asked],
        longest: dt.timedelta,
        calendar: Calendar,
    ) -> None:
        """Of those `among` that are large enough for one of what is `asked`, in windows of `longest` at most.

        Times of other days are those of each monitor's local clock, by the `calendar`.
        """
        self.cube, self._at = cube, at
        self._begun, self._piece = at - RECENT * cube.bin, FINE * cube.bin
        self._shared: dict[tuple[str, str, dt.datetime, dt.datetime], Floats] = {}
        self.rows = among
        large = np.zeros(len(among), dtype=bool)
        for one in asked.values():
            large |= self.volume(one.metric, longest) >= one.least
        self.rows = among[large]
        self._later = calendar.later(cube.monitors[self.rows], at, cube.days)
        self._shared.clear()

    def volume(self, metric: Metric, width: dt.timedelta) -> Floats:
        """About how much each has in a window, now or usually, of what must be enough to judge it."""
        now = self.window(metric.volume, width)
        if metric.kind != "count":
            return now
        return np.maximum(now, self.cube.usual(metric.volume)[self.rows] * (width / self.cube.bin))

    def window(self, measure: str, width: dt.timedelta) -> Floats:
        """(rows)"""
        return self._sum(TODAY, measure, self._at - width, self._at)

    def _sum(self, name: str, measure: str, start: dt.datetime, end: dt.datetime) -> Floats:
        """(rows): of today or a day, kept."""
        key = (name, measure, start, end)
        if key not in self._shared:
            table = self.cube if name == TODAY else self.cube.days[name]
            self._shared[key] = table.between(measure, start, end, self.rows)
        return self._shared[key]

    def _today(self, measure: str, width: dt.timedelta, place: Ints) -> list[tuple[dt.timedelta, Floats]]:
        """All that is recent but for the window, the first piece of it and the last: how long each is, and its sum."""
        cube, over = self.cube, self._at - width
        recent = over - self._begun
        piece = min(self._piece, recent)
        whole = self.window(measure, RECENT * cube.bin)[place] - self.window(measure, width)[place]
        first = self._sum(TODAY, measure, self._begun, self._begun + piece)[place]
        last = cube.between(measure, over - piece, over, self.rows[place])
        return [(recent, whole), (piece, first), (piece, last)]

    def parts(self, measure: str, width: dt.timedelta, place: Ints) -> list[Floats]:
        """(place) each: of parts of today and of each day."""
        return [part for _, part in self._today(measure, width, place)] + [
            self._sum(name, measure, day.span.start, day.span.end)[place] for name, day in self.cube.days.items()
        ]

    def totals(self, measure: str, width: dt.timedelta, place: Ints) -> list[Floats]:
        """The same; NaN for pieces of today that have too little."""
        return _telling(self.parts(measure, width, place))

    def levels(self, measure: str, width: dt.timedelta, place: Ints) -> list[Floats]:
        """What each makes one expect of the window: a day as it was, and at today's level, its own or the fleet's."""
        bin_ = self.cube.bin
        long, today = zip(*self._today(measure, width, place), strict=True)
        found = [total * (width / of) for of, total in zip(long, _telling(today), strict=True)]
        now = found[0] * (RECENT * bin_ / width)
        for name, day in self.cube.days.items():
            ago = self._at - day.ago
            start, end = ago - width - NEAR * bin_, ago + NEAR * bin_
            if (later := self._later.get(name)) is None:
                recent = self._sum(name, measure, ago - RECENT * bin_, ago)[place]
                near = day.between(measure, start, end, self.rows[place])
            else:
                recent = self._by_clock(day, measure, ago - RECENT * bin_, ago, later, place)
                near = self._by_clock(day, measure, start, end, later, place)
            near *= width / (end - start)
            near = np.where((recent + near < FEW) & (now >= 4 * FEW), np.nan, near)  # a closed day tells no shape
            usual = now.sum() / max(recent.sum(), 1.0)
            moved = np.abs(now - usual * recent) > MOVED * np.sqrt(now + usual**2 * recent)
            found += [near, near * usual, np.where(moved, near * now / np.maximum(recent, 1.0), np.nan)]
        return found

    def _by_clock(
        self, day: Day, measure: str, start: dt.datetime, end: dt.datetime, later: Ints, place: Ints
    ) -> Floats:
        """(place): what a day has in [start, end), each monitor by as many seconds `later` as its clock was changed."""
        own, found = later[place], np.empty(len(place))
        for seconds in np.unique(own).tolist():
            same, shift = own == seconds, dt.timedelta(seconds=seconds)
            found[same] = day.between(measure, start + shift, end + shift, self.rows[place[same]])
        return found


def _telling(parts: Sequence[Floats]) -> list[Floats]:
    """Without the pieces of today, the second and the third, that have too little."""
    return [np.where((part >= TELLING) | (i not in (1, 2)), part, np.nan) for i, part in enumerate(parts)]
