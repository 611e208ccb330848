"""The data-quality gate: each symptom in a small world, what is held back, and the one incident with its life."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kmon.alerts import operators
from kmon.alerts.notifier import Notifier
from kmon.alerts.sinks import Alert, Receipt, Save
from kmon.apps.incidents import row
from kmon.apps.selection import of_incident, read_query, write_query
from kmon.config import Config
from kmon.errors import ConfigError, LedgerError
from kmon.gate import Period, decide, gate, incident_of
from kmon.ingest import Ingestion
from kmon.ledger import Incident, Ledger, SweepRecord
from kmon.partners import Partners
from kmon.pipeline import Symptom, rejects, silent, standstill, usual
from kmon.references import References
from kmon.replay import replay
from kmon.sources import Move, RawBatch
from kmon.status import status
from kmon.store import Commit, EmbeddedStore
from kmon.store.intake import INTAKE, READING
from kmon.store.upkeep import Upkeep
from kmon.watch import Watch
from tests.detect.worlds import AT, DAY, MINUTE, PARTNERS, config, traffic

HOUR = 60 * MINUTE
Row = tuple[float, str, str, int]


def came(*rows: Row, heard: dt.datetime = AT) -> pl.DataFrame:
    """Rows of the table intake: minutes before AT, partition, reason, records."""
    data = [
        ((AT - ago * MINUTE).replace(tzinfo=None), p, why, n, heard.replace(tzinfo=None)) for ago, p, why, n in rows
    ]
    return pl.DataFrame(data, schema=INTAKE, orient="row")


def steady(partitions: str = "0123", until: int = 0, since: int = 180, records: int = 20) -> list[Row]:
    """So many records a minute in each partition, from so many minutes before AT until so many."""
    return [(ago, p, "", records) for ago in range(since, until, -1) for p in partitions]


def put(store: EmbeddedStore, intake: pl.DataFrame, clocks: dict[str, float] | None = None) -> None:
    """Commit how much came in; the newest event of each partition, in minutes before AT."""
    store.commit(Commit([], EMPTY, {p: AT - ago * MINUTE for p, ago in (clocks or {}).items()}, intake=intake))


EMPTY = traffic().clear()


@pytest.fixture
def store() -> Iterator[EmbeddedStore]:
    with EmbeddedStore(":memory:", config()) as opened:
        yield opened


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


# ---- the rules in SQL, on a few rows ---------------------------------------------------------------------------------


def test_what_came_is_added_up(store: EmbeddedStore) -> None:
    for _ in range(2):
        put(store, came((2, "a", "", 3), (2, "a", "not JSON", 1), (1, "b", "", 2)))
    assert store.sql("SELECT count(*), sum(records)::BIGINT FROM intake").rows() == [(6, 12)]
    Upkeep(store, config()).run(AT + 15 * MINUTE, AT)
    rows = store.sql("SELECT partition, reason, records FROM intake ORDER BY ALL").rows()
    assert rows == [("a", "", 6), ("a", "not JSON", 2), ("b", "", 4)]
    Upkeep(store, config()).run(AT + 3 * DAY + MINUTE, AT)
    assert store.sql("SELECT count(*) FROM intake").item() == 0


def test_when_each_partition_was_last_heard_of(store: EmbeddedStore) -> None:
    put(store, came((9, "a", "", 1), (2, "a", "", 1), (5, "b", "", 1), (3, "", "bad", 1), (2000, "c", "", 1)), {"a": 1})
    rows = store.last_heard(AT - 4 * MINUTE).rows()
    newest = AT - MINUTE
    assert rows == [("a", AT - 9 * MINUTE, AT - 2 * MINUTE, newest), ("b", AT - 5 * MINUTE, None, None)]


def test_what_some_partitions_and_the_others_brought(store: EmbeddedStore) -> None:
    put(store, came((4, "a", "", 1), (3, "a", "", 2), (3, "b", "", 4), (3, "", "bad", 8), (2, "a", "", 16)))
    assert store.received(AT - 3 * MINUTE, AT - 2 * MINUTE, ["a"]) == (2, 4)
    assert store.received(AT - 4 * MINUTE, AT, []) == (0, 23)


def test_what_each_step_brought(store: EmbeddedStore) -> None:
    put(store, came((21, "a", "", 1), (20, "a", "", 2), (11, "b", "", 4), (11, "", "bad", 8), (1, "a", "", 16)))
    step = 10 * MINUTE
    assert store.received_by(AT - 2 * step, AT, step) == {AT - 2 * step: 6, AT - step: 16}


def test_pauses_lie_between_minutes_with_events(store: EmbeddedStore) -> None:
    put(store, came((20, "a", "", 1), (12, "a", "", 1), (15, "b", "", 1), (14, "", "bad", 1), (11, "a", "", 1)))
    assert store.pauses(AT - HOUR, AT, 3 * MINUTE, ["a"]) == [(AT - 19 * MINUTE, AT - 12 * MINUTE)]
    assert store.pauses(AT - HOUR, AT, 3 * MINUTE) == [(AT - 19 * MINUTE, AT - 15 * MINUTE)]


def test_in_how_many_minutes_there_are_events(store: EmbeddedStore) -> None:
    put(store, came((4, "a", "", 7), (4, "b", "", 1), (3, "a", "", 1), (2, "", "bad", 1), (1, "b", "", 1)))
    assert store.dense(AT - 4 * MINUTE, AT) == 0.75
    assert store.dense(AT - 4 * MINUTE, AT, ["b"]) == 0.5


def test_the_share_of_rejects_before_and_now(store: EmbeddedStore) -> None:
    put(store, came((9, "a", "", 7), (9, "", "x", 1), (2, "a", "", 6), (2, "", "y", 3), (1, "", "x", 2)))
    found = store.rejected(AT - 10 * MINUTE, AT - 5 * MINUTE, AT)
    assert tuple(found.values()) == (11, 5, 8, 1, "y")
    assert store.first_rejected(AT - 10 * MINUTE, AT, 0.2) == AT - 2 * MINUTE
    assert store.first_rejected(AT - 10 * MINUTE, AT - 2 * MINUTE, 0.2) is None


def test_when_an_event_last_came(store: EmbeddedStore) -> None:
    assert store.heard() is None
    put(store, came((9, "a", "", 7), heard=AT))
    put(store, came((9, "", "x", 7), heard=AT + MINUTE))
    assert store.heard() == AT


# ---- counting while reading ------------------------------------------------------------------------------------------


def line(ago: float, **fields: object) -> bytes:
    return json.dumps({"ts": (AT - ago * MINUTE).isoformat(), "kind": "s", **fields}).encode() + b"\n"


def test_rejects_belong_to_the_minute_of_the_event_before_them(store: EmbeddedStore) -> None:
    lines = [b"junk\n", line(5), line(4, partner="p1"), b"junk\n", b'{"ts": 1}\n', line(4)]
    Ingestion(config(), store).emit(RawBatch.consecutive("f", 0, 0, b"".join(lines), len(lines)))
    Ingestion(config(), store).emit(None)
    told = "SELECT minute, partition, left(reason, 8), sum(records)::BIGINT FROM intake GROUP BY ALL ORDER BY ALL"
    rows = store.sql(told).rows()
    five, four = ((AT - ago * MINUTE).replace(tzinfo=None) for ago in (5, 4))
    assert rows[0] == (five, "", "not JSON", 1)
    assert [r for r in rows if r[1] == "0"] == [(five, "0", "", 1), (four, "0", "", 2)]
    assert sum(r[3] for r in rows) == len(lines)


# ---- the symptoms ----------------------------------------------------------------------------------------------------


def test_a_partition_that_died_while_others_go_on(store: EmbeddedStore) -> None:
    put(store, came(*steady("012"), *steady("3", until=15)), {"0": 0, "1": 0, "2": 0, "3": 15})
    (symptom,) = silent(config(), store, AT)
    assert (symptom.kind, symptom.partitions, symptom.since) == ("partition", ("3",), AT - 15 * MINUTE)
    assert symptom.missing == pytest.approx(15 * 20, rel=0.1)
    assert silent(config(), store, AT - 12 * MINUTE)[0].partitions == ("3",)  # by now it is known that it was silent


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        (steady("3", until=9), 9),  # not idle yet: it holds the watermark
        (steady("3", until=15, records=1), 15),  # too little is missing
        (steady("3", until=150), 0),  # heard of again
        (steady("3", since=120, until=15) + [(ago, "3", "", 20) for ago in (180, 179, 178)], 15),  # it often is so
        ([(ago, "3", "", 80) for ago in range(180, 15, -4)], 15),  # it comes in bursts
        ([], 0),  # never heard of
    ],
)
def test_a_partition_that_is_none(store: EmbeddedStore, rows: list[Row], last: float) -> None:
    recovered = [(ago, "3", "", 20) for ago in range(10, 0, -1)] if last == 0 and rows else []
    put(store, came(*steady("012"), *rows, *recovered), {"0": 0, "1": 0, "2": 0, **({"3": last} if rows else {})})
    assert silent(config(), store, AT) == []


def test_all_partitions_silent_is_no_partition(store: EmbeddedStore) -> None:
    put(store, came(*steady(until=15)), dict.fromkeys("0123", 15))
    assert silent(config(), store, AT) == []


def test_a_jump_in_rejected_records(store: EmbeddedStore) -> None:
    put(store, came(*steady("0"), *((ago, "", "not JSON", 1) for ago in range(180, 0, -1))), {"0": 0})
    assert rejects(config(), store, AT) == []  # as ever
    put(store, came(*((ago, "", "no ts", 10) for ago in range(6, 0, -1))))
    (symptom,) = rejects(config(), store, AT)
    assert (symptom.since, symptom.detail) == (AT - 6 * MINUTE, "most of them: no ts")
    assert symptom.observed == pytest.approx(70 / 270)
    assert symptom.expected == pytest.approx(1 / 21)


def test_rejects_of_a_stream_that_has_just_begun_are_no_jump(store: EmbeddedStore) -> None:
    put(store, came(*steady("0", since=5), *((ago, "", "no ts", 20) for ago in range(5, 0, -1))), {"0": 0})
    assert rejects(config(), store, AT) == []


def busy(store: EmbeddedStore, heard: dt.datetime, days: Sequence[int] = (1, 0), first: int = 0) -> None:
    """A shop with usual traffic up to AT, on each of these days, which was last heard of then."""
    events = traffic(days=days)
    store.commit(Commit([Move("test", 0, first, first + events.height)], events, {"0": AT}))
    put(store, came(*steady("0"), *steady("0", since=1560, until=1380), heard=heard))


def test_a_source_that_went_quiet_by_the_clock(store: EmbeddedStore, ledger: Ledger) -> None:
    busy(store, AT)
    assert standstill(config(), store, ledger, AT + 4 * MINUTE) is None
    symptom = standstill(config(), store, ledger, AT + 8 * MINUTE)
    assert symptom is not None
    assert (symptom.kind, symptom.since, symptom.until) == ("quiet", AT, None)
    assert symptom.missing == pytest.approx(8 * 6 * 9 * 12, rel=0.1)
    store.note(READING, json.dumps([str(AT + 5 * MINUTE), str(AT)]))
    assert standstill(config(), store, ledger, AT + 8 * MINUTE) is None  # kmon itself was down until then


def test_a_source_that_is_no_live_one_does_not_go_quiet(store: EmbeddedStore, ledger: Ledger) -> None:
    busy(store, AT + 3 * DAY)
    assert standstill(config(), store, ledger, AT + 3 * DAY + HOUR) is None


def test_a_source_that_often_pauses_is_not_quiet(store: EmbeddedStore, ledger: Ledger) -> None:
    busy(store, AT)
    for hours in range(4):
        ledger.record(SweepRecord(AT - hours * HOUR, AT - hours * HOUR, 0.1, 1, 1, 0, 0.0), [])
    assert standstill(config(), store, ledger, AT + 70 * MINUTE) is None


def test_without_a_day_before_nobody_knows_what_is_usual(store: EmbeddedStore) -> None:
    busy(store, AT, days=(0,))
    assert usual(store, AT, AT + 10 * MINUTE) == 0
    busy(store, AT, days=(1,), first=store.sql("SELECT position FROM offsets").item())
    again = EmbeddedStore(":memory:", config())
    with again:
        busy(again, AT)
        assert usual(again, AT, AT + 10 * MINUTE) == pytest.approx(10 * 648, rel=0.1)
        assert usual(again, AT, AT + 7 * HOUR) == 0  # nor, of a long silence, without a week before
        assert usual(again, AT - 150 * MINUTE, AT - 140 * MINUTE) == 0  # nor of what comes in bursts, or has just begun


def test_data_that_falls_behind_the_clock(store: EmbeddedStore, ledger: Ledger) -> None:
    """Events come, but the watermark stands: a partition lags. One that catches up does not."""
    heard = AT + 12 * MINUTE
    busy(store, heard)
    put(store, came(*steady("1"), heard=heard), {"1": 0})
    store.commit(Commit([], EMPTY, {}, unread={"1": 7000}))
    ledger.record(SweepRecord(AT, AT + MINUTE, 0.1, 1, 1, 0, 0.0), [])
    assert standstill(config(), store, ledger, AT + 9 * MINUTE) is None
    symptom = standstill(config(), store, ledger, heard)
    assert symptom is not None
    assert (symptom.kind, symptom.since, symptom.partitions) == ("lag", AT, ("1",))
    assert (symptom.observed, symptom.detail) == (12.0, "partition 1 has 7,000 unread records")
    store.note(READING, json.dumps([str(heard), str(AT)]))
    assert standstill(config(), store, ledger, heard) is None  # a backlog that has just been begun


# ---- what is held back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "began", "window", "until", "explained"),
    [
        ("partition", 20, 5, None, False),  # the window does not reach back to what began then
        ("partition", 29, 30, None, True),
        ("partition", 40, 5, None, False),  # began before
        ("partition", 10, 5, None, False),  # began long after a partition broke
        ("rejects", 10, 5, None, True),  # rejects may spread
        ("quiet", 25, 30, 20, True),
        ("quiet", 12, 5, 20, False),  # all of the window lies behind it
        ("quiet", 22, 60, 20, True),
    ],
)
def test_what_a_symptom_explains(kind: str, began: int, window: int, until: int | None, *, explained: bool) -> None:
    period = Period(kind, AT - 30 * MINUTE, until and AT - until * MINUTE, "")
    assert period.explains(AT - began * MINUTE, window * MINUTE, AT) is explained


OTHERS = tuple(p for p in PARTNERS if p != "p3")


def dying(*, also: pl.Expr | None = None) -> pl.Expr:
    """Partner p3, which partition 3 carries, stops 20 minutes before AT; `also` is what else has no events."""
    gone = (pl.col("partner") == "p3") & pl.col("today") & (pl.col("ago") <= 20)
    return pl.when(gone if also is None else gone | also).then(0.0).otherwise(8.0)


def partitioned(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, dt.datetime]]:
    """The intake of events whose partner says the partition, and the clocks."""
    lanes = events.select(
        minute=pl.col("event_time").dt.truncate("1m"), partition=pl.col("partner").str.slice(1), reason=pl.lit("")
    )
    intake = lanes.group_by("minute", "partition", "reason").agg(records=pl.len())
    intake = intake.with_columns(heard=pl.lit(AT.replace(tzinfo=None))).select(
        pl.col(name).cast(kind) for name, kind in INTAKE.items()
    )
    newest = events.group_by(partition=pl.col("partner").str.slice(1)).agg(pl.col("event_time").max())
    return intake, {p: t.replace(tzinfo=dt.UTC) for p, t in newest.rows()}


def fed(store: EmbeddedStore, events: pl.DataFrame) -> None:
    """Commit all of it, up to AT."""
    intake, clocks = partitioned(events)
    alive = {p: AT if t > AT - 2 * MINUTE else t for p, t in clocks.items()}
    store.commit(Commit([Move("test", 0, 0, events.height)], events, alive, intake=intake))


SETTINGS = config(windows=["5m", "15m"], incidents={"impact": ["orders"], "resolve_after": 2})


def look(store: EmbeddedStore, ledger: Ledger, ago: int) -> dict[str, list[Incident]]:
    found: dict[str, list[Incident]] = {}
    for decision in Watch(SETTINGS, store, ledger).look(AT - ago * MINUTE).decisions:
        found.setdefault(decision.action, []).append(decision.incident)
    return found


def test_the_partners_of_a_dead_partition_are_not_told_and_its_operators_are(
    store: EmbeddedStore, ledger: Ledger
) -> None:
    fed(store, traffic(dying()))
    for ago in range(24, -1, -2):
        look(store, ledger, ago)
    (incident,) = ledger.incidents()
    assert (incident.metric, incident.scope, incident.severity) == ("pipeline", {"partition": "3"}, "critical")
    assert (incident.started_at, incident.status) == (AT - 20 * MINUTE, "firing")
    assert incident.detected_at <= AT - 16 * MINUTE
    assert incident.channel == "#kmon"
    assert [(d.kind, d.sink) for d in ledger.deliveries()] == [("firing", "console")]
    assert incident.impact["events"] == pytest.approx(-20 * 9 * 12, rel=0.15)


def test_what_is_held_back_is_said_with_its_reason(store: EmbeddedStore, ledger: Ledger) -> None:
    fed(store, traffic(dying()))
    outcome = Watch(SETTINGS, store, ledger).look(AT - 10 * MINUTE)
    assert {d.incident.scope["partner"] for d in outcome.held} == {"p3"}
    assert "held back: No events come from partition 3 since 11:40 UTC: about" in outcome.held[0].reason
    assert "1 held back" in str(outcome)
    assert "held back: No events" in outcome._repr_html_()
    (told,) = outcome.public()["held"]
    assert (told["scope"]["partner"], told["action"], told["reason"]) == ("p3", "held", outcome.held[0].reason)
    assert ledger.calibrations(AT + 60 * MINUTE) == {}  # what is missing is no example of what is normal


def test_another_partners_outage_is_told_all_the_same(store: EmbeddedStore, ledger: Ledger) -> None:
    """One that began before the partition died, and one that began well after."""
    before = (pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= 32)
    after = (pl.col("partner") == "p5") & pl.col("today") & (pl.col("ago") <= 9)
    fed(store, traffic(dying(also=(pl.col("country") != "SE") & (before | after))))
    for ago in range(34, -1, -2):
        look(store, ledger, ago)
    told = {i.scope.get("partner") for i in ledger.incidents() if i.metric != "pipeline"}
    assert told == {"p1", "p5"}
    assert [i.scope for i in ledger.incidents() if i.metric == "pipeline"] == [{"partition": "3"}]


def test_a_surge_is_told_while_data_is_missing(store: EmbeddedStore, ledger: Ledger) -> None:
    rise = (pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= 6)
    fed(store, traffic(pl.when(rise).then(40.0).otherwise(dying())))
    look(store, ledger, 8)
    told = {(i.scope.get("partner"), i.direction) for i in look(store, ledger, 0)["new"]}
    assert told == {("p1", "up")}


def test_an_open_incident_is_left_as_it_is(store: EmbeddedStore, ledger: Ledger) -> None:
    """What partition 3 carries looks like nothing: its partner's surge is not over because of that."""
    rise = (pl.col("partner") == "p3") & pl.col("today") & (pl.col("ago") <= 30) & (pl.col("ago") > 20)
    fed(store, traffic(pl.when(rise).then(40.0).otherwise(dying())))
    (surge,) = look(store, ledger, 21)["new"]
    for ago in range(18, 0, -2):
        look(store, ledger, ago)
    after = ledger.incident(surge.id)
    assert after is not None
    assert (after.status, after.scope, after.direction) == ("firing", surge.scope, "up")
    assert "No events come from partition 3 since" in after.reason


