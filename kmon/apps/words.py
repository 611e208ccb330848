"""Numbers, times and names as people read them. Everything here returns plain text; `safe` makes it fit for HTML."""

from __future__ import annotations

import datetime as dt
import html
import math

from kmon.config import Metric

SPACE = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def safe(text: str) -> str:
    """`text` for HTML: shown literally, on one line."""
    return html.escape(visible(text))


def visible(text: str) -> str:
    """`text` on one line: a line break as an arrow, other invisible characters as their code."""
    keep = "\N{ZERO WIDTH JOINER}"  # holds some emoji together
    shown = (c if c.isprintable() or c == keep else "↵" if c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return "".join(shown)


def title(name: str) -> str:
    """A name of the configuration as a heading: ``error_rate`` is ``Error rate``."""
    return name.replace("_", " ").strip().capitalize()


def several(name: str) -> str:
    """A name of the configuration in the plural: ``country`` is ``countries``."""
    word = title(name).lower()
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def number(value: float | None) -> str:
    """A count or amount: 1,234; one or two decimals where they say something."""
    if value is None or math.isnan(value):
        return NOTHING
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.1f}{SPACE}M"
    if value == int(value) or abs(value) >= 20:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share between 0 and 1: ``31.2 %``, with two decimals below one percent."""
    if share is None or math.isnan(share):
        return NOTHING
    value = 100 * share
    digits = 0 if value in (0, 100) else 2 if abs(value) < 1 else 1
    return f"{value:.{digits}f}{SPACE}%"


def value(metric: Metric, observed: float | None) -> str:
    """A value of a metric with its unit."""
    if metric.kind == "mean" and observed is not None and abs(observed) < 1000:
        shown = f"{observed:,.2f}"
    else:
        shown = percent(observed) if metric.kind == "rate" else number(observed)
    return f"{shown}{SPACE}{metric.unit}" if metric.unit and shown != NOTHING else shown


def between(metric: Metric, lower: float | None, upper: float | None) -> str:
    """An expected range; what a rate or a count can never be is cut off."""
    if lower is None or upper is None:
        return NOTHING
    top = min(1.0, upper) if metric.kind == "rate" else upper
    return f"{value(metric, max(0.0, lower) if metric.kind == 'rate' else lower)} to {value(metric, top)}"


def change(observed: float | None, expected: float | None) -> str:
    """How far `observed` is from `expected`, with a sign; empty where that says nothing."""
    if observed is None or expected is None or expected == 0:
        return ""
    percents = 100 * (observed / expected - 1)
    if abs(percents) >= 1000:
        return f"{TIMES}{SPACE}{observed / expected:,.0f}"
    sign = "+" if round(percents) > 0 else MINUS if round(percents) < 0 else "±"
    return f"{sign}{abs(percents):.0f}{SPACE}%"


def duration(span: dt.timedelta) -> str:
    """A span of time in at most two units: ``40 s``, ``12 min``, ``3 h 20 min``, ``5 days``."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 60:
        return f"{seconds}{SPACE}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 60:
        return f"{minutes}{SPACE}min"
    if hours < 48:
        rest = minutes % 60
        return f"{hours}{SPACE}h" + (f" {rest}{SPACE}min" if rest and hours < 10 else "")
    return f"{days:,}{SPACE}days"


def moment(at: dt.datetime, now: dt.datetime) -> str:
    """A time of day in UTC, with the date where it is not today's."""
    at, now = at.astimezone(dt.UTC), now.astimezone(dt.UTC)
    if at.date() == now.date():
        return f"{at:%H:%M}"
    return f"{at.day} {at:%b %H:%M}" if at.year == now.year else f"{at.day} {at:%b %Y %H:%M}"


def lag(watermark: dt.datetime, now: dt.datetime) -> str:
    """How far behind the clock the complete data ends, coarse enough not to flicker."""
    behind = now - watermark
    if behind < dt.timedelta(minutes=1):
        return f"{int(behind.total_seconds()) // 5 * 5}{SPACE}s behind"
    return f"{duration(behind)} behind"
