"""Slack: the message in Block Kit, and the chart as a file in its thread.

Three steps, each remembered in the receipt: the message is posted (``ts`` and ``channel``, the ID that Slack answers
with), then the chart is uploaded (``file``). This is the seam where slack_sdk's and the network's errors become
SinkErrors. Their texts are never passed on, because they may quote the request, and that has the token in it.
"""

from __future__ import annotations

import http.client
import logging
import re
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from kmon import environment
from kmon.alerts.message import show
from kmon.alerts.sinks import Alert, Receipt, Save
from kmon.errors import SinkError, ThrottledError

TIMEOUT = 10
"""Seconds that one call may take."""
_TRANSIENT = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "message_limit_exceeded"}
_LIMITS = {"ratelimited", "rate_limited"}
_SIGN_IN = "put the bot token of the Slack app into SLACK_BOT_TOKEN and start kmon again"
_ADVICE = {
    **dict.fromkeys(("invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"), _SIGN_IN),
    "not_in_channel": "invite the bot to {channel}",
    "channel_not_found": "create {channel} or correct its name, and invite the bot if it is private",
    "is_archived": "unarchive {channel}, or route to another one",
    "missing_scope": "give the Slack app the scopes chat:write and files:write, and install it again",
    "not_allowed_token_type": "SLACK_BOT_TOKEN must be a bot token, which begins with xoxb-",
    **dict.fromkeys(
        ("restricted_action", "restricted_action_read_only_channel", "ekm_access_denied"),
        "let the app post in {channel}: the workspace's settings forbid it",
    ),
}


class Slack:
    """Posts with the token of SLACK_BOT_TOKEN, read at each alert."""

    charts = True

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        client = _client()
        posted = dict(receipt)
        if "ts" not in posted:
            posted |= _post(client, alert)
            save(posted)
        if alert.chart is not None and "file" not in posted:
            posted["file"] = _upload(client, alert, posted)
            save(posted)


def whoami() -> str:
    """The name of the bot that the token belongs to; SinkError where Slack does not know it."""
    client = _client()
    with _translated("the channel"):
        return str(client.auth_test()["user"])


def _client() -> WebClient:
    token = (environment.slack_bot_token() or "").strip()
    if not token:
        message = f"no Slack token is set: {_SIGN_IN}"
        raise SinkError(message, retryable=False)
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # http.client would refuse it with a text that quotes it
        message = f"the Slack token has characters that no token has: {_SIGN_IN}"
        raise SinkError(message, retryable=False)
    silent = logging.Logger("slack", level=logging.CRITICAL)  # slack_sdk logs what it raises, with the request
    return WebClient(token, base_url=environment.slack_api_url(), timeout=TIMEOUT, retry_handlers=[], logger=silent)


def _post(client: WebClient, alert: Alert) -> Receipt:
    """Post the message; a later one into the thread of its alert, and shown in the channel as well."""
    thread: dict[str, Any] = {}
    if alert.kind != "firing" and alert.firing.get("ts"):
        thread = {"thread_ts": alert.firing["ts"], "reply_broadcast": True}
    channel = alert.firing["channel"] if thread else alert.channel
    payload = {"delivery": alert.delivery, "incident": alert.incident.id, "kind": alert.kind}
    with _translated(alert.channel):
        answer = client.chat_postMessage(
            channel=channel,
            text=alert.message.notification,
            blocks=alert.message.blocks(),
            metadata={"event_type": "kmon_alert", "event_payload": payload},
            mrkdwn=False,
            unfurl_links=False,
            unfurl_media=False,
            **thread,
        )
        return {"ts": answer["ts"], "channel": answer["channel"], "thread": thread.get("thread_ts", answer["ts"])}


def _upload(client: WebClient, alert: Alert, posted: Receipt) -> str:
    """Hang the chart under the message; the id of the file."""
    with _translated(alert.channel):
        answer = client.files_upload_v2(
            content=alert.chart,
            filename=f"{alert.incident.id}.png",
            title=f"{alert.incident.metric.replace('_', ' ')} against expectation",
            alt_txt=alert.message.title,
            channel=posted["channel"],
            thread_ts=posted["thread"],
            initial_comment="What happened, against what was expected.",
        )
        return str(answer["files"][0]["id"])


@contextmanager
def _translated(channel: str) -> Iterator[None]:
    """Slack's and the network's errors as SinkErrors, whose texts are made here alone."""
    try:
        yield
    except SlackApiError as error:
        raise _refusal(error, channel) from None
    except urllib.error.HTTPError as error:
        error.close()
        message = f"Slack did not take the chart (HTTP {error.code})"
        raise SinkError(message, retryable=True) from None
    except SlackClientError as error:
        message = f"Slack did not take the chart ({type(error).__name__})"
        raise SinkError(message, retryable=True) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        what = getattr(reason, "strerror", None) or type(reason).__name__
        message = f"Slack cannot be reached ({what}): check the network"
        raise SinkError(message, retryable=True) from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"Slack's answer makes no sense ({type(error).__name__}): check SLACK_API_URL"
        raise SinkError(message, retryable=True) from None


def _refusal(error: SlackApiError, channel: str) -> SinkError:
    status = int(error.response.status_code)
    code = str(error.response.get("error", ""))
    code = code if re.fullmatch(r"[a-z0-9_]{1,60}", code) else "no reason given"
    if status == 429 or code in _LIMITS:
        headers = {key.lower(): value for key, value in error.response.headers.items()}
        after = headers.get("retry-after", "")
        seconds = float(after) if after.isdecimal() else 30.0
        return ThrottledError(f"Slack asks to wait {seconds:g} s", seconds=seconds)
    if status >= 500 or code in _TRANSIENT:
        return SinkError(f"Slack has trouble of its own (HTTP {status}, {code})", retryable=True)
    if status == 200 and code == "no reason given":
        return SinkError("what answers is not Slack: check SLACK_API_URL", retryable=True)
    advice = _ADVICE.get(code, "look the reason up in Slack's API reference").format(channel=show(channel))
    return SinkError(f"Slack refuses ({code}): {advice}", retryable=False)