# ---- the one incident and its life -----------------------------------------------------------------------------------

PARTITION = Symptom("partition", AT - 15 * MINUTE, None, ("3",), 0.0, 4512.0, 4512.0)
FIRST = replace(incident_of(PARTITION, AT), id="inc_1", url="http://localhost:5006/partner?incident=inc_1")


def test_from_new_to_resolved_with_hysteresis() -> None:
    settings = config()
    first = decide(settings, AT, [PARTITION], None)
    assert first is not None
    assert (first.action, first.incident.scope) == ("new", {"partition": "3"})
    seen, actions = first.incident, []
    for minutes, found in ((1, [PARTITION]), (2, []), (3, [PARTITION]), (4, []), (5, []), (6, [])):
        decision = decide(settings, AT + minutes * MINUTE, found, seen)
        assert decision is not None
        assert decision.reason
        seen = decision.incident
        actions.append(decision.action)
    assert actions == ["still", "quiet", "still", "quiet", "quiet", "resolved"]
    assert (seen.id, seen.resolved_at, seen.status) == (first.incident.id, AT + 6 * MINUTE, "resolved")
    back = decide(settings, AT + 9 * MINUTE, [PARTITION], None, [seen])
    assert back is not None
    assert (back.action, back.incident.id, back.incident.status) == ("reopened", seen.id, "firing")


