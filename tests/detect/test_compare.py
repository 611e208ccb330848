"""Each rule of the comparison detector, as a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.detect import Compare
from kmon.errors import UsageError
from tests.detect.worlds import windows

STEADY = np.random.default_rng(5).poisson(100, (20, 17)).astype(float)
"""Seventeen windows of twenty monitors with about a hundred events each."""


def first(
    now: float, kind: str = "count", size: float = 1.0, own: dict[str, Any] | None = None, **params: float
) -> dict[str, Any]:
    """The score of a monitor that shows `now` among twenty that have always shown about 100."""
    current = [now, *STEADY[1:, 0]]
    given = windows(kind, current, STEADY[:, :6].tolist(), size, own=own, yesterday=STEADY[:, 6:].tolist())
    return Compare(**params).score(given).row(0, named=True)


@pytest.mark.parametrize(
    ("kind", "now", "params", "notable"),
    [
        ("count", 60, {}, False),  # -40 %: demand
        ("count", 40, {}, True),  # -60 %
        ("count", 47, {}, False),  # -53 %, but by chance alone it might be less than half
        ("count", 60, {"min_fall": 0.3}, True),
        ("count", 180, {}, False),  # not yet twice as much
        ("count", 230, {}, True),
        ("rate", 80, {}, False),  # 10 % to 8 %
        ("rate", 60, {}, True),
        ("rate", 60, {"min_effect": 0.5}, False),
        ("mean", 60, {}, True),
    ],
)
def test_the_effect_must_be_large_enough(kind: str, now: float, params: dict[str, float], notable: bool) -> None:
    assert first(now, kind, 1 if kind == "count" else 1000, **params)["notable"] is notable


@pytest.mark.parametrize(
    ("own", "notable"),
    [({}, True), ({"min_effect": 0.7}, False), ({"min_volume": 500.0}, False), ({"min_rise": 9.0}, True)],
)
def test_a_metric_has_thresholds_of_its_own(own: dict[str, float], notable: bool) -> None:
    assert first(40, own=own)["notable"] is notable


@pytest.mark.parametrize(
    ("kind", "level", "exposure", "judged"),
    [
        ("count", 30, 1, True),  # all gone, but enough was expected
        ("count", 10, 1, False),
        ("rate", 10, 40, True),
        ("rate", 10, 15, False),  # too few sessions in this window, however many there were
        ("rate", 10, 0, False),
    ],
)
def test_there_must_be_enough_to_judge(kind: str, level: float, exposure: float, judged: bool) -> None:
    references = np.random.default_rng(1).poisson(level, (20, 6)).tolist()
    given = windows(
        kind, [0.0] * 20, references, 1 if kind == "count" else 40, exposure=[exposure] * 20, yesterday=references
    )
    assert Compare().score(given)["judged"].all() == judged


def test_a_new_monitor_is_no_surge() -> None:
    now = windows(
        "count",
        [500.0, *[100.0] * 19],
        [[0.0] * 6, *STEADY[1:, :6].tolist()],
        yesterday=[[0.0] * 11, *STEADY[1:, 6:].tolist()],
    )
    scores = Compare().score(now)
    assert scores["judged"].to_list() == [False] + [True] * 19


@pytest.mark.parametrize(
    ("orders", "sessions", "notable"),
    [(30, 100, False), (30, 300, False), (12, 100, True), (28, 300, False), (12, 300, True)],
)
def test_more_sessions_with_as_many_orders_are_no_lost_orders(orders: float, sessions: float, notable: bool) -> None:
    """The rate must have fallen, and its numerator too: of a hundred sessions thirty used to buy."""
    bought = np.random.default_rng(3).binomial(100, 0.3, (20, 17)).astype(float)
    given = windows(
        "rate",
        [orders, *bought[1:, 0]],
        bought[:, :6].tolist(),
        100,
        exposure=[sessions, *[100] * 19],
        yesterday=bought[:, 6:].tolist(),
    )
    assert Compare().score(given)["notable"][0] is notable


@pytest.mark.parametrize(
    ("previous", "yesterday", "p_below", "p_above"),
    [
        (100, 100, 1e-6, 0),
        (100, 40, 1, 0.2),  # lower than an hour ago, as at this time every day
        (40, 100, 1, 0.2),  # lower than yesterday, as all of today
        (100, math.nan, 1e-6, 0),  # no yesterday: the hour must do
        (math.nan, 100, 1e-6, 0),
    ],
)
def test_all_references_must_agree(previous: float, yesterday: float, p_below: float, p_above: float) -> None:
    noise = STEADY / 100
    current = [40.0, *STEADY[1:, 0]]
    before, day = STEADY[:, :6].copy(), STEADY[:, 6:].copy()
    before[0], day[0] = noise[0, :6] * previous, noise[0, 6:] * yesterday
    p = Compare().score(windows("count", current, before.tolist(), yesterday=day.tolist()))["p_value"][0]
    assert p_above <= p <= p_below


def test_what_varies_much_on_other_days_may_vary_today() -> None:
    calm = np.random.default_rng(1).poisson(100, (20, 11)).astype(float)
    wild = np.random.default_rng(1).choice([20.0, 200.0], (20, 11))
    p = []
    for yesterday in (calm, wild):
        given = windows("count", [40.0] * 20, STEADY[:, :6].tolist(), yesterday=yesterday.tolist())
        p.append(Compare().score(given)["p_value"].median())
    assert p[0] < 1e-4
    assert p[1] > 0.05


def test_one_wild_monitor_borrows_calm_from_the_fleet() -> None:
    """With one reference window too few to tell its own dispersion, a monitor is judged by the others'."""
    previous = STEADY[:, :6].copy()
    previous[0, 1:] = np.nan
    scores = Compare().score(windows("count", [40.0, *STEADY[1:, 0]], previous.tolist()))
    assert scores["judged"][0]
    assert scores["p_value"][0] < 1e-3


