"""For data scientists: JupyterLab on the notebooks."""

from __future__ import annotations

import subprocess
import sys

from kmon import environment
from kmon.config import Config
from kmon.resources import shipped_notebooks


def run(config: Config, store: str | None = None, *, port: int = 8888, browser: bool = True) -> int:
    """Run JupyterLab on one's own notebooks, else on kmon's, until it ends; its exit code."""
    mine = config.resolve(config.notebooks)
    folder = mine if mine.is_dir() else shipped_notebooks()
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={folder.absolute()}",
        f"--ServerApp.port={port}",
    ]
    environ = environment.for_child(config=str(config.path), store=store or str(config.resolve(config.store)))
    return subprocess.run(
        [*command, *([] if browser else ["--no-browser"]), "--allow-root"], env=environ, check=False
    ).returncode
