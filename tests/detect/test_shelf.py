"""Cubes on disk: who starts afresh goes on where the one before it was, and nothing in the folder can mislead it."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import Shelf, cube, observe, read_ahead, sweep
from kmon.detect.cube import Cube, recall
from kmon.store import EmbeddedStore, Span
from tests.detect.worlds import AT, MINUTE, add, config, shop, traffic


@pytest.fixture
def store() -> Iterator[EmbeddedStore]:
    with shop(traffic(4.0)) as opened:
        yield opened


def shelf(folder: Path, store: EmbeddedStore, **changes: Any) -> Shelf:
    return Shelf.of(folder / "cubes", store, config(**changes))


def values(store: EmbeddedStore, settings: Config, found: Cube, at: dt.datetime) -> Any:
    return found.fleet(store, settings, at, found.watched(settings)).values["sessions"]


def test_another_process_goes_on_where_the_last_one_was(store: EmbeddedStore, tmp_path: Path) -> None:
    first = recall(store, config(), AT - 10 * MINUTE)
    shelf(tmp_path, store).put(first)
    for ago in (8, 3):
        at = AT - ago * MINUTE
        taken = shelf(tmp_path, store).take(first.as_of)
        assert taken is not None
        assert taken.end < at
        taken.advance(store, at)
        shelf(tmp_path, store).put(taken)
        anew = observe(store, config(), at).values["sessions"]
        assert np.array_equal(values(store, config(), taken, at), anew)
    again = shelf(tmp_path, store).take(first.as_of)
    assert again is not None
    assert again.end == AT - 3 * MINUTE
    assert again.monitors.equals(first.monitors)


def test_the_leaves_of_a_large_fleet_are_kept(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cube, "LARGE", 6)
    first = recall(store, config(), AT - 10 * MINUTE)
    shelf(tmp_path, store).put(first)
    taken = shelf(tmp_path, store).take(first.as_of)
    assert taken is not None
    assert taken.keys.leaves
    asked = Span("today", AT - 40 * MINUTE, 6, 5 * MINUTE), ["country"], ["sessions"], {"browser": "edge"}
    there, again = (one.cells(store, *asked) for one in (first, taken))
    assert there is not None
    assert there.equals(again)


def test_what_is_usual_is_not_reckoned_again(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recall(store, config(), AT - 10 * MINUTE)
    shelf(tmp_path, store).put(first)
    taken = shelf(tmp_path, store).take(first.as_of)
    assert taken is not None
    monkeypatch.setattr(cube, "_busiest", None)
    assert np.array_equal(taken.usual("sessions"), first.usual("sessions"))
    assert first.usual("sessions").any()


def test_a_sweep_reads_only_what_is_new(store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sweep(store, config(), AT - MINUTE)
    assert before.cube is not None
    shelf(tmp_path, store).put(before.cube)
    read = []
    cells = store.cells

    def noted(spans: Any, *rest: Any, **how: Any) -> Any:
        read.extend(span.count * span.width for span in spans)
        return cells(spans, *rest, **how)

    monkeypatch.setattr(store, "cells", noted)
    after = sweep(store, config(), AT - 0 * MINUTE, shelf=shelf(tmp_path, store))
    assert sum(read, dt.timedelta()) > 60 * MINUTE  # another period: another base
    read.clear()
    afresh = sweep(store, config(), AT - MINUTE, shelf=shelf(tmp_path, store))
    assert read == []
    assert afresh.scored[0].scores.equals(before.scored[0].scores)
    assert after.monitors == before.monitors


def test_what_cannot_be_used_is_read_again(store: EmbeddedStore, tmp_path: Path) -> None:
    found = recall(store, config(), AT)
    shelf(tmp_path, store).put(found)
    assert shelf(tmp_path, store).take(AT) is not None
    assert shelf(tmp_path, store).take(AT + 15 * MINUTE) is None
    for changes in ({"windows": ["10m"]}, {"watch": [[]]}, {"every": "10s"}):
        assert shelf(tmp_path, store, **changes).take(AT) is None  # by another configuration
    with shop(traffic(4.0, seed=2)) as other:
        assert shelf(tmp_path, other).take(AT) is None  # of another store, which was made in place of this one
    (where,) = (tmp_path / "cubes").iterdir()
    (where / "today.0.npy").write_bytes(b"torn")
    assert shelf(tmp_path, store).take(AT) is None
    assert not where.exists()
    shelf(tmp_path, store).put(recall(store, config(), AT))
    (where / "cube.json").write_text("{}", encoding="utf-8")
    assert shelf(tmp_path, store).take(AT) is None


def test_a_cube_is_written_once_and_then_filled(store: EmbeddedStore, tmp_path: Path) -> None:
    """By the process that read it as by those that come after it, also where the folder is a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    there = shelf(tmp_path / "link", store)
    first = recall(store, config(), AT - 10 * MINUTE)
    there.put(first)
    (where,) = (tmp_path / "real" / "cubes").iterdir()
    written = where.stat().st_ino
    first.advance(store, AT - 8 * MINUTE)
    there.put(first)
    taken = there.take(first.as_of)
    assert taken is not None
    taken.advance(store, AT - 6 * MINUTE)
    there.put(taken)
    assert where.stat().st_ino == written
    again = there.take(first.as_of)
    assert again is not None
    anew = observe(store, config(), AT - 6 * MINUTE).values["sessions"]
    assert np.array_equal(values(store, config(), again, AT - 6 * MINUTE), anew)


