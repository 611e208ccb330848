"""Quantiles: arithmetic on counts in buckets, a test that is exact, and numbers that people know."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kmon.config import Metric
from kmon.deepscan import measures_of
from kmon.detect import Compare, Fleet, expected_series, sweep
from kmon.detect.contract import scored
from kmon.detect.fleet import numbers_of, spans_for
from kmon.detect.guests import row_of
from kmon.detect.quantiles import beyond, nearest_edges, quantile, value_of
from kmon.explain import Cause, explain
from kmon.impact import beginning
from kmon.ledger import Ledger
from kmon.reasons import why
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from tests.detect.worlds import AT, MINUTE, add, config, lately, shop, timed, timed_config, traffic

P1, EDGE, SE = pl.col("partner") == "p1", pl.col("browser") == "edge", pl.col("country") == "SE"
EVERYBODY, NOBODY = pl.lit(value=True), pl.lit(value=False)
HOURS = dt.timedelta(hours=1)
FIVE = 5 * MINUTE


def metric(q: float = 0.5, low: float = 1.0, high: float = 1000.0, **more: float) -> Metric:
    """A quantile of its own configuration, with thirty buckets between 1 and 1000 and one on either side."""
    histograms = {"latency": {"of": "latency_ms", "from": low, "to": high}}
    own = {"quantile": "latency", "q": q, **more}
    return timed_config(histograms=histograms, metrics={"latency": own}).metrics["latency"]


def counts(numbers: npt.ArrayLike, of: Metric) -> npt.NDArray[np.float64]:
    """One monitor's counts of some numbers: all, then by bucket."""
    edges = of.histogram.edges
    found, _ = np.histogram(np.array(numbers, float), [*np.nextafter(edges, np.inf), np.inf])
    return np.array([[len(np.atleast_1d(numbers)), *found]], dtype=float)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("spread", [0.05, 0.5, 1.5])
def test_a_quantile_is_off_by_less_than_a_bucket(q: float, spread: float) -> None:
    numbers = np.clip(30 * np.exp(spread * np.random.default_rng(1).standard_normal(5000)), 1.0, 1000.0)
    found = quantile(counts(numbers, metric(q)), metric(q))[0]
    assert found == pytest.approx(np.quantile(numbers, q), rel=metric(q).histogram.ratio - 1)


@pytest.mark.parametrize(
    ("numbers", "q", "found"),
    [
        ([0.0, -5.0, 0.5], 0.5, 1.0),  # below the lowest edge nothing is told apart
        ([5e3, 1e9], 0.5, 1000.0),  # nor above the highest one
        ([2.0] * 8, 0.5, 2.2387),  # all in one bucket: its middle
        ([], 0.5, math.nan),
        ([1.0], 0.5, 1.0),  # an edge belongs to the bucket below it
        ([2.0, 200.0, 200.0, 200.0], 0.25, 2.5119),
    ],
)
def test_a_quantile_of_few_numbers(numbers: list[float], q: float, found: float) -> None:
    assert quantile(counts(numbers, metric(q)), metric(q))[0] == pytest.approx(found, rel=1e-3, nan_ok=True)


def test_histograms_add_up() -> None:
    one, other = ([3.0, 40.0, 41.0], [500.0, 2.0])
    together = counts([*one, *other], metric())
    assert (counts(one, metric()) + counts(other, metric()) == together).all()


@pytest.mark.parametrize(
    ("number", "above"), [(0.1, 3.0), (1.0, 3.0), (10.0, 2.0), (20.0, 1.0), (999.0, 0.0), (1e9, 0.0)]
)
def test_how_many_lie_beyond_a_number(number: float, above: float) -> None:
    assert beyond(counts([5.0, 15.0, 50.0], metric()), metric().histogram, number)[0] == pytest.approx(above, abs=0.01)


