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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.clock import EPOCH
from kmon.config import Config
from kmon.detect.calendar import Calendar
from kmon.detect.expect import RECENT
from kmon.detect.fleet import DAY, TODAY, Fleet, Mask, Outlook, assembled, bin_for, grain_for, numbers_of, spans_for
from kmon.store import Span, Store
from kmon.store.schema import EVENTS

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
OFTEN, SELDOM = 3, 6
"""Bins after which the base is read again, in a small fleet and in a large one."""
LARGE = 5_000
"""Values of one dimension from which on a fleet is large."""
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
    sets: tuple[tuple[str, ...], ...]
    """Grouping sets; the last one is of everything together, watched or not."""
    monitors: pl.DataFrame
    """A row a monitor: `set`, then the dimensions as numbers; everything together comes last."""
    today: dict[str, Floats]
    """By measure: (grains, monitors), from RECENT bins before `as_of` on, with room for all up to `until`."""
    days: dict[str, Day]
    oldest: dt.datetime
    end: dt.datetime
    """Up to where `today` is filled."""
    late: int
    """Events that had come late to the store by then."""

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
    ) -> Cube:
        """The base: monitors with `least` events today or on one of the days, for sweeps `until` then.

        Only the events inside `scope` and outside all of the scopes `without`.
        """
        until = until or as_of
        late, oldest = store.late(), store.oldest() or as_of
        bin_, grain = bin_for(config.windows), grain_for(as_of, [*config.windows, config.every])
        spans = _base_spans(store, config, as_of, until, oldest)
        sets = (*(tuple(grouping) for grouping in config.watch if grouping), ())
        measures = {part for metric in config.metrics.values() for part in metric.parts if part is not None}
        rows = store.windows(spans, sets, scope, least, without, measures)
        keys = ["set", *(d for d in store.schema.dimensions if d in rows.columns)]
        rows = _with_enough(rows, keys, spans, least, everything=len(sets) - 1)
        monitors = rows.select(keys).unique().sort(keys)  # sums depend on the order a little
        row, slot = _rows(rows, monitors).to_numpy(), rows["slot"].to_numpy()
        first, tables = 0, dict[str, dict[str, Floats]]()
        for span in spans:
            room = (until - as_of) // grain if span.name == TODAY else 0
            mine = np.flatnonzero((slot >= first) & (slot < first + span.count))
            at = slot[mine] - first, row[mine]
            tables[span.name] = {
                measure: _table(rows[measure], mine, at, (span.count + room, monitors.height))
                for measure in store.schema.measures
                if measure in rows.columns
            }
            first += span.count
        days = {span.name: Day(span, tables[span.name]) for span in spans if span.name != TODAY}
        return cls(as_of, until, bin_, grain, sets, monitors, tables[TODAY], days, oldest, as_of, late)

    @property
    def start(self) -> dt.datetime:
        """Where `today` begins."""
        return self.as_of - RECENT * self.bin

    def serves(self, store: Store, at: dt.datetime) -> bool:
        """Whether a sweep at `at` can be made of it: its days reach so far, and little came late since it was read."""
        if not self.as_of <= at <= self.until or (at - self.start) % self.grain:
            return False
        read = float(self.today[EVENTS][:, -1].sum()) if self.monitors.height else 0.0
        return store.late() - self.late <= LATE * read

    def advance(self, store: Store, at: dt.datetime) -> None:
        """Read what has passed since, up to `at`; nothing of monitors that were too small at the base."""
        if at <= self.end:
            return
        count = (at - self.end) // self.grain
        rows = store.windows([Span(TODAY, self.end, count, self.grain)], self.sets, measures=[*self.today])
        first = (self.end - self.start) // self.grain
        known = _rows(rows, self.monitors)
        rows, row = rows.filter(known.is_not_null()), known.drop_nulls().to_numpy()
        for measure, table in self.today.items():
            table[first : first + count] = 0
            table[rows["slot"].to_numpy() + first, row] = rows[measure].fill_null(0).to_numpy()
        self.end = at

    # ---- sums over many monitors -------------------------------------------------------------------------------------

    def between(
        self, measure: str, start: dt.datetime, end: dt.datetime, rows: Ints | slice = slice(None)
    ) -> npt.NDArray[np.float64]:
        """(rows): the sum of a measure over the grains of [start, end)."""
        return _sum(self.today[measure], start - self.start, end - self.start, self.grain, rows)

    @functools.cached_property
    def usual(self) -> dict[str, npt.NDArray[np.float64]]:
        """By measure: (monitors), of a bin, today or on the day that had most; as of the base."""
        bins = (self.as_of - self.start) / self.bin
        found = {}
        for measure in self.today:
            means = [self.between(measure, self.start, self.as_of) / bins]
            means += [day.values[measure].sum(axis=0, dtype=np.float64) / day.span.count for day in self.days.values()]
            found[measure] = np.max(means, axis=0)
        return found

    @functools.cached_property
    def lot(self) -> Ints:
        """(monitors): an order at random, always the same."""
        return np.random.default_rng(0).permutation(self.monitors.height)

    def quiet(self, at: dt.datetime, width: dt.timedelta) -> bool:
        """Whether there is not one event of anybody in the window."""
        return not self.between(EVENTS, at - width, at)[-1:].any()

    # ---- some monitors in full ---------------------------------------------------------------------------------------

    def watched(self, config: Config) -> Ints:
        """The rows of the monitors, of which everything together is one only where it is watched."""
        return np.arange(self.monitors.height - (() not in config.watch and self.monitors.height > 0))

    def rows_of(self, store: Store, scopes: Sequence[Mapping[str, str]]) -> Ints:
        """The rows of the monitors with these dimension values, as far as there are such."""
        names = self.monitors.columns[1:]
        numbers = [(numbers_of(store, scope), scope) for scope in scopes]
        asked = [
            tuple(found.get(name) for name in names)
            for found, scope in numbers
            if len(found) == len(scope) and found.keys() <= set(names)
        ]
        schema = {"": pl.Boolean(), **{name: self.monitors.schema[name] for name in names}}
        keys = pl.DataFrame([(None, *key) for key in asked], schema=schema, orient="row")
        rows = self.monitors.with_columns(pl.lit(None, pl.Boolean).alias("")).with_row_index("row")
        return rows.join(keys, on=list(schema), how="semi", nulls_equal=True)["row"].to_numpy().astype(np.int64)

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
        last = np.arange(self.monitors.height)[-1:]
        events = self._slots(EVENTS, spans, last).sum(axis=0)
        fleet = assembled(
            at,
            self.bin,
            spans,
            self.monitors[rows],
            values,
            events,
            store=store,
            sets=self.sets,
            oldest=self.oldest,
            masks=masks,
            outlooks=outlooks,
        )
        return calendar.applied(fleet, needed)

    def _slots(self, measure: str, spans: Sequence[Span], rows: Ints) -> npt.NDArray[np.float64]:
        """(rows, slots of `spans`)"""
        parts = []
        for span in spans:
            today = span.name == TODAY
            table = self.today[measure] if today else self.days[span.name].values[measure]
            start, width = (self.start, self.grain) if today else (self.days[span.name].span.start, self.bin)
            first, join = (span.start - start) // width, span.width // width
            part = table[first : first + span.count * join, rows].astype(np.float64)
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

    def between(self, measure: str, start: dt.datetime, end: dt.datetime, rows: Ints) -> npt.NDArray[np.float64]:
        """(rows): the sum of a measure over [start, end), the bins at its ends in part."""
        return _sum(self.values[measure], start - self.span.start, end - self.span.start, self.span.width, rows)


