"""From causes to incidents: new, joined, quiet, resolved, echo. Each decision is a value with a reason."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from kmon.alerts.message import change
from kmon.config import MINUTE, Config, counted, show_duration
from kmon.explain import Cause
from kmon.leaves import related
from kmon.ledger import SEVERITIES, Direction, Incident, Severity, new_id

Action = Literal["new", "reopened", "joined", "still", "quiet", "resolved", "unjudged", "held", "echo"]
"""`held`: what would be new is not told, as data is missing that explains it. `echo`: nor is this, as an incident
explains it that is over, or nearly, or that swelled a rate's denominator."""
Verdict = Literal["abnormal", "normal", "unjudged"]
"""What a sweep says of an open incident's own monitor."""
FORGOTTEN = 8
"""Windows after which an incident that can no longer be judged is over: a new one must not drown in it."""
REOPENED = dt.timedelta(hours=1)
"""What comes back in the scope of an incident within this time after it was resolved is the same incident."""
LARGER = 3.0
"""A wider cause with more than this times the evidence of an open incident inside it is something else."""


@dataclass(frozen=True)
class Decision:
    """What a sweep does to one incident, and why."""

    action: Action
    incident: Incident
    reason: str
    cause: Cause | None = None
    joined: tuple[Cause, ...] = ()
    """All causes that joined it in this sweep; `cause` is the last of them."""
    of: str | None = None
    """Of an echo: the id of the incident that explains it."""

    def is_about(self, cause: Cause) -> bool:
        """Whether it says what became of that cause."""
        return any(one is cause for one in (self.cause, *self.joined))

    change: str = ""
    """What became of the incident's scope and severity, where people must hear of it."""


def decide(
    config: Config,
    at: dt.datetime,
    causes: Sequence[Cause],
    known: Sequence[Incident],
    recheck: Callable[[Incident], Verdict],
    ended: Sequence[Incident] = (),
    settled: Container[str] = (),
) -> list[Decision]:
    """What the causes of the sweep at `at` mean for the open incidents `known` and for those that `ended` lately.

    `recheck` judges the monitor of an open incident that no cause belongs to. `settled` are the ids of those that
    ended because people said so: what comes back there is something else.
    """
    decisions: list[Decision] = []
    taken: dict[str, Decision] = {}
    going = list(known)
    for cause in sorted(causes, key=lambda one: _is_bad(config, one.metric, one.direction)):  # rises first
        begun = [decision.incident for decision in decisions if decision.action == "new"]
        there = [*(taken[i.id].incident if i.id in taken else i for i in known), *ended, *begun]
        if (rise := _swollen(config, at, cause, there)) is not None:
            decisions.append(_unsaid(config, at, cause, rise, "whose rise swelled its denominator"))
            continue
        match = _match(config, at, cause, going, recheck)
        if match is None and (past := _echo(config, at, cause, [i for i in ended if i.id not in taken])) is not None:
            decisions.append(_unsaid(config, at, cause, past, "which is over: its window reaches back into it"))
            continue
        if match is None and (back := _returned(config, at, cause, ended)) is not None and back.id not in settled:
            again = replace(_join(config, at, back, cause), status="firing", resolved_at=None, reason="it is back")
            taken[back.id] = Decision("reopened", again, "it is back", cause, joined=(cause,))
            going.append(again)
            continue
        if match is None:
            decisions.append(Decision("new", _new(config, at, cause), "no open incident explains it", cause))
            continue
        if _is_nearly_over(at, cause, match, recheck):
            why = "which is nearly over: should it last, it is told when that one is resolved"
            decisions.append(_unsaid(config, at, cause, match, why))
            continue
        before = taken.get(match.id, Decision("joined", match, "same cause as an open incident", cause))
        changed = _join(config, at, before.incident, cause)
        taken[match.id] = replace(before, incident=changed, cause=cause, joined=(*before.joined, cause))
    decisions += [decision for decision in taken.values() if decision.action == "reopened"]
    for incident in known:
        if at - incident.started_at >= config.incidents.lasting:
            joined = taken[incident.id].joined if incident.id in taken else ()
            decisions.append(replace(_lasting(config, at, incident), joined=joined))
        else:
            decisions.append(taken.get(incident.id) or _without_cause(config, at, incident, recheck(incident)))
    return decisions


