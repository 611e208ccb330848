from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import numpy as np
import pytest

from kmon.errors import StoreError
from kmon.ingest import Ingestion
from kmon.sources import Move, RawBatch
from kmon.sources.files import FilesSource, Limits
from kmon.store import EmbeddedStore
from tests.conftest import T

SECOND, MINUTE = dt.timedelta(seconds=1), dt.timedelta(minutes=1)


def line(seconds: float, **fields: object) -> bytes:
    return json.dumps({"ts": (T + seconds * SECOND).isoformat(), "operation": "session", **fields}).encode() + b"\n"


def batch(*lines: bytes, first: int = 0, source: str = "f") -> RawBatch:
    return RawBatch.consecutive(source, 0, first, b"".join(lines), len(lines))


def steps_of(config, store, *batches, step=MINUTE):
    """Each step that was called, in minutes after T, with the events in the store at that moment."""
    seen = []
    total = "SELECT sum(events_)::BIGINT FROM cells"
    run = Ingestion(
        config, store, step=step, on_step=lambda at: seen.append(((at - T) / MINUTE, store.sql(total).item()))
    )
    for each in (*batches, None):
        run.emit(each)
    return seen


def test_totals_and_progress(config, store, tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(line(0) + b"junk\n" + line(100, amount=3) + line(20) + line(95))
    told = []
    done = Ingestion(config, store, on_batch=told.append).run(FilesSource([path]))
    assert (done.events, done.dead_letters, done.late) == (4, 1, 1)
    assert told[-1] == done
    assert store.positions() == {(str(path), 0): 5}
    assert store.totals({}, T, T + 2 * MINUTE)["sessions"] == 4
    assert store.clocks() == {"0": T + 100 * SECOND}
    assert store.sql("SELECT source, position, reason, raw FROM dead_letters").rows() == [
        (str(path), 1, "not JSON", b"junk")
    ]


def test_the_same_file_again_changes_nothing(config, store, tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"".join(line(i) for i in range(50)))
    assert Ingestion(config, store).run(FilesSource([path, path])).events == 50
    assert Ingestion(config, store).run(FilesSource([path])).events == 0
    with path.open("ab") as file:
        file.write(line(60))
    assert Ingestion(config, store).run(FilesSource([path])).events == 1
    assert store.totals({}, T, T + 2 * MINUTE)["sessions"] == 51


@pytest.mark.parametrize("records", [1, 3, 1000])
def test_the_size_of_batches_does_not_matter(config, store, tmp_path, records):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"".join(line(i * 7 % 90, partner=f"p{i % 3}") for i in range(200)) + b"x\n")
    done = Ingestion(config, store).run(FilesSource([path], limits=Limits(records)))
    assert (done.events, done.dead_letters) == (200, 1)
    rows = store.sql("SELECT bucket, partner, sum(sessions)::BIGINT AS n FROM rollup GROUP BY ALL ORDER BY ALL")
    assert (rows.height, rows["n"].sum()) == (27, 200)


def test_steps_are_called_in_order_and_only_where_something_was(config, store):
    seen = steps_of(config, store, batch(line(10), line(70), line(130), line(400)))
    assert seen == [(1, 4), (2, 4), (3, 4)]


def test_a_step_is_called_before_an_event_that_comes_too_late_for_it(config, store):
    seen = steps_of(config, store, batch(line(10), line(95), line(20), line(200)))
    assert seen == [(1, 2), (2, 4)]


def test_a_late_event_in_a_later_batch(config, store):
    seen = steps_of(config, store, batch(line(10), line(95)), batch(line(20), line(200), first=2))
    assert seen == [(1, 2), (2, 4)]


def test_a_lagging_partition_holds_the_steps_until_it_is_idle(config, store):
    held = [line(10, partition=0), line(10, partition=1), line(300, partition=0)]
    assert steps_of(config, store, batch(*held)) == []
    again = steps_of(config, store, batch(line(700, partition=0), first=3))
    assert again == [(1, 4), (6, 4)]


def test_a_run_that_goes_on_begins_with_the_steps_that_are_due(config, store):
    Ingestion(config, store).emit(batch(line(10), line(70), line(100)))
    seen = []
    Ingestion(config, store, step=MINUTE, on_step=seen.append).run(FilesSource([]))
    assert seen == [T + MINUTE]


def test_an_absurd_event_neither_moves_time_nor_makes_the_others_late(config, store):
    lines = [line(i) for i in range(100)]
    lines[50] = line(86_400)
    done = Ingestion(config, store)
    done.emit(batch(*lines))
    done.emit(None)
    assert (done.progress.events, done.progress.dead_letters, done.progress.late) == (99, 1, 0)
    assert store.newest() == T + 99 * SECOND


def test_a_failing_step_stops_the_run_and_the_next_run_repeats_it(config, store):
    def fail(at: dt.datetime) -> None:
        message = f"not at {at}"
        raise StoreError(message)

    run = Ingestion(config, store, step=MINUTE, on_step=fail)
    with pytest.raises(StoreError, match="not at"):
        run.emit(batch(line(10), line(95), line(20), line(200)))
    assert (store.positions(), run.progress.events) == ({("f", 0): 2}, 2)
    assert steps_of(config, store, batch(line(20), line(200), first=2)) == [(1, 2), (2, 4)]


def test_a_batch_that_does_not_fit_the_offset_is_refused_whole(config, store):
    run = Ingestion(config, store)
    run.emit(batch(line(0)))
    with pytest.raises(StoreError, match="the store is at position 1, this batch begins at 5"):
        run.emit(batch(line(1), b"junk\n", first=5))
    assert store.status()["dead_letters"] == {}
    assert store.totals({}, T, T + MINUTE)["sessions"] == 1


