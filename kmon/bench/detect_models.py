"""What a model's forecast adds to the comparison: expected levels with and without it, on series of which all is known.

history  ►  fit once a day  ►  expect the windows of the next day, with and without  ►  how far off, beyond chance

Simulated sessions and orders (the law of `kmon.sources.traffic`, drawn as counts), and where KMON_DATA has the Numenta
benchmark its ten series of tweets by five minutes, which are real counts with real days and weekends.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon import environment
from kmon.bench.rows import Row, missing, told, under
from kmon.bench.workplace import Options
from kmon.detect.compare import Compare
from kmon.detect.expect import AFTER, RECENT
from kmon.detect.fleet import DAYS
from kmon.detect.models import A_DAY, STEP, Share, at_bins, forecast
from kmon.errors import FitError
from kmon.sources import market as world

Floats = npt.NDArray[np.float64]
JUDGED = 3
"""Days after the history, each with the fits of its midnight."""
WIDTHS = (1, 3, 12)
"""Of the windows, in steps."""


@dataclass(frozen=True)
class World:
    """Series by step, as rows; `hits` are the numerators of `counts`, if there are any."""

    name: str
    start: dt.datetime
    counts: Floats
    hits: Floats | None = None


@dataclass
class Tally:
    """What became of all fits and windows."""

    methods: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    gains: list[float] = field(default_factory=list)
    """Of each fit: its deviance on its last day over that of the day before."""
    windows: dict[tuple[str, int, bool], list[pl.DataFrame]] = field(default_factory=dict)
    """By kind, width and whether there is a model."""


def run(options: Options) -> list[Row]:
    """The simulated world with three days of history and with four weeks, then the tweets."""
    small = options.scale < 0.5
    history, monitors, every = (9, 3, 72) if small else (28, 15, 4)
    rows: list[Row] = []
    for days in (3, history):
        options.say(f"{days} days of history")
        rows += _judged(_simulated(days, monitors), days, every)
    data = options.data or environment.data_folder()
    if not (data / "nab.parquet").exists():
        return [*rows, missing("tweets", "", "KMON_DATA has no nab.parquet")]
    return [*rows, *_judged(_tweets(data, history), history, every)]


def _simulated(days: int, monitors: int) -> World:
    """Everything, the largest countries and the largest partners of 2,000 at 20 events a second."""
    start = dt.datetime(2026, 2, 2, tzinfo=dt.UTC)
    market, random = world.market(2000, 20.0, 1), np.random.default_rng(1)
    volatility = market.habits.volatility
    steps, partners = (days + JUDGED) * A_DAY, market.partners
    bought = market.authorizes * float(world.APPROVAL.mean()) * world.ORDERED
    knots = random.standard_normal((steps + 2, partners)).astype(np.float32)
    masks = [np.ones(len(market.cell_rate), dtype=bool)]
    masks += [market.cell_country == c for c in range(monitors // 3)]
    masks += [market.cell_partner == p for p in range(monitors - len(masks))]
    counts, hits = np.zeros((len(masks), steps)), np.zeros((len(masks), steps))
    for i in range(steps):
        shape = market.shape(start + (i + 0.5) * STEP)[market.cell_country]
        mood = np.exp(volatility * knots[i : i + 3].sum(axis=0) / 3**0.5 - volatility**2 / 2)[market.cell_partner]
        seen = random.poisson(market.cell_rate * STEP.total_seconds() * shape * mood)
        orders = random.binomial(seen, bought[market.cell_partner])
        counts[:, i], hits[:, i] = ([part[mask].sum() for mask in masks] for part in (seen, orders))
    return World(f"simulated, {days} days", start, counts, hits)


def _tweets(data: Path, days: int) -> World:
    """The ten series of tweets, whose values are counts, by the clock."""
    frame = pl.read_parquet(data / "nab.parquet").with_columns(pl.col("file").cast(pl.String))
    frame = frame.filter(pl.col("file").str.contains("Twitter"))
    frame = frame.with_columns(pl.col("timestamp").dt.truncate("5m"))
    wide = frame.group_by("timestamp", "file").agg(pl.col("value").sum())
    table = wide.pivot("file", index="timestamp", values="value").sort("timestamp").upsample("timestamp", every="5m")
    first = table["timestamp"][0]
    start = (first + dt.timedelta(days=1)).replace(hour=0, minute=0, tzinfo=dt.UTC)
    table = table.filter(pl.col("timestamp") >= start.replace(tzinfo=None)).head((days + JUDGED) * A_DAY)
    counts = np.array([table[name].to_numpy() for name in table.columns[1:]], dtype=float)
    return World(f"tweets, {days} days", start, counts)


def _judged(one: World, days: int, every: int) -> list[Row]:
    """The figures of a world with so many days of history, of a look `every` so many steps."""
    tally = Tally()
    for day in range(JUDGED):
        end = (days + day) * A_DAY
        if end + A_DAY > one.counts.shape[1]:
            break
        origin = end - RECENT
        ahead = [_fitted(one, row, origin, tally) for row in range(len(one.counts))]
        for at in range(end, end + A_DAY - AFTER, every):
            for width in WIDTHS:
                for kind, value, exposure, model in _kinds(one, ahead):
                    for used in (False, True):
                        windows = _windows(kind, value, exposure, at, width, (model, origin) if used else None)
                        scores = Compare().score(windows)
                        tally.windows.setdefault((kind, width, used), []).append(scores.with_columns(windows["value"]))
    return list(_rows(one, tally))


def _fitted(one: World, row: int, origin: int, tally: Tally) -> tuple[Floats, Floats]:
    """What is forecast of a monitor's two series from `origin` on; NaN where nothing could be."""
    horizon, found = 2 * A_DAY, []
    share: Share | None = None
    for series in (one.counts, one.hits):
        began = time.perf_counter()
        values = np.full(horizon, np.nan)
        if series is not None:
            try:
                fit = forecast(series[row, :origin], one.start, horizon, share=share)
                share = Share(series[row, :origin], fit.tested, fit.values)
                tally.methods[fit.method] += 1
                tally.gains.append(fit.score / fit.yesterday)
                tally.failures.update(list(fit.failures))
                values = fit.values
            except FitError as error:
                tally.failures[str(error)] += 1
            tally.seconds.append(time.perf_counter() - began)
        found.append(values)
    return found[0], found[1]


