"""The chart of an incident: a PNG drawn in-process, without pyplot and its global state.

Every text is drawn with mathtext off, and a character that no installed font has becomes a box, so names show as
they are, whatever they hold.
"""

from __future__ import annotations

import datetime as dt
import functools
import io
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from kmon.alerts.message import headline, metric_of, moment, quantity, words
from kmon.config import BUCKET, MINUTE, Config
from kmon.ledger import Incident
from kmon.partners import Partners
from kmon.store import Store

if TYPE_CHECKING:
    from kmon.detect import Mask, Outlook

SIZE, DPI = (8.0, 4.0), 150
"""Inches, and pixels to the inch: 1200 by 600 pixels, with type that stays legible in Slack's small preview."""
INK, GREY, FAINT, GRID = "#1f2933", "#5f6b7a", "#9aa5b1", "#e4e7eb"
NORMAL, BAND = "#3d7ea6", "#d3e5f0"
ALARM = {"critical": "#c8102e", "warning": "#d9730d", "info": "#2a7f62"}
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Sans Hebrew",
    "Noto Sans Thai",
)
_NAMES = (
    ("observed", "observed", INK, "bold"),
    ("expected", "expected", NORMAL, "normal"),
    ("yesterday", "day before", FAINT, "normal"),
)
_SCALES = {1e9: "billions", 1e6: "millions"}
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_BOX = "\N{WHITE SQUARE}"
EPOCH, DAY = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(days=1)
Floats = npt.NDArray[np.float64]


def series_for(
    incident: Incident,
    store: Store,
    config: Config,
    *,
    masks: Sequence[Mask] = (),
    outlooks: Sequence[Outlook] = (),
) -> pl.DataFrame:
    """What `draw` needs: some time before the incident until half an hour after it, or until the data ends.

    Columns as `kmon.detect.expected_series` returns them, in buckets of whole minutes. Where the data ends between two
    of them, the last bucket ends there and overlaps the one before: it is complete, and what a sweep judged. Minutes
    inside `masks` (known incidents) and `incident` itself are no references; `outlooks` are what models forecast.
    """
    from kmon.detect import expected_measures
    from kmon.detect.series import CONTEXT

    window = _shown(incident)
    grain = window  # of a long one each point is what was judged; a shorter one takes more of them to see a shape
    if window < 60 * MINUTE:
        grain = MINUTE if window <= 5 * MINUTE else round(window / 3 / MINUTE) * MINUTE
    before = dt.timedelta(hours=3) if window <= 15 * MINUTE else 40 * window
    last = store.watermark(config.events.lateness, config.events.idle) or incident.detected_at
    if incident.resolved_at is not None:
        last = min(last, incident.resolved_at + 30 * MINUTE)
    last = _floor(max(last, incident.detected_at), BUCKET)
    end = _floor(incident.detected_at, MINUTE)
    end += (last - end) // grain * grain
    start = end + (incident.started_at - before - end) // grain * grain
    spans = [(start, end)] if last == end else [(start, end), (last - CONTEXT * grain, last)]
    options: Any = {"grain": grain, "masks": [*masks, incident], "outlooks": outlooks}
    found = [expected_measures(store, config, [incident.metric], incident.scope, *span, **options)[0] for span in spans]
    return pl.concat([found[0], *(frame.tail(1) for frame in found[1:])])


def _shown(incident: Incident) -> dt.timedelta:
    """The width of the windows that show an incident: a return to normal shows in shorter ones than the whole.

    In half of the time that it took to notice the fall, unless that was a moment of a long incident.
    """
    if incident.resolved_at is None:
        return incident.window
    noticed, lasted = incident.detected_at - incident.started_at, incident.resolved_at - incident.started_at
    return min(incident.window, max(MINUTE, max(noticed / 2, lasted / 24) // MINUTE * MINUTE))


def _floor(at: dt.datetime, grain: dt.timedelta) -> dt.datetime:
    """The last multiple of `grain`, weeks beginning on Mondays."""
    return at - (at - dt.datetime(1969, 12, 29, tzinfo=dt.UTC)) % grain


def draw(incident: Incident, series: pl.DataFrame, config: Config, partners: Partners) -> bytes:
    """The incident's chart as a PNG of 1200 by 600 pixels.

    `series` has the columns bucket (its start, UTC without a zone), observed, expected, lower, upper and yesterday;
    null where nothing is known.
    """
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.155, 0.795, 0.615))
    picture = _Picture(incident, series, config, axes)
    picture.limits()
    picture.incident_span()
    picture.lines()
    picture.marker()
    picture.labels()
    picture.ticks()
    _headings(figure, incident, config, partners, picture.unit)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