@pytest.mark.parametrize(("q", "edge"), [(0.5, 50.119), (0.9, 158.49), (0.99, 398.11)])
def test_the_edge_is_next_to_the_quantile(q: float, edge: float) -> None:
    numbers = 50 * np.exp(0.9 * stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000))
    (found,) = nearest_edges(counts(numbers, metric(q)), metric(q))
    assert metric(q).histogram.edges[found] == pytest.approx(edge, rel=1e-3)


def test_the_edge_of_what_is_all_alike_lies_above_it() -> None:
    """So that a rise is seen, of which people must know."""
    (found,) = nearest_edges(counts([12.0] * 500, metric(0.95)), metric(0.95))
    assert metric().histogram.edges[found] == pytest.approx(12.589, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "sums", "value"),
    [
        ({"count": "a"}, [[3.0]], 3.0),
        ({"rate": "a / b"}, [[3.0], [4.0]], 0.75),
        ({"mean": "a / b"}, [[3.0], [0.0]], math.inf),
        ({"mean": "a / b"}, [[0.0], [0.0]], math.nan),
    ],
)
def test_a_metric_has_one_value(given: dict[str, str], sums: list[list[float]], value: float) -> None:
    assert value_of(Metric.model_validate(given), [np.array(s) for s in sums])[0] == pytest.approx(value, nan_ok=True)


# ---- normal windows --------------------------------------------------------------------------------------------------


def history(of: Metric, volume: float, days: int, slower: float = 1.0, monitors: int = 4000, seed: int = 1) -> Fleet:
    """Monitors with lognormal latencies of their own, with `volume` events a bin, `slower` times in the last one."""
    rng = np.random.default_rng(seed)
    spans = spans_for(AT, FIVE, MINUTE, AT - (days * 24 + 12 if days else 2) * HOURS)
    level, spread = 5.3 + 0.4 * rng.standard_normal((monitors, 1)), rng.lognormal(-0.5, 0.2, (monitors, 1))
    columns = []
    for span in spans:
        for i in range(span.count):
            events = rng.poisson(volume * (span.width / FIVE), monitors)
            ill = span.name == "today" and span.start + i * span.width >= AT - FIVE
            ends = (np.log(of.histogram.edges) - level - (math.log(slower) if ill else 0.0)) / spread
            below = np.hstack([np.zeros((monitors, 1)), stats.norm.cdf(ends), np.ones((monitors, 1))])
            columns.append(np.hstack([events[:, None], rng.multinomial(events, np.diff(below, axis=1))[:, 1:]]))
    table = np.stack(columns, axis=1).astype(float)
    values = {measure: table[:, :, i].copy() for i, measure in enumerate(of.measures)}
    keys = pl.DataFrame({"set": pl.Series([0] * monitors, dtype=pl.Int32)})
    return Fleet(AT, FIVE, tuple(spans), keys, values, np.ones(table.shape[:2], bool), np.ones(table.shape[1], bool))


def scores(of: Metric, given: Fleet, width: dt.timedelta = FIVE) -> pl.DataFrame:
    """Of the monitors that are judged, however few their events and however small the change."""
    found = scored(Compare(min_volume=0, tolerance=0), given.windows(of, width), of)
    return found.filter(pl.col("judged"))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([0.1, 0.5, 0.95, 0.99]), st.sampled_from([10.0, 40.0, 400.0]), st.integers(0, 2),
    st.sampled_from([1, 6]), st.integers(0, 99),
)  # fmt: skip
def test_normal_quantiles_are_not_flagged_too_often(q: float, volume: float, days: int, bins: int, seed: int) -> None:
    """As uniform as those of any rate: with few events beyond the edge there are few p-values, and larger ones."""
    of = metric(q, 10, 10_000)
    p = scores(of, history(of, volume, days, monitors=2000, seed=seed), bins * FIVE)["p_value"]
    for alpha, most in ((0.1, 1 / 6), (0.01, 0.02), (0.001, 0.005)):
        assert (p <= alpha).mean() <= most


