"""Who must hear what of an incident, as rows of the outbox.

firing     for each sink of its route
changed    another scope, or a severity that another route takes: an update for those who know of the incident, a
           firing alert for those of its route who do not
resolved   for those who know of it
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import structlog

from kmon.alerts.routing import route
from kmon.config import Config
from kmon.ledger import SEVERITIES, Delivery, Incident, Told, new_id
from kmon.partners import Partners

log = structlog.get_logger(__name__)


def outbox_for(
    config: Config,
    incident: Incident,
    kind: Told,
    partners: Partners,
    now: dt.datetime,
    told: Sequence[Delivery] = (),
    change: str = "",
) -> list[Delivery]:
    """The rows that tell about `incident`; `told` are those there were of it, `now` is the wall clock."""
    routing = route(config, incident, partners)
    known = {_place(config, d.sink, d.channel): d for d in told if d.kind == "firing" and d.sink in config.sinks}

    def row(kind: Told, sink: str, channel: str) -> Delivery:
        said = {"scope": incident.scope, "severity": incident.severity, "change": change if kind == "changed" else None}
        return Delivery(new_id("dlv"), incident.id, kind, sink, channel, now, **said)  # type: ignore[arg-type]

    rows = [] if kind == "firing" else [row(kind, d.sink, d.channel) for d in known.values()]
    if kind != "resolved":
        new = [s for s in routing.sinks if kind == "firing" or _place(config, s, routing.channel) not in known]
        rows += [row("firing", sink, routing.channel) for sink in new]
    places = [f"{d.sink} {d.channel}" for d in rows]
    log.info("routed", incident=incident.id, kind=kind, places=places, channel=routing.channel, why=routing.reason)
    return rows


def is_news(config: Config, incident: Incident, partners: Partners, told: Sequence[Delivery]) -> bool:
    """Whether nobody was told of this scope yet, or of a severity as high, which another route takes.

    So a scope that comes and goes is told once, and so is a severity that falls and rises again. One that rises on the
    same route is none: most incidents do, while their first window fills.
    """
    if incident.scope not in [d.scope for d in told]:
        return True
    worst = max((d.severity for d in told if d.severity is not None), key=SEVERITIES.index)
    higher = SEVERITIES.index(incident.severity) > SEVERITIES.index(worst)
    return higher and route(config, incident, partners) != route(config, replace(incident, severity=worst), partners)


def _place(config: Config, sink: str, channel: str) -> tuple[str, str]:
    """Where people are: a sink without channels is one place."""
    return sink, channel if config.sinks[sink].channels else ""
