"""From many anomalies to few causes, on a real small store."""

from __future__ import annotations

import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import cube, sweep
from kmon.detect.guests import scope_of
from kmon.explain import Cause, explain
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, MINUTE, NEXT, Mask, config, shop, traffic

EDGE, P1, P2 = (pl.col("browser") == "edge"), (pl.col("partner") == "p1"), (pl.col("partner") == "p2")
SE, DE, SAFARI = (pl.col("country") == "SE"), (pl.col("country") == "DE"), (pl.col("browser") == "safari")


def rate(where: pl.Expr, to: float, usual: float = 0.5) -> pl.Expr:
    """`to` in the last five minutes of `where`, else as usual."""
    return pl.when(where & NEXT).then(to).otherwise(usual)


def explained(store: EmbeddedStore, settings: Config) -> list[Cause]:
    return explain(sweep(store, settings, AT), settings, store)


CASES = {
    "a browser breaks everywhere: not its partners": ({"conversion": rate(EDGE, 0.02)}, [{"browser": "edge"}]),
    "one partner in one country": ({"conversion": rate(P1 & SE, 0.0)}, [{"partner": "p1", "country": "SE"}]),
    "one partner everywhere: not its countries": ({"conversion": rate(P1, 0.1)}, [{"partner": "p1"}]),
    "everything: not each partner": ({"conversion": rate(pl.lit(value=True), 0.1)}, [{}]),
    "two causes that share nothing": (
        {"conversion": rate(EDGE | (P1 & (pl.col("browser") != "edge")), 0.02)},
        [{"browser": "edge"}, {"partner": "p1"}],
    ),
    "two partners in one country each": (
        {"conversion": rate((P1 & SE) | (P2 & DE), 0.0)},
        [{"partner": "p1", "country": "SE"}, {"partner": "p2", "country": "DE"}],
    ),
    "a browser in one country, which no set has": (
        {"conversion": rate(SE & EDGE, 0.02)},
        [{"country": "SE", "browser": "edge"}],
    ),
    "two that no set has, at once": (
        {"conversion": rate((SE & EDGE) | (DE & SAFARI), 0.02)},
        [{"country": "SE", "browser": "edge"}, {"country": "DE", "browser": "safari"}],
    ),
    "one that no set has, and a partner": (
        {"conversion": rate(P1 | (SE & EDGE), 0.02)},
        [{"partner": "p1"}, {"country": "SE", "browser": "edge"}],
    ),
    "a partner's browser in one country": (
        {"conversion": rate(P1 & SE & EDGE, 0.0), "sessions": pl.when(P1).then(40.0).otherwise(8.0)},
        [{"partner": "p1", "country": "SE", "browser": "edge"}],
    ),
    "two of three browsers: not everything": (
        {"conversion": rate(EDGE | SAFARI, 0.02)},
        [{"browser": "edge"}, {"browser": "safari"}],
    ),
    "four of six partners: not everything": (
        {"conversion": rate(pl.col("partner").is_in(["p0", "p1", "p2", "p3"]), 0.05)},
        [{"partner": f"p{i}"} for i in range(4)],
    ),
    "a partner that has little elsewhere: not its country": (
        {"sessions": pl.when(P1 & NEXT).then(0.0).otherwise(pl.when(P1 & ~SE).then(0.6).otherwise(4.0))},
        [{"partner": "p1"}],
    ),
    "a partner is gone: its orders too": ({"sessions": rate(P1, 0.0, 8.0)}, [{"partner": "p1"}]),
    "a surge": ({"sessions": rate(P1, 40.0, 8.0)}, [{"partner": "p1"}]),
    "nothing": ({}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_causes(case: str) -> None:
    changes, scopes = CASES[case]
    with shop(traffic(**changes)) as store:  # type: ignore[arg-type]
        causes = explained(store, config())
    assert sorted((c.scope for c in causes), key=str) == sorted(scopes, key=str)


def test_a_cause_lists_what_it_explains_itself_first() -> None:
    with shop(traffic(conversion=rate(EDGE, 0.02))) as store:
        (cause,) = explained(store, config())
    assert cause.children[0].scope == cause.scope == {"browser": "edge"}
    assert {"partner", "browser"} in [set(child.scope) for child in cause.children]
    assert len(set(map(str, cause.children))) == len(cause.children)
    assert cause.direction == "down"
    assert cause.observed < 0.1
    assert cause.expected > 0.4


def test_a_surge_hides_no_failure_inside_it() -> None:
    """p1 is flooded in Germany while its orders stop in Sweden: two things, though p1 as a whole only rises."""
    flood = pl.when(P1 & DE & NEXT).then(200.0).when(P1 & SE & NEXT).then(0.0).otherwise(8.0)
    with shop(traffic(flood)) as store:
        causes = explained(store, config())
    assert ("up", {"partner": "p1"}) in [
        (c.direction, {k: v for k, v in c.scope.items() if k == "partner"}) for c in causes
    ]
    assert ("down", {"partner": "p1", "country": "SE"}) in [(c.direction, c.scope) for c in causes]


def test_a_flood_of_sessions_is_not_a_fall_of_conversion() -> None:
    flood = pl.when(P1 & NEXT).then(40.0).otherwise(8.0)
    bots = pl.when(P1 & NEXT).then(0.1).otherwise(0.5)  # as many orders as ever
    with shop(traffic(flood, bots)) as store:
        causes = explained(store, config())
    assert [(c.metric, c.direction, c.scope) for c in causes] == [("sessions", "up", {"partner": "p1"})]


@pytest.mark.parametrize(
    ("up", "scope"), [(DE & SAFARI, {"country": "DE", "browser": "safari"}), (P1, {"partner": "p1"})]
)
def test_up_here_and_down_there(up: pl.Expr, scope: dict[str, str]) -> None:
    """Both in one sweep, of which no set has the first; the outage is not shared out among its parts."""
    both = pl.when(P2 & NEXT).then(0.0).when(up & NEXT).then(30.0).otherwise(8.0)
    with shop(traffic(both)) as store:
        causes = explained(store, config())
    assert sorted((c.direction, c.scope) for c in causes) == [("down", {"partner": "p2"}), ("up", scope)]


def test_a_cause_that_no_set_has_is_told_in_the_detectors_numbers() -> None:
    with shop(traffic(conversion=rate(SE & EDGE, 0.02))) as store:
        (cause,) = explained(store, config())
        watching = config(watch=[*config().watch, ["country", "browser"]])
        (watched,) = explained(store, watching)
    assert list(cause.scope) == ["country", "browser"]
    assert cause.observed == watched.observed < 0.1
    assert cause.expected == pytest.approx(watched.expected, rel=0.02)
    assert cause.lower == pytest.approx(watched.lower, rel=0.05)
    assert cause.p_value < 1e-9
    assert cause.children[0].scope == cause.scope
    assert {"browser": "edge"} in [child.scope for child in cause.children]


def test_an_open_incident_keeps_its_name() -> None:
    """What is worse in a part of it is another name for it only where that tells clearly more."""
    uneven = pl.when(P1 & SE & EDGE & NEXT).then(0.02).otherwise(rate(SE & EDGE, 0.1))
    known = {"country": "SE", "browser": "edge"}
    with shop(traffic(conversion=uneven)) as store:
        seen = sweep(store, config(), AT)
        assert [c.scope for c in explain(seen, config(), store, [known])] == [known]


@pytest.mark.parametrize(("to", "scope"), [(0.385, {"partner": "p1"}), (0.45, {"partner": "p1", "country": "SE"})])
def test_parts_of_what_falls_by_just_too_little_are_told_as_the_whole(to: float, scope: dict[str, str]) -> None:
    """An outage that began one or two minutes ago: by chance a part has fallen by more than the whole."""
    falls = pl.when(P1 & SE & NEXT).then(0.31).when(P1 & NEXT).then(to).otherwise(0.5)
    with shop(traffic(30.0, falls)) as store:
        seen = sweep(store, config(), AT)
        flagged = [
            scope_of(store, s.fleet, n) for s, f in zip(seen.scored, seen.flagged, strict=True) for n in f["row"]
        ]
        assert {"partner": "p1", "country": "SE"} in flagged
        assert {"partner": "p1"} not in flagged
        causes = explain(seen, config(), store)
    assert [c.scope for c in causes] == [scope]


def test_a_whole_that_fell_with_a_known_cause_names_nothing() -> None:
    """Nobody buys of p0, of which Sweden has much; and in one browser of p1 there."""
    much = pl.when(pl.col("partner") == "p0").then(66.0).otherwise(8.0)
    gone = (pl.col("partner") == "p0") | (P1 & SE & (pl.col("browser") == "chrome"))
    with shop(traffic(much, rate(gone, 0.0))) as store:
        found = explained(store, config())
    assert [c.scope for c in found][:1] == [{"partner": "p0"}]
    assert {"country": "SE"} not in [c.scope for c in found]


@pytest.mark.parametrize(
    "causes", [[{"partner": "p0"}], [{"browser": "edge"}, {"browser": "safari"}]], ids=["partner", "browsers"]
)
def test_causes_of_a_large_fleet_are_those_of_a_small_one(
    causes: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = pl.any_horizontal(*(pl.col(d) == value for scope in causes for d, value in scope.items()))
    for large in (False, True):
        if large:
            monkeypatch.setattr(cube, "LARGE", 6)
            monkeypatch.setattr(cube, "MANY", 5)
        with shop(traffic(rate(gone, 0.1, 8.0))) as store:
            assert [c.scope for c in explained(store, config())] == causes


def test_without_anomalies_nothing_is_read() -> None:
    with shop(traffic()) as store:
        seen = sweep(store, config(), AT)
    assert explain(seen, config(), store) == []  # the store is closed by now


@pytest.mark.parametrize(
    ("where", "to", "scopes"),
    [
        (SE & EDGE, 1.5, [{"country": "SE", "browser": "edge"}]),  # a fifth of each is gone, and no set has both
        (SE, 5.6, []),  # as much in all of the country is what demand does
    ],
)
def test_what_is_certain_and_small_is_looked_into(where: pl.Expr, to: float, scopes: list[dict[str, str]]) -> None:
    with shop(traffic(rate(where, to, 8.0))) as store:
        seen = sweep(store, config(), AT)
        assert seen.anomalies == 0
        assert sum(s.scores.filter(pl.col("p_value") <= seen.cutoff).height for s in seen.scored) > 0
        assert [c.scope for c in explain(seen, config(), store)] == scopes
        assert explain(seen, config(), store, known=scopes) == []  # an open incident is rechecked by itself


@pytest.mark.parametrize(
    ("ago", "labelled", "beside", "scopes"),
    [
        (8, False, 0.5, [{"browser": "edge"}]),
        (8, True, 0.5, []),
        (17, True, 0.02, [{"country": "SE"}]),
    ],
)
def test_what_overlaps_a_new_normal_is_no_cause_and_what_lies_beside_it_is(
    ago: int, labelled: bool, beside: float, scopes: list[dict[str, str]]
) -> None:
    """p1 sells mostly in edge, whose conversion is another for good; in SE something else may break."""
    changed = AT - ago * MINUTE
    shift = {"name": "another edge", "at": changed, "scope": {"browser": "edge"}}
    settings = config(calendar={"shifts": [shift] if labelled else []})
    before = [Mask({"browser": "edge"}, AT - 150 * MINUTE, changed)]
    mostly = pl.when(P1 & EDGE).then(60.0).otherwise(8.0)
    lost = pl.when(EDGE & pl.col("today") & (pl.col("ago") <= ago)).then(0.1).otherwise(0.5)
    with shop(traffic(mostly, pl.when(SE & NEXT).then(beside).otherwise(lost))) as store:
        causes = explain(sweep(store, settings, AT, masks=before), settings, store, masks=before)
    assert [c.scope for c in causes] == scopes


def test_a_fall_of_conversion_explains_no_missing_sessions() -> None:
    """Edge sells nothing, in which p1 has nearly all of its sessions; and p1 has no sessions any more."""
    gone = pl.when(P1 & NEXT).then(0.0).otherwise(pl.when(P1 & EDGE).then(10.0).otherwise(pl.when(P1).then(0.3)))
    with shop(traffic(pl.coalesce(gone, pl.lit(8.0)), rate(EDGE, 0.02))) as store:
        causes = {frozenset(c.scope.items()): c.metric for c in explained(store, config())}
    assert causes[frozenset({"partner": "p1"}.items())] == "sessions"
    assert frozenset({"browser": "edge"}.items()) in causes


@pytest.mark.parametrize(("ended", "told"), [(None, True), (2, False), (6, True)])
def test_what_lies_across_an_incident_that_is_over_is_not_told(ended: int | None, *, told: bool) -> None:
    """Edge was broken in a window that reaches back into it: p1, which has half of its sessions there, is not."""
    over = [] if ended is None else [({"browser": "edge"}, AT - ended * MINUTE)]
    masks = [Mask(scope, AT - 30 * MINUTE, seen) for scope, seen in over]
    lost = pl.when(P1 & EDGE & NEXT).then(0.02).otherwise(0.5)
    with shop(traffic(pl.when(P1 & EDGE).then(16.0).otherwise(8.0), lost)) as store:
        causes = explain(sweep(store, config(), AT, masks=masks), config(), store, masks=masks, over=over)
    assert any(child.scope == {"partner": "p1"} for cause in causes for child in cause.children) is told
    assert all(cause.scope.get("browser") == "edge" for cause in causes)


def test_what_is_only_less_certain_without_a_cause_is_not_explained_by_it() -> None:
    """Conversion falls in the browser that most come with; what is left of p1's surge elsewhere is as large."""
    most = pl.when(EDGE).then(8.0).otherwise(0.2)
    surge = pl.when(P1 & NEXT).then(3.0 * most).otherwise(most)
    with shop(traffic(surge, rate(EDGE, 0.02))) as store:
        causes = explained(store, config())
    assert ("sessions", "up", {"partner": "p1"}) in [(c.metric, c.direction, c.scope) for c in causes]


def test_one_dimension_is_searched_no_further_than_its_values() -> None:
    """Where an anomaly is already a leaf of the base cuboid, it names the cause itself."""
    one = config(dimensions=["partner"], watch=[[], ["partner"]])
    with shop(traffic(rate(P1, 0.0, 8.0)), one) as store:
        assert [c.scope for c in explained(store, one)] == [{"partner": "p1"}]
