"""Why a monitor fired or did not, in words and as JSON."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import polars as pl
import pytest

from kmon.config import Config
from kmon.errors import UsageError
from kmon.ledger import Ledger
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from kmon.why import Why, why
from tests.detect.worlds import AT, MINUTE, NEXT, config, shop, traffic

P1 = {"partner": "p1"}
DEAD = pl.when((pl.col("partner") == "p1") & NEXT).then(0.0).otherwise(8.0)
FEWER = pl.when((pl.col("partner") == "p1") & NEXT).then(5.0).otherwise(8.0)


def asked(
    store: EmbeddedStore,
    ledger: Ledger,
    metric: str,
    where: dict[str, str],
    at: dt.datetime | None = None,
    **changes: Any,
) -> Why:
    return why(config(**changes), store, ledger, metric, where, at)


@pytest.mark.parametrize(
    ("metric", "where", "outcome", "cause"),
    [
        ("sessions", P1, "fired", None),
        ("sessions", {"partner": "p1", "country": "SE"}, "explained", P1),
        ("orders", P1, "explained", P1),
        ("sessions", {"partner": "p2"}, "normal", None),
        ("conversion", P1, "not judged", None),  # nobody was there to buy
    ],
)
def test_what_became_of_a_monitor(metric: str, where: dict[str, str], outcome: str, cause: dict | None) -> None:
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, metric, where, AT)
    assert (found.outcome, found.cause) == (outcome, cause)
    assert "2026-01-10 12:00:00 UTC" in found.sentence


def test_the_numbers_are_those_of_the_sweep() -> None:
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        (window,) = asked(store, ledger, "sessions", P1, AT).windows
    assert (window.value, window.observed) == (0.0, 0.0)
    assert window.expected == pytest.approx(360, rel=0.15)  # 9 cells of 8 sessions a minute, for five minutes
    assert window.lower is not None
    assert window.lower > 100
    assert window.p_value is not None
    assert window.p_value < window.cutoff < 0.01  # type: ignore[operator]
    assert window.days == {"day1": 1.0}
    assert (window.recent_bins, window.masked_bins) == (11, 13)  # an hour of history, without the window


def test_a_change_that_is_too_small_says_so() -> None:
    with shop(traffic(FEWER)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT, false_alerts_per_day=1000)
    assert found.outcome == "suppressed"
    assert "certain, but no change worth telling (-3" in found.sentence


def test_an_incident_is_named_and_its_minutes_are_no_references() -> None:
    settings = config()
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        (incident,) = Watch(settings, store, ledger).look(AT - MINUTE).new
        found = asked(store, ledger, "sessions", P1, AT)
    assert found.incident == incident.id
    assert incident.id in found.sentence
    assert [i.id for i in found.masked] == [incident.id]


def test_what_fired_later_is_no_reason_for_what_was_judged_before() -> None:
    settings = config()
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        Watch(settings, store, ledger).look(AT)
        found = asked(store, ledger, "sessions", P1, AT - MINUTE)
    assert found.masked == ()


def test_it_is_json() -> None:
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        told = json.loads(json.dumps(asked(store, ledger, "sessions", P1).public()))
    assert (told["metric"], told["where"], told["at"], told["outcome"]) == (
        "sessions", P1, "2026-01-10T12:00:00Z", "fired",
    )  # fmt: skip
    assert told["windows"][0]["width"] == "5m"


def test_a_time_that_cannot_be_judged_is_told_in_one_sentence() -> None:
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger, pytest.raises(UsageError) as caught:
        asked(store, ledger, "sessions", P1, AT + dt.timedelta(hours=1))
    says = "that time was not judged: the data is complete up to 2026-01-10 12:00:00 UTC"
    assert str(caught.value).startswith(says)


# ---- scopes that no line of `watch` has -----------------------------------------------------------------------------

SE_EDGE = {"country": "SE", "browser": "edge"}
BROKEN = (pl.col("country") == "SE") & (pl.col("browser") == "edge") & pl.col("today") & (pl.col("ago") <= 10)


def test_an_incident_in_a_scope_that_is_not_watched_can_be_asked_about() -> None:
    """With the numbers that it was raised with."""
    broken = traffic(conversion=pl.when(BROKEN).then(0.02).otherwise(0.5))
    with shop(broken) as store, Ledger.open("sqlite://") as ledger:
        (incident,) = Watch(config(), store, ledger).look(AT).new
        assert (incident.metric, incident.scope) == ("conversion", SE_EDGE)
        found = asked(store, ledger, "conversion", incident.scope, incident.detected_at)
    (window,) = found.windows
    assert (found.outcome, found.cause, found.incident, found.watched) == ("fired", None, incident.id, False)
    told = (window.observed, window.expected, window.lower, window.upper, window.p_value)
    assert told == (incident.observed, incident.expected, incident.lower, incident.upper, incident.p_value)
    assert window.cutoff is not None
    assert window.p_value is not None
    assert window.p_value <= window.cutoff
    assert window.recent_bins > 0
    assert "no line of 'watch' has it, so it fires only as the root cause" in found.sentence
    assert not found.public()["watched"]


@pytest.mark.parametrize(
    ("metric", "where", "outcome", "says"),
    [
        ("sessions", SE_EDGE, "normal", "is normal: in 5m"),
        ("sessions", {**P1, **SE_EDGE}, "normal", "is normal: in 5m"),
        ("conversion", {**P1, **SE_EDGE}, "explained", "by conversion down of country=SE, browser=edge"),
        ("conversion", {"country": "SE", "browser": "netscape"}, "not judged", "no event of it was ever seen"),
    ],
)
def test_any_scope_can_be_asked_about(metric: str, where: dict[str, str], outcome: str, says: str) -> None:
    broken = traffic(conversion=pl.when(BROKEN).then(0.02).otherwise(0.5))
    with shop(broken) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, metric, where, AT)
    assert (found.outcome, says in found.sentence) == (outcome, True), found.sentence
    assert "no line of 'watch' has it" in found.sentence


def test_what_only_overlaps_a_cause_is_explained_by_it() -> None:
    """p1 is three quarters of all there."""
    usual = pl.when(pl.col("partner") == "p1").then(60.0).otherwise(20.0)
    gone = (pl.col("partner") == "p1") & NEXT
    dead = traffic(pl.when(gone).then(0.0).otherwise(usual), partners=("p1", "p2"))
    with shop(dead) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", SE_EDGE, AT)
    assert (found.outcome, found.cause) == ("explained", P1)


def test_what_no_watched_monitor_led_to_is_told_so() -> None:
    broken = traffic(pl.when(BROKEN).then(2.0).otherwise(8.0))
    with shop(broken) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", SE_EDGE, AT, watch=[["partner"]], false_alerts_per_day=1e-9)
    assert (found.outcome, found.windows[0].reason) == ("suppressed", "certain, but no watched monitor led to it")


def test_a_monitor_that_nobody_ever_saw_was_not_judged() -> None:
    settings: Config = config()
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger:
        found = why(settings, store, ledger, "sessions", {"partner": "nobody"}, AT)
    assert found.outcome == "not judged"
    assert "no event of it was ever seen" in found.sentence


def test_a_rate_is_told_in_percent() -> None:
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "conversion", P1, AT)
    assert re.search(r"in 5m \d+\.\d % was seen and \d+\.\d % expected \(.* % is normal\)", found.sentence)
