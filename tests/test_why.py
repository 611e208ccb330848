"""Why a monitor fired or did not, in words and as JSON."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

import kmon
from kmon.calibrate import Calibration
from kmon.cli import _windows
from kmon.config import Config
from kmon.detect.expect import AFTER, RECENT
from kmon.errors import UsageError
from kmon.incidents import Action, Decision
from kmon.labels import mark
from kmon.ledger import Ledger
from kmon.reasons import Why, why
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from kmon.windows import _references, fate
from tests.detect.worlds import AT, DAY, MINUTE, NEXT, config, shop, traffic, windows
from tests.test_ledger import INCIDENT
from tests.test_pipeline import dying, fed

P1 = {"partner": "p1"}
DEAD = pl.when((pl.col("partner") == "p1") & NEXT).then(0.0).otherwise(8.0)
FEWER = pl.when((pl.col("partner") == "p1") & NEXT).then(5.6).otherwise(8.0)


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
    assert (window.recent_bins, window.masked_bins, window.missing_bins) == (11, 0, 12)  # of 24, one is the window


def test_a_change_that_is_too_small_says_so() -> None:
    with shop(traffic(FEWER)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT, false_alerts_per_day=1000)
    assert found.outcome == "suppressed"
    assert "certain, but no change worth telling (-3" in found.sentence


def test_the_end_of_a_fall_that_nobody_told_is_no_surge() -> None:
    low = pl.when((pl.col("partner") == "p1") & pl.col("today") & ~NEXT).then(0.8).otherwise(8.0)
    with shop(traffic(low)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT)
    assert found.outcome == "suppressed"
    assert "certain, but it only returns to what other days have (+" in found.sentence


def test_an_incident_is_named_and_its_minutes_are_no_references() -> None:
    settings = config()
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        (incident,) = Watch(settings, store, ledger).look(AT - MINUTE).new
        found = asked(store, ledger, "sessions", P1, AT)
    assert (found.outcome, found.incident, found.decided) == ("joined", incident.id, "joined")
    assert "did not fire anew: in 5m 0 was seen" in found.sentence
    assert f"it belongs to {incident.id}, which was open" in found.sentence
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


# ---- what became of it ----------------------------------------------------------------------------------------------


def test_what_the_sweep_told_is_named_and_nothing_is_recorded() -> None:
    settings = config()
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        (incident,) = Watch(settings, store, ledger).look(AT).new
        before = (ledger.incidents(), ledger.last_sweep(), ledger.deliveries())
        found = asked(store, ledger, "sessions", P1, AT)
        after = (ledger.incidents(), ledger.last_sweep(), ledger.deliveries())
    assert (found.outcome, found.incident, found.decided, found.swept) == ("fired", incident.id, "new", True)
    assert f"a new incident; it belongs to {incident.id}" in found.sentence
    assert after == before


def test_without_a_sweep_it_is_what_one_would_have_said() -> None:
    with shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT)
    assert (found.outcome, found.incident, found.swept) == ("fired", None, False)
    assert "no sweep looked at that instant: this is what one would have said" in found.sentence


def test_what_a_sweep_did_not_tell_has_not_fired() -> None:
    """Its data, or its configuration, was another one."""
    with shop(traffic()) as calm, shop(traffic(DEAD)) as store, Ledger.open("sqlite://") as ledger:
        Watch(config(), calm, ledger).look(AT)
        found = asked(store, ledger, "sessions", P1, AT)
    assert found.outcome == "suppressed"
    assert "UTC would fire now: in 5m" in found.sentence
    assert "that sweep told no incident" in found.sentence


TWO: dict[str, Any] = {"windows": ["5m", "15m"], "incidents": {"resolve_after": 1}}


def over() -> EmbeddedStore:
    """p1 was dead from 20 to 8 minutes before AT."""
    gone = (pl.col("partner") == "p1") & pl.col("today") & pl.col("ago").is_between(9, 20)
    return shop(traffic(pl.when(gone).then(0.0).otherwise(8.0)))


def test_an_echo_of_what_has_ended_did_not_fire() -> None:
    settings = config(**TWO)
    with over() as store, Ledger.open("sqlite://") as ledger:
        for ago in (10, 5, 3, 2):
            Watch(settings, store, ledger).look(AT - ago * MINUTE)
        (incident,) = ledger.incidents()
        found = asked(store, ledger, "sessions", P1, AT - 2 * MINUTE, **TWO)
    assert (found.outcome, found.incident, found.decided) == ("echo", incident.id, "echo")
    assert "did not fire: in 15m" in found.sentence
    assert f"an echo of {incident.id} (sessions down), which is over: its window reaches back into it" in found.sentence


def test_a_width_that_was_not_due_was_not_looked_at() -> None:
    """Windows of 15 minutes are looked at every third minute."""
    settings = config(**TWO)
    with over() as store, Ledger.open("sqlite://") as ledger:
        for ago in (10, 5, 3):
            Watch(settings, store, ledger).look(AT - ago * MINUTE)
        short, long_ = asked(store, ledger, "sessions", P1, AT - 3 * MINUTE, **TWO).windows
        Watch(settings, store, ledger).look(AT - 4 * MINUTE)  # a look back has all widths
        back = asked(store, ledger, "sessions", P1, AT - 4 * MINUTE, **TWO).windows
    assert (short.outcome, long_.outcome) == ("normal", "not looked at")
    assert long_.reason == "not due in that sweep, else an anomaly"
    assert long_.p_value is not None
    assert "not looked at" not in [window.outcome for window in back]


def test_what_missing_data_explains_was_held_back() -> None:
    with EmbeddedStore(":memory:", config()) as store, Ledger.open("sqlite://") as ledger:
        fed(store, traffic(dying()))
        found = asked(store, ledger, "sessions", {"partner": "p3"}, AT - 10 * MINUTE)
        ledger_is_empty = ledger.incidents() == []
    assert (found.outcome, found.incident, found.decided, ledger_is_empty) == ("held", None, "held", True)
    assert "was held back: in 5m 0 was seen" in found.sentence
    assert "held back: No events come from partition 3 since 11:40 UTC" in found.sentence


@pytest.mark.parametrize(
    ("action", "outcome", "says"),
    [
        ("new", "fired", "a new incident"),
        ("reopened", "fired", "inc_1 is back"),
        ("joined", "joined", "it belongs to inc_1, which was open"),
        ("echo", "echo", "because"),
        ("held", "held", "because"),
        ("still", "held", "because"),  # the gate leaves the open incident as it is
        ("resolved", "suppressed", "it belongs to inc_1: because"),  # it has lasted: the new normal
    ],
)
def test_every_decision_has_its_outcome(action: Action, outcome: str, says: str) -> None:
    assert fate(Decision(action, replace(INCIDENT, id="inc_1"), "because")) == (outcome, says)


# ---- why it was not judged ------------------------------------------------------------------------------------------


def test_with_little_history_it_is_learning() -> None:
    with shop(traffic(days=(0,), minutes=20)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT, windows=["5m", "10m"])
    window = found.windows[1]
    assert (found.outcome, window.recent_bins) == ("not judged", 2)
    learning = "learning: 10m known before the window, it takes 30m or the same hours of another day"
    assert window.reason == learning
    assert "was not judged: learning: 15m known before the window" in found.sentence
    assert window.value == pytest.approx(720, rel=0.15)


def test_a_rate_learns_from_its_denominator() -> None:
    few = traffic(0.1, days=(0,), minutes=20, partners=("p1",))
    with shop(few) as store, Ledger.open("sqlite://") as ledger:
        (window,) = asked(store, ledger, "conversion", P1, AT, windows=["10m"]).windows
    assert re.fullmatch(r"learning: \d+ sessions known before the window, it takes 20", window.reason)


def test_what_is_masked_says_by_what_and_until_when() -> None:
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger:
        hidden = mark(ledger, ("sessions", AT - DAY / 4, AT), P1, by="ann")
        found = asked(store, ledger, "sessions", P1, AT)
    (window,) = found.windows
    assert (window.outcome, window.recent_bins, window.masked_bins) == ("not judged", 0, 11)
    assert window.value == pytest.approx(360, rel=0.15)  # seen, though not judged
    says = f"masked: 11 bins of the hours before it lie inside {hidden.id} (partner=p1, 06:00 to 12:00)"
    assert window.reason == f"{says}; it is judged again 5m after the end of that, at the latest"


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("sessions", r"too little: [\d.]+ expected and \d+ seen in 5m, it takes 10 to judge it"),
        ("conversion", r"too little: \d sessions in 5m, it takes 10 to judge it"),
    ],
)
def test_too_little_says_how_much_it_takes(metric: str, says: str) -> None:
    rare = pl.when(pl.col("partner") == "p1").then(0.1).otherwise(8.0)
    with shop(traffic(rare)) as store, Ledger.open("sqlite://") as ledger:
        (window,) = asked(store, ledger, metric, P1, AT).windows
    assert (window.outcome, re.fullmatch(says, window.reason) is not None) == ("not judged", True), window.reason


def test_a_time_before_the_first_event_is_told_in_one_sentence() -> None:
    with shop(traffic(days=(0,))) as store, Ledger.open("sqlite://") as ledger, pytest.raises(UsageError) as caught:
        asked(store, ledger, "sessions", P1, AT - DAY)
    assert (
        str(caught.value)
        == "there is nothing to judge at 2026-01-09 12:00:00 UTC: the first event came at 2026-01-10 11:00:00 UTC"
    )


@pytest.mark.parametrize(
    ("metric", "where", "at", "says"),
    [
        ("session", P1, AT, "there is no metric 'session': did you mean 'sessions'?"),
        ("sessions", {"partne": "p1"}, AT, "there is no dimension 'partne': did you mean 'partner'?"),
        ("sessions", P1, AT.replace(tzinfo=None), "2026-01-10T12:00:00 has no time zone"),
    ],
)
def test_in_python_a_wrong_question_is_a_sentence(
    metric: str, where: dict[str, str], at: dt.datetime, says: str
) -> None:
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger, pytest.raises(UsageError) as caught:
        kmon.why(config(), store, ledger, metric, where, at)
    assert str(caught.value).startswith(says)


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_what_each_reference_says_is_told() -> None:
    """The day before had twice as many, as had the hours before on it; the window of today fell to half."""
    level = pl.when(pl.col("today")).then(8.0).otherwise(16.0)
    half = pl.when((pl.col("partner") == "p1") & NEXT).then(4.0).otherwise(level)
    with shop(traffic(half)) as store, Ledger.open("sqlite://") as ledger:
        found = asked(store, ledger, "sessions", P1, AT)
    (window,) = found.windows
    recent, day1 = window.references
    assert (recent.name, recent.weight, day1.name, day1.weight) == ("recent", None, "day1", 1.0)
    assert [recent.seen, recent.expected] == pytest.approx([360, 360], rel=0.15)
    assert [day1.seen, day1.expected] == pytest.approx([720, 360], rel=0.15)
    told = json.loads(json.dumps(found.public()))["windows"][0]
    assert told["bin"] == "5m"
    assert told["references"][1] == {"name": "day1", "weight": 1.0, "seen": day1.seen, "expected": day1.expected}
    assert told["raw_p_value"] == told["p_value"]
    assert told["noise_times_chance"] >= 1
    assert told["drift_relative_variance"] > 0
    assert told["reference_events"] > 3000


def test_a_p_value_is_told_before_and_after_its_calibration() -> None:
    """Where a hundred times too many lie below 0.0001, one is larger than the detector says."""
    with shop(traffic(FEWER)) as store, Ledger.open("sqlite://") as ledger:
        ledger.calibrations = lambda at: {("sessions", 300.0): Calibration((0.05, 1e-4), (0.1, 0.01))}  # type: ignore[method-assign]
        (window,) = asked(store, ledger, "sessions", P1, AT).windows
    assert window.p_value is not None
    assert window.raw_p_value is not None
    assert window.raw_p_value < window.p_value / 5


def test_the_table_names_detectors_and_knows_what_it_does_not_know() -> None:
    trial: dict[str, Any] = {"detectors": [{"use": "compare"}, {"use": "compare", "shadow": True}]}
    with shop(traffic()) as store, Ledger.open("sqlite://") as ledger:
        both = asked(store, ledger, "sessions", P1, AT, **trial)
        nobody = asked(store, ledger, "sessions", {"partner": "nobody"}, AT)
    columns, rows = _windows(config().metrics["sessions"], both.windows)
    assert [row[columns.index("detector")] for row in rows] == ["compare", "compare"]
    assert re.fullmatch(r"\d+ \(11 bins\)", str(rows[0][columns.index("last hours say")]))
    assert re.fullmatch(r"day1 \d+ \(100%\)", str(rows[0][columns.index("other days say")]))
    assert re.fullmatch(r"[\d.]+x ±\d+%", str(rows[0][columns.index("noise")]))
    columns, ((*_, reason),) = _windows(config().metrics["sessions"], nobody.windows)
    (row,) = _windows(config().metrics["sessions"], nobody.windows)[1]
    assert (row[columns.index("seen")], reason) == ("-", "no event of it was ever seen")


def test_the_longest_window_says_that_too_little_is_expected_and_what_was_not_due() -> None:
    """Windows of 15 minutes can be judged, but are looked at every third minute."""
    rare = pl.when(pl.col("partner") == "p1").then(0.15).otherwise(8.0)
    three: dict[str, Any] = {"windows": ["2m", "5m", "15m"]}
    with shop(traffic(rare)) as store, Ledger.open("sqlite://") as ledger:
        for ago in (1, 0):
            Watch(config(**three), store, ledger).look(AT - ago * MINUTE)
        found = asked(store, ledger, "sessions", P1, AT, **three)
    assert [window.outcome for window in found.windows] == ["not judged", "not judged", "not looked at"]
    assert re.search(r"was not judged: too little: \d[.\d]* expected and \d+ seen in 5m, it takes 10", found.sentence)
    assert "; windows of 15m, which can be judged, were not due in that sweep" in found.sentence


def test_a_day_that_has_no_such_window_but_weighs_is_told() -> None:
    """History began the day before, a little later: a rate goes by what came after."""
    day = np.full((1, RECENT + AFTER), np.nan)
    day[:, RECENT + 1 :] = 20.0
    given = windows("rate", [20.0], 20.0, 50.0, day1=day)
    recent, day1 = _references(given, config().metrics["conversion"], 0, {"day1": 1.0})
    assert (recent.name, recent.seen, day1.name, day1.seen) == ("recent", 0.4, "day1", None)
    assert day1.expected == pytest.approx(0.4)
