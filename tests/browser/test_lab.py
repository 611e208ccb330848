"""The notebooks as a data scientist meets them: ``kmon lab``, a real kernel, a real browser, no internet."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from kmon.resources import shipped_notebooks
from kmon.testing import free_port
from tests.browser.conftest import PATIENCE, Site, await_port

pytestmark = pytest.mark.xdist_group("lab")  # one JupyterLab at a time
START = 120_000
"""Milliseconds that JupyterLab and a kernel may take to start on a busy machine."""


@pytest.fixture(scope="module")
def lab(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on the shop's configuration, with nobody's settings and a copy of the notebooks."""
    shutil.copytree(shipped_notebooks(), site.config.parent / "notebooks")  # it saves what it runs
    home, port = tmp_path_factory.mktemp("jupyter"), free_port()
    own = {f"JUPYTER{name}_DIR": str(home / name) for name in ("_CONFIG", "_DATA", "LAB_WORKSPACES", "LAB_SETTINGS")}
    command = [sys.executable, "-m", "kmon", "lab", "--no-show", "--port", str(port), "--config", str(site.config)]
    with subprocess.Popen(
        [*command, "--store", site.store_address],
        env={**os.environ, **own, "JUPYTER_TOKEN": "secret"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        await_port(f"http://localhost:{port}", process)
        yield f"http://localhost:{port}/lab/workspaces/{{}}/tree/{{}}?token=secret"
        os.killpg(process.pid, signal.SIGTERM)


@pytest.fixture
def notebook(lab: str, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab in which all cells of a notebook were run; it has a workspace of its own, where no other one is open."""
    tab = browser.new_page(viewport={"width": 1500, "height": 1300})
    tab.set_default_timeout(START)
    expect.set_options(timeout=START)
    tab.goto(lab.format(Path(request.param).stem, request.param))
    expect(tab.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    for _ in range(8):  # a click that comes before the notebook is ready is lost
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(AssertionError):
            begun = tab.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*0-9]+\]:"))
            expect(begun.first).to_be_visible(timeout=10_000)
            break
    yield tab
    tab.close()
    expect.set_options(timeout=PATIENCE)


@pytest.mark.parametrize("notebook", ["apps/partner.ipynb"], indirect=True)
def test_the_page_is_live_in_jupyterlab(notebook: Page) -> None:
    expect(notebook.get_by_role("heading", name="All shops")).to_be_visible()
    expect(notebook.locator(".bk-Figure").first).to_be_visible()
    value = notebook.locator(".metric").filter(has_text="Visits").locator(".value")
    everything = value.inner_text()
    notebook.locator(".jp-OutputArea select").first.select_option(label="EU")
    expect(value).not_to_have_text(everything)


@pytest.mark.parametrize("notebook", ["lab/01_explore.ipynb"], indirect=True)
def test_the_widgets_of_a_research_notebook_work(notebook: Page) -> None:
    figure = notebook.locator(".jp-OutputArea .bk-Figure")
    expect(figure).to_be_visible()
    picker = notebook.locator(".jp-OutputArea select").nth(1)
    picker.select_option(index=1)
    expect(figure).to_be_visible()
    expect(notebook.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)
