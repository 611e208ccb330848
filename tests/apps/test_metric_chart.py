from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from bokeh.models import GlyphRenderer

from kmon.apps import words
from kmon.apps.chart import Axis, MetricChart
from kmon.config import Config
from tests.apps.shop import END, EVIL, incident

MINUTE = dt.timedelta(minutes=1)


def frame(observed: list[float | None], expected: list[float | None] | None = None) -> pl.DataFrame:
    start = END.replace(tzinfo=None) - len(observed) * MINUTE
    expected = expected or [10.0] * len(observed)
    return pl.DataFrame(
        {
            "bucket": [start + i * MINUTE for i in range(len(observed))],
            "observed": observed,
            "expected": expected,
            "lower": [e and e * 0.8 for e in expected],
            "upper": [e and e * 1.2 for e in expected],
            "yesterday": [None] * len(observed),
        },
        schema_overrides=dict.fromkeys(("observed", "expected", "lower", "upper", "yesterday"), pl.Float64),
    )


def sources(chart: MetricChart) -> dict[str, dict[str, list[object]]]:
    glyphs = [r for r in chart.figure.renderers if isinstance(r, GlyphRenderer)]
    return {type(r.glyph).__name__: r.data_source.data for r in glyphs}


def test_ticks_are_whole_for_counts(empty: Config) -> None:
    counts, rates = (MetricChart(empty, name, Axis()).figure.yaxis[0] for name in ("visits", "conversion"))
    assert (counts.ticker.min_interval, rates.ticker.min_interval) == (1, 0)


@pytest.mark.parametrize(
    ("expected", "runs"), [([10.0] * 6, 1), ([10.0, 10.0, None, None, 10.0, 10.0], 2), ([None] * 6, 0)]
)
def test_the_band_has_an_outline_for_each_stretch(empty: Config, expected: list[float | None], runs: int) -> None:
    chart = MetricChart(empty, "visits", Axis())
    chart.show(frame([9.0] * 6, expected), MINUTE, {}, [], None)
    assert len(sources(chart)["Patches"]["xs"]) == runs


@pytest.mark.parametrize(("where", "chosen", "shaded"), [({}, None, 0), ({"shop": EVIL}, None, 1), ({}, "inc_1", 1)])
def test_an_incident_shades_what_it_covers_and_marks_the_rest(
    empty: Config, where: dict[str, str], chosen: str | None, shaded: int
) -> None:
    chart = MetricChart(empty, "conversion", Axis())
    chart.show(frame([0.2] * 6, [0.25] * 6), MINUTE, where, [incident(), incident(metric="visits")], chosen)
    assert len(sources(chart)["VStrip"]["x0"]) == shaded
    assert (chart.shaded, chart.marked) == (bool(shaded), True)
    marks = [r for r in chart.figure.renderers if getattr(r.glyph, "marker", None) == "inverted_triangle"]
    assert len(marks[0].data_source.data["x"]) == 1


@pytest.mark.parametrize(
    ("metric", "values", "low", "high"),
    [
        ("visits", [0.0, 90.0], (0, 0), (90, 125)),
        ("visits", [-20.0, 40.0], (-30, -20), (40, 60)),
        ("conversion", [0.9, 0.95], (0.4, 0.9), (0.95, 1.1)),
        ("conversion", [0.0, 0.01], (0, 0), (0.01, 0.4)),
    ],
)
def test_the_value_axis_holds_the_lines(
    empty: Config, metric: str, values: list[float], low: tuple[float, float], high: tuple[float, float]
) -> None:
    chart = MetricChart(empty, metric, Axis())
    chart.show(frame(list(values), [values[-1]] * 2), MINUTE, {}, [], None)
    start, end = chart.figure.y_range.start, chart.figure.y_range.end
    assert low[0] <= start <= low[1]
    assert high[0] <= end <= high[1]


def test_hovering_tells_numbers_as_people_read_them(empty: Config) -> None:
    chart = MetricChart(empty, "conversion", Axis())
    chart.show(frame([0.25, None], [0.5, None]), MINUTE, {}, [], None)
    lines = sources(chart)["Line"]
    assert [str(t).replace("\N{NO-BREAK SPACE}", " ") for t in lines["observed_text"]] == ["25.0 %", "no events"]
    assert [str(t).replace("\N{NO-BREAK SPACE}", " ") for t in lines["range_text"]] == [
        "40.0 % to 60.0 %",
        words.NOTHING,
    ]
    assert lines["time"][0] == "10 Jan 11:58 to 11:59 UTC"
