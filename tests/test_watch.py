"""One look: sweep, explain, decide, record."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from kmon import watch as watch_module
from kmon.config import Config
from kmon.detect import cube, expected_measures, expected_series, observe
from kmon.errors import LedgerError, UsageError
from kmon.impact import YOUNG, loss
from kmon.incidents import show_scope
from kmon.ledger import Incident, Ledger
from kmon.store import EmbeddedStore
from kmon.watch import Watch, prepare, run
from tests.detect.worlds import AT, BROWSERS, MINUTE, PARTNERS, add, config, shop, traffic

EVIL = 'A$^2$ <b>&</b> <!channel> "q"\n\'; DROP TABLE x; -- \N{SHOPPING TROLLEY}'
NAMES = (EVIL, *PARTNERS)


def ill(partner: str, ago: int, until: int = 0) -> pl.Expr:
    """No traffic of `partner` from `ago` to `until` minutes before AT."""
    gone = (pl.col("partner") == partner) & pl.col("today") & pl.col("ago").is_between(until + 1, ago)
    return pl.when(gone).then(0.0).otherwise(8.0)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


Look = Callable[[EmbeddedStore, int], dict[str, list[Incident]]]


@pytest.fixture
def look(ledger: Ledger) -> Look:
    """Look so many minutes before AT; the incidents by what was decided."""

    def at(store: EmbeddedStore, ago: int) -> dict[str, list[Incident]]:
        found: dict[str, list[Incident]] = {}
        for decision in Watch(config(), store, ledger).look(AT - ago * MINUTE).decisions:
            found.setdefault(decision.action, []).append(decision.incident)
        return found

    return at


def test_an_outage_from_its_beginning_to_its_end(look: Look, ledger: Ledger) -> None:
    """Dead for 12 minutes; what comes back is no surge, and it is told once when it is over."""
    with shop(traffic(ill(EVIL, 30, 18), partners=NAMES)) as store:
        seen = [look(store, ago) for ago in range(34, 5, -1)]
    actions = [action for step in seen for action in step]
    assert actions[:1] == ["new"]
    assert actions.count("new") == actions.count("resolved") == 1
    (incident,) = ledger.incidents()
    assert (incident.scope, incident.status) == ({"partner": EVIL}, "resolved")
    assert abs(incident.started_at - (AT - 30 * MINUTE)) <= MINUTE
    assert AT - 30 * MINUTE < incident.detected_at <= AT - 25 * MINUTE
    assert incident.resolved_at is not None
    assert AT - 18 * MINUTE <= incident.resolved_at <= AT - 8 * MINUTE
    assert incident.impact["orders"] == pytest.approx(-12 * 36, rel=0.2)
    assert [(d.kind, d.sink) for d in ledger.deliveries()] == [("firing", "console"), ("resolved", "console")]


def test_the_loss_of_a_long_incident_is_told_now_and_then_and_at_its_end(
    look: Look, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[tuple[dt.timedelta, dict[str, float]]]] = {}

    def noted(store: Any, settings: Any, incident: Incident, at: dt.datetime, *read: Any) -> dict[str, float]:
        found = loss(store, settings, incident, at, *read)
        told.setdefault(incident.id, []).append((at - incident.started_at, found))
        return found

    monkeypatch.setattr(watch_module, "loss", noted)
    with shop(traffic(ill("p1", 130, 12), minutes=200)) as store:
        for ago in range(134, 0, -1):
            look(store, ago)
    incident = next(one for one in ledger.incidents() if one.scope == {"partner": "p1"})
    ages = [age for age, _ in told[incident.id]]
    assert incident.status == "resolved"
    assert [age for age in ages if age <= YOUNG] == [n * MINUTE for n in range(ages[0] // MINUTE, 31)]
    assert all(after <= 1.1 * before + MINUTE for before, after in itertools.pairwise(ages))
    assert len([age for age in ages if age > YOUNG]) < 20
    assert ages[-1] == incident.seen_at - incident.started_at
    assert incident.impact == told[incident.id][-1][1]
    assert incident.impact["orders"] == pytest.approx(-36 * (ages[-1] / MINUTE), rel=0.1)


def test_the_severity_of_an_old_incident_is_told_anew_with_its_loss_only(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is of another age in between, and would seem less an hour."""
    settings = config(incidents={"impact": ["orders"], "money": {"measure": "sessions", "of": "orders", "critical": 1}})
    with shop(traffic(ill("p1", 70), minutes=200), settings) as store:
        watch = Watch(settings, store, ledger, deliver=False)
        for ago in range(66, 25, -1):
            watch.look(AT - ago * MINUTE)
        (before,) = ledger.incidents()
        monkeypatch.setattr(watch_module, "is_due", lambda *_: False)
        monkeypatch.setattr(watch_module, "severity_of", lambda *_: "warning")
        watch.look(AT - 25 * MINUTE)
        (after,) = ledger.incidents()
    assert after.seen_at > before.seen_at
    assert (before.severity, after.severity) == ("critical", "critical")
    assert after.impact == before.impact


