"""Rows move down the tiers and are deleted when they are old: no total ever changes before."""

from __future__ import annotations

import datetime as dt
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import hypothesis
import hypothesis.strategies as st
import pytest

from kmon.errors import StoreError
from kmon.sources import Move
from kmon.store import Commit, DeadLetter, EmbeddedStore, Span
from kmon.store.upkeep import Upkeep, upkeep_thread
from tests.conftest import DAY, TEMPLATE, T, frame, settle
from tests.store.conftest import HOUR, MINUTE, SECOND

NOON = T + 12 * HOUR
"""The end of the day of T."""


def kept(config, **updates):
    return config.model_copy(update={"keep": config.keep.model_copy(update=updates)})


def everything(store, unit="day"):
    """All answers that upkeep must not change."""
    measures = ", ".join(f"round(sum({m}), 6) AS {m}" for m in store.schema.measures)
    dimensions = ", ".join(store.schema.dimensions)
    return store.sql(
        f"SELECT date_trunc('{unit}', bucket) AS b, {dimensions}, {measures} FROM rollup GROUP BY ALL ORDER BY ALL"
    )


def rows(store):
    return {tier.removeprefix("rollup_"): found["rows"] for tier, found in store.status()["tiers"].items()}


# ---- moving ----------------------------------------------------------------------------------------------------------


def test_moving_changes_no_answer(store, config, commit, filled):
    before = everything(store, "minute")
    assert settle(store, config, minutes=T - HOUR) == 1
    assert (rows(store), everything(store, "minute").equals(before)) == ({"10s": 4, "1m": 2, "1h": 0}, True)
    assert settle(store, config, minutes=T - HOUR) == 0
    settle(store, config, minutes=T + HOUR)
    assert (rows(store), everything(store, "minute").equals(before)) == ({"10s": 0, "1m": 5, "1h": 0}, True)
    before = everything(store, "hour")
    settle(store, config, hours=NOON)
    assert (rows(store), everything(store, "hour").equals(before)) == ({"10s": 0, "1m": 0, "1h": 5}, True)


def test_only_whole_hours_become_minutes_and_only_whole_days_hours(store, config, commit):
    commit({"event_time": T - SECOND}, {}, {"event_time": T + HOUR})
    settle(store, config, minutes=T + 90 * MINUTE)
    assert rows(store) == {"10s": 1, "1m": 2, "1h": 0}
    settle(store, config, minutes=NOON, hours=NOON - MINUTE)
    assert rows(store) == {"10s": 0, "1m": 3, "1h": 0}
    assert store.sql("SELECT bucket FROM rollup ORDER BY 1").to_series().to_list() == [
        (T - MINUTE).replace(tzinfo=None), T.replace(tzinfo=None), (T + HOUR).replace(tzinfo=None),
    ]  # fmt: skip


@pytest.mark.parametrize(("late", "rows_then"), [(1, 9), (3, 8)])
def test_late_events_are_rows_more_or_merged_where_they_are_many(store, config, commit, late, rows_then):
    commit(*({"partner": f"p{i}"} for i in range(8)))
    settle(store, config, minutes=T + HOUR)
    commit(*({"partner": f"p{i}"} for i in range(late)))
    assert rows(store) == {"10s": late, "1m": 8, "1h": 0}
    settle(store, config, minutes=T + HOUR)
    assert rows(store) == {"10s": 0, "1m": rows_then, "1h": 0}
    assert store.totals({}, T, T + MINUTE)["sessions"] == 8 + late
    assert store.measures({"partner": "p0"}, T, T + MINUTE)["sessions"].to_list() == [2]


def test_smallest_and_largest_are_merged_as_such(tmp_path, config):
    measures = {"least": "min(amount)", "most": "max(amount) FILTER (status = 'ok')", "sum": "sum(amount)"}
    config = config.model_copy(update={"measures": measures, "metrics": {}})
    with EmbeddedStore(tmp_path / "k.duckdb", config) as store:
        for i, amount in enumerate([5.0, 2.0, 9.0, None]):
            store.commit(Commit([Move("f", 0, i, i + 1)], frame({"amount": amount, "event_time": T + i * SECOND})))
        for moved in ({}, {"minutes": T + HOUR}, {"hours": NOON}):
            if moved:
                settle(store, config, **moved)
            assert store.totals({}, T, T + HOUR) == {"events_": 4, "least": 2.0, "most": 9.0, "sum": 16.0}


