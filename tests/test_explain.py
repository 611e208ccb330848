"""From many anomalies to few causes, on a real small store."""

from __future__ import annotations

import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import Fleet, observe, sweep
from kmon.explain import Cause, explain
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, NEXT, config, shop, traffic

EDGE, P1, P2 = (pl.col("browser") == "edge"), (pl.col("partner") == "p1"), (pl.col("partner") == "p2")
SE, DE = (pl.col("country") == "SE"), (pl.col("country") == "DE")


def rate(where: pl.Expr, to: float, usual: float = 0.5) -> pl.Expr:
    """`to` in the last five minutes of `where`, else as usual."""
    return pl.when(where & NEXT).then(to).otherwise(usual)


def explained(store: EmbeddedStore, settings: Config) -> list[Cause]:
    def names(fleet: Fleet, row: int) -> dict[str, str]:
        numbers = {d: n for d, n in fleet.monitors.row(row, named=True).items() if d != "set" and n is not None}
        return {d: store.names(d, [n])[n] for d, n in numbers.items()}

    def refetch(fleet: Fleet, scope: dict[str, str], without: object) -> Fleet:
        return observe(store, settings, fleet.at, scope=scope, without=without)  # type: ignore[arg-type]

    return explain(sweep(store, settings, AT), settings, names, refetch)


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
