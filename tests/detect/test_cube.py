"""What sweeps have read: going on is as good as reading anew, and what came late is not missed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from kmon.detect import Fleet, cube, observe
from kmon.detect.cube import Cube, recall
from kmon.detect.guests import row_of
from kmon.detect.keys import Keys
from kmon.errors import UsageError
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore, Span
from kmon.store.sql import Where
from kmon.store.upkeep import Upkeep
from tests.detect.worlds import AT, DAY, MINUTE, add, config, shop, traffic

SECOND = dt.timedelta(seconds=1)
LATELY = pl.when((pl.col("partner") != "p5") | ((pl.col("ago") <= 7) & pl.col("today"))).then(4.0).otherwise(0.0)
"""p5 came seven minutes ago."""


@pytest.fixture
def store() -> Iterator[EmbeddedStore]:
    with shop(traffic(LATELY)) as opened:
        yield opened


def names(store: EmbeddedStore, found: Cube | Fleet) -> set[str]:
    """The partners that are monitors."""
    numbers = found.monitors["partner"].drop_nulls().unique().to_list()
    return set(store.names("partner", numbers).values())


def test_going_on_is_as_good_as_reading_anew(store: EmbeddedStore) -> None:
    """But for who was not there yet when the base was read."""
    going = None
    for ago in (14, 9, 8, 3):
        at = AT - ago * MINUTE
        going = recall(store, config(), at, going)
        anew = observe(store, config(), at)
        assert going.as_of == AT - 15 * MINUTE
        old = pl.Series(anew.monitors["partner"]).ne_missing(store.number("partner", "p5")).to_numpy()
        rows = going.watched(config())
        assert going.monitors[rows].equals(anew.monitors.filter(pl.Series(old)))
        found = going.fleet(store, config(), at, rows)
        assert found.spans == anew.spans
        for measure, values in anew.values.items():
            assert np.array_equal(found.values[measure], values[old])
        assert np.array_equal(found.usable, anew.usable[old])
        assert np.array_equal(found.recorded, anew.recorded)


@pytest.mark.parametrize(
    ("every", "grain"), [("1m", MINUTE), ("30s", 30 * SECOND), ("20s", 20 * SECOND), ("10s", 10 * SECOND)]
)
def test_it_is_as_fine_as_sweeps_are_frequent(store: EmbeddedStore, every: str, grain: dt.timedelta) -> None:
    settings = config(every=every)
    found = recall(store, settings, AT - grain)
    assert found.grain == grain
    fleet = found.fleet(store, settings, AT - grain, found.rows_of(store, [{"partner": "p1"}]))
    end = AT - grain
    there = store.totals({"partner": "p1"}, end - 5 * MINUTE, end)["sessions"]
    assert fleet.total("sessions", 5 * MINUTE).tolist() == [there]


@pytest.mark.parametrize("keep", [{}, {"ten_seconds": "30m"}])
def test_what_has_moved_to_minutes_is_read_by_the_minute(keep: dict[str, str]) -> None:
    """With sweeps every ten seconds, and later, when somebody asks why."""
    settings = config(every="10s", keep=keep)
    with shop(traffic(4.0, minutes=150), settings) as opened:
        for hours in (0, 3):
            before, going = (recall(opened, settings, AT - 2 * MINUTE) for _ in range(2))
            before.advance(opened, AT)
            Upkeep(opened, settings).run(AT + hours * 60 * MINUTE, AT)
            after = recall(opened, settings, AT - 2 * MINUTE)
            for each in (after, going):
                each.advance(opened, AT)
            rows = before.watched(settings)
            for measure in ("sessions", "orders"):
                for ago in (0, 20, 110):
                    part = measure, AT - (ago + 10) * MINUTE, AT - ago * MINUTE, rows
                    assert np.array_equal(after.between(*part), before.between(*part))
                    assert np.array_equal(going.between(*part), before.between(*part))
                    assert before.between(*part).any()


@pytest.mark.parametrize("seconds", [30, 45, 90])
def test_a_sweep_may_be_at_any_time(store: EmbeddedStore, seconds: int) -> None:
    """Between those of the configuration, too: what it judges ends when it says."""
    before = recall(store, config(), AT - 2 * MINUTE)
    at = AT - seconds * SECOND
    found = recall(store, config(), at, before)
    fleet = found.fleet(store, config(), at, found.rows_of(store, [{"partner": "p1"}]))
    there = store.totals({"partner": "p1"}, at - 5 * MINUTE, at)["sessions"]
    assert fleet.total("sessions", 5 * MINUTE).tolist() == [there]


def test_a_zone_that_is_new_is_read_again_where_its_clocks_were_changed() -> None:
    """Its days begin an hour later than those that were read; in the United States they do not on this day."""
    at = dt.datetime(2026, 3, 29, 12, tzinfo=dt.UTC)
    events = traffic(4.0).with_columns(pl.col("event_time") + (at - AT))
    settings = config(enrich={"country": "country"})
    here = pl.col("country") == "US"
    with shop(events.filter(here), settings, at) as opened:
        before = recall(opened, settings, at - 2 * MINUTE)
        assert recall(opened, settings, at - MINUTE, before) is before
        add(opened, events.filter(~here & (pl.col("event_time") >= (at - MINUTE).replace(tzinfo=None))), at)
        after = recall(opened, settings, at - MINUTE, before)
        fleet = after.fleet(opened, settings, at - MINUTE, after.watched(settings))
        anew = observe(opened, settings, at - MINUTE)
        assert after is not before
        assert np.array_equal(fleet.values["sessions"], anew.values["sessions"])


def test_who_came_since_the_base_is_seen_after_the_next(store: EmbeddedStore) -> None:
    before = recall(store, config(), AT - MINUTE)
    assert "p5" not in names(store, before)
    assert before.serves(store, config(), AT)
    after = recall(store, config(), AT + 15 * MINUTE, before)
    assert after is not before
    assert "p5" in names(store, after)


def test_the_base_of_a_large_fleet_can_be_read_ahead(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cube, "LARGE", 6)
    found = recall(store, config(), AT - MINUTE)
    assert found.as_of == AT - 60 * MINUTE
    assert found.until == AT
    fleet = found.fleet(store, config(), AT - MINUTE, found.watched(config()))
    assert [span.name for span in fleet.spans] == ["today", "today", "day1"]


def test_what_comes_late_is_read_again(store: EmbeddedStore) -> None:
    """A few late events are left for the next base; a partition that was stuck is not."""
    before = recall(store, config(), AT - MINUTE)
    for late, again in ((1, False), (200, True)):
        events = traffic(1.0, days=[0]).head(late)
        first = next(iter(store.positions().values()))
        store.commit(Commit([Move("test", 0, first, first + late)], events, {"0": AT}, late={"0": late}))
        found = recall(store, config(), AT - MINUTE, before)
        assert (found is not before) == again
        everything = found.rows_of(store, [{}])
        total = found.between("events_", AT - 60 * MINUTE, AT - MINUTE, everything)[0]
        assert (total == store.totals({}, AT - 60 * MINUTE, AT - MINUTE)["events_"]) == again


def test_only_who_has_enough_is_a_monitor(store: EmbeddedStore) -> None:
    """In one of the days or today; everything together always is, as it tells when the source was there."""
    some = Cube.read(store, config(), AT, least=1500)
    assert some.monitors.filter(pl.all_horizontal(pl.exclude("set").is_null())).height == 1
    partners = some.monitors.filter(pl.col("partner").is_not_null() & pl.col("country").is_null())["partner"]
    for partner in store.names("partner", partners.to_list()).values():
        ends = AT, AT - DAY + 35 * MINUTE
        events = [store.totals({"partner": partner}, end - 155 * MINUTE, end)["events_"] for end in ends]
        assert max(events) >= 1500
    assert Cube.read(store, config(), AT, least=10**9).monitors.height == 1


def test_keys_are_their_combinations() -> None:
    cells = pl.DataFrame(
        {"a": [1, 1, 2, 0, 9], "b": [3, 1, 3, 1, 1], "events_": [5, 5, 1, 9, 9], "slot": [0, 1, 1, 0, 0]},
        schema_overrides={"a": pl.UInt32, "b": pl.UInt32},
    )
    keys = Keys.of((("b", "a"), ("a",), ()), {"a": 2, "b": 3}, [cells], least=2)
    found = keys.monitors().rows()
    # a value that an event did not have (0) is nobody's, nor is one that is newer than the keys (9)
    assert found == [(0, 1, 1), (0, 1, 3), (1, 1, None), (2, None, None)]
    assert [keys.rows_of(scope) for scope in ({"a": 1, "b": 3}, {"a": 1}, {})] == [[1], [2], [3]]
    assert keys.rows_of({"a": 2}) == []
    summed = keys.summed(cells, ["events_"], 2, room=1)["events_"]
    assert summed.tolist() == [[0, 5, 5, 23], [5, 0, 5, 6], [0, 0, 0, 0]]


def test_too_many_combinations_are_told() -> None:
    with pytest.raises(UsageError, match="too many combinations of a, b, c to watch them all"):
        Keys((("a", "b", "c"),), dict.fromkeys("abc", 10**7), ()).size(("a", "b", "c"))


# ---- leaves of a large fleet ---------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[EmbeddedStore, Cube]]:
    """A fleet whose partners are many; one event in six has no browser."""
    monkeypatch.setattr(cube, "LARGE", 6)
    monkeypatch.setattr(cube, "MANY", 5)
    some = pl.int_range(pl.len()) % 6 == 0
    with shop(traffic(4.0).with_columns(browser=pl.when(~some).then("browser"))) as opened:
        yield opened, recall(opened, config(), AT - MINUTE)


HOUR_BEFORE = Span("today", AT - 61 * MINUTE, 12, 5 * MINUTE)
YESTERDAY = Span("day1", AT - DAY - 60 * MINUTE, 15, 5 * MINUTE)


@pytest.mark.parametrize("span", [HOUR_BEFORE, YESTERDAY])
@pytest.mark.parametrize(
    ("dimensions", "where", "without"),
    [
        ([], {}, []),
        (["country"], {"browser": "edge"}, []),
        (["browser", "country"], {}, [{"browser": "edge"}, {"browser": "safari", "country": "SE"}]),
        ([], {"browser": ["edge", "chrome"], "country": "DE"}, []),
        (["country"], {"browser": "never seen"}, []),
    ],
)
def test_leaves_tell_what_the_store_would(
    large: tuple[EmbeddedStore, Cube], span: Span, dimensions: list[str], where: Where, without: list[Where]
) -> None:
    store, found = large
    asked = (dimensions, ["sessions", "orders"], where, without)
    told = found.cells(store, span, *asked)
    assert told is not None
    keys = ["slot", *dimensions]
    assert_frame_equal(
        told.group_by(keys).sum(), store.cells([span], *asked, merged=True), check_row_order=False, check_dtypes=False
    )


@pytest.mark.parametrize(
    ("span", "dimensions", "measures", "where"),
    [
        (HOUR_BEFORE, ["partner"], ["sessions"], {}),
        (HOUR_BEFORE, [], ["sessions"], {"partner": "p1"}),
        (HOUR_BEFORE, [], ["amount"], {}),
        (Span("today", AT - 61 * MINUTE, 122, MINUTE / 2), [], ["sessions"], {}),
        (Span("today", AT - 61 * MINUTE, 13, 5 * MINUTE), [], ["sessions"], {}),
        (Span("day1", AT - DAY - 61 * MINUTE, 12, 5 * MINUTE), [], ["sessions"], {}),
        (Span("day7", AT - 7 * DAY, 1, 5 * MINUTE), [], ["sessions"], {}),
    ],
)
def test_leaves_do_not_tell_what_they_do_not_have(
    large: tuple[EmbeddedStore, Cube], span: Span, dimensions: list[str], measures: list[str], where: Where
) -> None:
    store, found = large
    assert found.cells(store, span, dimensions, measures, where) is None


def test_leaves_do_not_tell_apart_what_is_newer(large: tuple[EmbeddedStore, Cube]) -> None:
    store, found = large
    new = traffic(4.0, days=[0], minutes=1).with_columns(browser=pl.lit("brave"))
    add(store, new)
    found.advance(store, AT)
    span = Span("today", AT - MINUTE, 1, MINUTE)
    assert found.cells(store, span, [], ["sessions"], {"browser": "brave"}) is None
    assert found.cells(store, span, [], ["sessions"], {}, [{"browser": "brave"}]) is None
    everything = found.cells(store, span, [], ["sessions"], {})
    assert everything is not None
    assert everything["sessions"].sum() == store.totals({}, AT - MINUTE, AT)["sessions"]


def test_a_combination_that_is_new_is_in_the_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cube, "LARGE", 6)
    monkeypatch.setattr(cube, "MANY", 5)
    both = (pl.col("country") == "SE") & (pl.col("browser") == "edge")
    with shop(traffic(pl.when(both & ((pl.col("ago") > 3) | ~pl.col("today"))).then(0.0).otherwise(4.0))) as store:
        found = recall(store, config(), AT - MINUTE)
        scope = {"country": "SE", "browser": "edge"}
        told = found.cells(store, Span("today", AT - 3 * MINUTE, 2, MINUTE), [], ["sessions"], scope)
        assert told is not None
        assert told["sessions"].sum() == store.totals(scope, AT - 3 * MINUTE, AT - MINUTE)["sessions"] > 0


def test_a_cause_is_taken_off_everything(large: tuple[EmbeddedStore, Cube]) -> None:
    store, found = large
    whole = found.fleet(store, config(), AT - MINUTE, found.watched(config()))
    part = observe(store, config(), AT - MINUTE, scope={"country": "SE"}, among=whole.monitors, cube=found)
    everything = row_of(whole, {})
    rest = whole.copy().minus(part).total("sessions", 5 * MINUTE)[everything]
    assert rest == store.totals({"country": ["DE", "US"]}, AT - 6 * MINUTE, AT - MINUTE)["sessions"]


def test_a_small_fleet_has_no_leaves(store: EmbeddedStore) -> None:
    found = recall(store, config(), AT - MINUTE)
    assert found.monitors.height == len(found.watched(config()))
    assert found.cells(store, HOUR_BEFORE, [], ["sessions"], {}) is None


def test_leaves_are_no_monitors(large: tuple[EmbeddedStore, Cube]) -> None:
    _, found = large
    for settings in (config(), config(watch=config().watch[1:])):
        rows = found.watched(settings)
        assert set(found.monitors[rows]["set"]) == {*range(5), *([5] if () in settings.watch else [])}
    assert found.monitors.height > len(rows)


@pytest.mark.parametrize("scope", [{"browser": "edge"}, {"country": "SE"}, {"partner": "p1"}])
def test_a_part_is_the_same_of_leaves_as_of_the_store(
    large: tuple[EmbeddedStore, Cube], scope: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = large
    asked, read = store.cells, []
    monkeypatch.setattr(store, "cells", lambda *given, **how: read.append(given) or asked(*given, **how))
    among = found.monitors[found.watched(config())].filter(pl.col("partner").is_null())
    of_leaves, anew = (
        observe(store, config(), AT - MINUTE, scope=scope, among=among, cube=one) for one in (found, None)
    )
    assert of_leaves.monitors.equals(anew.monitors)
    assert of_leaves.monitors.filter(pl.all_horizontal(pl.exclude("set").is_null())).height == 1
    for measure, values in anew.values.items():
        assert np.array_equal(of_leaves.values[measure], values)
    assert anew.values["sessions"].any()
    assert len(read) == 2 * (1 + ("partner" in scope))
