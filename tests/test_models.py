"""Models on series of which the truth is known, and their forecasts as one more day."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from kmon.detect.expect import AFTER, RECENT, expect
from kmon.detect.models import A_DAY, CANDIDATES, Share, Task, at_bins, coarse, forecast
from kmon.errors import FitError

Floats = npt.NDArray[np.float64]
START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
"""A Monday."""


def usual(days: float, level: float = 40.0, weekend_shape: float = 0.0) -> Floats:
    """The truth: a daily shape, and weekends with less, of another shape where asked for."""
    t = np.arange(int(days * A_DAY)) / A_DAY
    weekend = (np.floor(t).astype(int) % 7 >= 5).astype(float)
    daily = 0.8 * np.sin(2 * np.pi * (t - 0.3)) + 0.3 * np.sin(4 * np.pi * t)
    return level * np.exp(daily * (1 - weekend_shape * weekend) - 0.3 * weekend)


def noisy(mean: Floats, seed: int = 1, size: float = 50.0) -> Floats:
    """Negative binomial counts."""
    return np.random.default_rng(seed).negative_binomial(size, size / (size + mean)).astype(float)


def deviance(seen: Floats, mean: Floats) -> float:
    """Poisson's."""
    mean = np.maximum(mean, 1e-3)
    return float(np.sum(np.where(seen > 0, seen * np.log(np.maximum(seen, 1) / mean), 0) - seen + mean))


@pytest.mark.parametrize(
    ("name", "days", "weekend_shape"),
    [
        *((name, days, 0.0) for name in CANDIDATES if name != "binomial" for days in (15, 24)),
        *((name, 26, 0.6) for name in ("glm", "mstl", "ets")),  # a Saturday after a Friday
    ],
)
def test_each_model_beats_yesterday(name: str, days: int, weekend_shape: float) -> None:
    truth = usual(days + 1, weekend_shape=weekend_shape)
    seen = noisy(truth)
    found = forecast(seen[: days * A_DAY], START, A_DAY, candidates={name: CANDIDATES[name]})
    assert found.method == name
    after = seen[days * A_DAY :]
    assert deviance(after, found.values) < deviance(after, seen[(days - 1) * A_DAY : days * A_DAY])
    assert found.values.sum() == pytest.approx(truth[days * A_DAY :].sum(), rel=0.2)
    assert len(found.tested) == A_DAY


def test_the_best_on_the_last_day_is_chosen() -> None:
    def good(task: Task) -> Floats:
        return usual(22)[len(task.past) :][: task.horizon]

    def flat(task: Task) -> Floats:
        return np.full(task.horizon, 40.0)

    found = forecast(noisy(usual(20)), START, A_DAY, candidates={"flat": flat, "good": good})
    assert found.method == "good"
    assert found.scores["good"] < found.yesterday < found.scores["flat"]
    assert (found.values == usual(21)[-A_DAY:]).all()


def test_a_share_of_a_denominator() -> None:
    """The numerator follows its denominator's forecast: their ratio is what the regression says."""
    sessions = noisy(usual(15), size=1e6)
    rate = 0.2 + 0.1 * np.sin(2 * np.pi * np.arange(len(sessions)) / A_DAY)
    orders = np.random.default_rng(2).binomial(sessions.astype(int), rate).astype(float)
    base = forecast(sessions[: 14 * A_DAY], START, A_DAY)
    share = Share(sessions[: 14 * A_DAY], base.tested, base.values)
    found = forecast(orders[: 14 * A_DAY], START, A_DAY, share=share, candidates={"binomial": CANDIDATES["binomial"]})
    assert found.values / base.values == pytest.approx(rate[14 * A_DAY :], rel=0.1)
    assert "binomial" in forecast(orders[: 14 * A_DAY], START, A_DAY, share=share).scores
    assert "binomial" not in forecast(orders[: 14 * A_DAY], START, A_DAY).scores


def test_events_are_days_unlike_others() -> None:
    mean = usual(21)
    holiday, coming = START.date() + dt.timedelta(days=9), START.date() + dt.timedelta(days=20)
    for day in (9, 20):
        mean[day * A_DAY : (day + 1) * A_DAY] *= 0.3
    glm = {"glm": CANDIDATES["glm"]}
    past, truth = noisy(mean[: 20 * A_DAY]), mean[20 * A_DAY :]
    knowing = forecast(past, START, A_DAY, events=[holiday, coming], candidates=glm).values
    assert knowing.sum() == pytest.approx(truth.sum(), rel=0.1)
    assert forecast(past, START, A_DAY, candidates=glm).values.sum() > 2 * truth.sum()
    only_coming = forecast(past, START, A_DAY, events=[coming], candidates=glm).values  # there was no such day yet
    assert only_coming.sum() > 2 * truth.sum()


