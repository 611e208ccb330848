"""What a sweep looks at: the measures of every monitor in the current window and in its references."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config, Metric
from kmon.errors import UsageError
from kmon.store import Span, Store
from kmon.store.schema import EVENTS

PREVIOUS = 6
NEIGHBOURS = 5
WEEKS = 4
DAY = dt.timedelta(days=1)
NEAR = dt.timedelta(minutes=30)
"""Windows further than this from the time of day are not the same time of day."""
RECENT = dt.timedelta(hours=1)
"""A count's previous windows reach back no further than this: the daily shape would look like a change."""
FEW = 4
"""Fewer previous windows than this tell too little of what is usual: then all count."""
SHAPELESS = dt.timedelta(hours=2)
"""Previous windows that reach further back than this do not suffice alone, for the same reason."""

CONSIDERABLE = 0.2
"""The share of a monitor's events from which on an incident in a part of it spoils it as its own reference."""


class Mask(Protocol):
    """A known incident: its minutes are no references for the monitors that it weighs on."""

    @property
    def scope(self) -> dict[str, str]: ...
    @property
    def started_at(self) -> dt.datetime: ...
    @property
    def resolved_at(self) -> dt.datetime | None: ...


def neighbours(width: dt.timedelta) -> int:
    """How many windows before and after the same time of another day are still the same time of day."""
    return min(NEIGHBOURS, NEAR // width)


def previous_windows(metric: Metric, width: dt.timedelta) -> int:
    """How many windows just before the current one a metric is compared with."""
    near = min(PREVIOUS, RECENT // width)
    return near if metric.kind == "count" and near >= FEW else PREVIOUS


def spans_for(at: dt.datetime, width: dt.timedelta, oldest: dt.datetime) -> list[Span]:
    """The current window, which ends at `at`, and its references, as far as the store's history goes back."""
    j = neighbours(width)
    spans = [Span("current", at - width, 1), Span("previous", at - (PREVIOUS + 1) * width, PREVIOUS)]
    for name, days in (("yesterday", [1]), ("weekly", [7 * week for week in range(1, WEEKS + 1)])):
        starts = [at - n * DAY - (j + 1) * width for n in days]
        spans += [Span(name, start, 2 * j + 1) for start in starts if start + (2 * j + 1) * width > oldest]
    return spans


@dataclass(frozen=True)
class Fleet:
    """Every monitor of every grouping set, in windows of one width that end at one instant."""

    at: dt.datetime
    width: dt.timedelta
    spans: tuple[Span, ...]
    monitors: pl.DataFrame
    """A row a monitor: `set`, then the dimensions as numbers, null where the set does not group by them."""
    values: dict[str, npt.NDArray[np.float64]]
    """By measure: (monitors, slots), 0 where nothing was."""
    usable: npt.NDArray[np.bool_]
    """(monitors, slots): false for a window without any event at all, or inside a known incident."""
    recorded: npt.NDArray[np.bool_]
    """(slots): false for a window without any event at all."""
    unknown: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """By measure that came later than the first event: (slots), true for a window before it was counted."""

    def windows(self, metric: Metric, rows: npt.NDArray[np.int64] | None = None) -> pl.DataFrame:
        """The detectors' input for one metric, of all monitors or of some `rows`."""
        pick = slice(None) if rows is None else rows
        numerator, denominator = metric.parts
        value = self.values[numerator][pick]
        exposure = np.ones_like(value) if denominator is None else self.values[denominator][pick]
        usable = self.usable[pick]
        for part in metric.parts:
            if part is not None and part in self.unknown:
                usable = usable & ~self.unknown[part]
        now = value[:, 0]
        recent = self._slots("previous", metric)
        if metric.kind == "count" and self.recorded[recent].any():
            # where known incidents hide all that came just before, other days alone would take a holiday for an outage
            now = np.where(usable[:, recent].any(axis=1), now, np.nan)
        columns: dict[str, object] = {"value": now, "exposure": exposure[:, 0]}
        for name in dict.fromkeys(self.names[1:]):
            slots = self._slots(name, metric)
            for key, source in (("value", value), ("exposure", exposure)):
                columns[f"{name}_{key}"] = np.where(usable[:, slots], source[:, slots], np.nan)
        own = {key: getattr(metric, key) for key in ("min_volume", "min_effect", "min_rise")}
        constants = [pl.Series("kind", [metric.kind]), *(pl.Series(k, [v], pl.Float64) for k, v in own.items())]
        return pl.DataFrame(columns).hstack([constant.new_from_index(0, len(value)) for constant in constants])

    @property
    def names(self) -> list[str]:
        """Of which span each slot is."""
        return [span.name for span in self.spans for _ in range(span.count)]

    def _slots(self, name: str, metric: Metric) -> list[int]:
        """The slots of a reference that a metric is compared with."""
        slots = [i for i, n in enumerate(self.names) if n == name]
        return slots[-previous_windows(metric, self.width) :] if name == "previous" else slots

    def minus(self, part: Fleet) -> Fleet:
        """The same monitors without the events that `part` counted."""
        keys = self.monitors.columns
        found = self.monitors.with_row_index("row").join(
            part.monitors.with_row_index("other"), on=keys, how="inner", nulls_equal=True
        )
        rows, others = found["row"].to_numpy(), found["other"].to_numpy()
        values = {measure: mine.copy() for measure, mine in self.values.items()}
        for measure, rest in values.items():
            rest[rows] -= part.values[measure][others]
        return replace(self, values=values)


def check_taken_over(store: Store, config: Config, metrics: Iterable[Metric], dimensions: Iterable[str]) -> None:
    """UsageError where the store lacks what these read: `config` was edited, and no owner has taken it over yet."""
    store.refresh()
    measures = [part for metric in metrics for part in metric.parts if part is not None]
    for what, names, known in (
        ("dimension", dimensions, store.schema.dimensions),
        ("measure", measures, store.schema.measures),
    ):
        if (name := next((name for name in names if name not in known), None)) is not None:
            message = f"the store has no {what} {name!r} yet: 'kmon reload' has {config.path.name} taken over"
            raise UsageError(message)


def observe(
    store: Store,
    config: Config,
    at: dt.datetime,
    width: dt.timedelta,
    *,
    masks: Sequence[Mask] = (),
    scope: dict[str, str] | None = None,
    without: Sequence[dict[str, str]] = (),
    least: float = 1,
) -> Fleet:
    """Read the fleet from the store: monitors with `least` events in some window.

    Only the events inside `scope` and outside all of the scopes `without`.
    """
    oldest = store.oldest() or at
    spans = spans_for(at, width, oldest)
    sets = [*(grouping for grouping in config.watch if grouping), ()]
    rows = store.windows(spans, width, sets, scope, least, without)
    dimensions = [d for d in store.schema.dimensions if d in rows.columns]
    everything = rows.filter(pl.col("set") == len(sets) - 1)
    if () not in config.watch:
        rows = rows.filter(pl.col("set") < len(sets) - 1)
    monitors = rows.select("set", *dimensions).unique(maintain_order=True)
    indexed = rows.join(monitors.with_row_index("row"), on=["set", *dimensions], how="left", nulls_equal=True)
    row, slot = indexed["row"].to_numpy(), indexed["slot"].to_numpy()
    slots = sum(span.count for span in spans)
    values = {}
    for measure in (m for m in store.schema.measures if m in rows.columns):
        table = np.zeros((monitors.height, slots))
        table[row, slot] = indexed[measure].fill_null(0).to_numpy()
        values[measure] = table
    recorded = np.zeros(slots, dtype=bool)
    recorded[everything.filter(pl.col(EVENTS) > 0)["slot"].to_numpy()] = True
    starts = np.array([_naive(start) for start in slot_starts(spans, width)], dtype="datetime64[us]")
    recorded &= starts >= _naive(oldest)  # history begins within a window
    usable = np.broadcast_to(recorded, (monitors.height, slots)).copy()
    _forget_before(usable, store, monitors, sets, starts)
    unknown = {m: starts < _naive(since) for m in store.schema.measures if (since := store.schema.known_from(m))}
    fleet = Fleet(at, width, tuple(spans), monitors, values, usable, recorded, unknown)
    _mask(fleet, store, masks)
    _distrust_lonely_previous(fleet)
    return fleet


def _naive(time: dt.datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(dt.UTC).replace(tzinfo=None), "us")


def _forget_before(
    usable: npt.NDArray[np.bool_],
    store: Store,
    monitors: pl.DataFrame,
    sets: Sequence[Sequence[str]],
    starts: npt.NDArray[np.datetime64],
) -> None:
    """A window from before a dimension was known says nothing of the monitors that it splits."""
    for number, grouping in enumerate(sets):
        if (since := store.schema.known_from(*grouping)) is not None:
            rows = (monitors["set"] == number).to_numpy()
            usable[np.ix_(rows, starts < _naive(since))] = False


def slot_starts(spans: Sequence[Span], width: dt.timedelta) -> list[dt.datetime]:
    """Where each slot begins, over all spans in their order."""
    return [span.start + i * width for span in spans for i in range(span.count)]


def _mask(fleet: Fleet, store: Store, masks: Sequence[Mask]) -> None:
    """Take the windows that a known incident touches from the references of the monitors that it weighs on.

    Those are the ones inside its scope, and the wider ones of which it is a considerable part.
    """
    starts = slot_starts(fleet.spans, fleet.width)
    for mask in masks:
        end = mask.resolved_at or fleet.at
        touched = [i for i, s in enumerate(starts) if i and s < end and s + fleet.width > mask.started_at]
        numbers = numbers_of(store, mask.scope)
        if not touched or len(numbers) < len(mask.scope):
            continue
        inside = np.ones(fleet.monitors.height, dtype=bool)
        around = np.ones(fleet.monitors.height, dtype=bool)
        for dimension in (d for d in fleet.monitors.columns if d != "set"):
            column = fleet.monitors[dimension]
            same = (column == numbers.get(dimension, 0)).fill_null(value=False).to_numpy()  # 0 is no value's number
            inside &= same | (dimension not in numbers)
            around &= same | column.is_null().to_numpy()
        own = inside & around
        if own.any():
            events = fleet.values[EVENTS].sum(axis=1)
            inside |= around & (events[own].sum() >= CONSIDERABLE * events)
        fleet.usable[np.ix_(inside, np.array(touched))] = False


def _distrust_lonely_previous(fleet: Fleet) -> None:
    """Leave long windows without any daily reference unjudged: they would take the daily shape for a change."""
    if (PREVIOUS + 1) * fleet.width <= SHAPELESS:
        return
    names = np.array(fleet.names)
    lonely = ~fleet.usable[:, np.isin(names, ("yesterday", "weekly"))].any(axis=1)
    fleet.usable[np.ix_(lonely, names == "previous")] = False


def numbers_of(store: Store, scope: dict[str, str]) -> dict[str, int]:
    """The store's numbers for a scope's dimension values; what it has never seen is missing."""
    found = {}
    for dimension, value in scope.items():
        number = store.number(dimension, value)
        if number is not None:
            found[dimension] = number
    return found
