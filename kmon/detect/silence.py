"""Silence: who usually comes at this hour has not come for this long, and how likely is that?

    hourly counts of the days before  ►  its own count of as long at this hour  ►  P(none)  ►  longer than ever before

The counts are asked of the store in one question, or are kept on a shelf in a large fleet (`kmon.detect.arrivals`).

Windows end at an hour, in which a partner with three events an hour can prove nothing. A silence grows until it can:
its window is the time since the last event. Partners appear and retire by themselves: who is new has no usual count,
and who has been silent for `incidents.lasting` is not asked about any more.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from kmon.clock import floor, naive
from kmon.config import Config, parse_duration
from kmon.detect.arrivals import SLOT, Arrivals, Seen
from kmon.detect.calendar import Calendar
from kmon.detect.contract import SCORES
from kmon.detect.cube import is_large
from kmon.detect.dispersion import overdispersion
from kmon.detect.expect import LOOSE
from kmon.detect.fleet import Fleet, Mask, numbers_of
from kmon.detect.own import TELLING, Known, Look, OwnWindows, Verdict
from kmon.detect.shelf import Shelf
from kmon.errors import UsageError
from kmon.store import Store

Floats = npt.NDArray[np.float64]
HOUR = dt.timedelta(hours=1)
STEADY = 0.02
"""Relative variance of a partner's count from day to day where the fleet tells none."""
WEIGHT = 4.0
"""Days that the fleet's variance weighs against a partner's own."""
PRIOR = 5.0
"""Events that a partner's usual level weighs against what was seen of it today before it fell silent."""
BEFORE = 12
"""Hours before the silence that tell today's level."""
DOUBT = 2.0
"""Standard deviations by which the count of the same day of the week must be lower to be believed."""
LEAK = 0.02
"""What still comes of a partner that is silent, of its usual rate: a stray event is no return."""
SURE = 1.5
"""The store leaves out who had less than so many times `least` on two other days together: nobody that could matter."""
AT_ONCE, AHEAD = 6 * HOUR, 48 * HOUR
"""Of a large fleet's days, what a look reads at most, as a sweep must not wait long, and what is read ahead at once."""


@dataclass(frozen=True)
class History:
    """Hourly counts of some monitors, the newest hour first: column h is [now - (h + 1) hours, now - h hours)."""

    counts: Floats
    """(monitors, hours): NaN where a known incident lies in it."""
    silent: Floats
    """(monitors,): hours since the last event."""
    like: npt.NDArray[np.bool_]
    """(monitors, days): whether the day 1, 2, ... days ago is comparable."""
    shift: npt.NDArray[np.int64]
    """(monitors, days): hours by which the same local time was later in universal time then."""
    flow: Floats
    """(monitors, 24): of the last hours, what all others had of their usual count, at most 1."""

    @property
    def days(self) -> int:
        return int(self.like.shape[1])

    @property
    def age(self) -> Floats:
        """Hours since the first event that is known."""
        seen = np.nan_to_num(self.counts) > 0
        return np.where(seen.any(axis=1), seen.shape[1] - np.argmax(seen[:, ::-1], axis=1), 0).astype(float)


@dataclass(frozen=True)
class Usual:
    """What monitors usually have in as long as they are silent now, at these hours."""

    expected: Floats
    excess: Floats
    """Relative variance beyond Poisson's."""
    days: Floats
    """How many days tell it."""