def test_names_come_back_as_they_are(look: Look, ledger: Ledger) -> None:
    with shop(traffic(ill(EVIL, 6), partners=NAMES)) as store:
        (incident,) = look(store, 0)["new"]
        assert {child.scope.get("partner") for child in ledger.anomalies(incident.id)} == {EVIL}
        outcome = Watch(config(), store, ledger).look(AT)
        html = outcome._repr_html_()
    assert repr(outcome) == f"<Outcome {outcome}>"
    assert outcome.scores["where"][0] == show_scope({"partner": EVIL})
    assert incident.scope == {"partner": EVIL}
    assert "<!channel>" not in html
    assert "&lt;!channel&gt;" in html
    assert "\n" not in show_scope(incident.scope)


def test_what_becomes_of_it_is_told_once(look: Look, ledger: Ledger) -> None:
    """First p1 has nobody in SE, then nobody at all; who heard of it hears that, and of its end."""
    p1 = (pl.col("partner") == "p1") & pl.col("today")
    broken = p1 & ((pl.col("country") == "SE") & pl.col("ago").is_between(16, 40) | pl.col("ago").is_between(16, 32))
    with shop(traffic(pl.when(broken).then(0.0).otherwise(8.0))) as store:
        for ago in range(36, 5, -1):
            look(store, ago)
    (incident,) = ledger.incidents()
    assert (incident.scope, incident.status) == ({"partner": "p1"}, "resolved")
    assert [(d.kind, d.scope, d.change) for d in ledger.deliveries()] == [
        ("firing", {"partner": "p1", "country": "SE"}, None),
        ("changed", {"partner": "p1"}, "widened from partner=p1, country=SE to partner=p1"),
        ("resolved", {"partner": "p1"}, None),
    ]


def test_a_severity_that_rises_is_told_also_to_those_who_only_hear_of_the_worst(ledger: Ledger) -> None:
    """Of p1's sessions two thirds are missing, and ten minutes later all of them."""
    routes = [{"match": {"severity": [s]}, "sinks": [k]} for s, k in (("critical", "loud"), ("warning", "console"))]
    sinks = {"console": {"kind": "console"}, "loud": {"kind": "console"}}
    settings = config(sinks=sinks, routes=routes, incidents={"critical": 0.9})
    fewer = (pl.col("partner") == "p1") & pl.col("today") & pl.col("ago").is_between(11, 20)
    with shop(traffic(pl.when(fewer).then(2.7).otherwise(ill("p1", 10))), settings) as store:
        watch = Watch(settings, store, ledger)
        reasons = [d.reason for ago in range(16, 0, -1) for d in watch.look(AT - ago * MINUTE).decisions]
    (change,) = {reason for reason in reasons if reason.startswith("now critical: sessions down")}
    assert [(d.kind, d.sink) for d in ledger.deliveries()][:1] == [("firing", "console")]
    assert sorted((d.kind, d.sink, d.change) for d in ledger.deliveries()[1:]) == [
        ("changed", "console", change),
        ("firing", "loud", None),
    ]


def test_good_news_is_recorded_but_sent_to_nobody(look: Look, ledger: Ledger) -> None:
    rise = pl.when((pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= 5)).then(40.0).otherwise(8.0)
    with shop(traffic(rise)) as store:
        (incident,) = look(store, 0)["new"]
    assert (incident.severity, incident.direction) == ("info", "up")
    assert ledger.deliveries() == []


def test_a_sweep_and_its_alerts_are_one_transaction(look: Look, ledger: Ledger) -> None:
    """Where an alert cannot be written there is no incident and no sweep either, and the next look finds it."""
    with ledger._engine.begin() as connection:  # the database's own refusal, not a stand-in
        connection.execute(
            sa.text("CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END")
        )
    with shop(traffic(ill("p1", 6))) as store:
        with pytest.raises(LedgerError):
            look(store, 0)
        assert ledger.incidents() == []
        assert ledger.last_sweep() is None
        with ledger._engine.begin() as connection:
            connection.execute(sa.text("DROP TRIGGER full"))
        assert list(look(store, 0)) == ["new"]
    assert [d.incident for d in ledger.deliveries()] == [ledger.incidents()[0].id]


