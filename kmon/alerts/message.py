"""An incident in words that a tired account manager gets at once.

Names come from the outside. `show` makes them one visible line; Slack gets them as plain_text, in which ``*`` and
``:smile:`` are just characters, with ``&``, ``<`` and ``>`` escaped, so that nothing in them can act as markup.
"""

from __future__ import annotations

import datetime as dt
import html
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from kmon.config import Config, Metric, counted
from kmon.ledger import LABELLED, Incident, Told
from kmon.partners import Partner, Partners

if TYPE_CHECKING:
    from kmon.hit import Hits

HEADER, FIELD, CONTEXT = 150, 2000, 2000
"""Slack's limits, in UTF-16 units."""
FIELDS = 10
"""And so many in one section."""
NAMED = 3
"""So many of those who were hit most."""
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_PLACES = {
    "country": "in {}",
    "payment_method": "for {} payments",
    "browser": "on {}",
    "device": "on {}",
    "channel": "via {}",
}
ICONS = {"critical": "\N{LARGE RED CIRCLE}", "warning": "\N{LARGE ORANGE CIRCLE}", "info": "\N{LARGE BLUE CIRCLE}"}
RESOLVED = "\N{LARGE GREEN CIRCLE}"


@dataclass(frozen=True)
class Message:
    """One alert in words."""

    title: str
    """What and where, in one line."""
    summary: str
    """All that matters, in one line."""
    rows: tuple[tuple[str, str], ...]
    """The details: label and value."""
    note: str
    """Severity, times and id: for whoever looks closer."""
    url: str
    icon: str

    @property
    def text(self) -> str:
        """Plain text in several lines."""
        lines = [self.title, *(f"{label}: {value}" for label, value in self.rows), self.note, self.url]
        return "\n".join(line for line in lines if line)

    @property
    def notification(self) -> str:
        """What Slack shows in a notification, escaped."""
        return _fit(self.summary, 3000)

    def blocks(self) -> list[dict[str, Any]]:
        """The message in Slack's Block Kit."""
        fields: list[dict[str, Any]] = []
        for label, value in self.rows:
            fields += [{"type": "mrkdwn", "text": f"*{label}*"}, _plain(value, FIELD)]
        context = [_plain(self.note, CONTEXT)]
        if self.url:
            context.insert(0, {"type": "mrkdwn", "text": f"<{_link(self.url)}|Look closer>"})
        sections = [{"type": "section", "fields": fields[i : i + FIELDS]} for i in range(0, len(fields), FIELDS)]
        header = {"type": "header", "text": _plain(f"{self.icon} {self.title}", HEADER)}
        return [header, *sections, {"type": "context", "elements": context}]


def compose(
    incident: Incident,
    kind: Told,
    config: Config,
    partners: Partners,
    now: dt.datetime,
    *,
    change: str = "",
    hits: Hits | None = None,
) -> Message:
    """Say what happened, what a `change` of it is, and whom it `hits`; `now` decides whether a time needs its date."""
    metric = metric_of(incident, config)
    partner = partners.get(incident.scope["partner"]) if "partner" in incident.scope else None
    end = incident.resolved_at
    title = headline(incident, config, partners) if kind != "resolved" else _ending(incident, config, partners)
    what = show(change[:1].upper() + change[1:], 500)
    window = words(incident.window, short=True)
    observed, expected = quantity(metric, incident.observed), quantity(metric, incident.expected)
    usual = _between(metric, incident.lower, incident.upper)
    since = f"since {moment(incident.started_at, now)}"
    if end is not None:
        since = f"from {moment(incident.started_at, now).removesuffix(' UTC')} to {moment(end, now)}"
    lost, an_hour = (" and ".join(losses(incident, config, hourly=hourly, gains=True)) for hourly in (False, True))
    counted = f" in {window}" if metric.kind == "count" else ""
    figures = f"{observed} instead of {expected} ({usual}){counted}"
    ending = "so far" if end is None else "in all"
    told = f"{title}: {figures} {since}." if kind != "resolved" else f"{title}. It was {figures} {since}."
    parts = [f"{what}." if what else "", told, f"About {lost} {ending}." if lost else ""]
    rows = [
        ("Change", what),
        ("Observed", f"{observed} in {window}"),
        ("Expected", f"{expected} ({usual})"),
        ("Since" if end is None else "From", since.partition(" ")[2] + _local(incident, partner, now)),
        (
            f"Loss {ending}" if _is_bad(incident, metric) else f"Effect {ending}",
            f"about {an_hour}" if lost else "",
        ),
        ("Most hit", most_hit(hits, partners) if hits else ""),
        ("Account team", show(partner.account_team) if partner else ""),
    ]
    return Message(
        title=title,
        summary=" ".join(part for part in parts if part),
        rows=tuple((label, value) for label, value in rows if value),
        note=note(incident, kind, now),
        url=show(incident.url, 2000),
        icon=ICONS[incident.severity] if kind != "resolved" else RESOLVED,
    )


