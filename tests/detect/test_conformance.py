"""What every built-in detector must stand, found by discovery."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from kmon.config import DetectorUse
from kmon.detect import SCORES, load_detector
from kmon.detect.contract import BUILT_IN, Detector
from tests.conftest import ROOT
from tests.detect.worlds import windows

KINDS = ("count", "rate", "mean")


def usual(kind: str, n: int = 30, seed: int = 3) -> pl.DataFrame:
    """Monitors of many sizes with nothing wrong but noise and a few gaps."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(1, 60, (n, 1)) + 1
    size = 200 if kind == "rate" else 50

    def draw(k: int) -> list[list[float]]:
        found = rng.poisson(level, (n, k)).astype(float) if kind == "count" else rng.binomial(size, 0.3, (n, k)) * 1.0
        found[rng.random((n, k)) < 0.05] = np.nan
        return found.tolist()

    now = np.nan_to_num(np.array(draw(1))[:, 0])
    return windows(kind, now.tolist(), draw(6), 1.0 if kind == "count" else size, yesterday=draw(11), weekly=draw(22))


OWN_WINDOWS = {"silence"}
"""Detectors that judge no windows of a sweep: tests/detect/test_silence.py has what they must stand."""


@pytest.fixture(params=sorted(BUILT_IN.keys() - OWN_WINDOWS))
def found(request: pytest.FixtureRequest) -> Detector:
    return load_detector(DetectorUse(use=request.param), ROOT)


def test_all_are_found() -> None:
    assert len(BUILT_IN) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(found: Detector, kind: str) -> None:
    given = usual(kind)
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


def broken(kind: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    return change(usual(kind))


def set_all(name: str, value: float) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        shape = frame[name].to_numpy().shape
        return frame.with_columns(pl.Series(name, np.full(shape, value)))

    return change


UNJUDGEABLE = {
    "value unknown": set_all("value", np.nan),
    "no exposure": set_all("exposure", 0.0),
    "no reference at all": lambda f: f.select("value", "exposure", "kind"),
    "references all unknown": lambda f: set_all("weekly_value", np.nan)(
        set_all("yesterday_value", np.nan)(set_all("previous_value", np.nan)(f))
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", UNJUDGEABLE)
def test_says_not_judged_rather_than_guess(found: Detector, kind: str, case: str) -> None:
    scores = found.score(UNJUDGEABLE[case](usual(kind)))
    assert not scores["judged"].any()
    assert (scores["p_value"] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_series_is_normal(found: Detector, kind: str) -> None:
    flat = [50.0] * 20
    scores = found.score(
        windows(kind, flat, [[50.0] * 6] * 20, 1 if kind == "count" else 100, yesterday=[[50.0] * 11] * 20)
    )
    assert scores["p_value"].min() > 0.05
    assert not scores["notable"].any()


@pytest.mark.parametrize(("kind", "now", "size"), [("count", 4e8, 1), ("rate", 4e8, 2e9), ("mean", 4e8, 2e9)])
def test_a_thousand_million_events(found: Detector, kind: str, now: float, size: float) -> None:
    noise = np.random.default_rng(1).normal(1e9, 3e4, (20, 17))
    scores = found.score(windows(kind, [now] * 20, noise[:, :6].tolist(), size, yesterday=noise[:, 6:].tolist()))
    assert scores["judged"].all()
    assert (scores["p_value"] < 1e-6).all()
    assert scores["evidence"].is_finite().all()


@pytest.mark.parametrize(("factor", "direction"), [(0.1, "down"), (5.0, "up")])
@pytest.mark.parametrize("kind", KINDS)
def test_both_directions(found: Detector, kind: str, factor: float, direction: str) -> None:
    rng = np.random.default_rng(2)
    normal = rng.binomial(1000, 0.15, (30, 17)).astype(float)
    now = [150 * factor if i == 0 else 150.0 for i in range(30)]
    scores = found.score(
        windows(kind, now, normal[:, :6].tolist(), 1 if kind == "count" else 1000, yesterday=normal[:, 6:].tolist())
    )
    first = scores.row(0, named=True)
    assert first["notable"]
    assert first["p_value"] < 1e-4
    assert first["direction"] == direction
    assert not scores["notable"][1:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_numbers_do_no_harm(found: Detector, kind: str) -> None:
    """More orders than sessions, and negative counts of returned goods."""
    above = windows(kind, [150.0] * 20, [[100.0] * 6] * 20, 100, yesterday=[[100.0] * 11] * 20)
    below = windows(kind, [-50.0] * 20, [[-50.0] * 6] * 20, 100, yesterday=[[-50.0] * 11] * 20)
    for scores in map(found.score, (above, below)):
        assert scores["p_value"].is_between(0, 1).all()
        assert scores["evidence"].is_finite().all()
    assert not found.score(below)["notable"].any()
