"""What a sweep looks at: the measures of every monitor, now and in its references.

    today     bins of 5 minutes up to half an hour ago, then minutes    |at
    a day     bins of 5 minutes, from as long before the time of day to half an hour after it

One read of the store serves the windows of every width: they are sums of what was read.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon import clock
from kmon.clock import EPOCH, floor
from kmon.config import BUCKET, Config, Metric, histogram_of
from kmon.detect.calendar import Comparable
from kmon.detect.expect import AFTER, RECENT
from kmon.detect.models import STEP, at_bins
from kmon.detect.quantiles import nearest_edges, value_of
from kmon.errors import UsageError
from kmon.store import Span, Store

Floats = npt.NDArray[np.float64]
DAYS = (1, 2, 7, 14, 21, 28)
"""Days ago that serve as references, as far as history goes back."""
DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)
RECENT_WINDOWS = 30
"""Windows shorter than a bin are compared with at most so many before them."""
FINE = 6
"""The last bins before now are read in parts, of which short windows are made."""
LAG = dt.timedelta(minutes=2)
"""What a rate's numerator may come later than its denominator: an order after its session."""
MANY = 10.0
"""Events in a bin, from which on one without any is a gap of the source."""
TODAY = "today"


class Mask(Protocol):
    """A known incident: its minutes are no references for the monitors that it weighs on."""

    @property
    def scope(self) -> dict[str, str]: ...
    @property
    def started_at(self) -> dt.datetime: ...
    @property
    def resolved_at(self) -> dt.datetime | None: ...


class Outlook(Protocol):
    """What a model forecast of one measure of one monitor."""

    @property
    def scope(self) -> dict[str, str]: ...
    @property
    def measure(self) -> str: ...
    @property
    def data_to(self) -> dt.datetime:
        """Where the forecast begins."""

    @property
    def forecast(self) -> Sequence[float]:
        """Expected counts by `kmon.detect.models.STEP`."""


@dataclass(frozen=True)
class Modelled:
    """Forecasts of a measure, for the few monitors that have them."""

    rows: npt.NDArray[np.int64]
    """In ascending order."""
    values: Floats
    """(rows, RECENT + AFTER): by bins, as `Fleet.windows` gives a day; NaN where the forecast does not reach."""

    def of(self, pick: npt.NDArray[np.int64]) -> Floats:
        """(pick, RECENT + AFTER): NaN for monitors without a forecast."""
        found = np.full((len(pick), RECENT + AFTER), np.nan)
        place = np.minimum(np.searchsorted(self.rows, pick), len(self.rows) - 1)
        mine = self.rows[place] == pick
        found[mine] = self.values[place[mine]]
        return found

    def without(self, rows: npt.NDArray[np.int64]) -> Modelled | None:
        """The forecasts of the others; None where there are none."""
        left = ~np.isin(self.rows, rows)
        return Modelled(self.rows[left], self.values[left]) if left.any() else None


def grain_for(at: dt.datetime, widths: Sequence[dt.timedelta]) -> dt.timedelta:
    """How wide the finest parts are: a minute, or the part of it that `at` and all `widths` are multiples of."""
    seconds = [int(length.total_seconds()) for length in (MINUTE, at - EPOCH, *widths)]
    common = dt.timedelta(seconds=math.gcd(*seconds))
    return BUCKET if common % BUCKET else common