def test_closed_hours_are_compacted(config, store, tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"".join(line(i) for i in range(0, 6 * 3600, 60)))
    Ingestion(config, store).run(FilesSource([path]))
    tiers = {tier: found["events"] for tier, found in store.status()["tiers"].items()}
    assert tiers == {"rollup_10s": 180, "rollup_1m": 180, "rollup_1h": 0}


def test_numbers_survive_a_restart(config, tmp_path):
    for first, name in enumerate(["a", "b", "a"]):
        with EmbeddedStore(tmp_path / "k.duckdb", config) as store:
            Ingestion(config, store).emit(batch(line(first, partner=name), first=first))
            found = store.values("partner", {}, T, T + MINUTE, 5).rows()
    assert found == [("a", 2), ("b", 1)]


def polled(*records: tuple[int, int, int], unread: dict[int, int] | None = None) -> RawBatch:
    """A poll of topic t: (partition, position, seconds after T) of each record, and what is left by partition."""
    partitions = sorted({partition for partition, _, _ in records})
    of = {p: [position for partition, position, _ in records if partition == p] for p in partitions}
    return RawBatch(
        tuple(Move("t", p, of[p][0], of[p][-1] + 1) for p in partitions),
        b"".join(line(seconds) for _, _, seconds in records),
        len(records),
        lanes=np.array([partitions.index(partition) for partition, _, _ in records], np.int32),
        positions=np.array([position for _, position, _ in records], np.int64),
        written=np.full(len(records), -1),
        unread={("t", p): count for p, count in (unread or {}).items()},
    )


def mark(store):
    return store.watermark(30 * SECOND, 10 * MINUTE)


def test_one_commit_moves_the_offsets_of_all_partitions_of_a_poll(config, store):
    run = Ingestion(config, store)
    run.emit(polled((0, 0, 10), (1, 0, 20), (0, 1, 30), (1, 4, 40)))
    assert store.positions() == {("t", 0): 2, ("t", 1): 5}
    assert store.clocks() == {"t/0": T + 30 * SECOND, "t/1": T + 40 * SECOND}
    assert (run.progress.batches, run.progress.events) == (1, 4)


def test_a_partition_with_unread_records_holds_the_watermark_however_far_behind(config, store):
    run = Ingestion(config, store)
    run.emit(polled((0, 0, 10), (1, 0, 20), unread={1: 3}))
    run.emit(polled((0, 1, 5000), unread={1: 3}))
    assert mark(store) == T - 10 * SECOND
    tick = RawBatch((), b"", 0, unread=None)  # not known: as before
    run.emit(tick)
    assert mark(store) == T - 10 * SECOND
    run.emit(replace(tick, unread={("t", 1): 0}))
    assert mark(store) == T + 4970 * SECOND


def test_what_a_source_names_no_more_has_nothing_unread(config, store):
    before = Ingestion(config, store)
    before.emit(polled((0, 0, 10), (1, 0, 20), unread={1: 3, 2: 1}))
    assert store.unread() == {"t/0": 0, "t/1": 3, "t/2": 1}
    after = Ingestion(config, store)
    after.emit(batch(line(5000), source="a file"))
    after.emit(None)
    assert store.unread() == {"t/0": 0, "t/1": 0, "t/2": 0, "0": 0}
    assert mark(store) == T + 4970 * SECOND


def test_nothing_is_complete_while_a_partition_with_unread_records_was_never_heard_of(config, store):
    run = Ingestion(config, store)
    run.emit(polled((0, 0, 10), (0, 1, 5000), unread={1: 2}))
    assert (mark(store), run._clock.watermark) == (None, None)
    again = Ingestion(config, store)  # and a restart changes nothing
    again.emit(polled((1, 0, 20), unread={1: 1}))
    assert mark(store) == again._clock.watermark == T - 10 * SECOND
    again.emit(polled((1, 1, 4990), unread={2: 7}))  # a new one holds it where it was
    assert mark(store) == again._clock.watermark == T - 10 * SECOND
    again.emit(RawBatch((), b"", 0))
    assert mark(store) == again._clock.watermark == T + 4960 * SECOND
    assert again.progress.late == 0


def test_partitions_that_come_one_after_the_other_are_not_late(config, store):
    run = Ingestion(config, store)
    backlog = [(0, n, 1000 * n) for n in range(5)] + [(1, n, 1000 * n) for n in range(5)]
    run.emit(polled(*backlog))
    run.emit(polled(*[(p, n + 5, s + 5000) for p, n, s in backlog]))
    assert (run.progress.late, run.progress.events) == (0, 20)
    assert mark(store) == T + 8970 * SECOND


def test_late_events_are_counted_by_partition(config, store):
    run = Ingestion(config, store)
    run.emit(polled((0, 0, 100), (1, 0, 200)))
    run.emit(polled((0, 1, 20), (0, 2, 120), (1, 1, 210)))
    assert run.progress.late == 1
    assert {c["partition"]: c["late"] for c in store.status()["clocks"]} == {"t/0": 1, "t/1": 0}


def test_a_tick_that_tells_nothing_new_writes_nothing(config, store):
    run = Ingestion(config, store)
    run.emit(polled((0, 0, 10), unread={0: 2}))
    run.emit(RawBatch((), b"", 0, unread={("t", 0): 2}))
    assert run.progress.batches == 1
