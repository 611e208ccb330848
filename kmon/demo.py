"""``kmon demo``: everything at once, on made-up traffic with incidents, in a folder of its own."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from kmon.config import Config, SimulatorSource, load_config
from kmon.errors import KmonError
from kmon.ingest import Ingestion
from kmon.resources import TEMPLATE, shipped_notebooks
from kmon.sources.simulate import Simulator, reference
from kmon.store import EmbeddedStore
from kmon.store.upkeep import upkeep_thread

MARK = ".kmon-demo"
CHANGES = {
    r"^name: kmon$": "name: kmon demo",
    r"^# partners: .*": "partners: partners.csv",
    r"^  lateness: 30s": "  lateness: 15s",
    r"^every: 30s": "every: 10s",
    r"^  detect: .*": "  detect: {notebook: jobs/detect.ipynb, every: 10s, keep: 50}",
}
"""How the demo's kmon.yaml differs from the one that ``kmon init`` writes: it looks more often, to be seen sooner."""


def prepare(folder: Path) -> Config:
    """Make the demo's folder anew and return its configuration; KmonError where something else is in the way."""
    try:
        if folder.exists():
            if any(folder.iterdir()) and not (folder / MARK).exists():
                message = f"{folder} exists and is not a demo's: choose another folder"
                raise KmonError(message)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARK).touch()
        text = TEMPLATE.read_text(encoding="utf-8")
        for pattern, replacement in CHANGES.items():
            text, changed = re.subn(pattern, replacement, text, flags=re.MULTILINE)
            assert changed, pattern
        text = re.sub(r"^apps: .*", f"apps: {{host: 127.0.0.1, port: {_port(5006)}}}", text, flags=re.MULTILINE)
        text += f"\nserve: quack:localhost:{_port(9494)}\nnotebooks: {shipped_notebooks()}\n"
        (folder / "kmon.yaml").write_text(text, encoding="utf-8")
        config = load_config(folder / "kmon.yaml")
        reference(_source(config).partners, _source(config).seed).write_csv(folder / "partners.csv")
    except OSError as error:
        message = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise KmonError(message) from error
    return config


def load_history(config: Config, stop: threading.Event, on_progress: Callable[[int, int], None]) -> int:
    """Ingest the simulated past; `on_progress` gets (events so far, about how many there are). The number of events."""
    simulator = Simulator(_source(config))
    caught_up = threading.Event()
    with EmbeddedStore(config.resolve(config.store), config) as store:
        total = simulator.backlog(store.positions())
        ingestion = Ingestion(config, store, on_batch=lambda progress: on_progress(progress.events, total))
        with upkeep_thread(store, config, stop):
            for batch in simulator.read(store.positions(), caught_up):
                ingestion.emit(batch)
                if stop.is_set() or simulator.caught_up(batch):
                    caught_up.set()
            ingestion.emit(None)
        return ingestion.progress.events


def _source(config: Config) -> SimulatorSource:
    assert isinstance(config.source, SimulatorSource)
    return config.source


def _port(preferred: int) -> int:
    """`preferred` if it is free, else any free one: the demo must not fail because something else runs."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return preferred
