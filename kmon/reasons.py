"""Why a monitor fired or did not: the sweep at one instant again, and all that was known of that monitor.

sweep as at that time  ►  causes and decisions of the windows that were looked at, and what the gate held back
  ►  the monitor in each width  ►  in words

Nothing is recorded. A scope that no grouping set has is judged as a root cause is: read for itself, beside the watched
monitors.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any

import polars as pl

from kmon.alerts.message import number, quantity
from kmon.calibrate import Calibration, Key
from kmon.clock import floor
from kmon.config import PIPELINE, Config, Metric, show_duration
from kmon.config.words import known
from kmon.detect import OwnWindows, Scored, Sweep, due_windows
from kmon.detect.fleet import check_taken_over, numbers_of
from kmon.detect.guests import guest_scored, row_of, with_guest
from kmon.errors import UsageError
from kmon.explain import Cause
from kmon.fits import Model, models_of
from kmon.gate import gate
from kmon.incidents import Action, Decision, show_scope
from kmon.leaves import disjoint, related
from kmon.ledger import Fit, Incident, Label, Ledger, show_time
from kmon.references import References, Stretch
from kmon.store import Store
from kmon.watch import Watch
from kmon.windows import Asked, Outcome, Window, window_of

UNWATCHED = (
    "no line of 'watch' has it, so it fires only as the root cause of what a watched monitor shows:"
    " it was read for this answer, and judged by its own history beside the watched monitors"
)
UNSWEPT = "no sweep looked at that instant: this is what one would have said"
OTHERWISE = "that sweep told no incident: it knew less data, or went by another kmon.yaml"


@dataclass(frozen=True)
class Why:
    """The answer."""

    metric: str
    where: dict[str, str]
    at: dt.datetime
    outcome: Outcome
    sentence: str
    windows: tuple[Window, ...]
    masked: tuple[Stretch, ...]
    """Known incidents, and what was labelled: their minutes were no references."""
    cause: dict[str, str] | None
    """The scope that explains the change, where another one or another metric does."""
    incident: str | None
    """The incident that it belongs to, or is an echo of."""
    decided: Action | None = None
    """What the sweep decided of the cause, or else of the open incident of this monitor."""
    swept: bool = False
    """Whether a sweep was made at that time; else all windows count as looked at."""
    watched: bool = True
    """Whether a grouping set has it; else it was judged by itself for this answer."""
    models: tuple[Model, ...] = ()
    """Of the metric's measures, where models are fitted: which one was a reference, or why none was."""

    def public(self) -> dict[str, Any]:
        """As JSON."""
        masked = [
            {
                "id": i.id,
                "scope": i.scope,
                "started_at": show_time(i.started_at),
                "resolved_at": show_time(i.resolved_at),
            }
            for i in self.masked
        ]
        keys = "metric where outcome sentence cause incident decided swept watched"
        told = {key: getattr(self, key) for key in keys.split()}
        models = [
            {**asdict(m), "fitted_at": show_time(m.fitted_at), "data_to": show_time(m.data_to)} for m in self.models
        ]
        windows = [window.public() for window in self.windows]
        return {**told, "at": show_time(self.at), "windows": windows, "masked": masked, "models": models}