def headline(incident: Incident, config: Config, partners: Partners, *, past: bool = False) -> str:
    """``Conversion of Nordic Shoes (p17) in SE is down 65 %``, short enough for a header; `past`: it was."""
    return _sentence(incident, config, partners, change(incident), past=past)


def _ending(incident: Incident, config: Config, partners: Partners) -> str:
    lasted = (incident.resolved_at or incident.seen_at) - incident.started_at
    if lasted >= config.incidents.lasting:
        return _sentence(
            incident, config, partners, f"{change(incident)} for {words(lasted)} and counts as normal from now on"
        )
    if incident.reason.startswith(LABELLED):
        return _sentence(incident, config, partners, f"{change(incident)}, {show(incident.reason, 60)}")
    return _sentence(incident, config, partners, f"back to normal after {words(lasted)}")


def _sentence(incident: Incident, config: Config, partners: Partners, predicate: str, *, past: bool = False) -> str:
    plural = incident.metric.endswith("s")
    verb = ("were" if plural else "was") if past else ("are" if plural else "is")
    text = ""
    for most in (80, 40, 24, 12, 5):  # the end of the sentence matters more than the end of a name
        text = f"{subject(incident, partners, most)} {verb} {predicate}"
        if _size(html.escape(text, quote=False)) <= HEADER - 4:
            break
    return text


def subject(incident: Incident, partners: Partners, most: int = 80) -> str:
    """What and where: ``Conversion of Nordic Shoes (p17) in SE``; a name has at most `most` characters."""
    label = incident.metric.replace("_", " ")
    if not incident.scope:
        return f"Overall {label}"
    parts = [label[0].upper() + label[1:]]
    scope = dict(incident.scope)
    if "partner" in scope:
        partner = scope.pop("partner")
        found = partners.get(partner)
        name = found.name if found else ""
        parts.append(
            f"of {show(name, most)} ({show(partner, most)})"
            if name not in ("", partner)
            else f"of {show(partner, most)}"
        )
    parts += [
        _PLACES.get(d, f"where {d.replace('_', ' ')} is {{}}").format(show(value, most)) for d, value in scope.items()
    ]
    return " ".join(parts)


def change(incident: Incident) -> str:
    """``down 65 %``, ``up 3.4-fold``, ``down to zero``."""
    observed, expected = incident.observed, incident.expected
    if incident.direction == "down":
        fall = 100 * (1 - observed / expected) if expected > 0 else 0.0
        if observed <= 0:
            return "down to zero"
        return "down" if fall < 1 else "down more than 99 %" if fall >= 99.5 else f"down {fall:.0f} %"
    if expected <= 0:
        return "up from zero"
    ratio = observed / expected
    if ratio >= 3:
        return f"up {number(round(ratio, 1))}-fold"
    return f"up {100 * (ratio - 1):.0f} %" if ratio >= 1.01 else "up"


def metric_of(incident: Incident, config: Config) -> Metric:
    """Its metric; one that kmon.yaml no longer has is shown as a count."""
    return config.metrics.get(incident.metric) or Metric(count=incident.metric)


def show(text: str, most: int = 80) -> str:
    """A name from the outside on one visible line: control characters escaped, at most `most` characters."""
    visible = _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text[: most + 1])
    return visible if len(visible) <= most else visible[: most - 1] + "…"


def quantity(metric: Metric, value: float) -> str:
    """A value of a metric for people: a rate in percent, the others with their unit."""
    if metric.kind == "rate":
        return f"{percent(value)} %"
    figure = number(value) if metric.kind == "count" else _significant(value)
    return f"{figure} {metric.unit}".rstrip()


def _between(metric: Metric, lower: float, upper: float) -> str:
    low = percent(lower) if metric.kind == "rate" else number(lower) if metric.kind == "count" else _significant(lower)
    return f"{low} to {quantity(metric, upper)}"


def number(value: float) -> str:
    """A count for people: ``3.4``, ``31,500``, ``12.3 million``."""
    if not math.isfinite(value):
        return "any number"
    size = abs(value)
    for least, unit in ((1e9, "billion"), (1e6, "million")):
        if size >= least:
            return f"{_significant(value / least)} {unit}"
    return f"{value:,.0f}" if size >= 10 or float(f"{value:.1f}").is_integer() else f"{value:.1f}"


def percent(value: float) -> str:
    """A share between 0 and 1 in percent, without the sign."""
    share = 100 * value
    if not math.isfinite(share):
        return "any"
    if share in (0, 100):
        return f"{share:.0f}"
    return f"{share:.1f}" if share >= 1 else f"{share:.2f}" if share >= 0.1 else f"{share:.1g}"


