"""What a question may cost the owner of the store, and that nothing a reader sends ends it."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kmon.config import Queries
from kmon.errors import StoreError
from kmon.store import EmbeddedStore, RemoteStore, connect, serving
from kmon.store.serving import end_sessions, host_and_port
from tests.store.conftest import TOKEN, free_address

LIMITS = Queries(timeout=dt.timedelta(seconds=3), memory=500_000_000, disk=1_000_000_000)
CANCELLED = "the query took longer than 3s and was cancelled: narrow it by time or partner"
ENDLESS = [
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
    "SELECT count(*) FROM generate_series(1, 1000000000000000)",
    "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 7",
    "SELECT sum(range) OVER (ORDER BY hash(range)) FROM range(3000000000)",
    "SELECT * FROM range(3000000000) ORDER BY hash(range)",
]
GREEDY = [
    "SELECT length(string_agg(repeat('x', 1000000), ',')) FROM range(100000)",
    "SELECT list(range) FROM range(3000000000)",
    "SELECT length(repeat('x', 1000000000000))",
    "SELECT len(range(1000000000000))",
]
BOMBS = {
    "parentheses": "SELECT " + "(" * 100_000 + "1" + ")" * 100_000,
    "terms": "SELECT 1" + "+1" * 100_000,
    "deep terms": "SELECT 1" + "+1" * 900,
    "subqueries": "SELECT * FROM (" * 30_000 + "SELECT 1" + ")" * 30_000,
    "lists": "SELECT " + "[" * 50_000 + "]" * 50_000,
    "casts": "SELECT 1" + "::INT" * 100_000,
    "joins": "SELECT 1 FROM range(1)" + ", range(1)" * 20_000,
    "long": "SELECT '" + "x" * 2_000_000 + "'",
    "comment": "SELECT 1 " + "/*" * 100_000,
}


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def served(store: EmbeddedStore, address: str) -> Iterator[RemoteStore]:
    with serving(store, address, TOKEN, LIMITS), connect(address, TOKEN) as remote:
        yield remote


@pytest.mark.parametrize("endless", ENDLESS)
def test_a_question_that_takes_too_long_is_cancelled_at_the_store(served, endless):
    with pytest.raises(StoreError) as caught:
        served.sql(endless)
    assert str(caught.value) in (CANCELLED, CANCELLED.replace("took longer than 3s", "needed too much memory"))
    assert served.sql("SELECT 1 AS one").item() == 1


ASK = "import sys; from kmon.store import connect; connect(*sys.argv[1:3]).sql(sys.argv[3])"


def test_a_question_whose_reader_was_killed_is_cancelled_too(store, address):
    with serving(store, address, TOKEN, LIMITS) as readers:
        with subprocess.Popen([sys.executable, "-c", ASK, address, TOKEN, ENDLESS[0]]) as reader:
            wait_until(lambda: any("RECURSIVE" in question.text for question in tuple(readers._running)), 30.0)
            reader.kill()
        wait_until(lambda: readers.tally.cancelled == 1)
        assert not readers._running


@pytest.mark.parametrize("greedy", GREEDY)
def test_a_question_that_needs_too_much_memory_fails_alone(served, store, commit, greedy):
    with pytest.raises(StoreError):
        served.sql(greedy)
    commit({})
    assert served.sql("SELECT count(*)::INT FROM rollup").item() == 1


def test_ingestion_goes_on_beside_heavy_questions(store, served, commit):

    def ask() -> None:
        with pytest.raises(StoreError):
            served.sql(ENDLESS[2])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        commit({})
    assert served.sql("SELECT count(*)::INT FROM rollup").item() == store.positions()["test", 0]


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_text_ends_the_owner(served, bomb):
    with pytest.raises(StoreError):
        served.sql(BOMBS[bomb])
    assert served.sql("SELECT 1 AS one").item() == 1


@pytest.mark.parametrize("body", [b"", b"\x00" * 50, b"\xff" * 5000, b"\x01\x00\x03\x02\x00\x20" + b"f" * 10])
def test_no_bytes_end_the_owner(served, address, body):
    there = http.client.HTTPConnection(*host_and_port(address), timeout=5)
    there.request("POST", "/quack", body)
    there.getresponse().read()
    there.close()
    assert served.sql("SELECT 1 AS one").item() == 1


def test_many_readers_at_once(store, address, commit):
    commit(*({} for _ in range(7)))
    found: list[int] = []
    with serving(store, address, TOKEN), connect(address, TOKEN) as remote:
        text = "SELECT sum(events)::INT FROM rollup"
        threads = [threading.Thread(target=lambda: found.append(remote.sql(text).item())) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [7] * 50


def test_the_results_of_readers_are_let_go(store, served):
    for number in range(20):
        assert served.sql(f"SELECT {number} AS n").item() == number
    held = "SELECT count(*)::INT FROM duckdb_databases() WHERE database_name LIKE 'kmon_result_%'"
    wait_until(lambda: store.sql(held).item() <= 1)


def test_results_do_not_crowd_out_ingestion(store, address, commit):
    held = "SELECT count(*)::INT FROM duckdb_databases() WHERE database_name LIKE 'kmon_result_%'"
    large = "SELECT range::VARCHAR || repeat('x', 100) AS text FROM range(120_000)"
    little = Queries(memory=150_000_000, disk=30_000_000)
    answers = []
    with serving(store, address, TOKEN, little), contextlib.ExitStack() as readers:

        def some_are_let_go() -> bool:
            with contextlib.suppress(StoreError):  # cancelled: too much is held, and nothing of it for long enough yet
                answers.append(readers.enter_context(connect(address, TOKEN)).sql(large).height)
            return store.sql(held).item() < len(answers)

        wait_until(some_are_let_go, 30.0)  # long before they would go by themselves
        assert set(answers) == {120_000}
        commit({})


def test_sessions_of_readers_that_are_gone_are_ended(store, served, address):
    assert served.sql("SELECT 1 AS one").item() == 1
    count = "SELECT count(*)::INT FROM quack_active_connections()"
    assert store.sql(count).item() == 1
    assert end_sessions(store.connection, address, dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)) == 1
    assert store.sql(count).item() == 0
    assert served.sql("SELECT 2 AS two").item() == 2  # a reader that is not gone connects again


def test_a_reader_is_never_stuck_with_an_owner_that_does_not_answer():
    with socket.create_server(("localhost", 0)) as silent:
        address = f"quack:localhost:{silent.getsockname()[1]}"
        with pytest.raises(StoreError, match=r"did not answer within 1 s: is its owner overloaded\?"):
            RemoteStore(address, TOKEN, patience=0, limit=1)


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
