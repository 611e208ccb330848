"""A second owner waits beside the first and takes over when it dies, also by kill -9."""

import json
import re
import urllib.request

import pytest

from kmon.testing import free_port
from tests.command import kmon
from tests.integration.processes import is_alive, orders, running, wait_until, write

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("running")]
SOON = 60.0
"""Seconds that anything may take here; a take-over costs about one on a machine that does nothing else."""


def test_a_standby_takes_over_from_a_killed_owner(shop):
    write(shop, 10)
    with running("ingest", cwd=shop) as first:
        wait_until(lambda: orders(shop) == 10, 60, "the first owner answers")
        with running("ingest", "--standby", cwd=shop) as second:
            second.logged("standing by", 60)
            with running("ingest", "--standby", cwd=shop) as third:
                third.logged("standing by", 60)
                refused = kmon("ingest", cwd=shop)
                assert (refused.returncode, "--standby" in refused.stderr) == (1, True)
                assert "Traceback" not in refused.stderr
            said = [line for line in third.log if "standing by" in line]
            assert len(said) == 1  # and Ctrl-C while waiting ended it with exit code 0, as `running` checks
            first.kill()
            write(shop, 5)
            second.logged("took over", SOON)
            wait_until(lambda: orders(shop) == 15, SOON, "the standby answers, and goes on where the first one was")
    assert orders(shop) == 15


def test_a_whole_kmon_takes_over_from_another_one(shop):
    write(shop, 10)
    port = re.search(r"port: (\d+)", (shop / "kmon.yaml").read_text())[1]
    with running("up", "--standby", cwd=shop) as first:
        first.line(r"^up: http", 90)  # nobody owned the store: it waited for nothing
        with running("up", "--standby", cwd=shop) as second:
            second.logged("standing by", 60)
            left = first.kill()  # the supervisor alone: its parts must notice
            write(shop, 5)
            second.line(r"^up: http", SOON)
            wait_until(lambda: orders(shop) == 15, SOON, "the standby goes on where the first one was")
            wait_until(lambda: not any(map(is_alive, left)), SOON, "nothing of the first one is left")
            wait_until(lambda: _answers(port), 60, "the pages are served on the same port")
            with running("up", "--standby", cwd=shop) as third:
                third.logged("standing by", 60)
                second.part("source").kill()  # the source alone: two who want the store, and the faster one gets it
                third.line(r"^up: http", SOON)
                second.logged("another process .* took over the store .*: standing by again", SOON)
    assert orders(shop) == 15


def test_a_standby_goes_by_what_was_taken_over_meanwhile(shop):
    write(shop, 10)
    file = shop / "kmon.yaml"
    with running("up", cwd=shop) as first:
        first.line(r"^up: http", 90)
        with running("up", "--standby", cwd=shop) as second:
            second.logged("standing by", 60)
            port = free_port()
            text = file.read_text().replace("device, channel]", "device, channel, operation]", 1)
            file.write_text(re.sub(r"port: \d+", f"port: {port}", text, count=1))
            assert kmon("reload", cwd=shop).returncode == 0
            write(shop, 5)
            wait_until(lambda: orders(shop) == 15, 60, "the owner counts by the new dimension")
            first.kill()
            second.line(rf"^up: http://localhost:{port}/", SOON)
            write(shop, 5)
            wait_until(lambda: orders(shop) == 20, SOON, "the standby goes on where the first one was")
            known = "SELECT operation FROM rollup WHERE operation IS NOT NULL GROUP BY ALL HAVING sum(events) = 10"
            assert json.loads(kmon("query", known, "--format", "json", cwd=shop).stdout) == [{"operation": "order"}]
            reloaded = kmon("reload", cwd=shop)
            assert (reloaded.returncode, "nothing that kmon reads has changed" in reloaded.stdout) == (0, True)


def _answers(port):
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/partner", timeout=10) as page:
            return page.status == 200
    except OSError:
        return False


def test_a_standby_is_for_what_never_ends(shop):
    done = kmon("ingest", "--standby", "in/a.ndjson", cwd=shop)
    assert (done.returncode, "leave out the files" in done.stderr) == (2, True)