def _kinds(one: World, ahead: Sequence[tuple[Floats, Floats]]) -> Iterator[tuple[str, Floats, Floats, Floats]]:
    """(kind, value, exposure, model) of the metrics; `model` has value and exposure of all monitors."""
    counts, hits = (np.array(part) for part in zip(*ahead, strict=True))
    yield "count", one.counts, np.ones_like(one.counts), np.array([counts, np.ones_like(counts)])
    if one.hits is not None:
        yield "rate", one.hits, one.counts, np.array([hits, counts])


def _windows(
    kind: str, value: Floats, exposure: Floats, at: int, width: int, model: tuple[Floats, int] | None
) -> pl.DataFrame:
    """A detector's input at step `at` of windows of `width` steps (`kmon.detect.contract`)."""
    columns: dict[str, object] = {}
    for key, series in (("value", value), ("exposure", exposure / width if kind == "count" else exposure)):
        columns[key] = series[:, at - width : at].sum(axis=1)
        recent = series[:, at - RECENT : at].copy()
        recent[:, RECENT - width :] = np.nan
        columns[f"recent_{key}"] = recent
        past = (RECENT - width) // width
        columns[f"previous_{key}"] = (
            series[:, at - (past + 1) * width : at - width].reshape(len(series), past, width).sum(axis=2)
        )
        for days in DAYS:
            low = at - days * A_DAY - RECENT
            if low >= 0:
                columns[f"day{days}_{key}"] = series[:, low : low + RECENT + AFTER]
    columns["lagged_exposure"] = columns["exposure"]
    if model is not None:
        (values, sizes), origin = model
        first = at - RECENT - origin
        columns["model_value"] = np.array([at_bins(v, first, 1, RECENT + AFTER) for v in values])
        scale = 1 / width if kind == "count" else 1.0
        columns["model_exposure"] = scale * np.array([at_bins(v, first, 1, RECENT + AFTER) for v in sizes])
    constants = {"kind": kind, "width": float(width), "bin": 1.0}
    return pl.DataFrame(columns).with_columns(**{k: pl.lit(v) for k, v in constants.items()})


def _rows(one: World, tally: Tally) -> Iterator[Row]:
    fits = max(1, sum(tally.methods.values()))
    won = ", ".join(f"{name} {count}" for name, count in tally.methods.most_common())
    failed = ", ".join(f"{name} {count}" for name, count in tally.failures.most_common(6))
    yield told(f"{one.name}: fits", fits, "", f"won: {won or 'none'}" + (f"; could not: {failed}" if failed else ""))
    yield told(
        f"{one.name}: a fit, median", float(np.median(tally.seconds)), "s", f"longest {max(tally.seconds):.2f} s"
    )
    if tally.gains:
        better = float(np.mean(np.array(tally.gains) < 1))
        note = f"better than it in {better:.0%} of the fits"
        yield under(f"{one.name}: deviance over yesterday's, median", float(np.median(tally.gains)), "", 1.0, note)
    for (kind, width, used), scores in tally.windows.items():
        if used:
            without = _error(tally.windows[kind, width, False], kind)
            name = f"{one.name}: {kind} in {5 * width}m, squared error over that without"
            both = [tally.windows[kind, width, modelled] for modelled in (True, False)]
            errors = ", without ".join(f"{_beyond(part, kind):.3f}" for part in both)
            tails = ", without ".join(f"{_low(part):.2%}" for part in both)
            note = f"beyond chance {errors}; p under 1 %: {tails}"
            yield under(name, _error(scores, kind) / without, "", 1.0, note)


def _squares(scores: Sequence[pl.DataFrame], kind: str) -> tuple[Floats, Floats]:
    """Squared relative errors of judged windows, and what chance alone makes of them."""
    all_ = pl.concat(scores).filter("judged")
    seen, level, value = (all_[name].to_numpy() for name in ("observed", "expected", "value"))
    chance = 1 / np.maximum(level, 1) if kind == "count" else (1 - level) / np.maximum(value, 1)
    return (seen / level - 1) ** 2, chance


def _error(scores: Sequence[pl.DataFrame], kind: str) -> float:
    squares, chance = _squares(scores, kind)
    return float(np.mean(np.minimum(squares / (chance + 0.01), 16.0)))


def _beyond(scores: Sequence[pl.DataFrame], kind: str) -> float:
    """Root of the mean squared relative error that chance does not explain."""
    squares, chance = _squares(scores, kind)
    return math.sqrt(max(float(np.mean(np.minimum(squares, 1.0) - chance)), 0.0))


def _low(scores: Sequence[pl.DataFrame]) -> float:
    """The share of p-values under 1 %; a minimum-effect test has at most so many."""
    return float(np.mean(pl.concat(scores).filter("judged")["p_value"].to_numpy() < 0.01))
