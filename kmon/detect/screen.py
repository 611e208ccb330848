"""Who is looked at closely: the few monitors that could be anomalies, and as many others as tell what is usual.

A window can be no anomaly unless its count (or rate) is unlikely against the most distant level that its references
could make one expect: noise, drift and doubt only make it likelier. That bound takes a few sums of vectors over all
monitors, where the expectation itself takes hundreds of numbers of each. The levels of the fleet, such as its noise,
are estimated from a sample that is drawn without regard to what happens now.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Metric
from kmon.detect.cube import Cube
from kmon.detect.expect import FEW, NEAR, RECENT
from kmon.detect.fleet import FINE
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


def pick(
    cube: Cube,
    at: dt.datetime,
    metric: Metric,
    width: dt.timedelta,
    *,
    least: float,
    among: Ints,
    keep: Ints,
    rate: float,
    change: tuple[float, float] | None,
) -> Pick:
    """Which rows of a cube are worth scoring in the window of `width` that ends at `at`.

    Of those `among` that have `least` volume in such a window, now or usually; `keep` are looked at in any case. `rate`
    is the largest p-value that an anomaly can have, `change` its least relative fall and rise; None: all are looked at.
    """
    rows = among[_volume(cube, at, metric, width)[among] >= least]
    if len(rows) <= COMPANY or metric.kind == "mean" or change is None:
        return Pick(rows, np.ones(len(rows), dtype=bool), len(rows))
    order = cube.lot[rows]
    company = order <= np.partition(order, COMPANY - 1)[COMPANY - 1]
    could_be = _could_be(cube, at, metric, width, rows, -math.log(rate) - LOOSE, change)
    chosen = company | could_be | np.isin(rows, keep)
    return Pick(rows[chosen], company[chosen], len(rows))


def _volume(cube: Cube, at: dt.datetime, metric: Metric, width: dt.timedelta) -> Floats:
    """About how much a monitor has in a window, now or usually, of what must be enough to judge it."""
    measure = metric.parts[1] or metric.parts[0]
    now = cube.between(measure, at - width, at)
    return now if metric.parts[1] else np.maximum(now, cube.usual(measure) * (width / cube.bin))


def _could_be(
    cube: Cube,
    at: dt.datetime,
    metric: Metric,
    width: dt.timedelta,
    rows: Ints,
    least: float,
    change: tuple[float, float],
) -> Bools:
    """Whether a window is unlikely, by `least` nats, and far from the lowest or the highest level of its references."""
    numerator, denominator = metric.parts
    sums = _Sums(cube, at, width, rows)
    value, size = cube.between(numerator, at - width, at, rows), None
    with np.errstate(all="ignore"):
        if denominator is None:
            levels = sums.levels(numerator)
        else:
            size = cube.between(denominator, at - width, at, rows)
            value = np.minimum(value, size)
            pairs = zip(sums.totals(numerator), sums.totals(denominator), strict=True)
            levels = [np.where(trials > 0, (hits + 0.5) / (trials + 1), np.nan) for hits, trials in pairs]
        low, high = np.fmin.reduce(levels) * (1 - SLACK), np.fmax.reduce(levels) * (1 + SLACK)
        share = value if size is None else value / size

        def unlikely(level: Floats) -> Bools:  # so is what no reference tells of
            own = level if size is None else np.minimum(level, 1 - 1e-9)
            return np.asarray(~(divergence(value, own, size) < least))

        fell = ~(share > (1 - change[0]) * high) & unlikely(high)
        rose = ~(share < (1 + change[1]) * low) & unlikely(low)
        return np.asarray(fell | rose)


class _Sums:
    """What the references of some monitors have, each as one sum."""

    def __init__(self, cube: Cube, at: dt.datetime, width: dt.timedelta, rows: Ints) -> None:
        self._cube, self._at, self._width, self._rows = cube, at, width, rows
        begun, over = at - RECENT * cube.bin, at - width
        piece = min(FINE * cube.bin, over - begun)
        self._parts = [(begun, over), (begun, begun + piece), (over - piece, over)]
        """Today: all that is recent but for the window, the first piece of it and the last."""

    def totals(self, measure: str) -> list[Floats]:
        """Of each part of today and of each day."""
        whole, *pieces = (self._cube.between(measure, *part, self._rows) for part in self._parts)
        today = [whole, *(np.where(piece >= TELLING, piece, np.nan) for piece in pieces)]
        return today + [
            day.between(measure, day.span.start, day.span.end, self._rows) for day in self._cube.days.values()
        ]

    def levels(self, measure: str) -> list[Floats]:
        """What each makes one expect of the window: a day as it was, and at today's level, its own or the fleet's."""
        parts = zip(self._parts, self.totals(measure), strict=False)
        found = [total * (self._width / (end - start)) for (start, end), total in parts]
        now = found[0] * (RECENT * self._cube.bin / self._width)
        for day in self._cube.days.values():
            ago = self._at - day.ago
            recent = day.between(measure, ago - RECENT * self._cube.bin, ago, self._rows)
            start, end = ago - self._width - NEAR * self._cube.bin, ago + NEAR * self._cube.bin
            near = day.between(measure, start, end, self._rows) * (self._width / (end - start))
            near = np.where((recent + near < FEW) & (now >= 4 * FEW), np.nan, near)  # a closed day tells no shape
            usual = now.sum() / max(recent.sum(), 1.0)
            moved = np.abs(now - usual * recent) > MOVED * np.sqrt(now + usual**2 * recent)
            found += [near, near * usual, np.where(moved, near * now / np.maximum(recent, 1.0), np.nan)]
        return found
