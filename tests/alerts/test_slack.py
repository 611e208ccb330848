from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kmon.alerts.message import compose
from kmon.alerts.sinks import Alert
from kmon.alerts.sinks.slack import Slack, whoami
from kmon.config import Config
from kmon.errors import SinkError, ThrottledError
from kmon.partners import Partners
from tests.alerts.conftest import INCIDENT, RESOLVED, T
from tests.slack_server import COMPLETE, POST, TOKEN, UPLOAD, URL, Fault, SlackServer

PNG = b"\x89PNG" + bytes(range(256)) * 300


@pytest.fixture
def firing(make_config: Callable[..., Config], partners: Partners) -> Alert:
    return Alert("dlv_1", "firing", INCIDENT, compose(INCIDENT, "firing", make_config(), partners, T), "#p17", PNG)


@pytest.fixture
def resolved(firing: Alert, make_config: Callable[..., Config], partners: Partners) -> Alert:
    message = compose(RESOLVED, "resolved", make_config(), partners, T)
    return replace(firing, delivery="dlv_2", kind="resolved", incident=RESOLVED, message=message)


class Receipts(list[dict[str, Any]]):
    """What was saved, newest last."""

    def deliver(self, alert: Alert) -> None:
        Slack().deliver(alert, self[-1] if self else {}, lambda receipt: self.append(dict(receipt)))


def test_message_then_chart_in_its_thread(slack: SlackServer, firing: Alert) -> None:
    receipts = Receipts()
    receipts.deliver(firing)
    assert slack.order == [POST, URL, UPLOAD, COMPLETE]
    post, url, upload, complete = slack.calls
    assert (post.fields["channel"], post.fields["text"]) == ("#p17", firing.message.notification)
    assert post.fields["metadata"] == {
        "event_type": "kmon_alert",
        "event_payload": {"delivery": "dlv_1", "incident": "inc_1", "kind": "firing"},
    }
    assert (url.fields["filename"], url.fields["length"]) == ("inc_1.png", str(len(PNG)))
    assert (upload.body, upload.authorization) == (PNG, "")
    assert json.loads(complete.fields["files"])[0]["id"] == "F1"
    assert (complete.fields["channel_id"], complete.fields["thread_ts"]) == ("C0P17", "1700000000.000001")
    assert receipts[-1] == {"ts": "1700000000.000001", "channel": "C0P17", "thread": "1700000000.000001", "file": "F1"}


def test_resolved_goes_into_the_thread_and_the_channel(slack: SlackServer, resolved: Alert) -> None:
    Receipts().deliver(replace(resolved, firing={"ts": "1.5", "channel": "C0P17"}, chart=None))
    (post,) = slack.calls
    assert [post.fields[key] for key in ("channel", "thread_ts", "reply_broadcast")] == ["C0P17", "1.5", True]
    Receipts().deliver(replace(resolved, firing={}, chart=None))
    assert (slack.calls[1].fields["channel"], slack.calls[1].fields.get("thread_ts")) == ("#p17", None)


@pytest.mark.parametrize("method", [URL, UPLOAD, COMPLETE])
@pytest.mark.parametrize(
    "fault", [Fault(drop=True), Fault(status=503), Fault(status=429, headers={"Retry-After": "7"})]
)
def test_a_failed_chart_is_tried_again_without_a_second_message(
    slack: SlackServer, firing: Alert, method: str, fault: Fault
) -> None:
    slack.fail(method, fault)
    receipts = Receipts()
    with pytest.raises(SinkError) as caught:
        receipts.deliver(firing)
    assert caught.value.retryable
    receipts.deliver(firing)
    assert len(slack.made(POST)) == 1
    assert slack.made(UPLOAD)[-1].body == PNG
    assert "file" in receipts[-1]


@pytest.mark.parametrize(
    ("fault", "retryable", "says"),
    [
        (Fault(error="not_in_channel"), False, "invite the bot to #p17"),
        (Fault(error="channel_not_found"), False, "create #p17 or correct its name"),
        (Fault(error="invalid_auth"), False, "SLACK_BOT_TOKEN"),
        (Fault(error="missing_scope"), False, "chat:write and files:write"),
        (Fault(error="some_new_code"), False, "some_new_code"),
        (Fault(error=f"bad {TOKEN}"), True, "what answers is not Slack"),
        (Fault(error="internal_error"), True, "internal_error"),
        (Fault(status=500), True, "HTTP 500"),
        (Fault(drop=True), True, "cannot be reached"),
    ],
)
def test_refusals_say_what_to_do(slack: SlackServer, firing: Alert, fault: Fault, retryable: bool, says: str) -> None:
    slack.fail(POST, fault)
    with pytest.raises(SinkError, match=says) as caught:
        Receipts().deliver(firing)
    assert caught.value.retryable is retryable


def test_whoami(slack: SlackServer) -> None:
    assert whoami() == "kmon"
    assert slack.calls[0].authorization == f"Bearer {TOKEN}"
    slack.fail("auth.test", Fault(error="invalid_auth"))
    with pytest.raises(SinkError, match="SLACK_BOT_TOKEN"):
        whoami()


@pytest.mark.parametrize(
    "fault", [Fault(status=429, headers={"Retry-After": "7"}), Fault(error="ratelimited", headers={"retry-after": "7"})]
)
def test_rate_limits_say_how_long(slack: SlackServer, firing: Alert, fault: Fault) -> None:
    slack.fail(POST, fault)
    with pytest.raises(ThrottledError) as caught:
        Receipts().deliver(firing)
    assert caught.value.seconds == 7


FAULTS = [Fault(drop=True), Fault(status=500, error=TOKEN), Fault(status=429, error=f"bad {TOKEN}")]


@pytest.mark.parametrize("method", [POST, URL, UPLOAD, COMPLETE])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_secret_in_any_error(
    slack: SlackServer, firing: Alert, method: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    slack.fail(method, fault)
    with pytest.raises(SinkError) as caught:
        Receipts().deliver(firing)
    assert "secret" not in f"{caught.value} {caplog.text}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("token", "says"), [("", "no Slack token is set.*SLACK_BOT_TOKEN"), (f"{TOKEN}\nX: y", "characters")]
)
def test_a_missing_or_broken_token(
    slack: SlackServer, firing: Alert, monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    monkeypatch.setenv("SLACK_BOT_TOKEN", token)
    with pytest.raises(SinkError, match=says) as caught:
        Receipts().deliver(firing)
    assert not caught.value.retryable
    assert "secret" not in str(caught.value)
    assert slack.calls == []


def test_what_is_not_slack_or_not_there(slack: SlackServer, firing: Alert, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, says in (
        (slack.url.replace("/api/", "/upload/"), "makes no sense"),
        ("http://127.0.0.1:9/api/", "cannot be reached"),
    ):
        monkeypatch.setenv("SLACK_API_URL", url)
        with pytest.raises(SinkError, match=says) as caught:
            Receipts().deliver(firing)
        assert caught.value.retryable
