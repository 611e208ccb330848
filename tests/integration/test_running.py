"""kmon as a whole, in its own processes: the demo, and `kmon up` on files that grow."""

import json
import re
import signal
import socket
import urllib.request

import pytest

from tests.command import kmon
from tests.integration.processes import orders, running, wait_until, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("running")]


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


def test_up_follows_files_answers_readers_and_restarts_what_dies(shop):
    write(shop, 10)
    with running("up", cwd=shop) as up:
        up.line(r"^up: http", 90)
        wait_until(lambda: orders(shop) == 10, 30, "the first ten events can be queried")
        busy = kmon("ingest", "in/a.ndjson", cwd=shop)
        assert (busy.returncode, "owned by another process" in busy.stderr) == (1, True)
        again = kmon("up", cwd=shop)
        assert (again.returncode, "owns the store" in again.stderr, "--standby" in again.stderr) == (1, True, True)
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