def test_there_is_one_incident_whatever_comes_to_it() -> None:
    """The widest symptom gives it its name; what lasts for a day is the new normal."""
    wider = replace(PARTITION, kind="quiet", since=AT - 5 * MINUTE, partitions=())
    decision = decide(config(), AT, [wider, PARTITION], FIRST)
    assert decision is not None
    assert (decision.action, decision.incident.id) == ("still", "inc_1")
    assert (decision.incident.scope, decision.incident.started_at) == ({}, FIRST.started_at)
    lasting = decide(config(), AT + DAY, [PARTITION], FIRST)
    assert lasting is not None
    assert (lasting.action, lasting.incident.resolved_at) == ("resolved", AT + DAY)
    assert decide(config(), AT, [], None) is None


def test_two_processes_tell_it_once(ledger: Ledger) -> None:
    ledger.record_pipeline(FIRST, [], None)
    with pytest.raises(LedgerError, match="another process judged"):
        ledger.record_pipeline(replace(FIRST, id="inc_2"), [], None)
    assert [i.id for i in ledger.incidents()] == ["inc_1"]


def test_its_gap_is_no_reference_of_anybody_once_it_is_over(ledger: Ledger) -> None:
    ledger.record_pipeline(FIRST, [], None)
    assert References.of(ledger, config(), AT - DAY, AT).masks == ()  # else nothing could be judged after two hours
    ledger.record_pipeline(replace(FIRST, status="resolved", resolved_at=AT), [], "inc_1")
    (mask,) = References.of(ledger, config(), AT - DAY, AT).masks
    assert (mask.scope, mask.started_at, mask.resolved_at) == ({}, FIRST.started_at, FIRST.seen_at)


