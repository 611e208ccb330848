"""The benchmark of the series detector: on series made here it runs, on the public ones it keeps its limits."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from kmon.bench import Options, detect_series
from tests.conftest import DATA


@pytest.fixture
def folder(tmp_path):
    """A labelled KPI, and a file as NAB has them, each with an obvious incident."""
    rng = np.random.default_rng(0)
    n = 12 * 288
    values, labels = rng.normal(50, 1, n), np.zeros(n, dtype=bool)
    for at in (1500, 3000):
        values[at : at + 20] += 30
        labels[at : at + 20] = True
    ts = np.arange(n) * 300
    pl.DataFrame({"series": "one", "ts": ts, "value": values, "label": labels, "test": ts > ts[n // 2]}).write_parquet(
        tmp_path / "other.parquet"
    )
    times = [dt.datetime(2026, 1, 1) + i * dt.timedelta(minutes=5) for i in range(n)]  # noqa: DTZ001
    pl.DataFrame({"file": "a.csv", "timestamp": times, "value": values}).write_parquet(tmp_path / "nab.parquet")
    windows = {"a.csv": [[f"{times[2950]}.000000", f"{times[3050]}.000000"]]}
    (tmp_path / "nab_windows.json").write_text(json.dumps(windows))
    pl.DataFrame({"unrelated": [1]}).write_parquet(tmp_path / "unrelated.parquet")
    return tmp_path


def test_any_series_of_the_layout_are_taken(folder):
    rows = {row.name: row for row in detect_series.run(Options(data=folder))}
    assert rows["other: point F1"].value > 0.9
    assert rows["other: event F1"].ok
    assert rows["other: false alarms"].ok
    assert rows["nab: standard profile"].value > 60
    assert all(row.value is not None for row in rows.values())


def test_no_series_is_told(tmp_path):
    (row,) = detect_series.run(Options(data=tmp_path))
    assert row.value is None
    assert "KMON_DATA" in row.note


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "kpi_dev.parquet").exists(), reason="the labelled series are missing: set KMON_DATA")
def test_the_limits_are_kept_on_public_series():
    rows = {row.name: row for row in detect_series.run(dataclasses.replace(Options(), data=DATA))}
    limits = [row for row in rows.values() if row.limit is not None]
    assert len(limits) >= 4
    assert [row.name for row in limits if not row.ok] == []
    # the scorer itself: published for chance is 11.0
    assert 25 < rows["nab: EWMA z, span 60, best threshold"].value < 45