def recall(store: Store, config: Config, at: dt.datetime, cube: Cube | None = None, *, least: float = 1) -> Cube:
    """The cube for a sweep at `at`: the one that there is, or another one where that does not serve.

    Which base it has depends on `at` alone, so that a replay that was stopped goes on as if it had not been.
    """
    if cube is None or not cube.serves(store, at):
        bin_ = bin_for(config.windows)
        large = any(store.cardinality(d) >= LARGE for d in store.schema.dimensions)
        period = (SELDOM if large else OFTEN) * bin_
        as_of = EPOCH + (at - EPOCH) // period * period - (period if large else 0 * period)
        cube = Cube.read(store, config, as_of, as_of + (2 if large else 1) * period, least=least)
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
) -> Fleet:
    """Every monitor with `least` events today or on one of the days, read anew.

    Only the events inside `scope` and outside all of the scopes `without`. `outlooks` are what models forecast.
    """
    cube = Cube.read(store, config, at, scope=scope, without=without, least=least)
    return cube.fleet(store, config, at, cube.watched(config), masks=masks, outlooks=outlooks)


def _base_spans(
    store: Store, config: Config, as_of: dt.datetime, until: dt.datetime, oldest: dt.datetime
) -> list[Span]:
    """What a base reads: today by grain, and the days as far as sweeps `until` then need them."""
    bin_, grain = bin_for(config.windows), grain_for(as_of, [*config.windows, config.every])
    start, more = as_of - RECENT * bin_, -(-(until - as_of) // bin_)
    last = spans_for(until, bin_, grain, oldest)[2:]
    spans = [replace(span, start=span.start - more * bin_, count=span.count + more) for span in last]
    return [Span(TODAY, start, (as_of - start) // grain, grain), *Calendar(config, store).widened(spans)]


def _with_enough(
    rows: pl.DataFrame, keys: list[str], spans: Sequence[Span], least: float, *, everything: int
) -> pl.DataFrame:
    """The rows of the monitors that have `least` events in all spans of some name; the store left out most others.

    Of everything together always: it tells when the source was there.
    """
    if least <= 1:
        return rows
    names = pl.Series([span.name for span in spans for _ in range(span.count)], dtype=pl.Categorical)
    part = names.to_physical().gather(rows["slot"])
    sums = rows.select(*keys, EVENTS, part=part).group_by(*keys, "part").agg(pl.col(EVENTS).sum())
    enough = sums.filter((pl.col(EVENTS) >= least) | (pl.col("set") == everything)).select(keys).unique()
    return rows.join(enough, on=keys, how="semi", nulls_equal=True, maintain_order="left")


def _sum(
    table: Floats, start: dt.timedelta, end: dt.timedelta, width: dt.timedelta, rows: Ints | slice
) -> npt.NDArray[np.float64]:
    """(rows): the sum of the slots in [start, end), those that it cuts in part; what lies outside the table is 0."""
    low, high = max(start / width, 0.0), min(end / width, float(len(table)))
    first, last = int(np.floor(low)), int(np.ceil(high))
    part = table[first:last] if isinstance(rows, slice) else table[first:last, rows]
    found = part.sum(axis=0, dtype=np.float64)
    if low > first:
        found -= (low - first) * part[0]
    if high < last:
        found -= (last - high) * part[-1]
    return np.asarray(found)


def _rows(rows: pl.DataFrame, monitors: pl.DataFrame) -> pl.Series:
    """The number of each row's monitor; null where there is no such one."""
    keys = monitors.columns
    numbered = monitors.with_row_index("row")
    return rows.select(keys).join(numbered, on=keys, how="left", nulls_equal=True, maintain_order="left")["row"]


def _table(amounts: pl.Series, mine: Ints, at: tuple[Ints, Ints], shape: tuple[int, int]) -> Floats:
    """Some of the amounts in their places; counts as numbers of half the size, which are exact up to 16 million."""
    table = np.zeros(shape, np.float32 if amounts.dtype.is_integer() else np.float64)
    table[at] = amounts.fill_null(0).to_numpy()[mine]
    return table
