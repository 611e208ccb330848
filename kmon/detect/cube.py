"""What sweeps read of the store, kept so that the next one reads only what is new.

    the base   every monitor with enough events: today by grain, the other days by bin      once in a while
    columns    the measures of those monitors in each grain that has passed since then      in every sweep
    a fleet    some of the monitors, as the detectors take them (`kmon.detect.fleet`)       of each sweep

A monitor that was too small at the base is not seen before the next one, which is a quarter of an hour later, or up to
an hour in a large fleet: it has no references yet that would judge it sooner. Sums over all monitors are vectors, so
that a sweep can tell cheaply which few are worth a closer look (`kmon.detect.screen`).
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.clock import EPOCH, floor
from kmon.config import Config
from kmon.config.bins import bin_for
from kmon.detect.calendar import Calendar
from kmon.detect.expect import RECENT
from kmon.detect.fleet import (
    DAY,
    FINE,
    MINUTE,
    TODAY,
    Fleet,
    Mask,
    Outlook,
    assembled,
    grain_for,
    numbers_of,
    spans_for,
)
from kmon.detect.keys import Floats, Ints, Keys
from kmon.detect.masks import mask
from kmon.store import Span, Store
from kmon.store.base import MANY
from kmon.store.schema import EVENTS
from kmon.store.sql import Where

OFTEN, SELDOM = 3, 6
"""Bins after which the base is read again, in a small fleet and in a large one."""
LARGE = 5_000
"""Values of one dimension from which on a fleet is large."""
FEW = 50
"""Monitors of a set up to which all of them are looked at in every sweep: they tell what is usual of all others."""
NAMED = 500
"""Values of a dimension that are asked for by name."""
PIECE = dt.timedelta(minutes=30)
"""Of a span of a large fleet, read at once."""
LEAVES = 10_000
"""Combinations of dimensions with few values up to which a large fleet's cube has them all."""
FEWER = 12
"""Times more monitors than are asked for, from which on picking them first is faster than adding up all."""
LATE = 1e-3
"""The share of what was read that may come late before everything is read again."""


