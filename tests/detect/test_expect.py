"""What is expected of a window, rule by rule, and that normal windows are as rare as their p-values say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kmon.detect import Compare
from kmon.detect.expect import AFTER, RECENT, Expectation, expect
from kmon.detect.sweeps import _cutoff
from tests.detect.worlds import change, fleet, windows

BINS = RECENT + AFTER
RISING = np.linspace(40, 160, BINS)
"""A day's shape: in the bin of the window, the last of RECENT, about 135."""
GONE = np.full(BINS, np.nan)


def expected(frame: pl.DataFrame, row: int = 0) -> Expectation:
    """Of one monitor."""
    all_of_them = expect(frame, frame["kind"][0])
    parts = vars(all_of_them).values()
    return Expectation(*(part[..., row] if isinstance(part, np.ndarray) else part for part in parts))


def shaped(today: float, *days: npt.ArrayLike, **options: Any) -> pl.DataFrame:
    """Twenty monitors without noise; today is so many times RISING."""
    recent = np.tile(today * RISING[:RECENT], (20, 1))
    known = {f"day{n + 1}": np.tile(day, (20, 1)) for n, day in enumerate(days)}
    return windows("count", np.full(20, 100.0), recent, **options, **known)


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("today", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("width", "minutes"), [(60.0, 1), (300.0, 5), (1800.0, 30)])
def test_today_has_its_level_and_the_other_days_have_the_shape(today: float, width: float, minutes: int) -> None:
    """The whole fleet moved, as on a holiday: the window is to RISING as the hours before it were."""
    ends = RECENT * 5 - np.arange(minutes)  # the window's minutes
    usual = np.interp(ends / 5 - 0.5, np.arange(BINS), RISING).sum() / 5
    assert expected(shaped(today, RISING, width=width)).level == pytest.approx(today * usual, rel=0.06)


@pytest.mark.parametrize(("moved", "rel"), [(0.5, 0.1), (1.0, 0.05), (3.0, 0.1)])
def test_a_monitor_that_moved_alone_is_taken_at_its_own_level(moved: float, rel: float) -> None:
    """A partner's holiday: its own hours before count more than what it had on other days."""
    given = fleet(200.0)
    given = change(given, 0, recent_value=given["recent_value"].to_numpy()[0] * moved)
    assert expected(given).level == pytest.approx(200 * moved, rel=rel)


@pytest.mark.parametrize(("mood", "low", "high"), [(1.0, 0.42, 0.5), (2.5, 0.2, 0.38)])
def test_other_days_count_as_much_as_the_fleets_levels_agree(mood: float, low: float, high: float) -> None:
    """Half as many as usual of a few events: chance in a steady fleet, a level of its own in a moody one."""
    rng = np.random.default_rng(2)
    moods = np.where(rng.random(300) < 0.5, mood, 1 / mood)[:, None]
    today, day = rng.poisson(3 * moods, (300, RECENT)), rng.poisson(3, (300, BINS))
    given = windows("count", np.full(300, 3.0), today, day1=day)
    half = np.where(np.arange(RECENT) < RECENT - 1, 0.25, np.nan)
    assert low <= expected(change(given, 0, recent_value=half, day1_value=0.5)).level <= high


@pytest.mark.parametrize(
    ("days", "level"),
    [
        ([RISING], 136),
        ([RISING, GONE], 136),  # a day that is not known says nothing
        ([GONE], 99),  # nor does an only one: today's level goes on, without a shape
        ([], 99),
        ([np.where(np.arange(BINS) < 20, RISING, np.nan)], 99),  # it is not known around this time of day
    ],
)
def test_days_that_are_not_known_are_not_used(days: list[npt.ArrayLike], level: float) -> None:
    found = expected(shaped(1.0, *days))
    assert found.known
    assert found.level == pytest.approx(level, rel=0.05)
    assert np.isfinite([found.noise, found.drift, found.volume]).all()


@pytest.mark.parametrize("width", [60.0, 300.0, 900.0])
def test_a_day_that_is_known_in_part_adds_no_noise(width: float) -> None:
    """History began in the middle of that day, or an incident lay in it."""
    given = history(30.0, 0.0, 0.3, 2, width=width, monitors=300)
    began, hidden = np.arange(BINS) < RECENT - 7, np.isin(np.arange(BINS), range(5, 15))
    alone = expect(given.drop("day2_value", "day2_exposure"), "count")
    for gone in (began, hidden):
        day = np.where(gone, np.nan, given["day2_value"].to_numpy())
        part = expect(given.with_columns(day2_value=pl.Series(day, dtype=given["day2_value"].dtype)), "count")
        assert np.median(part.noise) < 1.1 * np.median(alone.noise)
        assert np.median(part.drift) < 1.7 * np.median(alone.drift)


