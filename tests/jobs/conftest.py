"""Jobs on the fixture notebooks beside this file, with real kernels and a real ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmon.config import Config, load_config
from kmon.jobs import KernelPool
from kmon.ledger import Ledger

NOTEBOOKS = Path(__file__).parent / "notebooks"
YAML = """
notebooks: {notebooks}
source: {{kind: files, paths: [events.ndjson]}}
events: {{fields: {{ts: {{type: time}}}}}}
dimensions: []
measures: {{events: count(*)}}
metrics: {{events: {{count: events}}}}
watch: [[]]
jobs: {jobs}
"""


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    """Write a kmon.yaml with these jobs into the test's folder and load it."""

    def write(**jobs: dict[str, object]) -> Config:
        path = tmp_path / "kmon.yaml"
        path.write_text(YAML.format(notebooks=NOTEBOOKS, jobs=jobs), encoding="utf-8")
        return load_config(path)

    return write


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
        yield ledger


@pytest.fixture(scope="package")
def pool() -> Iterator[KernelPool]:
    """Two warm kernels without kmon's imports, which would only cost time here."""
    with KernelPool(2, imports=()) as pool:
        yield pool