@pytest.mark.parametrize(
    ("past", "says"),
    [
        (usual(1.5), "there are 36 hours of history, a model needs 48"),
        (np.full(20 * A_DAY, np.nan), "there are 0 hours of history"),
        (np.zeros(20 * A_DAY), "there are 0 events a day, a model needs 288"),
        (np.where(np.arange(20 * A_DAY) % 3, np.nan, 9.0), "67% of the history is not known"),
        (np.where(np.arange(20 * A_DAY) > 19.1 * A_DAY, np.nan, 9.0), "or most of its last day"),
    ],
)
def test_what_nothing_can_be_learnt_from(past: Floats, says: str) -> None:
    with pytest.raises(FitError, match=says):
        forecast(past, START, A_DAY)


def test_a_constant_stays() -> None:
    assert forecast(np.full(9 * A_DAY, 7.0), START, 400).values == pytest.approx(7.0, rel=0.02)


def test_gaps_and_a_late_beginning_are_no_zeros() -> None:
    truth = usual(15)
    seen = noisy(truth[: 14 * A_DAY])
    for first in range(0, 14 * A_DAY, 5 * A_DAY):  # six hours of known incidents now and then
        seen[first + 60 : first + 132] = np.nan
    seen[:30] = np.nan
    before = seen.copy()
    for name in CANDIDATES.keys() - {"binomial"}:
        values = forecast(seen, START, A_DAY, candidates={name: CANDIDATES[name]}).values
        assert values.sum() == pytest.approx(truth[14 * A_DAY :].sum(), rel=0.3), name  # a Sunday before
    np.testing.assert_array_equal(seen, before)


def raises(_: Task) -> Floats:
    message = "singular\nmatrix"
    raise np.linalg.LinAlgError(message)


def warns(task: Task) -> Floats:
    warnings.warn("it hardly converged", RuntimeWarning, stacklevel=1)
    return np.full(task.horizon, 30.0)


