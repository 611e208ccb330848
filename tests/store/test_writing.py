from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading

import duckdb
import pytest

from kmon.config import Config
from kmon.errors import ConfigError, OffsetConflictError, StoreBusyError, StoreError
from kmon.sources import Move
from kmon.store import Commit, DeadLetter, EmbeddedStore
from tests.conftest import T, frame, settle
from tests.store.conftest import HOUR, MINUTE

SESSION = frame({})


def changed(config: Config, **updates: object) -> Config:
    return config.model_copy(update=updates)


def test_a_commit_moves_offset_clock_rows_and_dead_letters_at_once(store):
    letter = DeadLetter("f", 2, 1, "not JSON", 4, b"\xff\x00ab")
    store.commit(Commit([Move("f", 2, 0, 2)], SESSION, {"a": T}, [letter]))
    assert store.positions() == {("f", 2): 2}
    assert store.clocks() == {"a": T}
    found = store.sql("SELECT source, partition, position, reason, size, raw FROM dead_letters").rows()
    assert found == [("f", 2, 1, "not JSON", 4, b"\xff\x00ab")]
    assert store.status()["dead_letters"] == {"not JSON": 1}


@pytest.mark.parametrize("first", [0, 1, 3, 99])
def test_a_batch_that_is_not_next_changes_nothing(store, first):
    store.commit(Commit([Move("f", 0, 0, 2)], SESSION))
    with pytest.raises(OffsetConflictError, match=f"f: the store is at position 2, this batch begins at {first}"):
        store.commit(
            Commit([Move("f", 0, first, 9)], frame({"partner": "new"}), {"0": T}, [DeadLetter("f", 0, 0, "x", 1, b"")])
        )
    assert (store.positions(), store.clocks()) == ({("f", 0): 2}, {})
    assert store.number("partner", "new") is None
    store.commit(Commit([Move("f", 0, 2, 3)], frame({"partner": "new"})))
    assert store.totals({"partner": "new"}, T, T + MINUTE)["sessions"] == 1


def test_a_clock_never_goes_back(store):
    store.commit(Commit([Move("f", 0, 0, 1)], SESSION, {"0": T}))
    store.commit(Commit([Move("f", 0, 1, 2)], SESSION, {"0": T - HOUR, "1": T - HOUR}))
    assert store.clocks() == {"0": T, "1": T - HOUR}


def test_a_commit_without_events(store):
    store.commit(Commit([Move("f", 0, 0, 5)], SESSION[:0]))
    assert store.positions() == {("f", 0): 5}


def test_a_measure_that_fails_changes_nothing(tmp_path, config):
    config = changed(config, measures={"odd": "sum(CASE WHEN status = 'ok' THEN 1 ELSE error('no') END)"})
    with EmbeddedStore(tmp_path / "k.duckdb", config) as store:
        with pytest.raises(StoreError, match=r"k.duckdb cannot be written: no"):
            store.commit(Commit([Move("f", 0, 0, 1)], frame({"status": "error", "partner": "new"})))
        assert (store.positions(), store.number("partner", "new")) == ({}, None)
        store.commit(Commit([Move("f", 0, 0, 1)], SESSION))


def test_missing_values_are_counted_and_are_no_values(store, commit):
    commit({"partner": None}, {"partner": None}, {"country": "SE"})
    assert store.totals({}, T, T + MINUTE)["sessions"] == 3
    assert store.values("partner", {}, T, T + MINUTE, 9).rows() == [("p1", 1)]
    assert store.sql("SELECT partner, sum(sessions)::INT AS n FROM rollup GROUP BY 1 ORDER BY 1").rows() == [
        ("p1", 1),
        (None, 2),
    ]


def test_sums_of_whole_numbers_do_not_overflow(tmp_path, config):
    measures = {"total": "sum(partition)", "some": "count_if(partition > 0)"}
    with EmbeddedStore(tmp_path / "k.duckdb", changed(config, measures=measures)) as store:
        events = SESSION.with_columns(partition=2**62)
        for i in range(4):
            store.commit(Commit([Move("f", 0, i, i + 1)], events))
        assert store.totals({}, T, T + MINUTE) == {"events_": 4, "total": 2.0**64, "some": 4}
        assert store.schema.measures["some"].type == "BIGINT"


# ---- changes of the configuration ------------------------------------------------------------------------------------