def test_bins_that_are_masked_are_not_used() -> None:
    """An outage of today's last hour, and yesterday's of the hour around this time, would tell another story."""
    clean = shaped(1.0, RISING, RISING)
    ill = np.arange(RECENT) >= 12
    late = np.arange(BINS) >= 18
    masked, dead = (
        change(clean, 0, recent_value=np.where(ill, no, RISING[:RECENT]), day1_value=np.where(late, no, RISING))
        for no in (np.nan, 0.0)
    )
    assert expected(masked).level == pytest.approx(expected(clean).level, rel=0.03)
    assert expected(dead).level < 0.6 * expected(clean).level


@pytest.mark.parametrize(("today", "level"), [(RISING, 135), (RISING[::-1], 63)])
def test_the_day_that_tells_today_best_weighs_most(today: npt.NDArray[np.float64], level: float) -> None:
    """Sundays have another shape: of a weekday and a Sunday the one that today looks like is believed."""
    days = {"day1": np.tile(RISING, (20, 1)), "day7": np.tile(RISING[::-1], (20, 1))}
    given = windows("count", np.full(20, 100.0), np.tile(today[:RECENT], (20, 1)), **days)
    assert expected(given).level == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize(
    ("recent", "day", "known"),
    [
        (0, np.nan, False),
        (5, np.nan, False),  # of 24 bins
        (6, np.nan, True),
        (0, 100.0, False),  # other days alone would take a holiday for an outage
        (3, 100.0, True),
    ],
)
def test_what_is_hardly_known_is_not_judged(recent: int, day: float, known: bool) -> None:
    before = np.where(np.arange(RECENT) < RECENT - 1 - recent, np.nan, 100.0)
    given = windows("count", np.full(20, 100.0), np.tile(before, (20, 1)), day1=day)
    assert expected(given).known == known


def test_without_another_day_a_count_may_move_more() -> None:
    alone, known = (expected(fleet(1000.0, days=days)) for days in (0, 3))
    assert alone.drift > 3 * known.drift


def test_a_level_of_hours_ago_says_less_of_now_than_one_of_minutes_ago() -> None:
    minutes = fleet(1000.0, days=3)
    hours = minutes.with_columns(width=pl.lit(3600.0), bin=pl.lit(3600.0))
    assert expected(hours).drift > 1.5 * expected(minutes).drift


def test_a_past_outage_that_nobody_marked_hides_no_new_one() -> None:
    """Half an hour of yesterday is not taken for noise."""
    given = change(fleet(200.0), 0, value=20)
    ill = change(given, 0, day1_value=given["day1_value"].to_numpy()[0] * (np.arange(BINS) >= 6))
    assert expected(ill).level == pytest.approx(200, rel=0.1)
    assert Compare().score(ill)["p_value"][0] < 1e-6


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_a_fall_that_goes_on_does_not_hide_itself(kind: str) -> None:
    """Of ten minutes: what has fallen is no noise of the monitor that fell."""
    rng = np.random.default_rng(9)
    size = 2000.0 if kind == "rate" else 1.0
    recent, day = (
        rng.binomial(2000, 0.4, (20, n)) if kind == "rate" else rng.poisson(800, (20, n)) for n in (RECENT, BINS)
    )
    given = windows(kind, np.full(20, 800.0), recent, size, day1=day)
    fallen = np.where(np.arange(RECENT) >= RECENT - 3, 0.55, 1) * recent[0]
    before, after = (expected(one) for one in (given, change(given, 0, value=440, recent_value=fallen)))
    assert after.noise < 1.5 * before.noise
    assert Compare().score(change(given, 0, value=440, recent_value=fallen))["p_value"][0] < 1e-8


@pytest.mark.parametrize(("wander", "low", "high"), [(0.0, 0.0, 0.003), (0.3, 0.015, 0.1)])
def test_a_level_is_trusted_as_far_as_levels_of_the_fleet_have_stayed(wander: float, low: float, high: float) -> None:
    rng = np.random.default_rng(4)
    walk = np.exp(np.cumsum(rng.normal(0, wander / 5, (300, BINS)), axis=1))
    given = windows("count", np.full(300, 5e3), rng.poisson(5e3 * walk[:, :RECENT]), day1=rng.poisson(5e3, (300, BINS)))
    assert low < np.median(expect(given, "count").drift) < high


# ---- events that come at once ----------------------------------------------------------------------------------------

ONCE = np.arange(BINS) % 12 == 3
"""A bin of each hour."""


