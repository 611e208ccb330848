"""A monitor over time with its expected band: each bucket is scored as if it were the current window of a sweep.

read it today and on the other days, in steps  ►  the references of each bucket are sums of steps  ►  score
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.clock import naive
from kmon.config import Config, Metric
from kmon.config.bins import BIN, bin_for
from kmon.config.words import nearest
from kmon.detect.calendar import Calendar
from kmon.detect.compare import Compare
from kmon.detect.contract import Detector, load_detectors, scored
from kmon.detect.expect import AFTER, RECENT
from kmon.detect.fleet import DAY, DAYS, LAG, RECENT_WINDOWS, Mask, Outlook, check_taken_over, thresholds
from kmon.detect.models import STEP, at_bins
from kmon.detect.own import OwnWindows
from kmon.detect.quantiles import nearest_edges, value_of
from kmon.errors import UsageError
from kmon.store import Store
from kmon.store.schema import EVENTS
from kmon.store.sql import Where

MINUTE = dt.timedelta(minutes=1)
CONTEXT = 24
"""Buckets to score with one that is asked for alone: the detector learns a series' spread from all it is given."""


def expected_series(
    store: Store,
    config: Config,
    metric: str | Metric,
    where: Where,
    start: dt.datetime,
    end: dt.datetime,
    *,
    grain: dt.timedelta = MINUTE,
    masks: Sequence[Mask] = (),
    outlooks: Sequence[Outlook] = (),
) -> pl.DataFrame:
    """One monitor in [start, end) with what was expected of it.

    Columns: `bucket` (UTC without a zone, one every `grain`), `observed`, `expected`, `lower`, `upper`, `yesterday`;
    null where nothing is known. Counts are per bucket. From a minute on, buckets should begin at whole minutes: if not,
    the one in which the store's ten seconds give way to minutes lacks up to one of these. The references are those of a
    sweep, scored by the first configured detector that judges windows, or the comparison; buckets inside `masks` serve
    as none.
    Of `outlooks` the monitor's own serve as one more. UsageError where a name is unknown.
    """
    if isinstance(metric, str) and metric not in config.metrics:
        message = f"{metric!r} is not a metric; {nearest(metric, config.metrics)}"
        raise UsageError(message)
    check_taken_over(store, config, (), [d for d in where if d in config.dimensions])
    store.check(where)
    options: Any = {"grain": grain, "masks": masks, "outlooks": outlooks}
    return expected_measures(store, config, [metric], where, start, end, **options)[0]


