"""Whom an incident hit most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from kmon.errors import UsageError
from kmon.hit import Hits, hit, hit_of
from kmon.ledger import Incident, Ledger, SweepRecord
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, lately, shop, timed, timed_config, traffic
from tests.test_incidents import incident

BROKEN = (pl.col("browser") == "edge") & pl.col("today") & (pl.col("ago") <= 10)
SIZE = 2.0 + 4.0 * pl.col("partner").str.tail(1).cast(pl.Float64)
"""Sessions a minute and cell: p0 has 2, p1 6, and so on to p5, which has 22."""


def edge(**changes: Any) -> Incident:
    """Edge's conversion, down since ten minutes."""
    its: dict[str, Any] = {"metric": "conversion", "scope": {"browser": "edge"}, "observed": 0.1, "expected": 0.5}
    return replace(incident(), **{**its, "started_at": AT - 10 * MINUTE, **changes})


def told(found: Hits | None) -> list[str]:
    assert found is not None
    return [one.value for one in found.worst]


def world(**changes: Any) -> EmbeddedStore:
    """Edge is broken for all but p3."""
    broken = BROKEN & (pl.col("partner") != "p3")
    return shop(traffic(SIZE, pl.when(broken).then(0.1).otherwise(0.5)), **changes)


def test_a_broken_browser_lists_its_partners_by_loss() -> None:
    with world() as store:
        found = hit(store, config(), edge(), AT)
        two = hit(store, config(), edge(), AT, most=2)
    assert found is not None
    assert (found.dimension, found.measure, found.count) == ("partner", "orders", 5)
    assert told(found) == ["p5", "p4", "p2", "p1", "p0"]
    assert (told(two), two and two.count) == (["p5", "p4"], 5)
    first = found.worst[0]
    assert first.impact["orders"] == pytest.approx(-3 * 10 * 22 * 0.4, rel=0.15)
    assert (first.observed, first.expected) == (pytest.approx(0.1, abs=0.03), pytest.approx(0.5, abs=0.05))


def test_the_losses_are_those_of_the_whole_incident() -> None:
    """What each should have had adds up to what was to be expected of all."""
    with shop(traffic(SIZE, pl.when(BROKEN).then(0.0).otherwise(0.5))) as store:
        found = hit(store, config(), edge(metric="orders"), AT)
    assert found is not None
    assert sum(one.impact["orders"] for one in found.worst) == pytest.approx(-3 * 10 * 72 * 0.5, rel=0.1)
    assert {one.observed for one in found.worst} == {0.0}


def test_money_ranks_where_it_is_lost() -> None:
    """`sessions` stands for money: an order of p1 is worth ten, one of the others two."""
    money = {"measure": "sessions", "of": "orders", "critical": 1}
    usual = pl.when(pl.col("partner") == "p1").then(0.1).otherwise(0.5)
    settings = config(incidents={"money": money})
    with shop(traffic(20.0, pl.when(BROKEN).then(0.0).otherwise(usual)), settings) as store:
        found = hit(store, settings, edge(), AT)
    assert found is not None
    assert (found.measure, found.count) == ("sessions", 6)
    p1 = next(one for one in found.worst if one.value == "p1")
    assert p1.impact["sessions"] / p1.impact["orders"] == pytest.approx(10, rel=0.15)


def test_nobody_is_hit_by_chance() -> None:
    with shop(traffic(SIZE)) as store:
        found = hit(store, config(), edge(metric="orders"), AT)
    assert found is not None
    assert (found.count, found.worst) == (0, ())


def test_what_is_too_much_is_a_loss_too_where_more_is_bad() -> None:
    """Sessions that are slower than usual, of a latency."""
    settings = timed_config()
    slow = (pl.col("browser") == "edge") & pl.col("partner").is_in(["p2", "p5"])
    with shop(timed(traffic(SIZE), lately(slow, 3.0, 10)), settings) as store:
        ill = edge(metric="latency", direction="up", observed=900.0, expected=530.0)
        found = hit(store, settings, ill, AT)
    assert told(found) == ["p5", "p2"]
    assert found is not None
    assert found.measure == "events beyond usual latency"
    assert found.worst[0].impact[found.measure] > 100


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"scope": {"partner": "p1"}}, None),
        ({"scope": {}}, "region"),
        ({"scope": {"city": "Bonn"}}, None),
        ({"metric": "sessions", "direction": "up"}, None),
        ({"metric": "gone"}, None),
        ({"started_at": AT - 30 * DAY, "scope": {}}, None),
    ],
    ids=["named", "no such dimension", "forgotten", "good news", "a metric that is gone", "before there was anything"],
)
def test_where_there_is_nothing_to_tell(changes: dict[str, Any], by: str | None) -> None:
    with shop(traffic(2.0)) as store:
        assert (
            hit(store, config(), edge(**changes), AT - 30 * DAY + MINUTE if "started_at" in changes else AT, by=by)
            is None
        )


@pytest.mark.parametrize(
    ("id", "by", "says"),
    [
        ("inc_9", "partner", "there is no incident 'inc_9'"),
        ("inc_1", "browser", "inc_1 is of one browser, 'edge': name another dimension with --by"),
        ("inc_2", "partner", "whom inc_2 hit cannot be told"),
    ],
)
def test_what_cannot_be_told_is_said(id: str, by: str, says: str) -> None:
    with world() as store, Ledger.open("sqlite://") as ledger:
        known = [edge(id="inc_1", seen_at=AT), edge(id="inc_2", metric="gone")]
        ledger.record(SweepRecord(AT, AT, 0.1, 1, 1, 1, 1e-6), known)
        found = hit_of(store, ledger, config(), "inc_1", by="partner")
        assert (found.public()["hit"], found.public()["worst"][0]["value"]) == (5, "p5")
        with pytest.raises(UsageError, match=says):
            hit_of(store, ledger, config(), id, by=by)


def test_another_dimension_is_asked_for_by_name() -> None:
    with world() as store:
        found = hit(store, config(), edge(scope={"partner": "p5"}, metric="orders"), AT, by="browser")
    assert told(found) == ["edge"]


def test_the_time_of_another_incident_of_the_scope_tells_no_shares() -> None:
    """Until five minutes into this hour only p0 could buy with edge, as yesterday at this time."""
    others = (pl.col("browser") == "edge") & (pl.col("partner") != "p0")
    gone = others & (pl.col("ago").is_between(11, 55) | ~pl.col("today"))
    masks = [
        Mask({"browser": "edge"}, AT - 55 * MINUTE, AT - 10 * MINUTE),
        Mask({}, AT - DAY - 60 * MINUTE, AT - DAY + 60 * MINUTE),
    ]
    with shop(traffic(SIZE, pl.when(gone | BROKEN).then(0.0).otherwise(0.5), days=[7, 1, 0])) as store:
        ill = edge(metric="orders", scope={"browser": "edge"})
        clean, spoilt = (hit(store, config(), ill, AT, one) for one in (masks, []))
    assert (told(clean)[0], told(spoilt)[0]) == ("p5", "p0")
