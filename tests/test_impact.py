"""When it began and what it costs."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import polars as pl
import pytest

from kmon.config import Config
from kmon.impact import beginning, loss
from tests.detect.worlds import AT, DAY, MINUTE, config, shop, traffic
from tests.test_incidents import incident

P1 = pl.col("partner") == "p1"


@pytest.mark.parametrize(
    ("metric", "ago", "sessions", "conversion", "observed", "expected"),
    [
        ("orders", 9, 0.0, 0.5, 0.0, 180.0),
        ("sessions", 9, 40.0, 0.5, 1800.0, 360.0),
        ("conversion", 9, 8.0, 0.1, 0.1, 0.5),
        ("conversion", 3, 8.0, 0.1, 0.2, 0.5),
    ],
)
def test_the_beginning_is_found_to_the_minute(
    metric: str, ago: int, sessions: float, conversion: float, observed: float, expected: float
) -> None:
    ill = P1 & pl.col("today") & (pl.col("ago") <= ago)
    rates = (pl.when(ill).then(to).otherwise(usual) for to, usual in ((sessions, 8.0), (conversion, 0.5)))
    found = replace(incident(), metric=metric, observed=observed, expected=expected)
    with shop(traffic(*rates)) as store:
        start = beginning(store, config(), found, AT)
    assert abs(start - (AT - ago * MINUTE)) <= MINUTE


def told(measures: list[str], **money: object) -> Config:
    """A configuration that tells the loss in `measures`."""
    return config(incidents={"impact": measures, **({"money": money} if money else {})})


@pytest.mark.parametrize("yesterday", [True, False])
def test_the_loss_is_what_is_missing_since_then(yesterday: bool) -> None:
    """9 cells of 8 sessions a minute, of which half buy: 36 orders a minute for ten minutes."""
    ill = P1 & pl.col("today") & (pl.col("ago") <= 10)
    began = AT - 10 * MINUTE
    events = traffic(8.0, pl.when(ill).then(0.0).otherwise(0.5), minutes=90, days=[1, 0] if yesterday else [0])
    with shop(events) as store:
        found = loss(store, told(["orders", "sessions"]), replace(incident(), started_at=began), AT)
    assert found["orders"] == pytest.approx(-360, rel=0.15)
    assert abs(found["sessions"]) < 80


def test_a_level_far_from_yesterdays_is_not_believed() -> None:
    """Yesterday's hour before was nearly empty: today is not a hundred times yesterday."""
    sparse = pl.when(pl.col("today").not_() & (pl.col("ago") > 10)).then(0.05).otherwise(8.0)
    with shop(traffic(sparse, minutes=90)) as store:
        found = loss(store, told(["sessions"]), replace(incident(), started_at=AT - 10 * MINUTE), AT)
    day = store_total(sparse)
    assert found["sessions"] == pytest.approx(day[0] - 2 * day[1])


def store_total(rate: pl.Expr) -> tuple[float, float]:
    """p1's sessions in the last ten minutes, and in the same ones of yesterday."""
    events = traffic(rate, minutes=90).filter(P1 & (pl.col("kind") == "s"))
    first, last = (AT - 10 * MINUTE).replace(tzinfo=None), AT.replace(tzinfo=None)
    shifts = (dt.timedelta(0), DAY)
    today, before = (
        events.filter(pl.col("event_time").is_between(first - d, last - d, closed="left")).height for d in shifts
    )
    return today, before


def test_nothing_to_tell() -> None:
    with shop(traffic().head(10)) as store:
        assert loss(store, told([]), incident(), AT) == {}
