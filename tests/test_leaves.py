"""What the leaves of a window are expected to be, on a real small store."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import Scored, sweep
from kmon.detect.fleet import numbers_of
from kmon.detect.guests import row_of
from kmon.leaves import MOST, Leaves, _spans, read_leaves
from kmon.store import EmbeddedStore
from tests.conftest import settle
from tests.detect.worlds import AT, MINUTE, NEXT, Mask, config, shop, spread, traffic

SE, EDGE, P1 = pl.col("country") == "SE", pl.col("browser") == "edge", pl.col("partner") == "p1"
FEW = [f"p{i}" for i in range(6)]
MANY = [f"p{i}" for i in range(80)]


def read(
    store: EmbeddedStore,
    metric: str = "sessions",
    region: dict[str, str] | None = None,
    apart: dict[str, list[str]] | None = None,
    settings: Config | None = None,
    masks: tuple[Mask, ...] = (),
) -> tuple[Leaves, Scored]:
    scored = sweep(store, settings or config(), AT, masks=masks).scored[0]
    leaves = read_leaves(store, settings or config(), scored, metric, region or {}, apart or {}, 0)
    assert leaves is not None
    return leaves, scored


def within(store: EmbeddedStore, leaves: Leaves, scope: dict[str, str], column: str) -> float:
    same = [pl.col(d) == number for d, number in numbers_of(store, scope).items()]
    return float(leaves.frame.filter(same)[column].sum() if same else leaves.frame[column].sum())


SCOPES: list[dict[str, str]] = [{}, {"country": "SE"}, {"partner": "p1"}, {"partner": "p1", "country": "SE"}]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("metric", ["sessions", "conversion"])
def test_leaves_add_up_to_what_each_monitor_is_expected_to_have(metric: str, scope: dict[str, str]) -> None:
    """Also where the hour before is a known incident, of which the leaves' own references know nothing."""
    gone = pl.when(P1 & pl.col("today") & pl.col("ago").is_between(6, 45)).then(0.5).otherwise(8.0)
    with shop(traffic(gone)) as store:
        leaves, scored = read(store, metric, masks=(Mask({"partner": "p1"}, AT - 45 * MINUTE, AT - 5 * MINUTE),))
        row = row_of(scored.fleet, numbers_of(store, scope))
        assert row is not None
        score = scored.score(metric, row)
        assert score is not None
        size = within(store, leaves, scope, "exposure") if metric == "conversion" else 1.0
        assert within(store, leaves, scope, "expected") == pytest.approx(score["expected"] * size, rel=0.1)
        assert within(store, leaves, scope, "observed") == pytest.approx(score["observed"] * size)


def test_what_no_set_has_is_expected_as_it_was() -> None:
    small = pl.when(SE & EDGE).then(2.0).otherwise(8.0)
    with shop(traffic(small)) as store:
        leaves, _ = read(store)
        assert within(store, leaves, {"country": "SE", "browser": "edge"}, "expected") == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("metric", ["sessions", "conversion"])
def test_normal_traffic_has_no_cause(metric: str) -> None:
    with shop(traffic(minutes=60, seed=3)) as store:
        leaves, _ = read(store, metric)
        assert leaves.causes(store, ()) == []
        assert 1 <= leaves.frame["dispersion"][0] < 1.5
        assert leaves.spread < 0.02


def test_a_fleet_that_wanders_is_known_to() -> None:
    """Each partner's sessions change by a third from minute to minute."""
    random = np.random.default_rng(1)
    moods = pl.DataFrame(
        [(p, day, ago, random.lognormal(0, 0.3)) for p in FEW for day in (True, False) for ago in range(-60, 61)],
        schema=["partner", "today", "ago", "mood"],
        orient="row",
    )
    factor = {(p, t, a): m for p, t, a, m in moods.rows()}
    rows = pl.struct("partner", "today", "ago").map_elements(
        lambda r: 8.0 * factor[r["partner"], r["today"], r["ago"]], return_dtype=pl.Float64
    )
    with shop(traffic(rows)) as store:
        leaves, _ = read(store)
    assert leaves.frame["dispersion"][0] * (1 + 40 * leaves.spread) > 2