def test_new_dimensions_and_measures_keep_history(tmp_path, config):
    path, end = tmp_path / "k.duckdb", T + MINUTE
    old = changed(config, dimensions=("country",), measures={"sessions": config.measures["sessions"]})
    with EmbeddedStore(path, old) as store:
        store.commit(Commit([Move("f", 0, 0, 1)], frame({"country": "SE"})))
    measures = {"amount": "sum(amount)", "sessions": config.measures["sessions"]}
    with EmbeddedStore(path, changed(config, dimensions=("partner", "country"), measures=measures)) as store:
        store.commit(Commit([Move("f", 0, 1, 2)], frame({"country": "SE", "amount": 7.0})))
        for _ in range(2):
            assert store.totals({"country": "SE"}, T, end) == {"events_": 2, "amount": 7.0, "sessions": 2}
            assert store.totals({"partner": "p1", "country": "SE"}, T, end)["sessions"] == 1
            assert store.values("partner", {}, T, end, 9).rows() == [("p1", 1)]
            settle(store, config, minutes=T + HOUR)
    with EmbeddedStore(path) as store:
        assert store.schema.dimensions == ("partner", "country")


def test_another_order_of_dimensions_mixes_nothing_up(tmp_path, config):
    for i, names in enumerate([("partner", "country"), ("country", "partner")]):
        with EmbeddedStore(tmp_path / "k.duckdb", changed(config, dimensions=names)) as store:
            store.commit(Commit([Move("f", 0, i, i + 1)], frame({"country": "SE"})))
            settle(store, config, minutes=T + HOUR)
            assert store.totals({"partner": "p1", "country": "SE"}, T, T + MINUTE)["sessions"] == i + 1


IMPOSSIBLE = {
    "sum(nothing(amount))": "not valid SQL: ",
    "sum(partner)": "not valid SQL: ",
    "max(ts)": "and a measure is",
}


@pytest.mark.parametrize("expression", IMPOSSIBLE)
def test_a_measure_that_cannot_be_is_one_sentence(tmp_path, config, expression):
    with pytest.raises(ConfigError, match=rf"kmon.yaml: measures.odd: .*{IMPOSSIBLE[expression]}") as caught:
        EmbeddedStore(tmp_path / "k.duckdb", changed(config, measures={"odd": expression}))
    assert "\n" not in str(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_reading_needs_no_configuration_and_writes_nothing(store, tmp_path, filled):
    store.close()
    with EmbeddedStore(tmp_path / "kmon.duckdb", read_only=True) as opened:
        assert opened.totals({}, T, T + MINUTE)["sessions"] == 2
        with pytest.raises(StoreError, match="cannot be written"):
            opened.commit(Commit([Move("f", 0, 0, 1)], SESSION))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.duckdb", "database does not exist"),
        ("blocks/locked permission.duckdb", "cannot be opened as a store"),
        ("folder", "cannot be opened as a store"),
        ("text.duckdb", "not a valid DuckDB database file"),
        ("empty.duckdb", "is not a kmon store: fill one with 'kmon ingest' first"),
    ],
)
def test_what_is_no_store_is_one_sentence(tmp_path, name, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.duckdb").write_text("hello " * 100)
    duckdb.connect(tmp_path / "empty.duckdb").close()
    with pytest.raises(StoreError, match=says) as caught:
        EmbeddedStore(tmp_path / name, read_only=True)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, StoreBusyError)


def test_another_process_is_told_who_owns_the_store(store, tmp_path):
    code = (
        "import sys; from kmon.errors import StoreBusyError; from kmon.store import EmbeddedStore\n"
        "try: EmbeddedStore(sys.argv[1], read_only=True)\n"
        "except StoreBusyError as error: print(error)"
    )
    path = tmp_path / "kmon.duckdb"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    owner = f"{path} is owned by another process (pid {os.getpid()})"
    assert done.stdout.startswith(f"{owner}: read it through its quack: address, stop that process, or wait for its")
    assert (done.stdout.count("\n"), "--standby" in done.stdout) == (1, True)


def test_closing_lets_go_whichever_threads_have_read(store, tmp_path, filled):
    threads = [threading.Thread(target=store.newest) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    store.newest()
    store.close()
    with EmbeddedStore(tmp_path / "kmon.duckdb", read_only=True):  # another configuration: refused while it is open
        pass
    with pytest.raises(StoreError):
        store.newest()


def test_reading_while_writing(store, config):
    totals, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            totals.append(store.totals({}, T, T + HOUR)["sessions"])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(40):
        store.commit(
            Commit([Move("f", 0, i, i + 1)], frame({"partner": f"p{i}"}, {"event_time": T + dt.timedelta(minutes=i)}))
        )
        if i % 10 == 9:
            settle(store, config, minutes=T + dt.timedelta(hours=i))
    stop.set()
    for thread in threads:
        thread.join()
    assert set(totals) <= set(range(0, 81, 2))
    assert store.totals({}, T, T + HOUR)["sessions"] == 80


def test_two_writers_in_one_process_cannot_commit_the_same_batch(store):
    outcomes = []

    def write() -> None:
        try:
            store.commit(Commit([Move("f", 0, 0, 1)], SESSION))
            outcomes.append("done")
        except OffsetConflictError:
            outcomes.append("refused")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done", "refused", "refused", "refused"]
