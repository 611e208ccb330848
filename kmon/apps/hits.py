"""The section "Partners hit, by loss" of a page that is opened on an incident."""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Callable
from dataclasses import replace

from kmon.alerts.message import estimate
from kmon.apps import words
from kmon.apps.selection import Selection, write_query
from kmon.config import Config, counted
from kmon.hit import Hit, Hits
from kmon.partners import Partner


def section(
    config: Config,
    hits: Hits | None,
    selection: Selection,
    now: dt.datetime | None,
    partner: Callable[[str], Partner | None],
) -> str:
    """The section as HTML; empty where there is nothing to tell.

    `partner` tells what is known of a value of the first dimension.
    """
    if hits is None:
        return ""
    title = f"{words.several(hits.dimension).capitalize()} hit, by loss"
    if not hits.worst:
        told = f"No {words.title(hits.dimension).lower()} lost more than by chance."
        return f'<div class="samples"><h2>{words.safe(title)}</h2><p class="quiet">{words.safe(told)}</p></div>'
    at = now or hits.end
    told = f"{counted(hits.count, words.title(hits.dimension).lower())} lost more than by chance"
    told += f" from {words.moment(hits.start, at)} to {words.moment(hits.end, at)} UTC"
    told += f"; these are the {len(hits.worst)} that lost most." if hits.count > len(hits.worst) else "."
    told += " Losses are what came less what was expected."
    heads = [hits.dimension, "observed", "expected", *hits.worst[0].impact]
    head = "".join(f"<th>{words.safe(words.title(name))}</th>" for name in heads)
    rows = "".join(_row(config, hits, one, selection, partner) for one in hits.worst)
    return (
        f'<div class="samples hits"><h2>{words.safe(title)}</h2><p class="quiet">{words.safe(told)}</p>'
        f"<table><tr>{head}</tr>{rows}</table></div>"
    )


def _row(config: Config, hits: Hits, one: Hit, selection: Selection, partner: Callable[[str], Partner | None]) -> str:
    metric = config.metrics.get(hits.metric)
    known = partner(one.value) if hits.dimension == config.dimensions[0] else None
    name = f"{known.name} ({one.value})" if known and known.name and known.name != one.value else one.value
    its = replace(selection, where={**hits.scope, hits.dimension: one.value}, incident=None)
    figures = [words.value(metric, v) if metric else words.number(v) for v in (one.observed, one.expected)]
    figures += [_signed(change) for change in one.impact.values()]
    cells = "".join(f"<td>{html.escape(figure)}</td>" for figure in figures)
    return f'<tr><td><a href="{words.safe(write_query(config, its))}">{words.safe(name)}</a></td>{cells}</tr>'


def _signed(change: float) -> str:
    sign = words.MINUS if change < 0 else "+"
    return f"{sign}{estimate(change)}" if round(abs(change)) else words.NOTHING