@pytest.mark.parametrize(("q", "volume"), [(0.5, 40.0), (0.95, 400.0)])
def test_p_values_of_normal_quantiles_are_uniform_where_events_are_many(q: float, volume: float) -> None:
    p = scores(of := metric(q, 10, 10_000), history(of, volume, 2))["p_value"]
    assert [(p <= alpha).mean() for alpha in (0.2, 0.5, 0.8)] == pytest.approx([0.2, 0.5, 0.8], abs=0.06)


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_the_band_holds_normal_quantiles(q: float) -> None:
    found = scores(of := metric(q, 10, 10_000), history(of, 400.0, 1))
    assert found["observed"].is_between(found["lower"], found["upper"]).mean() > 0.997
    assert (found["observed"] / found["expected"]).median() == pytest.approx(1.0, abs=0.02)
    assert ((found["upper"] - found["lower"]) / found["expected"]).median() < 1.0


@pytest.mark.parametrize(("slower", "direction"), [(1.5, "up"), (0.6, "down")])
@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_numbers_are_those_of_the_quantile(q: float, slower: float, direction: str) -> None:
    found = scores(of := metric(q, 10, 10_000), history(of, 2000.0, 1, slower, 200))
    assert set(found["direction"]) == {direction}
    assert found["effect"].median() == pytest.approx(slower - 1, abs=0.04)
    assert (found["p_value"] < 1e-6).all()


@pytest.mark.parametrize(
    ("own", "slower", "notable"),
    [({}, 1.25, False), ({}, 1.35, True), ({"min_rise": 0.5}, 1.35, False), ({"min_rise": 0.1}, 1.25, True),
     ({}, 0.75, False), ({}, 0.6, True), ({"min_effect": 0.6}, 0.6, False)],
)  # fmt: skip
def test_what_is_worth_telling_is_a_change_of_the_quantile(own: dict[str, float], slower: float, notable: bool) -> None:
    """A third more is a third more, though twice as many events are slow then."""
    found = scores(of := metric(0.9, 10, 10_000, **own), history(of, 20_000.0, 1, slower, 50))
    assert (found["notable"].mean() > 0.9) is notable
    assert found["notable"].mean() < 0.1 or notable


def test_what_has_too_few_events_is_not_judged() -> None:
    of = metric(0.5, 10, 10_000, min_volume=100.0)
    given = history(of, 60.0, 1, monitors=50)
    assert Compare().score(given.windows(of, FIVE))["judged"].to_list() == [False] * 50
    assert Compare().score(given.windows(of, 6 * FIVE))["judged"].all()


# ---- a shop ----------------------------------------------------------------------------------------------------------


def found(store: EmbeddedStore, q: float = 0.95) -> list[Cause]:
    usual = timed_config(q)
    return [c for c in explain(sweep(store, usual, AT), usual, store) if c.metric == "latency"]


CAUSES = {
    "a partner": (P1, [{"partner": "p1"}]),
    "a browser, not its partners": (EDGE, [{"browser": "edge"}]),
    "everything": (EVERYBODY, [{}]),
    "a browser in one country, which no set has": (EDGE & SE, [{"country": "SE", "browser": "edge"}]),
    "two at once": (P1 | EDGE, [{"browser": "edge"}, {"partner": "p1"}]),
    "nothing": (NOBODY, []),
}