class _Picture:
    """One chart in the making: the series in axis units, and what is drawn of it."""

    def __init__(self, incident: Incident, series: pl.DataFrame, config: Config, axes: Axes) -> None:
        self.incident, self.axes, self.metric = incident, axes, metric_of(incident, config)
        self.colour = ALARM[incident.severity]
        buckets = series["bucket"].to_numpy().astype("datetime64[us]")
        self.grain = (buckets[1] - buckets[0]).item() if len(buckets) > 1 else MINUTE
        self.x: Floats = (buckets - np.datetime64(0, "us")) / np.timedelta64(
            DAY
        ) + self.grain / DAY / 2  # their middles
        columns = ("observed", "expected", "lower", "upper", "yesterday")
        known = {c: series[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in columns}
        self.y: dict[str, Floats] = {c: np.where(np.isfinite(values), values, np.nan) for c, values in known.items()}
        first, last = _number(incident.started_at), _number(incident.resolved_at or incident.detected_at)
        edges = (float(self.x[0]), float(self.x[-1])) if len(self.x) else (first - 60 * self.grain / DAY, last)
        self.left, self.right = edges[0] - self.grain / DAY / 2, edges[1] + self.grain / DAY / 2

    def limits(self) -> None:
        """Room for what matters: the observed values and nearly all of the band, but not its wildest spikes."""
        solid = _known(np.concatenate([self.y["observed"], self.y["expected"]]))
        loose = _known(np.concatenate([self.y["upper"], self.y["yesterday"]]))
        tops = [*([solid.max()] if solid.size else []), *([np.quantile(loose, 0.97)] if loose.size else [])]
        top = float(max([*tops, 0.0])) or (0.1 if self.metric.kind == "rate" else 1.0)
        floor = float(min(solid.min(), *_known(self.y["lower"]), top)) if solid.size else 0.0
        low = min(0.0, 1.1 * floor)
        if self.metric.kind != "count" and floor > 0.5 * top:  # a rate near 100 % would be a flat line
            low = max(0.0, floor - 0.15 * (top - floor))
        self.axes.set_xlim(self.left, self.right)
        story = 0.025 + 0.058 * len(self._story().splitlines())  # what it takes of the height
        self.axes.set_ylim(low, top + story / (1 - story) * (top - low))

    def incident_span(self) -> None:
        start = max(_number(self.incident.started_at), self.left)
        if start >= self.right:
            return
        end = min(_number(self.incident.resolved_at), self.right) if self.incident.resolved_at else self.right
        self.axes.axvspan(start, max(start, end), color=self.colour, alpha=0.1, linewidth=0, zorder=1.6)
        self.axes.axvline(start, color=self.colour, linewidth=0.8, alpha=0.55, zorder=1)

    def lines(self) -> None:
        y = self.y
        self.axes.fill_between(self.x, y["lower"], y["upper"], color=BAND, linewidth=0, zorder=1.5)
        self._line("yesterday", color=FAINT, linewidth=1.0, dashes=(3, 2), zorder=2)
        self._line("expected", color=NORMAL, linewidth=1.4, zorder=3)
        self._line("observed", color=INK, linewidth=2.1 if len(self.x) <= 120 else 1.6, zorder=4)
        if not _known(self.y["observed"]).size:
            self._text(0.5, 0.55, "no data for this chart", GREY, fontsize=10, ha="center", va="center")

    def _line(self, name: str, **style: Any) -> None:
        """A line with gaps where nothing is known, and dots for values that have no neighbour to be joined to."""
        values = self.y[name]
        self.axes.plot(self.x, values, solid_capstyle="round", solid_joinstyle="round", **style)
        known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
        alone = known[1:-1] & ~known[:-2] & ~known[2:]
        self.axes.scatter(self.x[alone], values[alone], s=9, color=style["color"], zorder=style["zorder"], linewidths=0)

    def marker(self) -> None:
        """A dot on the line where it was detected: on the bucket that ends closest to what detection had seen."""
        at = _number(self.incident.detected_at)
        known = np.flatnonzero(np.isfinite(self.y["observed"]))
        if not len(known) or not self.left <= at <= self.right + self.grain / DAY / 2:
            return
        spot = known[np.abs(self.x[known] + self.grain / DAY / 2 - at).argmin()]
        self.axes.scatter(
            self.x[spot],
            self.y["observed"][spot],
            s=46,
            color=self.colour,
            edgecolors="white",
            linewidths=1.4,
            zorder=6,
            clip_on=False,
        )

    def labels(self) -> None:
        """The lines' names at their right ends, moved apart where they would touch, and the incident's times."""
        ends = []
        for key, name, colour, weight in _NAMES:
            known = _known(self.y[key])
            if known.size:  # of a jagged line, the level at its end rather than its last point
                ends.append(
                    (self._height(float(known[-1 if key == "observed" else -5 :].mean())), name, colour, weight)
                )
        for height, (_, name, colour, weight) in zip(_apart([end[0] for end in ends], 0.072), ends, strict=True):
            self._text(1.012, height, name, colour, fontsize=9, weight=weight, va="center")
        start = (max(_number(self.incident.started_at), self.left) - self.left) / (self.right - self.left)
        if start < 1:
            side, at = ("right", start - 0.008) if start > 0.6 else ("left", start + 0.008)
            self._text(at, 0.975, self._story(), self.colour, fontsize=8.5, ha=side, va="top")

    def _text(self, x: float, y: float, text: str, colour: str, **style: Any) -> None:
        """Text at a place given in shares of the axes."""
        self.axes.text(x, y, text, transform=self.axes.transAxes, color=colour, parse_math=False, **style)

    def _story(self) -> str:
        days = self.right - self.left
        said = [
            ("began", self.incident.started_at),
            ("detected", self.incident.detected_at),
            ("over", self.incident.resolved_at),
        ]
        return "\n".join(f"{word} {_day(at) if days > 4 else f'{at:%H:%M}'}" for word, at in said if at is not None)

    def _height(self, value: float) -> float:
        """A value as a share of the axis' height."""
        low, high = self.axes.get_ylim()
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> None:
        axes = self.axes
        times = _times(self.left, self.right)
        axes.set_xticks([_number(at) for at in times], _time_labels(times))
        low, high = axes.get_ylim()
        locator = MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=self.metric.kind == "count" and high >= 1)
        most = 1.0001 if self.metric.kind == "rate" else high
        values = np.array([v for v in locator.tick_values(low, high) if low <= v <= min(high, most)])
        axes.set_yticks(list(values), _value_labels(values, 100.0 if self.metric.kind == "rate" else 1 / self.scale))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(axis="both", labelsize=8.5, labelcolor=GREY, color=FAINT, length=0, pad=5)
        axes.tick_params(axis="x", length=3.5)

    @property
    def scale(self) -> float:
        """What the value axis counts in: 1, a million or a billion."""
        high = self.axes.get_ylim()[1]
        return next((unit for unit in _SCALES if high >= 2 * unit and self.metric.kind != "rate"), 1.0)

    @property
    def unit(self) -> str:
        """What the value axis shows, in words."""
        unit = " ".join(word for word in (_SCALES.get(self.scale, ""), self.metric.unit) if word)
        grain = words(self.grain, short=True)
        per = f" per {grain.removeprefix('1 ')}" if self.metric.kind == "count" else f" in {grain}"
        return self.incident.metric.replace("_", " ") + per + (f", in {unit}" if unit else "")