def why(
    config: Config,
    store: Store,
    ledger: Ledger,
    metric: str,
    where: dict[str, str],
    at: dt.datetime | None = None,
) -> Why:
    """What the sweep at `at` (default the newest complete instant) says of one monitor, and what was made of it.

    UsageError for a metric, dimension or time that there is none of: where the data is not complete at `at`, or is not
    kept any more, or `at` has no time zone.
    """
    known("metric", metric, config.metrics)
    for dimension in where:
        known("dimension", dimension, config.dimensions)
    check_taken_over(store, config, (), where)
    moment = _moment(config, store, at)
    scope = {d: where[d] for d in config.dimensions if d in where}
    then = _Then(ledger, moment)
    watch = Watch(config, store, then, deliver=False)  # type: ignore[arg-type]
    sweep, told = watch.sweep(moment, keep=[scope])
    looked = _looked_at(sweep, config, then.since)
    causes = watch.explain(looked, told)
    state = gate(config, store, then, moment, then.before)  # type: ignore[arg-type]
    decisions = watch.conclude(looked, causes, told, state)

    cause = _cause_of(causes, metric, scope)
    watched = config.watches(scope)
    if not watched:
        cause = cause or _explaining(causes, looked, told, store, scope, metric)
        sweep = _joined(sweep, told, store, scope, metric)
    decision = next((d for d in decisions if cause is not None and d.is_about(cause)), None)
    near = next((one for one in causes if related(one.scope, scope)), None)
    asked = Asked(config, store, metric, scope, told.masks, cause, decision, near)
    windows = tuple(
        window_of(asked, sweep, scored, looked_at=_is_due(scored, config, moment, then.since))
        for scored in sweep.scored
        if _is_about(scored, config, metric, scope)
    )
    own = decision or next((d for d in decisions if (d.incident.metric, d.incident.scope) == (metric, scope)), None)
    incident = _incident_of(then, own)
    open_ = own if decision is None else None
    outcome, sentence = _told(asked, moment, windows, open_, incident, nothing=not sweep.scored)
    if decision is not None and decision.action == "new" and incident is None and then.swept:
        outcome, sentence = "suppressed", f"{sentence.replace(' fired: ', ' would fire now: ')}; {OTHERWISE}"
    sentence += f"; {UNSWEPT}" if not then.swept else ""
    sentence += f"; {UNWATCHED}" if not watched else ""
    other = cause.scope if cause and (cause.metric, cause.scope) != (metric, scope) else None
    masks = tuple(mask for mask in told.masks if related(mask.scope, scope))
    forecast = config.metrics[metric].forecast
    fitted = models_of(then.fits(moment), told.config, moment, scope) if forecast else []
    models = tuple(m for m in fitted if m.measure in forecast)
    action = own.action if own else None
    return Why(
        metric, scope, moment, outcome, sentence, windows, masks, other, incident, action, then.swept, watched, models
    )


def _moment(config: Config, store: Store, at: dt.datetime | None) -> dt.datetime:
    """The instant of the sweep at a time, default the newest; UsageError where there is nothing to judge at it."""
    if at is not None and at.tzinfo is None:
        message = f"{at.isoformat()} has no time zone: write for example {at.isoformat()}+00:00"
        raise UsageError(message)
    mark, oldest = store.watermark(config.events.lateness, config.events.idle), store.oldest()
    wanted = at or mark
    moment = floor(wanted, config.every) if wanted else None
    if mark is None or moment is None or moment > mark:
        complete = f"up to {mark:%Y-%m-%d %H:%M:%S} UTC only" if mark else "nowhere: the store has no events yet"
        message = f"that time was not judged: the data is complete {complete}"
        raise UsageError(message)
    if oldest is not None and moment < oldest:
        first = f"the first event came at {oldest:%Y-%m-%d %H:%M:%S} UTC"
        message = f"there is nothing to judge at {moment:%Y-%m-%d %H:%M:%S} UTC: {first}"
        raise UsageError(message)
    begins = store.begins("rollup_1m")
    if begins is not None and moment - max(config.windows) < begins:
        message = f"that time cannot be judged any more: its minutes are kept from {begins:%Y-%m-%d %H:%M:%S} UTC on"
        raise UsageError(message)
    return moment


def _is_about(scored: Scored, config: Config, metric: str, scope: dict[str, str]) -> bool:
    """Whether the detector judges a monitor."""
    return not isinstance(scored.detector, OwnWindows) or scored.detector.watches(config, metric, scope)


def _is_due(scored: Scored, config: Config, at: dt.datetime, since: dt.datetime | None) -> bool:
    """Whether a sweep at `at` after one at `since` asks a detector about the windows of this width."""
    if isinstance(scored.detector, OwnWindows):
        return scored.detector.is_due(config, at, since)
    return scored.width in due_windows(config, at, since)


def _looked_at(sweep: Sweep, config: Config, since: dt.datetime | None) -> Sweep:
    """What of the sweep one after `since` looked at."""
    due = [_is_due(one, config, sweep.at, since) for one in sweep.scored]
    scored = tuple(compress(sweep.scored, due))
    families = {one.family: sweep.families[one.family] for one in scored}
    flagged = tuple(compress(sweep.flagged, due))
    return replace(sweep, scored=scored, families=families, flagged=flagged, since=since)