@dataclass
class Cube:
    """All monitors of all grouping sets, as they were read."""

    as_of: dt.datetime
    """When the base was read, in event time."""
    until: dt.datetime
    """Up to where its days reach: a later sweep needs another base."""
    bin: dt.timedelta
    grain: dt.timedelta
    keys: Keys
    """Who its monitors are."""
    today: dict[str, Floats]
    """By measure: (grains, monitors), from RECENT bins before `as_of` on, with room for all up to `until`."""
    days: dict[str, Day]
    oldest: dt.datetime
    end: dt.datetime
    """Up to where `today` is filled."""
    late: int
    """Events that had come late to the store by then."""
    copy: str = ""
    """Which copy on a shelf its tables are, if any."""
    usuals: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """What `usual` has found so far, by measure."""

    @classmethod
    def read(
        cls,
        store: Store,
        config: Config,
        as_of: dt.datetime,
        until: dt.datetime | None = None,
        *,
        scope: dict[str, str] | None = None,
        without: Sequence[dict[str, str]] = (),
        least: float = 1,
        among: pl.DataFrame | None = None,
        cube: Cube | None = None,
        grain: dt.timedelta | None = None,
    ) -> Cube:
        """The base: monitors with `least` events today or on one of the days, for sweeps `until` then.

        Only the events inside `scope` and outside all of the scopes `without`; only of the monitors `among` others, and
        then of another `cube` rather than of the store, what that has. `grain` is how fine today is, by default as
        sweeps at `as_of` need it.
        """
        until = until or as_of
        late, oldest = store.late(), store.oldest() or as_of
        bin_, grain = bin_for(config.windows), grain or grain_for(as_of, [*config.windows, config.every])
        spans = _base_spans(store, config, as_of, until, oldest, grain)
        watched = [tuple(grouping) for grouping in config.watch if grouping]
        dimensions = [d for d in store.schema.dimensions if any(d in grouping for grouping in watched)]
        wanted = {measure for metric in config.metrics.values() for measure in metric.measures} | {EVENTS}
        measures = [m for m in store.schema.measures if m in wanted]
        sizes = {d: store.cardinality(d) for d in dimensions}
        leaves = _leaves(store, sizes) if among is None else ()
        sets = (*watched, (), *([leaves] if leaves else []))
        if among is None:
            read = {span.name: _cells(store, span, dimensions, measures, scope, without) for span in spans}
            keys, room = Keys.of(sets, sizes, read.values(), least, leaves=bool(leaves)), (until - as_of) // grain
            tables = {
                span.name: keys.summed(read.pop(span.name), measures, span.count, room if span.name == TODAY else 0)
                for span in spans
            }
        else:
            keys = Keys.among(sets, sizes, among)
            asked = (keys, among, measures, scope or {}, without, cube)
            tables = {span.name: _asked(store, span, *asked) for span in spans}
        days = {span.name: Day(span, tables[span.name]) for span in spans if span.name != TODAY}
        return cls(as_of, until, bin_, grain, keys, tables[TODAY], days, oldest, as_of, late)

    @functools.cached_property
    def monitors(self) -> pl.DataFrame:
        """A row a monitor: `set`, then the dimensions as numbers; everything together, then the leaves, come last."""
        return self.keys.monitors()

    @property
    def start(self) -> dt.datetime:
        """Where `today` begins."""
        return self.as_of - RECENT * self.bin

    def serves(self, store: Store, config: Config, at: dt.datetime) -> bool:
        """Whether a sweep at `at` can be made of it: its days reach so far, and little came late since it was read.

        They need not where older history came since, or a time zone was heard of in which the clocks were changed.
        """
        if not self.as_of <= at <= self.until or (at - self.start) % self.grain:
            return False
        if (store.oldest() or self.oldest) < self.oldest:
            return False
        needed = Calendar(config, store).widened(spans_for(at, self.bin, self.grain, self.oldest)[2:])
        if not all(self._has(span) for span in needed):
            return False
        read = float(self.today[EVENTS][:, self.everything].sum())
        return store.late() - self.late <= LATE * read

    def _has(self, span: Span) -> bool:
        """Whether a day was read that far."""
        day = self.days.get(span.name)
        return day is not None and day.span.start <= span.start and span.end <= day.span.end

    def advance(self, store: Store, at: dt.datetime) -> None:
        """Read what has passed since, up to `at`; nothing of monitors that were too small at the base."""
        if at <= self.end:
            return
        count, first = (at - self.end) // self.grain, (self.end - self.start) // self.grain
        measures = [*self.today]
        cells = _cells(store, Span(TODAY, self.end, count, self.grain), [*self.keys.sizes], measures)
        for measure, table in self.keys.summed(cells, measures, count).items():
            self.today[measure][first : first + count] = table
        self.end = at

    # ---- sums over many monitors -------------------------------------------------------------------------------------

    def between(
        self, measure: str, start: dt.datetime, end: dt.datetime, rows: Ints | slice = slice(None)
    ) -> npt.NDArray[np.float64]:
        """(rows): the sum of a measure over the grains of [start, end)."""
        return _sum(self.today[measure], start - self.start, end - self.start, self.grain, rows)

    def usual(self, measure: str) -> npt.NDArray[np.float64]:
        """(monitors): of a bin, in the FINE bins today or on a day that had most; as of the base.

        Of fewer bins than all, as there are shops that have just opened.
        """
        if measure not in self.usuals:
            each = self.bin // self.grain
            today = _busiest(self.today[measure][: RECENT * each], FINE * each) * each
            days = (_busiest(day.values[measure], FINE) for day in self.days.values())
            self.usuals[measure] = np.max([today, *days], axis=0)
        return self.usuals[measure]

    @functools.cached_property
    def lot(self) -> Ints:
        """(monitors): an order at random, always the same."""
        return np.random.default_rng(0).permutation(self.monitors.height)

    def quiet(self, at: dt.datetime, width: dt.timedelta) -> bool:
        """Whether there is not one event of anybody in the window."""
        return not self.between(EVENTS, at - width, at, self.everything).any()

    # ---- what is no monitor ------------------------------------------------------------------------------------------

    def cells(
        self,
        store: Store,
        span: Span,
        dimensions: Sequence[str],
        measures: Sequence[str],
        where: Where,
        without: Sequence[Where] = (),
    ) -> pl.DataFrame | None:
        """The cells of a span as `Store.cells` gives them, summed from the leaves; None where these do not tell them.

        Without an event there is no cell. The leaves do not tell apart the values that are newer than they are.
        """
        scopes = [_numbered(store, scope) for scope in (where, *without)]
        named = {(dimension, number) for scope in scopes for dimension, numbers in scope.items() for number in numbers}
        asked = {*dimensions, *(dimension for scope in (where, *without) for dimension in scope)}
        told = self.keys.leaves and asked <= {*self.keys.sets[-1]} and {*measures} <= self.today.keys()
        if not told or not self._reaches(span) or any(number > self.keys.sizes[d] for d, number in named):
            return None
        first, last = self.keys.firsts[-2:]
        leaves = self.monitors[first:last]
        inside, *outside = (_inside(leaves, scope) for scope in scopes)
        for one in outside:
            inside &= ~one
        rows = np.flatnonzero(inside) + first
        rows = rows[self._slots(EVENTS, [span], rows).any(axis=1)]
        columns: dict[str, npt.NDArray[Any]] = {
            "slot": np.repeat(np.arange(span.count, dtype=np.int32), len(rows)),
            **{d: np.tile(leaves[d].to_numpy()[rows - first], span.count) for d in dimensions},
            **{m: self._slots(m, [span], rows).T.ravel() for m in {*measures, EVENTS}},
        }
        return pl.DataFrame(columns).filter(pl.col(EVENTS) > 0).select("slot", *dimensions, *measures)

    def _reaches(self, span: Span) -> bool:
        """Whether a span was read, in slots that can be put together to those of the span."""
        if not (self.start <= span.start and span.end <= self.end if span.name == TODAY else self._has(span)):
            return False
        start, width = self._grid(span.name)
        return not (span.start - start) % width and not span.width % width

    def _grid(self, name: str) -> tuple[dt.datetime, dt.timedelta]:
        """Where the table of today or of a day begins, and how wide its slots are."""
        return (self.start, self.grain) if name == TODAY else (self.days[name].span.start, self.bin)

    # ---- some monitors in full ---------------------------------------------------------------------------------------

    def watched(self, config: Config) -> Ints:
        """The rows of the monitors, of which everything together is one only where it is watched."""
        rows = np.arange(self.keys.firsts[sum(map(bool, config.watch))])
        return np.append(rows, self.everything) if () in config.watch else rows

    @functools.cached_property
    def everything(self) -> Ints:
        """The row of all events together, which is there unless the cube is of some monitors only."""
        return np.flatnonzero((self.monitors["set"] == self.keys.sets.index(())).to_numpy())

    @property
    def common(self) -> Ints:
        """The rows of the monitors of sets that have few: what all others are parts of."""
        firsts = self.keys.firsts
        few = [np.arange(a, b) for a, b in itertools.pairwise(firsts) if b - a <= FEW]
        return np.concatenate([np.empty(0, dtype=np.int64), *few])

    def rows_of(self, store: Store, scopes: Sequence[Mapping[str, str]]) -> Ints:
        """The rows of the monitors with these dimension values, as far as there are such."""
        found = []
        for scope in scopes:
            numbers = numbers_of(store, scope)
            if len(numbers) == len(scope):
                found += self.keys.rows_of(numbers)
        return np.unique(np.array(found, dtype=np.int64))

    def fleet(
        self,
        store: Store,
        config: Config,
        at: dt.datetime,
        rows: Ints,
        *,
        masks: Sequence[Mask] = (),
        outlooks: Sequence[Outlook] = (),
    ) -> Fleet:
        """Some of the monitors as the detectors take them, at `at`."""
        calendar = Calendar(config, store)
        needed = spans_for(at, self.bin, self.grain, self.oldest)
        spans = calendar.widened(needed)
        values = {measure: self._slots(measure, spans, rows) for measure in self.today}
        events = self._slots(EVENTS, spans, self.everything).sum(axis=0)
        fleet = assembled(
            at,
            self.bin,
            spans,
            self.monitors[rows],
            values,
            events,
            store=store,
            sets=self.keys.sets,
            oldest=self.oldest,
            outlooks=outlooks,
        )

        def count(chosen: Ints) -> npt.NDArray[np.float64]:
            known, each = np.unique(chosen, return_inverse=True)
            found = self._slots(EVENTS, spans, np.maximum(known, 0)).sum(axis=1)
            return np.asarray(np.where(known >= 0, found, 0.0)[each])

        mask(fleet, self.keys, count, store, masks)
        return calendar.applied(fleet, needed)

    def _slots(self, measure: str, spans: Sequence[Span], rows: Ints) -> npt.NDArray[np.float64]:
        """(rows, slots of `spans`)"""
        parts = []
        for span in spans:
            table = self.today[measure] if span.name == TODAY else self.days[span.name].values[measure]
            start, width = self._grid(span.name)
            first, join = (span.start - start) // width, span.width // width
            part = np.asarray(table[first : first + span.count * join]).take(rows, axis=1).astype(np.float64)
            parts.append(part.reshape(span.count, join, len(rows)).sum(axis=1) if join > 1 else part)
        return np.ascontiguousarray(np.concatenate(parts).T)


