"""What the detectors must stand that judge no windows of a sweep, found by discovery like the others.

Those with a look of their own (silence), those of single series, and the candidates that models are chosen from.
`test_conformance.py` has the same for windows.
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

import kmon.detect
from kmon.config import DetectorUse
from kmon.detect import SCORES, OwnWindows, Silence, load_detector
from kmon.detect.contract import BUILT_IN
from kmon.detect.models import A_DAY, CANDIDATES, Share, forecast
from kmon.detect.silence import History
from kmon.errors import FitError
from kmon.store import EmbeddedStore
from tests.conftest import ROOT
from tests.detect.test_silence import BEGIN, HOUR, OTHERS, settings, visits
from tests.detect.worlds import AT, Mask, shop

Floats = npt.NDArray[np.float64]


def shipped() -> dict[str, type]:
    """All classes of kmon.detect that are detectors: they have a name and score something."""
    found = {}
    for module in pkgutil.walk_packages(kmon.detect.__path__, "kmon.detect."):
        loaded = importlib.import_module(module.name)
        for one in vars(loaded).values():
            if (
                inspect.isclass(one)
                and callable(getattr(one, "score", None))
                and isinstance(vars(one).get("name"), str)
            ):
                found[one.name] = one
    return found


SHIPPED = shipped()
OF_SERIES = sorted(name for name, one in SHIPPED.items() if "times" in inspect.signature(one.score).parameters)
WITH_A_LOOK = sorted(name for name, one in SHIPPED.items() if hasattr(one, "look"))


def test_all_are_found() -> None:
    """A new one is in one of the suites: built in, for windows or with a look of its own; of series; a candidate."""
    assert sorted(SHIPPED) == ["compare", "silence", "surprise"]
    assert (OF_SERIES, WITH_A_LOOK) == (["surprise"], ["silence"])
    assert sorted(BUILT_IN) == sorted(SHIPPED.keys() - set(OF_SERIES))
    assert {name for name, one in SHIPPED.items() if issubclass(one, OwnWindows)} == set(WITH_A_LOOK)
    adapted = {
        name: load_detector(DetectorUse(use=f"kmon.detect:{SHIPPED[name].__name__}"), ROOT) for name in OF_SERIES
    }
    assert {name: (one.name, isinstance(one, OwnWindows)) for name, one in adapted.items()} == {
        name: (name, True) for name in OF_SERIES
    }
    assert sorted(CANDIDATES) == ["binomial", "components", "ets", "glm", "mstl"]


# ---- silence: what it makes of a history -----------------------------------------------------------------------------

HOURS = 24 * 8


def known(rate: float = 8.0, silent: float = 4.0, n: int = 30, seed: int = 1) -> History:
    """Monitors of around `rate` events an hour of which each third is silent; the others had one half an hour ago."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate * rng.uniform(0.7, 1.5, (n, 1)), (n, HOURS)).astype(float)
    since = np.where(np.arange(n) % 3 == 0, silent, 0.5)
    counts[since > 1, : int(silent)] = 0
    return History(counts, since, np.ones((n, 7), bool), np.zeros((n, 7), np.int64), np.ones((n, 24)))


def judged(given: History) -> pl.DataFrame:
    scores = Silence()._scores(given)
    assert scores["p_value"].is_between(0, 1).all()
    assert not (scores["notable"] & ~scores["judged"]).any()
    assert (scores.filter(~pl.col("judged"))["p_value"] == 1).all()
    assert (scores["direction"] == "down").all()
    for name in ("observed", "expected", "lower", "upper", "evidence"):
        assert scores.filter("judged")[name].is_finite().all(), name
    return scores


def parts(given: History) -> dict[str, npt.NDArray[Any]]:
    return {name: value.copy() for name, value in vars(given).items()}


def test_silence_keeps_the_contract() -> None:
    given = known()
    before = parts(given)
    scores = judged(given)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(given, name), value, err_msg="the input must not be changed")
    assert (scores.schema, scores.height) == (SCORES, 30)
    assert scores.equals(judged(given)), "the same input, the same result"


def test_silence_and_the_order_of_rows() -> None:
    given, order = known(), np.random.default_rng(0).permutation(30)
    plain = judged(given)[order.tolist()]
    shuffled = judged(History(*(value[order] for value in parts(given).values())))
    for name in ("expected", "lower", "upper", "p_value"):
        np.testing.assert_allclose(shuffled[name], plain[name], rtol=1e-9)
    assert shuffled["judged"].equals(plain["judged"])


def test_silence_is_about_those_that_are_silent_and_one_direction() -> None:
    scores = judged(known())
    third = np.arange(30) % 3 == 0
    assert scores["judged"].to_numpy()[third].all()
    assert (scores["p_value"].to_numpy()[third] < 1e-4).all()
    assert not scores["judged"].to_numpy()[~third].any()
    busy = known(silent=0.5)
    busy.counts[:, :3] *= 20  # who has more than ever is not silent
    assert not judged(busy)["judged"].any()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_silence_says_not_judged_of_what_is_unknown(value: float) -> None:
    nothing = known()
    nothing.counts[:] = value
    assert not judged(nothing)["judged"].any()


