"""kill -9 at any moment of ingestion: what an undisturbed run counts is counted, no more and no less."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

from kmon.sources.simulate import MONDAY, encode
from kmon.sources.traffic import Simulation
from kmon.store import EmbeddedStore
from tests.conftest import TEMPLATE

KILLS = 20
WORKER = """
import logging, os, sys
from kmon import logs
from kmon.config import load_config
from kmon.ingest import Ingestion
from kmon.sources.files import FilesSource, Limits
from kmon.store import EmbeddedStore

logs.configure(logging.ERROR)
config, events = load_config(sys.argv[1]), FilesSource([sys.argv[2]], limits=Limits(1500))
for line in sys.stdin:  # each run is a process of its own, without the time that the imports take
    child = os.fork()
    if not child:
        with EmbeddedStore(line.strip(), config) as store:
            Ingestion(config, store).run(events)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was done before
        os.kill(child, signal.SIGKILL)


class Runs:
    """Runs of ingestion, one after the other, each of which may be killed."""

    def __init__(self, events):
        command = [sys.executable, "-W", "ignore", "-c", WORKER, str(TEMPLATE), str(events)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, store, after: float | None = None) -> int:
        """The wait status of a run into `store` that is killed after so many seconds."""
        self.process.stdin.write(f"{store}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        timer = threading.Timer(after or 0, kill, [child])
        if after is not None:
            timer.start()
        status = int(self.process.stdout.readline())
        timer.cancel()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def state(path, config):
    with EmbeddedStore(path, config) as store:
        measures = ", ".join(f"sum({m})::DOUBLE AS {m}" for m in store.schema.measures if m != "amount")
        dimensions = ", ".join(store.schema.dimensions)
        return (
            store.sql(
                f"SELECT date_trunc('minute', bucket) AS minute, {dimensions}, round(sum(amount), 4) AS amount,"
                f" {measures} FROM rollup GROUP BY ALL ORDER BY ALL"
            ),
            store.sql("SELECT * EXCLUDE received_at FROM dead_letters ORDER BY ALL"),
            store.positions(),
            store.clocks(),
        )


def test_killed_twenty_times(tmp_path, config):
    simulation = Simulation(300, 15.0, MONDAY, 3)
    events = tmp_path / "events.ndjson"
    with events.open("wb") as file:
        for index in range(33):
            file.write(encode(simulation.chunk(index)) + b'{"broken": \n')
    rng = random.Random(5)
    with Runs(events) as runs:
        began = time.monotonic()
        assert runs.run(tmp_path / "whole.duckdb") == 0
        whole = time.monotonic() - began
        ends = [runs.run(tmp_path / "killed.duckdb", rng.uniform(0, 1.5 * whole / KILLS)) for _ in range(KILLS)]
        assert ends.count(signal.SIGKILL) > KILLS / 2
        assert runs.run(tmp_path / "killed.duckdb") == 0
    for undisturbed, disturbed in zip(
        *(state(tmp_path / n, config) for n in ("whole.duckdb", "killed.duckdb")), strict=True
    ):
        assert disturbed.equals(undisturbed) if hasattr(disturbed, "equals") else disturbed == undisturbed