class _Then:
    """The ledger as it was before the sweep at an instant: what came later is no reason for what was judged then.

    Of an incident it tells what it was to become (scope, evidence), but for its end.
    """

    def __init__(self, ledger: Ledger, at: dt.datetime) -> None:
        self._ledger, self._at = ledger, at
        record, last = ledger.last_sweep(at), ledger.last_sweep()
        before = ledger.last_sweep(at - dt.timedelta(microseconds=1))
        self.swept = record is not None and record.at == at
        """Whether there was a sweep at the instant."""
        self.before = before.at if before else None
        """The instant of the sweep before it."""
        back = record is not None and last is not None and record.at < last.at and record.ran_at > last.ran_at
        self.since = self.before if self.swept and not back else None
        """From when on windows had become due; None where all were looked at, as in a look back."""

    def calibrations(self, at: dt.datetime) -> dict[Key, Calibration]:
        return self._ledger.calibrations(at)

    def overlapping(self, start: dt.datetime, end: dt.datetime) -> list[Incident]:
        return [self._as_then(i) for i in self._ledger.overlapping(start, end) if self._was_known(i)]

    def began(self, incident: Incident) -> str | None:
        """The id of what this sweep had recorded as new there."""
        same = [i for i in self._ledger.overlapping(self._at, self._at) if i.detected_at == self._at]
        near = [i for i in same if i.metric != PIPELINE and related(i.scope, incident.scope)]
        near.sort(key=lambda i: (i.scope != incident.scope, i.metric != incident.metric))
        return near[0].id if near else None

    def labels(self) -> list[Label]:
        return [label for label in self._ledger.labels() if label.known_at < self._at]

    def fits(self, at: dt.datetime) -> list[Fit]:
        return self._ledger.fits(min(at, self._at))

    def _was_known(self, incident: Incident) -> bool:
        """Trouble of the data is looked for first, so that a sweep knows what it has just found."""
        return incident.detected_at < self._at or (incident.metric == PIPELINE and incident.detected_at == self._at)

    def _as_then(self, incident: Incident) -> Incident:
        if incident.resolved_at is not None and incident.resolved_at < self._at:
            return incident
        if incident.seen_at < self._at:
            return replace(incident, resolved_at=None)
        return replace(incident, resolved_at=None, seen_at=self.before or incident.detected_at, quiet=0)


def _incident_of(then: _Then, decision: Decision | None) -> str | None:
    """The recorded incident that a decision is about."""
    if decision is None or decision.action == "held":
        return None
    return {"new": then.began(decision.incident), "echo": decision.of}.get(decision.action, decision.incident.id)


def _cause_of(causes: Sequence[Cause], metric: str, scope: dict[str, str]) -> Cause | None:
    """The cause that explains the monitor: its own, or one that lists it, which may do so for some windows only."""
    listing = [c for c in causes if any(child.metric == metric and child.scope == scope for child in c.children)]
    return next((c for c in listing if c.metric == metric and c.scope == scope), listing[0] if listing else None)


def _joined(
    sweep: Sweep,
    told: References,
    store: Store,
    scope: dict[str, str],
    metric: str,
    without: Sequence[dict[str, str]] = (),
) -> Sweep:
    """The sweep with one more monitor, of which no company lifts the cut-off; less the events of scopes `without`."""
    about = [one for one in sweep.scored if _is_about(one, told.config, metric, scope)]
    own, apart = [one for one in about if not one.apart], [one for one in about if one.apart]
    fleet = own and with_guest(own[0].fleet, store, told.config, scope, masks=told.masks, without=without)
    families = {one.family: replace(sweep.families[one.family], cutoff=0.0) for one in own}
    if fleet:
        guests = [guest_scored(one, fleet, metric, told.config) for one in own]
        both = [
            pl.concat([one.scores, guest.scores.with_columns(company=False)], how="diagonal")
            for one, guest in zip(own, guests, strict=True)
        ]
        own = [replace(guest, scores=scores) for guest, scores in zip(guests, both, strict=True)]
    return replace(sweep, scored=(*own, *apart), families={**sweep.families, **families})


