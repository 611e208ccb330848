"""Forecasts of one series of counts: candidates on statsmodels, the best of which on the last day is fitted again.

    past in steps of 5 minutes  ►  each candidate without the last day  ►  score  ►  the best one on all  ►  forecast

Nothing here knows the store or the ledger (`kmon.deepscan` does). A candidate that cannot be fitted is told with its
sentence and left out. Steps that are not known, such as those of a known incident, are NaN.
"""

from __future__ import annotations

import datetime as dt
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import statsmodels.tools.sm_exceptions  # noqa: F401  its import shows warnings always, also inside catch_warnings
from scipy.interpolate import PchipInterpolator

from kmon.detect.dispersion import overdispersion
from kmon.detect.expect import RECENT
from kmon.errors import FitError

Floats = npt.NDArray[np.float64]
STEP = dt.timedelta(minutes=5)
"""Of a past and of its forecast, whatever the bins of a sweep are: those are sums of parts of steps."""
A_DAY, AN_HOUR, HALF_AN_HOUR = 288, 12, 6
"""Steps."""
LEAST = 288.0
"""Events on an average day below which a model has nothing to learn from."""
MOST = 70 * A_DAY
"""Steps of history that are looked at: bounds the time of a fit."""
MEMORY = 14.0
"""Days after which a step tells half as much of what is usual."""
WILD = 5.0
"""A forecast of this many times the largest hour of the past is not believed."""
MISSED = 16.0
"""Deviance of a step counts up to this: an incident that nobody knew must not choose the model."""
_ITERATIONS = 50
_FIT: Mapping[str, Any] = {"maxiter": _ITERATIONS, "rtol": 1e-8}
"""Of regressions: by default what still changes is told by itself, which a large count never gets down to."""


@dataclass(frozen=True)
class Share:
    """The denominator of a rate whose numerator is forecast."""

    past: Floats
    """As long as the numerator's past."""
    tested: Floats
    """What was forecast for the last day without knowing it."""
    future: Floats


@dataclass(frozen=True)
class Task:
    """What a candidate is given."""

    past: Floats
    """Counts by STEP, NaN where they are not known."""
    start: dt.datetime
    """Of the first step."""
    horizon: int
    """Steps after the past that are wanted."""
    events: frozenset[dt.date] = frozenset()
    """Days unlike others: public holidays, days of an event."""
    share: Share | None = None
    until: float = float("inf")
    """By `time.monotonic`: when to give up."""

    def without_last_day(self) -> Task:
        """The same a day earlier, as the backtest needs it."""
        share = self.share and Share(self.share.past[:-A_DAY], self.share.tested, self.share.tested)
        return replace(self, past=self.past[:-A_DAY], horizon=A_DAY, share=share)

    def check_time(self, *_: object) -> None:
        """FitError where the time is up; optimisers call it after each iteration."""
        if time.monotonic() > self.until:
            message = "it took too long"
            raise FitError(message)


@dataclass(frozen=True)
class Forecast:
    """The best candidate's."""

    method: str
    values: Floats
    """Expected counts by STEP, from the end of the past on."""
    tested: Floats
    """What the same candidate forecast for the last day without knowing it."""
    score: float
    """Mean deviance of a step of the last day; less is better."""
    yesterday: float
    """The same of the day before the last one, taken as the forecast."""
    scores: Mapping[str, float]
    """Of all candidates that could be fitted."""
    failures: Mapping[str, str]
    """Of the others: why not."""


def forecast(
    past: Floats,
    start: dt.datetime,
    horizon: int,
    *,
    events: Collection[dt.date] = (),
    share: Share | None = None,
    limit: dt.timedelta = dt.timedelta(seconds=20),
    candidates: Mapping[str, Callable[[Task], Floats]] | None = None,
) -> Forecast:
    """What is expected of the `horizon` steps after `past`, by the candidate that told the last day best.

    FitError where the past is too short, too small or has too many gaps, or where no candidate can be fitted within
    `limit`. Its last day is the backtest: by the deviance of a negative binomial count, each forecast moved to the
    level of the two hours before, as a sweep moves it.
    """
    task = _prepared(Task(past, start, horizon, frozenset(events), share, time.monotonic() + limit.total_seconds()))
    last = task.past[-A_DAY:]
    smooth = np.convolve(np.pad(_filled(task.past)[-2 * A_DAY : -A_DAY], 2, mode="edge"), np.full(5, 0.2), "valid")
    noise = overdispersion((last - smooth) ** 2, np.maximum(smooth, 0.1) * 1.2, smooth**2, most=1.0)
    judge = _Judge(task.past, max(noise, 1e-4))
    scores, failures, tests = {}, {}, {}
    wanted = dict(candidates or CANDIDATES)
    if share is None:
        wanted.pop("binomial", None)
    for name, candidate in wanted.items():
        try:
            tests[name] = _tried(candidate, task.without_last_day())
            scores[name] = judge(tests[name])
        except FitError as error:
            failures[name] = str(error)
    for name in sorted(scores, key=scores.__getitem__):
        try:
            values = _tried(wanted[name], task)
        except FitError as error:
            failures[name] = str(error)
            continue
        return Forecast(name, values, tests[name], scores[name], judge(smooth), scores, failures)
    message = "no model could be fitted: " + "; ".join(f"{name}: {why}" for name, why in failures.items())
    raise FitError(message)


