"""The pieces of a page: layout with its style, and texts as HTML in which every foreign name is escaped."""

from __future__ import annotations

import datetime as dt
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import panel as pn
import polars as pl

from kmon.apps import words
from kmon.apps.feed import View
from kmon.apps.selection import covers
from kmon.config import Config, counted
from kmon.partners import Partner

Lookup = Callable[[str], Partner | None]


@functools.cache
def _style() -> str:
    return importlib.resources.files("kmon.apps").joinpath("style.css").read_text(encoding="utf-8")


def styled(*classes: str) -> dict[str, Any]:
    """The arguments that give a component kmon's look."""
    return {"css_classes": list(classes), "stylesheets": [_style()]}


def text(html: str, **params: Any) -> pn.pane.HTML:
    """A piece of HTML across the width; what it shows must be escaped already."""
    return pn.pane.HTML(html, sizing_mode="stretch_width", margin=0, stylesheets=[_style()], **params)


def page(side: Any, main: Sequence[Any]) -> pn.Row:
    """The whole page: side bar and main column."""
    column = pn.Column(*main, sizing_mode="stretch_width", margin=0, **styled("main"))
    return pn.Row(side, column, sizing_mode="stretch_width", margin=0, **styled("page"))


def side(*items: Any) -> pn.Column:
    return pn.Column(*items, margin=0, width=236, **styled("side"))


def cards(items: Sequence[Any]) -> pn.Column:
    """As many in a row as fit; two or four in pairs."""
    classes = ("cards", "pairs") if len(items) in (2, 4) else ("cards",)
    return pn.Column(*items, sizing_mode="stretch_width", margin=0, **styled(*classes))


def card(facts: pn.pane.HTML, figure: Any) -> pn.Column:
    chart = pn.pane.Bokeh(figure, sizing_mode="stretch_width", height=168, margin=0)
    return pn.Column(facts, chart, sizing_mode="stretch_width", margin=0, **styled("card"))


def choose(card: pn.Column, *, chosen: bool) -> None:
    """Put the card of the chosen metric first and frame it."""
    classes, styles = (["card", "chosen"], {"order": "-1"}) if chosen else (["card"], {"order": "0"})
    if card.css_classes != classes:
        card.param.update(css_classes=classes, styles=styles)


def hide(cards: pn.Column, *, hidden: bool) -> None:
    """Panel's own `visible` loses against a grid's display."""
    classes = [c for c in cards.css_classes if c != "gone"] + (["gone"] if hidden else [])
    if cards.css_classes != classes:
        cards.css_classes = classes


def brand(config: Config) -> str:
    mark = (
        '<svg width="22" height="22" viewBox="0 0 22 22"><rect width="22" height="22" rx="6" fill="#16324f"/>'
        '<path d="M3 13h4l2-7 4 11 2-6h4" fill="none" stroke="#9cc0f0" stroke-width="1.8" stroke-linejoin="round"'
        ' stroke-linecap="round"/></svg>'
    )
    name = "" if config.name == "kmon" else f"<small>{words.safe(config.name)}</small>"
    return f'<div class="brand">{mark}kmon{name}</div>'


def legend(*, marked: bool, shaded: bool) -> str:
    """What the charts show, of incidents only if there are any."""
    shown = [("", "observed"), ("expected", "expected"), ("band", "expected range"), ("yesterday", "yesterday")]
    shown += [("mark", "an incident begins")] if marked else []
    shown += [("incident", "an incident of all that is selected")] if shaded else []
    keys = "".join(f'<span><i class="{key}"></i>{name}</span>' for key, name in shown)
    return f'<div class="legend">{keys}<span>times in UTC</span></div>'


def head(config: Config, view: View, partner: Lookup, now: dt.datetime) -> str:
    """What is looked at, how it is, and how fresh that is."""
    first, *others = config.dimensions
    where = view.selection.where
    value = where.get(first)
    known = partner(value) if value is not None else None
    heading = words.safe((known.name if known else "") or value or "") or f"All {words.several(first)}"
    scope = [f"<span>{words.title(d)} <b>{words.safe(where[d])}</b></span>" for d in others if d in where]
    if known and value is not None:
        named = [f"<span>{words.safe(value)}</span>"] if known.name and known.name != value else []
        team = [f"<span>Account team <b>{words.safe(known.account_team)}</b></span>"] if known.account_team else []
        scope = [*named, *scope, *team]
    if not scope:
        everything = [words.title(d).lower() for d in others]
        scope = [f"<span>every {', '.join(everything[:-1])} and {everything[-1]}</span>"] if len(everything) > 1 else []
    return (
        f'<div class="head"><div><h1>{heading}</h1><div class="scope">{"".join(scope)}</div></div>'
        f'<div class="state">{_state(view)}<div class="fresh">{_freshness(view, now)}</div></div></div>'
    )


