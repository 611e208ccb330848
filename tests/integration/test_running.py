"""kmon as a whole, in its own processes: the demo, and `kmon up` on files that grow."""

import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import psutil
import pytest

from tests.command import kmon

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("running")]


class Running:
    """A kmon process whose standard output can be waited for, line by line."""

    def __init__(self, process):
        self.process, self.lines = process, queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def line(self, pattern, seconds):
        """The first line that matches; fails with what was said instead."""
        said, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline and (self.process.poll() is None or not self.lines.empty()):
            try:
                said.append(self.lines.get(timeout=0.2))
            except queue.Empty:
                continue
            if found := re.search(pattern, said[-1]):
                return found
        pytest.fail(f"no line like {pattern!r} in {seconds} s; said: {said}; exit code {self.process.poll()}")

    def part(self, name):
        """The process of one part."""
        return next(p for p in psutil.Process(self.process.pid).children(True) if ["--part", name] == p.cmdline()[4:6])


@contextmanager
def running(*arguments, cwd):
    command = [sys.executable, "-m", "kmon", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Running(process)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        alive = [child.name() for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert (process.returncode, alive) == (0, []), errors


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.3)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_demo_shows_an_incident_three_times_and_stops_cleanly(tmp_path):
    with running("demo", "here", cwd=tmp_path) as demo:
        url = demo.line(r"open (http://localhost:\d+)/partner", 120)[1]
        fired = demo.line(r"^incident (inc_\w+) (critical|warning): .+", 150)[1]
        alerts = tmp_path / "here" / "alerts"
        wait_until(lambda: list(alerts.glob(f"*_{fired}_firing")), 20, "the alert lies in its folder")
        [folder] = alerts.glob(f"*_{fired}_firing")
        assert (folder / "chart.png").read_bytes()[:4] == b"\x89PNG"
        assert "Expected:" in (folder / "message.txt").read_text(encoding="utf-8")
        with urllib.request.urlopen(f"{url}/partner?incident={fired}", timeout=60) as page:
            assert page.status == 200
        listed = json.loads(kmon("incidents", "--format", "json", cwd=tmp_path / "here").stdout)
        assert fired in {incident["id"] for incident in listed}
    assert kmon("status", cwd=tmp_path / "here").returncode == 0  # nobody owns the store any more


@pytest.fixture
def shop(tmp_path):
    """A folder made by `kmon init`, with a files source and ports of its own."""
    assert kmon("init", cwd=tmp_path).returncode == 0
    path = tmp_path / "kmon.yaml"
    text = re.sub(
        r"source:\n.*?\n#",
        'source:\n  kind: files\n  paths: ["in/*.ndjson"]\n#',
        path.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    text = text.replace("port: 5006", f"port: {free_port()}") + f"serve: quack:localhost:{free_port()}\n"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "in").mkdir()
    return tmp_path


def write(folder, count):
    with (folder / "in" / "a.ndjson").open("a", encoding="utf-8") as file:
        for _ in range(count):
            file.write(
                json.dumps({"ts": int(time.time() * 1000), "operation": "order", "status": "ok", "partner": "p1"})
                + "\n"
            )


def orders(folder):
    rows = kmon("query", "SELECT sum(orders)::INT AS n FROM rollup", "--format", "json", cwd=folder)
    return json.loads(rows.stdout)[0]["n"] if rows.returncode == 0 else None


def test_up_follows_files_answers_readers_and_restarts_what_dies(shop):
    write(shop, 10)
    with running("up", cwd=shop) as up:
        up.line(r"^up: http", 90)
        wait_until(lambda: orders(shop) == 10, 30, "the first ten events can be queried")
        busy = kmon("ingest", "in/a.ndjson", cwd=shop)
        assert (busy.returncode, "owned by another process" in busy.stderr) == (1, True)
        source = up.part("source")
        source.send_signal(signal.SIGKILL)
        write(shop, 5)
        wait_until(lambda: orders(shop) == 15, 60, "a killed owner is restarted and goes on where it was")
        assert up.part("source").pid != source.pid
        wait_until(lambda: '"ok"' in kmon("jobs", "--format", "json", cwd=shop).stdout, 60, "the notebook has run")
    assert orders(shop) == 15


def test_up_tells_a_port_in_use_in_one_sentence(shop):
    port = int(re.search(r"^serve: quack:localhost:(\d+)", (shop / "kmon.yaml").read_text(), re.MULTILINE)[1])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = kmon("up", cwd=shop, timeout=60)
    assert done.returncode == 1
    assert f"cannot be served at quack:localhost:{port}" in done.stderr
    assert "Traceback" not in done.stderr