def test_a_quiet_source_is_told_by_the_clock_and_ends_when_events_come(store: EmbeddedStore, ledger: Ledger) -> None:
    busy(store, AT)
    now = [AT + MINUTE]
    watch = Watch(SETTINGS, store, ledger, clock=lambda: now[0])
    assert watch.look().at == AT
    actions = []
    for minutes in (3, 7, 8):
        now[0] = AT + minutes * MINUTE
        actions.append([d.action for d in watch.look().decisions])
    assert actions == [[], ["new"], ["still"]]
    assert "No events come at all since 12:00 UTC" in str(watch.look())
    put(store, came((-9, "0", "", 20), heard=AT + 10 * MINUTE), {"0": -10})
    now[0] = AT + 10 * MINUTE
    actions = [[d.action for d in watch.look().decisions if d.incident.metric == "pipeline"] for _ in range(4)]
    assert [a for a in actions if a][-1] == ["resolved"]
    assert [(i.metric, i.status) for i in ledger.incidents()] == [("pipeline", "resolved")]
    assert [d.kind for d in ledger.deliveries()] == ["firing", "resolved"]


# ---- how it is told --------------------------------------------------------------------------------------------------


def told(symptom: Symptom, **changes: Any) -> str:
    incident = replace(incident_of(symptom, AT), **changes)
    kind = "firing" if incident.resolved_at is None else "resolved"
    return operators.compose(incident, kind, config(), AT).summary  # type: ignore[arg-type]