def _significant(value: float) -> str:
    size = abs(value)
    if not math.isfinite(size):
        return "any number"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def moment(at: dt.datetime, now: dt.datetime) -> str:
    """``14:05 UTC``, with the date where it is not today's."""
    at, now = at.astimezone(dt.UTC), now.astimezone(dt.UTC)
    day = "" if at.date() == now.date() else f"{at.day} {at:%b} " if at.year == now.year else f"{at.day} {at:%b %Y} "
    return f"{day}{at:%H:%M} UTC"


def words(span: dt.timedelta, *, short: bool = False) -> str:
    """``30 seconds``, ``3 hours 20 minutes``, ``2 days``; or ``30 s``, ``3 h 20 min``, ``2 d``."""
    seconds = max(1, round(span.total_seconds()))
    minutes = round(seconds / 60) if seconds >= 60 else 0
    days, hours, rest = minutes // 1440, minutes % 1440 // 60, minutes % 60
    parts = [
        (days, "day", "d"),
        (hours, "hour", "h"),
        (rest, "minute", "min"),
        (0 if minutes else seconds, "second", "s"),
    ]
    told = [(n, name, brief) for n, name, brief in parts if n][:2]
    return " ".join(f"{n} {brief}" if short else counted(n, name) for n, name, brief in told)


def _local(incident: Incident, partner: Partner | None, now: dt.datetime) -> str:
    """The same start on the partner's own clock."""
    if partner is None or not partner.timezone:
        return ""
    try:
        at = incident.started_at.astimezone(ZoneInfo(partner.timezone))
    except (KeyError, ValueError, OSError):  # whatever the reference has there is no time zone
        return ""
    return f" ({at:%H:%M} in {partner.timezone})"


def losses(incident: Incident, config: Config, *, hourly: bool, gains: bool) -> list[str]:
    """``420 fewer orders``, ``amount lower by 31,500 (630,000 an hour)``: what it changed, as far as that is known.

    Of any measure, whatever its name is. `hourly` tells what an open one costs in money, `gains` what became more.
    """
    told = []
    for measure, delta in incident.impact.items():
        if not math.isfinite(delta) or abs(delta) < 0.5 or (delta > 0 and not gains):
            continue
        name, size = show(measure.replace("_", " ")), estimate(delta)
        if measure.endswith("s"):
            said = f"{size} {'more' if delta > 0 else 'fewer'} {name}"
        else:
            said = f"{name} {'higher' if delta > 0 else 'lower'} by {size}"
        told.append(said + (_an_hour(incident, config, measure) if hourly else ""))
    return told


def _an_hour(incident: Incident, config: Config, measure: str) -> str:
    """`` (630,000 an hour)`` of what an open incident costs in money; empty where that is not known or lost."""
    from kmon.impact import an_hour  # and with it all of detection: not for those who only route

    money = config.incidents.money
    if money is None or money.measure != measure or incident.resolved_at is not None:
        return ""
    cost = an_hour(incident, measure, incident.seen_at)
    return f" ({estimate(cost)} an hour)" if cost and cost >= 0.5 else ""


def most_hit(hits: Hits, partners: Partners) -> str:
    """``Nordic Shoes (orders -120), p3 (orders -80), 41 more``; empty where nobody was hit by more than chance."""
    told = []
    for one in hits.worst[:NAMED]:
        known = partners.get(one.value) if hits.dimension == "partner" else None
        delta = one.impact[hits.measure]
        name = show((known.name if known else "") or one.value, 40)
        told.append(f"{name} ({hits.measure.replace('_', ' ')} {'-' if delta < 0 else '+'}{estimate(delta)})")
    more = hits.count - len(told)
    return ", ".join([*told, *([f"{more:,} more"] if more else [])])


def estimate(change: float) -> str:
    """The size of a change, which is an estimate: two digits of a small one, three of a larger one."""
    return number(_rough(abs(change)))


def _rough(size: float) -> float:
    digits = 2 if size < 1000 else 3
    return round(size, digits - 1 - math.floor(math.log10(size))) if size > 0 else 0.0


def _is_bad(incident: Incident, metric: Metric) -> bool:
    return metric.good != incident.direction


def note(incident: Incident, kind: str, now: dt.datetime) -> str:
    """Small print; the reason says why it is over."""
    parts = [incident.severity, f"detected {moment(incident.detected_at, now)}", incident.id]
    if kind == "resolved" and incident.reason:
        parts.insert(2, show(incident.reason, 300))
    return " · ".join(parts)


def _plain(text: str, most: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": _fit(text, most), "emoji": False}


def _fit(text: str, most: int) -> str:
    """`text` escaped for Slack and, where it is longer than `most` UTF-16 units, cut."""
    escaped = html.escape(text, quote=False)
    while _size(escaped) > most:
        text = text[: max(0, min(len(text) - 2, most))] + "…"
        escaped = html.escape(text, quote=False)
    return escaped


def _size(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _link(url: str) -> str:
    """A URL that cannot end its own markup."""
    return quote(url, safe="/:?=%#+,@!~;$'()*&[]-._").replace("&", "&amp;")
