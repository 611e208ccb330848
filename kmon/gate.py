"""The data-quality gate: symptoms of the pipeline become one incident for the operators, and hold back verdicts.

    symptoms  ►  the pipeline's incident: new, still, quiet, resolved
    decisions of the sweep  ►  those that a symptom can explain are held back, the others pass

A symptom explains falls that began when it did, in windows that reach into it. It explains no surge, and no fall that
began before. Missing data makes nothing normal either: open incidents that it may touch stay as they are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kmon.alerts.operators import sentence
from kmon.config import PIPELINE, Config, counted
from kmon.incidents import REOPENED, Decision
from kmon.ledger import Direction, Incident, Ledger, new_id
from kmon.pipeline import Symptom, gaps, symptoms
from kmon.references import MONTH
from kmon.store import Store

MINUTE = dt.timedelta(minutes=1)
MARGIN = dt.timedelta(minutes=5)
"""How well the beginning of a fall is known at best; of one that a longer window shows, to that window."""
LOOKED_BACK = dt.timedelta(minutes=30)
"""So far back, or three windows, a beginning is looked for (`kmon.impact.beginning`)."""
UP = ("rejects", "lag")
"""What is more than usual then."""


@dataclass(frozen=True)
class Period:
    """A time in which data is missing."""

    kind: str
    since: dt.datetime
    until: dt.datetime | None
    """None: it still is."""
    reason: str

    def explains(self, began: dt.datetime, window: dt.timedelta, at: dt.datetime) -> bool:
        """Whether it accounts for a fall that began then, as a window that ends at `at` shows it.

        What breaks at once, as a partition does, explains only what fell with it; rejects may spread.
        """
        margin = max(MARGIN, window)
        if at - window >= (self.until or at) or began < self.since - margin:
            return False
        return self.until is not None or self.kind == "rejects" or began <= self.since + margin


@dataclass(frozen=True)
class Gate:
    """What the data's own state means for one look."""

    config: Config
    at: dt.datetime
    symptoms: tuple[Symptom, ...]
    periods: tuple[Period, ...]
    decision: Decision | None
    """What becomes of the pipeline's incident."""
    known: str | None = None
    """The id of the one that was open before."""

    @property
    def closed(self) -> bool:
        """Whether data is missing at this moment."""
        return any(period.until is None for period in self.periods)

    def passed(self, decisions: Sequence[Decision], known: Sequence[Incident]) -> list[Decision]:
        """What is left of the decisions of a sweep: those that are held back say so, and no more than that.

        The beginning of a new incident must have been estimated; `known` are the incidents before the sweep.
        """
        before = {incident.id: incident for incident in known}
        return [self._passed(decision, before.get(decision.incident.id)) for decision in decisions]

    def _passed(self, decision: Decision, before: Incident | None) -> Decision:
        incident = decision.incident
        if decision.action == "echo":
            return decision
        if before is None or decision.action == "reopened":
            began = self._began(decision)
            why = self._why(began, incident.window) if incident.direction == "down" else ""
            return replace(decision, action="held", reason=f"held back: {why}") if why else decision
        if decision.action == "joined" and decision.cause is not None and decision.cause.direction == "down":
            window = decision.cause.window
            why = self._why(self.at - window, window)
            if why and incident.scope != before.scope:
                return replace(_held(self.at, before, "still", why), joined=decision.joined)
            return decision
        if decision.action in ("quiet", "resolved", "unjudged") and (why := self._frozen(decision, before)):
            return _held(self.at, before, "unjudged", why)
        return decision

    def _began(self, decision: Decision) -> dt.datetime:
        """When a fall began: within its window where nobody knows, or where that seems older than all looked at."""
        incident, within = decision.incident, self.at - decision.incident.window
        if decision.action != "new":
            return within
        oldest = self.at - max(LOOKED_BACK, 3 * incident.window) + max(MINUTE, incident.window / 15)
        return within if incident.started_at < oldest else incident.started_at

    def _why(self, began: dt.datetime, window: dt.timedelta) -> str:
        """Why a fall is held back; empty where it is not."""
        return next((p.reason for p in self.periods if p.explains(began, window, self.at)), "")

    def _frozen(self, decision: Decision, before: Incident) -> str:
        """Why an open incident is not let go: what looks normal, or like nothing, may be missing data.

        A silent partition makes no fall look normal; what is seen to be normal again, is.
        """
        now = [period for period in self.periods if period.until is None]
        if not now or self.at - before.started_at >= self.config.incidents.lasting:
            return ""
        seen_normal = decision.action == "quiet" or decision.incident.quiet >= self.config.incidents.resolve_after
        if before.direction == "down" and seen_normal and all(period.kind == "partition" for period in now):
            return ""
        return now[0].reason


