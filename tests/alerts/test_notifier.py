from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmon.alerts.notifier import FIRST, LONGEST, Notifier, backoff
from kmon.alerts.outbox import is_news, outbox_for
from kmon.alerts.sinks import Alert, Receipt, Save, Sink
from kmon.config import Config
from kmon.errors import SinkError
from kmon.ledger import Delivery, Incident, Ledger
from kmon.partners import Partners
from kmon.store import EmbeddedStore
from tests.alerts.conftest import INCIDENT, MINUTE, RESOLVED, HandClock, T, record
from tests.slack_server import COMPLETE, POST, UPLOAD, URL, Fault, SlackServer

DAY = 86_400
Make = Callable[..., Notifier]


class CrashHere(BaseException):
    """The process dies here."""


class ListSink:
    """Keeps what it gets; raises what it is told to, before or after having kept it."""

    charts = False

    def __init__(self, *before: BaseException, after: BaseException | None = None) -> None:
        self.alerts: list[Alert] = []
        self._before, self._after = list(before), after

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        if self._before:
            raise self._before.pop(0)
        if not receipt:
            self.alerts.append(alert)
            save({"n": len(self.alerts)})
        if self._after:
            failure, self._after = self._after, None
            raise failure

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(alert.incident.id, alert.kind) for alert in self.alerts]


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(sinks={"slack": {"kind": "slack"}}, routes=[{"sinks": ["slack"]}])


@pytest.fixture
def make(ledger: Ledger, config: Config, partners: Partners, clock: HandClock) -> Make:
    def notifier(*sinks: Sink, store: Any = None) -> Notifier:
        return Notifier(ledger, config, partners, store, clock, sinks={"slack": sinks[0]} if sinks else None)

    return notifier


@pytest.fixture
def put(ledger: Ledger, config: Config, partners: Partners, clock: HandClock) -> Callable[..., Delivery]:
    """Write an incident and its delivery, as a sweep does."""

    def write(incident: Any = INCIDENT, kind: Any = "firing") -> Delivery:
        told = ledger.deliveries(incident=incident.id)
        (delivery,) = outbox_for(config, incident, kind, partners, clock(), told, "now critical")
        record(ledger, incident, [delivery])
        return delivery

    return write


@pytest.fixture
def only(ledger: Ledger) -> Callable[[], Delivery]:
    def read() -> Delivery:
        (delivery,) = ledger.deliveries()
        return delivery

    return read


def test_outbox_has_a_row_for_each_sink(make_config: Callable[..., Config], partners: Partners) -> None:
    rows = outbox_for(make_config(), INCIDENT, "firing", partners, T)
    assert [(d.sink, d.channel, d.kind, d.status, d.created_at) for d in rows] == [
        ("console", "#p17", "firing", "pending", T),
        ("folder", "#p17", "firing", "pending", T),
    ]
    assert outbox_for(make_config(), replace(INCIDENT, severity="info"), "firing", partners, T) == []


ROUTES = [
    {"match": {"severity": ["critical"]}, "sinks": ["slack"], "channel": "#crit"},
    {"match": {"scope": {"partner": ["p17"]}}, "sinks": ["slack", "console"], "channel": "#p17"},
    {"match": {"severity": ["warning"]}, "sinks": ["console"]},
]
ONE = replace(INCIDENT, severity="warning")
OUTBOX: list[tuple[str, list[Incident], Incident, str, list[tuple[str, str, str]]]] = [
    ("nobody knows of it yet", [], INCIDENT, "firing", [("firing", "slack", "#crit")]),
    (
        "the same places: an update",
        [ONE],
        replace(ONE, scope={"partner": "p17"}),
        "changed",
        [("changed", "slack", "#p17"), ("changed", "console", "#p17")],
    ),
    (
        "a channel that never heard of it: a first alert there; a sink without channels did",
        [ONE],
        INCIDENT,
        "changed",
        [("changed", "slack", "#p17"), ("changed", "console", "#p17"), ("firing", "slack", "#crit")],
    ),
    (
        "out of its route: those who know of it",
        [ONE],
        replace(ONE, scope={"country": "SE"}),
        "changed",
        [("changed", "slack", "#p17"), ("changed", "console", "#p17")],
    ),
    ("nobody's so far, and now somebody's", [], INCIDENT, "changed", [("firing", "slack", "#crit")]),
    (
        "its end: all who heard of it",
        [ONE, INCIDENT],
        RESOLVED,
        "resolved",
        [("resolved", "slack", "#p17"), ("resolved", "console", "#p17"), ("resolved", "slack", "#crit")],
    ),
    ("the end of what nobody heard of", [], RESOLVED, "resolved", []),
]


