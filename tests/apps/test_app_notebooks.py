from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

from kmon.config import Config

ROOT = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = ["apps/partner.ipynb", "lab/01_explore.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs_top_to_bottom_on_another_schema(
    name: str, filled: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMON_CONFIG", str(filled.path))
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in outputs)
