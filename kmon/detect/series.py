"""A monitor over time with its expected band: each bucket is scored as if it were the current window of a sweep."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config, Metric
from kmon.config.words import nearest
from kmon.detect.contract import load_detector
from kmon.detect.fleet import DAY, PREVIOUS, WEEKS, Mask, check_taken_over, neighbours, previous_windows
from kmon.errors import UsageError
from kmon.store import Store
from kmon.store.schema import EVENTS
from kmon.store.sql import Where

MINUTE = dt.timedelta(minutes=1)


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
) -> pl.DataFrame:
    """One monitor in [start, end) with what was expected of it.

    Columns: `bucket` (UTC without a zone, one every `grain`), `observed`, `expected`, `lower`, `upper`, `yesterday`;
    null where nothing is known. Counts are per bucket. The references are those of a sweep, scored by the first
    configured detector; buckets inside `masks` serve as none. UsageError where a name is unknown.
    """
    if isinstance(metric, str) and metric not in config.metrics:
        message = f"{metric!r} is not a metric; {nearest(metric, config.metrics)}"
        raise UsageError(message)
    check_taken_over(store, config, (), [d for d in where if d in config.dimensions])
    store.check(where)
    return expected_measures(store, config, [metric], where, start, end, grain=grain, masks=masks)[0]


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
) -> list[pl.DataFrame]:
    """`expected_series` of several metrics, reading the store once.

    A dimension that is unknown matches nothing, as it is in the scope of an incident whose dimension was forgotten.
    """
    chosen = [config.metrics[m] if isinstance(m, str) else m for m in metrics]
    check_taken_over(store, config, chosen, ())
    n = max(0, -((start - end) // grain))
    j = neighbours(grain)
    oldest = store.oldest() or start
    reach = {"previous": [dt.timedelta(0)], "yesterday": [DAY], "weekly": [7 * DAY * w for w in range(1, WEEKS + 1)]}
    blocks: dict[str, list[_Block]] = {}
    for name, shifts in reach.items():
        before, after = (PREVIOUS, 0) if name == "previous" else (j, j)
        blocks[name] = [
            _Block.read(store, where, start - shift - before * grain, n + before + after, grain, masks)
            for shift in shifts
            if name == "previous" or end - shift > oldest
        ]
    detector = load_detector(config.detectors[0], config.path.parent)
    return [_scored(m, detector, blocks, start, n, grain, j) for m in chosen]


class _Block:
    """A stretch of dense buckets: measures, and which of them may serve as references."""

    def __init__(
        self,
        values: dict[str, npt.NDArray[np.float64]],
        recorded: npt.NDArray[np.bool_],
        masked: npt.NDArray[np.bool_],
        unknown: dict[str, npt.NDArray[np.bool_]],
    ) -> None:
        self.values, self.recorded, self.usable, self._unknown = values, recorded, recorded & ~masked, unknown

    def of(self, metric: Metric) -> _Block:
        """This block without the buckets from before the metric's measures were counted."""
        unknown = np.zeros(len(self.recorded), dtype=bool)
        for part in metric.parts:
            unknown |= self._unknown.get(part or "", unknown)
        return _Block(self.values, self.recorded & ~unknown, ~self.usable, {})

    @classmethod
    def read(
        cls, store: Store, where: Where, start: dt.datetime, n: int, grain: dt.timedelta, masks: Sequence[Mask]
    ) -> _Block:
        end = start + n * grain
        rows = store.measures(where, start, end, grain)
        everything = store.measures({}, start, end, grain) if where else rows
        index = _index(rows, start, grain)
        values = {}
        for measure in rows.columns[1:]:
            dense = np.zeros(n)
            dense[index] = rows[measure].fill_null(0).to_numpy()
            values[measure] = dense
        recorded = np.zeros(n, dtype=bool)
        recorded[_index(everything.filter(pl.col(EVENTS) > 0), start, grain)] = True
        masked = np.zeros(n, dtype=bool)
        starts = [start + i * grain for i in range(n)]
        for mask in masks:
            if all(where.get(d) == v for d, v in mask.scope.items()):
                until = mask.resolved_at or end
                masked |= np.array([s < until and s + grain > mask.started_at for s in starts], dtype=bool)
        if (since := store.schema.known_from(*where)) is not None:  # a dimension that came later
            recorded &= np.array([s >= since for s in starts], dtype=bool)
        unknown = {
            measure: np.array([s < since for s in starts], dtype=bool)
            for measure in store.schema.measures
            if (since := store.schema.known_from(measure)) is not None
        }
        return cls(values, recorded, masked, unknown)


def _index(rows: pl.DataFrame, start: dt.datetime, grain: dt.timedelta) -> npt.NDArray[np.int64]:
    offset = rows["bucket"] - start.astimezone(dt.UTC).replace(tzinfo=None)
    return (offset.dt.total_microseconds() // int(grain / dt.timedelta(microseconds=1))).to_numpy().astype(np.int64)


def _scored(
    metric: Metric,
    detector: object,
    blocks: dict[str, list[_Block]],
    start: dt.datetime,
    n: int,
    grain: dt.timedelta,
    j: int,
) -> pl.DataFrame:
    numerator, denominator = metric.parts
    blocks = {name: [block.of(metric) for block in parts] for name, parts in blocks.items()}
    now = blocks["previous"][0]
    value = now.values[numerator][PREVIOUS:]
    exposure = np.ones(n) if denominator is None else now.values[denominator][PREVIOUS:]
    columns: dict[str, object] = {"value": value, "exposure": exposure}
    for name, parts in blocks.items():
        width, skip = 2 * j + 1, 0
        if name == "previous":
            width = previous_windows(metric, grain)
            skip = PREVIOUS - width
        if parts and n:
            numerators = [_sliding(np.where(b.usable, b.values[numerator], np.nan)[skip:], width, n) for b in parts]
            columns[f"{name}_value"] = np.hstack(numerators)
            denominators = [np.ones(len(b.usable)) if denominator is None else b.values[denominator] for b in parts]
            columns[f"{name}_exposure"] = np.hstack([_sliding(d[skip:], width, n) for d in denominators])
    frame = pl.DataFrame(columns).with_columns(kind=pl.lit(metric.kind))
    scores = detector.score(frame)  # type: ignore[attr-defined]
    yesterday = np.full(n, np.nan)
    if blocks["yesterday"] and n:
        block = blocks["yesterday"][0]
        over = np.ones(len(block.recorded)) if denominator is None else block.values[denominator]
        with np.errstate(all="ignore"):
            yesterday = np.where(block.recorded, block.values[numerator] / over, np.nan)[j : j + n]
    first = start.astimezone(dt.UTC).replace(tzinfo=None)
    series = pl.DataFrame({"bucket": [first + i * grain for i in range(n)]}, schema={"bucket": pl.Datetime("us")})
    shown = scores.select("observed", "expected", "lower", "upper").with_columns(yesterday=pl.Series(yesterday))
    recorded = pl.Series(now.recorded[PREVIOUS:])
    observed = pl.when(recorded).then(pl.col("observed"))  # no event from anybody: unknown rather than zero
    return series.hstack(shown.with_columns(observed=observed)).with_columns(pl.col(pl.Float64).fill_nan(None))


def _sliding(values: npt.NDArray[np.float64], width: int, n: int) -> npt.NDArray[np.float64]:
    return np.lib.stride_tricks.sliding_window_view(values, width)[:n]
