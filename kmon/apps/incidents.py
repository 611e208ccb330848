"""The list of incidents as a component: rows of text in, the picked incident out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from kmon.alerts import operators
from kmon.alerts.message import losses
from kmon.apps import words
from kmon.apps.feed import View
from kmon.apps.selection import concerns, of_incident, write_query
from kmon.config import PIPELINE, Config
from kmon.labels import SAYS
from kmon.ledger import Incident, Label
from kmon.partners import Partner

Known = Callable[[str], Partner | None]

ELSEWHERE = 20
"""How many open incidents outside the selection are listed."""
HERE = 50


class IncidentList(JSComponent):
    """Groups of incidents; a click on one, or the browser's back button, is reported."""

    groups = param.List(default=[], doc="See `groups` below.")

    _esm: ClassVar[str] = "incidents.js"

    def __init__(self, picked: Callable[[str], None], moved: Callable[[str], None], **params: Any) -> None:
        """`picked` is called with an incident's id, `moved` with the query of the URL that the browser went to."""
        super().__init__(**params)  # type: ignore[no-untyped-call]
        self._picked, self._moved = picked, moved

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and isinstance(data.get("picked"), str):
            self._picked(data["picked"])
        elif isinstance(data, dict) and isinstance(data.get("search"), str):
            self._moved(data["search"])


def groups(config: Config, view: View, chosen: str | None, partner: Known) -> list[dict[str, Any]]:
    """The incidents as the component shows them: those that concern the selection, then what else is open.

    `partner` tells what is known of a value of the first dimension.
    """
    where = view.selection.where
    here = [i for i in view.incidents if concerns(where, i)]
    elsewhere = [i for i in view.incidents if not concerns(where, i)]
    here.sort(key=lambda i: (i.resolved_at is not None, -i.started_at.timestamp()))

    def group(title: str, nothing: str, some: list[Incident], limit: int) -> dict[str, Any]:
        rows = [
            row(config, i, view.watermark, partner, selected=i.id == chosen, label=view.labels.get(i.id))
            for i in some[:limit]
        ]
        more = f"and {len(some) - limit:,} more" if len(some) > limit else ""
        return {"title": title, "nothing": nothing, "rows": rows, "more": more}

    nothing = "None in this time range." if view.read else ""
    made = [group("Incidents", nothing, here, HERE)]
    return [*made, group("Open elsewhere", "", elsewhere, ELSEWHERE)] if elsewhere else made


def row(
    config: Config,
    incident: Incident,
    watermark: dt.datetime | None,
    partner: Known,
    *,
    selected: bool = False,
    label: Label | None = None,
) -> dict[str, Any]:
    """One incident in words, and what people said of it."""
    metric = config.metrics.get(incident.metric)
    now = watermark or incident.seen_at
    until = incident.resolved_at or now
    arrow = "▼" if incident.direction == "down" else "▲"
    observed, expected = (
        (words.value(metric, v) if metric else words.number(v)) for v in (incident.observed, incident.expected)
    )
    what = f"{arrow} {words.title(incident.metric)}"
    if incident.metric == PIPELINE:
        what, (observed, expected) = operators.headline(incident), operators.figures(incident)
    return {
        "id": incident.id,
        "href": write_query(config, of_incident(config, incident, watermark)) or "?",
        "severity": incident.severity,
        "what": what,
        "where": [[words.title(d), words.visible(_named(config, d, v, partner))] for d, v in incident.scope.items()],
        "since": words.moment(incident.started_at, now),
        "lasted": words.duration(until - incident.started_at),
        "observed": observed,
        "expected": expected,
        "loss": ", ".join(losses(incident, config, hourly=True, gains=False)) or words.NOTHING,
        "status": incident.status,
        "said": _said(label, now) if label else "",
        "open": incident.resolved_at is None,
        "selected": selected,
    }


def _said(label: Label, now: dt.datetime) -> str:
    """``Labelled a false alarm by ann, 12:30 UTC``."""
    at = words.moment(label.said_at, now)
    return f"Labelled {SAYS[label.word]} by {words.visible(label.said_by)}, {at} UTC"


def _named(config: Config, dimension: str, value: str, partner: Known) -> str:
    """A value with its name, where it has one: ``Urban Sport 3 (p3)``, as in alerts."""
    known = partner(value) if dimension == config.dimensions[0] else None
    return f"{known.name} ({value})" if known and known.name and known.name != value else value