def sender(batch: float, now: float, width: float = 300.0) -> pl.DataFrame:
    """Twenty monitors with half an event a bin, of which the first one sends `batch` events every hour instead."""
    given = fleet(0.5, width=width)
    return change(given, 0, value=now, recent_value=ONCE[:RECENT] * batch, day1_value=ONCE * batch)


@pytest.mark.parametrize(
    ("width", "now", "low"),
    [
        (60.0, 30, 1e-4),  # at a minute of the hour at which it has sent nothing before
        (3600.0, 0, 0.02),
        (3600.0, 90, 1e-3),
    ],
)
def test_a_batch_is_one_event(width: float, now: float, low: float) -> None:
    given = sender(30, now, width)
    scored = Compare(min_volume=1).score(given)
    assert expect(given, "count").unit == pytest.approx([30, *[1] * 19], abs=0.5)
    assert scored["p_value"][0] > low
    assert Compare().score(change(fleet(0.5, width=60.0), 0, value=30))["p_value"][0] < 1e-12


def test_orders_that_come_at_once_are_one_order() -> None:
    """Sessions come one by one, the orders of an hour in one bin: none in three quarters of an hour says nothing."""
    orders, size = ONCE * 24.0, np.full(20, 27.0)
    steady = windows("rate", np.full(20, 18.0), np.full((20, RECENT), 2.0), 3.0, width=2700.0, exposure=size, day1=2.0)
    given = change(steady, 0, value=0, recent_value=orders[:RECENT], day1_value=orders)
    assert expect(given, "rate").unit == pytest.approx([18, *[1] * 19], abs=4)
    assert Compare().score(given)["p_value"][0] > 0.01
    together = change(given, 0, recent_exposure=orders[:RECENT] * 1.5, day1_exposure=orders * 1.5)
    assert expect(together, "rate").unit == pytest.approx(np.ones(20))  # each has its session


@pytest.mark.parametrize("level", [0.05, 0.3, 1, 3, 30])
@pytest.mark.parametrize("there", [np.ones(BINS), ~np.isin(np.arange(BINS), range(9, 14)), np.arange(BINS) > 12])
def test_single_events_are_no_batches(level: float, there: npt.NDArray[np.float64]) -> None:
    """By chance where the level wanders, at the edges of an outage, and where the shop opens."""
    rng = np.random.default_rng(7)
    mean = level * rng.lognormal(0, 0.2, (3000, 2 * BINS)) * np.tile(there, 2)
    today, day = rng.poisson(mean[:, :RECENT]), rng.poisson(mean[:, BINS:])
    unit = expect(windows("count", np.full(3000, level), today, day1=day), "count").unit
    assert np.mean(unit > 1.5 * np.median(unit)) < 0.02


# ---- events that are sums --------------------------------------------------------------------------------------------