def gate(
    config: Config,
    store: Store,
    ledger: Ledger,
    at: dt.datetime,
    since: dt.datetime | None,
    now: dt.datetime | None = None,
) -> Gate:
    """The gate of a look at `at` after the one at `since`; `now` is the wall clock where the source is live.

    A look back, at or before `since`, holds back as well but leaves the pipeline's incident alone.
    """
    recent = [i for i in ledger.overlapping(at - MONTH, max(at, now or at)) if i.metric == PIPELINE]
    back = since is not None and at < since
    before = min(since or at - config.every, at)
    found = symptoms(config, store, ledger, at, before, known=recent, now=now)
    open_ = next((i for i in recent if i.resolved_at is None), None)
    ended = [i for i in recent if i.resolved_at is not None and at - i.resolved_at < REOPENED]
    told = [s for s in found if s.until is None or s.until > before]
    decision = None if back else decide(config, max(at, now or at), told, open_, ended)
    longest = max(config.windows)
    lately = [*(s for s in found if s.kind != "quiet"), *gaps(config, store, at - longest, at)]
    return Gate(config, at, tuple(told), _periods(at, longest, lately, recent), decision, open_.id if open_ else None)


def _periods(
    at: dt.datetime, longest: dt.timedelta, found: Sequence[Symptom], recent: Sequence[Incident]
) -> tuple[Period, ...]:
    """The times in which data was missing that the windows at `at` reach into.

    Of a source that was quiet, the gap that is left in the data; a lag leaves none.
    """
    periods = [Period(s.kind, s.since, s.until, sentence(incident_of(s, at))) for s in found if s.kind != "lag"]
    on = {period.kind for period in periods if period.until is None}
    past = [i for i in recent if i.detector in ("partition", "rejects") and i.detector not in on]
    periods += [Period(i.detector, i.started_at, i.seen_at, sentence(i)) for i in past if at - longest < i.seen_at]
    return tuple(periods)


# ---- the life of the pipeline's incident -----------------------------------------------------------------------------


def decide(
    config: Config, at: dt.datetime, found: Sequence[Symptom], known: Incident | None, ended: Sequence[Incident] = ()
) -> Decision | None:
    """What the symptoms mean for the open incident of the pipeline, or for one that `ended` lately; there is only one.

    The widest symptom gives it its name. None where there is nothing to tell.
    """
    lasting = config.incidents.lasting
    if known is not None and known.detector in ("partition", "rejects") and at - known.started_at >= lasting:
        reason = "it lasts, and counts as normal from now on"
        return Decision("resolved", replace(known, status="resolved", resolved_at=at, reason=reason), reason)
    if not found:
        return None if known is None else _calm(config, at, known)
    seen = incident_of(found[0], at)
    if known is not None:
        same = (known.detector, known.scope) == (seen.detector, seen.scope)
        began = known.started_at if same else min(known.started_at, seen.started_at)
        kept = {"id": known.id, "status": known.status, "started_at": began, "detected_at": known.detected_at}
        return Decision("still", replace(seen, **kept), seen.reason)  # type: ignore[arg-type]
    back = next((i for i in ended if (i.detector, i.scope) == (seen.detector, seen.scope)), None)
    if back is not None and found[0].until is None:
        kept = {"id": back.id, "detected_at": back.detected_at, "started_at": back.started_at}
        return Decision("reopened", replace(seen, **kept), seen.reason)  # type: ignore[arg-type]
    return Decision("new", seen, seen.reason)


def _calm(config: Config, at: dt.datetime, known: Incident) -> Decision:
    quiet, enough = known.quiet + 1, config.incidents.resolve_after
    if quiet < enough:
        reason = f"as usual for {quiet} of {enough} looks"
        return Decision("quiet", replace(known, quiet=quiet, reason=reason), reason)
    reason = f"as usual for {counted(quiet, 'look')}"
    ended = replace(known, status="resolved", resolved_at=at, quiet=quiet, reason=reason)
    return Decision("resolved", ended, reason)


def incident_of(symptom: Symptom, at: dt.datetime) -> Incident:
    """The symptom as an incident that is seen at `at`; `detector` says its kind."""
    direction: Direction = "up" if symptom.kind in UP else "down"
    end = min(symptom.until or at, at)
    incident = Incident(
        id=new_id("inc"),
        status="firing",
        severity="critical",
        metric=PIPELINE,
        direction=direction,
        scope={"partition": ", ".join(symptom.partitions)} if symptom.partitions else {},
        started_at=min(symptom.since, at),
        detected_at=at,
        resolved_at=None,
        observed=symptom.observed,
        expected=symptom.expected,
        lower=symptom.expected,
        upper=symptom.expected,
        p_value=0.0,
        impact={"events": -round(symptom.missing, 1)} if symptom.missing else {},
        anomalies=0,
        channel="",
        url="",
        window=max(end - symptom.since, MINUTE),
        evidence=0.0,
        seen_at=end,
        quiet=0,
        detector=symptom.kind,
        reason=symptom.detail,
    )
    return replace(incident, reason=". ".join(part for part in (sentence(incident), symptom.detail) if part))


def _held(at: dt.datetime, before: Incident, action: Literal["still", "unjudged"], why: str) -> Decision:
    reason = f"left as it is: {why}"
    return Decision(action, replace(before, seen_at=at, reason=reason), reason)