@pytest.mark.parametrize(
    ("before", "incident", "kind", "rows"), [case[1:] for case in OUTBOX], ids=[case[0] for case in OUTBOX]
)
def test_who_hears_what(
    make_config: Callable[..., Config],
    partners: Partners,
    before: list[Incident],
    incident: Incident,
    kind: Any,
    rows: list[tuple[str, str, str]],
) -> None:
    sinks = {"slack": {"kind": "slack"}, "console": {"kind": "console"}}
    config = make_config(sinks=sinks, routes=ROUTES)
    told = [d for one in before for d in outbox_for(config, one, "firing", partners, T)]
    found = outbox_for(config, incident, kind, partners, T, told, "wider")
    assert [(d.kind, d.sink, d.channel) for d in found] == rows
    assert all((d.change == "wider") == (d.kind == "changed") for d in found)


def test_a_sink_that_is_gone_hears_of_no_end(make_config: Callable[..., Config], partners: Partners) -> None:
    told = outbox_for(make_config(), INCIDENT, "firing", partners, T)
    config = make_config(sinks={"folder": {"kind": "folder"}}, routes=[])
    assert [d.sink for d in outbox_for(config, RESOLVED, "resolved", partners, T, told)] == ["folder"]


@pytest.mark.parametrize(
    ("incident", "news"),
    [
        (ONE, False),
        (replace(ONE, scope={"partner": "p17"}), True),
        (replace(ONE, scope={"partner": "p18"}), False),
        (replace(ONE, severity="info"), False),
        (INCIDENT, True),
        (replace(INCIDENT, scope={"partner": "p18"}), False),
    ],
    ids=["as it was", "another scope", "a scope that was told before", "less", "more", "more, on the same route"],
)
def test_what_is_news(make_config: Callable[..., Config], partners: Partners, incident: Incident, news: bool) -> None:
    p18 = {"match": {"scope": {"partner": ["p18"]}}, "sinks": ["slack"]}
    config = make_config(sinks={"slack": {"kind": "slack"}, "console": {"kind": "console"}}, routes=[p18, *ROUTES])
    before = [replace(ONE, scope={"partner": "p18"}), ONE]
    told = [d for one in before for d in outbox_for(config, one, "firing", partners, T)]
    assert is_news(config, incident, partners, told) is news
    assert is_news(config, incident, partners, [])


def test_delivers_in_order_and_once(make: Make, put: Any, clock: HandClock) -> None:
    sink = ListSink()
    for number in (1, 2, 3):
        put(replace(INCIDENT, id=f"inc_{number}"))
        clock.forward(1)
    assert (make(sink).drain(), make(sink).drain()) == (3, 0)
    assert sink.told == [("inc_1", "firing"), ("inc_2", "firing"), ("inc_3", "firing")]


def test_a_dead_slack_loses_nothing_and_sends_once(
    slack: SlackServer, make: Make, put: Any, only: Any, clock: HandClock
) -> None:
    slack.fail(POST, *[Fault(drop=True)] * 3, *[Fault(status=503)] * 3)
    put()
    notifier = make()
    for attempt in range(6):
        assert notifier.drain() == 0
        assert notifier.drain() == 0  # not due yet
        assert (only().status, only().attempts) == ("pending", attempt + 1)
        clock.forward(600)
    assert notifier.drain() == 1
    assert (only().status, only().attempts, only().error, only().sent_at) == ("sent", 7, None, clock())
    assert len(slack.made(POST)) == 7
    clock.forward(DAY)
    assert notifier.drain() == 0


