"""P-values made true by what the fleet's own were lately."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from scipy import stats

from kmon.calibrate import LEVELS, Tail
from kmon.ledger import Ledger, SweepRecord

AT = dt.datetime(2026, 1, 10, 12, tzinfo=dt.UTC)
FIVE = 300.0


def p_values(scale: float, n: int = 1_000_000) -> np.ndarray:
    """Two-sided, of residuals whose standard deviation is `scale` times what the model thinks."""
    return 2 * stats.norm.sf(np.abs(np.random.default_rng(1).normal(0, scale, n)))


def test_it_counts_what_lies_beyond_each_level() -> None:
    assert Tail.of(np.array([0.5, 0.05, 0.004, 1e-5])) == Tail(4, (3, 2, 1, 1))
    assert Tail(4, (3, 2, 1, 1)) + Tail(1, (0, 0, 0, 0)) == Tail(5, (3, 2, 1, 1))


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_calibrated_p_values_are_as_rare_as_they_say(scale: float) -> None:
    tail = Tail.of(p_values(scale))
    fresh = tail.calibrated(2 * stats.norm.sf(np.abs(np.random.default_rng(2).normal(0, scale, 1_000_000))))
    for level in (0.01, 1e-3, 1e-4, 1e-5):
        assert (fresh <= level).mean() <= 1.3 * level + 3 * np.sqrt(level / 1_000_000)


def test_it_never_makes_one_smaller_and_keeps_their_order() -> None:
    p = np.logspace(-30, 0, 400)
    for scale in (0.5, 1.0, 1.7):
        calibrated = Tail.of(p_values(scale)).calibrated(p)
        assert (calibrated >= p * (1 - 1e-12)).all()
        assert (np.diff(calibrated) >= 0).all()
        assert calibrated.max() <= 1


def test_too_few_tell_nothing() -> None:
    p = np.array([1e-9, 0.3])
    assert Tail(100, (19, 3, 1, 0)).calibrated(p).tolist() == p.tolist()
    assert Tail(0, (0,) * len(LEVELS)).excess == 1.0


def test_the_excess_is_that_of_the_last_level_that_tells() -> None:
    assert Tail(1_000_000, (50_000, 20_000, 3_000, 400)).excess == pytest.approx(4.0)
    assert Tail(10_000, (500, 200, 10, 1)).excess == pytest.approx(2.0)


def test_the_ledger_sums_the_day_before_a_sweep() -> None:
    with Ledger.open("sqlite://") as ledger:
        for hours, count in ((25, 7), (3, 5), (1, 2), (0, 9)):
            at = AT - dt.timedelta(hours=hours)
            record = SweepRecord(at, at, 0.1, 1, 1, 0, 0.0)
            ledger.record(record, [], tails={("orders", FIVE): Tail(100, (count, 0, 0, 0))})
        assert ledger.tails(AT) == {("orders", FIVE): Tail(200, (7, 0, 0, 0))}


def test_a_sweep_that_is_made_again_counts_once() -> None:
    with Ledger.open("sqlite://") as ledger:
        for count in (1, 4):
            tails = {("orders", FIVE): Tail(10, (count, 0, 0, 0))}
            ledger.record(SweepRecord(AT, AT, 0.1, 1, 1, 0, 0.0), [], tails=tails)
        assert ledger.tails(AT + dt.timedelta(minutes=1)) == {("orders", FIVE): Tail(10, (4, 0, 0, 0))}