@pytest.mark.parametrize("case", CAUSES)
def test_causes_of_a_slower_shop(case: str) -> None:
    where, scopes = CAUSES[case]
    with shop(timed(traffic(20.0), lately(where, 2.0)), timed_config()) as store:
        causes = found(store)
    assert sorted(map(str, (c.scope for c in causes))) == sorted(map(str, scopes))
    for cause in causes:
        assert (cause.direction, cause.expected) == ("up", pytest.approx(540, rel=0.15))
        assert cause.observed > 1.3 * cause.expected


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_each_quantile_is_found_where_everything_is_slower(q: float) -> None:
    with shop(timed(traffic(20.0), lately(P1, 1.7)), timed_config(q)) as store:
        (cause,) = found(store, q)
    usual = 200 * math.exp(0.6 * stats.norm.ppf(q))
    assert (cause.scope, cause.expected) == ({"partner": "p1"}, pytest.approx(usual, rel=0.15))
    assert cause.observed == pytest.approx(1.7 * usual, rel=0.2)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_nothing_is_told_of_more_events_that_are_as_fast_as_ever(q: float) -> None:
    busier = pl.when(P1 & pl.col("today") & (pl.col("ago") <= 5)).then(60.0).otherwise(8.0)
    with shop(timed(traffic(busier)), timed_config(q)) as store:
        assert found(store, q) == []


def test_numbers_that_are_none_or_below_zero_hurt_nothing() -> None:
    odd = pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise(pl.col("latency_ms"))
    odd = pl.when(pl.int_range(pl.len()) % 5 == 1).then(-1.0).otherwise(odd)
    events = timed(traffic(20.0), lately(P1, 2.0)).with_columns(latency_ms=odd)
    with shop(events, timed_config()) as store:
        (cause,) = found(store)
        assert cause.scope == {"partner": "p1"}
        total = store.totals({}, AT - FIVE, AT)
        assert (
            total["latency_00_"]
            == events.filter(
                pl.col("latency_ms").is_not_null() & (pl.col("kind") == "s"),
                pl.col("event_time") >= (AT - FIVE).replace(tzinfo=None),
            ).height
        )


def test_all_events_in_one_bucket_are_a_normal_shop_until_they_leave_it() -> None:
    for times, scopes in ((1.0, []), (2.0, [{"partner": "p1"}])):
        with shop(timed(traffic(20.0), lately(P1, times), spread=0.0), timed_config()) as store:
            assert [c.scope for c in found(store)] == scopes


def test_a_slow_partner_is_one_incident_in_milliseconds() -> None:
    """One and a half times as slow for 20 minutes, told once, over when it is over; and why."""
    usual = timed_config(windows=["1m", "5m"])
    low, high = ((AT - minutes * MINUTE).replace(tzinfo=None) for minutes in (40, 20))
    slow = pl.when(P1 & pl.col("event_time").is_between(low, high, closed="left")).then(1.6).otherwise(1.0)
    with shop(timed(traffic(20.0, minutes=90), slow), usual) as store, Ledger.open("sqlite://") as ledger:
        watch = Watch(usual, store, ledger)
        actions = [d.action for ago in range(44, 4, -1) for d in watch.look(AT - ago * MINUTE).decisions]
        (incident,) = ledger.incidents()
        answer = why(usual, store, ledger, "latency", {"partner": "p1"}, incident.detected_at)
    assert (actions.count("new"), actions.count("resolved")) == (1, 1)
    assert (incident.metric, incident.scope, incident.direction) == ("latency", {"partner": "p1"}, "up")
    assert incident.expected == pytest.approx(540, rel=0.1)
    assert incident.observed == pytest.approx(1.6 * 540, rel=0.2)
    assert incident.lower < incident.expected < incident.upper < incident.observed
    assert abs(incident.started_at - (AT - 40 * MINUTE)) <= 2 * MINUTE
    assert incident.detected_at <= AT - 35 * MINUTE
    assert incident.resolved_at is not None
    assert incident.resolved_at <= AT - 12 * MINUTE
    assert answer.outcome == "fired"
    assert " ms was seen and 5" in answer.sentence
    assert "events lie above 501 ms" in answer.sentence
    assert {window["beyond"] for window in answer.public()["windows"] if window["beyond"]} == {501.187}