def test_a_block_moves_in_steps_and_is_sorted_by_the_dimension_with_most_values(tmp_path, config):
    dimensions = ("country", "partner")
    config = kept(config.model_copy(update={"dimensions": dimensions}), ten_seconds=0 * HOUR)
    with EmbeddedStore(tmp_path / "k.duckdb", config) as store:
        events = [{"partner": f"p{i % 50}", "country": "SE", "event_time": T + i * SECOND} for i in range(500)]
        store.commit(Commit([Move("f", 0, 0, 500)], frame(*events)))
        assert Upkeep(store, config, step=100).run(T + HOUR, T) == 5
        numbers = store.sql("SELECT partner, bucket FROM rollup_1m")
        assert numbers.equals(numbers.sort("partner", "bucket"))
        assert store.totals({}, T, T + HOUR)["sessions"] == 500


def test_deltas_are_sorted_where_they_are_when_their_half_hour_has_closed(store, config):
    upkeep = Upkeep(store, config, step=100)
    upkeep.run(T, T)
    events = [{"partner": f"p{i % 50}", "event_time": T + i * 5 * SECOND} for i in range(600)]
    for i in range(0, 600, 100):
        store.commit(Commit([Move("f", 0, i, i + 100)], frame(*events[i : i + 100])))
    before = everything(store, "minute")
    assert upkeep.run(T + 50 * MINUTE, T) == 4
    half_hour = f"TIMESTAMP '{(T + 30 * MINUTE).replace(tzinfo=None)}'"
    closed = store.sql(f"SELECT partner, bucket FROM rollup_10s WHERE bucket < {half_hour}")
    assert (closed.height, closed.equals(closed.sort("partner", "bucket"))) == (360, True)
    still = store.sql(f"SELECT partner, bucket FROM rollup_10s WHERE bucket >= {half_hour}")
    assert (still.height, still.equals(still.sort("partner", "bucket"))) == (240, False)
    assert everything(store, "minute").equals(before)
    assert upkeep.run(T + 59 * MINUTE, T) == 0


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.data())
def test_upkeep_at_any_time_changes_no_total(tmp_path_factory, config, data):
    """Whatever comes when, and whenever upkeep runs in how small steps, and wherever it is stopped."""
    places, times = st.integers(0, 3), st.integers(0, 5 * 24 * 360 - 1)
    operations = st.lists(
        st.one_of(
            st.lists(st.tuples(places, times, st.integers(1, 99)), min_size=1, max_size=5),
            st.tuples(st.integers(0, 6 * 24), st.integers(1, 4), st.integers(0, 3)),
        ),
        max_size=8,
    )
    measures = {"n": "count(*)", "total": "sum(amount)", "least": "min(amount)", "most": "max(amount)"}
    config = kept(config.model_copy(update={"measures": measures, "metrics": {}}), ten_seconds=HOUR, minutes=DAY)
    seen = []
    with EmbeddedStore(tmp_path_factory.mktemp("any") / "k.duckdb", config) as store:
        for operation in data.draw(operations):
            if isinstance(operation, list):
                events = [
                    {"partner": f"p{p}", "event_time": T + t * 10 * SECOND, "amount": float(a)} for p, t, a in operation
                ]
                move = Move("f", 0, len(seen), len(seen) + len(events))
                store.commit(Commit([move], frame(*events)))
                seen += events
            else:
                hours, step, steps = operation
                Upkeep(store, config, step=step).run(T + hours * HOUR, T, Limit(steps))
            for partner in {event["partner"] for event in seen}:
                mine = [e["amount"] for e in seen if e["partner"] == partner]
                total = store.totals({"partner": partner}, T - DAY, T + 9 * DAY)
                assert total == {
                    "events_": len(mine), "n": len(mine), "total": sum(mine), "least": min(mine), "most": max(mine)
                }  # fmt: skip


@dataclass
class Limit(threading.Event):
    """Set after so many looks."""

    left: int

    def __post_init__(self) -> None:
        super().__init__()

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


# ---- an hour is no minute --------------------------------------------------------------------------------------------


@pytest.fixture
def old(store, config, commit):
    """Two hours of a month ago, in the hour tier."""
    commit(*({"event_time": T - 28 * DAY + i * MINUTE, "partner": f"p{i % 2}"} for i in range(120)))
    settle(store, config, hours=T)


@pytest.mark.parametrize(
    ("width", "start", "found"),
    [
        (5 * MINUTE, T, []),
        (MINUTE, T, []),
        (HOUR, T, [(0, 60), (1, 60)]),
        (2 * HOUR, T, [(0, 120)]),
        (2 * HOUR, T - HOUR, [(0, 60), (1, 60)]),
        (HOUR, T - 30 * MINUTE, []),
        (90 * MINUTE, T, []),
    ],
)
def test_a_window_takes_no_bucket_that_does_not_fit_into_it(reader, old, width, start, found):
    windows = reader.windows([Span("day28", start - 28 * DAY, 2, width)], [[]])
    assert sorted(windows.select("slot", "events_").rows()) == found
    assert reader.measures({}, start - 28 * DAY, start - 28 * DAY + 2 * width, width)["events_"].to_list() == [
        n for _, n in found
    ]