def sums(
    level: float,
    vary: float,
    days: int,
    width: float = 300.0,
    price: float = 40.0,
    *,
    long: bool = False,
    seed: int = 1,
) -> pl.DataFrame:
    """3,000 monitors with nothing wrong: in each bin `level` events of amounts around `price`, gamma or lognormal.

    `vary` is the relative variance of an amount; `long` makes it lognormal.
    """
    rng = np.random.default_rng(seed)
    shape = np.exp(0.6 * np.sin(np.arange(BINS) / BINS * np.pi))

    def draw() -> npt.NDArray[np.float64]:
        count = rng.poisson(level * rng.lognormal(0, 0.1, (3000, 1)) * shape)
        if not long:
            return price * rng.gamma(count / vary, vary) if vary else price * count.astype(float)
        sigma = math.sqrt(math.log(1 + vary))
        total = np.zeros(count.size)
        amounts = rng.lognormal(-(sigma**2) / 2, sigma, count.sum())
        np.add.at(total, np.repeat(np.arange(count.size), count.ravel()), amounts)
        return price * total.reshape(count.shape)

    today, known = draw(), {f"day{n + 1}": draw() for n in range(days)}
    now = today[:, RECENT - int(width // 300) : RECENT].sum(axis=1)
    return windows("count", now, today[:, :RECENT], width=width, **known)


@pytest.mark.parametrize(("vary", "unit"), [(0.0, 40), (0.25, 50), (1.0, 80)])
@pytest.mark.parametrize("level", [3, 30])
def test_what_an_event_adds_is_found(level: float, vary: float, unit: float) -> None:
    """The mean of its squared amount over the mean amount."""
    assert expect(sums(level, vary, 1), "count").unit == pytest.approx(unit, rel=0.15)


@pytest.mark.parametrize("level", [0.2, 3.0, 300.0])
def test_an_event_of_a_poisson_count_adds_one(level: float) -> None:
    assert expect(fleet(level, monitors=500), "count").unit == pytest.approx(1.0, abs=0.05)


def test_what_is_expected_depends_on_no_currency() -> None:
    pounds, pence = (Compare(min_volume=0).score(sums(3.0, 1.0, 2, price=price)) for price in (40.0, 4000.0))
    assert pounds["evidence"].to_list() == pytest.approx(pence["evidence"].to_list())
    assert (100 * pounds["expected"]).to_list() == pytest.approx(pence["expected"].to_list())
    assert pounds["p_value"].to_list() == pytest.approx(pence["p_value"].to_list(), rel=0.05, abs=1e-3)


def test_evidence_counts_events_not_pounds() -> None:
    """Twice as many orders of 40 pounds tell about what twice as many orders tell."""
    orders, pounds = (
        Compare().score(change(sums(30.0, 0.0, 2, price=price), 0, value=60 * price))["evidence"][0]
        for price in (1.0, 40.0)
    )
    assert pounds == pytest.approx(orders, rel=0.1)


def test_no_order_where_three_are_usual_is_chance() -> None:
    """However certain it were of 120 pounds that come one by one."""
    p = Compare(min_volume=0).score(change(sums(3.0, 0.25, 2), 0, value=0.0))["p_value"][0]
    assert 0.005 < p < 0.2


def test_where_something_was_seen_once_an_event_is_expected_again() -> None:
    """At this time of day nobody bought anything on the other day: that is no expectation of nothing."""
    given = sums(3.0, 0.25, 1)
    closed = given["day1_value"].to_numpy()[0] * (np.abs(np.arange(BINS) - RECENT) > 3)
    found = expected(change(given, 0, day1_value=closed))
    assert 2 < found.level < 60
    assert Compare(min_volume=0).score(change(given, 0, day1_value=closed, value=90.0))["p_value"][0] > 0.01


def test_more_paid_back_than_paid_is_nothing() -> None:
    given = change(sums(3.0, 0.25, 1), 0, day1_value=-5000.0)
    assert expected(given).level >= 0


def test_days_with_few_events_weigh_alike() -> None:
    """Which of them today is like by chance says nothing; with many events it does."""
    assert expect(sums(0.4, 1.0, 3), "count").weights.max(axis=0).mean() < 0.45
    assert expect(shaped(1.0, RISING, RISING[::-1]), "count").weights[0].min() > 0.9


def lots(share: float, size: int, days: int, seed: int = 1) -> pl.DataFrame:
    """3,000 monitors that sell 200 lines a bin, of which a share is cancelled, `size` lines of an invoice at a time."""
    rng = np.random.default_rng(seed)

    def draw(bins: int) -> npt.NDArray[np.float64]:
        return size * rng.binomial(200 // size, share, (3000, bins)).astype(float)

    return windows("rate", draw(1)[:, 0], draw(RECENT), 200, **{f"day{n + 1}": draw(BINS) for n in range(days)})


def test_lines_of_one_invoice_are_one_event_of_a_rate() -> None:
    found = expect(lots(0.05, 10, 2), "rate")
    assert found.unit == pytest.approx(10, rel=0.2)
    assert expect(lots(0.05, 1, 2), "rate").unit == pytest.approx(1, abs=0.2)


# ---- rates and means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recent", "days", "level"), [
    (0.3, 0.3, 0.3), (0.3, np.nan, 0.3), (np.nan, 0.3, 0.3),
    (0.2, 0.3, 0.2),  # it moved alone: today is believed
])  # fmt: skip
@pytest.mark.parametrize("kind", ["rate", "mean"])
def test_a_rate_pools_today_and_the_other_days(kind: str, recent: float, days: float, level: float) -> None:
    rng = np.random.default_rng(4)
    before, day = (rng.binomial(1000, 0.3, (30, n)) for n in (RECENT, BINS))
    given = windows(kind, np.full(30, 300.0), before, 1000, day1=day)
    given = change(given, 0, recent_value=1000 * recent, day1_value=1000 * days)
    assert expected(given).level == pytest.approx(level, rel=0.12)


def rates(size: int, today: npt.ArrayLike, now: float, width: float = 300.0, **days: npt.ArrayLike) -> pl.DataFrame:
    """A hundred monitors with `size` trials a bin, of which these shares are hits: of each bin, or of all."""
    rng = np.random.default_rng(8)
    before = rng.binomial(size, np.broadcast_to(today, BINS)[:RECENT], (100, RECENT))
    known = {name: rng.binomial(size, np.broadcast_to(share, BINS), (100, BINS)) for name, share in days.items()}
    trials = int(size * width / 300)
    exposure = np.full(100, float(trials))
    return windows("rate", rng.binomial(trials, now, 100), before, size, width=width, exposure=exposure, **known)


EVENING = np.linspace(0.2, 0.4, BINS)
"""A rate that rises with the hours; 0.36 in the window."""


@pytest.mark.parametrize(("size", "rel"), [(300, 0.05), (20, 0.1)])
def test_a_rate_has_the_shape_of_the_other_days(size: int, rel: float) -> None:
    given = rates(size, EVENING, 0.36, day1=EVENING, day7=EVENING)
    assert expect(given, "rate").level.mean() == pytest.approx(0.36, rel=rel)
    assert Compare().score(given)["p_value"].min() > 1e-5


def test_a_rate_that_does_not_rise_as_it_does_every_day_has_fallen() -> None:
    step = np.where(np.arange(BINS) < RECENT - 2, 0.2, 0.4)
    assert Compare().score(rates(2000, step, 0.2, day1=step, day7=step))["p_value"].max() < 1e-4


@pytest.mark.parametrize(("size", "width"), [(300, 300.0), (3, 300.0), (300, 3600.0), (30, 3600.0)])
def test_a_rate_without_a_shape_gets_none(size: int, width: float) -> None:
    given = rates(size, 0.2, 0.2, width, day1=0.2)
    found = expect(given, "rate")
    assert found.level.mean() == pytest.approx(0.2, rel=0.03)
    assert np.median(found.drift) < 1.8 * (1 / (54 * size) + 1e-4)  # what all of their bins tell, and LIKELY


def test_a_rate_of_more_orders_than_sessions_is_the_least_sure() -> None:
    """Orders come in bunches of three hours' sessions: with none of eleven nothing is wrong."""
    bunches = np.where(np.arange(BINS) % 9 == 4, 12.0, 0.0)
    steady = windows("rate", np.full(20, 7.0), np.full((20, RECENT), 0.7), 1.0, exposure=np.full(20, 10.0), day1=0.7)
    given = change(steady, 0, value=0, exposure=11, recent_value=bunches[:RECENT], day1_value=bunches)
    assert Compare().score(given)["p_value"][0] > 1e-3


@pytest.mark.parametrize(("days", "level"), [({"day1": 50.0}, 0.5), ({}, 0.95)])
def test_a_single_bin_tells_no_level_of_a_rate_where_days_do(days: dict[str, float], level: float) -> None:
    """All others are masked, and in that one somebody sent a batch of orders."""
    one = np.where(np.arange(RECENT) == RECENT - 2, 95.0, np.nan)
    given = windows("rate", np.full(20, 50.0), np.tile(one, (20, 1)), 100.0, **days)
    assert expected(given).level == pytest.approx(level, rel=0.05)


def test_a_day_that_is_like_today_tells_a_rate() -> None:
    found = expect(rates(300, 0.2, 0.2, day1=0.2, day7=0.6), "rate")
    assert found.level.mean() == pytest.approx(0.2, rel=0.02)
    assert found.weights.mean(axis=1) == pytest.approx([1, 0], abs=0.01)


@pytest.mark.parametrize(("size", "known", "low", "high"), [(0.2, False, 0.15, 0.3), (1.0, True, 0.02, 0.2)])
def test_a_rate_that_is_hardly_known_is_the_fleets(size: float, known: bool, low: float, high: float) -> None:
    """Of a few sessions nobody bought anything: that is no rate of zero."""
    rng = np.random.default_rng(4)
    before, day = (rng.binomial(1000, 0.3, (30, n)) * (np.arange(30) > 0)[:, None] for n in (RECENT, BINS))
    sizes = np.where(np.arange(30) > 0, 1000, size)
    found = expected(windows("rate", np.full(30, 300.0), before, sizes, day1=day))
    assert found.known == known
    assert low < found.level < high


# ---- normal windows --------------------------------------------------------------------------------------------------


def history(
    level: float,
    excess: float,
    mood: float,
    days: int,
    kind: str = "count",
    width: float = 300.0,
    seed: int = 1,
    monitors: int = 4000,
) -> pl.DataFrame:
    """Monitors with nothing wrong: gamma-Poisson or beta-binomial, a shape of the day, a level a day."""
    rng = np.random.default_rng(seed)
    shape = np.exp(0.6 * np.sin(np.arange(BINS) / BINS * np.pi))

    def draw() -> npt.NDArray[np.float64]:
        size = 1 / max(excess, 1e-9)
        if kind == "rate":
            return rng.binomial(200, rng.beta(level * size, (1 - level) * size, (monitors, BINS))).astype(float)
        mean = level * rng.lognormal(0, mood, (monitors, 1)) * shape
        return rng.poisson(mean * rng.gamma(size, 1 / size, mean.shape)).astype(float)

    today, known = draw(), {f"day{n + 1}": draw() for n in range(days)}
    bins = int(width // 300)
    now = today[:, RECENT - bins : RECENT].sum(axis=1)
    return windows(kind, now, today[:, :RECENT], 200, width=width, **known)


def too_often(p: pl.Series, alpha: float) -> bool:
    """Whether more than a share alpha of p-values lies below alpha, and more than chance explains."""
    return float((p <= alpha).mean() or 0) > alpha + 4 * math.sqrt(alpha / len(p))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.4, 3.0, 30.0, 300.0, 5000.0]),
    st.sampled_from([0.0, 0.02, 0.1]),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 3),
    st.sampled_from([300.0, 900.0, 3600.0]),
    st.integers(0, 99),
)
def test_normal_counts_are_not_flagged_too_often(
    level: float, excess: float, mood: float, days: int, width: float, seed: int
) -> None:
    p = Compare(min_volume=0, tolerance=0).score(history(level, excess, mood, days, width=width, seed=seed))["p_value"]
    assert not [alpha for alpha in (0.1, 0.01, 0.001) if too_often(p, alpha)]


