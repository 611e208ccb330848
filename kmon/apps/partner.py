"""The page ``/partner``: one partner, or everything, by any filter; live, with what was expected and what went wrong.

Generic: filters come from the configured dimensions (the first one has the searchable picker), cards from the metrics.
A page draws its figures once; a reader thread makes a new view every two seconds and only what changed in it is sent
to the browser. Nothing here waits for the store, so a store that is away cannot freeze the page.
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import panel as pn

from kmon import environment
from kmon.apps import here, hits, parts, samples, words
from kmon.apps.chart import Axis, MetricChart
from kmon.apps.feed import Feed, View
from kmon.apps.filters import Filters
from kmon.apps.incidents import IncidentList, groups
from kmon.apps.selection import Selection, concerns, default, of_incident, read_query, write_query
from kmon.config import load_config
from kmon.errors import KmonError
from kmon.versions import Version, version_of

TICK = 250
"""Milliseconds between two looks at whether a view is ready."""
EVERY = 2.0
"""Seconds between two reads while the page is live."""
PATIENCE = 4.0
"""Seconds after which a store that has not answered counts as away."""
AWAY = "the store does not answer: is 'kmon up' running?"
OUTDATED = "kmon.yaml has changed: open this page again to see it by the new one"
FIRST = 1.5
"""Seconds that a new page waits for its data, so that it opens complete."""


def page(config: str | Path | None = None, store: str | None = None) -> pn.viewable.Viewable:
    """The page, for one session, or a sentence where the configuration cannot be read.

    `config` and `store` default to those of the server (`kmon apps`, `kmon up`), else to the nearest ``kmon.yaml``.
    """
    # inline: in JupyterLab, scripts would otherwise come from the internet
    pn.extension(inline=True, raw_css=["body { margin: 0; background: #f4f6f9; }"])
    path = Path(config) if config else here.config_path()
    try:
        feed = _feed(path.absolute(), store or environment.store_address(), version_of(path))
    except KmonError as error:
        return parts.text(parts.blank("kmon cannot show this page", str(error)))
    return PartnerPage(feed).start()


@functools.lru_cache(maxsize=8)
def _feed(path: Path, store: str | None, version: Version | None) -> Feed:
    """One for all sessions of this process, until the file's `version` changes."""
    return Feed(load_config(path), store)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The readers of this process; each has a connection of its own."""
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="kmon-page")


class PartnerPage:
    """One session of the page."""

    def __init__(self, feed: Feed, query: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`query` is that of the URL, default the browser's."""
        self._feed, self._config, self._clock = feed, feed.config, clock
        location = pn.state.location
        self.selection = read_query(self._config, query if query is not None else (location.search if location else ""))
        self.view = View(self.selection)
        self._pending: Future[View] | None = None
        self._asked = 0.0
        self._axis = Axis()
        self.charts = {name: MetricChart(self._config, name, self._axis) for name in self._config.metrics}
        self._facts = {name: parts.text("") for name in self._config.metrics}
        self._cards = {name: parts.card(self._facts[name], self.charts[name].figure) for name in self._config.metrics}
        self._head, self._notice, self._blank = parts.text(""), parts.text(""), parts.text("")
        self._grid = parts.cards(list(self._cards.values()))
        self._legend = parts.text("")
        self._samples = parts.text("", css_classes=["panel"], visible=False)
        self._hits = parts.text("", css_classes=["panel"], visible=False)
        self._incidents = IncidentList(self.pick, self._went_to, **parts.styled("panel"), sizing_mode="stretch_width")
        self.filters = Filters(self._config, self.show, feed.partner, lambda: self.view.end)
        above = [self._head, self._notice, self._blank, self._grid, self._legend]
        below = [self._hits, self._samples, self._incidents]
        self.layout = parts.page(self.filters.column, [*above, *below])
        self._beat: Any = None

    def start(self) -> pn.viewable.Viewable:
        """Read once, draw, and go on reading until the session ends."""
        self._resolve_incident()
        self.read()
        self.settle(FIRST)
        self._draw()
        self._beat = pn.state.add_periodic_callback(self.tick, period=TICK)
        pn.state.on_session_destroyed(lambda _: self.stop())
        return self.layout

    def stop(self) -> None:
        """Read no more."""
        if self._beat is not None and self._beat.running:
            self._beat.stop()

    def show(self, selection: Selection) -> None:
        """Look at something else: filters, URL and data follow."""
        if selection == self.selection:
            return
        self.selection = selection
        if pn.state.location is not None:
            pn.state.location.search = write_query(self._config, selection)
        self.filters.show(selection, self.view.offers)
        self.read()

    def read(self) -> None:
        """Ask for a new view, unless one is on its way: the answer to an old question is asked again in `tick`."""
        if self._pending is None:
            self._asked = self._clock()
            self._pending = _pool().submit(self._feed.view, self.selection, self.view)

    def tick(self) -> None:
        """Take a view that is ready, say so where none comes, and ask for the next one when it is time."""
        if self._pending is not None and self._pending.done():
            view, self._pending = self._pending.result(), None
            if view.outdated and pn.state.location is not None:
                pn.state.location.reload = True  # the browser opens the page anew, by the other configuration
            if view.selection == self.selection:
                self.view = view
                self._draw()
            else:
                self.read()
        elif self._pending is not None and self._clock() - self._asked > PATIENCE:
            self.view = replace(self.view, problem=AWAY)
            self._draw()
        elif self._pending is None and self._clock() - self._asked >= EVERY:
            self.read()

    def settle(self, timeout: float) -> None:
        """Wait for the view that was asked for, at most `timeout` seconds, and draw it."""
        wait([self._pending] if self._pending else [], timeout=timeout)
        self.tick()

    @property
    def head(self) -> str:
        """The HTML of the page's head."""
        return str(self._head.object)

    @property
    def blank(self) -> str:
        """The HTML that stands in place of the charts; empty where they are shown."""
        return str(self._blank.object)

    @property
    def samples(self) -> str:
        """The HTML of the incident's sample events; empty without an incident."""
        return str(self._samples.object)

    @property
    def hits(self) -> str:
        """The HTML of whom the incident hit; empty without one, or where it is of one partner."""
        return str(self._hits.object)

    def card(self, metric: str) -> str:
        """The HTML of a card's head."""
        return str(self._facts[metric].object)

    # ---- where to look ---------------------------------------------------------------------------------------------

    def _resolve_incident(self) -> None:
        """A URL that names an incident shows when it was, and its scope and metric unless others are given."""
        asked = self.selection
        if asked.incident is None:
            return
        incident = self._feed.incident(asked.incident)
        if incident is None:
            note = f"There is no incident {asked.incident!r} in this ledger."
            self.selection = replace(asked, incident=None, notes=(*asked.notes, note))
        elif asked.at is None:
            its = of_incident(self._config, incident, None)
            where = asked.where or its.where
            range_ = its.range if asked.range == default(self._config).range else asked.range
            self.selection = replace(asked, where=where, metric=asked.metric or its.metric, range=range_, at=its.at)
        self.view = View(self.selection)

    def pick(self, id: str) -> None:
        """Select an incident that is listed: its scope, metric and time."""
        incident = next((i for i in self.view.incidents if i.id == id), None)
        if incident is not None:
            self.show(of_incident(self._config, incident, self.view.watermark))

    def _went_to(self, search: str) -> None:
        self.show(read_query(self._config, search))

    # ---- drawing ---------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        view = self.view
        self.filters.show(self.selection, view.offers)
        self._draw_head()
        self._draw_blank()
        where = dict(view.selection.where)
        chosen = view.selection.incident
        shown = [i for i in view.incidents if concerns(where, i) or i.id == chosen]
        if view.series and view.start and view.end and view.grain:
            self._axis.show(view.start, view.end + (view.end - view.start) / 60)  # room for the last dot
            for name, chart in self.charts.items():
                frame = parts.joined(view.series[name], view.latest[name])
                chart.show(frame, view.grain, where, shown, chosen)
                _set(self._facts[name], parts.facts(self._config, name, view))
        charts = self.charts.values()
        _set(self._legend, parts.legend(marked=any(c.marked for c in charts), shaded=any(c.shaded for c in charts)))
        for name, card in self._cards.items():
            parts.choose(card, chosen=name == view.selection.metric)
        _set(self._hits, hits.section(self._config, view.hits, view.selection, view.watermark, self._feed.partner))
        self._hits.visible = bool(self._hits.object)
        _set(self._samples, samples.section(self._config, view.samples, view.watermark))
        self._samples.visible = bool(self._samples.object)
        made = groups(self._config, view, chosen, self._feed.partner)
        if made != self._incidents.groups:
            self._incidents.groups = made

    def _draw_head(self) -> None:
        view = self.view
        _set(self._head, parts.head(self._config, view, self._feed.partner, dt.datetime.now(dt.UTC)))
        problems = [view.problem if view.series else None, view.ledger_problem]
        problems += [OUTDATED if view.outdated else None]
        notices = [*self.selection.notes, *(parts.sentence(p) for p in problems if p)]
        _set(self._notice, "".join(f'<div class="notice">{words.safe(n)}</div>' for n in notices))
        self._notice.visible = bool(notices)

    def _draw_blank(self) -> None:
        blank = parts.why_blank(self.view)
        _set(self._blank, blank)
        self._blank.visible = bool(blank)
        parts.hide(self._grid, hidden=bool(blank))
        self._legend.visible = not blank


def _set(pane: pn.pane.HTML, text: str) -> None:
    if pane.object != text:
        pane.object = text
