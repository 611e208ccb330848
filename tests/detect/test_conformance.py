"""What every built-in detector of windows must stand, found by discovery.

`test_conformance_others.py` has the same for those that judge something else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from kmon.config import DetectorUse
from kmon.detect import SCORES, load_detector
from kmon.detect.contract import BUILT_IN, Detector
from tests.conftest import ROOT
from tests.detect.worlds import windows

KINDS = ("count", "rate", "mean")


def usual(kind: str, n: int = 30, seed: int = 3, width: float = 300.0) -> pl.DataFrame:
    """Monitors of many sizes with nothing wrong but noise and a few gaps."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(1, 60, (n, 1)) + 1

    def draw(k: int) -> npt.NDArray[np.float64]:
        found = rng.poisson(level, (n, k)) if kind == "count" else rng.binomial(200, 0.3, (n, k))
        return np.where(rng.random((n, k)) < 0.05, np.nan, found)

    now = np.nan_to_num(draw(1)[:, 0])
    previous = draw(29) * width / 300
    return windows(
        kind, now, draw(24), 200, width=width, previous=previous, day1=draw(30), day2=draw(30), day7=draw(30)
    )


OWN_WINDOWS = {"silence"}
"""Detectors that judge no windows of a sweep: `test_conformance_others.py` has what they must stand."""


@pytest.fixture(params=sorted(BUILT_IN.keys() - OWN_WINDOWS))
def found(request: pytest.FixtureRequest) -> Detector:
    return load_detector(DetectorUse(use=request.param), ROOT)


def test_all_are_found() -> None:
    assert sorted(BUILT_IN.keys() - OWN_WINDOWS) == ["compare"]
    assert BUILT_IN.keys() > OWN_WINDOWS


@pytest.mark.parametrize("width", [60.0, 300.0, 420.0, 3600.0])
@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(found: Detector, kind: str, width: float) -> None:
    given = usual(kind, width=width)
    before = given.clone()
    scores = found.score(given)
    assert given.equals(before), "the input must not be changed"
    assert scores.schema == SCORES
    assert scores.height == given.height
    assert scores["p_value"].is_between(0, 1).all()
    assert scores["evidence"].is_finite().all()
    assert (scores["evidence"] >= 0).all()
    assert set(scores["direction"]) <= {"up", "down"}
    assert not (scores["notable"] & ~scores["judged"]).any()
    assert scores.equals(found.score(given)), "the same input, the same result"


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_does_not_matter(found: Detector, kind: str) -> None:
    given = usual(kind)
    order = np.random.default_rng(0).permutation(given.height)
    shuffled = found.score(given[order.tolist()])
    for name in SCORES:
        expected = found.score(given)[name][order.tolist()]
        if SCORES[name] == pl.Float64:
            np.testing.assert_allclose(shuffled[name], expected, rtol=1e-9)
        else:
            assert shuffled[name].equals(expected)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows(found: Detector, kind: str, rows: int) -> None:
    scores = found.score(usual(kind)[:rows])
    assert scores.schema == SCORES
    assert scores.height == rows


def set_all(name: str, value: float) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        shape = frame[name].to_numpy().shape
        return frame.with_columns(pl.Series(name, np.full(shape, value)))

    return change


def set_references(value: float) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """All references of value and exposure."""
    names = [
        f"{name}_{part}" for name in ("recent", "previous", "day1", "day2", "day7") for part in ("value", "exposure")
    ]
    return lambda frame: functools.reduce(lambda f, name: set_all(name, value)(f), names, frame)