def expected_measures(
    store: Store,
    config: Config,
    metrics: Sequence[str | Metric],
    where: Where,
    start: dt.datetime,
    end: dt.datetime,
    *,
    grain: dt.timedelta = MINUTE,
    masks: Sequence[Mask] = (),
    outlooks: Sequence[Outlook] = (),
) -> list[pl.DataFrame]:
    """`expected_series` of several metrics, reading the store once.

    A dimension that is unknown matches nothing, as it is in the scope of an incident whose dimension was forgotten.
    """
    chosen = [config.metrics[m] if isinstance(m, str) else m for m in metrics]
    check_taken_over(store, config, chosen, ())
    n = max(0, -((start - end) // grain))
    bin_ = _bin(store, config, grain, start)
    step = dt.timedelta(seconds=math.gcd(int(grain.total_seconds()), int(bin_.total_seconds())))
    oldest = store.oldest() or start
    begin, finish = start - RECENT * bin_, start + n * grain
    along = Calendar(config, store).along(where, [start + (i + 1) * grain for i in range(n)], DAYS)
    blocks = {0: _Block.read(store, where, begin, finish, step, masks)}
    for days in DAYS:
        if n and finish + AFTER * bin_ - days * DAY > oldest:
            shifts = np.array([round(later / step) for later in along.later[days]], dtype=int)
            low, high = min(0, int(shifts.min())), max(0, int(shifts.max()))
            first, last = begin - days * DAY + low * step, finish + AFTER * bin_ - days * DAY + high * step
            block = _Block.read(store, where, first, last, step, masks)
            blocks[days] = replace(block, later=shifts - low, like=along.like[days])
    judges = (one for _, one in load_detectors(config) if not isinstance(one, OwnWindows))
    detector = next(judges, None) or Compare()
    grid = _Grid(start, n, grain // step, bin_ // step, LAG / step)
    told = {one.measure: one for one in outlooks if one.scope == dict(where)}
    return [_scored(m, detector, blocks, told, grid, grain, bin_) for m in chosen]


def _bin(store: Store, config: Config, grain: dt.timedelta, start: dt.datetime) -> dt.timedelta:
    """The width of a reference: that of sweeps with windows of `grain`, too, or what is kept of so long ago."""
    kept = store.begins("rollup_1m")
    return max(BIN, grain) if kept is not None and start < kept else bin_for([*config.windows, grain])


@dataclass(frozen=True)
class _Block:
    """A stretch of dense steps: measures, and which of them may serve as references."""

    values: dict[str, npt.NDArray[np.float64]]
    events: npt.NDArray[np.float64]
    _usable: npt.NDArray[np.bool_]
    _counted: npt.NDArray[np.bool_]
    _unknown: dict[str, npt.NDArray[np.bool_]]
    later: npt.NDArray[np.int64] | int = 0
    """(buckets,): by how many steps a bucket lies later in it than in today's."""
    like: npt.NDArray[np.bool_] | bool = True
    """(buckets,): whether the day is of the bucket's kind."""

    def total(self, names: Sequence[str], part: float) -> npt.NDArray[np.float64]:
        """Some measures, summed, step by step; of a count's exposure, which has none, what `part` of a bucket it is."""
        return np.sum([self.values[name] for name in names], axis=0) if names else np.full(len(self.events), part)

    def counted(self, metric: Metric) -> npt.NDArray[np.bool_]:
        """The steps since the monitor's dimensions and the metric's measures were known."""
        unknown = [self._unknown[measure] for measure in metric.measures if measure in self._unknown]
        return self._counted & ~np.any(unknown, axis=0) if unknown else self._counted

    def known(self, metric: Metric) -> npt.NDArray[np.bool_]:
        """Those of them that may serve as references."""
        return self._usable & self.counted(metric)

    @classmethod
    def read(
        cls,
        store: Store,
        where: Where,
        start: dt.datetime,
        end: dt.datetime,
        step: dt.timedelta,
        masks: Sequence[Mask],
    ) -> _Block:
        n = (end - start) // step
        rows = store.measures(where, start, end, step)
        everything = store.measures({}, start, end, step) if where else rows
        index = _index(rows, start, step)
        values = {}
        for measure in rows.columns[1:]:
            dense = np.zeros(n)
            dense[index] = rows[measure].fill_null(0).to_numpy()
            values[measure] = dense
        events = np.zeros(n)
        events[_index(everything, start, step)] = everything[EVENTS].fill_null(0).to_numpy()
        starts = np.array([start + i * step for i in range(n)], dtype=object)
        usable = (starts >= (store.oldest() or start)) & unspoilt(starts, step, masks, where)
        since = store.schema.known_from(*where)  # of a dimension that came later
        counted = np.ones(n, dtype=bool) if since is None else (starts >= since).astype(bool)
        known = {measure: store.schema.known_from(measure) for measure in store.schema.measures}
        unknown = {measure: (starts < since).astype(bool) for measure, since in known.items() if since is not None}
        return cls(values, events, usable.astype(bool), counted, unknown)


def unspoilt(
    starts: npt.NDArray[Any], width: dt.timedelta, masks: Sequence[Mask], where: Where
) -> npt.NDArray[np.bool_]:
    """The steps of a `width` that no mask touches which holds all of what `where` selects; `starts` are datetimes."""
    fine = np.ones(len(starts), dtype=bool)
    for mask in masks:
        if all(where.get(d) == v for d, v in mask.scope.items()):
            before = (starts + width <= mask.started_at).astype(bool)
            fine &= before if mask.resolved_at is None else before | (starts >= mask.resolved_at).astype(bool)
    return fine


def _index(rows: pl.DataFrame, start: dt.datetime, step: dt.timedelta) -> npt.NDArray[np.int64]:
    offset = rows["bucket"] - naive(start)
    return (offset.dt.total_microseconds() // int(step / dt.timedelta(microseconds=1))).to_numpy().astype(np.int64)


@dataclass(frozen=True)
class _Grid:
    """The buckets, and where in a block their windows and bins lie; a block begins RECENT bins before `start`."""

    start: dt.datetime
    count: int
    grain: int
    """Steps a bucket."""
    bin: int
    """Steps a bin."""
    lag: float

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """The step after each bucket."""
        return RECENT * self.bin + self.grain * np.arange(1, self.count + 1)

    def sums(
        self,
        steps: npt.NDArray[np.float64],
        width: int,
        back: Sequence[int],
        later: npt.NDArray[np.int64] | int = 0,
    ) -> npt.NDArray[np.float64]:
        """(buckets, len(back)): sums over the `width` steps that end so many steps before a bucket's end."""
        total = np.concatenate([[0.0], np.cumsum(steps)])
        last = (self.ends + later)[:, None] - np.array(back, dtype=int)[None, :]
        inside = (last - width >= 0) & (last < len(total))
        last = np.clip(last, width, len(total) - 1)
        return np.where(inside, total[last] - total[last - width], np.nan)

    def recorded(self, block: _Block, metric: Metric) -> npt.NDArray[np.bool_]:
        """The buckets in which somebody had an event, and the metric was counted."""
        events = self.sums(block.events * block.counted(metric), self.grain, [0], block.later)
        return np.asarray(events[:, 0] > 0)

    def bins(self, block: _Block, metric: Metric, names: Sequence[str], ends: Sequence[int]) -> npt.NDArray[np.float64]:
        """Some measures, summed, in the bins with these ends.

        NaN where a bin must not be used, or nobody had an event in it.
        """
        value = self.sums(block.total(names, 1 / self.grain), self.bin, ends, block.later)
        spoilt = self.sums((~block.known(metric)).astype(float), self.bin, ends, block.later)
        events = self.sums(block.events, self.bin, ends, block.later)
        return np.where((spoilt == 0) & (events > 0), value, np.nan)


def _scored(
    metric: Metric,
    detector: Detector,
    blocks: dict[int, _Block],
    told: Mapping[str, Outlook],
    grid: _Grid,
    grain: dt.timedelta,
    bin_: dt.timedelta,
) -> pl.DataFrame:
    now, n = blocks[0], grid.count
    columns: dict[str, Any] = {}
    parts: list[tuple[str, ...]] = [() if part is None else (part,) for part in metric.parts]
    lag = grid.lag
    if metric.kind == "quantile":
        reference = _reference(metric, blocks)
        edge = int(nearest_edges(reference[None], metric)[0])
        parts[0], lag = metric.beyond(edge), 0.0
        current = [grid.sums(now.values[measure], grid.grain, [0])[:, 0] for measure in metric.measures]
        columns = {
            "reference": np.tile(reference, (n, 1)),
            "current": np.stack(current, axis=1),
            "edge": np.full(n, edge),
        }
    for key, names in zip(("value", "exposure"), parts, strict=True):
        steps = now.total(names, 1 / grid.grain)
        columns[key] = grid.sums(steps, grid.grain, [0])[:, 0] if names else np.ones(n)
        if key == "exposure":
            lagged = grid.sums(steps, grid.grain, [math.floor(lag), math.ceil(lag)])
            columns["lagged_exposure"] = lagged @ np.array([1 - lag % 1, lag % 1])
        count = min(RECENT_WINDOWS, RECENT * grid.bin // grid.grain - 1)
        spoilt = grid.sums((~now.known(metric)).astype(float), grid.grain, range(count * grid.grain, 0, -grid.grain))
        previous = grid.sums(steps, grid.grain, range(count * grid.grain, 0, -grid.grain))
        columns[f"previous_{key}"] = np.where(spoilt == 0, previous, np.nan)
        recent = grid.bins(now, metric, names, range((RECENT - 1) * grid.bin, -1, -grid.bin))
        recent[:, RECENT - -(-grid.grain // grid.bin) :] = np.nan
        columns[f"recent_{key}"] = recent
        ends = range((RECENT - 1) * grid.bin, -(AFTER + 1) * grid.bin, -grid.bin)
        for days, block in blocks.items():
            if days:
                columns[f"day{days}_{key}"] = grid.bins(block, metric, names, ends)
    columns |= _model(metric, told, grid, grain, bin_)
    columns["unlike"] = leave_unlike(columns, {days: block.like for days, block in blocks.items() if days}, n)
    seconds = {"width": grain.total_seconds(), "bin": bin_.total_seconds()}
    constants = [
        pl.lit(metric.judged_as).alias("kind"),
        pl.lit(value=True).alias("along"),
        *(pl.lit(v).alias(k) for k, v in seconds.items()),
    ]
    constants += [pl.lit(v, pl.Float64).alias(k) for k, v in thresholds(metric).items()]
    scores = scored(detector, pl.DataFrame(columns).with_columns(constants), metric)
    first = naive(grid.start)
    series = pl.DataFrame({"bucket": [first + i * grain for i in range(n)]}, schema={"bucket": pl.Datetime("us")})
    shown = scores.select("observed", "expected", "lower", "upper").with_columns(
        yesterday=pl.Series(_plain(blocks.get(1), metric, grid))
    )
    recorded = pl.Series(grid.recorded(now, metric))
    observed = pl.when(recorded).then(pl.col("observed"))  # no event from anybody: unknown rather than zero
    return series.hstack(shown.with_columns(observed=observed)).with_columns(pl.col(pl.Float64).fill_nan(None))


def _reference(metric: Metric, blocks: Mapping[int, _Block]) -> npt.NDArray[np.float64]:
    """(measures): what a quantile has in all steps that may serve as references, of any bucket."""
    tables = [(block.known(metric), block.values) for block in blocks.values()]
    return np.array([sum(values[m][known].sum() for known, values in tables) for m in metric.measures])


def _model(
    metric: Metric, told: Mapping[str, Outlook], grid: _Grid, grain: dt.timedelta, bin_: dt.timedelta
) -> dict[str, npt.NDArray[np.float64]]:
    """What was forecast for the bins around each bucket, as `Fleet.windows` has it; nothing where a part is missing."""
    parts = [told.get(measure) for measure in metric.forecast]
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts) or not grid.count:
        return {}

    def bins(one: Outlook) -> npt.NDArray[np.float64]:
        values = np.asarray(one.forecast, dtype=float)
        first = (grid.start + grain - RECENT * bin_ - one.data_to) / STEP
        return np.array([
            at_bins(values, first + i * (grain / STEP), bin_ / STEP, RECENT + AFTER) for i in range(grid.count)
        ])  # fmt: skip

    value, *rest = map(bins, found)
    if not np.isfinite(value).any():
        return {}
    exposure = rest[0] if rest else np.where(np.isfinite(value), bin_ / grain, np.nan)
    return {"model_value": np.minimum(value, exposure) if rest else value, "model_exposure": exposure}


def leave_unlike(
    columns: dict[str, Any], like: Mapping[int, npt.NDArray[np.bool_] | bool], n: int
) -> npt.NDArray[np.bool_]:
    """Take the days of another kind from the buckets that have one of their own; where none is left.

    `like` says by day ago which of the `n` buckets it is comparable with.
    """
    left = np.zeros(n, dtype=bool)
    for day, alike in like.items():
        left |= alike & (np.nan_to_num(columns[f"day{day}_value"]).sum(axis=1) > 0)
    for day, alike in like.items():
        for key in ("value", "exposure"):
            columns[f"day{day}_{key}"][left & ~np.broadcast_to(alike, n)] = np.nan
    every = np.all([np.broadcast_to(alike, n) for alike in like.values()], axis=0) if like else np.ones(n, dtype=bool)
    return np.asarray(~left & ~every)


def _plain(block: _Block | None, metric: Metric, grid: _Grid) -> npt.NDArray[np.float64]:
    """What a metric was in each bucket of a block; NaN where that is not known."""
    if block is None:
        return np.full(grid.count, np.nan)
    sums = [grid.sums(block.values[measure], grid.grain, [0], block.later)[:, 0] for measure in metric.measures]
    return np.where(grid.recorded(block, metric), value_of(metric, sums), np.nan)