def test_the_messages() -> None:
    held = "Falls that this explains are told to nobody until it is over."
    assert told(PARTITION) == (
        f"No events come from partition 3 since 11:45 UTC. About 4,500 events are missing so far. {held}"
    )
    many = replace(PARTITION, partitions=("1", "2", "3", "4"))
    assert told(many).startswith("No events come from 4 partitions (1, 2, 3 and others) since")
    assert told(PARTITION, resolved_at=AT, status="resolved") == (
        "Events come from partition 3 again after 15 minutes. It was so from 11:45 to 12:00 UTC."
        " About 4,500 events are missing."
    )
    bad = Symptom("rejects", AT - 5 * MINUTE, None, (), 0.38, 0.001, 400, "most of them: no ts")
    assert told(bad).startswith("38.0 % of the records are rejected since 11:55 UTC.")
    lag = Symptom("lag", AT - 25 * MINUTE, None, ("2",), 25, 1, 0, "partition 2 has 9 unread records")
    assert told(lag) == "The data is 25 minutes behind the clock since 11:35 UTC."
    quiet = Symptom("quiet", AT - 6 * MINUTE, None, (), 0, 80, 80)
    assert told(quiet).startswith("No events come at all since 11:54 UTC. About 80 events are missing so far.")


class Kept:
    """A sink that keeps what it is handed, and wants charts."""

    charts = True

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        self.alerts.append(alert)


