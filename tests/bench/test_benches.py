"""Every benchmark on a very small scale: that it runs and tells, not what."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from kmon.bench import BENCHES, Options, detect_speed, latency
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


@pytest.mark.parametrize(("days", "told"), [((1,), "with day -1"), ((1, 2, 7), "with day -1, -2, -7")])
def test_a_sweep_is_timed_with_the_reference_days_that_are_asked_for(days, told):
    options = dataclasses.replace(TINY, days=days)
    rows = list(detect_speed._sized("tiny", 0.001, options, None))
    found = values(rows)
    assert found["tiny: monitors"] > 100
    assert found["tiny: a sweep, median"] > 0
    assert rows[0].note.endswith(told)


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


WITHOUT_FIGURES = {"detect"}
"""Those that were never run as a whole; the documentation says so in the place of figures."""
ROW = re.compile(r"^\| [^|]+ \| -?[\d,.]+(?:e-?\d+)? \| .* \|$", flags=re.MULTILINE)
"""As `rows.markdown` writes one that was measured."""


def section(name):
    """What stands between the benchmark's line and that of the next one."""
    page = "detection.md" if name.startswith("detect") else "benchmarks.md"
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"(?ms)^kmon bench {name}(?: --[^:]*)?: (.*?)(?=^kmon bench |^## |\Z)", text)
    return found


@pytest.mark.parametrize("name", sorted(BENCHES.keys() - WITHOUT_FIGURES - {"detect-models"}))
def test_the_documentation_keeps_the_last_figures(name):
    """A machine, and the table of the run right below it."""
    first, _, rest = section(name).partition("\n\n")
    assert re.fullmatch(r".* cores .*duckdb [\d.]+", first)
    table = rest.partition("\n\n")[0]
    assert table.startswith("| what | value | unit | limit | ratio | ok | |\n")
    assert len(ROW.findall(table)) >= 5


def test_the_figures_of_models_have_a_page_of_their_own():
    assert section("detect-models").startswith("see [models](detection-models.md)")
    page = (ROOT / "docs" / "detection-models.md").read_text(encoding="utf-8")
    table = page.partition("kmon bench detect-models\n")[2]
    assert len(re.findall(r"^\| [^|]+ \| [\d.]+ ", table, flags=re.MULTILINE)) >= 5


@pytest.mark.parametrize("name", sorted(WITHOUT_FIGURES))
def test_what_has_no_figures_says_so(name):
    """And is taken off the list as soon as it has them."""
    assert "not run as a whole yet" in section(name)
    assert "| what | value |" not in section(name)