def test_a_crash_between_post_and_upload_resumes_without_a_second_post(
    slack: SlackServer, make: Make, put: Any, only: Any, ledger: Ledger, store: EmbeddedStore
) -> None:
    put()
    claimed = ledger.claim(T + dt.timedelta(hours=1))
    assert claimed is not None
    ledger.update(replace(claimed, receipt={"ts": "1.5", "channel": "C0P17", "thread": "1.5"}))  # and dies
    notifier = make(store=store)
    assert notifier.drain() == 0  # it is in nobody's hands
    assert notifier.recover() == 1
    assert notifier.drain() == 1
    assert slack.order == [URL, UPLOAD, COMPLETE]
    assert slack.calls[1].body.startswith(b"\x89PNG")
    assert slack.calls[2].fields["thread_ts"] == "1.5"
    assert only().status == "sent"


@pytest.mark.parametrize(("sink", "expected"), [(ListSink(after=CrashHere()), 1), (ListSink(CrashHere()), 1)])
def test_a_crash_anywhere_sends_once(make: Make, put: Any, only: Any, sink: ListSink, expected: int) -> None:
    put()
    with pytest.raises(CrashHere):
        make(sink).drain()
    assert only().status == "sending"
    fresh = make(sink)
    assert (fresh.recover(), fresh.drain(), fresh.recover()) == (1, 1, 0)
    assert (len(sink.alerts), only().status) == (expected, "sent")


def test_a_failed_upload_is_tried_again_without_a_second_post(
    slack: SlackServer, make: Make, put: Any, only: Any, store: EmbeddedStore, clock: HandClock
) -> None:
    put()
    slack.fail(UPLOAD, Fault(drop=True))
    notifier = make(store=store)
    assert notifier.drain() == 0
    assert only().receipt["ts"]
    clock.forward(10)
    assert notifier.drain() == 1
    assert slack.order == [POST, URL, UPLOAD, URL, UPLOAD, COMPLETE]


def test_over_is_told_in_the_thread_and_never_before_the_beginning(
    slack: SlackServer, make: Make, put: Any, ledger: Ledger, clock: HandClock
) -> None:
    slack.fail(POST, Fault(status=500))
    put()
    notifier = make()
    notifier.drain()
    clock.forward(0.1)
    put(RESOLVED, "resolved")
    assert notifier.drain() == 0  # the firing one waits, and so does the resolved one
    clock.forward(10)
    assert notifier.drain() == 2
    first, second, third = slack.made(POST)
    assert third.fields["thread_ts"] == ledger.deliveries()[0].receipt["ts"]
    assert [c.fields["metadata"]["event_payload"]["kind"] for c in (first, second, third)] == [
        "firing",
        "firing",
        "resolved",
    ]


def test_what_becomes_of_it_is_told_in_the_thread_of_its_channel(
    slack: SlackServer, make: Make, put: Any, ledger: Ledger, config: Config, partners: Partners, clock: HandClock
) -> None:
    put()
    wider = replace(INCIDENT, scope={"country": "SE"})
    clock.forward(1)
    rows = outbox_for(config, wider, "changed", partners, clock(), ledger.deliveries(), "widened")
    record(ledger, replace(wider, detected_at=T + 9 * MINUTE), rows)
    clock.forward(1)
    record(ledger, RESOLVED, outbox_for(config, RESOLVED, "resolved", partners, clock(), ledger.deliveries()))
    assert make().drain() == 5
    posts = [(p.fields["channel"], p.fields.get("thread_ts")) for p in slack.made(POST)]
    threads = {d.channel: d.receipt["ts"] for d in ledger.deliveries() if d.kind == "firing"}
    answered = {d.channel: d.receipt["channel"] for d in ledger.deliveries()}
    later = [(answered[name], threads[name]) for name in ("#p17", "#p17", "#kmon")]
    assert sorted(posts, key=str) == sorted([("#p17", None), ("#kmon", None), *later], key=str)
    assert sum("Widened. " in p.fields["text"] for p in slack.made(POST)) == 1


@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (SinkError("invite the bot", retryable=False), "failed", "invite the bot"),
        (SinkError("away", retryable=True), "pending", "away"),
        (KeyError("xoxb-secret"), "pending", "a fault in kmon (KeyError)"),
    ],
)
def test_what_fails_for_good_and_what_is_tried_again(
    make: Make, put: Any, only: Any, failure: Exception, status: str, error: str
) -> None:
    put()
    assert make(ListSink(failure)).drain() == 0
    assert (only().status, only().error) == (status, error)


