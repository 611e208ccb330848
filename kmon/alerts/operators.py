"""An incident of the pipeline itself in words: for the operators, who must find what broke, not for an account team."""

from __future__ import annotations

import datetime as dt

from kmon.alerts.message import ICONS, RESOLVED, Message, moment, note, number, percent, show, words
from kmon.config import Config
from kmon.ledger import Incident, Told

HELD = "Falls that this explains are told to nobody until it is over."
_TITLES = {
    "partition": ("No events come from {where}", "Events come from {where} again"),
    "quiet": ("No events come at all", "Events come again"),
    "rejects": ("{observed} of the records are rejected", "Records are read again"),
    "lag": ("The data is {observed} behind the clock", "The data is up to date again"),
}


def compose(incident: Incident, kind: Told, config: Config, now: dt.datetime) -> Message:
    """Say what is wrong with the data; `now` decides whether a time needs its date."""
    end = incident.resolved_at
    title = headline(incident) if kind != "resolved" else _ending(incident, config)
    since = f"since {moment(incident.started_at, now)}"
    if end is not None:
        since = f"from {moment(incident.started_at, now).removesuffix(' UTC')} to {moment(end, now)}"
    missing = _missing(incident, sofar=end is None)
    observed, expected = figures(incident)
    held = HELD if kind != "resolved" and incident.detector != "lag" else ""
    parts = [
        f"{title} {since}." if kind != "resolved" else f"{title}. It was so {since}.",
        missing and f"{missing}.",
        held,
    ]
    rows = [
        ("Observed", observed),
        ("Usual", expected),
        ("Since" if end is None else "From", since.partition(" ")[2]),
        ("Missing" if incident.detector != "rejects" else "Rejected", missing),
        ("What to do", _ADVICE.get(incident.detector, "") if kind != "resolved" else ""),
    ]
    if incident.detector in ("quiet", "partition"):
        rows = rows[2:]  # nothing, instead of what is missing
    return Message(
        title=title,
        summary=" ".join(part for part in parts if part),
        rows=tuple((label, value) for label, value in rows if value),
        note=note(incident, kind, now) if kind == "resolved" else f"{note(incident, kind, now)}{_detail(incident)}",
        url=show(incident.url, 2000),
        icon=ICONS[incident.severity] if kind != "resolved" else RESOLVED,
    )


_ADVICE = {
    "partition": "see whether its producer and its broker are up",
    "quiet": "see whether the source is up, and whether kmon reaches it",
    "rejects": "see what the records look like: kmon query 'SELECT * FROM dead_letters'",
    "lag": "see what kmon status says of unread records, and whether the machine is busy",
}


def headline(incident: Incident) -> str:
    """``No events come from partition 3``."""
    now = _TITLES.get(incident.detector, ("The data is in trouble", ""))[0]
    return now.format(where=_where(incident), observed=figures(incident)[0])


def sentence(incident: Incident) -> str:
    """What is wrong since when, in one line without an end."""
    parts = [f"{headline(incident)} since {moment(incident.started_at, incident.seen_at)}"]
    return ": ".join([*parts, *([told[0].lower() + told[1:]] if (told := _missing(incident, sofar=True)) else [])])


def figures(incident: Incident) -> tuple[str, str]:
    """What was observed and what is usual, with their units."""
    if incident.detector == "rejects":
        return f"{percent(incident.observed)} %", f"{percent(incident.expected)} %"
    if incident.detector == "lag":
        observed, expected = (dt.timedelta(minutes=v) for v in (incident.observed, incident.expected))
        return words(observed), words(expected)
    return f"{number(incident.observed)} events", f"{number(incident.expected)} events"


def _ending(incident: Incident, config: Config) -> str:
    lasted = (incident.resolved_at or incident.seen_at) - incident.started_at
    over = _TITLES.get(incident.detector, ("", "The data is as usual again"))[1]
    if incident.detector in ("partition", "rejects") and lasted >= config.incidents.lasting:
        return f"{headline(incident)} for {words(lasted)}, which counts as normal from now on"
    return f"{over.format(where=_where(incident))} after {words(lasted)}"


def _where(incident: Incident) -> str:
    named = [show(name, 40) for name in incident.scope.get("partition", "").split(", ")]
    if len(named) > 3:
        return f"{len(named)} partitions ({', '.join(named[:3])} and others)"
    return f"partition{'s' if len(named) > 1 else ''} {', '.join(named)}"


def _missing(incident: Incident, *, sofar: bool) -> str:
    """``About 4,500 events are missing so far``; empty where nobody knows."""
    count = -incident.impact.get("events", 0.0)
    if count < 1:
        return ""
    rough = number(float(f"{count:.2g}"))
    if incident.detector == "rejects":
        return f"About {rough} records more than usual in {words(incident.window)}" if sofar else ""
    return f"About {rough} events are missing{' so far' if sofar else ''}"


def _detail(incident: Incident) -> str:
    """What else the symptom said, after its sentence."""
    detail = incident.reason.partition(". ")[2]
    return f" · {show(detail, 300)}" if detail else ""
