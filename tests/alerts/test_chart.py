from __future__ import annotations

import datetime as dt
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from kmon.alerts.chart import draw, drawable, series_for
from kmon.config import Config
from kmon.partners import Partners
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from tests.alerts.conftest import EVIL, INCIDENT, MINUTE, RESOLVED, T
from tests.conftest import settle

COLUMNS = ("observed", "expected", "lower", "upper", "yesterday")


def series(n: int, grain: Any = MINUTE, **columns: Any) -> pl.DataFrame:
    """`n` buckets that end shortly after T, a third of the normal level from T on."""
    start = T.replace(tzinfo=None) - (n - 5) * grain
    level = 0.3 + 0.02 * np.sin(np.arange(n))
    bad = np.where(np.arange(n) < n - 5, level, level / 3)
    values = {
        "observed": bad,
        "expected": level,
        "lower": level * 0.8,
        "upper": level * 1.2,
        "yesterday": level[::-1],
    } | columns
    buckets = pl.Series([start + i * grain for i in range(n)], dtype=pl.Datetime("us"))
    return pl.DataFrame({"bucket": buckets, **{c: pl.Series(values[c], dtype=pl.Float64) for c in COLUMNS}})


def pixels(png: bytes) -> Any:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_shows_what_happened(make_config: Callable[..., Config], partners: Partners) -> None:
    image = pixels(draw(INCIDENT, series(185), make_config(), partners))
    assert image.shape == (600, 1200, 3)
    band, shade, dot, ink = (
        np.abs(image - np.array(c)).sum(axis=2) < 12
        for c in ([211, 229, 240], [250, 232, 234], [200, 16, 46], [31, 41, 51])
    )
    assert band.sum() > 40_000
    assert 2_000 < shade.sum() < 20_000
    assert np.flatnonzero(shade.sum(axis=0) > 100).min() > 1000  # the incident is at the right edge
    assert dot[400:].sum() > 30  # detected on the fallen line
    assert ink[:60].sum() > 1_000  # a title


