"""Every benchmark on a very small scale: that it runs and tells, not what."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from kmon.bench import BENCHES, Options, latency
from kmon.bench.stream import PARTITIONS, TOPIC
from tests.command import kmon_json
from tests.conftest import ROOT
from tests.integration.processes import wait_until

pytestmark = pytest.mark.xdist_group("kafka")
TINY = Options(scale=0.002, minutes=0.1, repeats=1, rivals=False)


def values(rows):
    """What was measured; everything must have been."""
    assert [row.name for row in rows if row.value is None] == []
    return {row.name: row.value for row in rows}


def test_ingest_reads_files_and_kafka(broker):
    found = values(BENCHES["ingest"](TINY))
    assert found["from files, 100,000 a batch, against the decode"] > 0
    assert found["from Kafka, 100,000 a batch, against the decode"] > 0


def test_storage_tells_every_tier_from_the_command_line(tmp_path):
    rows = kmon_json("bench", "storage", "--scale", "0.002", cwd=tmp_path)
    assert {"rollup_10s", "rollup_1m", "rollup_1h"} <= {row["name"] for row in rows}
    assert all(row["value"] > 0 and set(row) >= {"name", "value", "unit", "limit", "ratio"} for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_latency_sees_every_marker_also_beside_an_analyst(broker, tmp_path):
    broker.create_topic(TOPIC, PARTITIONS)
    rows = list(latency.measured(TINY, tmp_path, broker.address, 500.0, analyst=True))
    broker.delete_topic(TOPIC)
    assert 0 < values(rows)["event to query at 500/s, analyst scanning, p99"] < 60


def test_query_asks_embedded_and_over_quack(broker):
    found = values(BENCHES["query"](dataclasses.replace(TINY, scale=0.0005)))
    for how in ("embedded", "over Quack"):
        assert found[f"series, median partner, 30 days, {how}"] > 0


def test_soak_loses_and_doubles_nothing(broker):
    found = values(BENCHES["soak"](TINY))
    assert found["events lost or doubled"] == 0
    assert found["resident memory, last third"] > 0


def test_nothing_is_left_of_a_benchmark_that_is_ended(broker, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "kmon", "bench", "soak"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as bench:
        try:
            wait_until(lambda: any("kmon ingest" in command for command in commands_about(tmp_path)), 60, "the owner")
            bench.terminate()
            assert bench.wait(60) == 128 + signal.SIGTERM
        finally:
            bench.kill()
    assert commands_about(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def commands_about(folder):
    """The command lines of all processes that name `folder`."""
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(folder) in command]


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_the_documentation_keeps_the_last_figures(name):
    page = "detection.md" if name.startswith("detect") else "benchmarks.md"
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert re.search(rf"^kmon bench {name}\b.*: ", text, flags=re.MULTILINE)
