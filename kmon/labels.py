"""What people say of incidents: real, false alarm, the new normal; and of stretches of time that had one unseen.

A label is one row of the ledger. What it means for the references is told by `kmon.references`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

from kmon.alerts.outbox import outbox_for
from kmon.config import PIPELINE, Config
from kmon.errors import UsageError
from kmon.ledger import EPOCH, LABELLED, SETTLING, Delivery, Incident, Label, Ledger, Word, new_id
from kmon.partners import Partners

Clock = Callable[[], dt.datetime]
SAYS: dict[Word, str] = {"true": "real", "false": "a false alarm", "new-normal": "the new normal"}
"""What an incident was, by the word that says so."""


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def say(config: Config, ledger: Ledger, id: str, word: Word, *, by: str, clock: Clock = utc_now) -> Label:
    """Label an incident, instead of what was said of it before; saying the same again changes nothing.

    A false alarm and a new normal end it now, and those who heard of it are told. UsageError where there is no such
    incident, or where it is one of the pipeline.
    """
    incident = ledger.incident(id)
    if incident is None:
        message = f"there is no incident {id!r}: 'kmon incidents' lists them"
        raise UsageError(message)
    if incident.metric == PIPELINE:
        message = f"{id} is of the data itself: it ends when the data is complete, and no label changes that"
        raise UsageError(message)
    before = next((label for label in ledger.labels() if label.incident == id), None)
    if before is not None and before.word == word:
        return before
    judged, now, ended = _judged(ledger), clock(), None
    if word in SETTLING and incident.resolved_at is None:
        at = max(judged, incident.detected_at)
        reason = f"{LABELLED}{SAYS[word]} by {by}"
        ended = replace(incident, status="resolved", resolved_at=at, seen_at=at, quiet=0, reason=reason)
    until = None if word == "new-normal" else (ended or incident).resolved_at
    label = Label(new_id("lbl"), word, id, incident.metric, incident.scope, incident.started_at, until, judged, now, by)
    ledger.save_label(label, ended, _outbox(config, ledger, ended, now) if ended else ())
    return label


def mark(
    ledger: Ledger,
    stretch: tuple[str, dt.datetime, dt.datetime],
    scope: dict[str, str],
    *,
    by: str,
    clock: Clock = utc_now,
) -> Label:
    """Label a `stretch` (metric, start, end) as an incident that was not found; it is no reference for the scope.

    Marking the same again changes nothing.
    """
    metric, start, end = stretch
    for label in ledger.labels():
        if label.incident is None and _key(label) == (metric, scope, start, end):
            return label
    label = Label(new_id("lbl"), "incident", None, metric, scope, start, end, _judged(ledger), clock(), by)
    ledger.save_label(label)
    return label


def remove(ledger: Ledger, id: str) -> None:
    """Take a label back. An incident that it ended stays over. UsageError where there is no such label."""
    if not ledger.remove_label(id):
        message = f"there is no label {id!r}: 'kmon label' lists them"
        raise UsageError(message)


def _key(label: Label) -> tuple[object, ...]:
    return label.metric, label.scope, label.started_at, label.resolved_at


def _judged(ledger: Ledger) -> dt.datetime:
    """Event time of the last sweep; 1970 where there was none."""
    last = ledger.last_sweep()
    return last.at if last else EPOCH


def _outbox(config: Config, ledger: Ledger, ended: Incident, now: dt.datetime) -> list[Delivery]:
    partners = Partners.load(config.resolve(config.partners) if config.partners else None)
    return outbox_for(config, ended, "resolved", partners, now, ledger.deliveries(incident=ended.id))