@pytest.mark.parametrize("ago", [3, 9, 25])
def test_the_beginning_is_found_to_the_minute(ago: int) -> None:
    usual = timed_config()
    with shop(timed(traffic(20.0), lately(P1, 2.0, ago)), usual) as store, Ledger.open("sqlite://") as ledger:
        for back in (ago - 2, 0):
            Watch(usual, store, ledger).look(AT - max(back, 0) * MINUTE)
        (incident,) = ledger.incidents()
        assert abs(beginning(store, usual, incident, AT) - (AT - ago * MINUTE)) <= MINUTE


def test_a_histogram_that_comes_later_is_learnt() -> None:
    """Of the events before it nothing is known: they are no references, and no fast ones."""
    plain, usual = config(), timed_config()
    events, later = timed(traffic(20.0, days=(0,), minutes=110)), AT - 80 * MINUTE
    first = pl.col("event_time") < later.replace(tzinfo=None)
    with shop(events.filter(first).drop("latency_ms"), plain, later) as store:
        assert store.reconfigure(usual)[:2] == ["histogram latency added", "metric latency added"]
        add(store, events.filter(~first), AT)
        assert store.schema.known_from("latency_07_") is not None
        told = sweep(store, usual, AT).scored[0]
        row = row_of(told.fleet, numbers_of(store, {"partner": "p1"}))
        assert row is not None
        score = told.score("latency", row)
        shown = expected_series(store, usual, "latency", {"partner": "p1"}, AT - 100 * MINUTE, AT)
    assert score is not None
    assert shown["expected"][:20].null_count() == 20  # before it there was nothing to expect anything from
    assert shown["expected"][-20:].null_count() == 0
    assert score["expected"] == pytest.approx(540, rel=0.1)
    assert score["p_value"] > 0.001


@pytest.mark.parametrize("q", [0.05, 0.5, 0.99])
def test_the_store_tells_what_detectors_see(q: float) -> None:
    usual = timed_config(q)
    with shop(timed(traffic()), usual) as store:
        total = store.totals({}, AT - HOURS, AT)
        (asked,) = store.series("latency", {}, AT - HOURS, AT, grain=HOURS)["value"].to_list()
    sums = [np.array([float(total[measure])]) for measure in usual.metrics["latency"].measures]
    assert asked == pytest.approx(value_of(usual.metrics["latency"], sums)[0], rel=1e-9)


def test_a_series_has_the_band_of_the_quantile() -> None:
    usual = timed_config()
    with shop(timed(traffic(20.0, minutes=120), lately(P1, 2.0)), usual) as store:
        series = expected_series(store, usual, "latency", {"partner": "p1"}, AT - HOURS, AT)
        (asked,) = store.series("latency", {"partner": "p1"}, AT - MINUTE, AT)["value"].to_list()
    before, now = series.head(50), series.tail(5)
    assert before["expected"].median() == pytest.approx(540, rel=0.1)
    assert before["yesterday"].median() == pytest.approx(540, rel=0.2)
    assert before["observed"].is_between(before["lower"], before["upper"]).mean() > 0.95
    assert (now["observed"] > now["upper"]).sum() >= 4
    assert series["observed"][-1] == pytest.approx(asked)


def test_no_model_is_fitted_to_buckets() -> None:
    assert measures_of(timed_config()) == {"sessions": None}


def test_other_metrics_are_judged_as_without_a_histogram() -> None:
    gone = P1 & pl.col("today") & (pl.col("ago") <= 5)
    events = timed(traffic(pl.when(gone).then(0.0).otherwise(8.0)))
    kept = {"sessions": {"count": "sessions"}}
    both = []
    for usual in (timed_config(), config(metrics=kept)):
        with shop(events if usual.histograms else events.drop("latency_ms"), usual) as store:
            both.append(sweep(store, usual, AT).scored[0].scores.filter(pl.col("metric") == "sessions"))
    assert both[0].equals(both[1])
    assert both[0]["notable"].any()