@dataclass
class Day:
    """A day that serves as a reference."""

    span: Span
    values: dict[str, Floats]
    """By measure: (bins, monitors)."""

    @property
    def ago(self) -> dt.timedelta:
        return int(self.span.name.removeprefix("day")) * DAY

    def between(
        self, measure: str, start: dt.datetime, end: dt.datetime, rows: Ints | slice = slice(None)
    ) -> npt.NDArray[np.float64]:
        """(rows): the sum of a measure over [start, end), the bins at its ends in part."""
        return _sum(self.values[measure], start - self.span.start, end - self.span.start, self.span.width, rows)


@dataclass(frozen=True)
class Base:
    """What the cube for some sweeps is read as."""

    as_of: dt.datetime
    until: dt.datetime
    least: float
    """Events that a monitor has."""
    grain: dt.timedelta
    """The finest parts of today."""

    @classmethod
    def at(cls, store: Store, config: Config, at: dt.datetime, least: float) -> Base:
        """For a sweep at `at`, which has monitors with `least` events in some window.

        It depends on nothing else, so that a replay that was stopped goes on as if it had not been. A large fleet's
        base is that of one period before, so that it can be read ahead, and has the monitors that usually have `least`
        events in the longest window, a small one's those that have so many at all.
        """
        bin_, grain = bin_for(config.windows), grain_for(at, [*config.windows, config.every])
        if (at - EPOCH) % grain:  # its windows begin and end between those of all others
            return cls(at, at, least, grain)
        if not is_large(store):
            now = floor(at, OFTEN * bin_)
            return cls(now, now + OFTEN * bin_, least, grain)
        now = floor(at, SELDOM * bin_)
        usual = least * (RECENT * bin_ / max(config.windows))
        return cls(now - SELDOM * bin_, now + SELDOM * bin_, usual, grain)

    def next(self) -> Base:
        """That of the period after this one."""
        period = (self.until - self.as_of) / 2
        return replace(self, as_of=self.as_of + period, until=self.until + period)

    def read(self, store: Store, config: Config) -> Cube:
        return Cube.read(store, config, self.as_of, self.until, least=self.least, grain=self.grain)


