"""Root causes over dimensions, on cubes of a few rows."""

from __future__ import annotations

import datetime as dt
import itertools
import json

import numpy as np
import polars as pl
import pytest

from kmon.bench import detect_rootcause as bench
from kmon.errors import UsageError
from kmon.rootcause import RootCause, root_causes, spread_between
from tests.conftest import DATA

BROWSERS = ("chrome", "edge", "safari")
COUNTRIES = ("DE", "ES", "FI", "FR", "SE")
DIMENSIONS = ("partner", "country", "browser")
INCIDENTS = DATA / "rca_dev.parquet"


def cube(kind="count", changes=(), partners=("p1", "p2"), size=100.0, rate=0.3):
    """Every combination as expected, but for `changes`: (scope, factor on the count or the rate)."""
    rows = [
        dict(zip(DIMENSIONS, combination, strict=True))
        for combination in itertools.product(partners, COUNTRIES, BROWSERS)
    ]
    for row in rows:
        factor = float(np.prod([f for scope, f in changes if scope.items() <= row.items()]))
        if kind == "count":
            row |= {"observed": size * factor, "expected": size}
        else:
            row |= {"observed": size * rate * factor, "expected": size * rate, "exposure": size}
    return pl.DataFrame(rows)


def found(leaves, dimensions=DIMENSIONS, **options):
    return [(cause.scope, cause.direction) for cause in root_causes(leaves, dimensions, **options)]


ONE = {
    "a value": {"browser": "safari"},
    "two dimensions": {"partner": "p1", "country": "SE"},
    "a leaf": {"partner": "p2", "country": "FI", "browser": "edge"},
    "everything": {},
}


@pytest.mark.parametrize("kind", ["count", "rate"])
@pytest.mark.parametrize(("direction", "factor"), [("down", 0.2), ("down", 0.0), ("up", 3.0)])
@pytest.mark.parametrize("case", ONE)
def test_one_cause(kind, direction, factor, case):
    assert found(cube(kind, [(ONE[case], factor)])) == [(ONE[case], direction)]


SEVERAL = {
    "of one dimension, a set of values": [({"browser": "safari"}, 0.2), ({"browser": "chrome"}, 0.3)],
    "of one dimension, up and down": [({"browser": "safari"}, 0.2), ({"browser": "chrome"}, 2.5)],
    "that share nothing": [({"browser": "safari", "partner": "p1"}, 0.1), ({"country": "DE", "partner": "p2"}, 0.2)],
    "that cross": [({"browser": "safari"}, 0.1), ({"country": "SE"}, 3.0)],
    "one far larger": [({"browser": "safari"}, 0.0), ({"country": "SE", "browser": "edge", "partner": "p1"}, 0.4)],
    "inside one partner": [({"partner": "p1", "country": "SE"}, 0.1), ({"partner": "p1", "browser": "edge"}, 3.0)],
}


