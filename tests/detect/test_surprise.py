"""The series detector: causal, the same streaming as whole, and untroubled by what series are like."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kmon.detect.surprise import DAY, Surprise, oddities, onsets, peaks
from kmon.errors import UsageError

STEP = 300
DETECTOR = Surprise()


def series(days=12, seed=0, step=STEP):
    """A daily shape with noise; times in epoch seconds, from midnight on."""
    rng = np.random.default_rng(seed)
    t = np.arange(days * DAY // step) * step + 1_700_006_400.0
    return t, 100 + 30 * np.sin(2 * np.pi * t / DAY) + rng.normal(0, 2, len(t))


def scores(t, v, detector=DETECTOR, **how):
    found = detector.score(t, v, **how)
    return np.array([found.surprise, found.alarm])


def alarms(t, v):
    return np.flatnonzero(DETECTOR.score(t, v).alarm >= DETECTOR.alarm_at)


@pytest.mark.parametrize("by", [-40, 40])
def test_a_jump_either_way_is_told_once(by):
    t, v = series()
    v[3000:3030] += by
    found = alarms(t, v)
    assert 3000 in found
    assert len(found[(found >= 3000) & (found < 3030 + DETECTOR.rest)]) == 1


def test_a_quiet_time_of_day_is_missed_and_a_busy_one_expected():
    """A peak at the same time every day is usual, and odd where it does not come."""
    t, v = series(days=16)
    daily = np.flatnonzero((t % DAY >= 43200) & (t % DAY < 43200 + 3 * 3600))
    v[daily] += 60
    missed = daily[-36:]
    assert len(alarms(t, v)[alarms(t, v) > 10 * DAY // STEP]) <= 2
    v[missed] -= 60
    assert set(alarms(t, v)) & set(missed)


def test_few_alarms_on_noise():
    t, v = series(days=30, seed=5)
    assert len(alarms(t, v)) <= 0.15 * 30


def test_the_warm_up_is_not_scored():
    t, v = series(days=4)
    found = scores(t, v)
    assert np.isnan(found[:, : DAY // STEP]).all()
    assert np.isfinite(found[:, -DAY // STEP :]).all()


def test_the_future_changes_nothing():
    t, v = series()
    later = v.copy()
    later[2500:] = np.random.default_rng(1).normal(1e6, 1e6, len(v) - 2500)
    np.testing.assert_array_equal(scores(t, v)[:, :2500], scores(t, later)[:, :2500])
    np.testing.assert_array_equal(scores(t, v)[:, :2500], scores(t[:2500], v[:2500]))


@pytest.mark.parametrize(("step", "days"), [(300, 40), (3600, 60)])
def test_a_bounded_history_gives_what_the_whole_gives(step, days):
    t, v = series(days, step=step)
    v[-5:] += [0, 50, 20, 0, -40]
    v[-400:-390] = np.nan
    whole = scores(t, v)
    needed = DETECTOR.memory_days * DAY // step + DETECTOR.around + 200
    for k in (1, 5, 50):
        part = scores(t[-needed - k :], v[-needed - k :], last=k)
        np.testing.assert_allclose(part[:, -k:], whole[:, -k:], rtol=1e-9, atol=1e-9)
        assert np.isnan(part[:, :-k]).all()


def test_four_weeks_of_minutes_are_enough():
    t, v = series(32, step=60)
    v[-700:-690] += 60
    part = scores(t[-28 * 1440 :], v[-28 * 1440 :], last=60)
    np.testing.assert_allclose(part[:, -60:], scores(t, v)[:, -60:], rtol=1e-9, atol=1e-9)


def test_point_by_point_gives_what_the_whole_gives():
    t, v = series(days=8)
    whole = scores(t, v)
    for end in range(len(t) - 20, len(t)):
        np.testing.assert_allclose(scores(t[: end + 1], v[: end + 1], last=1)[:, -1], whole[:, end], rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-9, 0.25, 3.7, 1e9])
def test_scale_does_not_matter(factor):
    t, v = series()
    v[3000:3010] += 25
    np.testing.assert_allclose(scores(t, factor * v), scores(t, v), rtol=1e-6, atol=1e-6)


def test_mirrored_it_is_as_odd():
    t, v = series()
    v[3000:3010] += 25
    np.testing.assert_allclose(scores(t, -v), scores(t, v), rtol=1e-9, atol=1e-9)


def test_the_input_is_left_alone_and_a_second_run_gives_the_same():
    t, v = series()
    v[100:110] = np.nan
    before = (t.copy(), v.copy())
    first = scores(t, v)
    np.testing.assert_array_equal((t, v), before)
    np.testing.assert_array_equal(scores(t, v), first)


def test_gaps_are_neither_scored_nor_odd():
    t, v = series()
    v[2000:2100] = np.nan
    v[2500] = np.inf
    found = scores(t, v)
    assert np.isnan(found[:, 2000:2100]).all()
    assert np.isnan(found[:, 2500]).all()
    assert not set(alarms(t, v)) & set(range(2090, 2120))
    present = np.isfinite(v)
    np.testing.assert_allclose(scores(t[present], v[present]), found[:, present], rtol=1e-9, atol=1e-9)


def test_irregular_times_lose_no_point():
    t, v = series()
    late = t.copy()
    late[1000:1012] = t[1000]  # twelve at once
    late[2000:2012] -= 3600  # an hour comes twice
    assert np.isfinite(scores(late, v)[:, -1000:]).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e9])
def test_a_constant_series_is_normal_and_its_first_change_is_not(value):
    t, _ = series(days=5)
    v = np.full(len(t), value)
    assert np.nanmax(scores(t, v)) <= 0
    v[-3] = value + 1 if abs(value) < 1e8 else 1.1 * value
    found = scores(t, v)
    assert (found[:, -3] > 10).all()
    assert np.isfinite(found[:, -DAY // STEP :]).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_points_have_no_score(n):
    t, v = series()
    found = DETECTOR.score(t[:n], v[:n])
    assert found.surprise.shape == found.alarm.shape == (n,)
    assert np.isnan(found.surprise).all()


def test_nothing_but_gaps():
    t, v = series()
    assert np.isnan(scores(t, np.full_like(v, np.nan))).all()


def test_days_as_steps():
    """A step of a day has no time of day; what is left still works, and does not look ahead."""
    rng = np.random.default_rng(0)
    t, v = np.arange(600) * float(DAY), rng.normal(50, 1, 600)
    v[580] = 90
    found = Surprise(fit_days=400).score(t, v)
    assert found.alarm[580] == np.nanmax(found.alarm) > DETECTOR.alarm_at
    changed = np.append(v[:590], v[590:] + 30)
    np.testing.assert_array_equal(Surprise(fit_days=400).score(t, changed).alarm[:590], found.alarm[:590])


@pytest.mark.parametrize(
    ("t", "v", "how"), [([0, 60], [1], {}), ([0, np.nan], [1, 2], {}), ([0, 1e9], [1, 2], {"step": 1})]
)
def test_a_series_that_is_none_is_refused(t, v, how):
    with pytest.raises(UsageError):
        DETECTOR.score(t, v, **how)


@pytest.mark.parametrize("setting", [{"span": 0}, {"tail": (0.9, 0.8)}, {"bulk": (0.5, 1.0)}, {"fit_days": 0}])
def test_a_setting_that_cannot_work_is_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        Surprise(**setting)


def test_it_is_a_value():
    assert dataclasses.replace(DETECTOR, span=11) == Surprise(span=11)


def test_onsets_are_where_scores_exceed_those_before():
    scores = np.array([-1, 1, 3, 2, 3, 4, np.nan, 4, 1, 2, 5.0])
    np.testing.assert_array_equal(onsets(scores, 2), [0, 1, 3, 0, 0, 4, np.nan, 0, 0, 0, 5])
    np.testing.assert_array_equal(onsets(scores, 2, 1.5), [0, 1, 3, 0, 0, 0, np.nan, 0, 0, 0, 5])


def test_an_exponential_tail_is_told_by_its_formula():
    values = np.random.default_rng(0).exponential(2.0, 50_000)
    values[-1] = 2 * np.log(10_000)  # exceeded once in ten thousand
    (found,) = peaks.surprise(values, values, [(0.9, 0.98)], history=50_000, least=100, every=100)
    assert found[-1] == pytest.approx(np.log(10_000), rel=0.03)


def test_incidents_of_the_past_do_not_bend_the_bulk():
    quiet = np.random.default_rng(0).exponential(1.0, 20_000)
    stormy = quiet.copy()
    stormy[np.random.default_rng(1).choice(20_000, 200, replace=False)] = 1000
    for values in (quiet, stormy):
        values[-1] = 10
    how = {"history": 20_000, "least": 100, "every": 100}
    told = [peaks.surprise(values, quiet, [(0.9, 0.98)], **how)[0][-1] for values in (quiet, stormy)]
    assert told[1] == pytest.approx(told[0], rel=0.3)


def test_what_recurs_daily_is_usual():
    oddity = np.zeros(100)
    oddity[[5, 16, 26, 34]] = 3  # at about the same time of days of ten points
    np.testing.assert_array_equal(np.flatnonzero(oddities.unusual(oddity, 10, 3, 1)), [5, 34])


def test_a_shift_lasts():
    x = np.array([0, 0, 0, 5, 0, 0, 5, 6, 7.0])
    assert oddities.shift(x, np.zeros(9), 3)[2:].tolist() == [0, 0, 0, 0, 0, 0, 5]
    assert oddities.shift(-x, np.zeros(9), 3)[-1] == 5
