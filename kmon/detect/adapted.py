"""A detector of single series in the sweep: each newest step of the monitors that deserve it, against weeks of them.

    the monitors that `models:` chooses  ►  their past in steps of five minutes  ►  the detector's p-value of the newest
      ►  what was expected, and is the change worth telling  ►  scores

A count is judged by what came in a step, a rate by numerator over denominator. The newest step is judged as it was;
before it known incidents are gaps. Where the detector does not say what was expected, it is the usual level: the median
of that time of day on the last week's days, at today's level.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from kmon.clock import floor
from kmon.config import Config, Metric
from kmon.detect.compare import Compare, large
from kmon.detect.contract import SCORES, Points, SeriesDetector, least_volume
from kmon.detect.fleet import DAY, Fleet, Mask, numbers_of
from kmon.detect.models import A_DAY, AN_HOUR, STEP
from kmon.detect.own import Known, Look, OwnWindows, Verdict, kept_of, normal_gain, verdict_of
from kmon.detect.past import Past, chosen
from kmon.detect.shelf import Shelf
from kmon.detect.tails import divergence
from kmon.errors import UsageError
from kmon.store import Store

Floats = npt.NDArray[np.float64]
MOST = 28 * DAY
"""What a look reads at most, whatever `models.history` says."""
WEEK = 7
"""Days that tell the usual level."""
KNOWN_DAYS = 3
"""Of them that must know a time of day."""
LEVEL = 2 * AN_HOUR
"""Known steps before the newest that tell today's level."""
FEW = AN_HOUR // 2
"""Of them that must be known; and of the steps that tell how far they usually are from what is expected."""
SIGMA = 1.4826
"""Standard deviations of a normal value in its median distance from the middle."""
NORMAL = float(stats.norm.isf(0.0005))
"""Standard deviations to either side, between which a normal step lies: 99.9 %, as of the comparison."""
COMPARISON = Compare()
"""Whose thresholds a change must pass to be told, where the metric has none of its own."""


@dataclass(frozen=True)
class Adapted(OwnWindows):
    """A detector of single series, as one of the sweep. Its windows are the steps of the series."""

    overlaps: ClassVar[bool] = True

    series: SeriesDetector

    @property
    def name(self) -> str:
        return self.series.name

    def check(self, config: Config) -> None:
        if not config.models.on:
            message = (
                f"the detector {self.name!r} judges single series, of the monitors that 'models' chooses, and it"
                " chooses none: set models.largest or models.monitors"
            )
            raise UsageError(message)

    def longest(self, config: Config) -> dt.timedelta:
        return STEP

    def look_every(self, config: Config) -> dt.timedelta:
        """When a step is complete."""
        return max(STEP, config.every)

    def watches(self, config: Config, metric: str, scope: Mapping[str, str]) -> bool:
        named = any(dict(scope) == one for one in config.models.monitors)
        return metric in _metrics(config) and (named or (config.models.largest > 0 and config.watches(scope)))

    def unjudged(self, *, seen: bool) -> str:
        if not seen:
            return "it is none of the monitors that 'models' chooses"
        return "nothing or too little came in the newest five minutes, or too little is known of the days before"

    def look(
        self, store: Store, config: Config, at: dt.datetime, masks: Sequence[Mask] = (), shelf: Shelf | None = None
    ) -> Look | None:
        """The newest complete step of the chosen monitors, judged or not."""
        past = _past(store, config, at, masks, config.models.history)
        if past is None:
            return None
        monitors, read = _monitors(store, config, past)
        if not read:
            return None
        parts = [self._scores(config.metrics[name], name, past, read) for name in _metrics(config)]
        scores = pl.concat(parts) if parts else pl.DataFrame(schema=_SCORES)
        none = np.zeros((monitors.height, 0), dtype=bool)
        fleet = Fleet(at, STEP, (), monitors, {}, none, np.zeros(0, dtype=bool))
        return Look(fleet, scores, scores.height)

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
        """Whether much of the change is left in the newest step; "unjudged" where no step is complete since `since`."""
        if not self.is_due(config, at, since) or incident.metric not in _metrics(config):
            return "unjudged"
        past = _past(store, config, at, masks, (WEEK + 1) * DAY)
        if past is None:
            return "unjudged"
        step = _step(config.metrics[incident.metric], past.read(incident.scope, newest=1))
        gain = normal_gain(step.observed, step.expected, step.sd**2, kept_of(incident)) if step.sd > 0 else np.nan
        return verdict_of(gain, config) if np.isfinite(gain) else "unjudged"

    def _scores(self, metric: Metric, name: str, past: Past, read: Mapping[int, Mapping[str, Floats]]) -> pl.DataFrame:
        """Of one metric; a row for each monitor that was judged."""
        rows, steps, p = list(read), [], []
        for measures in read.values():
            step = _step(metric, measures)
            points = self._points(past.times, step.series)
            told = np.nan if points.expected is None else float(np.asarray(points.expected)[-1])
            steps.append(step._replace(expected=told) if np.isfinite(told) else step)
            p.append(float(np.asarray(points.p_value, dtype=float)[-1]))
        keys = {"metric": pl.Series([name]).new_from_index(0, len(rows)), "row": pl.Series(rows, dtype=pl.Int64)}
        return _told(metric, steps, np.array(p)).with_columns(**keys).filter("judged").select(_SCORES.names())

    def _points(self, times: Floats, series: Floats) -> Points:
        """What the detector says; UsageError where that is not as long as the series."""
        points = self.series.judge(times, series.copy(), last=1)
        for key, found in points._asdict().items():
            if found is not None and np.shape(found) != series.shape:
                message = (
                    f"the detector {self.name!r} returned {np.size(found)} numbers as {key} of {len(series)} points:"
                    " it must give one for each"
                )
                raise UsageError(message)
        return points


