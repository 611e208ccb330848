from __future__ import annotations

import datetime as dt
import os
import signal
import threading

import polars as pl
import pytest

from kmon.errors import StoreError
from kmon.store import Span
from tests.conftest import EVIL, T, settle
from tests.store.conftest import HOUR, MINUTE, SECOND

END = T + HOUR


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    ("where", "grain", "expected"),
    [
        ({}, MINUTE, [(-120, 2, 0), (-119, 1, 0), (0, 2, 1), (1, 1, 0)]),
        ({}, HOUR, [(-120, 3, 0), (0, 3, 1)]),
        ({"partner": "p1"}, MINUTE, [(-120, 2, 0), (0, 2, 1)]),
        ({"partner": ["p1", "p2"], "country": "DE"}, MINUTE, [(-119, 1, 0), (0, 1, 0)]),
        ({"partner": "nobody"}, MINUTE, []),
        ({"partner": []}, MINUTE, []),
    ],
)
def test_measures(reader, store, config, filled, where, grain, expected, compacted):
    if compacted:
        assert settle(store, config, minutes=T - HOUR) == 1
    rows = reader.measures(where, T - 2 * HOUR, END, grain).select("bucket", "sessions", "orders").rows()
    assert [((b.replace(tzinfo=dt.UTC) - T) / MINUTE, n, orders) for b, n, orders in rows] == expected


def test_measures_in_ten_seconds_from_any_start(reader, filled):
    rows = reader.measures({}, T - 5 * SECOND, END, 10 * SECOND).select("bucket", "events_").rows()
    assert [((b.replace(tzinfo=dt.UTC) - T) / SECOND, n) for b, n in rows] == [(-5, 2), (25, 1), (55, 1)]


def test_totals(reader, filled):
    totals = reader.totals({"partner": "p1"}, T, END)
    assert {m: v for m, v in totals.items() if v} == {
        "events_": 3, "events": 3, "sessions": 2, "orders": 1, "errors": 1, "amount": 12.5,
    }  # fmt: skip
    assert set(reader.totals({"partner": "nobody"}, T, END).values()) == {0}
    assert reader.totals({}, T - 2 * HOUR, T)["sessions"] == 3  # the end does not belong to it


def test_values(reader, filled):
    assert reader.values("country", {}, T - 2 * HOUR, END, 5).rows() == [("SE", 4), ("DE", 2)]
    assert reader.values("partner", {"country": "DE"}, T, END, 1).rows() == [("p1", 1)]


def test_time(reader, filled):
    lateness, idle = 30 * SECOND, 10 * MINUTE
    assert reader.newest() == T + 61 * SECOND
    assert reader.watermark(lateness, idle) == T + 31 * SECOND
    assert reader.oldest() == T - 2 * HOUR
    assert reader.busy(HOUR) == [T - 2 * HOUR, T]


def test_an_empty_store_has_no_time(reader):
    assert (reader.newest(), reader.oldest(), reader.watermark(SECOND, MINUTE), reader.busy(MINUTE)) == (
        None,
        None,
        None,
        [],
    )
    assert reader.measures({}, T, END).height == 0
    assert reader.windows([Span("now", T, 1, MINUTE)], [[], ["partner"]]).height == 0


@pytest.mark.parametrize("idle", [9 * SECOND, 10 * SECOND])
def test_the_slowest_partition_that_is_not_idle_holds_the_watermark(reader, store, idle):
    rows = f"('0', {when(T)}), ('1', {when(T - 10 * SECOND)})"
    store._connection.execute(f"INSERT INTO clocks(partition, newest) VALUES {rows}")
    assert reader.watermark(SECOND, idle) == T - SECOND - (10 * SECOND if idle == 10 * SECOND else 0 * SECOND)


def when(time: dt.datetime) -> str:
    return f"TIMESTAMP '{time.replace(tzinfo=None)}'"


def cells(reader, spans, sets, measure="events_", **options):
    """(set, slot, values of the dimensions, measure) of each monitor and window, in order."""
    found = reader.windows(spans, sets, **options)
    shown = []
    for row in found.iter_rows(named=True):
        names = {d: reader.names(d, [row[d]]).get(row[d]) for d in sets[row["set"]]}
        assert all(row[d] is None for d in reader.schema.dimensions if d in row and d not in sets[row["set"]])
        shown.append((row["set"], row["slot"], *(names[d] for d in sets[row["set"]]), row[measure]))
    return sorted(shown)