BAD: dict[str, tuple[Callable[[Task], Floats], str]] = {
    "raises": (raises, "LinAlgError: singular"),
    "not a number": (lambda t: np.full(t.horizon, np.nan), "its forecast is not a number"),
    "too short": (lambda t: np.ones(3), "its forecast is not a number"),
    "wild": (lambda t: np.full(t.horizon, 1e9), "its forecast is more than 5 times all that ever was"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_fails_is_told_and_another_is_taken(name: str) -> None:
    candidate, says = BAD[name]
    found = forecast(noisy(usual(9)), START, 400, candidates={name: candidate, "warns": warns})
    assert (found.method, found.failures) == ("warns", {name: says})
    with pytest.raises(FitError, match=f"no model could be fitted: {name}: {says}"):
        forecast(noisy(usual(9)), START, 400, candidates={name: candidate})


def test_one_that_fails_only_on_all_is_replaced_by_the_next() -> None:
    def fails_later(task: Task) -> Floats:
        if len(task.past) == 9 * A_DAY:
            return raises(task)
        return usual(9)[-A_DAY:]

    found = forecast(noisy(usual(9)), START, 400, candidates={"first": fails_later, "second": warns})
    assert (found.method, found.failures) == ("second", {"first": "LinAlgError: singular"})


def test_the_time_of_a_fit_is_limited() -> None:
    with pytest.raises(FitError, match="glm: it took too long"):
        forecast(noisy(usual(20)), START, 400, limit=dt.timedelta(0))


def test_steps_become_bins_of_any_width_and_place() -> None:
    values = np.arange(1.0, 11.0)
    assert at_bins(values, 0, 1, 10) == pytest.approx(values)
    assert at_bins(values, 1.5, 2, 2) == pytest.approx([0.5 * 2 + 3 + 0.5 * 4, 0.5 * 4 + 5 + 0.5 * 6])
    np.testing.assert_array_equal(np.isnan(at_bins(values, -1, 1, 12)), [True] + [False] * 10 + [True])


def test_coarser_steps_end_with_the_past() -> None:
    seen = np.array([9.0, 1, 2, 3, np.nan, 4, np.nan, np.nan, 1])
    np.testing.assert_array_equal(coarse(seen, 2), [3, 3 * 2, 4 * 2, 1 * 2])
    np.testing.assert_array_equal(coarse(seen, 4), [(1 + 2 + 3) / 0.75, (4 + 1) / 0.5])


# ---- as one more day -------------------------------------------------------------------------------------------------


def windows(day: Floats, model: Floats | None, kind: str = "count", sizes: float = 1.0) -> pl.DataFrame:
    """A window of a bin: today as `usual` is in the morning, one other day, and a model."""
    today = np.random.default_rng(3).poisson(_MORNING * 100, (5, RECENT + AFTER)).astype(float)
    recent = today[:, :RECENT].copy()
    recent[:, -1] = np.nan
    arrays = {"recent": recent, "day1": np.tile(day * 100, (5, 1))}
    if model is not None:
        arrays["model"] = np.tile(model * 100, (5, 1))
    columns: dict[str, object] = {"value": today[:, RECENT - 1], "exposure": np.full(5, sizes)}
    for name, values in arrays.items():
        columns[f"{name}_value"] = values
        columns[f"{name}_exposure"] = np.where(np.isfinite(values), sizes, np.nan)
    return pl.DataFrame(columns).with_columns(kind=pl.lit(kind), width=pl.lit(300.0), bin=pl.lit(300.0))


_MORNING = np.linspace(1.0, 3.0, RECENT + AFTER)
_EVENING = _MORNING[::-1].copy()


def test_the_weight_goes_to_whoever_tells_today() -> None:
    right, wrong = (expect(windows(_EVENING, _MORNING), "count"), expect(windows(_MORNING, _EVENING), "count"))
    assert right.names == wrong.names == ("day1", "model")
    assert right.weights[1].min() > 0.9
    assert wrong.weights[1].max() < 0.1
    truth = 100 * _MORNING[RECENT - 1]
    for found in (right, wrong):
        assert found.level == pytest.approx(truth, rel=0.1)
        assert found.weights.sum(axis=0) == pytest.approx(1)


def test_a_monitor_without_a_forecast_is_expected_as_ever() -> None:
    alone = expect(windows(_MORNING, None), "count")
    missing = expect(windows(_MORNING, np.full(RECENT + AFTER, np.nan)), "count")
    assert missing.weights[1] == pytest.approx(0)
    assert missing.level == pytest.approx(alone.level)
    assert missing.drift == pytest.approx(alone.drift)
    assert missing.noise == pytest.approx(alone.noise)


def test_a_forecast_is_no_proof_of_little_noise() -> None:
    """It is smooth, which says nothing of how restless the monitor is."""
    restless = _MORNING * np.exp(0.5 * np.random.default_rng(4).standard_normal(RECENT + AFTER))
    alone, modelled = (expect(windows(restless, model), "count") for model in (None, _MORNING))
    assert modelled.noise == pytest.approx(alone.noise, rel=0.25)


def test_without_days_a_model_is_enough() -> None:
    given = windows(_MORNING, _MORNING).with_columns(day1_value=pl.lit(None), day1_exposure=pl.lit(None))
    nothing = np.full((5, RECENT + AFTER), np.nan)
    given = given.with_columns(day1_value=nothing, day1_exposure=nothing)
    found = expect(given, "count")
    assert found.weights[1] == pytest.approx(1)
    assert found.level == pytest.approx(100 * _MORNING[RECENT - 1], rel=0.1)


def test_a_bad_forecast_of_a_rate_is_not_trusted() -> None:
    flat = np.full(RECENT + AFTER, 1.0)
    given = windows(flat, flat, "rate", 1000.0)
    steady = np.full((5, RECENT + AFTER), 100.0)
    recent = np.where(np.arange(RECENT) < RECENT - 1, steady[:, :RECENT], np.nan)
    given = given.with_columns(value=pl.Series(np.full(5, 100.0)), recent_value=recent, day1_value=steady)
    good = expect(given.with_columns(model_value=steady), "rate")
    bad = expect(given.with_columns(model_value=3 * steady), "rate")
    assert good.weights[1] == pytest.approx(0.5, abs=0.05)
    assert bad.weights[1].max() < 0.05
    assert bad.level == pytest.approx(0.1, rel=0.02)


def test_a_mean_has_no_use_for_a_model() -> None:
    assert expect(windows(_MORNING, _MORNING, "mean", 100.0), "mean").names == ("day1",)
