"""The sweep: one pass of the detectors over all monitors at one instant.

    observe  ►  score  ►  control the false discovery rate  ►  anomalies

The scheduled notebook, the replay and the researcher call the same function.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
from statsmodels.stats.multitest import multipletests

from kmon.clock import EPOCH
from kmon.config import Config, DetectorUse
from kmon.detect.contract import SCORES, Detector, load_detector, scored
from kmon.detect.fleet import Fleet, Mask, check_taken_over, observe
from kmon.store import Store

LOOKS = 5
"""How often a window is judged within its own length: more often adds tests, not evidence."""


@dataclass(frozen=True)
class Scored:
    """What one detector says of one fleet."""

    use: DetectorUse
    detector: Detector
    fleet: Fleet
    scores: pl.DataFrame
    """A row for each judged monitor and metric: `metric`, `row` (of the fleet), and the detector's scores."""

    def again(self, fleet: Fleet, metric: str, rows: list[int], config: Config) -> pl.DataFrame:
        """Score some monitors of another fleet, such as this one less a known cause."""
        return scored(self.detector, fleet.windows(config.metrics[metric], np.array(rows, dtype=np.int64)))


@dataclass(frozen=True)
class Sweep:
    """All that one sweep saw."""

    at: dt.datetime
    scored: tuple[Scored, ...]
    cutoff: float
    """Anomalies are the judged and notable monitors with a p-value up to this; 0 where none is."""
    tests: int
    monitors: int
    windows: tuple[dt.timedelta, ...]
    """The widths that were judged."""
    flagged: tuple[pl.DataFrame, ...] = field(repr=False)
    """The anomalies, a frame for each of `scored`, with the columns of its scores."""

    @property
    def anomalies(self) -> int:
        """Of the detectors that may alert."""
        return sum(f.height for s, f in zip(self.scored, self.flagged, strict=True) if not s.use.shadow)


def due_windows(config: Config, at: dt.datetime, since: dt.datetime | None = None) -> list[dt.timedelta]:
    """The widths to judge at `at` after a sweep at `since`: each five times in its own length, on a grid of its own.

    A sweep that is late or was left out delays what was due, and loses nothing of it. Without `since` all are due.
    """

    def step(width: dt.timedelta) -> dt.timedelta:
        return max(1, width / LOOKS // config.every) * config.every

    return [w for w in config.windows if since is None or (since - EPOCH) // step(w) < (at - EPOCH) // step(w)]


def sweep(
    store: Store,
    config: Config,
    at: dt.datetime,
    *,
    since: dt.datetime | None = None,
    masks: Sequence[Mask] = (),
) -> Sweep:
    """Judge every monitor on the windows that end at `at` and were due after the sweep at `since`, default all.

    `at` is event time, at or before the watermark: what is not complete is not judged. `masks` are the known
    incidents, whose minutes serve nobody inside them as a reference. Reads the store, writes nothing.
    """
    check_taken_over(store, config, config.metrics.values(), (d for grouping in config.watch for d in grouping))
    detectors = [(use, load_detector(use, config.path.parent)) for use in config.detectors]
    found: list[Scored] = []
    monitors = 0
    widths = due_windows(config, at, since)
    for width in widths:
        fleet = observe(store, config, at, width, masks=masks, least=_least(config))
        if not fleet.usable[:, 0].any():  # not one event anywhere: the source is quiet, which is no partner's outage
            continue
        monitors += fleet.monitors.height
        found += [Scored(use, detector, fleet, _scores(detector, fleet, config)) for use, detector in detectors]
    p = np.concatenate([s.scores["p_value"].to_numpy() for s in found if not s.use.shadow] or [np.empty(0)])
    cutoff = _cutoff(p, config.fdr)
    flagged = tuple(s.scores.filter((pl.col("p_value") <= cutoff) & pl.col("notable")) for s in found)
    return Sweep(at, tuple(found), cutoff, len(p), monitors, tuple(widths), flagged)


def _scores(detector: Detector, fleet: Fleet, config: Config) -> pl.DataFrame:
    """What `Scored` holds: all metrics one below the other, without the monitors that were not judged."""
    height = fleet.monitors.height
    rows = pl.Series("row", np.arange(height, dtype=np.int64))
    parts = [
        scored(detector, fleet.windows(metric)).hstack([pl.Series("metric", [name]).new_from_index(0, height), rows])
        for name, metric in config.metrics.items()
    ]
    nothing = pl.DataFrame(schema={**SCORES, "metric": pl.String(), "row": pl.Int64()})
    return pl.concat([nothing, *parts]).filter(pl.col("judged") & pl.col("p_value").is_between(0, 1))


def _cutoff(p: npt.NDArray[np.float64], rate: float) -> float:
    """The largest rejected p-value of Benjamini and Hochberg (1995) at this false discovery rate."""
    if not len(p):
        return 0.0
    rejected = multipletests(p, alpha=rate, method="fdr_bh")[0]
    return float(p[rejected].max()) if rejected.any() else 0.0


def _least(config: Config) -> float:
    """The events below which no metric can be judged: a metric's volume is never more than its events."""
    volumes = [metric.min_volume for metric in config.metrics.values() if metric.min_volume is not None]
    general = [cast(float, u.params.get("min_volume", 20.0)) if u.use == "compare" else 1.0 for u in config.detectors]
    return max(1.0, min([*volumes, *general])) if _countable(config) else 1.0


def _countable(config: Config) -> bool:
    """Whether every judged volume is a number of events, so that a count of events bounds it."""
    volumes = {m.parts[1] or m.parts[0] for m in config.metrics.values()}
    return all(config.measures[v].lower().startswith("count") for v in volumes)
