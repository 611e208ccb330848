"""The lifecycle, decision by decision."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any, cast

import pytest

from kmon.explain import Cause, Child
from kmon.incidents import Verdict, change_of, decide, severity_of
from kmon.ledger import Direction, Incident
from tests.detect.worlds import AT, MINUTE, config

FIVE = 5 * MINUTE
EVIL = 'A$^2$ <!channel> "q"\n\'; DROP TABLE x; -- \N{SHOPPING TROLLEY}'


def cause(metric: str = "orders", direction: str = "down", evidence: float = 20.0, **scope: str) -> Cause:
    observed = 10.0 if direction == "down" else 300.0
    child = Child(metric, scope, FIVE, cast(Direction, direction), observed, 100.0, 1e-9)
    return Cause(
        metric,
        scope,
        cast(Direction, direction),
        FIVE,
        "compare",
        observed,
        100.0,
        70.0,
        130.0,
        1e-9,
        observed / 100 - 1,
        evidence,
        (child,),
    )


def incident(*, began: dt.datetime = AT - 20 * MINUTE, **changes: Any) -> Incident:
    """An open incident of p1's orders, seen five minutes ago."""
    (decision,) = decide(config(), began + FIVE, [cause(partner="p1")], [], lambda _: "unjudged")
    return replace(decision.incident, seen_at=AT - FIVE, **changes)


def verdict(value: Verdict) -> Any:
    return lambda _: value


def test_a_cause_that_nothing_explains_is_a_new_incident() -> None:
    (decision,) = decide(config(), AT, [cause(partner=EVIL)], [], verdict("unjudged"))
    found = decision.incident
    assert (decision.action, found.status, found.severity) == ("new", "firing", "critical")
    assert (found.scope, found.started_at, found.detected_at) == ({"partner": EVIL}, AT - FIVE, AT)
    assert found.public()["scope"] == {"partner": EVIL}


@pytest.mark.parametrize(
    ("metric", "direction", "effect", "severity"),
    [("orders", "down", -0.6, "critical"), ("orders", "down", -0.4, "warning"), ("orders", "up", 9.0, "info")],
)
def test_severity(metric: str, direction: str, effect: float, severity: str) -> None:
    assert severity_of(config(), metric, direction, effect) == severity


@pytest.mark.parametrize(
    ("changes", "quiet", "found", "action", "status"),
    [
        ({}, 0, "abnormal", "still", "firing"),
        ({}, 2, "abnormal", "still", "firing"),  # a relapse: the count begins again
        ({}, 0, "normal", "quiet", "firing"),
        ({}, 2, "normal", "resolved", "resolved"),
        ({}, 2, "unjudged", "unjudged", "firing"),
        ({"seen_at": AT - 40 * MINUTE}, 0, "unjudged", "resolved", "resolved"),  # forgotten
        ({"window": dt.timedelta(seconds=10)}, 0, "unjudged", "unjudged", "firing"),  # seen five minutes ago
        ({"began": AT - dt.timedelta(hours=25)}, 0, "abnormal", "resolved", "resolved"),  # the new normal
        ({"status": "acked"}, 0, "normal", "quiet", "acked"),
        ({"status": "acked"}, 2, "normal", "resolved", "resolved"),
    ],
)
def test_without_a_cause(changes: dict[str, Any], quiet: int, found: Verdict, action: str, status: str) -> None:
    known = replace(incident(began=changes.pop("began", AT - 20 * MINUTE)), quiet=quiet, **changes)
    (decision,) = decide(config(), AT, [], [known], verdict(found))
    assert (decision.action, decision.incident.status) == (action, status)
    assert decision.incident.quiet == {"still": 0, "quiet": quiet + 1}.get(action, decision.incident.quiet)
    assert (decision.incident.resolved_at == AT) == (action == "resolved")
    assert decision.reason == decision.incident.reason


def test_what_lasts_is_resolved_even_while_it_is_seen() -> None:
    known = incident(began=AT - dt.timedelta(hours=25))
    (decision,) = decide(config(), AT, [cause(partner="p1")], [known], verdict("abnormal"))
    assert (decision.action, decision.incident.reason) == ("resolved", "it has lasted 1d: this is the new normal")


