"""The shipped notebook ``deep_scan.ipynb`` under the real papermill engine."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from papermill.iorw import load_notebook_node

from kmon.config import Config, load_config
from kmon.jobs import KernelPool, run_job
from kmon.ledger import Ledger
from kmon.resources import shipped_notebooks
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore

YAML = """
source: {{kind: files, paths: [events.ndjson]}}
events: {{lateness: 0s, fields: {{ts: {{type: time}}, shop: {{}}}}}}
dimensions: [shop]
measures: {{events: count(*)}}
metrics: {{events: {{count: events}}}}
watch: [[], [shop]]
models: {models}
notebooks: {notebooks}
jobs: {{deep_scan: {{notebook: jobs/deep_scan.ipynb, every: 6h}}}}
"""
AT = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)
SHOP = "<b>A$^2$</b>"


def configured(folder: Path, models: str) -> Config:
    """A shop with events of three days, none of its nights."""
    path = folder / "kmon.yaml"
    path.write_text(YAML.format(models=models, notebooks=shipped_notebooks()), encoding="utf-8")
    config = load_config(path)
    times = [AT - i * dt.timedelta(minutes=2) for i in range(1, 3 * 720)]
    hours = np.array([t.hour for t in times])
    counts = np.random.default_rng(1).poisson(2 + 2 * np.sin(2 * np.pi * hours / 24))
    frame = pl.DataFrame(
        {"event_time": pl.Series([t.replace(tzinfo=None) for t in times], dtype=pl.Datetime("us")), "n": counts}
    ).with_columns(shop=pl.lit(SHOP))
    events = frame.filter(pl.col("n") > 0).sort("event_time").select(pl.exclude("n").repeat_by("n")).explode(pl.all())
    with EmbeddedStore(folder / "kmon.duckdb", config) as store:
        store.commit(Commit([Move("test", 0, 0, events.height)], events, {"0": AT}))
    return config


def outputs(notebook: str) -> list[dict[str, str]]:
    cells = load_notebook_node(notebook).cells
    return [o.data if "data" in o else {"text/plain": o.get("text", "")} for c in cells for o in c.get("outputs", [])]


def test_the_job_fits_and_shows_what_it_fitted(tmp_path: Path, pool: KernelPool) -> None:
    config = configured(tmp_path, "{largest: 3}")
    with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
        done = run_job("deep_scan", config.jobs["deep_scan"], config, ledger, pool)
        fits = ledger.fits()
    assert done.status == "ok"
    assert [(f.scope, f.measure) for f in fits] == [({}, "events"), ({"shop": SHOP}, "events")]
    assert all(f.method for f in fits)
    shown = outputs(str(done.notebook))
    assert "2 series fitted, 0 not" in shown[0]["text/plain"]
    assert any(fits[0].method in o.get("text/html", "") for o in shown)
    assert any("image/png" in o for o in shown)
    assert not any("<b>A" in o.get("text/html", "") for o in shown)


def test_without_models_it_says_so(tmp_path: Path, pool: KernelPool) -> None:
    config = configured(tmp_path, "{}")
    with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
        done = run_job("deep_scan", config.jobs["deep_scan"], config, ledger, pool, {"at": "2026-03-02T11:00:00Z"})
    assert "no models are configured" in outputs(str(done.notebook))[0]["text/plain"]


@pytest.mark.parametrize("at", ["2026-03-02T11:00:00", "soon"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, at: str) -> None:
    from kmon.deepscan import run
    from kmon.errors import UsageError

    with pytest.raises(UsageError, match=at):
        run(configured(tmp_path, "{largest: 1}"), at=at)