@pytest.mark.parametrize(
    ("kind", "level", "width"), [("count", 30.0, 300.0), ("count", 30.0, 900.0), ("rate", 0.3, 300.0)]
)
@pytest.mark.parametrize("days", [1, 3])
def test_each_segment_has_its_own_noise(kind: str, level: float, width: float, days: int) -> None:
    """A fifth of the fleet is wild: taken for as calm as the rest, it is flagged several times too often."""
    calm = history(level, 0.0, 0.0, days, kind, width)
    wild = history(level, 0.2 if kind == "count" else 0.1, 0.0, days, kind, width, seed=2, monitors=800)
    both = pl.concat([calm, wild])
    judge = Compare(min_volume=0, tolerance=0)
    apart = judge.score(both.with_columns(segment=pl.Series([3] * 4000 + [7] * 800)))["p_value"]
    assert not [
        alpha for alpha in (0.1, 0.01, 0.001) if too_often(apart[:4000], alpha) or too_often(apart[4000:], alpha)
    ]
    together = judge.score(both)["p_value"]
    assert (together[4000:] <= 0.05).sum() > 1.15 * (apart[4000:] <= 0.05).sum()


@pytest.mark.parametrize("level", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("width", [300.0, 1800.0, 3600.0])
def test_normal_counts_of_which_little_is_known_of_today_are_not_flagged_too_often(level: float, width: float) -> None:
    """An incident of the whole fleet hides all but half an hour of two hours ago."""
    given = history(level, 0.0, 0.1, 1, width=width, seed=3)
    hidden = np.arange(RECENT) >= 6
    parts = {
        name: pl.Series(np.where(hidden, np.nan, given[name].to_numpy()), dtype=given[name].dtype)
        for name in ("recent_value", "recent_exposure")
    }
    p = Compare(min_volume=0, tolerance=0).score(given.with_columns(**parts))["p_value"]
    assert not [alpha for alpha in (0.1, 0.01, 0.001) if too_often(p, alpha)]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([0.4, 3.0, 30.0]), st.sampled_from([0.25, 1.0, 1.7]), st.booleans(), st.integers(1, 3),
    st.sampled_from([300.0, 3600.0]), st.integers(0, 99),
)  # fmt: skip
def test_normal_sums_of_money_are_not_flagged_too_often(
    level: float, vary: float, long: bool, days: int, width: float, seed: int
) -> None:
    p = Compare(min_volume=0, tolerance=0).score(sums(level, vary, days, width, long=long, seed=seed))["p_value"]
    assert not [alpha for alpha in (0.1, 0.01) if too_often(p, alpha)]
    assert (p <= 0.001).mean() <= 0.003