def _headings(figure: Figure, incident: Incident, config: Config, partners: Partners, unit: str) -> None:
    """Title, figures and source, flush left as in a newspaper."""
    metric, end = metric_of(incident, config), incident.resolved_at
    title = drawable(headline(incident, config, partners, past=end is not None))
    size = next((size for most, size in ((60, 14.0), (75, 11.5), (95, 9.0), (115, 7.5)) if len(title) <= most), 6.0)
    observed, expected = quantity(metric, incident.observed), quantity(metric, incident.expected)
    span = f"since {moment(incident.started_at, incident.detected_at)}"
    if end is not None:
        span = f"from {moment(incident.started_at, end).removesuffix(' UTC')} to {moment(end, end)}"
    figures = f"{observed} instead of {expected} in {words(incident.window, short=True)}, {span}"
    source = f"{config.name} · {incident.id} · times are UTC"
    texts = (
        (0.025, 0.945, title, INK, size, "bold"),
        (0.025, 0.872, figures, GREY, 10, "normal"),
        (0.025, 0.803, unit, FAINT, 8.5, "normal"),
        (0.975, 0.025, source, FAINT, 7, "normal"),
    )
    for x, y, text, colour, points, weight in texts:
        side = "left" if x < 0.5 else "right"
        style: dict[str, Any] = {"fontsize": points, "weight": weight, "color": colour, "family": fonts()}
        figure.text(x, y, drawable(text), va="center", ha=side, parse_math=False, **style)


