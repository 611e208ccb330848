"""The chart of one metric: made once, then only its data changes, so nothing flickers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from bokeh.models import ColumnDataSource, CrosshairTool, HoverTool, Range1d
from bokeh.models.annotations import Span
from bokeh.models.formatters import CustomJSTickFormatter, DatetimeTickFormatter, NumeralTickFormatter
from bokeh.models.glyphs import Line, Patches, Scatter, VStrip
from bokeh.models.tickers import BasicTicker, DatetimeTicker
from bokeh.plotting import figure

from kmon.apps import words
from kmon.apps.selection import covers
from kmon.config import Config, Metric
from kmon.ledger import Incident

INK, MUTED, GRID = "#16324f", "#6b7785", "#eef0f4"
BAND, EXPECTED, YESTERDAY = "#d9e5f6", "#86a5d6", "#a9b0bb"
SEVERITY = {"critical": "#cf3b3b", "warning": "#d08a18", "info": "#3f7fc4"}
FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
_COLUMNS = ("x", "observed", "expected", "yesterday", "anchor", "time", "observed_text", "range_text", "yesterday_text")
_TOOLTIP = f"""
<div style="font: 12px/1.5 {FONT}; color: {INK}; padding: 2px 4px; white-space: nowrap">
  <div style="color: {MUTED}">@time</div>
  <div style="font-weight: 600; font-size: 14px">@observed_text</div>
  <div>expected @range_text</div>
  <div style="color: {MUTED}">yesterday @yesterday_text</div>