@pytest.mark.parametrize(("share", "size"), [(0.02, 10), (0.05, 20), (0.1, 5), (0.3, 10)])
def test_normal_lots_of_cancelled_lines_are_not_flagged_too_often(share: float, size: int) -> None:
    p = Compare(tolerance=0).score(lots(share, size, 2))["p_value"]
    assert not [alpha for alpha in (0.1, 0.01, 0.001) if too_often(p, alpha)]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([0.02, 0.3, 0.9]), st.sampled_from([0.0, 0.01]), st.integers(0, 2),
    st.sampled_from([300.0, 1800.0]), st.integers(0, 99),
)  # fmt: skip
def test_normal_rates_are_not_flagged_too_often(
    level: float, excess: float, days: int, width: float, seed: int
) -> None:
    p = Compare(min_volume=0, tolerance=0).score(history(level, excess, 0.0, days, "rate", width, seed))["p_value"]
    assert not [alpha for alpha in (0.01, 0.001) if too_often(p, alpha)]
    assert (p <= 0.1).mean() <= 1 / 6


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_a_normal_rate_whose_orders_are_of_the_minute_before_is_not_flagged_too_often(rate: float) -> None:
    """In the windows of a minute; in bins of five most orders have their session in the same one."""
    rng, minutes = np.random.default_rng(3), 5 * BINS
    sessions = rng.poisson(40.0, (4000, minutes + 1)).astype(float)
    orders = rng.binomial(sessions[:, :-1].astype(int), rate).astype(float)
    pairs = {"value": orders, "exposure": sessions[:, 1:]}
    now, before = 5 * RECENT - 1, slice(5 * RECENT - 31, 5 * RECENT - 1)
    given = windows("rate", orders[:, now], previous=orders[:, before], width=60.0, day1=0.0)
    for name, part in pairs.items():
        bins = part.reshape(4000, BINS, 5).sum(axis=2)
        recent = np.where(np.arange(RECENT) < RECENT - 1, bins[:, :RECENT], np.nan)
        own = {name: part[:, now], f"previous_{name}": part[:, before], f"recent_{name}": recent, f"day1_{name}": bins}
        given = given.with_columns(pl.Series(column, values) for column, values in own.items())
    given = given.with_columns(lagged_exposure=pl.Series(sessions[:, now - 1]))
    p = Compare(min_volume=0, tolerance=0).score(given)["p_value"]
    assert not [alpha for alpha in (0.1, 0.01, 0.001) if too_often(p, alpha)]
    assert (p <= 0.1).mean() >= 0.01