def is_large(store: Store) -> bool:
    """Whether a base takes so long to read that no sweep must wait for it."""
    return any(store.cardinality(dimension) >= LARGE for dimension in store.schema.dimensions)


def recall(
    store: Store,
    config: Config,
    at: dt.datetime,
    cube: Cube | None = None,
    *,
    least: float = 1,
    shelf: Callable[[dt.datetime], Cube | None] = lambda _: None,
) -> Cube:
    """The cube for a sweep at `at`: the one that there is, one that is on the `shelf`, or one that is read now."""
    base = Base.at(store, config, at, least)
    if cube is None or cube.as_of != base.as_of or not cube.serves(store, config, at):
        kept = shelf(base.as_of)
        cube = kept if kept is not None and kept.serves(store, config, at) else base.read(store, config)
    cube.advance(store, at)
    return cube


def observe(
    store: Store,
    config: Config,
    at: dt.datetime,
    *,
    masks: Sequence[Mask] = (),
    outlooks: Sequence[Outlook] = (),
    scope: dict[str, str] | None = None,
    without: Sequence[dict[str, str]] = (),
    least: float = 1,
    among: pl.DataFrame | None = None,
    cube: Cube | None = None,
) -> Fleet:
    """Every monitor with `least` events today or on one of the days, or those `among` others, read anew.

    Only the events inside `scope` and outside all of the scopes `without`. `outlooks` are what models forecast, `cube`
    is what there may be of those `among` others already.
    """
    read = Cube.read(store, config, at, scope=scope, without=without, least=least, among=among, cube=cube)
    return read.fleet(store, config, at, read.watched(config), masks=masks, outlooks=outlooks)