def _state(view: View) -> str:
    if view.problem:
        return f'<span class="pill away">{"Not up to date" if view.series else "No data"}</span>'
    if view.unknown:
        return '<span class="pill away">Nothing to show</span>'
    firing = len(view.firing)
    if firing:
        return f'<span class="pill firing">{counted(firing, "open incident")}</span>'
    return '<span class="pill ok">As expected</span>'


def _freshness(view: View, now: dt.datetime) -> str:
    if view.watermark is None:
        return "waiting for data"
    at = view.watermark.astimezone(dt.UTC)
    day = "" if at.date() == now.date() else f"{at.day} {at:%b %Y} "
    complete = f"complete up to {day}{at:%H:%M:%S} UTC · {words.lag(view.watermark, now)}"
    if not view.selection.live and view.end is not None and view.end < view.watermark - view.selection.range.grain:
        return f"showing up to {words.moment(view.end, now)} UTC · {complete}"
    return complete


def facts(config: Config, name: str, view: View) -> str:
    """The head of a card: the newest complete window against what was expected of it."""
    metric, grain = config.metrics[name], view.grain or view.selection.range.grain
    row = view.latest[name].row(0, named=True)
    observed, expected, lower, upper = (row[key] for key in ("observed", "expected", "lower", "upper"))
    change = words.change(observed, expected)
    outside = None not in (observed, lower, upper) and not lower <= observed <= upper
    direction = "up" if outside and observed > upper else "down"
    told = [i for i in view.firing if i.metric == name and covers(view.selection.where, i)]
    if told and not outside:  # an incident that longer windows show
        outside, direction = True, told[0].direction
    tone = "" if not outside else "good" if metric.good == direction else "bad"
    arrow = "▲ " if outside and direction == "up" else "▼ " if outside else ""
    start = row["bucket"]
    clock = "%H:%M:%S" if grain < dt.timedelta(minutes=5) else "%H:%M"
    when = f"{start:{clock}} to {start + grain:{clock}}"
    shown = words.value(metric, observed) if observed is not None else words.NOTHING
    expectation = (
        f"expected {words.value(metric, expected)} · {words.between(metric, lower, upper)}"
        if expected is not None
        else _lacking(view, observed)
    )
    return (
        f'<div class="metric"><div class="name"><span>{words.title(name)}</span><span class="when">{when}</span></div>'
        f'<div class="value">{shown}'
        + (f'<span class="change {tone}">{arrow}{change}</span>' if change else "")
        + f'</div><div class="expected">{expectation}</div></div>'
    )


def _lacking(view: View, observed: float | None) -> str:
    """Why nothing is expected, as short as a card is narrow."""
    if observed is None:
        return "not enough events to expect anything"
    if view.shifted is None or view.end is None:
        return "not enough history to expect anything"
    return f"too little since the new normal of {words.moment(view.shifted, view.end)} UTC"


def joined(series: pl.DataFrame, latest: pl.DataFrame) -> pl.DataFrame:
    """The grid and the newest window as one line."""
    return series if series.height and latest["bucket"][0] == series["bucket"][-1] else pl.concat([series, latest])


def sentence(problem: str) -> str:
    """An error's text as a sentence of its own."""
    return problem[:1].upper() + problem[1:] + ("" if problem.endswith((".", "?")) else ".")


def blank(heading: str, explanation: str) -> str:
    return f'<div class="blank"><h2>{words.safe(heading)}</h2><p>{words.safe(explanation)}</p></div>'


def why_blank(view: View) -> str:
    """What stands in place of the charts where there is nothing to draw; empty where there is."""
    if view.series and not view.empty:
        return ""
    if view.unknown:
        dimension = view.unknown[0]
        name = words.title(dimension).lower()
        return blank(
            f"No {name} called “{view.selection.where[dimension]}” has been seen",
            "Check the spelling, or choose one of the largest from the list on the left."
            f" A {name} appears here with its first event.",
        )
    if view.problem and not view.series:
        return blank("There is no data to show", f"{sentence(view.problem)} This page goes on by itself.")
    if not view.read:
        return blank("Reading the store", "This takes a moment.")
    if view.watermark is None:
        return blank("No events yet", "As soon as the source delivers some, they show here.")
    return blank("No events in this time range", "Choose a longer range, or fewer filters, on the left.")
