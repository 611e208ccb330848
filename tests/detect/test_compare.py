"""Each rule of the comparison detector, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.detect import Compare
from kmon.errors import UsageError
from tests.detect.worlds import change, fleet, windows

HUNDRED = fleet(100.0)
"""Twenty monitors with about a hundred events in each bin, today and yesterday."""


def scores(given: pl.DataFrame, **params: float) -> dict[str, Any]:
    """What is said of the first monitor."""
    return Compare(**params).score(given).row(0, named=True)


def shares(kind: str, value: float, size: float = 1000, share: float = 0.1, **changes: Any) -> pl.DataFrame:
    """Twenty monitors that have this share of `size`, the first one `value` now."""
    rng = np.random.default_rng(6)
    recent, day = (rng.binomial(int(size), share, (20, n)) for n in (24, 30))
    now = [value, *rng.binomial(int(size), share, 19)]
    return change(windows(kind, now, recent, size, day1=day), 0, **changes)


@pytest.mark.parametrize(
    ("kind", "now", "params", "notable"),
    [
        ("count", 66, {}, False),  # -32 %: demand
        ("count", 38, {}, True),  # -60 %
        ("count", 58, {}, False),  # -40 %, but by chance alone it might be a third
        ("count", 66, {"min_fall": 0.2}, True),
        ("count", 180, {}, False),  # not yet twice as much
        ("count", 230, {}, True),
        ("rate", 80, {}, False),  # 10 % to 8 %
        ("rate", 60, {}, True),
        ("rate", 60, {"min_effect": 0.5}, False),
        ("mean", 60, {}, True),
    ],
)
def test_the_effect_must_be_large_enough(kind: str, now: float, params: dict[str, float], notable: bool) -> None:
    given = change(HUNDRED, 0, value=now) if kind == "count" else shares(kind, now)
    assert scores(given, **params)["notable"] is notable


@pytest.mark.parametrize(
    ("before", "now", "notable"),
    [
        (10, 100, False),  # as yesterday: what was low is over
        (10, 170, False),  # not yet twice as much as yesterday
        (10, 240, True),
        (70, 180, True),  # it was not low enough for its end to be told
    ],
)
def test_the_end_of_a_fall_is_no_surge(before: float, now: float, notable: bool) -> None:
    """A hundred yesterday, and fewer today until now, of which nobody was told."""
    recent = np.where(np.isfinite(HUNDRED["recent_value"].to_numpy()[0]), before, np.nan)
    found = scores(change(HUNDRED, 0, value=now, recent_value=recent))
    assert found["p_value"] < 1e-4
    assert found["direction"] == "up"
    assert found["notable"] is notable


@pytest.mark.parametrize(
    ("own", "notable"),
    [({}, True), ({"min_effect": 0.7}, False), ({"min_volume": 500.0}, False), ({"min_rise": 9.0}, True)],
)
def test_a_metric_has_thresholds_of_its_own(own: dict[str, float], notable: bool) -> None:
    given = change(HUNDRED, 0, value=38).with_columns(**{key: pl.lit(value) for key, value in own.items()})
    assert scores(given)["notable"] is notable


@pytest.mark.parametrize(
    ("level", "value", "judged"),
    [(30, 0, True), (5, 0, False), (5, 40, True), (0, 40, False)],  # what was never there is new, and no surge
)
def test_a_count_is_judged_where_enough_is_expected_or_seen(level: float, value: float, judged: bool) -> None:
    given = change(fleet(np.array([level, *[100.0] * 19])), 0, value=value)
    assert scores(given)["judged"] is judged


@pytest.mark.parametrize(("exposure", "judged"), [(40, True), (15, True), (9, False), (0, False)])
def test_a_rate_is_judged_where_its_window_has_enough(exposure: float, judged: bool) -> None:
    """Too few sessions in this window, however many there were."""
    assert scores(shares("rate", 0, 40, 0.25, exposure=exposure, lagged_exposure=exposure))["judged"] is judged


@pytest.mark.parametrize(
    ("orders", "sessions", "notable"),
    [(30, 100, False), (30, 300, False), (12, 100, True), (28, 300, False), (12, 300, True)],
)
def test_more_sessions_with_as_many_orders_are_no_lost_orders(orders: float, sessions: float, notable: bool) -> None:
    """The rate must have fallen, and its numerator too: of a hundred sessions thirty used to buy."""
    given = shares("rate", orders, 100, 0.3, exposure=sessions, lagged_exposure=sessions)
    assert scores(given)["notable"] is notable


@pytest.mark.parametrize(
    ("orders", "sessions", "earlier", "abnormal"),
    [
        (100, 500, 500, False),
        (100, 1000, 500, False),  # they have just come: their orders come later
        (200, 500, 1000, False),  # they have just gone, and still buy
        (100, 1000, 1000, True),
        (40, 1000, 500, True),
    ],
)
def test_an_order_comes_after_its_session(orders: float, sessions: float, earlier: float, abnormal: bool) -> None:
    """A rate may rest on the sessions of this window or of the one a little earlier, whichever explains it."""
    given = shares("rate", orders, 1000, 0.2, exposure=sessions, lagged_exposure=earlier)
    assert (scores(given)["p_value"] < 1e-3) is abnormal


@pytest.mark.parametrize(("tolerance", "abnormal"), [(0.0, True), (0.05, True), (0.4, False)])
def test_what_is_near_enough_is_normal_however_certain(tolerance: float, abnormal: bool) -> None:
    given = change(fleet(1e6), 0, value=7e5)
    assert (scores(given, tolerance=tolerance)["p_value"] < 1e-3) is abnormal


def test_what_varies_much_on_its_own_may_vary_now() -> None:
    """A monitor's noise counts, not only the fleet's."""
    wild = np.where(np.arange(54) % 3, 150.0, 20.0)
    wild[23] = np.nan  # it is a part of the window
    calm = change(HUNDRED, 0, value=38)
    assert scores(calm)["p_value"] < 1e-4
    assert scores(change(calm, 0, recent_value=wild[:24], day1_value=wild[24:]))["p_value"] > 0.05


def test_one_monitor_that_is_hardly_known_borrows_calm_from_the_fleet() -> None:
    few = np.where(np.arange(24) < 17, np.nan, 100.0)
    few[-1] = np.nan
    found = scores(change(HUNDRED, 0, value=20, recent_value=few))
    assert found["judged"]
    assert found["p_value"] < 1e-3


@pytest.mark.parametrize(("orders", "least", "most"), [(32, 1e-6, 1e-2), (24, 1e-4, 1e-1)])
def test_as_many_orders_as_sessions_may_be_those_of_sessions_before(orders: int, least: float, most: float) -> None:
    """Of 32 sessions 12 would buy: of its binomial there cannot be 32, of orders that come by themselves there can."""
    assert least < scores(shares("rate", orders, 32, 0.39))["p_value"] < most


def test_a_rate_that_rises_from_little_is_as_certain_as_ever() -> None:
    """Errors: of a thousand events usually ten."""
    assert scores(shares("rate", 100, 1000, 0.01))["p_value"] < 1e-40


@pytest.mark.parametrize("kind", ["count", "rate", "mean"])
def test_the_band_holds_normal_windows(kind: str) -> None:
    rng = np.random.default_rng(4)
    now, recent, day = (
        rng.poisson(50, (2000, n)) if kind == "count" else rng.binomial(200, 0.3, (2000, n)) for n in (1, 24, 30)
    )
    found = Compare().score(windows(kind, now[:, 0], recent, 200, day1=day))
    inside = found["observed"].is_between(found["lower"], found["upper"])
    assert inside.mean() >= 0.998
    assert (found["upper"] - found["lower"]).median() < 1.5 * found["expected"].median()


@pytest.mark.parametrize(
    "params",
    [{"min_effect": "much"}, {"min_volume": -1}, {"coverage": 1.0}, {"tolerance": 1}, {"min_rise": float("nan")}],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(params))):
        Compare(**params)


@pytest.mark.parametrize(("always", "now"), [(100.0, 0.0), (0.0, 60.0)])
def test_a_rate_that_never_moved_is_judged_when_it_does(always: float, now: float) -> None:
    """Every authorization was approved, or none had an error: the normal interval has a width all the same."""
    given = windows("rate", [now, *[always] * 19], always, 100, day1=always)
    found = Compare().score(given)
    assert found["judged"].all()
    assert found["notable"].to_list() == [True] + [False] * 19
    assert found["p_value"][0] < 1e-9
    assert (found["upper"] - found["lower"]).min() > 0


def test_a_mean_that_fell_is_told_by_the_variance_of_its_events() -> None:
    calm, wild = np.random.default_rng(2).normal(5000, [[30], [900]], (2, 2, 54)).swapaxes(0, 1)
    p = []
    for values in (calm, wild):
        given = windows("mean", [4400.0, 5000.0], values[:, :24], 100, day1=values[:, 24:])
        p.append(scores(given)["p_value"])
    assert p[0] < 1e-6
    assert p[1] > 0.05