@pytest.mark.parametrize(
    ("incident", "frame"),
    [
        (INCIDENT, series(6).clear()),
        (INCIDENT, series(6)[:1]),
        (INCIDENT, series(6)[:2]),
        (INCIDENT, series(60, **dict.fromkeys(COLUMNS, [None] * 60))),
        (INCIDENT, series(60, **dict.fromkeys(COLUMNS[1:], [None] * 60))),
        (INCIDENT, series(60, observed=[0.3, None] * 30, upper=[float("inf")] * 60)),
        (INCIDENT, series(60, **dict.fromkeys(COLUMNS, [0.0] * 60))),
        (RESOLVED, series(60)),
        (replace(INCIDENT, severity="info", window=60 * MINUTE), series(120, 20 * MINUTE)),
        (replace(INCIDENT, metric="orders", observed=3e11, expected=9e11), series(60, observed=[3e12] * 59 + [1e11])),
        (replace(INCIDENT, metric="orders"), series(60, observed=[-5.0] * 60)),
        (replace(INCIDENT, metric="gone"), series(2000, 24 * 60 * MINUTE)),
        (replace(INCIDENT, scope={"partner": "evil", "country": EVIL}), series(60)),
        (replace(INCIDENT, started_at=T - 900 * MINUTE), series(60)),
    ],
)
def test_odd_cases_are_drawn_without_a_warning(
    make_config: Callable[..., Config],
    partners: Partners,
    incident: Any,
    frame: pl.DataFrame,
    recwarn: pytest.WarningsRecorder,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(draw(incident, frame, make_config(name="$k$"), partners)).shape == (600, 1200, 3)


def test_what_no_font_has_is_a_box() -> None:
    assert (
        drawable("Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} $x$ \N{SHOPPING TROLLEY}\ufe0f \U0010ffff") == "Zoë $x$ □ □"
    )


@pytest.mark.parametrize(
    ("incident", "rows", "first", "grain"),
    [
        (INCIDENT, 185, T - 180 * MINUTE, MINUTE),
        (RESOLVED, 185, T - 180 * MINUTE, MINUTE),
        (replace(INCIDENT, window=15 * MINUTE), 38, T - 182 * MINUTE, 5 * MINUTE),
        (replace(INCIDENT, window=60 * MINUTE), 42, T + (3 - 41 * 60) * MINUTE, 60 * MINUTE),
    ],
)
def test_series_reaches_from_well_before_to_where_the_data_is_complete(
    make_config: Callable[..., Config], store: EmbeddedStore, incident: Any, rows: int, first: Any, grain: Any
) -> None:
    frame = series_for(incident, store, make_config())
    assert frame.columns == ["bucket", *COLUMNS]
    buckets = frame["bucket"].to_list()
    assert (frame.height, buckets[0], buckets[1] - buckets[0]) == (rows, first.replace(tzinfo=None), grain)
    assert frame["observed"][-2] == pytest.approx(0.3)


SECOND = dt.timedelta(seconds=1)
SILENT = replace(
    INCIDENT, metric="sessions", scope={"partner": "p17"}, window=MINUTE, detected_at=T + 70 * SECOND
)  # from T + 10 s until T + 5 min


@pytest.fixture
def quiet(tmp_path: Path, make_config: Callable[..., Config]) -> Iterator[Callable[[dt.timedelta], EmbeddedStore]]:
    """A store up to so long after T: p17 and p18 have a session every ten seconds, but p17 while it is silent."""
    opened = []

    def fill(after: dt.timedelta) -> EmbeddedStore:
        config = make_config()
        begin = T.replace(tzinfo=None) - 200 * MINUTE
        ends = {1440 * MINUTE: 240 * MINUTE, 0 * MINUTE: 200 * MINUTE + after}  # of the day before and of today
        times = [begin - ago + i * 10 * SECOND for ago, end in ends.items() for i in range(end // (10 * SECOND))]
        silent = (T.replace(tzinfo=None) + 10 * SECOND, T.replace(tzinfo=None) + 5 * MINUTE)
        rows = [(at, p) for at in times for p in ("p17", "p18") if p == "p18" or not silent[0] <= at < silent[1]]
        events = pl.DataFrame(rows, schema=["event_time", "partner"], orient="row")
        events = events.with_columns(operation=pl.lit("session"), status=pl.lit("ok"), amount=pl.lit(1.0))
        texts = [n for n, f in config.events.fields.items() if f.type == "string" and n not in events.columns]
        events = events.with_columns(pl.lit(None, pl.String).alias(name) for name in texts)
        store = EmbeddedStore(tmp_path / "quiet.duckdb", config)
        opened.append(store)
        newest = {"0": T + after + config.events.lateness}
        store.commit(Commit([Move("test", 0, 0, events.height)], events, newest))
        settle(store, config, minutes=T - 60 * MINUTE)  # older ones are kept by the minute
        return store

    yield fill
    for store in opened:
        store.close()


def test_the_window_that_fired_between_two_minutes_is_the_last_one_and_no_other_dips(
    make_config: Callable[..., Config], partners: Partners, quiet: Callable[[dt.timedelta], EmbeddedStore]
) -> None:
    config = make_config()
    frame = series_for(SILENT, quiet(70 * SECOND), config)
    assert frame["bucket"][-1] == (T + 10 * SECOND).replace(tzinfo=None)
    assert frame["observed"].to_list() == [6.0] * 180 + [1.0, 0.0]
    assert frame["yesterday"].to_list() == [6.0] * 182
    shade = np.abs(pixels(draw(SILENT, frame, config, partners)) - np.array([250, 232, 234])).sum(axis=2) < 12
    assert shade.sum() > 500


def test_a_chart_of_what_is_over_shows_the_return_to_normal(
    make_config: Callable[..., Config], quiet: Callable[[dt.timedelta], EmbeddedStore]
) -> None:
    end = T + 380 * SECOND
    over = replace(SILENT, status="resolved", window=10 * MINUTE, resolved_at=end)
    frame = series_for(over, quiet(380 * SECOND), make_config())
    assert frame["bucket"].to_list()[-2:] == [(end - s * SECOND).replace(tzinfo=None) for s in (80, 60)]
    assert frame["observed"].to_list()[-8:] == [6.0, 1.0, 0.0, 0.0, 0.0, 0.0, 6.0, 6.0]