def severity_of(config: Config, metric: str, direction: str, effect: float, cost: float | None = None) -> Severity:
    """Info for a change in the welcome direction; otherwise by what it costs an hour, or else by its size."""
    if config.metrics[metric].good == direction:
        return "info"
    money = config.incidents.money
    if money is not None and cost is not None:
        return "critical" if cost >= money.critical else "warning"
    return "critical" if abs(effect) >= config.incidents.critical else "warning"


def change_of(before: Incident, after: Incident) -> str:
    """What became of an open incident: ``widened from partner=p1, country=SE to partner=p1``, ``now critical: ...``.

    Empty where scope and severity are as before; that a severity falls is no news.
    """
    told = []
    if before.scope != after.scope:
        how = "widened" if _contains(after.scope, before.scope) else "narrowed"
        told.append(f"{how} from {show_scope(before.scope)} to {show_scope(after.scope)}")
    if SEVERITIES.index(after.severity) > SEVERITIES.index(before.severity):
        told.append(f"now {after.severity}: {after.metric} {change(after)}")
    return "; ".join(told)


def show_scope(scope: dict[str, str]) -> str:
    """A scope on one line, for people: ``partner=p17, country=SE``, or ``everything``."""
    return ", ".join(f"{d}={v}" for d, v in scope.items()).encode("unicode_escape").decode() if scope else "everything"


def _new(config: Config, at: dt.datetime, cause: Cause) -> Incident:
    return Incident(
        id=new_id("inc"),
        status="firing",
        severity=severity_of(config, cause.metric, cause.direction, cause.effect),
        metric=cause.metric,
        direction=cast(Direction, cause.direction),
        scope=cause.scope,
        started_at=at - cause.window,
        detected_at=at,
        resolved_at=None,
        observed=cause.observed,
        expected=cause.expected,
        lower=cause.lower,
        upper=cause.upper,
        p_value=cause.p_value,
        impact={},
        anomalies=len(cause.children),
        channel="",
        url="",
        window=cause.window,
        evidence=cause.evidence,
        seen_at=at,
        quiet=0,
        detector=cause.detector,
        reason="first seen",
    )


def _join(config: Config, at: dt.datetime, incident: Incident, cause: Cause) -> Incident:
    """The incident with one more sweep's anomalies; stronger evidence gives it its name."""
    anomalies = incident.anomalies + len(cause.children)
    seen = replace(incident, anomalies=anomalies, seen_at=at, quiet=0, reason="still abnormal")
    if cause.evidence <= incident.evidence:
        return seen
    return replace(
        seen,
        severity=severity_of(config, cause.metric, cause.direction, cause.effect),
        metric=cause.metric,
        direction=cast(Direction, cause.direction),
        scope=cause.scope,
        observed=cause.observed,
        expected=cause.expected,
        lower=cause.lower,
        upper=cause.upper,
        p_value=cause.p_value,
        window=cause.window,
        evidence=cause.evidence,
        detector=cause.detector,
    )


def _match(
    config: Config,
    at: dt.datetime,
    cause: Cause,
    known: Sequence[Incident],
    recheck: Callable[[Incident], Verdict],
) -> Incident | None:
    """The open incident that a cause belongs to: the same scope, or one that contains the other.

    A wider incident that is over explains nothing inside it but windows that reach back into it. A narrower one may
    turn out to be wider while it is young, or if that tells not much more: otherwise something larger has begun, and
    people must hear of it.
    """
    nested = _nested(config, cause, known)
    nested.sort(key=lambda incident: (incident.scope != cause.scope, -incident.evidence))
    for incident in nested:
        if len(incident.scope) == len(cause.scope):
            return incident
        if _contains(incident.scope, cause.scope):
            belongs = at - cause.window < incident.seen_at or recheck(incident) == "abnormal"
        else:
            belongs = at - incident.detected_at <= cause.window or cause.evidence <= LARGER * incident.evidence
        if belongs:
            return incident
    return None


