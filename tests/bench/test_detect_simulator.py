"""The worlds in which detection is judged, and the judgement."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kmon.bench.detect_simulator import SHOWS, Found, Judged, World, _quality, compared, habits, varied
from kmon.config import PIPELINE
from kmon.ledger import Incident
from kmon.sources.market import COUNTRIES, METHODS, USUAL
from kmon.sources.scenario import KINDS, REAL, SimulatedIncident, incident

NOON = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def true(kind: str, scope: dict[str, str], begin: int = 0, end: int = 30) -> SimulatedIncident:
    return incident(kind, NOON + begin * MINUTE, NOON + end * MINUTE, scope)


def fired(scope: dict[str, str], after: int = 5, severity: Any = "critical", what: str = "orders down") -> Incident:
    numbers = {"observed": 0.0, "expected": 9.0, "lower": 5.0, "upper": 13.0, "p_value": 1e-9, "evidence": 50.0}
    at = NOON + after * MINUTE
    metric, _, way = what.partition(" ")
    direction: Any = way or "down"
    return Incident(
        id=f"{what}{scope}{after}", status="firing", severity=severity, metric=metric, direction=direction, scope=scope,
        started_at=at, detected_at=at, resolved_at=None, impact={}, anomalies=1, channel="", url="", window=MINUTE,
        seen_at=at, quiet=0, detector="compare", reason="", **numbers,
    )  # fmt: skip


P1, EDGE = {"partner": "p1"}, {"browser": "edge"}


@pytest.mark.parametrize(
    ("alert", "belongs", "false"),
    [
        (fired(P1), True, False),
        (fired({**P1, "country": "SE"}), True, False),
        (fired({}), True, False),
        (fired(P1, after=35), True, False),  # late
        (fired(P1, after=45), False, True),
        (fired(P1, after=-1), False, True),
        (fired({"partner": "p2"}), False, True),
        (fired({"partner": "p2"}, severity="info"), False, True),
        (fired({"partner": "p3"}, severity="info", what="sessions up"), False, False),  # a campaign
        (fired({"partner": "p3"}, what="sessions up"), False, True),
        (fired({"partner": "p3"}, severity="info"), False, True),  # it takes nothing away
        (fired({"country": "FI"}, severity="info"), False, True),
        (fired({"country": "FI"}), False, True),  # it is a holiday there
        (fired({}, what=PIPELINE), False, False),  # a partition lags
        (fired({}, what=PIPELINE, after=25), False, True),
    ],
)
def test_what_belongs_to_a_true_incident_and_what_is_false(alert: Incident, belongs: bool, false: bool) -> None:
    outage = true("partner_outage", P1)
    harmless = [true("holiday", {"country": "FI"}), true("lagging_partition", {"partition": "1"}, 0, 8)]
    harmless.append(true("campaign", {"partner": "p3", "channel": "email"}))
    (found,), wrong = compared([outage, *harmless], {outage: 2.0}, [alert])
    assert list(found.incidents) == ([alert] if belongs else [])
    assert wrong == ([alert] if false else [])
    assert found.exact == (belongs and alert.scope == P1)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("partner_outage", ["sessions down", "authorizations down", "orders down"], ["sessions up", "conversion down"]),
        ("orders_stop", ["orders down", "conversion down"], ["sessions down", "orders up"]),
        ("browser_breaks", ["conversion down", "orders down"], ["sessions down", "conversion up", "error_rate up"]),
        ("payment_declines", ["approval down", "conversion down", "orders down"], ["approval up", "sessions down"]),
        ("errors_rise", ["error_rate up"], ["error_rate down", "orders down"]),
        ("surge", ["sessions up", "conversion down"], ["sessions down", "conversion up", "orders up"]),
    ],
)
@pytest.mark.parametrize("scope", [P1, {}])
def test_what_happens_is_found_where_it_shows_only(
    kind: str, right: list[str], wrong: list[str], scope: dict[str, str]
) -> None:
    """Also an incident of everything, which is related to anything, is of one metric that moves one way."""
    truth = true(kind, P1)
    for whats, finds in ((right, True), (wrong, False)):
        for what in whats:
            alert = fired(scope, what=what)
            (found,), false = compared([truth], {truth: 2.0}, [alert])
            assert (list(found.incidents), false) == (([alert], []) if finds else ([], [alert])), what


def test_it_is_told_of_every_kind_where_it_shows() -> None:
    assert SHOWS.keys() == {*REAL, "campaign"}
    for kind in SHOWS:
        assert f"{KINDS[kind].metric} {KINDS[kind].direction}" in SHOWS[kind].split(", ")


def test_how_long_an_incident_outlasts_what_happened() -> None:
    truths = [true("partner_outage", {"partner": f"p{n}"}) for n in range(5)]
    ends: list[list[float | None]] = [[33], [31, 38], [28], [36, None], []]
    found = tuple(
        Found(t, 2.0, tuple(
            replace(fired(t.scope, after=n), resolved_at=None if end is None else NOON + end * MINUTE)
            for n, end in enumerate(minutes, 1)
        ))
        for t, minutes in zip(truths, ends, strict=True)
    )  # fmt: skip
    assert [f.resolved for f in found] == [3, 8, -2, None, None]
    judged = Judged(World("small", 1, 5), found, (), 0, 0, 0.0)
    (row,) = [row for row in _quality("small", [judged]) if "resolved" in row.name]
    assert (row.value, row.unit, row.limit, row.note) == (3, "min", None, "1 of 4 still open")


def test_what_lasts_at_the_same_time_is_judged_together() -> None:
    truths = [true("orders_stop", P1), true("browser_breaks", EDGE, 5, 40), true("surge", {"partner": "p2"}, 39, 60)]
    alone = true("payment_declines", {"payment_method": "card"}, 60, 90)
    small = true("errors_rise", {"partner": "p3"}, 10, 20)
    found = tuple(Found(t, bound, ()) for t, bound in [(alone, 2.0), *((t, 2.0) for t in truths), (small, 99.0)])
    groups = Judged(World("small", 1, 5), found, (), 0, 0, 0.0).at_once
    assert [[f.truth for f in group] for group in groups] == [truths]


def test_every_seed_has_habits_of_its_own() -> None:
    first, again, other = (habits(np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name in ("hourly", "weekly", "countries", "methods", "agents", "channels", "zipf", "volatility"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    for mix in (other.countries, other.agents, other.channels, *other.methods):
        assert mix.sum() == pytest.approx(1)
        assert (mix > 0).all()
    assert other.hourly.mean() == pytest.approx(1)
    assert (other.hourly > 0.05).all()


@pytest.mark.parametrize("kind", REAL)
def test_true_incidents_vary_and_stay_what_they_are(kind: str) -> None:
    scopes = {"browser_breaks": EDGE, "country_conversion_drop": {**P1, "country": "SE"}}
    one, random = true(kind, scopes.get(kind, P1)), np.random.default_rng(1)
    others = [varied(one, USUAL, random) for _ in range(40)]
    assert all((other.strength < 1) == (one.strength < 1) for other in others)
    assert len({other.strength for other in others}) == 40
    assert all(0.69 < (other.strength - 1) / (one.strength - 1) < 1 for other in others)
    assert ({other.ramp for other in others} == {one.ramp}) == any(KINDS[kind].ramp)
    assert all(other.scope.items() >= one.scope.items() for other in others)
    narrowed = [other for other in others if other.scope != one.scope]
    assert bool(narrowed) == (kind in scopes)
    assert all(len(other.scope) == len(one.scope) + 1 for other in narrowed)
    values = {*COUNTRIES, *METHODS, "chrome", "safari", "firefox", "edge", "samsung", "p1"}
    assert {value for other in others for value in other.scope.values()} <= values


def test_what_is_harmless_does_not_vary() -> None:
    holiday = true("holiday", {"country": "FI"})
    assert varied(holiday, USUAL, np.random.default_rng(1)) is holiday
