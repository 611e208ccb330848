"""What a sweep looks at: windows of several widths, their references, and what must not be one."""

from __future__ import annotations

import datetime as dt

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from kmon.config.bins import BIN, bin_for
from kmon.detect import Fleet, observe
from kmon.detect.calendar import Calendar
from kmon.detect.cube import recall
from kmon.detect.fleet import grain_for, spans_for
from kmon.detect.screen import Asked, Sums, pick
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, traffic

FIVE, SECOND = 5 * MINUTE, dt.timedelta(seconds=1)


@pytest.fixture(scope="module")
def store() -> EmbeddedStore:
    share = pl.when(pl.col("partner") == "p0").then(6.0).otherwise(0.5)
    return shop(traffic(sessions=share))


@pytest.fixture(scope="module")
def seen(store: EmbeddedStore) -> Fleet:
    return observe(store, config(), AT)


def row(fleet: Fleet, store: EmbeddedStore, scope: dict[str, str]) -> int:
    same = [
        pl.col(d).eq_missing(pl.lit(store.number(d, scope[d]) if d in scope else None, pl.UInt32))
        for d in ("partner", "country", "browser")
    ]
    return int(fleet.monitors.with_row_index().filter(pl.all_horizontal(same))["index"][0])


def references(
    fleet: Fleet, store: EmbeddedStore, scope: dict[str, str], name: str = "recent", metric: str = "sessions"
) -> npt.NDArray[np.float64]:
    """One monitor's bins in the references of a window of five minutes."""
    windows = fleet.windows(config().metrics[metric], FIVE, np.array([row(fleet, store, scope)]))
    return windows[f"{name}_value"].to_numpy()[0]


def usable(fleet: Fleet, store: EmbeddedStore, scope: dict[str, str]) -> tuple[int, int]:
    """How many reference bins of today and of yesterday one monitor has."""
    today, day = (references(fleet, store, scope, name) for name in ("recent", "day1"))
    return int(np.isfinite(today).sum()), int(np.isfinite(day).sum())


def sessions(store: EmbeddedStore, start: dt.datetime, width: dt.timedelta, **where: str) -> float:
    return store.totals(where, start, start + width)["sessions"]


# ---- spans -----------------------------------------------------------------------------------------------------------


def test_spans_go_back_as_far_as_the_history() -> None:
    spans = spans_for(AT, BIN, MINUTE, AT - 8 * DAY)
    assert [(s.name, s.count, s.width) for s in spans] == [
        ("today", 18, FIVE), ("today", 30, MINUTE), ("day1", 31, FIVE), ("day2", 31, FIVE), ("day7", 31, FIVE)
    ]  # fmt: skip
    assert (spans[0].start, spans[1].end) == (AT - 120 * MINUTE, AT)
    assert (spans[2].start, spans[2].end) == (AT - DAY - 120 * MINUTE, AT - DAY + 35 * MINUTE)
    assert [s.name for s in spans_for(AT, BIN, MINUTE, AT - dt.timedelta(hours=2))] == ["today", "today"]


def test_the_bins_of_other_days_lie_where_several_sweeps_find_them() -> None:
    for late in range(5):
        day = spans_for(AT + late * MINUTE, BIN, MINUTE, AT - 2 * DAY)[2]
        assert day.start == AT - DAY - 120 * MINUTE


@pytest.mark.parametrize(
    ("minutes", "width"), [([1], 5), ([5, 60], 5), ([60], 60), ([5, 61], 10), ([5, 24 * 60], 120), ([7, 90], 10)]
)
def test_bins_are_as_wide_as_the_shortest_window_and_half_of_the_recent_ones_as_the_longest(
    minutes: list[int], width: int
) -> None:
    assert bin_for([m * MINUTE for m in minutes]) == width * MINUTE


