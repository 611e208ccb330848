"""An edited kmon.yaml, taken over by a kmon that runs: nothing is lost or doubled, and the store is never let go."""

import json
import signal
import threading

import pytest

from tests.command import kmon
from tests.integration.processes import orders, running, wait_until, write

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("running")]


def edit(folder, *changes):
    path = folder / "kmon.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def asked(folder, query):
    done = kmon("query", query, "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def reloaded(folder):
    done = kmon("reload", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["changes"]


MEASURE = ("  events: count(*)\n", "  events: count(*)\n  paid: count(*) FILTER (operation = 'order')\n")
METRIC = ("  orders: {count: orders}\n", "  orders: {count: orders}\n  paid: {count: paid}\n")
NAMED = (
    ("min_volume: 10", "min_vol: 10", "min_vol"),
    ("notebook: jobs/detect.ipynb", "notebook: jobs/nope.ipynb", "nope.ipynb does not exist"),
    ("# partners: partners.csv", "partners: partners.csv  ", "partners.csv"),
)
MONEY = (
    "# money: {amount: amount, currency: currency, to: EUR, rates: rates.csv}",
    "money: {amount: amount, currency: currency, to: EUR, rates: {USD: 0.5}}",
)
DIMENSION = ("device, channel]", "device, channel, operation]")


class Writing:
    """Events that arrive all the time."""

    def __init__(self, folder):
        self.count, self._stop, self._folder = 0, threading.Event(), folder
        self._thread = threading.Thread(target=self._write)

    def _write(self):
        while not self._stop.wait(0.02):
            write(self._folder, 5)
            self.count += 5

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_a_running_kmon_takes_over_an_edited_file(shop):
    write(shop, 10)
    with running("up", cwd=shop) as up:
        up.line(r"^up: http", 90)
        wait_until(lambda: orders(shop) == 10, 60, "the first ten events can be queried")
        source = up.part("source").pid
        with Writing(shop) as writing:
            edit(shop, MEASURE, METRIC, DIMENSION)
            assert reloaded(shop) == ["dimension operation added", "measure paid added", "metric paid added"]
            edit(shop, ("every: 30s ", "every: 50s "))  # right after the first
            assert reloaded(shop) == ["every changed"]
            edit(shop, ("orders / sessions", "orders / session"))
            bad = kmon("reload", cwd=shop)
            assert (bad.returncode, "kmon.yaml, line" in bad.stderr, bad.stderr.count("\n")) == (2, True, 1)
            up.process.send_signal(signal.SIGHUP)  # and without being checked before
            up.logged("kmon.yaml was not taken over .*did you mean 'sessions'", 60)
            edit(
                shop,
                ("orders / session", "orders / sessions"),
                ("\nserve: quack:localhost", "\nserve: quack:127.0.0.1"),
            )
            moved = kmon("reload", cwd=shop)
            assert (moved.returncode, "serve: cannot change while kmon runs" in moved.stderr) == (2, True)
            edit(shop, ("\nserve: quack:127.0.0.1", "\nserve: quack:localhost"))
        total = 10 + writing.count
        wait_until(lambda: orders(shop) == total, 60, "what was written meanwhile is counted once")
        told = asked(shop, "SELECT operation, count(paid) > 0 AS known, sum(events)::INT AS n FROM rollup GROUP BY ALL")
        by = {row["operation"]: row for row in told}
        assert set(by) == {None, "order"}
        assert (by[None]["known"], by["order"]["known"], by[None]["n"] + by["order"]["n"]) == (False, True, total)
        assert up.part("source").pid == source  # the store was never let go
    assert not list(shop.glob("kmon.running-*"))


def test_an_owner_without_a_supervisor_takes_it_over_too(shop):
    write(shop, 10)
    nobody = kmon("reload", cwd=shop)
    assert (nobody.returncode, "start it with 'kmon up'" in nobody.stderr) == (1, True)
    with running("ingest", cwd=shop) as owner:
        wait_until(lambda: orders(shop) == 10, 60, "the owner answers")
        edit(shop, MEASURE)
        assert reloaded(shop) == ["measure paid added"]
        write(shop, 5)
        wait_until(lambda: asked(shop, "SELECT sum(paid)::INT AS n FROM rollup")[0]["n"] == 5, 60, "it is counted")
        edit(shop, (MEASURE[1], MEASURE[0]))
        refused = kmon("reload", cwd=shop)
        assert (refused.returncode, "'paid' is gone" in refused.stderr) == (2, True)
        edit(shop, ("# forget: [channel]", "forget: [paid]     "))
        assert reloaded(shop) == ["measure paid removed", "forget changed"]
        for good, bad, said in NAMED:
            edit(shop, (good, bad))
            refused = kmon("reload", cwd=shop)
            assert (refused.returncode > 0, said in refused.stderr, refused.stderr.count("\n")) == (True, True, 1)
            edit(shop, (bad, good))
        edit(shop, MONEY)
        assert reloaded(shop) == ["enrich changed"]
        write(shop, 1, amount=10, currency="USD")
        wait_until(lambda: asked(shop, "SELECT sum(amount)::INT AS n FROM rollup")[0]["n"] == 5, 60, "it is in euros")
        assert owner.process.poll() is None
    assert orders(shop) == 16