def test_gives_up_after_a_day(make: Make, put: Any, only: Any, clock: HandClock) -> None:
    put()
    notifier = make(ListSink(*[SinkError("away", retryable=True)] * 1000))
    for _ in range(200):
        notifier.drain()
        clock.forward(600)
    assert (only().status, only().error) == ("failed", "away")
    assert clock() - only().created_at > dt.timedelta(days=1)
    assert only().attempts == 145


def test_retry_after_holds_the_sink(slack: SlackServer, make: Make, put: Any, clock: HandClock) -> None:
    slack.fail(POST, Fault(status=429, headers={"Retry-After": "60"}))
    put()
    put(replace(INCIDENT, id="inc_2"))
    notifier = make()
    for seconds in (0, 59):
        clock.forward(seconds)
        assert notifier.drain() == 0
    assert len(slack.calls) == 1
    clock.forward(1)
    assert notifier.drain() == 2


def test_one_that_always_fails_holds_up_no_other(make: Make, put: Any, clock: HandClock) -> None:
    class Picky(ListSink):
        def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
            if alert.incident.id == "inc_1":
                message = "not this one"
                raise SinkError(message, retryable=True)
            super().deliver(alert, receipt, save)

    sink = Picky()
    notifier = make(sink)
    for number in range(1, 6):
        put(replace(INCIDENT, id=f"inc_{number}"))
        clock.forward(1)
    for _ in range(5):
        notifier.drain()
        clock.forward(1)
    assert len(sink.alerts) == 4


def test_a_chart_that_cannot_be_drawn_does_not_hold_back_the_message(
    slack: SlackServer, make: Make, put: Any, store: EmbeddedStore
) -> None:
    put(replace(INCIDENT, metric="gone"))
    assert make(store=store).drain() == 1
    assert slack.order == [POST]


@pytest.mark.parametrize("scope", [{"country": "SE"}, {"partner": "p17"}])
def test_the_message_says_whom_it_hit_most_where_the_scope_does_not(
    make: Make, put: Any, store: EmbeddedStore, scope: dict[str, str]
) -> None:
    """The data ends five minutes after T."""
    sink = ListSink()
    put(replace(INCIDENT, scope=scope, started_at=T + 5 * MINUTE, seen_at=T + 15 * MINUTE))
    assert make(sink, store=store).drain() == 1
    told = dict(sink.alerts[0].message.rows).get("Most hit", "")
    assert told.startswith("Nordic Shoes (amount -") == ("partner" not in scope)


def test_a_sink_that_is_gone(make: Make, put: Any, only: Any, ledger: Ledger) -> None:
    delivery = put()
    ledger.update(replace(delivery, sink="pager"))
    assert make().drain() == 0
    assert (only().status, only().error) == ("failed", "kmon.yaml has no sink 'pager' any more")


def test_the_token_never_gets_into_the_ledger(
    slack: SlackServer, make: Make, put: Any, clock: HandClock, tmp_path: Path
) -> None:
    faults = [
        Fault(drop=True),
        Fault(status=500),
        Fault(status=429),
        Fault(error="xoxb-1-secret"),
        Fault(error="invalid_auth"),
    ]
    slack.fail(POST, *faults)
    put()
    notifier = make()
    for _ in faults:
        notifier.drain()
        clock.forward(600)
    files = [file.read_bytes() for file in tmp_path.glob("*.sqlite*")]
    assert files
    assert not any(b"secret" in content for content in files)


def test_runs_until_it_is_stopped_and_survives_trouble(make: Make, put: Any, only: Any) -> None:
    stop = threading.Event()

    class Last(ListSink):
        def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
            super().deliver(alert, receipt, save)
            stop.set()

    put()
    sink = Last()
    thread = threading.Thread(target=make(sink).run, args=(stop, 0.01))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert (len(sink.alerts), only().status) == (1, "sent")


def test_backoff_doubles_up_to_five_minutes() -> None:
    waits = [backoff(n) for n in (1, 2, 3, 9, 1000)]
    bounds = [FIRST, 2 * FIRST, 4 * FIRST, LONGEST, LONGEST]
    assert all(0.75 * bound <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