</div>"""

PERCENT = """
const steps = ticks.slice(1).map((other, i) => 100 * Math.abs(other - ticks[i]))
const digits = steps.length ? Math.max(0, -Math.floor(Math.log10(Math.min(...steps)) + 1e-9)) : 2
return (100 * tick).toFixed(digits) + ' %'"""
"""As many digits as tell the ticks apart."""


class Axis:
    """What the charts of a page share: the time range and the cross-hair."""

    def __init__(self) -> None:
        self.range = Range1d(start=0, end=1)
        self.line = Span(dimension="height", line_color=MUTED, line_width=1, line_alpha=0.5)

    def show(self, start: dt.datetime, end: dt.datetime) -> None:
        """Draw [start, end); an unchanged range sends nothing to the browser."""
        first, last = millis(start), millis(end)
        if (self.range.start, self.range.end) != (first, last):
            self.range.update(start=first, end=last)


class MetricChart:
    """Expected band and line, yesterday, the observed line, and the incidents of one metric over time."""

    def __init__(self, config: Config, name: str, axis: Axis) -> None:
        self._metric: Metric = config.metrics[name]
        self._name = name
        self._lines = ColumnDataSource({column: [] for column in _COLUMNS})
        self._band = ColumnDataSource({"xs": [], "ys": []})
        self._spans = ColumnDataSource({"x0": [], "x1": [], "color": [], "alpha": []})
        self._marks = ColumnDataSource({"x": [], "y": [], "color": []})
        self._now = ColumnDataSource({"x": [], "y": []})
        self.figure = self._draw(axis)

    def _draw(self, axis: Axis) -> Any:
        f = figure(height=168, sizing_mode="stretch_width", x_range=axis.range, y_range=Range1d(start=0, end=1),
                   x_axis_type="datetime", toolbar_location=None, tools="", outline_line_color=None,
                   background_fill_alpha=0, border_fill_alpha=0, min_border_left=46, min_border_right=10,
                   min_border_top=6, min_border_bottom=22)  # fmt: skip
        # add_glyph, because f.line() and its like make five copies of each glyph, which a page would wait for
        f.add_glyph(self._band, Patches(xs="xs", ys="ys", fill_color=BAND, fill_alpha=0.9, line_alpha=0))
        f.add_glyph(self._spans, VStrip(x0="x0", x1="x1", fill_color="color", fill_alpha="alpha", line_alpha=0))
        f.add_glyph(self._lines, Line(x="x", y="yesterday", line_color=YESTERDAY, line_dash=[3, 3]))
        f.add_glyph(self._lines, Line(x="x", y="expected", line_color=EXPECTED, line_width=1.2))
        f.add_glyph(self._lines, Line(x="x", y="observed", line_color=INK, line_width=2, line_join="round"))
        f.add_glyph(self._now, Scatter(x="x", y="y", size=8, fill_color=INK, line_color="white"))
        flag = Scatter(x="x", y="y", marker="inverted_triangle", size=9, fill_color="color", line_color="white")
        f.add_glyph(self._marks, flag)
        unseen = Scatter(x="x", y="anchor", size=8, fill_alpha=0, line_alpha=0)
        hovered = Scatter(x="x", y="anchor", size=8, fill_color=INK, line_color="white")
        dots = f.add_glyph(self._lines, unseen, hover_glyph=hovered)
        f.add_tools(HoverTool(renderers=[dots], mode="vline", tooltips=_TOOLTIP, attachment="horizontal"))
        f.add_tools(CrosshairTool(overlay=axis.line))
        f.xaxis.formatter = DatetimeTickFormatter(
            seconds="%H:%M", minsec="%H:%M", minutes="%H:%M", hourmin="%H:%M", hours="%H:%M",
            days="%d %b", months="%b %Y",
        )  # fmt: skip
        f.xaxis.ticker = DatetimeTicker(desired_num_ticks=5)
        f.yaxis.ticker = BasicTicker(desired_num_ticks=3, min_interval=1 if self._metric.kind == "count" else 0)
        f.yaxis.formatter = (
            CustomJSTickFormatter(code=PERCENT)
            if self._metric.kind == "rate"
            else NumeralTickFormatter(format="0.[0]a")
        )
        f.xgrid.grid_line_color = None
        f.ygrid.grid_line_color = GRID
        for axis_ in f.axis:
            axis_.update(axis_line_color=None, major_tick_line_color=None, minor_tick_line_color=None)
            axis_.update(major_label_text_color=MUTED, major_label_text_font=FONT, major_label_text_font_size="11px")
        return f

    def show(
        self,
        frame: pl.DataFrame,
        grain: dt.timedelta,
        where: dict[str, str],
        incidents: Sequence[Incident],
        chosen: str | None,
    ) -> None:
        """Draw `frame` (the columns of `expected_series`) and the incidents that concern `where`."""
        x = frame["bucket"].dt.epoch("ms").to_numpy() + int(grain / dt.timedelta(milliseconds=2))
        numbers = ("observed", "expected", "lower", "upper", "yesterday")
        values = {c: frame[c].cast(pl.Float64).to_numpy() for c in numbers}
        low, high = self._limits(values)
        lower, upper = np.clip(values["lower"], low, high), np.clip(values["upper"], low, high)
        self._band.data = _runs(x, lower, upper)
        m, unseen = self._metric, np.isnan(values["observed"])
        columns = frame.to_dict(as_series=False)
        self._lines.data = {
            "x": x,
            **{c: values[c] for c in ("observed", "expected", "yesterday")},
            "anchor": np.where(unseen, np.nan_to_num(values["expected"], nan=low), values["observed"]),
            "time": [f"{b:%d %b %H:%M} to {b + grain:%H:%M} UTC" for b in columns["bucket"]],
            "observed_text": [words.value(m, v) if v is not None else "no events" for v in columns["observed"]],
            "range_text": [words.between(m, a, b) for a, b in zip(columns["lower"], columns["upper"], strict=True)],
            "yesterday_text": [words.value(m, v) for v in columns["yesterday"]],
        }
        last = np.flatnonzero(~unseen[-1:]) + len(x) - 1
        self._now.data = {"x": x[last], "y": values["observed"][last]}
        y_range = self.figure.y_range
        if (y_range.start, y_range.end) != (low, high):
            y_range.update(start=low, end=high)
        self._mark([i for i in incidents if i.metric == self._name], where, chosen, high, x)

    @property
    def shaded(self) -> bool:
        """Whether an incident covers all that is selected."""
        return bool(self._spans.data["x0"])

    @property
    def marked(self) -> bool:
        """Whether an incident begins somewhere."""
        return bool(self._marks.data["x"])

    def _mark(
        self, incidents: Sequence[Incident], where: dict[str, str], chosen: str | None, high: float, x: npt.NDArray[Any]
    ) -> None:
        """Shade what covers all that is selected; the others concern a part of it and get a marker alone."""
        end = float(x[-1]) if len(x) else 0.0
        shaded = [i for i in incidents if covers(where, i) or i.id == chosen]
        self._spans.data = {
            "x0": [millis(i.started_at) for i in shaded],
            "x1": [millis(i.resolved_at) if i.resolved_at else end + 86_400_000 for i in shaded],
            "color": [SEVERITY[i.severity] for i in shaded],
            "alpha": [0.16 if i.id == chosen else 0.10 for i in shaded],
        }
        self._marks.data = {
            "x": [millis(i.started_at) for i in incidents],
            "y": [high * 0.97 for _ in incidents],
            "color": [SEVERITY[i.severity] for i in incidents],
        }

    def _limits(self, values: dict[str, npt.NDArray[np.float64]]) -> tuple[float, float]:
        """The ends of the value axis: a vast band is cut, not followed; counts begin at zero."""
        lines = np.concatenate([values[c] for c in ("observed", "expected", "yesterday")])
        lines = lines[~np.isnan(lines)]
        bands = [values[c][~np.isnan(values[c])] for c in ("lower", "upper")]
        top, bottom = float(lines.max(initial=0.0)), float(lines.min(initial=0.0))
        high = max(top, min(float(bands[1].max(initial=0.0)), 1.6 * top)) or 1.0
        low = bottom
        if self._metric.kind != "count" and len(lines):
            lowest = min(float(lines.min()), float(bands[0].min(initial=np.inf)))
            low = lowest - 0.3 * (high - lowest) if lowest > 0.3 * high else min(bottom, 0.0)
        low = min(low, 0.9 * high)  # a constant rate has no range of its own
        step = 10.0 ** np.floor(np.log10(high - low)) / 5
        low = float(np.floor(low / step) * step)
        high = float(np.ceil((high + 0.06 * (high - low)) / step) * step)
        return low, min(high, 1.0 + 0.03 * (1.0 - low)) if self._metric.kind == "rate" else high


def millis(at: dt.datetime) -> float:
    """A time as Bokeh's axes count it: milliseconds since 1970, UTC."""
    return at.timestamp() * 1000


def _runs(x: npt.NDArray[Any], lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The band as one outline for each stretch without gaps."""
    known = ~(np.isnan(lower) | np.isnan(upper))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    xs, ys = [], []
    for first, after in edges.reshape(-1, 2):
        part = slice(first, after)
        xs.append([*x[part].tolist(), *x[part][::-1].tolist()])
        ys.append([*lower[part].tolist(), *upper[part][::-1].tolist()])
    return {"xs": xs, "ys": ys}