_SCORES = pl.Schema({
    **SCORES, "value": pl.Float64(), "exposure": pl.Float64(), "seconds": pl.Float64(), "metric": pl.String(),
    "row": pl.Int64(),
})  # fmt: skip


def _metrics(config: Config) -> list[str]:
    """Those that are judged: counts and rates, as by models."""
    return [name for name, metric in config.metrics.items() if metric.forecast]


def _past(store: Store, config: Config, at: dt.datetime, masks: Sequence[Mask], history: dt.timedelta) -> Past | None:
    """The last steps that are complete at `at`; None where there is none."""
    end, oldest = floor(at, STEP), store.oldest()
    if oldest is None:
        return None
    start = max(end - min(history, MOST) // STEP * STEP, floor(oldest, STEP))
    return Past(store, config, masks, start, end) if start < end else None


def _monitors(store: Store, config: Config, past: Past) -> tuple[pl.DataFrame, dict[int, dict[str, Floats]]]:
    """The chosen monitors that have ever been seen, as a fleet has them, and by their row the measures of each."""
    sets = [{*grouping} for grouping in config.watch]
    rows: list[dict[str, int]] = []
    read: dict[int, dict[str, Floats]] = {}
    for scope in chosen(config, store, past.end):
        numbers = numbers_of(store, scope)
        if len(numbers) == len(scope):
            read[len(rows)] = past.read(scope, newest=1)
            rows.append({"set": sets.index({*scope}), **numbers})
    used = [d for d in store.schema.dimensions if any(d in row for row in rows)]
    schema = {"set": pl.Int32(), **dict.fromkeys(used, pl.UInt32())}
    return pl.DataFrame(rows, schema=schema), read


class _Step(NamedTuple):
    """The newest step of a series."""

    series: Floats
    """All steps; NaN where nothing is known, or too little came to tell a rate."""
    value: float
    exposure: float
    """1 of a count."""
    usual: float
    """A usual exposure."""
    expected: float
    sd: float
    """Of a normal step around what is expected: as those were that told it, and no less than chance."""

    @property
    def observed(self) -> float:
        return float(self.series[-1])


def _step(metric: Metric, measures: Mapping[str, Floats]) -> _Step:
    """The newest step of a monitor, and what it usually is."""
    value, exposure = (None if part is None else measures[part] for part in metric.parts)
    assert value is not None
    if exposure is None:
        expected, sd = usual(value)
        return _Step(value, float(value[-1]), 1.0, 1.0, expected, float(np.fmax(sd, np.sqrt(max(expected, 0.0)))))
    enough = exposure >= max(least_volume(metric, COMPARISON), 1.0)
    series = np.divide(value, exposure, out=np.full(len(value), np.nan), where=enough)
    expected, sd = usual(series)
    share = np.clip(expected, 1e-3, 1 - 1e-3)
    chance = np.sqrt(share * (1 - share) / max(exposure[-1], 1.0))
    return _Step(
        series, float(value[-1]), float(exposure[-1]), usual(exposure)[0], expected, float(np.fmax(sd, chance))
    )


def usual(series: Floats) -> tuple[float, float]:
    """(what is usual for the newest step, and the standard deviation around that) of a series that ends with it.

    The median of the three steps around this time of day on the last WEEK days, times what the last LEVEL known steps
    of today were of theirs; where fewer than KNOWN_DAYS days are known, the median of the last hour. NaN: not known.
    """
    n = (WEEK + 1) * A_DAY
    padded = np.concatenate([np.full(n + 1, np.nan), series])
    days, *beside = (padded[len(padded) - n - by : len(padded) - by].reshape(-1, A_DAY) for by in (0, 1))
    after = np.append(padded[-n + 1 :], np.nan).reshape(-1, A_DAY)
    before_today = np.concatenate([days[:-1], beside[0][:-1], after[:-1]])
    known = np.isfinite(days[:-1]).sum(axis=0) >= KNOWN_DAYS
    shape = np.full(A_DAY, np.nan)
    shape[known] = np.nanmedian(before_today[:, known], axis=0)
    today = days[-1, :-1]
    told = np.flatnonzero(np.isfinite(today) & (np.nan_to_num(shape[:-1]) > 0))[-LEVEL:]
    level = float(np.median(today[told] / shape[told])) if len(told) >= FEW else 1.0
    expected, away = shape[-1] * level, today - shape[:-1] * level
    if not np.isfinite(expected):
        last = today[np.isfinite(today)][-AN_HOUR:]
        expected = float(np.median(last)) if len(last) >= FEW else np.nan
        away = last - expected
    away = away[np.isfinite(away)]
    return float(expected), SIGMA * float(np.median(np.abs(away))) if len(away) >= FEW else np.nan


def _told(metric: Metric, steps: Sequence[_Step], p: Floats) -> pl.DataFrame:
    """The scores of steps of one metric."""
    columns: dict[str, Any] = {key: np.array([getattr(step, key) for step in steps], dtype=float) for key in _NUMBERS}
    value, exposure, observed, level = (columns[key] for key in ("value", "exposure", "observed", "expected"))
    spread = NORMAL * columns["sd"]
    most = 1.0 if metric.kind == "rate" else np.inf
    fall, rise = COMPARISON.least_change(metric)
    with np.errstate(all="ignore"):
        volume = np.fmax(observed, level) if metric.kind == "count" else exposure
        judged = np.isfinite(p) & np.isfinite(observed + level) & (volume >= least_volume(metric, COMPARISON))
        own = {"min_effect": fall, "min_rise": rise}
        notable = judged & large(metric.kind, value, exposure, columns["usual"], level, own)
        if metric.kind == "count":
            evidence = divergence(value, level)
        else:
            evidence = divergence(np.minimum(value, exposure), np.clip(level, 1e-6, 1 - 1e-6), exposure)
        return pl.DataFrame(
            {
                "observed": observed,
                "expected": level,
                "lower": np.maximum(level - spread, 0.0),
                "upper": np.minimum(level + spread, most),
                "p_value": np.where(judged, np.clip(p, 0.0, 1.0), 1.0),
                "effect": (observed - level) / np.abs(level),
                "direction": np.where(observed < level, "down", "up"),
                "evidence": np.maximum(np.nan_to_num(evidence), 0.0),
                "judged": judged,
                "notable": notable,
                "value": value,
                "exposure": exposure,
                "seconds": np.full(len(p), STEP.total_seconds()),
            },
            schema_overrides=SCORES,
        )


_NUMBERS = ("value", "exposure", "usual", "observed", "expected", "sd")