def test_a_region_needs_no_name_for_its_own_values() -> None:
    ill = pl.when(P1 & SE & EDGE & NEXT).then(0.0).otherwise(8.0)
    with shop(traffic(ill)) as store:
        leaves, _ = read(store, region={"partner": "p1"})
        assert leaves.dimensions == ("country", "browser")
        assert leaves.causes(store, ()) == [({"partner": "p1", "country": "SE", "browser": "edge"}, "down")]
        assert leaves.without(store, {"partner": "p1", "country": "SE"}).causes(store, ()) == []
        assert leaves.without(store, {"partner": "p2"}).frame.height == leaves.frame.height == 9
        assert leaves.without(store, {}).frame.is_empty()


@pytest.mark.parametrize(
    ("ill", "apart", "told"),
    [
        (P1, ["p1"], [({"partner": "p1"}, "down")]),
        (P1, [], [({}, "down")]),  # as much as can be told
        (EDGE, ["p1"], [({"browser": "edge"}, "down")]),
    ],
)
def test_of_many_partners_only_some_are_told_apart(
    ill: pl.Expr, apart: list[str], told: list[tuple[dict[str, str], str]]
) -> None:
    sessions = pl.when(ill & NEXT).then(0.0).otherwise(pl.when(P1).then(40.0).otherwise(2.0))
    with shop(traffic(sessions, partners=MANY)) as store:
        leaves, _ = read(store, apart={"partner": apart})
        assert leaves.frame.height <= 9 * (1 + len(apart))
        assert leaves.causes(store, ()) == told


def test_other_days_are_read_by_the_minute_also_for_shorter_windows() -> None:
    """Which is how they are kept."""
    settings = config(every="10s", windows=["10s", "30s", "5m"])
    with shop(spread(traffic(40.0, minutes=60)), settings) as store:
        settle(store, settings, minutes=AT - 120 * MINUTE)
        at = AT - dt.timedelta(seconds=20)
        for width in settings.windows:
            spans = _spans(at, width, [1])
            rows = store.leaves(spans, {}, ["sessions"], apart={}, most=MOST)
            for column, span in zip(("now", "before", "day1"), spans, strict=True):
                usual = 54 * 40 * (span.width / MINUTE)
                assert rows[f"sessions_{column}"].sum() == pytest.approx(usual, rel=0.3), (width, column)


def test_without_another_day_the_time_before_tells() -> None:
    ill = pl.when(SE & EDGE & NEXT).then(0.0).otherwise(8.0)
    with shop(traffic(ill, days=(0,))) as store:
        assert read(store)[0].causes(store, ()) == [({"country": "SE", "browser": "edge"}, "down")]


def test_a_mean_has_no_leaves() -> None:
    settings = config(metrics={"sessions": {"count": "sessions"}, "each": {"mean": "orders / sessions"}})
    with shop(traffic(), settings) as store:
        scored = sweep(store, settings, AT).scored[0]
        assert read_leaves(store, settings, scored, "each", {}, {}, 0) is None


def test_an_event_without_a_value_is_a_leaf_that_has_no_name() -> None:
    ill = pl.when(EDGE & NEXT).then(0.0).otherwise(8.0)
    nameless = traffic(ill).with_columns(browser=pl.when(EDGE).then(None).otherwise("browser"))
    with shop(nameless) as store:
        leaves, _ = read(store)
        assert (
            within(store, leaves, {}, "observed")
            == nameless.filter(
                (pl.col("kind") == "s") & (pl.col("event_time") >= (AT - 5 * MINUTE).replace(tzinfo=None))
            ).height
        )
        assert leaves.causes(store, ()) == []


def test_where_the_region_is_no_monitor_most_of_it_is_taken_to_be_as_ever() -> None:
    """Twice as much as at all other times, but for one browser; only p1 is told apart."""
    small = pl.when(P1).then(40.0).otherwise(0.5) * pl.when(NEXT & ~EDGE).then(2.0).otherwise(1.0)
    settings = config(watch=[["partner", "country"]])
    with shop(traffic(small, partners=MANY), settings) as store:
        leaves, _ = read(store, region={"country": "SE"}, apart={"partner": ["p1"]}, settings=settings)
        rest = replace(leaves, frame=leaves.frame.filter(pl.col("partner").is_null()))
        for browser, ratio in {"chrome": 1.1, "safari": 1.1, "edge": 0.55}.items():  # not twice as much
            observed, expected = (within(store, rest, {"browser": browser}, of) for of in ("observed", "expected"))
            assert observed / expected == pytest.approx(ratio, abs=0.15)