def test_silence_and_gaps() -> None:
    given = known()
    given.counts[np.random.default_rng(2).random(given.counts.shape) < 0.1] = np.nan
    judged(given)


def test_silence_and_a_constant_series() -> None:
    """Six events each hour, the last of them now: normal."""
    given = known()
    given.counts[:] = 6.0
    given.silent[:] = 0.1
    assert judged(given)["p_value"].min() == 1


def test_one_event_is_no_history_of_a_silence() -> None:
    given = known()
    given.counts[:] = 0
    given.counts[:, 30] = 1
    given.silent[:] = 30
    assert not judged(given)["judged"].any()


def test_silence_after_a_thousand_million_events_an_hour() -> None:
    given = known(rate=1e9)
    scores = judged(given).gather_every(3)
    assert scores["judged"].all()
    assert (scores["p_value"] < 1e-6).all()
    np.testing.assert_allclose(scores["expected"] / 4e9, given.counts[::3, 4:].mean(axis=1) / 1e9, rtol=0.05)


def test_a_silence_tells_the_more_the_more_would_have_come() -> None:
    p = np.array([judged(known(rate=rate))["p_value"].to_numpy()[::3] for rate in (4.0, 8.0, 40.0, 400.0)])
    assert (np.diff(p, axis=0) <= 0).all()


# ---- silence: its look into a store ----------------------------------------------------------------------------------


def arrivals() -> pl.DataFrame:
    """Twelve others, p which has been silent for nine hours, and one that had a single event."""
    silent = visits({"p": 6.0}, BEGIN, AT - 9 * HOUR, seed=3)
    once = silent.head(1).with_columns(partner=pl.lit("once"))
    return pl.concat([visits(OTHERS, BEGIN, AT), silent, once]).sort("event_time")


def look(store: EmbeddedStore, masks: list[Mask]) -> dict[str, tuple[Any, ...]]:
    """{partner: what is said of it}, of those that are silent."""
    detector = load_detector(DetectorUse(use="silence"), ROOT)
    assert isinstance(detector, Silence)
    found = detector.look(store, settings(), AT, masks)
    assert found is not None
    fleet, scores, _ = found
    numbers = fleet.monitors["partner"].to_list()
    names = store.names("partner", numbers)
    return {names[numbers[row["row"]]]: tuple(row[name] for name in SCORES) for row in scores.to_dicts()}


def test_a_look_changes_nothing_and_is_the_same_again() -> None:
    masks = [Mask({"partner": "o1"}, AT - 60 * HOUR, AT - 59 * HOUR)]
    with shop(arrivals(), settings(), AT) as store:
        cells = store.sql("SELECT * FROM cells ORDER BY ALL")
        first = look(store, masks)
        assert look(store, masks) == first
        assert store.sql("SELECT * FROM cells ORDER BY ALL").equals(cells)
    assert masks == [Mask({"partner": "o1"}, AT - 60 * HOUR, AT - 59 * HOUR)]
    assert set(first) == {"p"}


def test_the_order_of_arrival_does_not_matter_to_a_look() -> None:
    events = arrivals()
    order = np.random.default_rng(0).permutation(events.height).tolist()
    told = []
    for given in (events, events[order]):
        with shop(given, settings(), AT) as store:
            told.append(look(store, []))
    assert told[0].keys() == told[1].keys()
    assert told[0]["p"] == pytest.approx(told[1]["p"])


# ---- series detectors ------------------------------------------------------------------------------------------------

STEP = 300


@pytest.fixture(params=OF_SERIES)
def of_series(request: pytest.FixtureRequest) -> Any:
    return SHIPPED[request.param]()


def series(level: float = 100.0, days: int = 10) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(3)
    t = np.arange(days * 86_400 // STEP) * STEP + 1_700_006_400.0
    return t, level * (1 + 0.3 * np.sin(2 * np.pi * t / 86_400) + rng.normal(0, 0.02, len(t)))


def alarm(detector: Any, t: Floats, v: Floats) -> Floats:
    return np.asarray(detector.score(t, v).alarm)


def test_a_series_is_left_alone_and_scored_alike_again(of_series: Any) -> None:
    t, v = series()
    v[100:120] = np.nan
    before = (t.copy(), v.copy())
    first = alarm(of_series, t, v)
    np.testing.assert_array_equal((t, v), before)
    np.testing.assert_array_equal(alarm(of_series, t, v), first)
    assert len(first) == len(t)
    assert np.isnan(first[100:120]).all()


@pytest.mark.parametrize(("factor", "level"), [(0.2, 100.0), (3.0, 100.0), (0.2, 1e9), (3.0, 1e9), (3.0, 1e-6)])
def test_a_series_in_both_directions_at_any_scale(of_series: Any, factor: float, level: float) -> None:
    t, v = series(level)
    calm = alarm(of_series, t, v)
    v[2600:2620] *= factor
    found = alarm(of_series, t, v)
    assert found[2600] >= of_series.alarm_at
    assert np.nanmax(calm[2590:2630]) < of_series.alarm_at
    np.testing.assert_allclose(found, alarm(of_series, t, 100 * v / level), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.0, 1e9])