@pytest.mark.parametrize("compacted", [False, True])
def test_windows(reader, store, config, filled, compacted):
    if compacted:
        settle(store, config, minutes=T - HOUR)
    spans = [Span("now", T, 2, MINUTE), Span("before", T - 2 * HOUR, 1, HOUR)]
    assert cells(reader, spans, [[], ["partner"], ["country", "partner"]]) == [
        (0, 0, 3), (0, 1, 1), (0, 2, 3),
        (1, 0, "p1", 3), (1, 1, "p2", 1), (1, 2, "p1", 2), (1, 2, "p2", 1),
        (2, 0, "DE", "p1", 1), (2, 0, "SE", "p1", 2), (2, 2, "DE", "p2", 1), (2, 2, "SE", "p1", 2),
    ]  # fmt: skip


def test_the_order_of_sets_and_of_their_dimensions_does_not_matter(reader, filled):
    spans, sets = [Span("now", T, 2, MINUTE)], [["device"], ["partner", "country"], ["country"], [], ["partner"]]
    assert cells(reader, spans, sets) == [
        (1, 0, "p1", "DE", 1), (1, 0, "p1", "SE", 2),
        (2, 0, "DE", 1), (2, 0, "SE", 2),
        (3, 0, 3), (3, 1, 1),
        (4, 0, "p1", 3), (4, 1, "p2", 1),
    ]  # fmt: skip


def test_windows_of_one_scope(reader, filled):
    found = cells(reader, [Span("now", T, 2, MINUTE)], [[], ["partner"]], where={"country": "SE"})
    assert found == [(0, 0, 2), (1, 0, "p1", 2)]


@pytest.mark.parametrize(
    ("partners", "least", "kept"),
    [(70, 2, {"p0", "p1", "p2"}), (70, 3, {"p0", "p1"}), (70, 4, set()), (3, 4, {"p0", "p1", "p2"})],
)
def test_of_many_values_those_with_few_events_in_the_spans_of_each_name_are_left_out(
    reader, commit, partners, least, kept
):
    """What has few values is not screened: whoever asks leaves out what it does not need."""
    commit(*({"partner": f"p{i}", "event_time": T - 2 * HOUR} for i in range(partners)))
    rows = [("p0", 0), ("p0", 0), ("p0", 0), ("p1", 0), ("p1", 60), ("p1", 61), ("p2", 0), ("p2", 60)]
    commit(*({"partner": p, "country": "SE", "event_time": T + s * SECOND} for p, s in rows))
    today = [Span("today", T, 1, MINUTE), Span("today", T + MINUTE, 2, 30 * SECOND)]
    sets = [["partner"], ["country", "partner"], ["country"], []]
    found = cells(reader, [*today, Span("day1", T - 2 * HOUR, 1, MINUTE)], sets, least=least)
    assert {row[2] for row in found if row[0] == 0 and row[1] < 3} == kept
    assert {row[3] for row in found if row[0] == 1 and row[1] < 3} == kept
    rest = [(2, 0, "SE", 5), (2, 1, "SE", 3), (3, 0, 5), (3, 1, 3), (3, 3, partners)]
    assert [row for row in found if row[0] >= 2] == rest
    assert ("p1" not in kept) or (0, 3, "p1", 1) in found  # all windows of a monitor that is kept


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    ("where", "apart", "most", "expected"),
    [
        ({}, {}, 9, [("p1", "SE", 1, 1, 2), ("p1", "DE", 1, 0, 0), ("p2", "", 1, 0, 0), ("p2", "DE", 0, 0, 1)]),
        ({}, {}, 1, [("p1", "SE", 1, 1, 2)]),
        ({"country": "DE"}, {}, 9, [("p1", "DE", 1, 0, 0), ("p2", "DE", 0, 0, 1)]),
        ({"country": "DE"}, {"partner": ["p2"]}, 9, [("p2", "DE", 0, 0, 1), (None, "DE", 1, 0, 0)]),
        ({"country": "DE"}, {"partner": []}, 9, [(None, "DE", 1, 0, 1)]),
        ({"country": "DE"}, {"partner": ["never seen"]}, 9, [(None, "DE", 1, 0, 1)]),
    ],
)
def test_leaves_in_several_windows(reader, store, config, filled, compacted, where, apart, most, expected):
    """Which are the finest combinations there are; what is not told apart is together, and has no number."""
    if compacted:
        settle(store, config, minutes=T - HOUR)
    spans = [Span("now", T, 1, 2 * MINUTE), Span("before", T - 2 * HOUR, 1, HOUR)]
    rows = reader.leaves(spans, where, ["sessions", "orders"], apart=apart, most=most)
    found = [
        (*(n if n is None else reader.names(d, [n]).get(n, "") for d in ("partner", "country") for n in [row[d]]),
         row["sessions_now"], row["orders_now"], row["sessions_before"])
        for row in rows.iter_rows(named=True)
    ]  # fmt: skip
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_two_dimensions_with_many_values(reader, commit):
    commit(*({"partner": f"p{i % 80}", "channel": f"c{i % 90}", "country": "SE"} for i in range(720)))
    sets = [["partner"], ["channel"], ["partner", "channel"], ["country"]]
    found = cells(reader, [Span("now", T, 1, MINUTE)], sets)
    assert [sum(1 for row in found if row[0] == i) for i in range(4)] == [80, 90, 720, 1]
    assert {sum(row[-1] for row in found if row[0] == i) for i in range(4)} == {720}