def usual(given: History, silent: Floats) -> Usual:
    """The usual count of the last `silent` hours: of the comparable days, and no more than that day of the week had.

    A negative binomial count: its level varies from day to day as the monitor's own counts do, shrunk to the fleet's.
    """
    hours = np.arange(24)
    part = np.clip(silent[:, None] - hours, 0.0, 1.0) * given.flow
    counts = np.stack([_of_day(given, day, part) for day in range(1, given.days + 1)], axis=1)
    known = np.isfinite(counts) & (given.age[:, None] >= 24 * np.arange(1, given.days + 1) + silent[:, None])
    comparable: npt.NDArray[np.bool_] = known & given.like
    unlike = ~comparable.any(axis=1)
    used = np.where(np.asarray(unlike)[:, None], known, comparable)
    some = used.sum(axis=1)
    total = np.where(used, counts, 0.0).sum(axis=1)
    mean = total / np.maximum(some, 1)
    level = mean * _level(given, silent)
    for week in range(7, given.days + 1, 7):
        same = counts[:, week - 1]
        level = np.where(used[:, week - 1], np.fmin(level, same + DOUBT * np.sqrt(same + 1)), level)
    excess = _excess(counts, used, mean) + 1 / (total + 0.5) + np.where(unlike, LOOSE, 0.0)
    return Usual(level, excess, some.astype(float))


def _of_day(given: History, day: int, part: Floats) -> Floats:
    """The count of the same hours a day ago: `part` of each of them; NaN where one of them is not known."""
    column = np.arange(24) + 24 * day - given.shift[:, [day - 1]]
    inside = (column >= 0) & (column < given.counts.shape[1])
    found = np.take_along_axis(given.counts, np.clip(column, 0, given.counts.shape[1] - 1), axis=1)
    return np.asarray(np.where(part > 0, part * np.where(inside, found, np.nan), 0.0).sum(axis=1))


def _level(given: History, silent: Floats) -> Floats:
    """Today's level against the usual one in the hours before the silence, at most 1: who retires fades out."""
    hours = np.ceil(silent).astype(int)[:, None] + np.arange(BEFORE)
    last = given.counts.shape[1] - 1

    def at(days: int) -> Floats:
        column = hours + 24 * days
        found = np.take_along_axis(given.counts, np.clip(column, 0, last), axis=1)
        return np.where(column <= np.minimum(last, given.age[:, None]), found, np.nan)

    before = np.stack([at(day) for day in range(1, given.days + 1)])
    good = np.isfinite(before)
    mean = np.where(good, before, 0.0).sum(axis=0) / np.maximum(good.sum(axis=0), 1)
    both = good.any(axis=0) & np.isfinite(at(0))
    now, then = (np.where(both, part, 0.0).sum(axis=1) for part in (at(0), mean))
    return np.asarray(np.minimum((PRIOR + now) / (PRIOR + then), 1.0))


def _excess(counts: Floats, used: npt.NDArray[np.bool_], mean: Floats) -> Floats:
    """Relative variance of the counts from day to day beyond chance."""
    days = used.sum(axis=1)
    square = np.where(used, (counts - mean[:, None]) ** 2, 0.0)
    free = np.maximum(days - 1, 1)
    telling = used & (days >= 2)[:, None] & (mean >= 1)[:, None]
    scaled = square * (days / free)[:, None]
    wide = np.broadcast_to(mean[:, None], counts.shape)
    fleet = overdispersion(
        scaled[telling], wide[telling], wide[telling] ** 2, most=1.0, guess=STEADY, weight=5 * WEIGHT
    )
    own = np.maximum(square.sum(axis=1) / free - mean, 0.0) / np.maximum(mean, 1e-9) ** 2
    return np.asarray((WEIGHT * fleet + (days - 1) * own) / (WEIGHT + np.maximum(days - 1, 0)))


def longest(given: History) -> Floats:
    """The longest silence before this one, in events that usually come in as long at those hours.

    So nights do not count, in which nobody comes, and who always comes in bursts is given the time between them.
    Known incidents are left out.
    """
    m, hours = given.counts.shape
    by_hour = [given.counts[:, h::24] for h in range(24)]
    good = [np.isfinite(part).sum(axis=1) for part in by_hour]
    profile = np.stack([np.nansum(part, axis=1) / np.maximum(n, 1) for part, n in zip(by_hour, good, strict=True)], 1)
    run, found, before = np.zeros(m), np.zeros(m), np.zeros(m)
    first = given.age
    for h in range(hours - 1, -1, -1):
        count, rate = given.counts[:, h], profile[:, h % 24]
        started = (h < first) & (h >= np.floor(given.silent))
        found = np.where(started & (count > 0), np.maximum(found, run + (rate + before) / 2), found)
        run = np.where(started & (count == 0), run + rate, 0.0)
        before = rate
    return found


