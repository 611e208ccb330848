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