def _cells(
    store: Store,
    span: Span,
    dimensions: Sequence[str],
    measures: Sequence[str],
    where: Where | None = None,
    without: Sequence[Where] = (),
    *,
    merged: bool = False,
) -> pl.DataFrame:
    """The cells of a span; of what is kept by the minute by now, a minute is in the slot in which it begins."""
    parts = []
    for piece in _pieces(store, span, whole=merged):
        first, join = (piece.start - span.start) // span.width, piece.width // span.width
        part = store.cells([piece], dimensions, measures, where, without, merged=merged)
        parts.append(part.with_columns(pl.col("slot") * join + first))
    return pl.concat(parts, how="vertical_relaxed")


def _asked(
    store: Store,
    span: Span,
    keys: Keys,
    among: pl.DataFrame,
    measures: Sequence[str],
    scope: Mapping[str, str],
    without: Sequence[Where],
    cube: Cube | None,
) -> dict[str, Floats]:
    """By measure: (slots, monitors), what a few monitors have; `among` are those of `keys`.

    Those of a dimension with many values are asked for by name, all others in sums over it: either has few rows. What
    `cube` has is not asked for.
    """
    tables: dict[str, Floats] = {m: np.zeros((span.count, keys.firsts[-1])) for m in measures}
    many = frozenset(d for d in keys.sizes if d not in scope and store.cardinality(d) > MANY)
    by_many: dict[frozenset[str], list[int]] = {}
    for number, grouping in enumerate(keys.sets):
        if len(keys.known[number]):
            by_many.setdefault(many.intersection(grouping), []).append(number)
    for numbers in by_many.values():
        mine = among.filter(pl.col("set").is_in(numbers))
        asked = [d for d in keys.sizes if mine[d].is_not_null().any()]
        where: dict[str, str | Sequence[str]] = {
            **{d: named for d in asked if (named := _named(store, mine[d]))},
            **scope,
        }
        cells = cube.cells(store, span, asked, measures, where, without) if cube is not None else None
        if cells is None:
            cells = _cells(store, span, asked, measures, where, without, merged=True)
        for measure, table in keys.summed(cells, measures, span.count, sets=numbers).items():
            tables[measure] += table
    return tables