def _times(left: float, right: float) -> list[dt.datetime]:
    """Round times for at most eight ticks between two of matplotlib's dates."""
    steps = (dt.timedelta(minutes=m) for m in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 20160))
    step = next((s for s in steps if (right - left) * DAY / s <= 8), 28 * DAY)
    at = _floor(EPOCH + left * DAY - dt.timedelta(milliseconds=1), step) + step
    return [at + i * step for i in range((EPOCH + right * DAY - at) // step + 1)]


def _time_labels(times: list[dt.datetime]) -> list[str]:
    """``14:00``, with the day below the first one and below each midnight; days alone where they are a day apart."""
    if len(times) > 1 and times[1] - times[0] >= DAY:
        return [f"{_day(at)}\n{at.year if not i else ' '}" for i, at in enumerate(times)]
    new = [not i or (at.hour, at.minute) == (0, 0) for i, at in enumerate(times)]
    return [f"{at:%H:%M}\n{f'{at:%a} {_day(at)}' if first else ' '}" for at, first in zip(times, new, strict=True)]


def _day(at: dt.datetime) -> str:
    return f"{at.day} {at:%b}"


def _value_labels(values: Floats, factor: float) -> list[str]:
    """The ticks of the value axis, with the decimals that their steps need; a factor of 100 makes percent of them."""
    step = factor * float(np.diff(values).min()) if len(values) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    sign = " %" if factor == 100 else ""
    return [f"{factor * v + 0.0:,.{decimals}f}{sign}" for v in values]


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _apart(heights: list[float], least: float) -> list[float]:
    """Heights moved up as little as needed to be `least` apart, in their own order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for lower, upper in itertools.pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + least)
    return moved


def drawable(text: str) -> str:
    """`text` with a box for each character that no font can draw."""
    known = _characters()
    return "".join("" if c in _JOINERS else c if ord(c) in known else _BOX for c in text)


@functools.cache
def fonts() -> list[str]:
    """The installed ones of `_FONTS`; matplotlib brings the first."""
    installed = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in installed]


@functools.cache
def _characters() -> frozenset[int]:
    """What can be drawn, in regular and in bold."""
    found: set[int] = set()
    for name in fonts():
        maps = [
            set(FT2Font(font_manager.findfont(font_manager.FontProperties(family=name, weight=weight))).get_charmap())
            for weight in ("normal", "bold")
        ]
        found |= maps[0] & maps[1]
    return frozenset(found)


def _number(at: dt.datetime) -> float:
    """Matplotlib's date: days since 1970."""
    return (at - EPOCH) / DAY