def test_the_notifier_sends_it_without_a_chart(store: EmbeddedStore, ledger: Ledger) -> None:
    fed(store, traffic(dying()))
    look(store, ledger, 0)
    sink = Kept()
    clock = lambda: AT  # noqa: E731
    assert Notifier(ledger, SETTINGS, Partners.load(None), store, clock, sinks={"console": sink}).drain() == 1
    (alert,) = sink.alerts
    assert (alert.chart, alert.channel) == (None, "#kmon")
    assert alert.message.title == "No events come from partition 3"
    assert "partition 3" in json.dumps(alert.message.blocks())
    assert "see whether its producer" in alert.message.text


def test_the_operators_channel_and_a_route_of_their_own(store: EmbeddedStore, ledger: Ledger) -> None:
    routes = [{"match": {"metric": ["pipeline"]}, "sinks": ["console"], "channel": "#route"}]
    settings = config(routes=routes, pipeline={"channel": "#operators"})
    fed(store, traffic(dying()))
    Watch(settings, store, ledger).look(AT)
    assert [(d.sink, d.channel) for d in ledger.deliveries()] == [("console", "#operators")]


def test_no_metric_may_have_its_name() -> None:
    with pytest.raises((ConfigError, ValueError), match="incidents of the data itself"):
        config(metrics={"pipeline": {"count": "orders"}})