def test_the_newest_complete_instant_is_judged_once(ledger: Ledger) -> None:
    with shop(traffic(), upto=AT + dt.timedelta(seconds=50)) as store:
        watch = Watch(config(), store, ledger)
        assert watch.look().at == AT
        again = watch.look()
        assert (again.at, str(again)) == (
            None,
            "nothing new: the next sweep is due when the data is complete up to 12:01:00 UTC",
        )
        add(store, traffic().head(1), AT + MINUTE)
        assert watch.look().at == AT + MINUTE


def test_an_empty_store_is_said_to_be_empty(ledger: Ledger) -> None:
    with EmbeddedStore(":memory:", config()) as store:
        assert str(Watch(config(), store, ledger).look()) == "the store has no events yet"


def filled(folder: Path) -> Config:
    settings = config(folder)
    with EmbeddedStore(settings.resolve(settings.store), settings) as store:
        add(store, traffic(ill("p1", 6)), AT + dt.timedelta(seconds=30))
    return settings


@pytest.mark.parametrize(
    ("at", "judged"),
    [
        (None, AT),
        ("2026-01-10T12:00:00Z", AT),
        ("2026-01-10T12:59:20+01:00", AT - MINUTE),
        ("2026-01-10T12:01:00Z", None),
    ],
)
def test_one_look_by_itself(tmp_path: Path, at: str | None, judged: dt.datetime | None) -> None:
    """What is not complete is not judged."""
    outcome = run(filled(tmp_path), at=at)
    assert outcome.at == judged
    if judged is None:
        assert str(outcome) == "not judged: the data is complete only up to 2026-01-10 12:00:30 UTC"


def test_what_was_read_ahead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = filled(tmp_path)
    told = [prepare(settings)]
    monkeypatch.setattr(cube, "LARGE", 6)
    told += [prepare(settings), prepare(settings)]
    says = [
        "the fleet is so small that",
        "sweeps were read in ",
        "sweeps were there: what has passed since was added in ",
    ]
    assert [text in one for text, one in zip(says, told, strict=True)] == [True] * 3, told


def test_each_look_reads_the_partner_reference_as_it_is(tmp_path: Path) -> None:
    """As the scheduled notebook looks, in a kernel that stays warm."""
    settings = filled(tmp_path).model_copy(update={"partners": "partners.csv"})
    channels = []
    for ago, channel in ((1, "#first"), (0, "#second")):
        (tmp_path / "partners.csv").write_text(f"partner,slack_channel\np1,{channel}\n", encoding="utf-8")
        (incident,) = run(settings, at=AT - ago * MINUTE).incidents
        channels.append(incident.channel)
    assert channels == ["#first", "#second"]


def test_a_time_needs_a_zone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no time zone"):
        run(filled(tmp_path), at="2026-01-10T12:00:00")


def test_a_metric_that_was_taken_out_lets_its_incident_end(look: Look, ledger: Ledger) -> None:
    with shop(traffic(ill("p1", 6))) as store:
        look(store, 0)
        without = config(metrics={"conversion": {"rate": "orders / sessions"}}, incidents={"impact": ["orders"]})
        (decision,) = Watch(without, store, ledger).look(AT + MINUTE).decisions
    assert decision.action == "unjudged"


def test_detectors_on_trial_leave_anomalies_but_no_incident(ledger: Ledger) -> None:
    uses = [{"use": "compare", "params": {"min_volume": 1e6}}, {"use": "compare", "shadow": True}]
    with shop(traffic(ill("p1", 6))) as store:
        outcome = Watch(config(detectors=uses), store, ledger).look(AT)
    assert (outcome.decisions, ledger.incidents(), ledger.deliveries()) == ((), [], [])


def test_two_that_judge_at_once_tell_an_incident_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that records later has not seen what the other one found: it records nothing."""
    with shop(traffic(ill("p1", 8))) as store:
        first, second = (Watch(config(), store, ledger) for _ in range(2))
        read = store.cells

        def interrupted(*arguments: Any, **options: Any) -> pl.DataFrame:
            monkeypatch.undo()
            assert len(first.look(AT).new) == 1
            return read(*arguments, **options)

        monkeypatch.setattr(store, "cells", interrupted)
        with pytest.raises(LedgerError, match="another process judged at the same time"):
            second.look(AT)
    assert len(ledger.incidents()) == len(ledger.deliveries()) == 1


def test_an_echo_is_told_and_not_recorded(ledger: Ledger) -> None:
    """Windows of 15 minutes, which are looked at every third minute, reach back into p1's outage after its end."""
    settings = config(windows=["5m", "15m"], incidents={"resolve_after": 1})
    with shop(traffic(ill("p1", 20, 8))) as store:
        watch = Watch(settings, store, ledger)
        outcome = [watch.look(AT - ago * MINUTE) for ago in (10, 5, 3, 2)][-1]
    (incident,) = ledger.incidents()
    (echo,) = outcome.echoes
    assert incident.status == "resolved"
    assert (echo.of, echo.incident.scope) == (incident.id, {"partner": "p1"})
    assert "1 left out as echoes" in str(outcome)
    assert [told["reason"] for told in outcome.public()["echoes"]] == [echo.reason]
    assert json.loads(json.dumps(outcome.public()))["at"].startswith("2026-01-10T1")