def test_what_is_left_of_a_block_that_moves_is_no_reference(reader, store, config, commit):
    commit(*({"partner": f"p{i}"} for i in range(4)), {"event_time": NOON, "partner": "p0"})
    settle(store, config, minutes=NOON + HOUR)
    config = kept(config, minutes=0 * DAY)
    assert Upkeep(store, config, step=1).run(NOON + HOUR, T, Limit(2)) == 3
    assert rows(store) == {"10s": 0, "1m": 2, "1h": 3}
    assert reader.windows([Span("day", T, 1, 5 * MINUTE)], [[]]).height == 0
    assert reader.windows([Span("now", NOON, 1, MINUTE)], [[]])["events_"].to_list() == [1]
    assert reader.windows([Span("now", NOON - 40 * SECOND, 1, MINUTE)], [[]]).height == 0  # half of it is gone
    assert reader.windows([Span("day", T, 1, HOUR)], [[]])["events_"].to_list() == [4]
    assert reader.totals({}, T, NOON)["sessions"] == 4


# ---- what is too old -------------------------------------------------------------------------------------------------


def test_hours_are_kept_so_long(store, config, commit):
    commit({}, {"event_time": T + DAY}, {"event_time": T + 2 * DAY})
    config = kept(config, ten_seconds=0 * HOUR, minutes=0 * HOUR, hours=DAY)
    Upkeep(store, config).run(T + 3 * DAY, T)
    assert rows(store) == {"10s": 0, "1m": 0, "1h": 1}
    assert store.totals({}, T, T + 9 * DAY)["sessions"] == 1


def test_dead_letters_are_kept_so_long_by_the_clock_and_counted_for_good(store, config):
    store.commit(Commit([Move("f", 0, 0, 1)], frame({})[:0], dead_letters=[DeadLetter("f", 0, 0, "not JSON", 1, b"x")]))
    now = dt.datetime.now(dt.UTC)
    for later, left in ((29 * DAY, 1), (31 * DAY, 0)):
        Upkeep(store, config).run(None, now + later)
        assert store.sql("SELECT count(*) FROM dead_letters").item() == left
    assert store.status()["dead_letters"] == {"not JSON": 1}


@pytest.mark.parametrize(
    ("keep", "mark", "left"),
    [
        ({}, T + HOUR, [0, 1, 2, 3, 4]),
        ({}, T + 2 * HOUR + 3 * MINUTE, [3, 4]),
        ({"raw": 0 * HOUR}, T + 5 * MINUTE, []),
        ({"raw_bytes": 250}, T + HOUR, [3, 4]),
        ({"raw_bytes": 99}, T + HOUR, []),
        ({"raw_bytes": 500}, T + HOUR, [0, 1, 2, 3, 4]),
    ],
)
def test_whole_events_are_kept_so_long_and_so_many(store, config, keep, mark, left):
    for i in range(5):
        store.connection.execute(
            "INSERT INTO raw_events(event_time, source, partition, position, size, document)"
            f" VALUES (TIMESTAMP '{(T + i * MINUTE).replace(tzinfo=None)}', 'f', 0, {i}, 100, '{{}}')"
        )
    Upkeep(store, kept(config, **keep)).run(mark, T)
    assert store.sql("SELECT position FROM raw_events ORDER BY 1").to_series().to_list() == left


def test_the_file_does_not_grow_with_what_is_gone(tmp_path, config):
    """Weeks of the same load: what is deleted makes room for what comes."""
    config, path, sizes = kept(config, ten_seconds=HOUR, minutes=DAY, hours=2 * DAY), tmp_path / "k.duckdb", []
    with EmbeddedStore(path, config) as store:
        upkeep, connection = Upkeep(store, config), store.connection
        connection.execute("INSERT INTO dim_partner SELECT i, 'p' || i FROM range(1, 2001) t(i)")
        for day in range(12):
            begin = (T + day * DAY).replace(tzinfo=None)
            connection.execute(
                "INSERT INTO rollup_10s BY NAME SELECT TIMESTAMP"
                f" '{begin}' + to_seconds(i % 86400) AS bucket, 1 + hash(i * {day + 1}) % 2000 AS partner,"
                " 1 AS events_, 1 AS sessions, random() AS amount FROM range(30000) t(i)"
            )
            upkeep.run(T + (day + 1) * DAY, T)
            connection.execute("CHECKPOINT")
            sizes.append(path.stat().st_size)
        assert rows(store)["1h"] < 200_000
    assert max(sizes[8:]) <= 1.3 * max(sizes[4:8])


# ---- beside ingestion ------------------------------------------------------------------------------------------------


