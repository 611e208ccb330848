"""What a page looks at: filters, time range and the URL that says so."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from kmon.config import PIPELINE, Config, Shift, page_key, parse_duration, show_duration
from kmon.detect.fleet import Mask
from kmon.ledger import Incident, show_time

HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


@dataclass(frozen=True)
class Range:
    """A time range on offer: how far back, in how wide steps."""

    span: dt.timedelta
    grain: dt.timedelta


def ranges(config: Config) -> tuple[Range, ...]:
    """What can be chosen, shortest first: hours where minutes are watched, weeks where hours are."""
    minutes = dt.timedelta(minutes=1)
    width = max(min(config.windows), minutes)  # what is finer is not kept for so long
    if width < HOUR:
        wide = (1 * HOUR, width), (3 * HOUR, width), (12 * HOUR, 5 * minutes), (2 * DAY, 15 * minutes)
    else:
        wide = (2 * DAY, width), (7 * DAY, width), (28 * DAY, width), (84 * DAY, 6 * HOUR)
    return tuple(Range(span, max(width, grain)) for span, grain in wide)


@dataclass(frozen=True)
class Selection:
    """What is looked at, from a URL or by hand."""

    range: Range
    where: Mapping[str, str] = field(default_factory=dict)
    """Dimension values; empty for everything."""
    metric: str | None = None
    """The one to show first."""
    incident: str | None = None
    at: dt.datetime | None = None
    """The instant of interest: the range ends a quarter of itself later. None: live."""
    notes: tuple[str, ...] = ()
    """What the URL asked for that does not exist, in words."""

    @property
    def live(self) -> bool:
        return self.at is None

    def end(self, watermark: dt.datetime) -> dt.datetime:
        """The end of what is shown: never beyond what is complete."""
        return watermark if self.at is None else min(watermark, self.at + self.range.span / 4)


def default(config: Config) -> Selection:
    """Everything, live, over the second shortest range."""
    return Selection(ranges(config)[1])


def read_query(config: Config, query: str) -> Selection:
    """The selection that a URL's query asks for; what cannot be followed is left out and said in `notes`."""
    given = dict(parse_qsl(query.lstrip("?")))
    notes = []
    where = {d: given[page_key(d)] for d in config.dimensions if page_key(d) in given}
    metric = given.get("metric")
    if metric is not None and metric not in config.metrics:
        near = difflib.get_close_matches(metric, config.metrics, n=1) or list(config.metrics)[:1]
        notes.append(f"There is no metric {metric!r}; one that exists is {near[0]!r}.")
        metric = None
    at = None
    if "at" in given:
        try:
            at = dt.datetime.fromisoformat(given["at"].replace(" ", "+"))
            at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        except ValueError:
            notes.append(f"{given['at']!r} is not a time like 2026-01-31T09:30:00Z: showing now instead.")
    return Selection(_range(config, given.get("range")), where, metric, given.get("incident"), at, tuple(notes))


def write_query(config: Config, selection: Selection) -> str:
    """The query of a URL that shows `selection`: empty, or beginning with ``?``."""
    pairs = [(page_key(d), selection.where[d]) for d in config.dimensions if d in selection.where]
    pairs += [(key, value) for key in ("metric", "incident") if (value := getattr(selection, key))]
    if selection.at is not None:
        pairs.append(("at", str(show_time(selection.at.replace(microsecond=0)))))
    if selection.range != default(config).range:
        pairs.append(("range", show_duration(selection.range.span)))
    return "?" + urlencode(pairs) if pairs else ""


def of_incident(config: Config, incident: Incident, watermark: dt.datetime | None) -> Selection:
    """The view of one incident: its scope and metric, from well before it began; live while it is open."""
    start = incident.started_at
    until = incident.resolved_at or watermark or incident.seen_at
    choices = [r for r in ranges(config)[1:] if r.span * 0.8 >= until - start] or [ranges(config)[-1]]
    at = None if incident.resolved_at is None else incident.resolved_at
    if incident.metric == PIPELINE:  # of no metric, and where it is no filter
        return Selection(choices[0], {}, None, incident.id, at)
    return Selection(choices[0], dict(incident.scope), incident.metric, incident.id, at)


def concerns(where: Mapping[str, str], incident: Incident) -> bool:
    """Whether an incident touches what `where` selects: no filter contradicts its scope."""
    return all(where.get(dimension, value) == value for dimension, value in incident.scope.items())


def covers(where: Mapping[str, str], incident: Mask | Shift) -> bool:
    """Whether all of what `where` selects lies inside the scope of an incident, or of another such stretch of time."""
    return all(where.get(dimension) == value for dimension, value in incident.scope.items())


def _range(config: Config, text: str | None) -> Range:
    try:
        span = parse_duration(text) if text else None
    except ValueError:
        span = None
    return next((r for r in ranges(config) if r.span == span), default(config).range)
