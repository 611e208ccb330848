from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from kmon.alerts.chart import draw, drawable, series_for
from kmon.config import Config
from kmon.partners import Partners
from kmon.store import EmbeddedStore
from tests.alerts.conftest import EVIL, INCIDENT, MINUTE, RESOLVED, T

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
        (INCIDENT, 184, T - 180 * MINUTE, MINUTE),
        (RESOLVED, 184, T - 180 * MINUTE, MINUTE),
        (replace(INCIDENT, window=15 * MINUTE), 37, T - 182 * MINUTE, 5 * MINUTE),
        (replace(INCIDENT, window=60 * MINUTE), 41, T + (3 - 41 * 60) * MINUTE, 60 * MINUTE),
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
