"""The section "Sample events" of a page that is opened on an incident: its newest events, as they came."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from kmon.apps import words
from kmon.config import PIPELINE, Config, equalities, show_duration
from kmon.ledger import Incident
from kmon.store import Store
from kmon.store.schema import RAW

COUNT = 10
LONGEST, MOST = 40, 12
"""Letters of a value, and values of an event, that are shown; more of it appears where the pointer rests on it."""


@dataclass(frozen=True)
class Samples:
    """Whole events of one incident, newest first."""

    incident: Incident
    events: pl.DataFrame = field(default_factory=pl.DataFrame)
    """As `Store.sample_events` gives them."""
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What failing events have in their fields, where only those were looked for."""
    nothing: str = ""
    """Why there is none, in words."""


def read(store: Store, config: Config, incident: Incident, watermark: dt.datetime) -> Samples:
    """The newest events in the incident's scope since it began, until it ended or the data is complete."""
    if incident.metric == PIPELINE:
        return Samples(incident, nothing="This is about events that are missing: kmon status says more.")
    gone = [d for d in incident.scope if d not in store.schema.dimensions]
    if gone:
        return Samples(incident, nothing=f"Events are no longer told apart by {words.title(gone[0]).lower()}.")
    only, end = failing(config, incident), incident.resolved_at or watermark
    found = store.sample_events(incident.scope, incident.started_at, end, COUNT, only)
    return Samples(incident, found, only, "" if found.height else _why_none(store, config, end, only))


def failing(config: Config, incident: Incident) -> dict[str, tuple[str, ...]]:
    """What the events that are too many have in their fields: of a metric of failures, as its measure says.

    Empty where that is not easily told.
    """
    metric = config.metrics.get(incident.metric)
    if metric is None or metric.good != "down" or incident.direction != "up":
        return {}
    told = equalities(config.measures[metric.parts[0]])
    fields = config.events.fields
    if not all(name in fields and fields[name].type == "string" and name != config.enrich.country for name in told):
        return {}  # the event as it came has it otherwise
    return {fields[name].path or name: values for name, values in told.items()}


def _why_none(store: Store, config: Config, end: dt.datetime, only: Mapping[str, Sequence[str]]) -> str:
    if not config.keep.raw:
        return "Whole events are not kept: keep.raw in kmon.yaml says for how long they could be."
    oldest = store.sql(f"SELECT min(event_time) FROM {RAW}").item()
    if oldest is None or oldest.replace(tzinfo=dt.UTC) >= end:
        return f"The events of that time are no longer kept: whole events are for {show_duration(config.keep.raw)}."
    return f"No {'failing ' if only else ''}event came here in that time."


def section(config: Config, samples: Samples | None, now: dt.datetime | None) -> str:
    """The section as HTML; empty without an incident."""
    if samples is None:
        return ""
    if samples.nothing:
        return f'<div class="samples"><h2>Sample events</h2><p class="quiet">{words.safe(samples.nothing)}</p></div>'
    now = now or samples.incident.seen_at
    shown = [d for d in config.dimensions if d not in samples.incident.scope and d in samples.events.columns]
    head = "".join(f"<th>{words.safe(words.title(name))}</th>" for name in ("time", *shown, "rest of the event"))
    fields = config.events.fields
    told = {config.events.time, config.enrich.user_agent, *config.dimensions}  # browser and device tell the agent
    known = {field.path or name for name, field in fields.items() if name in told}
    rows = "".join(_row(event, shown, known, now) for event in samples.events.iter_rows(named=True))
    return (
        f'<div class="samples events"><h2>Sample events</h2><p class="quiet">{words.safe(_told(samples, now))}</p>'
        f"<table><tr>{head}</tr>{rows}</table></div>"
    )


def _told(samples: Samples, now: dt.datetime) -> str:
    incident = samples.incident
    what = " and ".join(f"{name} {' or '.join(values)}" for name, values in samples.only.items())
    until = f" until {words.moment(incident.resolved_at, now)}" if incident.resolved_at else ""
    newest = "The newest of this incident's events" + (f" with {what}" if what else "")
    return f"{newest}, from {words.moment(incident.started_at, now)}{until} UTC, as they came."


def _row(event: Mapping[str, Any], shown: Sequence[str], known: Set[str], now: dt.datetime) -> str:
    """One event: the dimensions `shown`, and the fields of its document that are not `known` without it."""
    at = event["event_time"]
    day = "" if at.date() == now.date() else f"{at.day} {at:%b} "
    cells = "".join(f"<td>{words.safe(_short(event[d] or words.NOTHING))}</td>" for d in shown)
    values = [(name, value) for name, value in _fields(event["document"]) if name not in known]
    rest = "".join(
        f'<span class="pair"><span class="dimension">{words.safe(name)}</span>{words.safe(_short(value))}</span>'
        for name, value in values[:MOST]
    )
    rest += f'<span class="dimension">and {len(values) - MOST} more</span>' if len(values) > MOST else ""
    whole = words.safe(event["document"][:2000])
    return f'<tr><td class="time">{day}{at:%H:%M:%S}</td>{cells}<td class="rest" title="{whole}">{rest}</td></tr>'


def _fields(document: str) -> list[tuple[str, str]]:
    """The values in a document, nested ones by their path; of what is no JSON object the text as it is."""
    try:
        found = json.loads(document)
        return list(_leaves(found, "")) if isinstance(found, dict) else [("", document)]
    except (ValueError, RecursionError):
        return [("", document)]


def _leaves(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