def _is_nearly_over(at: dt.datetime, cause: Cause, match: Incident, recheck: Callable[[Incident], Verdict]) -> bool:
    """Whether the incident that a cause belongs to is over by its shortest windows, and accounts for the cause.

    The long ones reach back into it for as long as they are: they must not keep it open.
    """
    if _contains(match.scope, cause.scope):
        return recheck(match) != "abnormal"
    return match.scope == cause.scope and at - cause.window < match.seen_at and recheck(match) == "normal"


def _echo(config: Config, at: dt.datetime, cause: Cause, ended: Sequence[Incident]) -> Incident | None:
    """The incident that is over, into which the window of a cause reaches back, and which accounts for it."""
    reached = (
        incident
        for incident in _nested(config, cause, ended)
        if at - cause.window < incident.seen_at
        and (incident.scope.items() <= cause.scope.items() or cause.evidence <= LARGER * incident.evidence)
    )
    return next(reached, None)


def _unsaid(config: Config, at: dt.datetime, cause: Cause, of: Incident, why: str) -> Decision:
    """Of a cause that is not told, as it is an echo of an incident; `why` goes on from the incident's name."""
    reason = f"an echo of {of.id} ({of.metric} {of.direction}), {why}"
    return Decision("echo", _new(config, at, cause), reason, cause, of=of.id)


def _returned(config: Config, at: dt.datetime, cause: Cause, ended: Sequence[Incident]) -> Incident | None:
    """The incident of the same scope that was resolved a short while ago."""
    same = [i for i in _nested(config, cause, ended) if i.scope == cause.scope]
    return next((i for i in same if i.resolved_at and at - i.resolved_at < REOPENED), None)


def _nested(config: Config, cause: Cause, incidents: Sequence[Incident]) -> list[Incident]:
    """The incidents whose scope contains the cause's or lies in it, and that are as good or bad."""
    bad = _is_bad(config, cause.metric, cause.direction)
    return [
        incident
        for incident in incidents
        if related(incident.scope, cause.scope) and _is_bad(config, incident.metric, incident.direction) == bad
    ]


def _swollen(config: Config, at: dt.datetime, cause: Cause, known: Sequence[Incident]) -> Incident | None:
    """The known rise that swelled the denominator of a rate that fell, in a window that reaches into it."""
    if config.metrics[cause.metric].kind != "rate" or not _is_bad(config, cause.metric, cause.direction):
        return None
    rises = [i for i in known if i.metric in config.metrics and not _is_bad(config, i.metric, i.direction)]
    reached = (i for i in rises if i.scope.items() <= cause.scope.items() and at - cause.window < i.seen_at)
    return next(reached, None)


def _contains(wider: dict[str, str], narrower: dict[str, str]) -> bool:
    return len(wider) < len(narrower) and wider.items() <= narrower.items()


def _is_bad(config: Config, metric: str, direction: str) -> bool:
    return metric in config.metrics and config.metrics[metric].good != direction


def _without_cause(config: Config, at: dt.datetime, incident: Incident, verdict: Verdict) -> Decision:
    if verdict == "abnormal":
        reason = "still outside the normal range"
        return Decision("still", replace(incident, seen_at=at, quiet=0, reason=reason), reason)
    if verdict == "unjudged" and at - incident.seen_at >= FORGOTTEN * max(incident.window, MINUTE):
        reason = f"not seen for {show_duration(at - incident.seen_at)}, with too little data to judge it"
        return Decision("resolved", _resolved(at, incident, reason), reason)
    if verdict == "unjudged":
        reason = "not enough data in this sweep to judge it"
        return Decision("unjudged", replace(incident, reason=reason), reason)
    quiet = incident.quiet + 1
    if quiet < config.incidents.resolve_after:
        reason = f"normal for {quiet} of {config.incidents.resolve_after} sweeps"
        return Decision("quiet", replace(incident, quiet=quiet, reason=reason), reason)
    reason = f"back to normal for {counted(quiet, 'sweep')}"
    return Decision("resolved", _resolved(at, replace(incident, quiet=quiet), reason), reason)


def _lasting(config: Config, at: dt.datetime, incident: Incident) -> Decision:
    reason = f"it has lasted {show_duration(config.incidents.lasting)}: this is the new normal"
    return Decision("resolved", _resolved(at, incident, reason), reason)


def _resolved(at: dt.datetime, incident: Incident, reason: str) -> Incident:
    return replace(incident, status="resolved", resolved_at=at, reason=reason)
