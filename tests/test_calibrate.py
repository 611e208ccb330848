"""P-values made true by what the fleet's own were lately."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kmon.calibrate import Calibration, Tail
from kmon.ledger import Ledger, SweepRecord

AT = dt.datetime(2026, 1, 10, 12, tzinfo=dt.UTC)
FIVE = 300.0
KEY = ("orders", FIVE)


def p_values(scale: float, n: int = 1_000_000) -> np.ndarray:
    """Two-sided, of residuals whose standard deviation is `scale` times what the model thinks."""
    return 2 * stats.norm.sf(np.abs(np.random.default_rng(1).normal(0, scale, n)))


def day(p: np.ndarray) -> Calibration:
    """A day of these p-values, an hour after the other."""
    return Calibration.of([Tail.of(hour) for hour in np.array_split(p, 24)])


def test_it_counts_what_lies_beyond_each_level() -> None:
    assert Tail.of(np.array([0.5, 0.05, 0.004, 1e-5])) == Tail(4, (3, 2, 1, 1))


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_calibrated_p_values_are_as_rare_as_they_say(scale: float) -> None:
    fresh = 2 * stats.norm.sf(np.abs(np.random.default_rng(2).normal(0, scale, 1_000_000)))
    found = day(p_values(scale)).calibrated(fresh)
    for level in (0.01, 1e-3, 1e-4, 1e-5):
        assert (found <= level).mean() <= 1.3 * level + 3 * np.sqrt(level / 1_000_000)


def test_it_never_makes_one_smaller_and_keeps_their_order() -> None:
    p = np.logspace(-30, 0, 400)
    for scale in (0.5, 1.0, 1.7):
        calibrated = day(p_values(scale)).calibrated(p)
        assert (calibrated >= p * (1 - 1e-12)).all()
        assert (np.diff(calibrated) >= 0).all()
        assert calibrated.max() <= 1


def test_the_usual_hour_counts_and_not_the_wild_one() -> None:
    """An outage that nobody has told yet: thousands of tiny p-values in one hour."""
    calm = p_values(1.0)
    wild = calm.copy()
    wild[:20_000] = 1e-12
    assert day(wild).shares == pytest.approx(day(calm).shares, rel=0.1)


@pytest.mark.parametrize(
    ("tests", "levels"), [(50, ()), (400, (0.05,)), (2_000, (0.05, 0.01)), (200_000, (0.05, 0.01, 1e-3, 1e-4))]
)
def test_a_level_tells_where_enough_should_lie_beyond_it(tests: int, levels: tuple[float, ...]) -> None:
    found = day(np.random.default_rng(1).permutation(np.arange(1, tests + 1) / tests))
    assert found.levels == levels
    assert found.excess == pytest.approx(1.0, abs=0.7)


def test_one_hour_tells_nothing() -> None:
    p = np.array([1e-9, 0.3])
    assert Calibration.of([Tail.of(p_values(2.0))]).calibrated(p).tolist() == p.tolist()


def test_the_ledger_keeps_the_hours_of_the_day_before_a_sweep() -> None:
    with Ledger.open("sqlite://") as ledger:
        for hours, beyond in ((25, 900), (3, 60), (2, 70), (1, 80), (0, 900)):
            at = AT - dt.timedelta(hours=hours)
            record = SweepRecord(at, at, 0.1, 1, 1, 0, 0.0)
            ledger.record(record, [], tails={("orders", FIVE): Tail(1000, (beyond, 0, 0, 0))})
        assert ledger.calibrations(AT) == {("orders", FIVE): Calibration((0.05,), (0.07,))}


def test_a_sweep_that_is_made_again_counts_once() -> None:
    with Ledger.open("sqlite://") as ledger:
        for beyond in (50, 900):
            for hour in range(3):
                at = AT + dt.timedelta(hours=hour)
                tails = {("orders", FIVE): Tail(1000, (beyond, 0, 0, 0))}
                ledger.record(SweepRecord(at, at, 0.1, 1, 1, 0, 0.0), [], tails=tails)
        assert ledger.calibrations(AT + dt.timedelta(hours=3))["orders", FIVE].shares == (0.05,)


def test_the_sweeps_of_an_hour_are_one() -> None:
    """Three hours of twenty sweeps each tell what no single sweep could."""
    with Ledger.open("sqlite://") as ledger:
        for minute in range(0, 180, 3):
            at = AT + dt.timedelta(minutes=minute)
            tails = {("orders", FIVE): Tail(50, (3, 0, 0, 0))}
            ledger.record(SweepRecord(at, at, 0.1, 1, 1, 0, 0.0), [], tails=tails)
        assert ledger.calibrations(AT + dt.timedelta(hours=3))["orders", FIVE].shares == (0.06,)


def test_what_the_hours_tell_is_made_once_for_all_processes_and_anew_when_they_change(tmp_path: Path) -> None:
    """Read from the hours, it is the same; a look back at one of the hours counts at once."""

    def sweep_at(hours: float, beyond: int) -> None:
        at = AT - dt.timedelta(hours=hours)
        with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
            ledger.record(SweepRecord(at, at, 0.1, 1, 1, 0, 0.0), [], tails={KEY: Tail(1000, (beyond, 0, 0, 0))})

    def shares() -> tuple[float, ...]:
        with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
            return ledger.calibrations(AT + dt.timedelta(minutes=50))[KEY].shares

    for hours in (3, 2, 1):
        sweep_at(hours, 60)
    before = shares()
    sweep_at(0, 900)
    assert shares() == before == (0.06,)
    with closing(sqlite3.connect(tmp_path / "kmon.ledger.sqlite")) as connection, connection:
        connection.execute("UPDATE tails SET beyond_0 = 900")  # nobody looks there again
    assert shares() == before
    sweep_at(1.5, 80)
    assert shares() != before