def test_commits_go_on_while_hours_are_compacted(store, config):
    """Neither is refused, and each total that a reader sees is one that was committed."""
    batch = frame(*({"partner": f"p{i}", "event_time": T + i * SECOND} for i in range(3000)))
    store.commit(Commit([Move("f", 0, 0, 1)], batch))
    upkeep, totals, done = Upkeep(store, kept(config, ten_seconds=0 * HOUR), step=100), [], threading.Event()

    def compact() -> None:
        while not done.is_set():
            upkeep._reached.clear()
            upkeep.run(T + HOUR, T)

    def read() -> None:
        while not done.is_set():
            totals.append(store.totals({}, T, T + HOUR)["sessions"])

    threads = [threading.Thread(target=compact), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for i in range(1, 30):
        store.commit(Commit([Move("f", 0, i, i + 1)], batch[:100]))
    done.set()
    for thread in threads:
        thread.join()
    assert set(totals) <= {3000 + i * 100 for i in range(30)}
    assert sorted(totals) == totals
    assert store.totals({}, T, T + HOUR)["sessions"] == 3000 + 29 * 100


def test_a_conflict_puts_upkeep_off(store, config, commit):
    commit({"partner": "a"}, {"partner": "b"})
    config = kept(config, ten_seconds=0 * HOUR)
    upkeep = Upkeep(store, config)
    begun = store.connection.cursor()
    begun.execute("BEGIN")
    begun.execute("DELETE FROM rollup_10s")
    assert upkeep.run(T + HOUR, T) == 0
    begun.execute("ROLLBACK")
    assert upkeep.run(T + HOUR, T) == 1
    assert rows(store) == {"10s": 0, "1m": 2, "1h": 0}


def test_an_error_of_upkeep_stops_the_run_and_is_told(store, config, commit):
    commit({})
    settle(store, config, minutes=T - HOUR)
    stop = threading.Event()
    store.connection.execute("DROP TABLE tiers")
    store.connection.execute("CREATE TABLE tiers(x INTEGER)")

    def run() -> None:
        with upkeep_thread(store, kept(config, ten_seconds=0 * HOUR), stop, every=0.01):
            commit({"event_time": T + 3 * HOUR})
            assert stop.wait(30)

    with pytest.raises(StoreError, match="cannot be written: "):
        run()


@pytest.mark.parametrize(("looked_at", "left"), [(None, 2), (T - HOUR, 3), (T - 4 * HOUR, 5)])
def test_upkeep_waits_for_whoever_looks_at_the_store_later(store, config, commit, looked_at, left):
    """A replay commits months in one batch, and then looks at each of their hours."""
    commit(*({"event_time": T + n * HOUR} for n in range(-3, 2)))
    upto = None if looked_at is None else lambda: looked_at
    with upkeep_thread(store, kept(config, ten_seconds=0 * HOUR), threading.Event(), upto=upto):
        pass
    assert rows(store)["10s"] == left


WORKER = """
import json, sys, datetime as dt
from kmon.config import load_config
from kmon.store import EmbeddedStore
from kmon.store.upkeep import Upkeep
config = load_config(sys.argv[1])
with EmbeddedStore(sys.argv[2], config) as store:
    mark = dt.datetime.fromisoformat(sys.argv[3])
    print("ready", flush=True)
    print(Upkeep(store, config, step=int(sys.argv[4])).run(mark, mark))
"""


def test_killed_in_the_middle_nothing_changes(tmp_path, config):
    path, rng, ends = tmp_path / "k.duckdb", random.Random(7), []
    with EmbeddedStore(path, config) as store:
        store.connection.execute("INSERT INTO dim_partner SELECT i, 'p' || i FROM range(1, 301) t(i)")
        store.connection.execute(
            f"INSERT INTO rollup_10s BY NAME SELECT TIMESTAMP '{T.replace(tzinfo=None)}' + to_seconds(i) AS bucket,"
            " 1 + hash(i) % 300 AS partner, 1 AS events_, 1 AS sessions, i % 7 AS amount FROM range(50000) t(i)"
        )
        before = everything(store, "hour")
    for kill in range(6):
        mark = T + config.keep.minutes + kill * 6 * HOUR
        command = [sys.executable, "-c", WORKER, str(TEMPLATE), str(path), mark.isoformat(), "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
        ends.append(process.returncode)
        with EmbeddedStore(path, config, read_only=True) as store:
            assert everything(store, "hour").equals(before)
    assert ends.count(-signal.SIGKILL) > 2
    with EmbeddedStore(path, config) as store:
        Upkeep(store, config).run(T + config.keep.minutes + 9 * DAY, T)
        assert rows(store)["1m"] == 0
        assert everything(store, "hour").equals(before)