@pytest.mark.parametrize("kind", ["count", "rate"])
@pytest.mark.parametrize("case", SEVERAL)
def test_several_causes(kind, case):
    changes = SEVERAL[case]
    told = found(cube(kind, changes, partners=("p1", "p2", "p3"), size=200))
    expected = [(scope, "up" if factor > 1 else "down") for scope, factor in changes]
    assert sorted(told, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("kind", ["count", "rate"])
@pytest.mark.parametrize(
    ("nearly", "known", "told"),
    [
        (True, {"partner": "p1", "country": "SE"}, {"partner": "p1", "country": "SE"}),  # nearly as telling
        (False, {"partner": "p1", "country": "SE"}, {"partner": "p1", "country": "SE", "browser": "edge"}),
        (True, {"partner": "p2"}, {"partner": "p1", "country": "SE", "browser": "edge"}),  # nothing is wrong there
        (True, {"partner": "p9"}, {"partner": "p1", "country": "SE", "browser": "edge"}),  # nobody
        (True, {"channel": "email"}, {"partner": "p1", "country": "SE", "browser": "edge"}),  # no dimension
        (True, {}, {"partner": "p1", "country": "SE", "browser": "edge"}),
    ],
)
def test_a_known_cause_stays_unless_another_tells_clearly_more(kind, nearly, known, told):
    """A third is broken for good, and the two thirds around it are a little worse or as ever."""
    sick = {"partner": "p1", "country": "SE"}
    edge = {**sick, "browser": "edge"}
    left = {"count": 0.585, "rate": 0.63}[kind] if nearly else 1.0
    leaves = cube(kind, [(sick, left), (edge, 0.1 / left)], size=300)
    assert found(leaves, known=[known])[0] == (told, "down")
    assert found(leaves)[0] == (edge, "down")


@pytest.mark.parametrize(
    ("seen", "rest", "told"),
    [
        (0, 4.0, {}),  # of so few events that is as much as can be said
        (0, 1.6, {}),
        (4, 4.0, {"country": "SE"}),
        (2, 1.6, {"country": "SE"}),
    ],
)
def test_a_small_rest_is_alike_unless_it_says_otherwise(seen, rest, told):
    leaves = pl.DataFrame(
        {"country": ["SE", "DE", "FI"], "observed": [0.0, seen / 2, seen / 2], "expected": [60.0, rest / 2, rest / 2]}
    )
    assert found(leaves, ["country"]) == [(told, "down")]


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_nothing_abnormal_has_no_cause(kind):
    assert found(cube(kind)) == []


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_chance_has_no_cause(kind):
    random = np.random.default_rng(1)
    leaves = cube(kind, partners=[f"p{i}" for i in range(50)], size=30)
    drawn = random.poisson(30, leaves.height) if kind == "count" else random.binomial(30, 0.3, leaves.height)
    assert found(leaves.with_columns(observed=pl.Series(drawn))) == []


def test_the_strongest_comes_first_and_says_what_it_explains():
    leaves = cube("rate", [({"browser": "safari"}, 0.1), ({"partner": "p1", "country": "SE", "browser": "edge"}, 0.2)])
    first, second = root_causes(leaves, DIMENSIONS)
    assert first.evidence > second.evidence > 10
    assert (first.observed, first.expected, first.change) == pytest.approx((0.03, 0.3, -10 * 27))
    assert first.share == pytest.approx(270 / 294)
    assert (first.remaining, second.remaining) == pytest.approx((24 / 294, 0))


def test_up_and_down_that_cancel_have_shares():
    leaves = cube(changes=[({"browser": "safari"}, 0.0), ({"browser": "chrome"}, 2.0)])
    assert sum(cause.share for cause in root_causes(leaves, DIMENSIONS)) == pytest.approx(1)


def test_a_parent_with_one_child_is_told_by_its_shorter_name():
    """All of Finland is p1's: what happens there needs no partner."""
    leaves = cube(changes=[({"country": "FI"}, 0.1)]).filter((pl.col("country") != "FI") | (pl.col("partner") == "p1"))
    assert found(leaves) == [({"country": "FI"}, "down")]


def test_a_parent_is_not_blamed_for_its_only_abnormal_child():
    leaves = cube(changes=[({"partner": "p1", "country": "SE"}, 0.0)], size=1000)
    assert found(leaves) == [({"partner": "p1", "country": "SE"}, "down")]


def test_all_children_abnormal_is_the_parent():
    changes = [({"partner": "p1", "country": country}, 0.1 + number / 20) for number, country in enumerate(COUNTRIES)]
    assert found(cube(changes=changes)) == [({"partner": "p1"}, "down")]


def test_a_name_among_few_is_shorter_than_one_among_many():
    """Of two scopes with the same leaves: SE, one of two countries, or p9, one of fifty partners."""
    rows = [{"partner": f"p{i}", "country": "DE", "observed": 20.0, "expected": 20.0} for i in range(50)]
    rows[9] |= {"country": "SE", "observed": 0.0, "expected": 100.0}
    assert found(pl.DataFrame(rows), ("partner", "country")) == [({"country": "SE"}, "down")]


def test_a_change_that_a_rate_without_volume_shows_is_none():
    leaves = cube("rate", [({"browser": "safari"}, 0.0)], size=1.0)
    assert found(leaves) == []


def test_zero_denominators_and_unknown_expectations_say_nothing():
    leaves = cube("rate", [({"browser": "safari"}, 0.1)])
    junk = leaves.with_columns(observed=0.0, exposure=0.0, expected=float("nan"), partner=pl.lit("p9"))
    unknown = leaves.with_columns(expected=pl.lit(None, pl.Float64), browser=pl.lit("opera"))
    assert found(pl.concat([leaves, junk, unknown])) == [({"browser": "safari"}, "down")]


def test_what_was_never_expected_can_rise():
    leaves = pl.concat([cube(), cube(partners=["new"]).with_columns(expected=0.0)])
    assert found(leaves) == [({"partner": "new"}, "up")]


def test_numerators_above_their_denominators_are_cut():
    leaves = cube("rate", [({"browser": "safari"}, 5.0)])
    (cause,) = root_causes(leaves, DIMENSIONS)
    assert (cause.scope, cause.observed) == ({"browser": "safari"}, 1.0)


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_no_leaves_have_no_cause(kind):
    assert found(cube(kind).clear()) == []


def test_no_dimension_leaves_everything():
    leaves = pl.DataFrame({"observed": [10.0], "expected": [100.0]})
    assert found(leaves, ()) == [({}, "down")]


def test_a_dimension_with_one_value_is_in_no_scope():
    leaves = cube(changes=[({"browser": "safari"}, 0.1)], partners=["p1"])
    assert found(leaves) == [({"browser": "safari"}, "down")]


def test_values_keep_their_type_and_null_is_one():
    leaves = pl.DataFrame(
        {"bitrate": [500, 2000, None], "p2p": [0, 0, 0], "observed": [99, 9, 9], "expected": [100] * 3}
    )
    assert found(leaves, ("bitrate", "p2p")) == [({"bitrate": None}, "down"), ({"bitrate": 2000}, "down")]


def test_the_order_of_the_rows_does_not_matter():
    """Not even where two scopes are alike: two leaves of the same size that fell alike."""
    random = np.random.default_rng(0)
    leaves = cube(
        changes=[({"country": "SE", "browser": "edge"}, 0.123), ({"country": "DE", "browser": "safari"}, 0.123)]
    )
    told = {str(root_causes(leaves[random.permutation(leaves.height)], DIMENSIONS)) for _ in range(10)}
    assert len(told) == 1


def test_rows_of_the_same_leaf_add_up():
    leaves = cube(changes=[({"browser": "safari"}, 0.5)], size=4.0)
    assert found(leaves) == []
    assert found(pl.concat([leaves] * 20)) == [({"browser": "safari"}, "down")]


def test_the_input_stays_as_it_is():
    leaves = cube("rate", [({"browser": "safari"}, 0.1)])
    before = leaves.clone()
    root_causes(leaves, DIMENSIONS, spread=0.01)
    assert leaves.equals(before)


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_a_level_that_wanders_needs_more_evidence(kind):
    leaves = cube(kind, [(ONE["a leaf"], 0.4)], size=300)
    assert found(leaves) == [(ONE["a leaf"], "down")]
    assert found(leaves, spread=0.2) == []
    assert found(leaves.with_columns(dispersion=20.0)) == []


def test_a_large_leaf_that_wanders_outvotes_no_small_ones_that_fell():
    small = [{"site": f"s{i}", "app": "new", "observed": 5.0, "expected": 50.0} for i in range(8)]
    rest = [{"site": f"s{i}", "app": "old", "observed": 50.0, "expected": 50.0} for i in range(8)]
    large = {"site": "s9", "app": "old", "observed": 115_000.0, "expected": 100_000.0}
    leaves = pl.DataFrame([*small, *rest, large])
    assert found(leaves, ("site", "app"))[0] == ({"site": "s9"}, "up")
    assert found(leaves, ("site", "app"), spread=0.02) == [({"app": "new"}, "down")]


def test_no_more_causes_than_asked_for():
    leaves = cube(changes=SEVERAL["that share nothing"])
    assert len(root_causes(leaves, DIMENSIONS, most=1)) == 1
    assert root_causes(leaves, DIMENSIONS, least=1e6) == []


@pytest.mark.parametrize("missing", ["browser", "observed", "expected"])
def test_a_missing_column_is_named(missing):
    with pytest.raises(UsageError, match=missing):
        root_causes(cube().drop(missing), DIMENSIONS)


@pytest.mark.parametrize("kind", ["count", "rate"])
def test_pruning_loses_no_cause(kind):
    """The best of all scopes, listed one by one, is what the search finds."""
    random = np.random.default_rng(3)
    for _ in range(20):
        scope = ONE[["a value", "two dimensions", "a leaf"][random.integers(3)]]
        leaves = cube(kind, [(scope, random.uniform(0, 0.7))], size=random.uniform(20, 300))
        exposure = {} if kind == "count" else {"exposure": pl.col("exposure").round()}
        leaves = leaves.with_columns(observed=pl.Series(random.poisson(leaves["observed"])), **exposure)
        alone = [cause for dimensions, cause in _each(leaves) if set(cause.scope) == set(dimensions)]
        told = root_causes(leaves, DIMENSIONS, least=1, most=1)
        if told and told[0].scope:
            assert told[0].evidence == pytest.approx(max(cause.evidence for cause in alone))


def _each(leaves: pl.DataFrame) -> list[tuple[tuple[str, ...], RootCause]]:
    """Every scope's evidence: all dimensions in the search, everything outside the scope as expected."""
    scopes = [
        (names, dict(zip(names, values, strict=True)))
        for length in range(1, len(DIMENSIONS) + 1)
        for names in itertools.combinations(DIMENSIONS, length)
        for values in itertools.product(*(leaves[name].unique().to_list() for name in names))
    ]
    told = []
    for names, scope in scopes:
        inside = pl.all_horizontal(pl.col(name) == value for name, value in scope.items())
        part = leaves.with_columns(observed=pl.when(inside).then("observed").otherwise("expected"))
        told += [(names, cause) for cause in root_causes(part, DIMENSIONS, least=0, most=1) if cause.scope == scope]
    return told


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1])
def test_the_spread_of_counts_is_found_again(spread):
    random = np.random.default_rng(2)
    level = 200.0 * (random.gamma(1 / spread, spread, (400, 10)) if spread else np.ones((400, 10)))
    assert spread_between(random.poisson(level).astype(float)) == pytest.approx(spread, abs=0.001, rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1])