def test_looking_back_tells_nothing_twice_and_ends_nothing(look: Look, ledger: Ledger) -> None:
    with shop(traffic(ill("p1", 30, 18))) as store:
        for ago in range(34, 5, -1):
            look(store, ago)
        (before,) = ledger.incidents()
        for ago in (24, 20, 31):
            look(store, ago)
    assert ledger.incidents() == [before]
    assert before.status == "resolved"


def test_what_is_new_in_kmon_yaml_raises_no_alarm(look: Look, ledger: Ledger) -> None:
    """A measure and a dimension that are counted since ten minutes rise from nothing for kmon, not for the shop."""
    full = config()
    few = {
        "dimensions": ("partner", "country"),
        "measures": {"sessions": full.measures["sessions"]},
        "metrics": {"sessions": full.metrics["sessions"]},
        "watch": ((), ("partner",)),
    }
    events, change = traffic(), (AT - 10 * MINUTE).replace(tzinfo=None)
    before = events.filter(pl.col("event_time") < change)
    with shop(before, full.model_copy(update=few), upto=AT - 10 * MINUTE) as store:
        store.reconfigure(full)
        add(store, events.filter(pl.col("event_time") >= change))
        fleet = observe(store, full, AT)
        assert fleet.monitors["browser"].n_unique() == len(BROWSERS) + 1
        assert list(look(store, 0)) == []
        orders = fleet.windows(full.metrics["orders"], 5 * MINUTE)["recent_value"].to_numpy()
        assert np.isfinite(orders).sum(axis=1).max() == 1  # of the two five-minute bins since then, one is past
        told = expected_series(store, full, "orders", {}, AT - 20 * MINUTE, AT)["observed"]
        assert (told.null_count(), told[:10].null_count()) == (10, 10)
        split = expected_series(store, full, "sessions", {"browser": "edge"}, AT - 20 * MINUTE, AT)["observed"]
        assert split.null_count() == 10


def test_an_incident_in_a_dimension_that_was_forgotten_hurts_nothing(look: Look, ledger: Ledger) -> None:
    gone = pl.when((pl.col("country") == "SE") & pl.col("today") & (pl.col("ago") <= 6)).then(0.0).otherwise(8.0)
    full = config()
    fewer = full.model_copy(
        update={
            "dimensions": ("partner", "browser"),
            "watch": tuple(grouping for grouping in full.watch if "country" not in grouping),
            "forget": ("country",),
        }
    )
    with shop(traffic(gone)) as store:
        (incident,) = look(store, 0)["new"]
        assert incident.scope == {"country": "SE"}
        store.reconfigure(fewer)
        outcome = Watch(fewer, store, ledger).look(AT, thorough=True)
        assert outcome.sweep is not None
        assert incident.id not in {d.incident.id for d in outcome.decisions if d.action == "resolved"}
        masks = ledger.overlapping(AT - MINUTE, AT)
        (told,) = expected_measures(store, fewer, [incident.metric], incident.scope, AT - 20 * MINUTE, AT, masks=masks)
        assert told.height == 20


def test_a_scope_that_no_grouping_set_has_is_an_incident_with_an_end(look: Look, ledger: Ledger) -> None:
    there = (pl.col("country") == "SE") & (pl.col("browser") == "edge")
    broken = there & pl.col("today") & pl.col("ago").is_between(11, 30)
    with shop(traffic(conversion=pl.when(broken).then(0.02).otherwise(0.5))) as store:
        seen = [action for ago in range(34, -1, -1) for action in look(store, ago)]
    (incident,) = ledger.incidents()
    assert (incident.scope, incident.status) == ({"country": "SE", "browser": "edge"}, "resolved")
    assert seen.count("new") == seen.count("resolved") == 1
    assert set(seen) <= {"new", "joined", "still", "quiet", "resolved"}
    assert incident.resolved_at is not None
    assert AT - 10 * MINUTE < incident.resolved_at <= AT - 2 * MINUTE