@pytest.mark.parametrize(("bins", "days"), [(4, 0), (6, 0), (23, 0), (23, 2)])
def test_normal_means_are_not_flagged_too_often(bins: int, days: int) -> None:
    """Also where so few bins tell the variance of an event."""
    rng = np.random.default_rng(7)
    recent, *others = (rng.normal(5000, 300, (4000, n)) for n in (RECENT, *[BINS] * days))
    recent[:, : RECENT - 1 - bins] = np.nan
    known = {f"day{n + 1}": other for n, other in enumerate(others)}
    p = Compare(tolerance=0).score(windows("mean", rng.normal(5000, 300, 4000), recent, 100, **known))["p_value"]
    assert not [alpha for alpha in (0.1, 0.01, 0.001) if too_often(p, alpha)]


@pytest.mark.parametrize("days", [1, 3])
@pytest.mark.parametrize("level", [30, 300, 3000])
@pytest.mark.parametrize("excess", [0.05, 0.2])
def test_the_bulk_of_the_p_values_is_not_far_too_large(level: float, excess: float, days: int) -> None:
    """What is careful without need sees nothing."""
    p = Compare(tolerance=0).score(history(level, excess, 0.1, days))["p_value"]
    assert (p <= 0.1).mean() >= 0.1 / 3


@pytest.mark.parametrize("days", [1, 3])
@pytest.mark.parametrize("level", [100, 1000])
def test_a_monitor_that_varies_in_a_calm_fleet_is_not_flagged_each_night(level: float, days: int) -> None:
    calm, wild = (history(level, excess, 0.1, days) for excess in (0.0, 0.3))
    p = pl.concat(
        Compare(tolerance=0).score(pl.concat([wild[n : n + 200], calm[200:]]))["p_value"][:200]
        for n in range(0, 4000, 200)
    )
    assert (p <= 1e-3).mean() <= 0.012
    assert (p <= 1e-5).mean() <= 0.002


# ---- uniform, not only rare ------------------------------------------------------------------------------------------

FLOORS = {0.5: 0.3, 0.3: 0.16, 0.1: 0.035}
"""Shares of p-values that lie below a level, at least, where they are promised to be uniform; at most as many as it."""