@pytest.mark.parametrize(
    ("at", "width", "grain"),
    [
        (AT, FIVE, MINUTE),
        (AT + 10 * SECOND, FIVE, 10 * SECOND),
        (AT, 30 * SECOND, 30 * SECOND),
        (AT + 10 * SECOND, 30 * SECOND, 10 * SECOND),
        (AT + 45 * SECOND, FIVE, 10 * SECOND),  # finer is nothing kept
    ],
)
def test_windows_are_made_of_the_widest_parts_that_fit(
    at: dt.datetime, width: dt.timedelta, grain: dt.timedelta
) -> None:
    assert grain_for(at, [width, FIVE]) == grain


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [{}, {"partner": "p0"}, {"partner": "p2", "country": "SE"}])
@pytest.mark.parametrize("minutes", [1, 2, 5, 7, 30, 50])
def test_counts_are_those_of_the_store(store: EmbeddedStore, seen: Fleet, minutes: int, scope: dict[str, str]) -> None:
    width = minutes * MINUTE
    found = seen.windows(config().metrics["sessions"], width, np.array([row(seen, store, scope)])).row(0, named=True)
    assert found["value"] == sessions(store, AT - width, width, **scope)
    assert (found["exposure"], found["width"], found["bin"]) == (1, 60 * minutes, 300)
    reach = -(-minutes // 5)
    assert found["recent_value"][12 : 24 - reach] == [
        sessions(store, AT - (24 - k) * FIVE, FIVE, **scope) for k in range(12, 24 - reach)
    ]
    assert np.isnan(found["recent_value"][24 - reach :]).all()
    assert found["day1_value"][12:] == [
        sessions(store, AT - DAY - (24 - k) * FIVE, FIVE, **scope) for k in range(12, 30)
    ]
    exposures = np.array([v for v in found["recent_exposure"] if not np.isnan(v)])
    assert exposures == pytest.approx(5 / minutes)


@pytest.mark.parametrize(("minutes", "count"), [(1, 29), (2, 14), (5, 23), (30, 3), (60, 1)])
def test_previous_windows_are_as_long_as_the_current_one(
    store: EmbeddedStore, seen: Fleet, minutes: int, count: int
) -> None:
    width = minutes * MINUTE
    found = seen.windows(config().metrics["sessions"], width, np.array([row(seen, store, {})])).row(0, named=True)
    assert len(found["previous_value"]) == count
    if minutes < 60:
        assert found["previous_value"][-1] == sessions(store, AT - 2 * width, width)


def test_a_rate_has_the_denominators_of_its_bins(store: EmbeddedStore, seen: Fleet) -> None:
    found = seen.windows(config().metrics["conversion"], 10 * MINUTE, np.array([row(seen, store, {})])).row(
        0, named=True
    )
    assert found["exposure"] == sessions(store, AT - 10 * MINUTE, 10 * MINUTE)
    assert found["lagged_exposure"] == sessions(store, AT - 12 * MINUTE, 10 * MINUTE)
    assert found["recent_exposure"][21] == sessions(store, AT - 15 * MINUTE, FIVE)
    assert found["day1_exposure"][29] == sessions(store, AT - DAY + 25 * MINUTE, FIVE)


def test_other_days_are_read_at_the_same_time_of_day(store: EmbeddedStore) -> None:
    """Three minutes after a whole bin: two of its bins in the parts that it overlaps."""
    fleet = observe(store, config(), AT - 2 * MINUTE)
    last = references(fleet, store, {}, "day1")[23]
    parts = [sessions(store, AT - DAY - k * FIVE, FIVE) for k in (2, 1)]
    assert last == pytest.approx(0.4 * parts[0] + 0.6 * parts[1])


def test_the_usual_volume_counts_too() -> None:
    """A monitor that is silent now must be judged; a rate without a denominator cannot."""
    with shop(traffic(pl.when(pl.col("today") & (pl.col("ago") <= 5)).then(0.0).otherwise(2.0))) as silent:
        cube = recall(silent, config(), AT)
        asked = {metric: Asked(config().metrics[metric], 10.0, None) for metric in ("sessions", "conversion")}
        sums = Sums(cube, AT, cube.watched(config()), asked, FIVE, Calendar(config(), silent))
        picks = pick(sums, FIVE, asked, keep=np.empty(0, dtype=np.int64), rate=0.01)
    assert picks["sessions"].large == cube.monitors.height
    assert picks["conversion"].large == 0


# ---- what must not be a reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "scope", "lost"),
    [
        ({"partner": "p0"}, {"partner": "p0"}, 2),
        ({"partner": "p0"}, {"partner": "p0", "country": "SE"}, 2),  # inside it
        ({"partner": "p0"}, {}, 2),  # p0 has most of all sessions
        ({"partner": "p1"}, {}, 0),
        ({"partner": "p1"}, {"partner": "p2"}, 0),
        ({"partner": "never seen"}, {}, 0),
        ({"country": "SE", "browser": "edge"}, {"country": "SE"}, 2),  # which no set has: a third of it
        ({"country": "SE", "browser": "edge"}, {}, 0),
        ({"country": "SE", "browser": "edge"}, {"country": "DE"}, 0),
        ({"country": "SE"}, {"partner": "p2"}, 2),  # a third of it lies across, which is watched
        ({"partner": "p2"}, {"country": "SE"}, 0),
        ({"country": "SE"}, {"partner": "p2", "browser": "edge"}, 2),  # as of p2 and of edge, if not of both
        ({"country": "SE", "browser": "edge"}, {"partner": "p2", "browser": "edge"}, 2),
        ({"country": "SE", "browser": "edge"}, {"partner": "p2", "browser": "chrome"}, 0),
        ({"country": "SE", "browser": "edge"}, {"partner": "p2"}, 0),  # a ninth of it
        ({}, {"partner": "p2"}, 2),
    ],
)
@pytest.mark.parametrize("ago", [dt.timedelta(0), DAY])
def test_a_known_incident_is_no_reference(
    store: EmbeddedStore, mask: dict[str, str], scope: dict[str, str], lost: int, ago: dt.timedelta
) -> None:
    ill = Mask(mask, AT - ago - 14 * MINUTE, AT - ago - 7 * MINUTE)
    clean, masked = (usable(observe(store, config(), AT, masks=masks), store, scope) for masks in ((), (ill,)))
    assert (clean[0] - masked[0], clean[1] - masked[1]) == ((0, lost) if ago else (lost, 0))