def test_the_json_has_the_keys_of_any_incident() -> None:
    keys = (
        "id status severity metric direction scope started_at detected_at resolved_at observed expected lower upper "
        "p_value impact anomalies channel url"
    )
    assert set(FIRST.public()) == set(keys.split())
    json.dumps(FIRST.public(), allow_nan=False)


def test_on_the_page_it_concerns_everybody() -> None:
    settings = config()
    shown = row(settings, FIRST, AT, lambda _: None)
    assert (shown["what"], shown["expected"]) == ("No events come from partition 3", "4,512 events")
    query = write_query(settings, of_incident(settings, FIRST, AT))
    assert read_query(settings, query).notes == ()
    assert "partition" not in query


def test_status_tells_the_symptoms(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with EmbeddedStore(settings.resolve(settings.store), settings) as store:
        fed(store, traffic(dying()))
    found = status(settings)
    assert found["pipeline"][0]["kind"] == "partition"
    assert found["summary"]["pipeline"].startswith("No events come from partition 3 since")


# ---- from end to end -------------------------------------------------------------------------------------------------


def recorded(
    path: Path,
    *,
    dead: tuple[int, int] = (0, 0),
    quiet: tuple[int, int] = (0, 0),
    late: tuple[int, int] = (0, 0),
    broken: tuple[int, int] = (0, 0),
) -> Path:
    """Traffic of two hours a day as a file: partition 3 is dead, or late, or all are quiet, each from so many
    minutes before AT until so many.

    `late`: what partition 3 has in between arrives at the end of it; `broken`: partner p2 sends no kind.
    """
    events = traffic(4.0, minutes=120).with_columns(partition=pl.col("partner").str.slice(1))
    ago = (pl.lit(AT.replace(tzinfo=None)) - pl.col("event_time")).dt.total_minutes()
    events = events.with_columns(ago=ago, third=pl.col("partition") == "3")
    events = events.filter(~(pl.col("ago").is_between(dead[1] + 1, dead[0]) & pl.col("third")))
    events = events.filter(~pl.col("ago").is_between(quiet[1] + 1, quiet[0]))
    held = pl.col("third") & pl.col("ago").is_between(late[1] + 1, late[0])
    arrival = pl.when(held).then(late[1]).otherwise("ago")
    events = events.with_columns(arrival=arrival).sort("arrival", descending=True, maintain_order=True)
    ts = pl.col("event_time").dt.to_string("%Y-%m-%dT%H:%M:%S.000Z")
    bad = (pl.col("partner") == "p2") & pl.col("ago").is_between(broken[1] + 1, broken[0])
    kind = pl.when(~bad).then("kind")
    events.select("partition", "partner", "country", "browser", ts=ts, kind=kind).write_ndjson(path)
    return path


def replayed(folder: Path, **world: Any) -> list[Incident]:
    """The incidents of a replay with a look every two minutes."""
    data = config(folder).model_dump(exclude={"path"})
    events = data["events"] | {"partition": "partition"}
    events["fields"] |= {"partition": {"type": "string"}, "kind": {"type": "string", "required": True}}
    settings = Config.model_validate(
        {**data, "events": events, "windows": ["5m", "15m", "1h"], "every": "2m", "path": folder / "kmon.yaml"}
    )
    path = recorded(folder / "events.ndjson", **world)
    with EmbeddedStore(folder / "kmon.duckdb", settings) as store, Ledger.open("sqlite://") as ledger:
        begin = AT - 90 * MINUTE
        replay(settings, store, ledger, [path], every=2 * MINUTE, detect_from=begin)
        return ledger.incidents()


def test_a_replay_in_which_a_partition_dies_for_good(tmp_path: Path) -> None:
    (incident,) = replayed(tmp_path, dead=(40, 0))
    assert (incident.metric, incident.scope, incident.status) == ("pipeline", {"partition": "3"}, "firing")
    assert incident.started_at == AT - 40 * MINUTE


def test_a_replay_in_which_a_partition_dies_and_comes_back_without_what_was_lost(tmp_path: Path) -> None:
    """What comes back is no surge, and what was missing is no outage in the longer windows."""
    (incident,) = replayed(tmp_path, dead=(60, 25))
    assert (incident.metric, incident.scope, incident.status) == ("pipeline", {"partition": "3"}, "resolved")
    assert incident.resolved_at is not None
    assert AT - 25 * MINUTE < incident.resolved_at <= AT - 15 * MINUTE


def test_a_replay_in_which_a_partition_lags_and_catches_up(tmp_path: Path) -> None:
    assert replayed(tmp_path, late=(40, 31)) == []


def test_a_replay_in_which_the_source_goes_quiet(tmp_path: Path) -> None:
    (incident,) = replayed(tmp_path, quiet=(50, 30))
    assert (incident.metric, incident.scope, incident.status) == ("pipeline", {}, "resolved")
    assert (incident.detector, incident.started_at) == ("quiet", AT - 50 * MINUTE)
    assert incident.direction == "down"


def test_a_replay_in_which_a_producer_breaks(tmp_path: Path) -> None:
    """Whose partner is not told: what it sends is there, and cannot be read."""
    (incident,) = replayed(tmp_path, broken=(60, 30))
    assert (incident.metric, incident.detector, incident.status) == ("pipeline", "rejects", "resolved")
    assert abs(incident.started_at - (AT - 60 * MINUTE)) <= 2 * MINUTE
    assert incident.resolved_at is not None
    assert AT - 30 * MINUTE < incident.resolved_at <= AT - 12 * MINUTE


def test_a_store_of_the_second_layout_is_brought_up_to_date(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "x.duckdb", config()) as store:
        store.connection.execute("DROP TABLE intake")
        store.note("schema", json.dumps(json.loads(store.schema.dumps()) | {"layout": 2}))
    with EmbeddedStore(tmp_path / "x.duckdb", config()) as store:
        assert store.heard() is None
        assert store.schema.layout == 3


def test_a_look_back_leaves_the_incident_alone(store: EmbeddedStore, ledger: Ledger) -> None:
    fed(store, traffic(dying()))
    look(store, ledger, 0)
    state = gate(SETTINGS, store, ledger, AT - 10 * MINUTE, AT)
    assert state.decision is None
    assert state.closed