UNJUDGEABLE = {
    "value unknown": set_all("value", np.nan),
    "no exposure": set_all("exposure", 0.0),
    "no reference at all": lambda f: f.select("value", "exposure", "kind", "width", "bin"),
    "references all unknown": set_references(np.nan),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", UNJUDGEABLE)
def test_says_not_judged_rather_than_guess(found: Detector, kind: str, case: str) -> None:
    scores = found.score(UNJUDGEABLE[case](usual(kind)))
    assert not scores["judged"].any()
    assert (scores["p_value"] == 1).all()


@pytest.mark.parametrize("kind", ["rate", "mean"])
@pytest.mark.parametrize("name", ["recent", "previous", "day1"])
def test_zero_denominators_tell_as_little_as_unknown_ones(found: Detector, kind: str, name: str) -> None:
    given = usual(kind)
    nobody, unknown = (
        found.score(set_all(f"{name}_value", value)(set_all(f"{name}_exposure", value)(given)))
        for value in (0.0, np.nan)
    )
    assert nobody["judged"].all()
    for column in ("observed", "expected", "lower", "upper", "p_value", "evidence"):
        np.testing.assert_allclose(nobody[column], unknown[column], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lagged_exposure", "recent_exposure", "day1_exposure"])
def test_denominators_of_zero_do_no_harm(found: Detector, kind: str, name: str) -> None:
    """Also where something is over them, as an order is that came after its session."""
    scores = found.score(set_all(name, 0.0)(usual(kind)))
    sound(scores)
    assert scores["judged"].sum() == found.score(usual(kind))["judged"].sum()
    assert scores["p_value"].min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_references_of_nothing_do_no_harm(found: Detector, kind: str, value: float) -> None:
    sound(found.score(set_references(value)(usual(kind))))


def sound(scores: pl.DataFrame) -> None:
    """Whatever was given, what was judged is finite, and the rest is said to be not judged."""
    assert scores["p_value"].is_between(0, 1).all()
    assert scores["evidence"].is_finite().all()
    assert (scores["evidence"] >= 0).all()
    judged = scores.filter("judged")
    for name in ("observed", "expected", "lower", "upper"):
        assert judged[name].is_finite().all(), name
    assert (judged["lower"] <= judged["upper"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("day", [50.0, np.nan])
@pytest.mark.parametrize("value", [50.0, 0.0, 100.0])
def test_a_constant_series_is_normal(found: Detector, kind: str, day: float, value: float) -> None:
    constant = value if kind != "count" or value else 50.0
    scores = found.score(windows(kind, [constant] * 20, constant, 100, day1=constant + 0 * day))
    sound(scores)
    assert scores["p_value"].min() > 0.05
    assert not scores["notable"].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["recent_value", "day1_value"])
def test_one_point_is_no_history(found: Detector, kind: str, where: str) -> None:
    """One bin of two hundred events says nothing of a window, or little: no alarm comes of it."""
    one = np.full((20, 30), np.nan)
    one[:, 12] = 100.0
    given = (
        windows(kind, [40.0] * 20, one[:, :24], 200)
        if where == "recent_value"
        else windows(kind, [40.0] * 20, np.nan, 200, day1=one)
    )
    scores = found.score(given)
    sound(scores)
    assert not scores["judged"].any() or kind == "rate"


@pytest.mark.parametrize(("kind", "now", "size"), [("count", 4e8, 1), ("rate", 4e8, 2e9), ("mean", 4e8, 2e9)])
def test_a_thousand_million_events(found: Detector, kind: str, now: float, size: float) -> None:
    noise = np.random.default_rng(1).normal(1e9, 3e4, (20, 54))
    scores = found.score(windows(kind, [now] * 20, noise[:, :24], size, day1=noise[:, 24:]))
    sound(scores)
    assert scores["judged"].all()
    assert (scores["p_value"] < 1e-6).all()
    assert np.allclose(scores["expected"], 1e9 / size, rtol=0.02)


@pytest.mark.parametrize(("factor", "direction"), [(0.1, "down"), (5.0, "up")])
@pytest.mark.parametrize("kind", KINDS)
def test_both_directions(found: Detector, kind: str, factor: float, direction: str) -> None:
    normal = np.random.default_rng(2).binomial(1000, 0.15, (30, 54))
    now = [150 * factor if i == 0 else 150.0 for i in range(30)]
    scores = found.score(windows(kind, now, normal[:, :24], 1000, day1=normal[:, 24:]))
    first = scores.row(0, named=True)
    assert first["notable"]
    assert first["p_value"] < 1e-4
    assert first["direction"] == direction
    assert not scores["notable"][1:].any()


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_the_unit_of_a_mean_does_not_matter(found: Detector, factor: float) -> None:
    """Cents or thousands of dollars."""
    amounts = np.random.default_rng(8).normal(5000, 400, (30, 55))
    plain, other = (
        found.score(windows("mean", a[:, 0], a[:, 1:25], 100, day1=a[:, 25:])) for a in (amounts, amounts * factor)
    )
    np.testing.assert_allclose(plain["p_value"], other["p_value"], rtol=1e-6)
    np.testing.assert_allclose(plain["expected"] * factor, other["expected"], rtol=1e-6)
    assert plain["judged"].equals(other["judged"])


@pytest.mark.parametrize("factor", [3.0, 100.0, 1e6])
@pytest.mark.parametrize("kind", ["count", "rate"])
def test_the_unit_of_a_count_or_rate_does_not_matter(found: Detector, kind: str, factor: float) -> None:
    """Events that are counted as several: they tell as much as they are, in whatever unit."""
    rng = np.random.default_rng(8)
    plain = rng.poisson(60, (200, 55)) if kind == "count" else rng.binomial(200, 0.3, (200, 55))
    size = 1 if kind == "count" else 200.0
    scores = []
    for times in (1.0, factor):
        given = windows(kind, times * plain[:, 0], times * plain[:, 1:25], size, day1=times * plain[:, 25:])
        if kind == "rate":
            exposures = [name for name in given.columns if name.endswith("exposure")]
            given = given.with_columns(pl.Series(name, times * given[name].to_numpy()) for name in exposures)
        scores.append(found.score(given))
    one, other = scores
    np.testing.assert_allclose(one["p_value"], other["p_value"], rtol=0.3)
    np.testing.assert_allclose(one["expected"] * (factor if kind == "count" else 1), other["expected"], rtol=0.02)
    assert one["judged"].all()
    assert other["judged"].all()
    assert (one["direction"] == other["direction"]).mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_numbers_do_no_harm(found: Detector, kind: str) -> None:
    """More orders than sessions, and negative counts of returned goods."""
    above = windows(kind, [150.0] * 20, 100.0, 100, day1=100.0)
    below = windows(kind, [-50.0] * 20, -50.0, 100, day1=-50.0)
    for scores in map(found.score, (above, below)):
        sound(scores)
    assert not found.score(below)["notable"].any()