def test_a_constant_series_has_no_alarm(of_series: Any, value: float) -> None:
    t, v = series()
    assert np.nanmax(alarm(of_series, t, np.full_like(v, value))) <= 0


@pytest.mark.parametrize("n", [0, 1])
def test_no_point_and_one_point_have_no_score(of_series: Any, n: int) -> None:
    t, v = series()
    assert np.isnan(alarm(of_series, t[:n], v[:n])).all()
    v[:-1] = np.nan
    assert np.isnan(alarm(of_series, t, v)).all()


def chances(detector: Any, t: Floats, v: Floats, last: int = 288) -> Floats:
    """What it tells a sweep of the last points."""
    return np.asarray(detector.judge(t, v, last=last).p_value)[-last:]


def test_a_sweep_is_told_chances_of_a_series_left_alone(of_series: Any) -> None:
    t, v = series()
    v[2700:2710] = np.nan
    before = (t.copy(), v.copy())
    p = chances(of_series, t, v)
    np.testing.assert_array_equal((t, v), before)
    np.testing.assert_array_equal(chances(of_series, t, v), p)
    np.testing.assert_array_equal(chances(of_series, t, v, last=1), p[-1:])
    assert (np.isnan(p) == np.isnan(v[-288:])).all()
    assert ((p > 0) & (p <= 1))[np.isfinite(p)].all()


@pytest.mark.parametrize(("factor", "level"), [(0.2, 100.0), (3.0, 100.0), (0.2, 1e9), (3.0, 1e-6)])
def test_a_sweep_is_told_of_a_change_while_it_lasts_a_little(of_series: Any, factor: float, level: float) -> None:
    t, v = series(level)
    calm = chances(of_series, t, v)
    v[-3:] *= factor
    assert chances(of_series, t, v)[-1] < 1e-5
    assert calm.min() > 1e-5


@pytest.mark.parametrize("n", [0, 1, 100])
def test_a_sweep_is_told_nothing_of_a_new_series(of_series: Any, n: int) -> None:
    t, v = series()
    assert np.isnan(chances(of_series, t[:n], v[:n])).all()
    v[:-1] = np.nan
    assert np.isnan(chances(of_series, t, v)).all()


# ---- candidates of models --------------------------------------------------------------------------------------------

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
DAYS = 9
Candidate = Callable[[Floats], Floats]


@pytest.fixture(params=sorted(CANDIDATES))
def candidate(request: pytest.FixtureRequest) -> Candidate:
    """Its forecast of the day after a past; to the binomial one that is of a rate of one in ten."""
    name = request.param

    def told(past: Floats) -> Floats:
        sessions = 10 * np.roll(past, A_DAY)  # of the same shape, with other noise
        day = sessions[-A_DAY:]
        share = Share(sessions, day, day) if name == "binomial" else None
        return forecast(past, START, A_DAY, share=share, candidates={name: CANDIDATES[name]}).values

    return told


def counts(scale: float = 1.0, seed: int = 1) -> Floats:
    """Nine days of noisy counts with a daily shape; those of a scale are the same in another unit."""
    t = np.arange(DAYS * A_DAY) / A_DAY
    return scale * np.random.default_rng(seed).poisson(40 * np.exp(0.6 * np.sin(2 * np.pi * t))).astype(float)


def test_a_candidate_leaves_its_past_alone_and_says_the_same_again(candidate: Candidate) -> None:
    past = counts()
    past[500:560] = np.nan
    before = past.copy()
    first = candidate(past)
    np.testing.assert_array_equal(past, before)
    np.testing.assert_array_equal(candidate(past), first)
    assert first.shape == (A_DAY,)
    assert np.isfinite(first).all()
    assert (first >= 0).all()


@pytest.mark.parametrize("scale", [100.0, 1e9 / 40])
def test_the_unit_of_counts_does_not_matter_to_a_candidate(candidate: Candidate, scale: float) -> None:
    """Up to a thousand million a step; what adding one before a logarithm changes is little."""
    np.testing.assert_allclose(candidate(counts(scale)) / scale, candidate(counts()), rtol=0.05)


def test_a_candidate_goes_on_with_a_constant(candidate: Candidate) -> None:
    np.testing.assert_allclose(candidate(np.full(DAYS * A_DAY, 40.0))[: A_DAY // 4].sum(), 40 * A_DAY / 4, rtol=0.4)


@pytest.mark.parametrize("past", [np.full(DAYS * A_DAY, np.nan), np.zeros(DAYS * A_DAY), np.ones(1), np.empty(0)])
def test_a_candidate_is_not_asked_about_nothing(candidate: Candidate, past: Floats) -> None:
    with pytest.raises(FitError):
        candidate(past)
