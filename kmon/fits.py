"""Which fitted models may be used at a time, and in words why the others may not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kmon.config import Config, Shift, show_duration
from kmon.config.bins import RECENT, bin_for
from kmon.ledger import Fit, Ledger

State = Literal["fresh", "stale", "failed"]
ALONE = "the comparison alone judges"


@dataclass(frozen=True)
class Model:
    """What there is of one measure of one monitor."""

    scope: dict[str, str]
    measure: str
    state: State
    """``fresh``: it is a reference. ``failed``: there is no model, and never was."""
    method: str | None
    fitted_at: dt.datetime | None
    """Wall clock; like `method` and `data_to` of the newest fit that did not fail."""
    data_to: dt.datetime | None
    failed: str | None
    """Why the newest attempt failed, if it did."""
    sentence: str


def usable(fits: Iterable[Fit], config: Config, at: dt.datetime) -> list[Fit]:
    """The models that are fresh at `at`."""
    return [fit for fit in fits if fit.method is not None and is_fresh(fit, config, at)]


def outlooks(ledger: Ledger, config: Config, at: dt.datetime) -> list[Fit]:
    """The forecasts that a look at `at` goes by; none where no models are configured."""
    return usable(ledger.fits(at), config, at) if config.models.on else []


def is_fresh(fit: Fit, config: Config, at: dt.datetime) -> bool:
    """Whether it was fitted at most `models.stale` before `at`, by the time of its data, and knew nothing from after.

    A fit leaves the last RECENT bins to the sweeps, which judge it by them. It knows nothing of a level that has
    changed for good since then.
    """
    left = RECENT * bin_for(config.windows)
    in_time = dt.timedelta(0) <= at - fit.data_to <= config.models.stale + left
    return in_time and _shift_since(fit, config, at) is None


def _shift_since(fit: Fit, config: Config, at: dt.datetime) -> Shift | None:
    """The change of the monitor's level between the end of a fit's data and `at`, if there was one."""
    shifts = (s for s in config.calendar.shifts if s.scope.items() <= fit.scope.items())
    return next((shift for shift in shifts if fit.data_to <= shift.at < at), None)


def models(fits: Sequence[Fit], config: Config, at: dt.datetime) -> list[Model]:
    """What there is of each series, of the newest model and the newest failure as `Ledger.fits` gives them."""
    by_series: dict[str, list[Fit]] = {}
    for fit in fits:
        by_series.setdefault(fit.series, []).append(fit)
    return [_model(tried, config, at) for tried in by_series.values()]


def models_of(fits: Sequence[Fit], config: Config, at: dt.datetime, scope: dict[str, str]) -> list[Model]:
    """The same of one monitor; nothing where no models are configured."""
    return models([fit for fit in fits if fit.scope == scope], config, at) if config.models.on else []


def _model(tried: Sequence[Fit], config: Config, at: dt.datetime) -> Model:
    """`tried` in order: at most one model and one failure."""
    last = tried[-1]
    good = next((fit for fit in tried if fit.method is not None), None)
    failed = last.error
    found: State = "failed" if good is None else "fresh" if is_fresh(good, config, at) else "stale"
    return Model(
        scope=last.scope,
        measure=last.measure,
        state=found,
        method=good.method if good else None,
        fitted_at=good.fitted_at if good else None,
        data_to=good.data_to if good else None,
        failed=failed,
        sentence=_sentence(last, good, found, config, at),
    )


def _sentence(last: Fit, good: Fit | None, found: State, config: Config, at: dt.datetime) -> str:
    what = f"model of {last.measure}"
    failure = f"the fit of {last.fitted_at:%Y-%m-%d %H:%M} UTC failed ({last.error})"
    if good is None:
        return f"no {what}: {failure}; {ALONE}"
    data = f"on data from {good.data_from:%Y-%m-%d %H:%M} to {good.data_to:%Y-%m-%d %H:%M} UTC"
    told = f"{what}: {good.method}, fitted {good.fitted_at:%Y-%m-%d %H:%M} UTC {data}"
    if last.error is not None:
        told += f"; {failure}, the older one is used" if found == "fresh" else f"; {failure}"
    if found == "stale":
        shift = _shift_since(good, config, at)
        why = f"from before {shift.name}" if shift else f"stale after {show_duration(config.models.stale)}"
        told += f"; {why}; {ALONE}"
    return told
