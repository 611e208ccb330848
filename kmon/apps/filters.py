"""The side bar: a searchable picker for the first dimension, a list for each other, time range and the live switch."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import panel as pn

from kmon.apps import parts, words
from kmon.apps.selection import Selection, default, ranges
from kmon.config import Config, show_duration
from kmon.partners import Partner

ALL = "All"
_ANY = "\x00"
"""Stands for no filter: a list cannot show None as an entry."""


class Filters:
    """Widgets that show a selection and report another one that a person makes."""

    def __init__(
        self,
        config: Config,
        chosen: Callable[[Selection], None],
        partner: Callable[[str], Partner | None],
        end: Callable[[], dt.datetime | None],
    ) -> None:
        """`chosen` is called with a new selection; `partner` looks a value of the first dimension up; `end` is up to
        where is shown, which is where a live page stops."""
        self._config, self._chosen, self._partner, self._end = config, chosen, partner, end
        self._selection = default(config)
        self._drawing = False
        first, *others = config.dimensions
        self.everything = f"{ALL} {words.several(first)}"
        self._labels: dict[str, str] = {}
        field = {"sizing_mode": "stretch_width", "margin": 0, **parts.styled("field")}
        self.picker = pn.widgets.AutocompleteInput(
            label=words.title(first), options=[self.everything], value="", placeholder=self.everything,
            restrict=False, min_characters=0, case_sensitive=False, search_strategy="includes", **field,
        )  # fmt: skip
        choices = {"options": {ALL: _ANY}}
        self.lists = {d: pn.widgets.Select(label=words.title(d), value=_ANY, **choices, **field) for d in others}
        offered = {show_duration(r.span).replace("h", " h").replace("d", " d"): r for r in ranges(config)}
        self.range = pn.widgets.RadioButtonGroup(
            options=offered, value=self._selection.range, sizing_mode="stretch_width", margin=0,
            **parts.styled("ranges"),
        )  # fmt: skip
        self.live = pn.widgets.Switch(label="", value=True, margin=0, width=40, align="center", **parts.styled("live"))
        for widget in (self.picker, *self.lists.values(), self.range, self.live):
            widget.param.watch(self._changed, "value")
        self.column = parts.side(
            parts.text(parts.brand(config)), self.picker, *self.lists.values(),
            parts.text('<div class="group">Time</div>'), self.range,
            pn.Row(self.live, parts.text('<div class="hint">Live: follow new data</div>', align="center"), margin=0),
        )  # fmt: skip

    def show(self, selection: Selection, offers: Mapping[str, Sequence[str]]) -> None:
        """Show `selection` without reporting it; `offers` are the values by volume."""
        self._selection, self._drawing = selection, True
        try:
            self._show_picker(selection, offers)
            for dimension, widget in self.lists.items():
                value = selection.where.get(dimension, _ANY)
                values = list(offers.get(dimension, ()))
                values += [value] if value not in (_ANY, *values) else []
                options = {ALL: _ANY, **{f"“{v}”" if v in (ALL, "") else words.visible(v): v for v in values}}
                if widget.options != options:
                    widget.options = options
                _set(widget, "value", value)
                _mark(widget, chosen=value != _ANY)
            _set(self.range, "value", selection.range)
            _set(self.live, "value", selection.live)
        finally:
            self._drawing = False

    def _show_picker(self, selection: Selection, offers: Mapping[str, Sequence[str]]) -> None:
        first = self._config.dimensions[0]
        value = selection.where.get(first)
        self._labels = {self._label(v): v for v in offers.get(first, ())}
        label = "" if value is None else self._label(value)  # an empty field opens the whole list
        options = [self.everything, *self._labels]
        if value is not None and label not in self._labels:
            self._labels[label] = value
        if self.picker.options != options:
            self.picker.options = options
        _set(self.picker, "value", label)
        _mark(self.picker, chosen=value is not None)

    def _label(self, value: str) -> str:
        known = self._partner(value)
        shown = words.visible(value)
        return f"{words.visible(known.name)} ({shown})" if known and known.name and known.name != value else shown

    def _changed(self, event: Any) -> None:
        if self._drawing:
            return
        selection = self._selection
        picked = (self.picker.value or "").strip()
        where = {d: w.value for d, w in self.lists.items() if w.value not in (None, _ANY)}
        if picked and picked != self.everything:
            where = {self._config.dimensions[0]: self._labels.get(picked, picked), **where}
        at = selection.at
        if event.obj is self.live:
            end = self._end() or dt.datetime.now(dt.UTC)
            at = None if self.live.value else end - self.range.value.span / 4
        incident = selection.incident if where == selection.where and not (at is None and selection.at) else None
        self._chosen(replace(selection, where=where, range=self.range.value, at=at, incident=incident, notes=()))


def _set(widget: Any, name: str, value: Any) -> None:
    if getattr(widget, name) != value:
        setattr(widget, name, value)


def _mark(widget: Any, *, chosen: bool) -> None:
    classes = ["field", "set"] if chosen else ["field"]
    if widget.css_classes != classes:
        widget.css_classes = classes