def chance(expected: Floats, excess: Floats) -> Floats:
    """P(not one event) of a negative binomial count."""
    spread = np.maximum(excess, 1e-9)
    return np.asarray(np.exp(-np.log1p(spread * expected) / spread))


@dataclass(frozen=True)
class Silence(OwnWindows):
    """Partners that should have come by now. It brings its own windows, and judges them every so often."""

    name: ClassVar[str] = "silence"
    overlaps: ClassVar[bool] = False

    metric: str | None = None
    """Of whose count not one has come; default the first of sessions, events, or any count."""
    by: Sequence[Sequence[str]] = (("partner",),)
    """The grouping sets whose monitors are judged."""
    days: int = 7
    """Days before today that tell what is usual."""
    least: float = 8.0
    """Expected events since the last one below which nothing is judged."""
    history: float = 1.0
    """Days after its first event from which on a partner can be silent."""
    every: str | dt.timedelta = "10m"
    """The time between two looks."""

    def __post_init__(self) -> None:
        for key, low in (("days", 1), ("least", 1), ("history", 1)):
            if not isinstance(getattr(self, key), int | float) or not low <= getattr(self, key) <= 60:
                message = (
                    f"the detector 'silence' needs a number from {low} to 60 for {key!r}, not {getattr(self, key)!r}"
                )
                raise UsageError(message)
        try:
            if not parse_duration(self.every):
                raise ValueError(f"{self.every!r} is too short")  # noqa: EM102
        except ValueError as error:
            message = f"the detector 'silence', every: {error}"
            raise UsageError(message) from error

    def check(self, config: Config) -> None:
        self.metric_of(config)

    def longest(self, config: Config) -> dt.timedelta:
        return config.incidents.lasting

    def look_every(self, config: Config) -> dt.timedelta:
        """The time between two looks, in whole sweeps."""
        return max(1, -(-parse_duration(self.every) // config.every)) * config.every

    def metric_of(self, config: Config) -> str:
        """The name of the count that it is about; UsageError where there is none."""
        counts = {name: metric.count for name, metric in config.metrics.items() if metric.count is not None}
        if self.metric is None and counts:
            return next((name for name in ("sessions", "events") if name in counts), next(iter(counts)))
        if self.metric not in counts:
            message = f"the detector 'silence' needs a count: {self.metric!r} is none of {', '.join(counts) or 'none'}"
            raise UsageError(message)
        return self.metric

    def watches(self, config: Config, metric: str, scope: Mapping[str, str]) -> bool:
        return metric == self.metric_of(config) and any(set(grouping) == set(scope) for grouping in self.by)

    def unjudged(self, *, seen: bool) -> str:
        return "it is not silent, or too little is expected in so short a silence"

    def look(
        self, store: Store, config: Config, at: dt.datetime, masks: Sequence[Mask] = (), shelf: Shelf | None = None
    ) -> Look | None:
        """The silent monitors; each window is as long as one has been silent.

        On the `shelf` is what a large fleet's looks have read; such a look is that of the last multiple of ten minutes.
        """
        name = self.metric_of(config)
        found = [self._of_set(store, config, number, name, at, masks, shelf) for number in range(len(self.by))]
        parts = [part for part in found if part is not None]
        if not parts:
            return None
        monitors = pl.concat([monitors for monitors, _, _ in parts], how="diagonal")
        scores = pl.concat([scores for _, scores, _ in parts])
        whole = {"value": pl.lit(0.0), "exposure": pl.lit(1.0)}
        scores = scores.with_columns(metric=pl.lit(name), row=pl.int_range(pl.len()), **whole)
        none = np.zeros((monitors.height, 0), dtype=bool)
        fleet = Fleet(at, HOUR, (), monitors, {}, none, np.zeros(0, dtype=bool))
        return Look(fleet, scores.filter(pl.col("judged")), sum(tests for _, _, tests in parts))

    def read_ahead(self, store: Store, config: Config, at: dt.datetime, shelf: Shelf) -> None:
        """Have on the shelf what the next looks into a large fleet need, or more of it than before."""
        measure = config.metrics[self.metric_of(config)].parts[0]
        for by in self.by:
            if (kept := self._kept(store, by, measure, shelf)) is not None:
                kept.fill(store, floor(at, SLOT), AHEAD)

    @property
    def _hours(self) -> int:
        """That a look goes by."""
        return 24 * (self.days + 1)

    def _kept(self, store: Store, by: Sequence[str], measure: str, shelf: Shelf | None) -> Arrivals | None:
        """What is kept of a large fleet; None where nothing is."""
        if shelf is None or len(by) > 1 or not is_large(store):
            return None
        return shelf.arrivals(store, by[0], measure, self._hours)

    def _of_set(
        self,
        store: Store,
        config: Config,
        number: int,
        name: str,
        at: dt.datetime,
        masks: Sequence[Mask],
        shelf: Shelf | None,
    ) -> tuple[pl.DataFrame, pl.DataFrame, int] | None:
        by, measure = list(self.by[number]), config.metrics[name].parts[0]
        seen = self._seen(store, config, by, measure, at, shelf)
        if seen.monitors.is_empty():
            return None
        counts, monitors = seen.counts, seen.monitors
        flow = _flow(seen.everything, counts)
        newest = seen.newest.dt.truncate("1m")  # as it is when ten seconds are merged into minutes
        silent, seconds = ((naive(end) - newest).dt.total_seconds().to_numpy().astype(float) for end in (seen.at, at))
        _spoil(counts, monitors, store, masks, seen.at)
        like, shift = Calendar(config, store).hours(monitors, seen.at, self.days)
        given = History(counts, silent / 3600, like, shift, flow)
        keys = monitors.select(pl.lit(number, pl.Int32).alias("set"), *by)
        return keys, self._scores(given).with_columns(seconds=pl.Series(seconds)), seen.tests

    def _seen(
        self, store: Store, config: Config, by: list[str], measure: str, at: dt.datetime, shelf: Shelf | None
    ) -> Seen:
        """Who is silent: by what is kept, or as the store tells it where that is not all there."""
        lasting = int(min(config.incidents.lasting, 24 * HOUR) / HOUR)
        quiet = min(max(config.windows), lasting * HOUR)
        asked: Any = {"quiet": quiet, "lasting": lasting, "least": SURE * self.least}
        kept = self._kept(store, by, measure, shelf)
        if kept is not None and kept.fill(store, floor(at, SLOT), AT_ONCE):
            seen = kept.silent(store, at, **asked)
            if seen is not None:
                return seen
        rows = store.silent(by, measure, at, hours=self._hours, **asked)
        everything = _table(rows.filter(pl.col(by[0]).is_null()).with_columns(row=pl.lit(0)), 1, self.days)
        rows = rows.filter(pl.col(by[0]).is_not_null())
        monitors = rows.group_by(by, maintain_order=True).agg(pl.col("newest").max())
        counts = _table(rows.join(monitors.with_row_index("row"), on=by, how="left"), monitors.height, self.days)
        tests = rows["tests"][0] if rows.height else 0
        return Seen(at, monitors.select(by), monitors["newest"], counts, everything, tests)

    def _scores(self, given: History) -> pl.DataFrame:
        with np.errstate(all="ignore"):
            due = usual(given, given.silent)
            p = np.where(due.expected > longest(given), chance(due.expected, due.excess), 1.0)
            old = given.age - given.silent >= 24 * self.history
            judged = old & (due.days > 0) & (due.expected >= self.least)
            shape = 1 / (1 / np.maximum(due.expected, 1e-9) + due.excess)
            middle, width = 1 - 1 / (9 * shape), stats.norm.isf(0.0005) / (3 * np.sqrt(shape))
        zero = np.zeros(len(p))
        return pl.DataFrame(
            {
                "observed": zero,
                "expected": due.expected,
                "lower": due.expected * np.maximum(middle - width, 0.0) ** 3,
                "upper": due.expected * (middle + width) ** 3,
                "p_value": np.where(judged, p, 1.0),
                "effect": zero - 1.0,
                "direction": ["down"] * len(p),
                "evidence": np.nan_to_num(due.expected),
                "judged": judged,
                "notable": judged,
            },
            schema=SCORES,
        )

    def verdict(
        self,
        store: Store,
        config: Config,
        incident: Known,
        at: dt.datetime,
        *,
        since: dt.datetime | None = None,
        masks: Sequence[Mask] = (),
    ) -> Verdict:
        """Whether a monitor that was silent still is: what came in the shortest of the last hours that can tell.

        The likelihood of its usual rate against LEAK of it.
        """
        scope, measure = incident.scope, config.metrics[incident.metric].parts[0]
        start = at - 24 * (self.days + 1) * HOUR
        rows = store.measures(scope, start, at, HOUR)
        hour = (naive(at) - rows["bucket"]).dt.total_hours() - 1
        rows = rows.select(pl.col(measure).alias("n"), hour=hour, row=pl.lit(0))
        counts = _table(rows, 1, self.days)
        monitor = {d: pl.Series([n], dtype=pl.UInt32) for d, n in numbers_of(store, scope).items()}
        like, shift = Calendar(config, store).hours(pl.DataFrame(monitor), at, self.days)
        given = History(counts, np.zeros(1), like, shift, np.ones((1, 24)))
        for back in (1, 2, 4, 8, 16, 24):
            with np.errstate(all="ignore"):
                expected = float(usual(given, np.array([float(back)])).expected[0])
            gain = (1 - LEAK) * expected + float(counts[0, :back].sum()) * np.log(LEAK)
            if abs(gain) >= TELLING:
                return "abnormal" if gain > 0 else "normal"
        return "unjudged"


def _table(rows: pl.DataFrame, monitors: int, days: int) -> Floats:
    """(monitors, hours): `n` by `row` and `hour`."""
    table = np.zeros((monitors, 24 * (days + 1)))
    table[rows["row"].to_numpy(), rows["hour"].to_numpy()] = rows["n"].to_numpy()
    return table


def _flow(everything: Floats, counts: Floats) -> Floats:
    """(monitors, 24): what the others had in each of the last hours of what they usually have, at most 1.

    Where all others are quiet, nobody is silent: the source stands still.
    """
    others = (everything - counts).reshape(len(counts), -1, 24)
    usual_ = np.median(others[:, 1:][:, everything.reshape(-1, 24)[1:].any(axis=1)], axis=1)
    told = np.minimum(others[:, 0] / np.maximum(usual_, 1e-9), 1.0)
    return np.where(usual_ >= PRIOR, told, everything[:, :24] > 0)


def _spoil(counts: Floats, monitors: pl.DataFrame, store: Store, masks: Sequence[Mask], at: dt.datetime) -> None:
    """Take the hours of known incidents from the references of the monitors in which they were."""
    for mask in masks:
        shared = [d for d in mask.scope if d in monitors.columns]
        numbers = numbers_of(store, mask.scope)
        if (mask.scope and not shared) or len(numbers) < len(mask.scope):
            continue
        rows = np.ones(monitors.height, dtype=bool)
        for dimension in shared:
            rows &= (monitors[dimension] == numbers[dimension]).to_numpy()
        first = max(int((at - (mask.resolved_at or at)) / HOUR), 0)
        last = min(int((at - mask.started_at) / HOUR), counts.shape[1] - 1)
        counts[rows, first : last + 1] = np.nan
