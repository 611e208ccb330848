"""A disk on which nothing more can be written, as a limit on the size of files: a real one needs root to be made."""

from __future__ import annotations

import json
import subprocess
import sys

from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from tests.conftest import TEMPLATE, T, frame
from tests.store.conftest import HOUR

WORKER = """
import json, resource, sys
from kmon.config import load_config
from kmon.errors import StoreError
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from tests.conftest import frame

committed = 0
with EmbeddedStore(sys.argv[2], load_config(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    try:
        while committed < 500:
            rows = [{"partner": f"partner {committed} {i} {'x' * 40}"} for i in range(1000)]
            store.commit(Commit([Move("f", 0, committed, committed + 1)], frame(*rows)))
            committed += 1
    except StoreError as error:
        print(json.dumps([committed, str(error)]))
"""


def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path, config):
    path = tmp_path / "k.duckdb"
    command = [sys.executable, "-c", WORKER, str(TEMPLATE), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    committed, sentence = json.loads(done.stdout)
    assert sentence.startswith(f"{path} cannot be written: ")
    assert "\n" not in sentence
    assert committed > 0
    with EmbeddedStore(path, config) as again:
        assert again.positions() == {("f", 0): committed}
        assert again.totals({}, T, T + HOUR)["sessions"] == committed * 1000
        again.commit(Commit([Move("f", 0, committed, committed + 1)], frame({})))


UPKEEP = """
import resource, sys, threading
from kmon.config import load_config
from kmon.errors import StoreError
from kmon.store import EmbeddedStore
from kmon.store.upkeep import upkeep_thread

config = load_config(sys.argv[1])
stop = threading.Event()
with EmbeddedStore(sys.argv[2], config) as store:
    size = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        with upkeep_thread(store, config, stop, every=0.01):
            print(stop.wait(60))
    except StoreError as error:
        print(error)
"""


def test_a_full_disk_stops_upkeep_with_one_sentence_and_changes_nothing(tmp_path, config):
    path = tmp_path / "k.duckdb"
    bucket = f"TIMESTAMP '{T.replace(tzinfo=None)}' + to_seconds(i % 3600) AS bucket"
    rows = f"{bucket}, i AS partner, random() AS amount, 1 AS sessions"
    with EmbeddedStore(path, config) as store:
        store.connection.execute(f"INSERT INTO rollup_10s BY NAME SELECT {rows} FROM range(400000) t(i)")
        store.connection.execute(f"INSERT INTO clocks(partition, newest) VALUES ('0', '{T + 9 * HOUR}')")
        store.connection.execute("CHECKPOINT")
    command = [sys.executable, "-c", UPKEEP, str(TEMPLATE), str(path), str(path.stat().st_size + 100_000)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == "True"
    assert told[1].startswith(f"{path} cannot be written: ")
    with EmbeddedStore(path, config) as again:
        assert again.totals({}, T, T + HOUR)["sessions"] == 400_000
