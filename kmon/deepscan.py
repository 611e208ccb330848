"""Fits models to the monitors that deserve them: what the scheduled notebook ``deep_scan`` does.

choose the monitors  ►  read their past  ►  fit each measure, denominators first  ►  record, failures too

The fits end RECENT bins before the newest complete instant: a sweep weighs a model by how it tells those bins
(`kmon.detect.expect`), which it must not have seen.
"""

from __future__ import annotations

import datetime as dt
import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.clock import floor
from kmon.config import Config, counted
from kmon.config.bins import RECENT, bin_for
from kmon.detect.expect import AFTER
from kmon.detect.fleet import check_taken_over
from kmon.detect.models import A_DAY, STEP, Forecast, Share, forecast
from kmon.detect.past import Past, chosen
from kmon.errors import FitError, UsageError
from kmon.incidents import show_scope
from kmon.ledger import Fit, Ledger, open_ledger
from kmon.references import References
from kmon.store import Store, open_for_reading

Floats = npt.NDArray[np.float64]
Scope = dict[str, str]
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Scanned:
    """One series, what was made of it, and its last day."""

    fit: Fit
    seen: Floats
    """The last day before `fit.data_to`, by STEP; NaN where it is not known."""
    tested: Floats | None
    """What the model forecast for it without knowing it; None where no model could be fitted."""


@dataclass(frozen=True)
class DeepScan:
    """What one run fitted."""

    at: dt.datetime | None
    """The newest complete instant; None where nothing was done."""
    scanned: tuple[Scanned, ...]
    seconds: float
    reason: str = ""

    @property
    def fits(self) -> list[Fit]:
        return [one.fit for one in self.scanned]

    def __str__(self) -> str:
        if self.at is None:
            return self.reason
        failed = sum(fit.error is not None for fit in self.fits)
        return (
            f"{self.at:%Y-%m-%d %H:%M} UTC: {len(self.fits) - failed} series fitted, {failed} not, {self.seconds:.1f} s"
        )

    @property
    def table(self) -> pl.DataFrame:
        """A row a series: what was chosen, its `score` on the last day and that of the day before, or the failure."""
        keys = ("measure", "method", "score", "yesterday", "data_from", "data_to", "seconds", "error")
        rows = [{"where": show_scope(f.scope), **{key: getattr(f, key) for key in keys}} for f in self.fits]
        return pl.DataFrame(rows, schema=_TABLE, orient="row")

    def charts(self, count: int = 2) -> Picture | None:
        """The last day of the first series that were fitted, with what their models forecast without knowing it.

        None where no model could be fitted.
        """
        from matplotlib.figure import Figure

        shown = [(one, one.tested) for one in self.scanned if one.tested is not None][:count]
        if not shown:
            return None
        figure = Figure(figsize=(9, 2.4 * len(shown)), layout="constrained")
        for number, (one, tested) in enumerate(shown):
            axes = figure.add_subplot(len(shown), 1, number + 1)
            hours = (np.arange(len(one.seen)) - len(one.seen)) / 12
            axes.plot(hours, one.seen, color="#9aa5b1", linewidth=0.8, label="seen")
            axes.plot(hours, tested, color="#3d7ea6", label=f"forecast ({one.fit.method})")
            title = f"{one.fit.measure} of {show_scope(one.fit.scope)}"
            axes.set_title(title, loc="left", fontsize=9, parse_math=False)
            axes.set_xlabel(f"hours before {one.fit.data_to:%Y-%m-%d %H:%M} UTC", fontsize=8)
            axes.legend(frameon=False, fontsize=8)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=110)
        return Picture(target.getvalue())


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


_TABLE = {
    **{name: pl.String() for name in ("where", "measure", "method")},
    **{name: pl.Float64() for name in ("score", "yesterday")},
    **{name: pl.Datetime("us", "UTC") for name in ("data_from", "data_to")},
    "seconds": pl.Float64(),
    "error": pl.String(),
}


def run(config: Config, *, store: str | None = None, at: str | dt.datetime | None = None) -> DeepScan:
    """Fit by itself: open store and ledger, `scan`, and close them.

    `at` is RFC 3339 text or an aware datetime: fit as if the data had been complete until then. UsageError where it
    has no time zone, or a configured monitor's dimension is not in the store.
    """
    try:
        moment = dt.datetime.fromisoformat(at) if isinstance(at, str) else at
    except ValueError as error:
        message = f"{at!r} is not a time: write for example 2026-03-02T12:00:00Z"
        raise UsageError(message) from error
    if moment is not None and moment.tzinfo is None:
        message = f"{moment.isoformat()} has no time zone: write for example {moment.isoformat()}Z"
        raise UsageError(message)
    with open_for_reading(config, store) as opened, open_ledger(config, store) as ledger:
        return scan(config, opened, ledger, moment)