def test_any_name_is_found(reader, evil):
    for name in EVIL:
        assert reader.totals({"partner": name}, T, END)["sessions"] == 1
        assert reader.values("partner", {"partner": [name]}, T, END, 9)["value"].to_list() == [name]
        number = reader.number("partner", name)
        assert reader.names("partner", [number, 10_000]) == {number: name}
        found = reader.windows([Span("now", T, 1, MINUTE)], [["partner"]], where={"partner": name})
        assert found["partner"].to_list() == [number]


def test_names_that_were_never_seen(reader, evil):
    assert reader.number("partner", "p1") is None
    assert reader.names("partner", [0, 99]) == {}


def test_sql_for_people(reader, evil):
    found = reader.sql("SELECT partner, sessions FROM rollup ORDER BY partner")
    assert found["partner"].to_list() == sorted(EVIL, key=str.encode)
    assert isinstance(found, pl.DataFrame)


@pytest.mark.parametrize("text", ["SELECT", "SELECT connection FROM cells", "FROM nothing", "SELECT http()"])
def test_wrong_sql_is_one_sentence(reader, text):
    with pytest.raises(StoreError) as caught:
        reader.sql(text)
    assert "\n" not in str(caught.value)
    assert "nobody answers" not in str(caught.value)


def test_status(reader, store, config, filled):
    settle(store, config, minutes=T - HOUR)
    status = reader.status()
    assert status["offsets"] == [{"source": "test", "partition": 0, "position": 7}]
    newest = (T + 61 * SECOND).replace(tzinfo=None)
    assert status["clocks"] == [{"partition": "0", "newest": newest, "late": 0, "unread": None}]
    assert {tier: (v["rows"], v["events"]) for tier, v in status["tiers"].items()} == {
        "rollup_10s": (4, 4), "rollup_1m": (2, 3), "rollup_1h": (0, 0),
    }  # fmt: skip
    assert status["raw_events"] == {"rows": 0, "bytes": 0}
    assert status["dead_letters"] == {}
    assert status["bytes"] >= 0


def test_status_tells_the_bytes_of_each_tier_on_disk(reader, store):
    store.connection.execute(
        "INSERT INTO rollup_1m BY NAME SELECT TIMESTAMP '2026-03-02' AS bucket, random() AS amount FROM range(300000)"
    )
    store.connection.execute("CHECKPOINT")
    status = reader.status()
    assert 2_000_000 < status["tiers"]["rollup_1m"]["bytes"] <= status["bytes"]
    assert status["tiers"]["rollup_1h"]["bytes"] == 0


def test_types_that_polars_does_not_know(store):
    found = store.sql("SELECT TIMESTAMP '2026-03-02 12:00' - TIMESTAMP '2026-03-01' AS since, NULL::INTERVAL AS never")
    assert found.row(0) == (dt.timedelta(hours=36), None)
    for odd in ("[INTERVAL 1 DAY]", "union_value(n := 1)", "{'a': [union_value(n := 1)]}"):
        with pytest.raises(StoreError, match="'odd' is of a type that cannot be shown: write odd::VARCHAR"):
            store.sql(f"SELECT {odd} AS odd")


@pytest.mark.timeout(30)
def test_ctrl_c_ends_a_query(store):
    endless = "SELECT count(*) FROM range(3000000) a, range(3000000) b WHERE a.range + b.range <> 7"
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        store.sql(endless)
    assert store.sql("SELECT 1 AS one").item() == 1
