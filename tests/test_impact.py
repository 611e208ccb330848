"""When it began and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import cube
from kmon.detect.cube import recall
from kmon.impact import beginning, loss
from kmon.ledger import Ledger
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, traffic
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


def test_it_did_not_begin_before_the_level_had_changed_for_good() -> None:
    """Nobody buys for twenty minutes, which is the new normal; three minutes ago they buy again."""
    shut = P1 & pl.col("today") & pl.col("ago").is_between(4, 20)
    found = replace(incident(), metric="conversion", observed=0.5, expected=0.001, direction="up")
    with shop(traffic(8.0, pl.when(shut).then(0.0).otherwise(0.5))) as store:
        starts = [beginning(store, config(), found, AT, after) for after in (None, AT - 20 * MINUTE)]
    assert starts[0] < AT - 20 * MINUTE
    assert abs(starts[1] - (AT - 3 * MINUTE)) <= MINUTE


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


def lost(store: EmbeddedStore, minutes: int, masks: Sequence[Mask] = (), **changes: Any) -> float:
    """Of p1's sessions in the last minutes, by what was expected of them."""
    began = replace(incident(), metric="sessions", started_at=AT - minutes * MINUTE, **changes)
    return loss(store, told(["sessions"]), began, AT, masks)["sessions"]


def dead(minutes: int, usual: pl.Expr | float = 8.0) -> pl.Expr:
    """No sessions of p1 in the last minutes; 72 a minute usually."""
    return pl.when(P1 & pl.col("today") & (pl.col("ago") <= minutes)).then(0.0).otherwise(usual)


def test_the_loss_of_a_young_incident_in_a_large_fleet_is_told_by_what_the_sweep_has_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cube, "LARGE", 6)
    monkeypatch.setattr(cube, "MANY", 5)
    edge = pl.col("browser") == "edge"
    ill = pl.when(edge & pl.col("today") & (pl.col("ago") <= 7)).then(1.0).otherwise(8.0)
    young = replace(incident(), metric="sessions", scope={"browser": "edge"}, started_at=AT - 7 * MINUTE)
    with shop(traffic(ill, minutes=240)) as store:
        read = recall(store, config(), AT)
        anew = loss(store, told(["sessions", "orders"]), young, AT)
        monkeypatch.setattr(store, "windows", None)
        assert loss(store, told(["sessions", "orders"]), young, AT, cube=read) == anew
    assert anew["sessions"] == pytest.approx(-7 * 7 * 18, rel=0.1)


@pytest.mark.parametrize(("busy", "worth"), [(8.0, 2.0), (2.0, 5.0)])
def test_what_an_order_is_worth_is_told_by_the_hour_before_if_that_had_enough(busy: float, worth: float) -> None:
    """In that hour there are two sessions for an order, in the three hours before it ten; nobody comes any more."""
    share = pl.when(pl.col("ago") <= 70).then(0.5).otherwise(0.1)
    settings = told(["orders"], measure="sessions", of="orders", critical=1)
    with shop(traffic(dead(10, busy), share, minutes=250, days=[0])) as store:
        found = loss(store, settings, replace(incident(), started_at=AT - 10 * MINUTE), AT)
    assert found["sessions"] / found["orders"] == pytest.approx(worth, rel=0.1)


def test_the_loss_agrees_with_what_the_incident_expected() -> None:
    settings = told(["sessions"])
    with shop(traffic(dead(5)), settings) as store, Ledger.open("sqlite://") as ledger:
        (found,) = Watch(settings, store, ledger).look(AT).new
    assert (found.metric, found.scope, found.started_at) == ("sessions", {"partner": "p1"}, AT - 5 * MINUTE)
    assert found.impact["sessions"] == pytest.approx(found.observed - found.expected, rel=0.04)


@pytest.mark.parametrize("minutes", [3, 30, 150])
def test_the_loss_goes_by_the_shape_of_other_days_however_long_it_lasts(minutes: int) -> None:
    """From the hour before AT on there are twice as many on all days; it may begin before or after that."""
    busy = pl.when(pl.col("ago") <= 60).then(8.0).otherwise(4.0)
    with shop(traffic(dead(minutes, busy), minutes=300)) as store:
        found = lost(store, minutes)
    assert found == pytest.approx(-72 * min(minutes, 60) - 36 * max(minutes - 60, 0), rel=0.1)


def test_a_monday_is_not_judged_by_its_weekend() -> None:
    """On the two days before there are 8 a minute; on Mondays they double each hour, from 4 two hours before AT."""
    monday = pl.col("ts").dt.date().is_in([(AT - d * DAY).date() for d in (0, 7, 14)])
    usual = pl.when(monday).then(4 * 2 ** ((120 - pl.col("ago")) / 60)).otherwise(8.0)
    with shop(traffic(dead(10, usual), minutes=120, days=[14, 7, 2, 1, 0])) as store:
        found = lost(store, 10)
    assert found == pytest.approx(-9 * sum(4 * 2 ** ((120 - ago) / 60) for ago in range(1, 11)), rel=0.1)


def test_the_outage_of_yesterday_is_no_reference_for_todays_loss() -> None:
    gone = P1 & pl.col("ts").is_between(*((AT - DAY + m * MINUTE).replace(tzinfo=None) for m in (-10, 29)))
    mask = Mask({"partner": "p1"}, AT - DAY - 10 * MINUTE, AT - DAY + 30 * MINUTE)
    with shop(traffic(dead(10, pl.when(gone).then(0.0).otherwise(8.0)), minutes=120)) as store:
        assert lost(store, 10, [mask]) == pytest.approx(-720, rel=0.1)
        assert lost(store, 10) > -400


def test_what_is_not_known_is_not_told() -> None:
    """It began with the history: there is nothing to expect."""
    with shop(traffic(minutes=30, days=[0])) as store:
        assert loss(store, told(["sessions"]), replace(incident(), started_at=AT - 30 * MINUTE), AT) == {}


def test_nothing_to_tell() -> None:
    with shop(traffic().head(10)) as store:
        assert loss(store, told([]), incident(), AT) == {}
