"""The verbs about one metric, embedded and over the wire, whichever tier has the rows."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import yaml

from kmon.config import Config
from kmon.errors import UsageError
from tests.conftest import DAY, TEMPLATE, T, settle
from tests.store.conftest import HOUR, MINUTE, SECOND

END = T + HOUR


def traffic(partner, at, sessions, orders=0, **more):
    rows = [{"operation": "session"}] * sessions + [{"operation": "order", "amount": 10.0}] * orders
    return [{"partner": partner, "event_time": at, **more, **row} for row in rows]


def test_sums_against_those_of_other_times(reader, commit):
    """p1 has less than in two stretches before, p2 is new, one event has no partner, and SE alone counts."""
    commit(
        *traffic("p1", T - DAY, 3, 2, country="SE"), *traffic("p1", T - HOUR, 4, country="SE"),
        *traffic("p1", T, 1, country="SE"), *traffic("p2", T + 5 * MINUTE, 2, 1, country="SE"),
        *traffic(None, T, 1, country="SE"), *traffic("p1", T, 9, country="DE"), *traffic("p1", END, 9, country="SE"),
    )  # fmt: skip
    before = [(T - DAY, T - DAY + HOUR), (T - HOUR, T)]
    sums = {"sessions": ["sessions"], "both": ["sessions", "orders"]}
    found = reader.against("partner", sums, {"country": "SE"}, (T, T + HOUR), before)
    numbers = {None: 0, **{p: reader.number("partner", p) for p in ("p1", "p2")}}
    rows = {row[0]: row[1:] for row in found.rows()}
    assert found.columns == ["number", "sessions", "sessions_before", "both", "both_before"]
    assert {p: rows[n] for p, n in numbers.items()} == {None: (1, 0, 1, 0), "p1": (1, 7, 1, 9), "p2": (2, 0, 3, 0)}


@pytest.fixture
def two_days(commit):
    """p1 converts worse than yesterday, p2 as ever, p3 has gone, p4 is new; one session has no partner."""
    commit(
        *traffic("p1", T - DAY, 40, 20), *traffic("p2", T - DAY, 30, 15), *traffic("p3", T - DAY, 25, 5),
        *traffic("p1", T - HOUR, 40, 20, country="SE"), *traffic("p2", T - HOUR, 20, 10),
        *traffic("p1", T, 40, 4, country="SE"), *traffic("p2", T + 30 * MINUTE, 32, 16), *traffic("p4", T, 3, 1),
        *traffic(None, T, 1),
    )  # fmt: skip


def tiers(store, config, tier):
    """Move all rows into one tier."""
    if tier != "10s":
        settle(store, config, **{"1m": {"minutes": T + HOUR}, "1h": {"hours": T + DAY}}[tier])


def rounded(frame):
    return [tuple(round(v, 3) if isinstance(v, float) else v for v in row) for row in frame.rows()]


@pytest.mark.parametrize("tier", ["10s", "1m", "1h"])
def test_series_of_every_kind_by_the_hour(reader, store, config, two_days, tier):
    tiers(store, config, tier)
    start, end = T - HOUR, T + HOUR
    before, now = ((T + i * HOUR).replace(tzinfo=None) for i in (-1, 0))
    assert rounded(reader.series("sessions", {}, start, end, grain=HOUR)) == [
        (before, 60, 60, None), (now, 76, 76, None),
    ]  # fmt: skip
    assert rounded(reader.series("conversion", {"partner": ["p1", "p2"]}, start, end, grain=HOUR)) == [
        (before, 0.5, 30, 60), (now, 0.278, 20, 72),
    ]  # fmt: skip
    assert rounded(reader.series("amount", {"country": "SE"}, start, end, grain=HOUR)) == [
        (before, 200.0, 200.0, None), (now, 40.0, 40.0, None),
    ]  # fmt: skip
    assert rounded(reader.series("conversion", {}, T, end, ["partner", "country"], HOUR)) == [
        (now, "p1", "SE", 0.1, 4, 40), (now, "p2", None, 0.5, 16, 32),
        (now, "p4", None, 0.333, 1, 3), (now, None, None, 0, 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("tier", "buckets"), [("10s", 2), ("1m", 2), ("1h", 0)])
def test_a_series_by_the_minute_takes_no_hours(reader, store, config, two_days, tier, buckets):
    tiers(store, config, tier)
    found = reader.series("orders", {"partner": "p2"}, T - HOUR, T + HOUR, grain=MINUTE)
    assert found.height == buckets


@pytest.mark.parametrize(
    ("tier", "start", "width"), [("10s", T - 2 * DAY, 1), ("10s", T - 3 * DAY, 60), ("1h", T - HOUR, 60)]
)
def test_the_grain_is_chosen_by_length_and_age(reader, store, config, two_days, tier, start, width):
    tiers(store, config, tier)
    found = reader.series("orders", {"partner": "p2"}, start, start + 3 * DAY if width == 60 else T)
    text = reader.series_sql("orders", {}, start, start + 3 * DAY if width == 60 else T)
    assert f"to_seconds({60 * width})" in text
    assert found.height > 0


def test_buckets_are_multiples_of_the_grain_and_the_first_is_whole(reader, commit):
    commit({}, {"event_time": T + 7 * MINUTE}, {"event_time": T + 10 * MINUTE})
    found = reader.series("sessions", {}, T + 3 * MINUTE, T + 10 * MINUTE, grain=5 * MINUTE)
    assert [(b - T.replace(tzinfo=None), n) for b, n, *_ in found.rows()] == [(0 * MINUTE, 1), (5 * MINUTE, 1)]
    with pytest.raises(UsageError, match="not a multiple of 10 seconds"):
        reader.series("sessions", {}, T, T + HOUR, grain=15 * SECOND)


@pytest.mark.parametrize("tier", ["10s", "1m", "1h"])
def test_breakdown(reader, store, config, two_days, tier):
    tiers(store, config, tier)
    found = reader.breakdown("conversion", "partner", {}, T + HOUR, HOUR)
    assert found.columns == [
        "partner", "now", "before", "yesterday", "change", "share", "numerator", "denominator"
    ]  # fmt: skip
    assert rounded(found) == [
        ("p1", 0.1, 0.5, 0.5, -0.8, 0.526, 4, 40), ("p2", 0.5, 0.5, 0.5, 0, 0.421, 16, 32),
        ("p4", 0.333, None, None, None, 0.039, 1, 3), (None, 0, None, None, None, 0.013, 0, 1),
        ("p3", None, None, 0.2, None, 0, 0, 0),
    ]  # fmt: skip
    counts = reader.breakdown("orders", "partner", {"partner": ["p1", "p3"]}, T + HOUR, HOUR, against="previous")
    assert rounded(counts) == [("p1", 4, 20, 20, -0.8, 1, 4, None), ("p3", 0, 0, 5, None, 0, 0, None)]


def test_a_window_without_anything_is_unknown_and_not_zero(reader, commit):
    commit(*traffic("p1", T, 5))
    assert rounded(reader.breakdown("sessions", "partner", {}, T + MINUTE, MINUTE)) == [
        ("p1", 5, None, None, None, 1, 5, None)
    ]
    assert reader.top_movers("sessions", "partner", {}, T + MINUTE, MINUTE, least=1).height == 0


def test_top_movers(reader, two_days):
    found = reader.top_movers("conversion", "partner", {}, T + HOUR, HOUR)
    assert found.columns == [
        "partner", "now", "before", "change", "impact", "evidence",
        "numerator", "denominator", "numerator_before", "denominator_before",
    ]  # fmt: skip
    assert rounded(found) == [("p1", 0.1, 0.5, -0.8, -16, -3.904, 4, 40, 20, 40)]
    counts = reader.top_movers("sessions", ["partner"], {}, T + HOUR, HOUR)
    assert rounded(counts.select("partner", "impact", "evidence")) == [("p3", -25, -5.0), ("p2", 2, 0.254)]
    assert reader.top_movers("sessions", "partner", {}, T + HOUR, HOUR, limit=1)["partner"].to_list() == ["p3"]
    few = reader.top_movers("sessions", "partner", {}, T + HOUR, HOUR, against="previous", least=1)
    assert few["partner"].to_list() == ["p4", "p2"]
    both = reader.top_movers("sessions", ["partner", "country"], {}, T + HOUR, HOUR, against="previous", least=1)
    assert both.select("partner", "country").rows() == []


def test_top_movers_of_a_mean(reader, store, config, commit):
    metrics = {
        **config.metrics,
        "basket": config.metrics["sessions"].model_copy(update={"count": None, "mean": "amount / orders"}),
    }
    store.reconfigure(config.model_copy(update={"metrics": metrics}))
    dear = [{"operation": "order", "partner": "p1", "amount": 30.0, "event_time": T}] * 25
    commit(*traffic("p1", T - DAY, 0, 25), *dear)
    reader.schema = store.schema
    found = reader.top_movers("basket", "partner", {}, T + MINUTE, MINUTE)
    assert rounded(found.select("partner", "now", "before", "impact", "evidence")) == [("p1", 30, 10, 500, 3.536)]


SIZES = {"sizes": {"of": "amount", "where": "operation = 'order'", "from": 1, "to": 1000}}


@pytest.fixture
def sizes(reader, store):
    """Two quantiles of the amounts of orders, and 21 orders of p1 a day, ten times as large today."""
    text = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    quantiles = {"half": {"quantile": "sizes", "q": 0.5}, "most": {"quantile": "sizes", "q": 0.95}}
    config = Config.model_validate({**text, "histograms": SIZES, "metrics": {**text["metrics"], **quantiles}})
    store.reconfigure(config)
    reader.schema = store.schema
    return config


def orders(partner, at, amounts):
    return [{"operation": "order", "partner": partner, "amount": amount, "event_time": at} for amount in amounts]


@pytest.mark.parametrize("tier", ["10s", "1m", "1h"])
def test_a_quantile_of_five_rows(reader, store, sizes, commit, tier):
    """Within a bucket of the true one, in each tier; what has no amount, or is no order, does not count."""
    commit(*orders("p1", T, [20.0, None, 2.0]), {"operation": "session", "amount": 900.0},
           *orders("p2", T + 5 * MINUTE, [200.0, 210.0]), *orders("p3", T, [0.0, -3.0, 0.5]), *orders("p4", T, [1e6]),
           *orders("p5", T, [None]))  # fmt: skip
    tiers(store, sizes, tier)
    found = reader.series("half", {"partner": ["p1", "p2"]}, T, END, grain=HOUR)
    assert found.columns == ["bucket", "value", "numerator", "denominator"]
    assert found.rows()[0][2:] == (None, 4)
    assert 20 <= found["value"][0] <= 25.2  # an edge belongs to the bucket below it, so 20 is in the one up to 25.1
    by_partner = dict(reader.series("half", {}, T, END, "partner", HOUR).select("partner", "value").rows())
    assert by_partner == pytest.approx({"p1": 2.51, "p2": 223.9, "p3": 1.0, "p4": 1000.0, "p5": None}, rel=0.01)


def test_quantiles_against_another_window(reader, sizes, commit):
    commit(*orders("p1", T - DAY, [2.0] * 15 + [20.0] * 5), *orders("p1", T, [2.0] * 5 + [20.0] * 15),
           *orders("p2", T - DAY, [3.0] * 40), *orders("p2", T, [3.0] * 40), *orders("p3", T, [3.0] * 40))  # fmt: skip
    found = reader.breakdown("half", "partner", {}, END, HOUR)
    assert found["partner"].to_list() == ["p2", "p3", "p1"]
    assert rounded(found.select("share", "numerator", "denominator")) == [
        (0.4, None, 40), (0.4, None, 40), (0.2, None, 20),
    ]  # fmt: skip
    assert found["now"].to_list() == pytest.approx([2.818, 2.818, 21.54], rel=0.01)
    assert found["change"].to_list() == pytest.approx([0.0, None, 8.25], rel=0.01)
    moved = reader.top_movers("half", "partner", {}, END, HOUR)
    assert moved["partner"].to_list() == ["p1"]
    assert rounded(moved.select("numerator_before", "denominator_before", "denominator")) == [(10, 20, 20)]
    assert moved["numerator"][0] == pytest.approx(16.667, rel=0.01)  # of the five in the bucket a third lies above
    assert moved["impact"][0] == pytest.approx(6.667, rel=0.01)
    assert moved["evidence"][0] == pytest.approx(2.236, rel=0.05)


def test_buckets_are_not_shown_to_people(reader, sizes, commit):
    commit(*orders("p1", T, [20.0]))
    assert not [c for c in reader.sql("SELECT * FROM rollup").columns if c.startswith("sizes")]
    assert reader.sql("SELECT sizes_14_ FROM cells").to_series().to_list() == [1]
    with pytest.raises(UsageError, match=r"'nothing' is not a metric or measure; (?!.*sizes_)"):
        reader.series("nothing", {}, T, END)


def test_what_falls_below_zero_moves_too(reader, store, config, commit):
    metrics = {**config.metrics}
    metrics["revenue"] = metrics["sessions"].model_copy(update={"count": "amount"})
    metrics["basket"] = metrics["sessions"].model_copy(update={"count": None, "mean": "orders / amount"})
    store.reconfigure(config.model_copy(update={"metrics": metrics}))
    order = {"operation": "order", "amount": 30.0}
    for partner, refunded in (("p1", 130.0), ("p2", 10.0)):
        order["partner"] = partner
        commit({**order, "event_time": T - DAY}, {**order, "amount": -refunded, "event_time": T})
    reader.schema = store.schema
    found = reader.top_movers("revenue", "partner", {}, T + MINUTE, MINUTE)
    assert rounded(found.select("partner", "now", "before", "evidence")) == [
        ("p1", -130, 30, -16.0), ("p2", -10, 30, -8.944)
    ]  # fmt: skip
    means = reader.top_movers("basket", "partner", {}, T + MINUTE, MINUTE)
    assert rounded(means.select("partner", "evidence")) == [("p1", -12.81)]


@pytest.mark.parametrize("window", [5 * SECOND, 15 * SECOND, 0 * SECOND])
def test_a_window_is_whole_buckets(reader, window):
    with pytest.raises(UsageError, match="not a multiple of 10 seconds"):
        reader.breakdown("sessions", "partner", {}, T, window)
    with pytest.raises(UsageError, match="not a multiple of 10 seconds"):
        reader.top_movers("sessions", "partner", {}, T, window)


def put_raw(store, *documents):
    for i, document in enumerate(documents):
        store.connection.execute(
            "INSERT INTO raw_events(event_time, source, partition, position, size, partner, document)"
            " VALUES ($1, 't', 0, $2, 9, $3, $4)",
            [(T + i * SECOND).replace(tzinfo=None), i, 1 + i % 2, document],
        )


def test_sample_events(reader, store, commit):
    commit({"partner": "p1"})
    commit({"partner": "p2"})
    put_raw(store, '{"status":"ok"}', '{"status":"error","geo":{"city":"Kiel"}}', '{"status":"error"}', "no JSON")

    def positions(*args, **options):
        return reader.sample_events(*args, **options)["position"].to_list()

    assert positions({}) == [3, 2, 1, 0]
    assert positions({}, limit=2) == [3, 2]
    assert positions({"partner": "p1"}) == [2, 0]
    assert positions({}, T + SECOND, T + 3 * SECOND) == [2, 1]
    assert positions({}, only={"status": "error"}) == [2, 1]
    assert positions({}, only={"status": ["ok", "error"], "geo.city": "Kiel"}) == [1]
    assert positions({}, only={"status": "'; DROP TABLE meta; --", 'a".b': "x"}) == []
    assert positions({}, only={"status": []}) == []
    row = reader.sample_events({"partner": "p1"}, limit=1).row(0, named=True)
    assert (row["partner"], row["country"], row["document"]) == ("p1", None, '{"status":"error"}')
    assert row["event_time"] == (T + 2 * SECOND).replace(tzinfo=None)


@pytest.mark.parametrize(("to", "kind"), [("polars", pl.DataFrame), ("arrow", pa.Table), ("pandas", pd.DataFrame)])
def test_results_come_as_asked_for(reader, two_days, to, kind):
    for found in (
        reader.series("conversion", {}, T, T + HOUR, to=to),
        reader.breakdown("orders", "partner", {}, T + HOUR, HOUR, to=to),
        reader.top_movers("orders", "partner", {}, T + HOUR, HOUR, to=to),
        reader.sample_events({}, to=to),
        reader.sql("SELECT * FROM rollup", to=to),
    ):
        assert isinstance(found, kind)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda s: s.series("conversoin", {}, T, END), "a metric or measure; did you mean 'conversion'?"),
        (lambda s: s.series("orders", {"contry": "SE"}, T, END), "a dimension; did you mean 'country'?"),
        (lambda s: s.breakdown("orders", "devise", {}, T, HOUR), "'devise' is not a dimension; did you mean 'device'?"),
        (lambda s: s.breakdown("order", "device", {}, T, HOUR), "a metric or measure; did you mean 'orders'?"),
        (lambda s: s.breakdown("orders", "device", {"contry": "SE"}, T, HOUR), "did you mean 'country'?"),
        (lambda s: s.top_movers("orders", ["device", "contry"], {}, T, HOUR), "did you mean 'country'?"),
        (lambda s: s.top_movers("orders", "device", {"contry": "SE"}, T, HOUR), "did you mean 'country'?"),
        (lambda s: s.top_movers("order", "device", {}, T, HOUR), "a metric or measure; did you mean 'orders'?"),
        (lambda s: s.top_movers("orders", "device", {}, T, HOUR, against="yesteday"), "did you mean 'yesterday'?"),
        (lambda s: s.sample_events({"contry": "SE"}), "'contry' is not a dimension; did you mean 'country'?"),
        (lambda s: s.values("contry", {}, T, END, 5), "'contry' is not a dimension; did you mean 'country'?"),
        (lambda s: s.sample_events({}, to="panda"), "did you mean 'pandas'?"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told_with_the_nearest(reader, ask, says):
    with pytest.raises(UsageError) as caught:
        ask(reader)
    assert str(caught.value).endswith(says)


def test_a_smallest_value_breaks_down_and_has_no_movers(store, config, commit):
    measures = {**config.measures, "least": "min(amount)"}
    store.reconfigure(config.model_copy(update={"measures": measures}))
    commit(*traffic("p1", T, 1, 2), *traffic("p2", T, 1))
    assert rounded(store.breakdown("least", "partner", {}, T + MINUTE, MINUTE).select("partner", "now", "share")) == [
        ("p1", 10.0, None), ("p2", None, None),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="'least' is a smallest or largest value"):
        store.top_movers("least", "partner", {}, T + MINUTE, MINUTE)


def test_metrics_are_known_without_a_configuration(store, tmp_path, config):
    assert store.schema.metrics["conversion"].denominator == "sessions"
    assert store.parts("orders").kind == "count"