def test_the_spread_of_rates_is_found_again(spread):
    random = np.random.default_rng(2)
    exposure = random.poisson(200, (400, 10)).astype(float)
    level = random.beta(0.3 * (1 / spread - 1), 0.7 * (1 / spread - 1), (400, 10)) if spread else 0.3
    value = random.binomial(exposure.astype(int), level).astype(float)
    assert spread_between(value, exposure) == pytest.approx(spread, abs=0.001, rel=0.1)


@pytest.mark.parametrize("value", [np.zeros((3, 5)), np.ones((3, 1)), np.zeros((0, 4))])
def test_a_history_that_says_nothing_has_no_spread(value):
    assert spread_between(value) == 0
    assert spread_between(value, np.zeros_like(value)) == 0


def verdict(truth, told):
    causes = [RootCause(scope, "down", 20.0, 0.0, 1.0, -1.0, 1.0, 0.0) for scope in told]
    return bench.Verdict(bench.Case("", pl.DataFrame(), (), truth, 0.0), causes, 1.0)


def test_elements_are_counted_over_all_cases():
    verdicts = [
        verdict([{"a": "1", "b": "2"}], [{"a": "1"}]),  # one found, one missed
        verdict([{"a": "1"}, {"a": "2"}], [{"a": "2"}, {"a": "1"}]),  # two found
        verdict([{"a": "1"}], [{"a": "1"}, {"c": "3"}]),  # one found, one wrong
    ]
    assert bench.element_f1(verdicts) == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert bench.exact(verdicts) == pytest.approx(1 / 3)