JOINS: list[tuple[str, dict[str, Any], Cause, Verdict, list[str]]] = [
    ("the same scope", {}, cause(partner="p1"), "abnormal", ["joined"]),
    ("an echo of the same scope", {"seen_at": AT - MINUTE}, cause(partner="p1"), "normal", ["echo", "quiet"]),
    ("the same scope, for a while", {"seen_at": AT - 20 * MINUTE}, cause(partner="p1"), "normal", ["joined"]),
    ("the same scope, with too little to tell", {}, cause(partner="p1"), "unjudged", ["joined"]),
    ("another metric of it", {}, cause("conversion", partner="p1"), "abnormal", ["joined"]),
    ("inside it", {}, cause(partner="p1", country="SE"), "abnormal", ["joined"]),
    (
        "inside it, which is over since long",
        {"seen_at": AT - 20 * MINUTE},
        cause(partner="p1", country="SE"),
        "normal",
        ["new", "quiet"],
    ),
    ("an echo inside it", {"seen_at": AT - MINUTE}, cause(partner="p1", country="SE"), "normal", ["echo", "quiet"]),
    ("around it, while it is young", {"detected_at": AT - MINUTE}, cause(evidence=900), "abnormal", ["joined"]),
    ("around it, not much more", {}, cause(evidence=50), "abnormal", ["joined"]),
    ("around it, far larger", {}, cause(evidence=900), "abnormal", ["new", "still"]),
    ("beside it", {}, cause(partner="p2"), "abnormal", ["new", "still"]),
    ("welcome, in the same place", {}, cause("orders", "up", partner="p1"), "normal", ["new", "quiet"]),
]


@pytest.mark.parametrize(
    ("changes", "found", "judged", "actions"), [case[1:] for case in JOINS], ids=[case[0] for case in JOINS]
)
def test_with_a_cause(changes: dict[str, Any], found: Cause, judged: Verdict, actions: list[str]) -> None:
    known = replace(incident(detected_at=AT - 15 * MINUTE), **changes)
    decisions = decide(config(), AT, [found], [known], verdict(judged))
    assert [decision.action for decision in decisions] == actions


def test_stronger_evidence_gives_the_name() -> None:
    known = incident()
    weak, strong = (
        decide(config(), AT, [cause("conversion", evidence=e, partner="p1")], [known], verdict("abnormal"))[0].incident
        for e in (5, 50)
    )
    assert (weak.metric, weak.evidence) == ("orders", 20)
    assert (strong.metric, strong.evidence) == ("conversion", 50)
    assert weak.anomalies == strong.anomalies == 2
    assert weak.id == strong.id == known.id


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"severity": "info"}, ""),
        ({"scope": {}}, "widened from partner=p1 to everything"),
        ({"scope": {"partner": "p1", "country": "SE"}}, "narrowed from partner=p1 to partner=p1, country=SE"),
        ({"severity": "critical"}, "now critical: orders down 90 %"),
        (
            {"scope": {}, "severity": "critical"},
            "widened from partner=p1 to everything; now critical: orders down 90 %",
        ),
    ],
)
def test_what_became_of_it(changes: dict[str, Any], told: str) -> None:
    before = incident(severity="warning")
    assert change_of(before, replace(before, **changes)) == told


def test_two_causes_of_one_incident_are_one_decision() -> None:
    causes = [cause(partner="p1", country=country) for country in ("SE", "DE")]
    (decision,) = decide(config(), AT, causes, [incident()], verdict("abnormal"))
    assert (decision.action, decision.incident.anomalies) == ("joined", 3)


# ---- what has ended lately -------------------------------------------------------------------------------------------


def over(ago: int = 10, seen: int = 12, **changes: Any) -> Incident:
    """An incident of p1's orders that was resolved so many minutes ago, and last seen a little earlier."""
    times = {"seen_at": AT - seen * MINUTE, "resolved_at": AT - ago * MINUTE}
    return replace(incident(began=AT - 90 * MINUTE), status="resolved", **times, **changes)


def wide(found: Cause, minutes: int = 15) -> Cause:
    """The cause in a longer window."""
    return replace(found, window=minutes * MINUTE)


ENDED: list[tuple[str, Incident, Cause, list[str]]] = [
    ("a window that reaches back into it is its echo", over(), wide(cause(partner="p1")), ["echo"]),
    ("also of a part of it", over(), wide(cause(partner="p1", country="SE")), ["echo"]),
    ("also of a wider scope that tells not much more", over(), wide(cause(evidence=50)), ["echo"]),
    ("not of a wider one that tells far more", over(), wide(cause(evidence=900)), ["new"]),
    ("not of something else", over(), wide(cause(partner="p2")), ["new"]),
    ("not of good news", over(), wide(cause("orders", "up", partner="p1")), ["new"]),
    ("what returns within an hour is the same", over(), cause(partner="p1"), ["reopened"]),
    ("another metric of it, too", over(), cause("conversion", partner="p1"), ["reopened"]),
    ("what returns later is another one", over(ago=61, seen=63), cause(partner="p1"), ["new"]),
    ("a part of it is another one", over(), cause(partner="p1", country="SE"), ["new"]),
]


@pytest.mark.parametrize(("ended", "found", "actions"), [case[1:] for case in ENDED], ids=[case[0] for case in ENDED])
def test_after_an_incident(ended: Incident, found: Cause, actions: list[str]) -> None:
    decisions = decide(config(), AT, [found], [], verdict("unjudged"), [ended])
    assert [decision.action for decision in decisions] == actions


