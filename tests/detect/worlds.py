"""Small worlds to judge: detector input made of numbers, and a shop's store of which the truth is known."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config
from kmon.detect.expect import AFTER, RECENT
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore

AT = dt.datetime(2026, 1, 10, 12, tzinfo=dt.UTC)
"""The end of the shop's data; of the day before it has the hour around the same time."""
MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)
PARTNERS, COUNTRIES, BROWSERS = ("p0", "p1", "p2", "p3", "p4", "p5"), ("SE", "DE", "US"), ("chrome", "safari", "edge")
NEXT = (pl.col("today")) & (pl.col("ago") <= 5)
"""The last five minutes."""
BIN = 300.0
"""Seconds, of a bin of detector input."""


@dataclass(frozen=True)
class Mask:
    """A known incident, as the sweep needs it."""

    scope: dict[str, str]
    started_at: dt.datetime
    resolved_at: dt.datetime | None = None


def windows(
    kind: str,
    current: npt.ArrayLike,
    recent: npt.ArrayLike = np.nan,
    size: npt.ArrayLike = 1.0,
    *,
    exposure: npt.ArrayLike | None = None,
    lagged: npt.ArrayLike | None = None,
    previous: npt.ArrayLike | None = None,
    width: float = 300.0,
    own: dict[str, float] | None = None,
    **days: npt.ArrayLike,
) -> pl.DataFrame:
    """Detector input with bins of 5 minutes: a row for each of the values `current` in windows of `width` seconds.

    `recent` and each ``day<N>`` are (monitors, bins), or what all bins of a monitor, or of all of them, are. Every bin
    of a rate or mean has the denominator `size`, and the windows as much for their length unless told.
    """
    now = np.array(current, float)
    bins = width / BIN
    each = np.full(len(now), bins) * (1.0 if kind == "count" else np.array(size, float))
    whole = np.ones(len(now)) if kind == "count" else each
    columns: dict[str, Any] = {"value": now, "exposure": whole if exposure is None else np.array(exposure, float)}
    columns["lagged_exposure"] = columns["exposure"] if lagged is None else np.array(lagged, float)
    table = dense(recent, len(now), RECENT)
    table[:, RECENT - math.ceil(bins) :] = np.nan
    arrays = {"recent": table, **{name: dense(day, len(now), RECENT + AFTER) for name, day in days.items()}}
    arrays |= {} if previous is None else {"previous": np.array(previous, float)}
    for name, values in arrays.items():
        a_bin = whole if name == "previous" else whole / bins
        columns[f"{name}_value"] = values
        columns[f"{name}_exposure"] = np.where(np.isnan(values), np.nan, a_bin[:, None])
    shown = {"kind": pl.lit(kind), "width": pl.lit(width), "bin": pl.lit(BIN)}
    thresholds = {key: pl.lit((own or {}).get(key), pl.Float64) for key in ("min_volume", "min_effect", "min_rise")}
    return pl.DataFrame(columns).with_columns(**shown, **thresholds)


def dense(values: npt.ArrayLike, monitors: int, bins: int) -> npt.NDArray[np.float64]:
    """A level, a level per monitor, or all of it, as a table."""
    given = np.array(values, float)
    return np.broadcast_to(given[:, None] if given.ndim == 1 else given, (monitors, bins)).copy()


def fleet(
    level: npt.ArrayLike, *, monitors: int = 20, days: int = 1, width: float = BIN, seed: int = 5
) -> pl.DataFrame:
    """Detector input of Poisson counts with nothing wrong: `level` is the mean of a bin, of each monitor."""
    rng = np.random.default_rng(seed)
    mean = np.broadcast_to(np.array(level, float), monitors)
    known = {f"day{n + 1}": rng.poisson(mean[:, None], (monitors, RECENT + AFTER)) for n in range(days)}
    recent = rng.poisson(mean[:, None], (monitors, RECENT))
    return windows("count", rng.poisson(mean * width / BIN), recent, width=width, **known)


def change(given: pl.DataFrame, row: int, **changes: npt.ArrayLike) -> pl.DataFrame:
    """Detector input with other values in some columns of one row: a number, or one for each bin."""
    columns = {name: given[name].to_numpy().copy() for name in changes}
    for name, value in changes.items():
        columns[name][row] = value
    return given.with_columns(**{name: pl.Series(column) for name, column in columns.items()})


def config(folder: Path | None = None, **changes: Any) -> Config:
    """The shop's configuration: sessions and orders by partner, country and browser, in windows of five minutes."""
    text = {"type": "string"}
    data = {
        "source": {"kind": "files", "paths": ["*.ndjson"]},
        "events": {
            "lateness": "0s",
            "fields": {"ts": {"type": "time"}, "kind": text, "partner": text, "country": text, "browser": text},
        },
        "dimensions": ["partner", "country", "browser"],
        "measures": {"sessions": "count(*) FILTER (kind = 's')", "orders": "count(*) FILTER (kind = 'o')"},
        "metrics": {
            "sessions": {"count": "sessions"},
            "orders": {"count": "orders"},
            "conversion": {"rate": "orders / sessions"},
        },
        "watch": [[], ["partner"], ["country"], ["browser"], ["partner", "country"], ["partner", "browser"]],
        "windows": ["5m"],
        "sinks": {"console": {"kind": "console"}},
        "routes": [{"match": {"severity": ["critical", "warning"]}, "sinks": ["console"]}],
        "incidents": {"impact": ["orders"]},
        "path": (folder or Path("/nowhere")) / "kmon.yaml",
    }
    return Config.model_validate({**data, **changes})