def test_the_benchmark_runs_without_the_real_incidents(tmp_path, monkeypatch):
    monkeypatch.setenv("KMON_DATA", str(tmp_path))
    rows = {row.name: row for row in bench.run(bench.Options(scale=0.01, repeats=1))}
    assert "KMON_DATA" in rows["rca_*, element F1"].note
    assert rows["simulated counts, causes: 1, element F1"].value == 1


def test_incidents_are_read_as_they_lie(tmp_path):
    begin = int(dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp())
    rows = [
        {"case": "c", "minute": begin + 60 * minute, "cdn": cdn, "p2p": p2p, "value": value, "cnt": 1000.0}
        for minute in range(4)
        for cdn, p2p in itertools.product("37", "01")
        for value in [300.0 if minute == 3 and cdn == "7" else 20.0]
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "rca_x.parquet")
    truth = {"case": "c", "timestamp": begin + 180, "dimensions": ["cdn", "p2p"], "cause": {"cdn": 7}}
    (tmp_path / "rca_x_truth.json").write_text(json.dumps([truth]), encoding="utf-8")
    verdicts = bench.judged(bench.incidents(tmp_path / "rca_x.parquet"))
    assert [c.scope for c in verdicts[0].causes] == [{"cdn": "7"}]
    assert bench.exact(verdicts) == 1


@pytest.mark.data
@pytest.mark.skipif(not INCIDENTS.exists(), reason="rca_dev is missing: set KMON_DATA to its folder")
def test_real_incidents_are_explained():
    assert bench.element_f1(bench.judged(bench.incidents(INCIDENTS))) > 0.8