def _pieces(store: Store, span: Span, *, whole: bool) -> Iterator[Span]:
    """A span as it is asked for: as fine as it is kept, and of a large fleet in pieces that no limit cancels.

    A `whole` one is not cut into such pieces.
    """
    step = PIECE if is_large(store) and not whole else span.end - span.start
    start, kept = span.start, store.begins("rollup_10s") if span.width < MINUTE else None
    if kept is not None and kept > start:
        end, minute = min(kept, span.end), -(-(start - EPOCH) // MINUTE) * MINUTE + EPOCH
        yield from _cut(Span(span.name, minute, -(-(end - minute) // MINUTE), MINUTE), step)
        start = end
    yield from _cut(replace(span, start=start, count=(span.end - start) // span.width), step)


def _cut(span: Span, piece: dt.timedelta) -> Iterator[Span]:
    """One span at least, which may be empty."""
    step = max(1, piece // span.width)
    for first in range(0, max(span.count, 1), step):
        yield replace(span, start=span.start + first * span.width, count=max(min(step, span.count - first), 0))


def _leaves(store: Store, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The dimensions whose combinations are kept in a large fleet: those with fewest values, as far as they are few."""
    if not is_large(store):
        return ()
    few = sorted((d for d in sizes if sizes[d] <= MANY), key=lambda d: sizes[d])
    total = itertools.accumulate((sizes[d] + 1 for d in few), operator.mul)  # 0 stands for no value
    kept = {d for d, product in zip(few, total, strict=True) if product <= LEAVES}
    return tuple(d for d in sizes if d in kept)


def _numbered(store: Store, scope: Where) -> dict[str, list[int]]:
    """A scope with the store's numbers of its values, as far as it has seen them."""
    values = {d: [value] if isinstance(value, str) else value for d, value in scope.items()}
    return {d: [n for one in named if (n := store.number(d, one)) is not None] for d, named in values.items()}


def _inside(monitors: pl.DataFrame, scope: Mapping[str, Sequence[int]]) -> npt.NDArray[np.bool_]:
    """(monitors): whether each lies in a scope."""
    inside = np.ones(monitors.height, dtype=bool)
    for dimension, numbers in scope.items():
        inside &= monitors[dimension].is_in(numbers).to_numpy()
    return inside


def _named(store: Store, numbers: pl.Series) -> list[str]:
    """The values of a dimension that all of some monitors have, where there are not too many to ask for by name."""
    asked = numbers.unique()
    few = len(asked) <= NAMED and numbers.null_count() == 0
    return list(store.names(numbers.name, asked.to_list()).values()) if few else []


def _base_spans(
    store: Store, config: Config, as_of: dt.datetime, until: dt.datetime, oldest: dt.datetime, grain: dt.timedelta
) -> list[Span]:
    """What a base reads: today by grain, and the days as far as sweeps `until` then need them."""
    bin_ = bin_for(config.windows)
    start, more = as_of - RECENT * bin_, -(-(until - as_of) // bin_)
    last = spans_for(until, bin_, grain, oldest)[2:]
    spans = [replace(span, start=span.start - more * bin_, count=span.count + more) for span in last]
    return [Span(TODAY, start, (as_of - start) // grain, grain), *Calendar(config, store).widened(spans)]


def _sum(
    table: Floats, start: dt.timedelta, end: dt.timedelta, width: dt.timedelta, rows: Ints | slice
) -> npt.NDArray[np.float64]:
    """(rows): the sum of the slots in [start, end), those that it cuts in part; what lies outside the table is 0."""
    low, high = max(start / width, 0.0), min(end / width, float(len(table)))
    first, last = int(np.floor(low)), int(np.ceil(high))
    part = np.asarray(table[first:last])
    few = None if isinstance(rows, slice) or FEWER * len(rows) >= table.shape[1] else rows
    if few is not None:
        part = part.take(few, axis=1)
    found = part.sum(axis=0)  # as exact as its counts are, and several times as fast as with other ones
    if low > first:
        found -= (low - first) * part[0]
    if high < last:
        found -= (last - high) * part[-1]
    return np.asarray(found[rows] if few is None else found, dtype=np.float64)


def _busiest(table: Floats, slots: int) -> npt.NDArray[np.float64]:
    """(monitors): the mean of a slot where so many next to each other have most; the last ones may be more."""
    firsts = np.arange(0, len(table) - slots + 1, slots)
    sums = np.add.reduceat(table, firsts, axis=0, dtype=np.float64)
    return np.asarray((sums / np.diff([*firsts, len(table)])[:, None]).max(axis=0))