@pytest.mark.parametrize("scope", [{"partner": "p2"}, {"partner": "p2", "browser": "edge"}])
def test_what_lies_across_an_incident_keeps_its_references_while_that_lasts(
    store: EmbeddedStore, scope: dict[str, str]
) -> None:
    """Everybody lies across a broken browser; after two hours of it nobody's counts could be judged."""
    clean, lasting, over = (
        usable(observe(store, config(), AT, masks=masks), store, scope)
        for masks in (
            (),
            (Mask({"country": "SE"}, AT - 50 * MINUTE),),
            (Mask({"country": "SE"}, AT - 50 * MINUTE, AT),),
        )
    )
    assert lasting == clean
    assert over[0] < clean[0]


@pytest.mark.parametrize(("began", "judged"), [(50, True), (130, False)])
def test_a_count_waits_for_a_clean_bin_of_today(store: EmbeddedStore, began: int, judged: bool) -> None:
    """Other days alone would take a holiday for an outage; a rate is none the worse for it."""
    ill = Mask({"partner": "p0"}, AT - began * MINUTE, AT - 4 * MINUTE)
    fleet = observe(store, config(), AT, masks=(ill,))
    of = np.array([row(fleet, store, {"partner": "p0"})])
    value = {m: fleet.windows(config().metrics[m], FIVE, of)["value"][0] for m in ("sessions", "conversion")}
    assert np.isfinite(value["sessions"]) == judged
    assert np.isfinite(value["conversion"])


def test_a_bin_without_any_event_is_no_reference() -> None:
    with shop(traffic().filter(~pl.col("event_time").dt.minute().is_between(45, 49))) as store:
        fleet = observe(store, config(), AT)
        assert usable(fleet, store, {}) == (11 - 1, 18 - 1)
        assert usable(fleet, store, {"partner": "p0"}) == usable(fleet, store, {})


def test_a_bin_with_an_empty_minute_is_a_reference() -> None:
    """A small fleet has some."""
    with shop(traffic().filter(pl.col("event_time").dt.minute() % 5 != 1)) as store:
        assert usable(observe(store, config(), AT), store, {}) == (11, 18)


def test_the_bin_in_which_history_begins_is_no_reference() -> None:
    with shop(traffic(days=[0], minutes=28)) as store:
        fleet = observe(store, config(), AT)
        assert int(np.isfinite(references(fleet, store, {})).sum()) == 4
        assert fleet.days == []


def test_what_is_taken_away_is_taken_once(store: EmbeddedStore, seen: Fleet) -> None:
    first = observe(store, config(), AT, scope={"partner": "p0"})
    second = observe(store, config(), AT, scope={"country": "SE"}, without=[{"partner": "p0"}])
    left = seen.copy().minus(first).minus(second)
    everything = row(left, store, {})
    rest = store.totals({"partner": ["p1", "p2", "p3", "p4", "p5"], "country": ["DE", "US"]}, AT - FIVE, AT)
    assert left.total("sessions", FIVE)[everything] == rest["sessions"]
    assert all(np.all(values >= 0) for values in left.values.values())
