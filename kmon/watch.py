"""One look at everything: what the scheduled notebook, ``kmon detect`` and ``kmon replay`` do at each instant.

gate  ►  sweep  ►  explain  ►  decide and tell when it began  ►  hold back what the gate explains  ►  what it costs
  ►  record with the outbox, in one transaction
"""

from __future__ import annotations

import datetime as dt
import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import polars as pl

from kmon.alerts.outbox import is_news, outbox_for
from kmon.alerts.routing import route
from kmon.clock import Laps, floor
from kmon.config import PIPELINE, Config, counted, page_key, show_duration
from kmon.detect import Cube, Shelf, Sweep, read_ahead
from kmon.detect import sweep as run_sweep
from kmon.detect.guests import scope_of
from kmon.errors import UsageError
from kmon.explain import Cause, explain
from kmon.fits import outlooks
from kmon.gate import Gate, gate
from kmon.impact import YOUNG, an_hour, beginning, is_due, loss
from kmon.incidents import REOPENED, Decision, change_of, decide, severity_of, show_scope
from kmon.ledger import Anomaly, Delivery, Incident, Ledger, Severity, SweepRecord, Told, open_ledger, show_time
from kmon.partners import Partners
from kmon.recheck import Recheck
from kmon.references import MONTH, References
from kmon.store import Store, open_for_reading

GOES_ON = ("joined", "still")
"""What is decided of an incident that is still there."""
SHOWN = 100
"""Anomalies of a window that an executed notebook lists."""


CUBES = "cubes"
"""The folder of what sweeps have read."""