def test_a_copy_that_was_replaced_is_not_said_to_be_filled(store: EmbeddedStore, tmp_path: Path) -> None:
    """By a process that still fills the old one: what the new one lacks would pass for an outage of everybody."""
    there = shelf(tmp_path, store)
    there.put(recall(store, config(), AT - 10 * MINUTE))
    old = there.take(AT - 15 * MINUTE)
    there.put(recall(store, config(), AT - 10 * MINUTE))  # such as one that has what came late
    assert old is not None
    old.advance(store, AT - 3 * MINUTE)
    there.put(old)
    found = there.take(AT - 15 * MINUTE)
    assert found is not None
    found.advance(store, AT - 3 * MINUTE)
    anew = observe(store, config(), AT - 3 * MINUTE).values["sessions"]
    assert np.array_equal(values(store, config(), found, AT - 3 * MINUTE), anew)


def test_what_a_killed_process_left_is_taken_away(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while: until then it may be another one's that is still at work."""
    left = tmp_path / "cubes" / "tmp1234"
    left.mkdir(parents=True)
    (left / "today.0.npy").write_bytes(b"half")
    shelf(tmp_path, store).put(recall(store, config(), AT))
    assert left.exists()
    monkeypatch.setattr("kmon.detect.shelf.LEFT", -1.0)
    shelf(tmp_path, store).put(recall(store, config(), AT))
    assert [p.name for p in (tmp_path / "cubes").iterdir()] == ["20260110T120000"]


def test_nothing_is_kept_beyond_a_start_of_the_machine(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written last may not have reached the disk."""
    shelf(tmp_path, store).put(recall(store, config(), AT))
    monkeypatch.setattr("kmon.detect.shelf._boot", lambda: "another")
    assert shelf(tmp_path, store).take(AT) is None


def test_what_was_read_before_older_history_came_is_read_again(tmp_path: Path) -> None:
    """However few events it has."""
    events, path = traffic(4.0), tmp_path / "kmon.duckdb"
    old = pl.col("event_time") < (AT - 60 * MINUTE).replace(tzinfo=None)
    with EmbeddedStore(path, config()) as opened:
        add(opened, events.filter(~old))
        shelf(tmp_path, opened).put(recall(opened, config(), AT - MINUTE))
    with EmbeddedStore(path, config()) as opened:
        add(opened, events.filter(old))
        found = recall(opened, config(), AT - MINUTE, shelf=shelf(tmp_path, opened).take)
        assert [*found.days] == ["day1"]


def test_the_newest_two_are_kept(store: EmbeddedStore, tmp_path: Path) -> None:
    for n in range(4):
        shelf(tmp_path, store).put(Cube.read(store, config(), AT - (60 - 15 * n) * MINUTE))
    assert sorted(p.name for p in (tmp_path / "cubes").iterdir()) == ["20260110T113000", "20260110T114500"]


def test_a_full_disk_is_no_reason_not_to_judge(store: EmbeddedStore, tmp_path: Path) -> None:
    (tmp_path / "cubes").write_text("no folder", encoding="utf-8")
    shelf(tmp_path, store).put(recall(store, config(), AT))
    assert (tmp_path / "cubes").read_text(encoding="utf-8") == "no folder"


def test_a_large_fleet_is_read_ahead(store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first sweep of the next half hour finds it, but for the last minutes."""
    at = AT - 2 * MINUTE
    assert read_ahead(store, config(), at, shelf(tmp_path, store)) == "small"  # which is not
    monkeypatch.setattr(cube, "LARGE", 6)
    assert read_ahead(store, config(), at - MINUTE, shelf(tmp_path, store)) == "read"
    assert read_ahead(store, config(), at, shelf(tmp_path, store)) == "there"
    ahead = shelf(tmp_path, store).take(AT - 30 * MINUTE)
    assert ahead is not None
    assert ahead.end == at
    assert ahead.serves(store, config(), AT + 29 * MINUTE)
    monkeypatch.setattr(Cube, "read", None)  # nobody reads another
    assert sweep(store, config(), AT, shelf=shelf(tmp_path, store)).monitors > 0
    shutil.rmtree(tmp_path / "cubes")