def scan(
    config: Config,
    store: Store,
    ledger: Ledger,
    at: dt.datetime | None = None,
    *,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> DeepScan:
    """Fit models to the configured monitors as of `at`, default the newest complete instant, and record them.

    Each monitor is recorded when it is done, so that a run that is stopped leaves what it has.
    """
    began = time.monotonic()
    if not config.models.on:
        return DeepScan(None, (), 0.0, "no models are configured: 'models' in kmon.yaml says for which monitors")
    mark = store.watermark(config.events.lateness, config.events.idle)
    if mark is None:
        return DeepScan(None, (), 0.0, "the store has no events yet")
    at = floor(min(at or mark, mark), STEP)
    end = floor(at - RECENT * bin_for(config.windows), STEP)
    start = max(end - config.models.history, floor(store.oldest() or at, STEP))
    if end - start < 2 * DAY:
        hours = max(0, (end - start) // HOUR)
        return DeepScan(
            None, (), 0.0, f"the history is too short: {counted(hours, 'hour')} before the last ones, a model needs 48"
        )
    measures = measures_of(config)
    check_taken_over(store, config, config.metrics.values(), [d for s in config.models.monitors for d in s])
    told = References.of(ledger, config, start, end)
    past = Past(store, told.config, told.masks, start, end)
    scanned: list[Scanned] = []
    for scope in chosen(config, store, end):
        mine = list(_scan(config, past, scope, measures, clock))
        ledger.save_fits([one.fit for one in mine])
        scanned += mine
    return DeepScan(at, tuple(scanned), time.monotonic() - began)


def measures_of(config: Config) -> dict[str, str | None]:
    """The measures to forecast, denominators before numerators, with the denominator of each that has one.

    Those of counts and rates: a mean's total is no count, and a quantile is of too many.
    """
    pairs = [metric.parts for metric in config.metrics.values() if metric.forecast]
    over: dict[str, str | None] = {d: None for _, d in pairs if d is not None}
    for numerator, denominator in pairs:
        if over.get(numerator) is None and denominator not in (None, numerator):
            over[numerator] = denominator
        over.setdefault(numerator, None)
    done: dict[str, str | None] = {}
    while len(done) < len(over):  # a measure may be the numerator of one rate and the denominator of another
        ready = [m for m, d in over.items() if m not in done and (d is None or d in done)]
        for measure in ready or [next(m for m in over if m not in done)]:
            done[measure] = over[measure] if ready else None
    return done


def _scan(
    config: Config,
    past: Past,
    scope: Scope,
    measures: Mapping[str, str | None],
    clock: Callable[[], dt.datetime],
) -> Iterator[Scanned]:
    """Each measure of one monitor."""
    ahead = config.models.stale + (RECENT + AFTER) * bin_for(config.windows)
    horizon = -(-ahead // STEP) + 1
    seen = past.read(scope)
    told: dict[str, Forecast] = {}
    for measure, over in measures.items():
        began = time.monotonic()
        share = Share(seen[over], told[over].tested, told[over].values) if over is not None and over in told else None
        fit = Fit(scope, measure, clock(), past.start, past.end)
        try:
            told[measure] = found = forecast(
                seen[measure],
                past.start,
                horizon,
                events=past.special_days(scope, horizon),
                share=share,
                limit=config.models.limit,
            )
            fit = replace(fit, **_told(found))
        except FitError as error:
            fit = replace(fit, error=str(error))
        fit = replace(fit, seconds=round(time.monotonic() - began, 3))
        tested = told[measure].tested if measure in told else None
        yield Scanned(fit, seen[measure][-A_DAY:], tested)


def _told(found: Forecast) -> dict[str, Any]:
    """The fields of a fit that a forecast fills; numbers as short as they are useful."""
    tried = {**{name: f"{score:.4g}" for name, score in found.scores.items()}, **found.failures}
    values = [float(f"{value:.5g}") for value in found.values]
    return {
        "method": found.method,
        "score": found.score,
        "yesterday": found.yesterday,
        "tried": tried,
        "forecast": values,
    }