def test_what_is_reopened_is_open_again_and_has_its_beginning() -> None:
    ended = over()
    (decision,) = decide(config(), AT, [cause(partner="p1")], [], verdict("unjudged"), [ended])
    again = decision.incident
    assert (again.id, again.started_at, again.detected_at) == (ended.id, ended.started_at, ended.detected_at)
    assert (again.status, again.resolved_at, again.seen_at, again.quiet) == ("firing", None, AT, 0)
    assert again.anomalies == ended.anomalies + 1
    assert decision.reason == again.reason == "it is back"


@pytest.mark.parametrize(
    ("again", "found"),
    [({"metric": "conversion"}, 3), ({"partner": "p1", "country": "SE"}, 3), ({"partner": "p2"}, 2)],
)
def test_two_causes_in_the_scope_of_one_that_ended_are_both_seen(again: dict[str, str], found: int) -> None:
    """The first one reopens it, the second one belongs to it then, unless it is somewhere else."""
    second = cause(**{"partner": "p1", **again})
    decisions = decide(config(), AT, [cause(partner="p1"), second], [], verdict("abnormal"), [over()])
    back = next(decision for decision in decisions if decision.action == "reopened")
    assert back.incident.anomalies - over().anomalies == found - 1
    assert [d.action for d in decisions if d is not back] == ([] if found == 3 else ["new"])


def test_what_people_settled_is_not_reopened() -> None:
    ended = over()
    (decision,) = decide(config(), AT, [cause(partner="p1")], [], verdict("unjudged"), [ended], {ended.id})
    assert (decision.action, decision.incident.id == ended.id) == ("new", False)


@pytest.mark.parametrize(
    ("metric", "window", "actions"),
    [("conversion", 15, ["echo"]), ("conversion", 5, ["new"]), ("orders", 15, ["new"])],
)
def test_a_rate_that_falls_in_a_rise_that_has_ended_is_its_echo(metric: str, window: int, actions: list[str]) -> None:
    """More sessions in a part of the window: the denominator swelled."""
    rise = over(metric="sessions", direction="up")
    decisions = decide(config(), AT, [wide(cause(metric, partner="p1"), window)], [], verdict("unjudged"), [rise])
    assert [decision.action for decision in decisions] == actions


def test_a_rate_that_falls_where_a_known_rise_has_just_grown_is_its_echo() -> None:
    """The rise was known in one country, in which the fall does not lie; by the end of this sweep it is everywhere."""
    rise = replace(incident(metric="sessions", direction="up"), scope={"partner": "p1", "country": "SE"})
    fall = cause("conversion", partner="p1", browser="edge")
    for known in ([rise], []):
        causes = [fall, cause("sessions", "up", 30.0, partner="p1")]
        decisions = decide(config(), AT, causes, known, verdict("abnormal"))
        grown = next(decision for decision in decisions if decision.is_about(causes[1]))
        echo = next(decision for decision in decisions if decision.is_about(fall))
        assert (grown.action, grown.incident.scope) == ("joined" if known else "new", {"partner": "p1"})
        assert (echo.action, echo.of) == ("echo", grown.incident.id)


def nearly() -> Incident:
    """An open incident of p1 that looks normal again."""
    return replace(incident(), seen_at=AT - MINUTE)


ECHOES: list[tuple[Cause, list[Incident], list[Incident], str]] = [
    (wide(cause(partner="p1")), [], [over()], "which is over: its window reaches back into it"),
    (cause(partner="p1", country="SE"), [nearly()], [], "which is nearly over: should it last, it is told when"),
    (
        wide(cause("conversion", partner="p1")),
        [],
        [over(metric="sessions", direction="up")],
        "whose rise swelled its denominator",
    ),
]


@pytest.mark.parametrize(("found", "known", "ended", "says"), ECHOES, ids=["over", "nearly over", "swollen"])
def test_an_echo_says_of_which_incident_and_why(
    found: Cause, known: list[Incident], ended: list[Incident], says: str
) -> None:
    (of,) = [*known, *ended]
    decisions = decide(config(), AT, [found], known, verdict("normal"), ended)
    echo = next(decision for decision in decisions if decision.is_about(found))
    assert (echo.action, echo.of, echo.incident.scope) == ("echo", of.id, found.scope)
    assert echo.reason.startswith(f"an echo of {of.id} ({of.metric} {of.direction}), {says}")


def test_every_cause_that_joins_is_told_of() -> None:
    causes = [cause(partner="p1"), cause("conversion", partner="p1")]
    (joined,) = decide(config(), AT, causes, [incident()], verdict("abnormal"))
    assert all(joined.is_about(one) for one in causes)
    assert not joined.is_about(cause(partner="p1"))
    (back,) = decide(config(), AT, causes, [], verdict("abnormal"), [over()])
    assert (back.action, [back.is_about(one) for one in causes]) == ("reopened", [True, True])