def traffic(
    sessions: pl.Expr | float = 8.0,
    conversion: pl.Expr | float = 0.5,
    *,
    partners: Sequence[str] = PARTNERS,
    days: Sequence[int] = (1, 0),
    minutes: int = 60,
    seed: int = 1,
) -> pl.DataFrame:
    """Events of the hour before AT and of the two hours around AT on the days before.

    `sessions` (a minute and cell) and `conversion` may depend on partner, country, browser, `today`, `ago` (minutes
    before AT, 1 being the last) and `ts`.
    """
    times = [
        (AT - day * DAY - ago * MINUTE, day == 0, ago)
        for day in days
        for ago in range(minutes, 0 if day == 0 else -minutes, -1)
    ]
    clock = pl.DataFrame(times, schema=["ts", "today", "ago"], orient="row").with_columns(
        pl.col("ts").dt.replace_time_zone(None)
    )
    cells = pl.DataFrame({"partner": list(partners)}).join(pl.DataFrame({"country": COUNTRIES}), how="cross")
    rates = clock.join(cells.join(pl.DataFrame({"browser": BROWSERS}), how="cross"), how="cross").with_columns(
        rate=pl.lit(sessions) if isinstance(sessions, float) else sessions,
        share=pl.lit(conversion) if isinstance(conversion, float) else conversion,
    )
    rng = np.random.default_rng(seed)
    visits = rng.poisson(rates["rate"].to_numpy())
    bought = rng.binomial(visits, rates["share"].to_numpy())
    base = rates.select(event_time="ts", partner="partner", country="country", browser="browser")
    parts = [base.with_columns(n=pl.Series(n), kind=pl.lit(k)) for k, n in (("s", visits), ("o", bought))]
    counted = pl.concat(parts).sort("event_time").filter(pl.col("n") > 0)
    return counted.select(pl.exclude("n").repeat_by("n")).explode(pl.all())


def spread(events: pl.DataFrame) -> pl.DataFrame:
    """The events of each minute at any time in it, in their order."""
    seconds = np.random.default_rng(1).uniform(0, 60, events.height)
    return events.with_columns(pl.col("event_time") + pl.duration(milliseconds=pl.Series(1000 * seconds))).sort(
        "event_time"
    )


def add(store: EmbeddedStore, events: pl.DataFrame, upto: dt.datetime = AT) -> None:
    """Commit `events`, after which the data is complete up to `upto`."""
    first = next(iter(store.positions().values()), 0)
    store.commit(Commit([Move("test", 0, first, first + events.height)], events, {"0": upto}))


def shop(events: pl.DataFrame, settings: Config | None = None, upto: dt.datetime = AT) -> EmbeddedStore:
    """A store in memory with `events`."""
    store = EmbeddedStore(":memory:", settings or config())
    add(store, events, upto)
    return store


def timed_config(q: float = 0.95, **changes: Any) -> Config:
    """The shop's configuration with the latency of sessions, of which the `q`-quantile is the metric `latency`."""
    text = {"type": "string"}
    fields = {"ts": {"type": "time"}, "kind": text, "partner": text, "country": text, "browser": text}
    data = {
        "events": {"lateness": "0s", "fields": {**fields, "latency_ms": {"type": "number"}}},
        "histograms": {"latency": {"of": "latency_ms", "where": "kind = 's'", "from": 10, "to": 10000}},
        "metrics": {
            "sessions": {"count": "sessions"},
            "latency": {"quantile": "latency", "q": q, "good": "down", "unit": "ms"},
        },
    }
    return config(**{**data, **changes})


def timed(events: pl.DataFrame, slower: pl.Expr | float = 1.0, spread: float = 0.6, seed: int = 2) -> pl.DataFrame:
    """`events` with a lognormal latency around 200 ms, times `slower`, which may depend on their columns."""
    chance = np.random.default_rng(seed).standard_normal(events.height)
    times = pl.lit(slower) if isinstance(slower, float) else slower
    return events.with_columns(latency_ms=pl.Series(200 * np.exp(spread * chance)) * times)


def lately(where: pl.Expr, times: float, minutes: int = 5) -> pl.Expr:
    """`times` as slow in the last minutes of `where`, else as ever."""
    since = (AT - minutes * MINUTE).replace(tzinfo=None)
    return pl.when(where & (pl.col("event_time") >= since)).then(times).otherwise(1.0)