@dataclass(frozen=True)
class Outcome:
    """What one look found and did."""

    at: dt.datetime | None
    """The end of the data used; None where there was nothing new to judge."""
    sweep: Sweep | None
    decisions: tuple[Decision, ...]
    outbox: tuple[Delivery, ...]
    seconds: float
    reason: str = ""
    scores: pl.DataFrame = field(default_factory=pl.DataFrame)
    """The anomalies with the largest evidence, and where they are; those of detectors on trial too."""
    held: tuple[Decision, ...] = ()
    """What would be new incidents, and is not told as data is missing."""
    echoes: tuple[Decision, ...] = ()
    """What is not told as a known incident explains it."""
    parts: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Of `seconds`, by part: those of the sweep, then to ``explain`` and to ``decide`` and record."""

    @property
    def incidents(self) -> list[Incident]:
        """Those that this look began, changed or ended."""
        return [decision.incident for decision in self.decisions]

    @property
    def new(self) -> list[Incident]:
        return [decision.incident for decision in self.decisions if decision.action == "new"]

    @property
    def told_and_untold(self) -> list[Decision]:
        """Whatever was decided: of incidents, of what is held back, of echoes."""
        return [*self.decisions, *self.held, *self.echoes]

    def public(self) -> dict[str, Any]:
        """As JSON: the incidents, what is held back and the echoes, each with what was decided and why."""
        parts = {"held": self.held, "echoes": self.echoes}
        untold = {name: [_untold(decision) for decision in of] for name, of in parts.items()}
        incidents = [{**d.incident.public(), "action": d.action, "reason": d.reason} for d in self.decisions]
        at = self.at and show_time(self.at)
        return {"at": at, "seconds": self.seconds, "reason": self.reason, "incidents": incidents, **untold}

    def __repr__(self) -> str:
        return f"<Outcome {self}>"  # an executed notebook keeps it, and a sweep has many frames

    def __str__(self) -> str:
        if self.sweep is None:
            return self.reason
        windows = ", ".join([*map(show_duration, self.sweep.windows), *self.sweep.own]) or "no"
        sweep = self.sweep
        counts = [counted(sweep.monitors, "monitor"), counted(sweep.tests, "test")]
        counts.append("1 anomaly" if sweep.anomalies == 1 else f"{sweep.anomalies:,} anomalies")
        counts.append(counted(len(self.new), "new incident"))
        untold = [(len(self.held), "held back"), (len(self.echoes), "left out as echoes")]
        found = ", ".join([*counts, *(f"{n} {what}" for n, what in untold if n)])
        return f"{self.at:%Y-%m-%d %H:%M:%S} UTC, windows of {windows}: {found}, {self.seconds:.2f} s"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{d.action}</td><td>{d.incident.severity}</td><td>{d.incident.metric} {d.incident.direction}</td>"
            f"<td>{html.escape(show_scope(d.incident.scope))}</td><td>{d.incident.observed:.4g}</td>"
            f"<td>{d.incident.expected:.4g}</td><td>{html.escape(d.reason)}</td></tr>"
            for d in self.told_and_untold
        )
        head = "".join(f"<th>{h}</th>" for h in ("", "severity", "metric", "where", "observed", "expected", "why"))
        table = f"<table><tr>{head}</tr>{rows}</table>" if rows else "<p>No incident is open.</p>"
        return f"<p><b>{html.escape(str(self))}</b></p>{table}"


def _untold(decision: Decision) -> dict[str, Any]:
    """What would have been an incident, as JSON; it has no id, as the ledger does not know it."""
    keys = "severity metric direction scope observed expected lower upper p_value"
    incident = decision.incident.public()
    return {"action": decision.action, "reason": decision.reason, **{key: incident[key] for key in keys.split()}}


def run(config: Config, *, store: str | None = None, at: str | dt.datetime | None = None) -> Outcome:
    """One look by itself: open store and ledger, look, and close them.

    `at` is RFC 3339 text or an aware datetime: the last multiple of `every` up to it, where the data is complete.
    """
    moment = dt.datetime.fromisoformat(at) if isinstance(at, str) else at
    with open_for_reading(config, store) as opened, open_ledger(config, store) as ledger:
        watch = Watch(config, opened, ledger, shelf=Shelf.of(config.beside(CUBES, store), opened, config))
        if moment is None:
            return watch.look()
        if moment.tzinfo is None:
            message = f"{moment.isoformat()} has no time zone: write for example {moment.isoformat()}Z"
            raise UsageError(message)
        moment = floor(moment, config.every)
        mark = opened.watermark(config.events.lateness, config.events.idle)
        if mark is None or moment > mark:
            complete = f"only up to {mark:%Y-%m-%d %H:%M:%S} UTC" if mark else "nowhere: the store has no events yet"
            return Outcome(None, None, (), (), 0.0, f"not judged: the data is complete {complete}")
        return watch.look(moment, thorough=True)


def prepare(config: Config, *, store: str | None = None) -> str:
    """Read ahead what the sweeps of a large fleet need next, so that none waits for it; says what was done."""
    with open_for_reading(config, store) as opened:
        mark = opened.watermark(config.events.lateness, config.events.idle)
        if mark is None:
            return "nothing to read ahead: the store has no events yet"
        began = time.monotonic()
        shelf = Shelf.of(config.beside(CUBES, store), opened, config)
        done = read_ahead(opened, config, mark, shelf)
        took = f"{time.monotonic() - began:.1f} s"
    return {
        "small": "nothing to read ahead: the fleet is so small that sweeps read it themselves",
        "there": f"the references of the coming sweeps were there: what has passed since was added in {took}",
        "read": f"the references of the coming sweeps were read in {took}",
    }[done]


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Watch:
    """Looks at the store again and again, and keeps the ledger."""

    def __init__(
        self,
        config: Config,
        store: Store,
        ledger: Ledger,
        *,
        deliver: bool = True,
        clock: Callable[[], dt.datetime] = utc_now,
        shelf: Shelf | None = None,
    ) -> None:
        """Without `deliver` incidents are recorded, but no alert is put into the outbox.

        `clock` is the wall clock, `shelf` where what was read is kept for those that come after this one.
        """
        self._config, self._store, self._ledger, self._deliver = config, store, ledger, deliver
        self._clock = clock
        self._shelf = shelf
        self._cube: Cube | None = None
        self._partners = Partners.load(config.resolve(config.partners) if config.partners else None)

    def look(self, at: dt.datetime | None = None, *, thorough: bool = False) -> Outcome:
        """Judge the windows that end at `at`, default the newest complete instant that was not judged yet.

        Those that have become due since the last sweep; all of them where `thorough`, or where `at` lies before it.
        """
        began, live = time.monotonic(), None
        last = self._ledger.last_sweep()
        if at is None:
            live = self._clock()
            at, reason = self._newest_unjudged(last)
            if at is None:
                return self._look_at_the_pipeline(last, live, reason, began)
        seen = self._ledger.newest_record()
        since = last.at if last and last.at < at and not thorough else None
        state = gate(self._config, self._store, self._ledger, at, last.at if last else None, live)
        laps = Laps()
        sweep, references = self.sweep(at, since)
        causes = self.explain(sweep, references)
        laps.end("explain")
        passed = self.conclude(sweep, causes, references, state)
        held, echoes = (tuple(d for d in passed if d.action == action) for action in ("held", "echo"))
        before = {i.id: i for i in references.incidents if _open_at(i, at)}
        told = [self._told(at, since, d, references) for d in passed if d.action not in ("held", "echo")]
        decisions = [_changed(d, before.get(d.incident.id)) for d in told]
        decisions += [replace(d, incident=self._addressed(d.incident)) for d in (state.decision,) if d is not None]
        outbox = self._outbox(decisions) if self._deliver else []
        seconds = time.monotonic() - began
        counts = (sweep.monitors, sweep.tests, sweep.anomalies, sweep.cutoff)
        record = SweepRecord(at, dt.datetime.now(dt.UTC), seconds, *counts)
        anomalies = [*_anomalies(at, decisions), *self._shadows(sweep)]
        tails = {} if state.closed else sweep.tails  # what is missing would pass for normal
        self._ledger.record(record, [d.incident for d in decisions], anomalies, outbox, tails=tails, seen=seen)
        if self._shelf is not None and sweep.cube is not None:
            self._shelf.put(sweep.cube)
        scores = self._scores(sweep)
        laps.end("decide")
        laps.seconds["explain"] -= sum(sweep.seconds.values())
        parts = {**sweep.seconds, **laps.seconds}
        untold: Any = {"held": held, "echoes": echoes}
        return Outcome(at, sweep, tuple(decisions), tuple(outbox), seconds, scores=scores, parts=parts, **untold)

    def _look_at_the_pipeline(self, last: SweepRecord | None, live: dt.datetime, reason: str, began: float) -> Outcome:
        """What there is to say where nothing is new: that nothing is may be what is wrong."""
        mark = self._store.watermark(self._config.events.lateness, self._config.events.idle)
        at = floor(mark, self._config.every) if mark is not None else live
        state = gate(self._config, self._store, self._ledger, at, last.at if last else None, live)
        if state.decision is None:
            return Outcome(None, None, (), (), time.monotonic() - began, reason)
        decision = replace(state.decision, incident=self._addressed(state.decision.incident))
        outbox = self._outbox([decision]) if self._deliver else []
        self._ledger.record_pipeline(decision.incident, outbox, state.known)
        told = f"{reason}; the pipeline: {decision.reason}"
        return Outcome(None, None, (decision,), tuple(outbox), time.monotonic() - began, told)

    def sweep(
        self, at: dt.datetime, since: dt.datetime | None = None, keep: Sequence[dict[str, str]] = ()
    ) -> tuple[Sweep, References]:
        """The sweep at `at`, and what it took as references; nothing recorded.

        `keep` are scopes whose scores are wanted in any case.
        """
        told = References.of(self._ledger, self._config, at - MONTH, at)
        usual = self._ledger.calibrations(at)
        models = outlooks(self._ledger, told.config, at)
        sweep = run_sweep(
            self._store,
            told.config,
            at,
            since=since,
            masks=told.masks,
            calibrations=usual,
            outlooks=models,
            cube=self._cube,
            shelf=self._shelf,
            keep=[*_open_scopes(told, at), *keep],
        )
        self._cube = sweep.cube
        return sweep, told

    def explain(self, sweep: Sweep, told: References) -> list[Cause]:
        """The causes of a sweep's anomalies."""
        at = sweep.at
        others = [i for i in told.incidents if i.metric != PIPELINE and (i.quiet or not _open_at(i, at))]
        over = [(i.scope, i.seen_at) for i in others if i.seen_at <= at]
        return explain(sweep, told.config, self._store, _open_scopes(told, at), told.masks, over)

    def conclude(self, sweep: Sweep, causes: Sequence[Cause], references: References, state: Gate) -> list[Decision]:
        """What the causes of a sweep mean for the incidents, and what of that `state` holds back; nothing recorded."""
        at = sweep.at
        recent = [i for i in references.incidents if i.metric != PIPELINE]
        known = [i for i in recent if _open_at(i, at)]
        recheck = Recheck(self._store, references.config, sweep, references.masks)
        lately = at - max(*self._config.windows, REOPENED)
        ended = [i for i in recent if i.resolved_at is not None and lately < i.resolved_at <= at]
        settled = {i.id for i in references.settled}
        decided = decide(self._config, at, causes, known, recheck, ended, settled)
        over = {i.id for i in known if i.resolved_at is not None}
        begun = [self._begun(at, d, references) for d in decided if d.incident.id not in over]
        return state.passed(begun, known)

    def _newest_unjudged(self, last: SweepRecord | None) -> tuple[dt.datetime | None, str]:
        mark = self._store.watermark(self._config.events.lateness, self._config.events.idle)
        if mark is None:
            return None, "the store has no events yet"
        at = floor(mark, self._config.every)
        if last is not None and at <= last.at:
            due = last.at + self._config.every
            return None, f"nothing new: the next sweep is due when the data is complete up to {due:%H:%M:%S} UTC"
        return at, ""

    def _scores(self, sweep: Sweep) -> pl.DataFrame:
        """The most telling anomalies, with their monitors' dimension values."""
        frames = []
        for scored, flagged in zip(sweep.scored, sweep.flagged, strict=True):
            top = flagged.sort("evidence", descending=True).head(SHOWN)
            where = [show_scope(scope_of(self._store, scored.fleet, row)) for row in top["row"]]
            frames.append(
                top.select(
                    *("metric", "direction"),
                    pl.Series("where", where, dtype=pl.String),
                    (pl.duration(seconds="seconds") if scored.apart else pl.lit(scored.width)).alias("window"),
                    pl.lit(scored.detector.name).alias("detector"),
                    *("observed", "expected", "lower", "upper", "p_value", "evidence"),
                )
            )
        return pl.concat(frames).sort("evidence", descending=True) if frames else pl.DataFrame()

    # ---- what people want to know ------------------------------------------------------------------------------------

    def _begun(self, at: dt.datetime, decision: Decision, references: References) -> Decision:
        """The decision with a new incident's beginning."""
        if decision.action != "new":
            return decision
        shifts = references.config.calendar.shifts
        changed = [s.at for s in shifts if s.at < at and s.scope.items() <= decision.incident.scope.items()]
        started_at = beginning(self._store, self._config, decision.incident, at, max(changed, default=None))
        return replace(decision, incident=replace(decision.incident, started_at=started_at))

    def _told(self, at: dt.datetime, since: dt.datetime | None, decision: Decision, references: References) -> Decision:
        """The decision with its incident's loss, channel and link filled in."""
        incident, upto = decision.incident, None
        if decision.action in ("new", "reopened") or (decision.action in GOES_ON and is_due(incident, at, since)):
            upto = at
        elif incident.quiet == 1 and at - incident.started_at > YOUNG:  # it ends: what was not told since
            upto = incident.seen_at
        if upto is not None:
            told, masks = references.config, references.masks
            incident = replace(incident, impact=loss(self._store, told, incident, upto, masks, self._cube))
        if upto == at:
            incident = replace(incident, severity=self._severity(incident, at))
        elif decision.action in GOES_ON and self._config.incidents.money is not None:  # its loss is of another age
            before = next((i.severity for i in references.incidents if i.id == incident.id), incident.severity)
            incident = replace(incident, severity=before)
        return replace(decision, incident=self._addressed(incident))

    def _severity(self, incident: Incident, at: dt.datetime) -> Severity:
        """By what it costs an hour as far as it is known by now."""
        money = self._config.incidents.money
        if money is None:
            return incident.severity
        effect = (incident.observed - incident.expected) / (abs(incident.expected) or 1.0)
        cost = an_hour(incident, money.measure, at)
        return severity_of(self._config, incident.metric, incident.direction, effect, cost)

    def _addressed(self, incident: Incident) -> Incident:
        scope = {page_key(dimension): value for dimension, value in incident.scope.items()}
        query = {**scope, "metric": incident.metric, "incident": incident.id}
        if incident.metric == PIPELINE:  # which no page can filter by
            query = {"incident": incident.id}
        url = f"{self._config.apps.base_url}/partner?{urlencode(query)}"
        return replace(incident, channel=route(self._config, incident, self._partners).channel, url=url)

    def _outbox(self, decisions: Sequence[Decision]) -> list[Delivery]:
        now = dt.datetime.now(dt.UTC)
        outbox: list[Delivery] = []
        for decision in decisions:
            incident = decision.incident
            if decision.action in ("new", "reopened"):
                outbox += outbox_for(self._config, incident, "firing", self._partners, now)
            elif decision.action == "resolved" or decision.change:
                told, over = self._ledger.deliveries(incident=incident.id), decision.action == "resolved"
                kind: Told = "resolved" if over else "changed"
                if over or is_news(self._config, incident, self._partners, told):
                    outbox += outbox_for(self._config, incident, kind, self._partners, now, told, decision.change)
        return outbox

    def _shadows(self, sweep: Sweep) -> list[Anomaly]:
        """What the detectors on trial would have flagged; of no incident."""
        found = []
        for scored, flagged in zip(sweep.scored, sweep.flagged, strict=True):
            if scored.use.shadow:
                keys = ("metric", "direction", "observed", "expected", "p_value")
                found += [
                    Anomaly(
                        at=sweep.at,
                        incident="",
                        scope=scope_of(self._store, scored.fleet, row["row"]),
                        window=scored.window(row),
                        detector=scored.detector.name,
                        shadow=True,
                        **{key: row[key] for key in keys},
                    )
                    for row in flagged.iter_rows(named=True)
                ]
        return found


def _open_scopes(told: References, at: dt.datetime) -> list[dict[str, str]]:
    """Where an incident is open."""
    return [i.scope for i in told.incidents if _open_at(i, at) and i.metric != PIPELINE]


def _open_at(incident: Incident, at: dt.datetime) -> bool:
    """Whether it was not resolved by then, also where that came later."""
    return incident.resolved_at is None or incident.resolved_at > at


def _changed(decision: Decision, before: Incident | None) -> Decision:
    """The decision, whose reason is what became of the incident's scope and severity if something did."""
    if before is None or decision.action not in GOES_ON or not (change := change_of(before, decision.incident)):
        return decision
    return replace(decision, incident=replace(decision.incident, reason=change), reason=change, change=change)


def _anomalies(at: dt.datetime, decisions: Sequence[Decision]) -> list[Anomaly]:
    """What each cause explained. A second cause of one incident in one sweep counts, but is not listed."""
    found: list[Anomaly] = []
    for decision in decisions:
        if decision.cause is not None:
            same: dict[str, Any] = {"at": at, "incident": decision.incident.id, "detector": decision.cause.detector}
            found += [Anomaly(**same, **vars(child)) for child in decision.cause.children]
    return found
