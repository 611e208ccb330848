"""Why a monitor fired or did not: the sweep at one instant again, and all that was known of that monitor.

sweep and explain as at that time  ►  the monitor's verdict in each width  ►  what became of it  ►  in words

A scope that no grouping set has is judged as a root cause is: read for itself, beside the watched monitors.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from kmon.alerts.message import number, quantity
from kmon.calibrate import Calibration, Key
from kmon.clock import floor
from kmon.config import PIPELINE, Config, Metric, show_duration
from kmon.detect import Family, Scored, Silence, Sweep
from kmon.detect.expect import RECENT, expect
from kmon.detect.fleet import check_taken_over, numbers_of
from kmon.detect.guests import guest_scored, row_of, with_guest
from kmon.errors import UsageError
from kmon.explain import Cause
from kmon.fits import Model, models_of
from kmon.incidents import show_scope
from kmon.leaves import related
from kmon.ledger import Fit, Incident, Label, Ledger, show_time
from kmon.references import References, Stretch
from kmon.store import Store
from kmon.watch import Watch

Outcome = Literal["fired", "explained", "suppressed", "normal", "not judged"]
UNWATCHED = (
    "no line of 'watch' has it, so it fires only as the root cause of what a watched monitor shows:"
    " it was read for this answer, and judged by its own history beside the watched monitors"
)


@dataclass(frozen=True)
class Window:
    """The monitor in the windows of one width."""

    width: dt.timedelta
    detector: str
    outcome: Outcome
    reason: str
    value: float
    """The count, or the numerator."""
    exposure: float
    """The denominator; 1 for a count."""
    beyond: float | None = None
    """Of a quantile: `value` are the events above this number, `exposure` all,"""
    usual: float | None = None
    """and this share of them was expected there."""
    observed: float | None = None
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None
    cutoff: float | None = None
    """The largest p-value that would have been an anomaly."""
    tests: int = 0
    """Of the same width in that sweep."""
    recent_bins: int = 0
    """Of the last two hours, in which the level was seen; of RECENT."""
    masked_bins: int = 0
    """Of them, not used: inside the window, a known incident, or nothing was recorded."""
    days: dict[str, float] | None = None
    """By day that was used, or `model`: its weight."""
    unlike: dict[str, str] | None = None
    """By day that is of another kind than today: why it was not used, or not for the level where all are."""


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
    """The incident that it belongs to."""
    watched: bool = True
    """Whether a grouping set has it; else it was judged by itself for this answer."""
    models: tuple[Model, ...] = ()
    """Of the metric's measures, where models are fitted: which one was a reference, or why none was."""

    def public(self) -> dict[str, Any]:
        """As JSON."""
        windows = [{**asdict(w), "width": show_duration(w.width)} for w in self.windows]
        masked = [
            {
                "id": i.id,
                "scope": i.scope,
                "started_at": show_time(i.started_at),
                "resolved_at": show_time(i.resolved_at),
            }
            for i in self.masked
        ]
        told = {
            key: getattr(self, key)
            for key in ("metric", "where", "outcome", "sentence", "cause", "incident", "watched")
        }
        models = [
            {**asdict(m), "fitted_at": show_time(m.fitted_at), "data_to": show_time(m.data_to)} for m in self.models
        ]
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

    UsageError where the data is not complete at `at`, or not kept any more.
    """
    watched = _is_watched(config, where)
    check_taken_over(store, config, (), where)
    mark = store.watermark(config.events.lateness, config.events.idle)
    wanted = at or mark
    moment = floor(wanted, config.every) if wanted else None
    if mark is None or moment is None or moment > mark:
        complete = f"up to {mark:%Y-%m-%d %H:%M:%S} UTC only" if mark else "nowhere: the store has no events yet"
        message = f"that time was not judged: the data is complete {complete}"
        raise UsageError(message)
    begins = store.begins("rollup_1m")
    if begins is not None and moment - max(config.windows) < begins:
        message = f"that time cannot be judged any more: its minutes are kept from {begins:%Y-%m-%d %H:%M:%S} UTC on"
        raise UsageError(message)
    known = _Then(ledger, moment)
    scope = {d: where[d] for d in config.dimensions if d in where}
    watch = Watch(config, store, known, deliver=False)  # type: ignore[arg-type]
    sweep, causes, told = watch.examine(moment, keep=[scope])
    cause = _cause_of(causes, metric, scope)
    if not watched:
        cause = cause or _explaining(causes, sweep, told, store, scope, metric)
        sweep = _joined(sweep, told, store, scope, metric)
    looks = [s for s in sweep.scored if _is_about(s, config, metric, scope)]
    windows = tuple(_window(config, store, sweep, scored, metric, scope, cause) for scored in looks)
    masks = tuple(mask for mask in told.masks if related(mask.scope, scope))
    then = ledger.overlapping(moment, moment)
    partners = [i for i in then if i.metric != PIPELINE]
    incident = next((i for i in partners if cause and related(i.scope, cause.scope)), None)
    if not watched:  # an open incident of its own need not be told again by this sweep
        incident = incident or next((i for i in partners if (i.metric, i.scope) == (metric, scope)), None)
    outcome, sentence = _told(metric, config.metrics[metric], scope, moment, windows, incident)
    if not watched:
        sentence += f"; {UNWATCHED}"
    if cause and incident is None and len(partners) < len(then):
        sentence += "; the data itself was in trouble then, which holds back what it explains"
    other = cause.scope if cause and (cause.metric, cause.scope) != (metric, scope) else None
    forecast = config.metrics[metric].forecast
    fitted = models_of(known.fits(moment), told.config, moment, scope) if forecast else []
    models = tuple(m for m in fitted if m.measure in forecast)
    name = incident.id if incident else None
    return Why(metric, scope, moment, outcome, sentence, windows, masks, other, name, watched, models)


def _is_about(scored: Scored, config: Config, metric: str, scope: dict[str, str]) -> bool:
    """Whether the detector judges a monitor."""
    return not isinstance(scored.detector, Silence) or scored.detector.watches(config, metric, scope)


def _is_watched(config: Config, scope: dict[str, str]) -> bool:
    """Whether a line of `watch` has it."""
    return any(set(grouping) == set(scope) for grouping in config.watch)


class _Then:
    """The ledger as it was at an instant: what fired later is no reason for what was judged then."""

    def __init__(self, ledger: Ledger, at: dt.datetime) -> None:
        self._ledger, self._at = ledger, at

    def calibrations(self, at: dt.datetime) -> dict[Key, Calibration]:
        return self._ledger.calibrations(at)

    def overlapping(self, start: dt.datetime, end: dt.datetime) -> list[Incident]:
        return [
            i if i.resolved_at is None or i.resolved_at <= self._at else replace(i, resolved_at=None)
            for i in self._ledger.overlapping(start, end)
            if i.detected_at < self._at
        ]

    def labels(self) -> list[Label]:
        return [label for label in self._ledger.labels() if label.known_at < self._at]

    def fits(self, at: dt.datetime) -> list[Fit]:
        return self._ledger.fits(min(at, self._at))


def _cause_of(causes: Sequence[Cause], metric: str, scope: dict[str, str]) -> Cause | None:
    """The cause that explains the monitor: its own, or the one that lists it."""
    for cause in causes:
        if any(child.metric == metric and child.scope == scope for child in cause.children):
            return cause
    return None


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
    families = {one.width: replace(sweep.families[one.width], cutoff=0.0) for one in own}
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
    near = [cause for cause in causes if all(scope.get(d, value) == value for d, value in cause.scope.items())]
    numbers = numbers_of(store, scope)

    def is_anomaly(without: Sequence[dict[str, str]]) -> bool:
        joined = _joined(sweep, told, store, scope, metric, without)
        for one in joined.scored:
            row = row_of(one.fleet, numbers)
            score = one.score(metric, row) if row is not None else None
            if score is not None and score["notable"] and score["p_value"] <= joined.families[one.width].reach:
                return True
        return False

    explained = near and len(numbers) == len(scope) and is_anomaly([]) and not is_anomaly([c.scope for c in near])
    return near[0] if explained else None


def _window(
    config: Config,
    store: Store,
    sweep: Sweep,
    scored: Scored,
    metric: str,
    scope: dict[str, str],
    cause: Cause | None,
) -> Window:
    fleet, width, name = scored.fleet, scored.width, scored.detector.name
    numbers = numbers_of(store, scope)
    seen = len(numbers) == len(scope)
    row = row_of(fleet, numbers) if seen else None
    if scored.apart:
        return _apart(config, sweep, scored, metric, scope, row, cause)
    if row is None:
        few = "too few events in the last two hours and at this time of the other days"
        reason = few if seen else "no event of it was ever seen"
        return Window(width, name, "not judged", reason, 0.0, 0.0)
    others = scored.scores.filter((pl.col("metric") == metric) & (pl.col("row") != row)).select("row", "company")
    rows = np.append(others["row"].to_numpy(), row)
    score, family = scored.score(metric, row), sweep.families[width]
    company = np.append(others["company"].to_numpy(), score is not None and score["company"])
    what = config.metrics[metric]
    given, place = fleet.windows(what, width, rows, company), len(others)
    mine = given.row(place, named=True)
    known = {"value": mine["value"], "exposure": mine["exposure"], "unlike": fleet.unlike_days(row)}
    used = int(np.isfinite(np.array(mine["recent_value"], dtype=float)).sum())
    if score is None:
        return Window(width, name, "not judged", _unjudged(mine, used), **known, recent_bins=used)
    expectation = expect(given, what.judged_as)
    if what.kind == "quantile":
        known |= {"beyond": what.histogram.edges[mine["edge"]], "usual": float(expectation.level[place])}
    days = {day: round(float(expectation.weights[i, place]), 3) for i, day in enumerate(expectation.names)}
    return Window(
        width,
        name,
        **known,
        **_verdict(config, scored, score, family, scope, cause),
        recent_bins=used,
        masked_bins=RECENT - used,
        days={day: weight for day, weight in days.items() if weight > 0},
    )


def _apart(
    config: Config,
    sweep: Sweep,
    scored: Scored,
    metric: str,
    scope: dict[str, str],
    row: int | None,
    cause: Cause | None,
) -> Window:
    """The monitor in the window of a detector that brings its own, such as that of silence."""
    score, name = scored.score(metric, row) if row is not None else None, scored.detector.name
    if score is None:
        reason = "it is not silent, or too little is expected in so short a silence"
        return Window(scored.width, name, "not judged", reason, 0.0, 0.0)
    verdict = _verdict(config, scored, score, sweep.families[scored.width], scope, cause)
    return Window(scored.window(score), name, value=0.0, exposure=1.0, **verdict)


def _verdict(
    config: Config, scored: Scored, score: dict[str, Any], family: Family, scope: dict[str, str], cause: Cause | None
) -> dict[str, Any]:
    """What `Window` has of a judged monitor: the outcome, its reason and the numbers that it comes from."""
    outcome, reason = _judged(config, scored, score, family.reach, scope, cause)
    shown = {key: score[key] for key in ("observed", "expected", "lower", "upper", "p_value")}
    return {"outcome": outcome, "reason": reason, "cutoff": family.reach, "tests": family.tests, **shown}


def days_unused(window: Window) -> list[str]:
    """The days that are not comparable with today, in words, such as "day7 not used: public holiday in DE (...)"."""
    used = window.days or {}
    return [
        f"{day} not used: {text}" if day not in used else f"{day} used for its shape only: {text}"
        for day, text in (window.unlike or {}).items()
    ]


def _unjudged(mine: dict[str, Any], used: int) -> str:
    if not used and not any(
        np.isfinite(np.array(v, dtype=float)).any() for k, v in mine.items() if k.startswith("day")
    ):
        return "learning: there is no history to compare it with yet"
    if mine["value"] != mine["value"]:
        return "all of the last two hours lies inside known incidents"
    return "too little is expected in a window as short as this to tell anything"


def _judged(
    config: Config, scored: Scored, score: dict[str, Any], cutoff: float, scope: dict[str, str], cause: Cause | None
) -> tuple[Outcome, str]:
    if score["p_value"] > cutoff:
        return "normal", f"as likely as {score['p_value']:.2g}; an anomaly is less likely than {cutoff:.2g}"
    if not score["notable"]:
        return "suppressed", f"certain, but no change worth telling ({score['effect']:+.0%})"
    if scored.use.shadow:
        return "suppressed", "the detector is on trial: it scores, and alerts nobody"
    if cause is None:
        company = "an anomaly only in the company of others that are explained"
        return "suppressed", company if _is_watched(config, scope) else "certain, but no watched monitor led to it"
    if (cause.metric, cause.scope) == (score["metric"], scope):
        return "fired", "it is the cause itself"
    return "explained", f"by {cause.metric} {cause.direction} of {show_scope(cause.scope)}"


_ORDER: tuple[Outcome, ...] = ("fired", "explained", "suppressed", "normal", "not judged")


def _told(
    name: str,
    metric: Metric,
    scope: dict[str, str],
    at: dt.datetime,
    windows: Sequence[Window],
    incident: Incident | None,
) -> tuple[Outcome, str]:
    """What the most telling window says, in a sentence."""
    what = f"{name} of {show_scope(scope)} at {at:%Y-%m-%d %H:%M:%S} UTC"
    if not windows:
        return "not judged", f"{what} was not judged: there was not one event anywhere, the source was quiet"
    best = min(windows, key=lambda w: (_ORDER.index(w.outcome), w.p_value if w.p_value is not None else 1.0))
    if best.observed is None or best.expected is None or best.lower is None or best.upper is None:
        return best.outcome, f"{what} was not judged: {best.reason}"
    seen = (
        f"in {show_duration(best.width)} {quantity(metric, best.observed)} was seen and"
        f" {quantity(metric, best.expected)} expected"
        f" ({quantity(metric, best.lower)} to {quantity(metric, best.upper)} is normal)"
    )
    if best.beyond is not None and best.usual is not None:
        counted = f"{number(best.value)} of {number(best.exposure)} events lie above {quantity(metric, best.beyond)}"
        seen += f"; {counted}, {number(best.usual * best.exposure)} were expected there"
    verb = {
        "fired": "fired",
        "explained": "did not fire by itself",
        "suppressed": "did not fire",
        "normal": "is normal",
    }
    belongs = f"; it belongs to {incident.id}" if incident is not None else ""
    return best.outcome, f"{what} {verb[best.outcome]}: {seen}; {best.reason}{belongs}"