def uniform(scores: pl.DataFrame) -> None:
    """Neither too small nor, by more than FLOORS allow for what an estimate costs, too large; in either direction."""
    p = scores["p_value"]
    assert scores["judged"].mean() > 0.9
    assert not [alpha for alpha in (*FLOORS, 0.01, 0.001) if too_often(p, alpha)]
    assert not [(alpha, (p <= alpha).mean()) for alpha, least in FLOORS.items() if (p <= alpha).mean() < least]
    assert all(((p <= 0.5) & (scores["direction"] == way)).mean() > 0.08 for way in ("down", "up"))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(3.0, 0.0), (3.0, 0.1), (30.0, 0.05), (30.0, 0.1), (300.0, 0.05), (300.0, 0.1), (5000.0, 0.05),
                     (5000.0, 0.1)]),
    st.integers(1, 3), st.sampled_from([300.0, 900.0]), st.integers(0, 99),
)  # fmt: skip
def test_p_values_of_counts_are_uniform(world: tuple[float, float], days: int, width: float, seed: int) -> None:
    """Small and large ones: Poisson where they are small, with the noise that real ones have where they are large."""
    uniform(Compare(min_volume=0, tolerance=0).score(history(*world, 0.1, days, width=width, seed=seed)))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(0.02, 0.0), (0.05, 0.0), (0.3, 0.0), (0.3, 0.01), (0.7, 0.0), (0.7, 0.01), (0.9, 0.0)]),
    st.integers(0, 2), st.integers(0, 99),
)  # fmt: skip
def test_p_values_of_rates_are_uniform(world: tuple[float, float], days: int, seed: int) -> None:
    uniform(Compare(min_volume=0, tolerance=0).score(history(*world, 0.0, days, "rate", seed=seed)))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([0.01, 50.0, 5000.0, 1e7]), st.sampled_from([0.06, 0.15, 0.3]), st.integers(0, 2),
    st.integers(0, 99),
)  # fmt: skip
def test_p_values_of_means_are_uniform(level: float, spread: float, days: int, seed: int) -> None:
    """Small and large ones, which differ from bin to bin by `spread` of the level."""
    rng = np.random.default_rng(seed)
    now, recent, *others = (rng.normal(level, spread * level, (4000, n)) for n in (1, RECENT, *[BINS] * days))
    known = {f"day{n + 1}": other for n, other in enumerate(others)}
    uniform(Compare(min_volume=0, tolerance=0).score(windows("mean", now[:, 0], recent, 100, **known)))


@pytest.mark.parametrize(("level", "tolerance"), [(300.0, 0.0), (5000.0, 0.0), (5000.0, 0.02)])
def test_p_values_of_large_counts_without_any_noise_are_too_large_only(level: float, tolerance: float) -> None:
    """No level is believed to stay exactly where it was: what is promised of these is that none is too small."""
    p = Compare(tolerance=tolerance).score(history(level, 0.0, 0.1, 2))["p_value"]
    assert not [alpha for alpha in (*FLOORS, 0.01, 0.001) if too_often(p, alpha)]
    assert (p < 1).mean() > 0.2


# ---- the false discovery rate ----------------------------------------------------------------------------------------

LOOKS, MONITORS = 150, 300
WORLDS = [("rate", 0.3, 0.0), ("rate", 0.3, 0.01), ("rate", 0.05, 0.0), ("count", 5.0, 0.05), ("count", 300.0, 0.1)]
RATES = (0.05, 0.3)
"""Of a look; the larger one so that few looks tell whether it is kept."""


def looks(kind: str, level: float, excess: float, ill: int) -> list[npt.NDArray[np.float64]]:
    """The p-values of a small fleet now and then; of the first `ill` monitors next to nothing is left."""
    found = []
    for seed in range(LOOKS):
        given = history(level, excess, 0.1 if kind == "count" else 0.0, 2, kind, seed=seed, monitors=MONITORS)
        left = np.where(np.arange(MONITORS) < ill, 0.05, 1.0)
        given = given.with_columns(value=(pl.col("value") * left).round())
        found.append(Compare(min_volume=0, tolerance=0).score(given)["p_value"].to_numpy())
    return found


def kept(found: list[npt.NDArray[np.float64]], rate: float, ill: int) -> bool:
    """Whether false discoveries are at most `rate` of all, on average over the looks, or more by chance.

    With nothing wrong anywhere it is the share of looks with any, a binomial count.
    """
    false = np.array([np.mean(np.flatnonzero(p <= c) >= ill) if (c := _cutoff(p, rate)) else 0.0
                      for p in found])  # fmt: skip
    if not ill:
        return bool(false.sum() <= stats.binom.ppf(0.999, LOOKS, rate))
    allowed = rate * (1 - ill / MONITORS)  # as the procedure promises where so many are normal
    return bool(false.mean() <= allowed + 3 * false.std() / math.sqrt(LOOKS))


@pytest.mark.parametrize("ill", [0, 60])
@pytest.mark.parametrize("world", WORLDS)
def test_the_false_discovery_rate_is_kept(world: tuple[str, float, float], ill: int) -> None:
    """And would not be, as far as this test can tell, with p-values that are three times too small."""
    found = looks(*world, ill)
    assert [rate for rate in RATES if not kept(found, rate, ill)] == []
    if ill or world[0] == "rate":  # of counts alone those in the far tail are larger than they need be
        assert not kept([p / 3 for p in found], RATES[1], ill)