def _explaining(
    causes: Sequence[Cause], sweep: Sweep, told: References, store: Store, scope: dict[str, str], metric: str
) -> Cause | None:
    """The most telling of the causes that overlap a scope, where it is an anomaly with them and none without."""
    near = [cause for cause in causes if not disjoint(cause.scope, scope)]
    numbers = numbers_of(store, scope)

    def is_anomaly(without: Sequence[dict[str, str]]) -> bool:
        joined = _joined(sweep, told, store, scope, metric, without)
        for one in joined.scored:
            row = row_of(one.fleet, numbers)
            score = one.score(metric, row) if row is not None else None
            if score is not None and score["notable"] and score["p_value"] <= joined.families[one.family].reach:
                return True
        return False

    explained = near and len(numbers) == len(scope) and is_anomaly([]) and not is_anomaly([c.scope for c in near])
    return near[0] if explained else None


_ORDER: tuple[Outcome, ...] = (
    "fired", "joined", "held", "echo", "explained", "suppressed", "normal", "not judged", "not looked at",
)  # fmt: skip
_VERBS: dict[Outcome, str] = {
    "fired": "fired",
    "joined": "did not fire anew",
    "held": "was held back",
    "echo": "did not fire",
    "explained": "did not fire by itself",
    "suppressed": "did not fire",
    "normal": "is normal",
    "not judged": "was not judged",
    "not looked at": "was not looked at",
}


def _told(
    asked: Asked,
    at: dt.datetime,
    windows: Sequence[Window],
    open_: Decision | None,
    incident: str | None,
    *,
    nothing: bool,
) -> tuple[Outcome, str]:
    """What the most telling window says, in a sentence; `open_` is what was decided of its open incident.

    `nothing` where the sweep judged nobody.
    """
    what = f"{asked.metric} of {show_scope(asked.scope)} at {at:%Y-%m-%d %H:%M:%S} UTC"
    if not windows:
        quiet = "there was not one event anywhere, the source was quiet or had just begun"
        return "not judged", f"{what} was not judged: {quiet if nothing else 'no configured detector is about it'}"
    best = min(windows, key=_rank)
    seen = _numbers(asked.what, best)
    parts = [f"{what} {_VERBS[best.outcome]}: {seen or best.reason}", *([best.reason] if seen else [])]
    if incident is not None and incident not in parts[-1]:
        told = f", which is open: {_still(open_)}" if open_ else ""
        parts.append(f"it belongs to {incident}{told}")
    undue = [w for w in windows if w.outcome == "not looked at"]
    worth = [w for w in undue if w.is_anomaly or (best.outcome == "not judged" and w.p_value is not None)]
    if best.outcome in ("normal", "not judged") and worth:
        widths = ", ".join(show_duration(w.width) for w in worth)
        says = "in which it is an anomaly" if best.outcome == "normal" else "which can be judged"
        parts.append(f"windows of {widths}, {says}, were not due in that sweep")
    return best.outcome, "; ".join(parts)


def _rank(window: Window) -> tuple[int, float, float]:
    """The window that says most comes first: of those that tell too little the longest, while learning the shortest."""
    seconds = window.width.total_seconds()
    known = any(one.expected is not None for one in window.references)
    p = 1.0 if window.p_value is None else window.p_value
    return _ORDER.index(window.outcome), p, -seconds if known else seconds


def _still(open_: Decision) -> str:
    """What was decided of an incident that no anomaly of its own monitor belongs to."""
    return "anomalies of other monitors joined it" if open_.action == "joined" else open_.reason


def _numbers(metric: Metric, window: Window) -> str:
    """What was seen and expected, in words; empty where nothing was expected."""
    if window.observed is None or window.expected is None or window.lower is None or window.upper is None:
        return ""
    seen = (
        f"in {show_duration(window.width)} {quantity(metric, window.observed)} was seen and"
        f" {quantity(metric, window.expected)} expected"
        f" ({quantity(metric, window.lower)} to {quantity(metric, window.upper)} is normal)"
    )
    if window.beyond is not None and window.usual is not None and window.value is not None:
        beyond, exposure = quantity(metric, window.beyond), window.exposure or 0.0
        counted = f"{number(window.value)} of {number(exposure)} events lie above {beyond}"
        seen += f"; {counted}, {number(window.usual * exposure)} were expected there"
    return seen