def spans_for(at: dt.datetime, bin_: dt.timedelta, grain: dt.timedelta, oldest: dt.datetime) -> list[Span]:
    """Today in bins and in parts of them, and the same hours of the days that history goes back to.

    The bins of a day begin at whole multiples of their width, so that what is read of it serves several sweeps.
    """
    fine = at - FINE * bin_
    spans = [
        Span(TODAY, at - RECENT * bin_, RECENT - FINE, bin_),
        Span(TODAY, fine, FINE * bin_ // grain, grain),
    ]
    anchor = floor(at, bin_)
    for days in DAYS:
        start, count = anchor - days * DAY - RECENT * bin_, RECENT + AFTER + 1
        if start + count * bin_ > oldest:
            spans.append(Span(f"day{days}", start, count, bin_))
    return spans


@dataclass(frozen=True)
class Fleet:
    """Every monitor of every grouping set, today and on the days that it is compared with."""

    at: dt.datetime
    bin: dt.timedelta
    spans: tuple[Span, ...]
    monitors: pl.DataFrame
    """A row a monitor: `set`, then the dimensions as numbers, null where the set does not group by them."""
    values: dict[str, Floats]
    """By measure: (monitors, slots), 0 where nothing was."""
    usable: npt.NDArray[np.bool_]
    """(monitors, slots): false for a slot where the source was not there, or inside a known incident."""
    recorded: npt.NDArray[np.bool_]
    """(slots): false where the source was not there."""
    unknown: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """By measure that came later than the first event: (slots), true before it was counted."""
    models: Mapping[str, Modelled] = field(default_factory=dict)
    """By measure: what models forecast."""
    comparable: Comparable | None = None
    """Which days are like today; None: all."""

    # ---- the detectors' input ----------------------------------------------------------------------------------------

    def windows(
        self,
        metric: Metric,
        width: dt.timedelta,
        rows: npt.NDArray[np.int64] | None = None,
        company: npt.NDArray[np.bool_] | None = None,
        edge: int | None = None,
    ) -> pl.DataFrame:
        """The detectors' input for one metric in the windows of `width`, of all monitors or of some `rows`.

        `company` says which of them tell what is usual, default all. Of a quantile it is the share of events beyond an
        `edge` of the histogram, by default that of each monitor that is nearest to its quantile.
        """
        pick = np.arange(self.monitors.height) if rows is None else rows
        usable = self.usable[pick]
        for measure in metric.measures:
            if measure in self.unknown:
                usable = usable & ~self.unknown[measure]
        columns: dict[str, npt.NDArray[Any]] = {}
        parts = [None if part is None else self.values[part][pick] for part in metric.parts]
        if metric.kind == "quantile":
            parts[0], columns = self._beyond(metric, width, pick, usable, edge)
        for key, counted in zip(("value", "exposure"), parts, strict=True):
            counts = np.broadcast_to(self._lengths(width), usable.shape) if counted is None else counted
            whole = np.ones(len(pick))  # a count's exposure, without the rounding of its parts
            columns[key] = whole if counted is None else self._between(counts, width)
            if key == "exposure":  # a slow event is one of all events at once
                lag = dt.timedelta(0) if metric.kind == "quantile" else LAG
                columns["lagged_exposure"] = whole if counted is None else self._between(counts, width, lag)
            used = np.where(usable, counts, np.nan)
            bins = self._bins(used)
            columns[f"previous_{key}"] = self._previous(used, bins, width)
            columns[f"recent_{key}"] = self._recent(bins, width)
            for name in self.days:
                columns[f"{name}_{key}"] = self._day(used, name)
        columns |= self._model(metric, width, pick)
        if metric.kind == "count":
            # where known incidents hide all that came just before, other days alone would take a holiday for an outage
            unseen = np.isnan(columns["recent_value"]).all(axis=1)
            columns["value"] = np.where(unseen & self.recorded[: self._today].any(), np.nan, columns["value"])
        constants = [
            pl.Series("kind", [metric.judged_as]),
            pl.Series("width", [width.total_seconds()]),
            pl.Series("bin", [self.bin.total_seconds()]),
            *(pl.Series(k, [v], pl.Float64) for k, v in thresholds(metric).items()),
        ]
        unlike = np.zeros(len(pick), dtype=bool) if self.comparable is None else self.comparable.unlike[pick]
        told = {"unlike": unlike, "segment": self.monitors["set"].to_numpy()[pick]}
        if company is not None and not company.all():
            told["company"] = company
        found = pl.DataFrame({**columns, **told})
        return found.hstack([constant.new_from_index(0, len(pick)) for constant in constants])

    def _beyond(
        self,
        metric: Metric,
        width: dt.timedelta,
        pick: npt.NDArray[np.int64],
        usable: npt.NDArray[np.bool_],
        edge: int | None,
    ) -> tuple[Floats, dict[str, npt.NDArray[Any]]]:
        """(monitors, slots): a quantile's events beyond an edge; and what puts their share into its own unit."""
        tables = [self.values[measure] for measure in metric.measures]
        references = usable & self._before(width)
        reference = np.stack([np.where(references, table[pick], 0.0).sum(axis=1) for table in tables], axis=1)
        current = np.stack([self._between(table[pick], width) for table in tables], axis=1)
        edges = nearest_edges(reference, metric) if edge is None else np.full(len(pick), edge)
        value = np.zeros(usable.shape)
        for number, table in enumerate(tables[1:]):
            above = edges <= number
            value[above] += table[pick[above]]
        return value, {"reference": reference, "current": current, "edge": edges}

    def _model(self, metric: Metric, width: dt.timedelta, pick: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Value and exposure as a model forecast them; nothing where none did for any of the monitors.

        Of a rate both measures' forecasts: their ratio is its forecast.
        """
        parts = [self.models.get(measure) for measure in metric.forecast]
        modelled = [part for part in parts if part is not None]
        if not modelled or len(modelled) < len(parts):
            return {}
        value, *rest = (part.of(pick) for part in modelled)
        exposure = rest[0] if rest else np.full(value.shape, self.bin / width)
        known = np.isfinite(value) & np.isfinite(exposure)
        if not known.any():
            return {}
        value, exposure = np.where(known, value, np.nan), np.where(known, exposure, np.nan)
        return {"model_value": np.minimum(value, exposure) if rest else value, "model_exposure": exposure}

    def total(self, measure: str, width: dt.timedelta, rows: slice = slice(None)) -> Floats:
        """What each monitor, or those in some rows, has of a measure in its current window."""
        return self._between(self.values[measure][rows], width)

    def value(self, metric: Metric, width: dt.timedelta, row: int) -> float:
        """What a metric is in the current window of one monitor; NaN where nothing was that it is a part of."""
        sums = [self.total(measure, width, slice(row, row + 1)) for measure in metric.measures]
        return float(value_of(metric, sums)[0])

    @property
    def untouched(self) -> npt.NDArray[np.bool_]:
        """The monitors that no known incident touches today."""
        return np.asarray((self.usable | ~self.recorded)[:, : self._today].all(axis=1))

    def unlike_days(self, row: int) -> dict[str, str]:
        """The days that are not comparable with today for a monitor, and why."""
        return {} if self.comparable is None else dict(self.comparable.reasons[self.comparable.kind[row]])

    def left_out(self, row: int, width: dt.timedelta) -> tuple[int, int]:
        """Today's bins before the window that are not used: hidden by what is known, and where the source was not."""
        before = RECENT - -(-width // self.bin)
        there, mine = (
            np.isfinite(self._bins(np.where(part, 0.0, np.nan)[None, :])[0, :before])
            for part in (self.recorded, self.usable[row])
        )
        return int((there & ~mine).sum()), int((~there).sum())

    @property
    def days(self) -> list[str]:
        return [name for name in dict.fromkeys(span.name for span in self.spans) if name != TODAY]

    @property
    def _today(self) -> int:
        """How many of the slots, the first ones, are of today."""
        return sum(span.count for span in self.spans if span.name == TODAY)

    @property
    def _grain(self) -> dt.timedelta:
        return self.spans[1].width

    def slots(self, name: str) -> slice:
        """Where a day's bins are."""
        first = 0
        for span in self.spans:
            if span.name == name:
                return slice(first, first + span.count)
            first += span.count
        message = f"there is no day {name!r}"
        raise ValueError(message)

    def _before(self, width: dt.timedelta) -> npt.NDArray[np.bool_]:
        """(slots): those of the days, and of today those whose bins do not reach into the window."""
        parts = np.repeat([1, self.bin // self._grain], [RECENT - FINE, FINE])
        clear = np.ones(self.usable.shape[1], dtype=bool)
        clear[: self._today] = np.repeat(np.arange(RECENT), parts) < RECENT - -(-width // self.bin)
        return clear

    def _lengths(self, width: dt.timedelta) -> Floats:
        """The exposure of a count: how much of a window of `width` each slot is."""
        return np.array([span.width / width for span in self.spans for _ in range(span.count)])

    def _between(self, counts: Floats, width: dt.timedelta, ago: dt.timedelta = dt.timedelta(0)) -> Floats:
        """The sum over the `width` that ended `ago` before now; slots count in part where it cuts them."""
        coarse, fine = self.spans[:2]
        small = fine.width / self.bin
        edges = np.concatenate([np.arange(coarse.count) * 1.0, RECENT - FINE + np.arange(fine.count) * small])
        size = np.concatenate([np.full(coarse.count, 1.0), np.full(fine.count, small)])
        high = RECENT - ago / self.bin
        low = max(high - width / self.bin, 0.0)
        part = np.clip((np.minimum(edges + size, high) - np.maximum(edges, low)) / size, 0.0, 1.0)
        part = np.where(part > 1 - 1e-9, 1.0, np.where(part < 1e-9, 0.0, part))
        used = np.flatnonzero(part)
        return np.asarray(counts[:, used] @ part[used])

    def _bins(self, counts: Floats) -> Floats:
        """Today in bins only, the last one ending now; NaN where a part of it must not be used."""
        parts = self.bin // self._grain
        fine = counts[:, RECENT - FINE : self._today].reshape(len(counts), FINE, parts).sum(axis=2)
        return np.hstack([counts[:, : RECENT - FINE], fine])

    def _recent(self, bins: Floats, width: dt.timedelta) -> Floats:
        """Today's bins without those that reach into the window."""
        clear = bins.copy()
        clear[:, RECENT - -(-width // self.bin) :] = np.nan
        return clear

    def _previous(self, counts: Floats, bins: Floats, width: dt.timedelta) -> Floats:
        """The windows of the same width just before, the newest last."""
        if not width % self.bin:
            join = width // self.bin
            bins = bins[:, : RECENT - join]
            count = bins.shape[1] // join
            return np.asarray(bins[:, bins.shape[1] - count * join :].reshape(len(counts), count, join).sum(axis=2))
        fine = counts[:, RECENT - FINE : self._today]
        join = width // self._grain
        count = max(min(fine.shape[1] // join - 1, RECENT_WINDOWS), 0)
        first = fine.shape[1] - (count + 1) * join
        return np.asarray(fine[:, first : fine.shape[1] - join].reshape(len(counts), count, join).sum(axis=2))

    def _day(self, counts: Floats, name: str) -> Floats:
        """A day's bins, moved by what `at` lies behind the last whole bin."""
        bins = counts[:, self.slots(name)]
        late = ((self.at - EPOCH) % self.bin) / self.bin
        return np.asarray((1 - late) * bins[:, :-1] + late * bins[:, 1:]) if late else bins[:, :-1]

    def copy(self) -> Fleet:
        """The same with counts of its own."""
        return replace(self, values={measure: counts.copy() for measure, counts in self.values.items()})

    def minus(self, part: Fleet) -> Fleet:
        """The same monitors without the events that `part` counted, which are taken off where they are.

        What is left of a monitor is another series than the one that was forecast, so that it has no model any more.
        """
        keys = self.monitors.columns
        found = self.monitors.with_row_index("row").join(
            part.monitors.with_row_index("other"), on=keys, how="inner", nulls_equal=True
        )
        rows, others = found["row"].to_numpy(), found["other"].to_numpy()
        for measure, counts in self.values.items():
            counts[rows] -= part.values[measure][others]
        models = {measure: left for measure, one in self.models.items() if (left := one.without(rows)) is not None}
        return replace(self, models=models)


def thresholds(metric: Metric) -> dict[str, float | None]:
    """The metric's own thresholds for the detectors; a change of a quantile's share is never too small."""
    own = {key: getattr(metric, key) for key in ("min_volume", "min_effect", "min_rise")}
    return own if metric.kind != "quantile" else {**own, "min_effect": 0.0, "min_rise": 0.0}


def check_taken_over(store: Store, config: Config, metrics: Iterable[Metric], dimensions: Iterable[str]) -> None:
    """UsageError where the store lacks what these read: `config` was edited, and no owner has taken it over yet."""
    store.refresh()
    measures = [measure for metric in metrics for measure in metric.measures]
    for what, names, known in (
        ("dimension", dimensions, store.schema.dimensions),
        ("measure", measures, store.schema.measures),
    ):
        if (name := next((name for name in names if name not in known), None)) is not None:
            missing = f"histogram {told!r}" if (told := histogram_of(name)) is not None else f"{what} {name!r}"
            message = f"the store has no {missing} yet: 'kmon reload' has {config.path.name} taken over"
            raise UsageError(message)


def assembled(
    at: dt.datetime,
    bin_: dt.timedelta,
    spans: Sequence[Span],
    monitors: pl.DataFrame,
    values: dict[str, Floats],
    events: Floats,
    *,
    store: Store,
    sets: Sequence[Sequence[str]],
    oldest: dt.datetime,
    outlooks: Sequence[Outlook] = (),
) -> Fleet:
    """The fleet of what was read, without what must not serve as a reference.

    `events` are those of everybody, by slot; history begins with `oldest`, within a bin. `outlooks` are what models
    forecast.
    """
    starts = slot_starts(spans)
    recorded = _recorded(events, spans, bin_) & (starts >= naive(oldest))
    usable = np.broadcast_to(recorded, (monitors.height, len(starts))).copy()
    _forget_before(usable, store, monitors, sets, starts)
    unknown = {m: starts < naive(since) for m in store.schema.measures if (since := store.schema.known_from(m))}
    fleet = Fleet(at, bin_, tuple(spans), monitors, values, usable, recorded, unknown)
    return replace(fleet, models=_models(fleet, store, outlooks)) if outlooks else fleet


def _models(fleet: Fleet, store: Store, outlooks: Sequence[Outlook]) -> dict[str, Modelled]:
    """The forecasts by measure, in the bins of this sweep."""
    dimensions = [c for c in fleet.monitors.columns if c != "set"]
    scopes = [numbers_of(store, one.scope) for one in outlooks]
    wanted = [
        (i, *map(scope.get, dimensions))
        for i, scope in enumerate(scopes)
        if len(scope) == len(outlooks[i].scope) and scope.keys() <= set(dimensions)
    ]
    schema: dict[str, pl.DataType] = {"number": pl.Int64(), **{d: fleet.monitors.schema[d] for d in dimensions}}
    keys = pl.DataFrame(wanted, schema=schema, orient="row")
    monitors = fleet.monitors.with_row_index("row")
    on_all = keys.join(monitors, on=dimensions, how="inner", nulls_equal=True) if dimensions else None
    found = keys.join(monitors, how="cross") if on_all is None else on_all
    found = found.sort("row", "number").select("row", "number")
    by_measure: dict[str, dict[int, Floats]] = {}
    for row, number in found.iter_rows():
        one = outlooks[number]
        first = (fleet.at - RECENT * fleet.bin - one.data_to) / STEP
        values = at_bins(np.asarray(one.forecast, dtype=float), first, fleet.bin / STEP, RECENT + AFTER)
        if np.isfinite(values).any():
            by_measure.setdefault(one.measure, {})[row] = values
    return {m: Modelled(np.array([*rows]), np.array([*rows.values()])) for m, rows in by_measure.items()}


def _recorded(events: Floats, spans: Sequence[Span], bin_: dt.timedelta) -> npt.NDArray[np.bool_]:
    """Of each slot, whether the source was there: a bin without an event of anybody is a gap where most have many.

    In a small fleet it is a bin without an event.
    """
    first, parts = 0, dict[str, list[Floats]]()
    for span in spans:
        bins = events[first : first + span.count].reshape(-1, bin_ // span.width).sum(axis=1)
        parts.setdefault(span.name, []).append(bins)
        first += span.count
    dense = {name: np.percentile(np.concatenate(bins), 75) >= MANY for name, bins in parts.items()}
    found = []
    for span in spans:
        bins = parts[span.name].pop(0)
        found.append(np.repeat((bins > 0) | (not dense[span.name]), bin_ // span.width))
    return np.concatenate(found)


def naive(time: dt.datetime) -> np.datetime64:
    """`kmon.clock.naive` for arrays."""
    return np.datetime64(clock.naive(time), "us")


def _forget_before(
    usable: npt.NDArray[np.bool_],
    store: Store,
    monitors: pl.DataFrame,
    sets: Sequence[Sequence[str]],
    starts: npt.NDArray[np.datetime64],
) -> None:
    """What is from before a dimension was known says nothing of the monitors that it splits."""
    for number, grouping in enumerate(sets):
        if (since := store.schema.known_from(*grouping)) is not None:
            rows = (monitors["set"] == number).to_numpy()
            usable[np.ix_(rows, starts < naive(since))] = False


def slot_starts(spans: Sequence[Span]) -> npt.NDArray[np.datetime64]:
    """Where each slot begins, over all spans in their order; UTC without a zone."""
    starts = [naive(span.start + i * span.width) for span in spans for i in range(span.count)]
    return np.array(starts, "datetime64[us]")


def numbers_of(store: Store, scope: Mapping[str, str]) -> dict[str, int]:
    """The store's numbers for a scope's dimension values; what it has never seen is missing."""
    found = {}
    for dimension, value in scope.items():
        number = store.number(dimension, value)
        if number is not None:
            found[dimension] = number
    return found
