"""What a sweep looks at: windows, references and what must not be one."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from kmon.detect import Fleet, observe
from kmon.detect.fleet import spans_for
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, traffic

FIVE = 5 * MINUTE


@pytest.fixture(scope="module")
def store() -> EmbeddedStore:
    share = pl.when(pl.col("partner") == "p0").then(6.0).otherwise(0.5)
    return shop(traffic(sessions=share))


def usable(fleet: Fleet, store: EmbeddedStore, scope: dict[str, str]) -> int:
    """How many reference windows one monitor has."""
    same = [
        pl.col(d).eq_missing(pl.lit(store.number(d, scope[d]) if d in scope else None, pl.UInt32))
        for d in ("partner", "country", "browser")
    ]
    row = fleet.monitors.with_row_index().filter(pl.all_horizontal(same))["index"][0]
    return int(fleet.usable[row, 1:].sum())


def test_spans_go_back_as_far_as_the_history() -> None:
    spans = {s.name: s for s in spans_for(AT, FIVE, AT - 8 * DAY)}
    assert [(s.name, s.count) for s in spans_for(AT, FIVE, AT - 8 * DAY)] == [
        ("current", 1), ("previous", 6), ("yesterday", 11), ("weekly", 11)
    ]  # fmt: skip
    assert spans["previous"].start == AT - 7 * FIVE
    assert spans["yesterday"].start == AT - DAY - 6 * FIVE
    assert [s.name for s in spans_for(AT, FIVE, AT - dt.timedelta(hours=2))] == ["current", "previous"]


@pytest.mark.parametrize(
    ("kind", "minutes", "windows"),
    [("count", 1, 6), ("count", 5, 6), ("count", 15, 4), ("count", 60, 6), ("rate", 15, 6)],
)
def test_a_count_is_compared_with_the_last_hour(kind: str, minutes: int, windows: int, store: EmbeddedStore) -> None:
    """Further back the daily shape looks like a change; hourly windows have no choice."""
    width = minutes * MINUTE
    metric = config().metrics["orders" if kind == "count" else "conversion"]
    fleet = observe(store, config(), AT, width)
    assert fleet.windows(metric)["previous_value"].dtype.shape == (windows,)


def test_counts_are_those_of_the_store(store: EmbeddedStore) -> None:
    fleet = observe(store, config(), AT, FIVE)
    total = store.totals({}, AT - FIVE, AT)
    everything = fleet.monitors["set"].to_numpy() == len(config().watch) - 1
    assert fleet.values["sessions"][everything, 0] == total["sessions"]
    by_partner = fleet.monitors["set"].to_numpy() == 0
    assert fleet.values["orders"][by_partner, 0].sum() == total["orders"]


@pytest.mark.parametrize(
    ("mask", "scope", "lost"),
    [
        ({"partner": "p0"}, {"partner": "p0"}, 2),
        ({"partner": "p0"}, {"partner": "p0", "country": "SE"}, 2),  # inside it
        ({"partner": "p0"}, {}, 2),  # p0 has most of all sessions
        ({"partner": "p1"}, {}, 0),
        ({"partner": "p1"}, {"partner": "p2"}, 0),
        ({"partner": "never seen"}, {}, 0),
        ({}, {"partner": "p2"}, 2),
    ],
)
def test_a_known_incident_is_no_reference(
    store: EmbeddedStore, mask: dict[str, str], scope: dict[str, str], lost: int
) -> None:
    ill = Mask(mask, AT - 14 * MINUTE, AT - 7 * MINUTE)
    clean, masked = (observe(store, config(), AT, FIVE, masks=masks) for masks in ((), (ill,)))
    assert usable(clean, store, scope) - usable(masked, store, scope) == lost


@pytest.mark.parametrize(("began", "judged"), [(29, True), (31, False)])
def test_a_count_right_after_a_known_incident_waits_for_a_clean_window(
    store: EmbeddedStore, began: int, judged: bool
) -> None:
    """Yesterday alone would take a holiday for an outage; a rate is none the worse for it."""
    ill = Mask({"partner": "p0"}, AT - began * MINUTE, AT - 6 * MINUTE)
    fleet = observe(store, config(), AT, FIVE, masks=(ill,))
    whose = fleet.monitors.with_row_index("row").filter(
        (pl.col("partner") == store.number("partner", "p0")) & pl.col("country").is_null() & pl.col("browser").is_null()
    )
    value = {m: fleet.windows(config().metrics[m])["value"][whose["row"][0]] for m in ("sessions", "conversion")}
    assert np.isfinite(value["sessions"]) == judged
    assert np.isfinite(value["conversion"])


def test_a_window_without_any_event_is_no_reference() -> None:
    store = shop(traffic().filter(~pl.col("event_time").dt.minute().is_between(45, 49)))
    fleet = observe(store, config(), AT, FIVE)
    assert usable(fleet, store, {}) == 6 + 11 - 1 - 1
    assert usable(fleet, store, {"partner": "p0"}) == usable(fleet, store, {})


def test_the_window_in_which_history_begins_is_no_reference() -> None:
    store = shop(traffic(days=[0], minutes=28))
    assert usable(observe(store, config(), AT, FIVE), store, {}) == 4


def test_previous_windows_alone_do_not_suffice_for_long_ones() -> None:
    """They would take the daily shape for a change."""
    store = shop(traffic(days=[0], minutes=200))
    assert usable(observe(store, config(), AT, 15 * MINUTE), store, {}) == 6
    assert usable(observe(store, config(), AT, 20 * MINUTE), store, {}) == 0


def test_what_is_taken_away_is_taken_once(store: EmbeddedStore) -> None:
    whole = observe(store, config(), AT, FIVE)
    first = observe(store, config(), AT, FIVE, scope={"partner": "p0"})
    second = observe(store, config(), AT, FIVE, scope={"country": "SE"}, without=[{"partner": "p0"}])
    left = whole.minus(first).minus(second)
    everything = left.monitors["set"].to_numpy() == len(config().watch) - 1
    rest = store.totals({"partner": ["p1", "p2", "p3", "p4", "p5"], "country": ["DE", "US"]}, AT - FIVE, AT)
    assert left.values["sessions"][everything, 0] == rest["sessions"]
    assert all(np.all(values >= 0) for values in left.values.values())
