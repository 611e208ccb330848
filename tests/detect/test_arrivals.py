"""Who came when, kept on the shelf: a look of `silence` finds the same as without it, and reads what is new."""

from __future__ import annotations

import datetime as dt
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.detect import Shelf, Silence, cube, read_ahead, silence
from kmon.detect.arrivals import AN_HOUR, SLOT, Arrivals, Slot
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from tests.conftest import settle
from tests.detect.test_silence import BEGIN, HOUR, OTHERS, settings, visits
from tests.detect.worlds import AT, DAY, MINUTE, Mask, add, shop

SILENT = {"p": (3.0, 9), "q": (200.0, 2), "r": (0.6, 20), "s": (1.5, 0.8)}
"""Partners that are silent: events an hour before, and hours since."""
DAYS = 2


@functools.cache
def arrivals() -> pl.DataFrame:
    gone = [visits({p: rate}, BEGIN, AT - h * HOUR, seed=i) for i, (p, (rate, h)) in enumerate(SILENT.items(), 3)]
    small = visits({f"t{i}": 0.3 for i in range(20)}, BEGIN, AT, seed=9)
    return pl.concat([visits(OTHERS, BEGIN, AT), small, *gone]).sort("event_time")


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six partners make a large fleet."""
    monkeypatch.setattr(cube, "LARGE", 6)


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedStore]:
    """Which nobody writes to."""
    with shop(arrivals(), settings(), AT) as opened:
        yield opened


def shelf(folder: Path, store: EmbeddedStore) -> Shelf:
    return Shelf.of(folder / "cubes", store, settings())


def ahead(folder: Path, store: EmbeddedStore, at: dt.datetime = AT, days: int = DAYS) -> Shelf:
    """A shelf that has all days before `at`."""
    found = shelf(folder, store)
    for _ in range(-(-(days + 1) * DAY // silence.AHEAD)):
        Silence(days=days).read_ahead(store, settings(), at, found)
    return found


def found(store: EmbeddedStore, at: dt.datetime = AT, shelf: Shelf | None = None, days: int = DAYS, **how: Any) -> Any:
    """What a look says: {partner: all that is said of it}, and how many were tested."""
    looked = Silence(days=days, **how).look(
        store, settings(), at, [Mask({"partner": "p"}, AT - 3 * DAY, AT - 2 * DAY)], shelf
    )
    if looked is None:
        return None
    fleet, scores, tests = looked
    partners = fleet.monitors["partner"].to_list()
    return {partners[row["row"]]: {**row, "row": None} for row in scores.to_dicts()}, tests


def asked(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dt.datetime, int]]:
    """Where what is asked from now on is noted: the first slot and how many. All days at once are nobody's to ask."""
    spans: list[tuple[dt.datetime, int]] = []
    ask = store.arrivals

    def noted(span: Any, *rest: Any) -> pl.DataFrame:
        spans.append((span.start, span.count))
        return ask(span, *rest)

    monkeypatch.setattr(store, "arrivals", noted)
    monkeypatch.setattr(store, "silent", None)
    return spans