def at_bins(values: Floats, first: float, width: float, count: int) -> Floats:
    """A forecast by steps in `count` bins of `width` steps, the first beginning `first` steps after the forecast.

    Bins cut steps in proportion; NaN where a bin reaches out of the forecast.
    """
    edges = first + width * np.arange(count + 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    sums = np.interp(edges, np.arange(len(total)), total)
    inside = (edges[:-1] >= -1e-9) & (edges[1:] <= len(values) + 1e-9)
    return np.where(inside, np.diff(sums), np.nan)


@dataclass(frozen=True)
class _Judge:
    """Scores forecasts of the last day of a past."""

    past: Floats
    noise: float
    """Relative variance of a count beyond Poisson's."""

    def __call__(self, forecast: Floats) -> float:
        """Mean deviance of a negative binomial count around the forecast at the level of the RECENT steps before.

        A consistent score for expectations (Gneiting 2011), whatever `noise` is. The first RECENT steps set the level.
        """
        seen = self.past[-A_DAY:]
        known = np.isfinite(seen)
        total, told = (np.cumsum(np.where(known, part, 0.0)) for part in (seen, forecast))
        level = (total[RECENT - 1 : -1] - _before(total) + 1) / (told[RECENT - 1 : -1] - _before(told) + 1)
        mean, count = np.maximum(forecast[RECENT:] * level, 1e-3), seen[RECENT:]
        with np.errstate(all="ignore"):
            size = 1 / self.noise
            log = np.where(count > 0, count * np.log(count / mean), 0.0)
            deviance = 2 * (log - (count + size) * np.log((count + size) / (mean + size)))
        return float(np.mean(np.minimum(deviance, MISSED)[known[RECENT:]]))


def _before(total: Floats) -> Floats:
    """Of a cumulative sum, what it was RECENT steps before each step from the RECENT-th on."""
    return np.concatenate([[0.0], total[: -RECENT - 1]])


def _prepared(task: Task) -> Task:
    """The task with a bounded past; FitError where nothing can be learnt from it."""
    past = np.asarray(task.past, dtype=float)[-MOST:]
    skipped = len(task.past) - len(past)
    known = np.isfinite(past)
    first = int(np.argmax(known)) if known.any() else len(past)
    past, skipped = past[first:], skipped + first
    if len(past) < 2 * A_DAY:
        message = f"there are {len(past) / AN_HOUR:.0f} hours of history, a model needs 48"
        raise FitError(message)
    known = np.isfinite(past)
    if known.mean() < 0.5 or known[-A_DAY:].mean() < 0.25 or known[:-A_DAY].sum() < A_DAY / 2:
        message = f"{1 - known.mean():.0%} of the history is not known, or most of its last day"
        raise FitError(message)
    if (daily := float(np.nanmean(past)) * A_DAY) < LEAST:
        message = f"there are {daily:.0f} events a day, a model needs {LEAST:.0f}"
        raise FitError(message)
    share = task.share and replace(task.share, past=task.share.past[skipped:])
    return replace(task, past=past, start=task.start + skipped * STEP, share=share)


def _tried(candidate: Callable[[Task], Floats], task: Task) -> Floats:
    """A candidate's forecast; FitError, whatever goes wrong with it, and where the forecast cannot be believed."""
    task.check_time()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # statsmodels warns of what the backtest sees better
            values = np.asarray(candidate(task), dtype=float)
    except FitError:
        raise
    except Exception as error:  # an optimiser may fail in any way; it is told, and the others go on
        text = str(error).strip()
        message = f"{type(error).__name__}: {text.splitlines()[0] if text else 'without a reason'}"
        raise FitError(message) from error
    if values.shape != (task.horizon,) or not np.isfinite(values).all():
        message = "its forecast is not a number"
        raise FitError(message)
    values = np.maximum(values, 0.0)
    largest = np.nanmax(coarse(task.past, AN_HOUR))
    if len(values) >= AN_HOUR and np.max(np.convolve(values, np.ones(AN_HOUR), "valid")) > WILD * max(largest, 1.0):
        message = f"its forecast is more than {WILD:g} times all that ever was"
        raise FitError(message)
    return np.asarray(values)


# ---- the candidates --------------------------------------------------------------------------------------------------


def glm(task: Task) -> Floats:
    """A negative binomial regression on the time of day and of the week and on the days of `events`.

    Fourier terms, log link, older half hours weighing less; the dispersion by moments around a Poisson fit (Cameron and
    Trivedi 1990).
    """
    import statsmodels.api as sm

    counts = coarse(task.past, HALF_AN_HOUR)
    known = np.isfinite(counts)
    x, ahead = _terms(task, known)
    y, weights = counts[known], _ages(len(known))[known]
    poisson = sm.GLM(y, x, family=sm.families.Poisson(), var_weights=weights).fit(**_FIT)
    task.check_time()
    mean = poisson.mu
    alpha = overdispersion((y - mean) ** 2, mean, mean**2, most=2.0)
    family = sm.families.NegativeBinomial(alpha=max(alpha, 1e-6))
    fitted = sm.GLM(y, x, family=family, var_weights=weights).fit(start_params=poisson.params, **_FIT)
    return np.asarray(_converged(fitted).predict(ahead) / HALF_AN_HOUR)


def binomial(task: Task) -> Floats:
    """Of a rate's numerator: a logistic regression of its share on the same terms, times the denominator's forecast."""
    import statsmodels.api as sm

    if task.share is None:
        message = "it is not the numerator of a rate whose denominator was forecast"
        raise FitError(message)
    counts, trials = coarse(task.past, HALF_AN_HOUR), coarse(task.share.past, HALF_AN_HOUR)
    known = np.isfinite(counts) & np.isfinite(trials) & (trials > 0)
    x, ahead = _terms(task, known)
    hits, size = counts[known], np.maximum(trials[known], counts[known])  # an order may come after its session
    family, ages = sm.families.Binomial(), _ages(len(known))[known]
    fitted = sm.GLM(hits / size, x, family=family, var_weights=ages * size).fit(**_FIT)
    return np.asarray(_converged(fitted).predict(ahead) * task.share.future[: task.horizon])


def mstl(task: Task) -> Floats:
    """Seasonal-trend decomposition by loess for day and week (Bandara, Hyndman and Bergmeir 2021), by half hours.

    The last cycle of each season goes on around the level of the last day: log counts. The trend is not continued, as
    a sweep takes the level from today.
    """
    from statsmodels.tsa.seasonal import MSTL

    logs = _logs(task, HALF_AN_HOUR)
    a_day = A_DAY // HALF_AN_HOUR
    periods = [p for p in (a_day, 7 * a_day) if len(logs) > 2 * p]
    if not periods:
        message = "it needs more than two days"
        raise FitError(message)
    found = MSTL(logs, periods=periods).fit()
    seasons = np.asarray(found.seasonal).reshape(len(logs), -1)
    count = -(-task.horizon // HALF_AN_HOUR)
    level = float(np.mean((logs - seasons.sum(axis=1))[-a_day:]))
    ahead = np.sum([np.resize(seasons[-p:, i], count) for i, p in enumerate(periods)], axis=0)
    return _counts(task, HALF_AN_HOUR, logs, np.asarray(found.trend) + seasons.sum(axis=1), level + ahead)


def ets(task: Task) -> Floats:
    """Holt-Winters without trend, by hours: error, level and season (Hyndman, Koehler, Ord and Snyder 2008).

    The season is a week where there are three, else a day; log counts.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    logs = _logs(task, AN_HOUR)
    season = 168 if len(logs) >= 3 * 168 else 24
    if len(logs) < 2 * season:
        message = "it needs two days"
        raise FitError(message)
    model = ETSModel(logs, error="add", seasonal="add", seasonal_periods=season, initialization_method="heuristic")
    found = model.fit(disp=False, maxiter=_ITERATIONS, callback=task.check_time)
    ahead = found.forecast(-(-task.horizon // AN_HOUR))
    return _counts(task, AN_HOUR, logs, np.asarray(found.fittedvalues), np.asarray(ahead))


def components(task: Task) -> Floats:
    """Unobserved components by hours: a level that wanders, and trigonometric seasons of day and week (Harvey 1989).

    Log counts; a Kalman filter, so that gaps stay gaps.
    """
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    logs = _logs(task, AN_HOUR, filled=False)
    seasons = [{"period": 24, "harmonics": 8}]
    if len(logs) >= 2 * 168:
        seasons.append({"period": 168, "harmonics": 3})
    model = UnobservedComponents(
        logs, level="local level", freq_seasonal=seasons, stochastic_freq_seasonal=[False] * len(seasons)
    )
    found = model.fit(disp=False, maxiter=_ITERATIONS, callback=task.check_time)
    burnt = found.fittedvalues.copy()
    burnt[: max(24, len(burnt) // 2)] = np.nan  # the filter knows nothing at first, and for longer where there are gaps
    return _counts(task, AN_HOUR, logs, burnt, np.asarray(found.forecast(-(-task.horizon // AN_HOUR))))


CANDIDATES: Mapping[str, Callable[[Task], Floats]] = {
    "glm": glm,
    "binomial": binomial,
    "mstl": mstl,
    "ets": ets,
    "components": components,
}
"""In the order in which they are tried while there is time."""


# ---- what they share -------------------------------------------------------------------------------------------------


def coarse(past: Floats, join: int, *, least: float = 0.5) -> Floats:
    """Sums of `join` steps, the last ending with the past; those with gaps in proportion, NaN with too many gaps."""
    whole = past[len(past) % join :].reshape(-1, join)
    known = np.isfinite(whole).mean(axis=1)
    return np.where(known >= least, np.nansum(whole, axis=1) / np.maximum(known, 1e-9), np.nan)


def _filled(past: Floats) -> Floats:
    """Gaps filled with the median of the same step of the other days, or with the mean where no day has it."""
    days = -(-len(past) // A_DAY)
    table = np.full(days * A_DAY, np.nan)
    table[days * A_DAY - len(past) :] = past
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that no day has
        usual = np.nanmedian(table.reshape(days, A_DAY), axis=0)
    usual = np.where(np.isfinite(usual), usual, np.nanmean(past))
    return np.where(np.isfinite(past), past, np.tile(usual, days)[days * A_DAY - len(past) :])


def _logs(task: Task, join: int, *, filled: bool = True) -> Floats:
    """Logarithms of coarser counts, in which seasons add up."""
    return np.log1p(coarse(_filled(task.past) if filled else task.past, join))


def _counts(task: Task, join: int, logs: Floats, fitted: Floats, ahead: Floats) -> Floats:
    """Steps of a forecast of logarithms.

    The mean of exponentials is not the exponential of the mean: corrected by how far the fitted ones were off in all
    (smearing, Duan 1983). Steps by monotone interpolation of the sums (Fritsch and Carlson 1980), which keeps them.
    """
    known = np.isfinite(logs) & np.isfinite(fitted)
    seen, told = (np.maximum(np.expm1(part[known]), 0).sum() for part in (logs, fitted))
    smear = np.clip(seen / told, 0.5, 2.0) if told > 0 and known.sum() * join >= A_DAY else 1.0
    sums = np.maximum(np.expm1(ahead), 0.0) * smear
    total = PchipInterpolator(np.arange(len(sums) + 1) * join, np.concatenate([[0.0], np.cumsum(sums)]))
    return np.asarray(np.diff(total(np.arange(task.horizon + 1))), dtype=float)


def _ages(n: int) -> Floats:
    """Weights of half hours: the newest 1, half of it after each MEMORY."""
    return np.asarray(0.5 ** (np.arange(n - 1, -1, -1) * HALF_AN_HOUR / (MEMORY * A_DAY)))


def _terms(task: Task, known: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Regressors of the `known` half hours of the past, and of all steps that are wanted.

    As many as the length of the history allows, without what the known past has no example of: an event that has never
    been tells nothing. Half hours, as the terms are smooth: a sixth of the rows for the same forecast.
    """
    start = (task.start - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(days=1) + len(task.past) / A_DAY
    past = start - (np.arange(len(known), 0, -1) - 0.5) * HALF_AN_HOUR / A_DAY
    days = np.concatenate([past[known], start + (np.arange(task.horizon) + 0.5) / A_DAY])
    n, seen = len(days), int(known.sum())
    daily = [wave(2 * np.pi * k * days) for k in range(1, 11) for wave in (np.sin, np.cos)]
    columns = [np.ones(n), *daily]
    if len(task.past) >= 14 * A_DAY:
        columns += [wave(2 * np.pi * k * days / 7) for k in range(1, 4) for wave in (np.sin, np.cos)]
        weekend = ((np.floor(days).astype(int) + 3) % 7 >= 5).astype(float)  # 1970 began on a Thursday
        columns += [weekend, *(weekend * wave for wave in daily[:8])]
    if task.events:
        special = np.isin(np.floor(days).astype(int), [(d - dt.date(1970, 1, 1)).days for d in task.events])
        columns.append(special.astype(float))
    table = np.column_stack([column for column in columns if (column[:seen] != 0).any()])
    return table[:seen], table[seen:]


def _converged(fitted: Any) -> Any:
    if not fitted.converged:
        message = "it did not converge"
        raise FitError(message)
    return fitted