@pytest.mark.parametrize("level", [0.4, 3, 30, 300])
@pytest.mark.parametrize("dispersed", [False, True])
def test_counts_are_not_flagged_too_often(level: float, dispersed: bool) -> None:
    """p-values under the null: at most a share alpha lies below alpha, up to the noise of 4,000 monitors."""
    rng = np.random.default_rng(11)
    mean = np.full((4000, 18), float(level)) * (rng.gamma(8, 1 / 8, (4000, 18)) if dispersed else 1)
    counts = rng.poisson(mean).astype(float)
    given = windows("count", counts[:, 0].tolist(), counts[:, 1:7].tolist(), yesterday=counts[:, 7:].tolist())
    _honest(Compare(min_volume=0).score(given), 4000)


@pytest.mark.parametrize("reference", ["previous", "yesterday"])
@pytest.mark.parametrize(("size", "share"), [(30, 0.5), (200, 0.02), (200, 0.97), (3000, 0.3)])
def test_rates_are_not_flagged_too_often(size: int, share: float, reference: str) -> None:
    """One reference alone, where no second one makes the test careful."""
    orders = np.random.default_rng(12).binomial(size, share, (4000, 12)).astype(float)
    known = (
        {"previous": orders[:, 1:].tolist()}
        if reference == "previous"
        else {"previous": np.full((4000, 1), np.nan).tolist(), "yesterday": orders[:, 1:].tolist()}
    )
    _honest(Compare().score(windows("rate", orders[:, 0].tolist(), known.pop("previous"), size, **known)), 4000)


def _honest(scores: pl.DataFrame, n: int) -> None:
    for alpha in (0.1, 0.01, 0.001):
        share = float((scores["p_value"] <= alpha).mean() or 0)
        assert share <= alpha + 4 * math.sqrt(alpha / n), f"{share} of the p-values are below {alpha}"


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_the_band_holds_normal_windows(kind: str) -> None:
    rng = np.random.default_rng(4)
    draws = (rng.poisson(50, (2000, 18)) if kind == "count" else rng.binomial(200, 0.3, (2000, 18))).astype(float)
    size = 1 if kind == "count" else 200
    scores = Compare().score(
        windows(kind, draws[:, 0].tolist(), draws[:, 1:7].tolist(), size, yesterday=draws[:, 7:].tolist())
    )
    assert scores.select((pl.col("observed").is_between("lower", "upper")).mean()).item() > 0.998


@pytest.mark.parametrize("params", [{"min_effect": "much"}, {"min_volume": -1}, {"coverage": 1.0}])
def test_a_wrong_parameter_is_named(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(params))):
        Compare(**params)


@pytest.mark.parametrize(("always", "now"), [(100.0, 0.0), (0.0, 60.0)])
def test_a_rate_that_never_moved_is_judged_when_it_does(always: float, now: float) -> None:
    """Every authorization was approved, or none had an error: the normal interval has a width all the same."""
    steady = [[always] * 6] * 20
    given = windows("rate", [now, *[always] * 19], steady, 100, yesterday=[[always] * 11] * 20)
    scores = Compare().score(given)
    assert scores["judged"].all()
    assert scores["notable"].to_list() == [True] + [False] * 19
    assert scores["p_value"][0] < 1e-9
    assert (scores["upper"] - scores["lower"]).min() > 0