@pytest.mark.parametrize("how", [{"days": 7}, {"days": 1, "least": 2}, {"least": 1}])
def test_the_same_is_found_with_and_without_a_shelf(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    times = [AT - back * 10 * MINUTE for back in (0, 1, 5, 9, 55, 130)]
    plain = [found(store, at, **how) for at in times]
    for at in (AT, times[-1]):  # which looks back further
        kept = ahead(tmp_path, store, at, how.get("days", DAYS))
    asked(store, monkeypatch)
    assert [found(store, at, kept, **how) for at in times] == plain
    assert len(plain[0][0]) >= 2


def test_the_same_is_found_when_rows_have_moved_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ten seconds to minutes, before they are read and after."""
    with shop(arrivals(), settings(), AT) as store:
        settle(store, settings(), minutes=AT - 5 * HOUR)
        kept, plain = ahead(tmp_path, store), found(store)
        settle(store, settings(), minutes=AT)
        assert found(store) == plain
        asked(store, monkeypatch)
        assert found(store, shelf=kept) == plain


def test_a_look_reads_what_has_come_since(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ahead(tmp_path, store, AT - 20 * MINUTE)
    spans = asked(store, monkeypatch)
    found(store, AT - 10 * MINUTE, kept)
    found(store, AT, shelf(tmp_path, store))  # of another process
    assert spans == [(AT - 20 * MINUTE, 1), (AT - 10 * MINUTE, 1)]


def test_no_question_is_about_more_than_an_hour_and_no_look_asks_for_all(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a job that reads ahead it is as without a shelf, until all is there."""
    plain, silent = found(store), store.silent
    spans = asked(store, monkeypatch)
    monkeypatch.setattr(store, "silent", silent)
    each = []
    for _ in range(13):
        assert found(store, shelf=shelf(tmp_path, store)) == plain
        each.append(sum(count for _, count in spans))
        assert max((count for _, count in spans), default=0) <= AN_HOUR
        spans.clear()
    assert each == [silence.AT_ONCE // SLOT] * 12 + [0]


def test_what_came_late_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is more than a thousandth of what had come."""
    events = arrivals()
    late = (pl.col("event_time") > (AT - 4 * HOUR).replace(tzinfo=None)) & (pl.col("partner") == "q")
    with shop(events.head(0), settings(), AT) as store:
        put(store, events.filter(~late))
        before = found(store, shelf=ahead(tmp_path, store))
        put(store, events.filter(late))
        kept, plain = shelf(tmp_path, store), found(store)
        spans = asked(store, monkeypatch)
        assert found(store, shelf=kept) == plain != before
        assert spans == [(AT - 3 * HOUR, AN_HOUR), (AT - 4 * HOUR, AN_HOUR)]
        spans.clear()
        put(store, events.filter(pl.col("event_time") < (AT - SLOT).replace(tzinfo=None)).tail(1))
        found(store, shelf=kept)
        assert spans == [(AT - 2 * SLOT, 1)]


def test_a_thousandth_that_came_late_is_not_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = arrivals().tail(1)
    with shop(arrivals(), settings(), AT) as store:
        put(store, pl.concat([one] * 1000))
        kept = ahead(tmp_path, store)
        spans = asked(store, monkeypatch)
        for expected in ([], [(AT - SLOT, 1)]):
            put(store, one)
            found(store, shelf=kept)
            assert spans == expected


def put(store: EmbeddedStore, events: pl.DataFrame) -> None:
    """Commit events as ingestion does: with how many came of each minute."""
    minutes = events.group_by(minute=pl.col("event_time").dt.truncate("1m")).agg(records=pl.len().cast(pl.Int64))
    intake = minutes.select(
        "minute", partition=pl.lit("0"), reason=pl.lit(""), records="records", heard=pl.lit(AT.replace(tzinfo=None))
    )
    first = next(iter(store.positions().values()), 0)
    store.commit(Commit([Move("test", 0, first, first + events.height)], events, {"0": AT}, intake=intake))


def test_who_came_since_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look between two multiples of ten minutes is that of the one before it."""
    with shop(arrivals(), settings(), AT) as store:
        kept = ahead(tmp_path, store)
        before, tests = found(store, shelf=kept)
        add(store, visits({"q": 60.0}, AT, AT + 3 * MINUTE), AT + 3 * MINUTE)
        asked(store, monkeypatch)
        after, again = found(store, AT + 3 * MINUTE, kept)
        q = store.number("partner", "q")
    assert (again, before.keys() - after.keys()) == (tests, {q})
    for partner, row in after.items():
        was = before[partner]
        assert (row["expected"], row["seconds"]) == (was["expected"], was["seconds"] + 180)


def test_what_cannot_be_read_is_read_again(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = found(store), ahead(tmp_path, store)
    folder = kept.arrivals(store, "partner", "sessions", 24 * (DAYS + 1)).folder
    for n, torn in enumerate((b"", b"torn", b"\0" * 4096)):
        (folder / f"{AT - (n + 1) * 5 * HOUR:%Y%m%dT%H%M}").write_bytes(torn)
        assert found(store, shelf=kept) == plain
        ahead(tmp_path, store)
        with monkeypatch.context() as patched:
            assert asked(store, patched) == []
            assert found(store, shelf=kept) == plain


def test_another_store_and_another_definition_have_their_own(store: EmbeddedStore, tmp_path: Path) -> None:
    """And a look that goes by other days, as those that it does not need are taken away."""
    mine = Arrivals.of(tmp_path, store, "partner", "sessions", 72)
    assert Arrivals.of(tmp_path, store, "partner", "sessions", 72) == mine
    with shop(arrivals(), settings(), AT) as other:
        others = [Arrivals.of(tmp_path, other, "partner", "sessions", 72)]
    told = ("partner", "orders", 72), ("country", "sessions", 72), ("partner", "sessions", 192)
    others += [Arrivals.of(tmp_path, store, *what) for what in told]
    assert mine.folder not in [one.folder for one in others]


def test_a_full_disk_is_no_reason_not_to_judge(store: EmbeddedStore, tmp_path: Path) -> None:
    (tmp_path / "cubes").write_text("no folder", encoding="utf-8")
    assert found(store, shelf=ahead(tmp_path, store)) == found(store)


def test_what_is_old_is_taken_away(store: EmbeddedStore, tmp_path: Path) -> None:
    """And what a killed process left half written, and what is of a store that is gone; but nothing that is new."""
    kept = ahead(tmp_path, store, AT - 2 * DAY)
    mine = kept.arrivals(store, "partner", "sessions", 24 * (DAYS + 1)).folder
    for name in ("halfold", "halfnew", "../gone/slot", "../new/slot"):
        path = mine / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        if name in ("halfold", "../gone/slot"):
            for old in (path, path.parent) if "gone" in name else (path,):
                os.utime(old, (0, 0))
    ahead(tmp_path, store)
    names = sorted(path.name for path in mine.iterdir())
    assert names[0] == f"{AT - 4 * DAY:%Y%m%dT%H%M}"
    assert names[-1] == "halfnew"
    assert sorted(path.name for path in mine.parent.iterdir()) == sorted(["new", mine.name])


def test_a_cube_that_is_put_there_leaves_it(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ahead(tmp_path, store)
    monkeypatch.setattr("kmon.detect.shelf.LEFT", -1.0)
    kept.put(cube.recall(store, settings(), AT))
    asked(store, monkeypatch)
    assert found(store, shelf=kept) is not None


def test_it_is_read_ahead_with_the_cube(store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = found(store, days=7)
    for _ in range(4):
        assert read_ahead(store, settings(), AT + 2 * MINUTE, shelf(tmp_path, store)) in ("read", "there")
    assert asked(store, monkeypatch) == []
    assert found(store, shelf=shelf(tmp_path, store), days=7) == plain


def test_several_dimensions_and_small_fleets_are_asked_as_before(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(store, shelf=shelf(tmp_path, store), by=(("partner", "country"),)) is not None
    monkeypatch.setattr(cube, "LARGE", 5_000)
    assert found(store, shelf=shelf(tmp_path, store)) is not None
    assert not (tmp_path / "cubes").exists()


def test_ten_minutes_in_a_file(tmp_path: Path) -> None:
    """Counts that are large, and those that are no whole numbers."""
    n = {0: 7.0, 2: 14.0, 3: 15.0, 5: 2.5, 9: 70_000.0}
    rows = pl.DataFrame(
        {"number": [*n], "n": [*n.values()], "minute": [0, 9, 4, 0, 9]},
        schema={"number": pl.UInt32, "n": pl.Float64, "minute": pl.UInt8},
    )
    Slot.of(rows.sample(fraction=1, shuffle=True, seed=1), 12).write(tmp_path / "slot")
    slot = Slot.read(tmp_path / "slot")
    assert (slot.records, slot.total) == (12, sum(n.values()))
    asked = np.array([0, 1, 2, 3, 5, 9, 10, 500])  # the last ones are newer than it
    assert slot.count(asked).tolist() == [n.get(number, 0.0) for number in asked.tolist()]
    assert (slot.of_rows(asked) // 16).tolist() == [1, 0, 10, 5, 1, 10, 0, 0]
    Slot.of(rows.head(0), 0).write(tmp_path / "nobody")
    assert Slot.read(tmp_path / "nobody").count(asked).sum() == 0
