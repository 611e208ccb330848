"""One monitor in the windows of each width, as a sweep saw it: the numbers, what they come from, and what became of it.

what was seen  ►  what each reference says  ►  what was expected  ►  how likely that is  ►  what became of it, and why
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from kmon.alerts.message import number
from kmon.config import Config, Metric, counted, show_duration
from kmon.detect import OwnWindows, Scored, Sweep
from kmon.detect.contract import least_volume
from kmon.detect.expect import LEARNT, PRIOR, RECENT, Expectation, expect
from kmon.detect.fleet import numbers_of
from kmon.detect.guests import row_of
from kmon.explain import Cause
from kmon.incidents import Decision, show_scope
from kmon.leaves import related
from kmon.references import Stretch
from kmon.store import Store

Outcome = Literal[
    "fired", "joined", "held", "echo", "explained", "suppressed", "normal", "not judged", "not looked at"
]  # fmt: skip
"""`fired`: it is a new incident, or one that is back. `joined`: it belongs to one that was open. `held`: data is
missing that explains it. `echo`: a known incident explains it. `explained`: another scope or metric does."""
NAMED = 3
"""Known incidents that a sentence names."""


@dataclass(frozen=True)
class Reference:
    """What one reference says of a window."""

    name: str
    """``recent``: the last hours of today; ``day1``: a day ago; ``model``: a forecast."""
    weight: float | None
    """Of the day among the days; None of the last hours, which tell the level."""
    seen: float | None
    """What it had, in a window as long: the last hours on average, a day at the same time."""
    expected: float | None
    """What would be expected by it alone; of a day that is its shape at today's level."""


@dataclass(frozen=True)
class Window:
    """The monitor in the windows of one width. Numbers of a quantile's references are shares of events."""

    width: dt.timedelta
    detector: str
    outcome: Outcome
    reason: str
    value: float | None
    """The count, or the numerator; None where it is not known."""
    exposure: float | None
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
    """Calibrated; `raw_p_value` is the detector's own."""
    raw_p_value: float | None = None
    cutoff: float | None = None
    """The largest p-value that would have been an anomaly."""
    tests: int = 0
    """Of the same width in that sweep."""
    noise_times_chance: float | None = None
    """Variance of the window over that of independent events; None for a mean,"""
    event_variance: float | None = None
    """of which this is the variance of one event."""
    drift_relative_variance: float | None = None
    """Of the expected level: what does not shrink with the window's volume."""
    reference_events: float | None = None
    """Events in the references that it rests on."""
    bin: dt.timedelta | None = None
    """Of the bins that are counted here."""
    recent_bins: int = 0
    """Of the last two hours, in which the level was seen; of RECENT."""
    masked_bins: int = 0
    """Of them, not used: inside a known incident, or before a dimension or a measure was known."""
    missing_bins: int = 0
    """Of them, not used: nothing was recorded. The others lie inside the window."""
    references: tuple[Reference, ...] = field(default=())
    days: dict[str, float] | None = None
    """By day that was used, or `model`: its weight."""
    unlike: dict[str, str] | None = None
    """By day that is of another kind than today: why it was not used, or not for the level where all are."""

    @property
    def is_anomaly(self) -> bool:
        """Whether it is as unlikely as that."""
        return self.p_value is not None and self.cutoff is not None and self.p_value <= self.cutoff

    def public(self) -> dict[str, Any]:
        """As JSON."""
        bin_ = self.bin and show_duration(self.bin)
        return {**asdict(self), "width": show_duration(self.width), "bin": bin_}


@dataclass(frozen=True)
class Asked:
    """A monitor, and what was made of the sweep in which it is looked for."""

    config: Config
    store: Store
    metric: str
    scope: dict[str, str]
    masks: Sequence[Stretch]
    """What was masked for anybody."""
    cause: Cause | None
    """What explains its anomalies."""
    decision: Decision | None
    """What became of the cause."""
    near: Cause | None = None
    """The most telling cause inside its scope or around it."""

    @property
    def what(self) -> Metric:
        return self.config.metrics[self.metric]


def window_of(asked: Asked, sweep: Sweep, scored: Scored, *, looked_at: bool) -> Window:
    """What a detector says of the monitor in the windows of one width, and whether that sweep did ask it."""
    numbers = numbers_of(asked.store, asked.scope)
    seen = len(numbers) == len(asked.scope)
    row = row_of(scored.fleet, numbers) if seen else None
    if isinstance(scored.detector, OwnWindows):
        found = _apart(asked, sweep, scored, scored.detector, row)
    elif row is None:
        few = "too few events in the last two hours and at this time of the other days"
        found = _not_judged(scored, few if seen else "no event of it was ever seen")
    else:
        found = _at_row(asked, sweep, scored, row)
    if looked_at:
        return found
    verdict = f"{found.outcome}: {found.reason}" if found.outcome != "normal" else "normal"
    reason = f"not due in that sweep, else {'an anomaly' if found.is_anomaly else verdict}"
    return replace(found, outcome="not looked at", reason=reason)


def _not_judged(scored: Scored, reason: str) -> Window:
    return Window(scored.width, scored.detector.name, "not judged", reason, None, None)


def _apart(asked: Asked, sweep: Sweep, scored: Scored, detector: OwnWindows, row: int | None) -> Window:
    """The monitor in the window of a detector that brings its own."""
    score = scored.score(asked.metric, row) if row is not None else None
    if score is None:
        return _not_judged(scored, detector.unjudged(seen=row is not None))
    verdict = _verdict(asked, sweep, scored, score)
    return Window(scored.window(score), detector.name, value=score["value"], exposure=score["exposure"], **verdict)


def _at_row(asked: Asked, sweep: Sweep, scored: Scored, row: int) -> Window:
    fleet, width, what = scored.fleet, scored.width, asked.what
    others = scored.scores.filter((pl.col("metric") == asked.metric) & (pl.col("row") != row)).select("row", "company")
    rows = np.append(others["row"].to_numpy(), row)
    score, place = scored.score(asked.metric, row), len(others)
    company = np.append(others["company"].to_numpy(), score is not None and score["company"])
    given = fleet.windows(what, width, rows, company)
    mine = given.row(place, named=True)
    expectation = expect(given, what.judged_as)
    weights = {day: round(float(expectation.weights[i, place]), 3) for i, day in enumerate(expectation.names)}
    masked, missing = fleet.left_out(row, width)
    known: dict[str, Any] = {
        "value": _known(mine["value"]) if what.kind != "count" else _known(fleet.value(what, width, row)),
        "exposure": _known(mine["exposure"]),
        "bin": fleet.bin,
        "recent_bins": int(np.isfinite(np.array(mine["recent_value"], dtype=float)).sum()),
        "masked_bins": masked,
        "missing_bins": missing,
        "references": _references(given, what, place, weights),
        "reference_events": _known(expectation.volume[place]),
        "days": {day: weight for day, weight in weights.items() if weight > 0},
        "unlike": fleet.unlike_days(row),
    }
    if score is None:
        reason = _unjudged(asked, scored, mine, expectation, place, known)
        return Window(width, scored.detector.name, "not judged", reason, **known)
    if what.kind == "quantile":
        known |= {"beyond": what.histogram.edges[mine["edge"]], "usual": float(expectation.level[place])}
    spread = "event_variance" if what.judged_as == "mean" else "noise_times_chance"
    known[spread] = _known(expectation.noise[place])
    known["drift_relative_variance"] = _known(expectation.drift[place])
    return Window(width, scored.detector.name, **known, **_verdict(asked, sweep, scored, score))


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


# ---- what the references say -----------------------------------------------------------------------------------------


def _references(given: pl.DataFrame, what: Metric, place: int, weights: Mapping[str, float]) -> tuple[Reference, ...]:
    """Those that know anything of the monitor."""
    width = float(given["width"][0]) / float(given["bin"][0])
    found = [
        Reference(name, weights.get(name), _seen(given, name, width, place), _alone(given, what, name, weights, place))
        for name in ("recent", *weights)
    ]
    return tuple(one for one in found if one.seen is not None or one.weight)


def _seen(given: pl.DataFrame, name: str, width: float, place: int) -> float | None:
    """What a reference had, of `width` bins: the last hours all over, a day at the same time."""
    value, exposure = (np.array(given[f"{name}_{part}"][place], dtype=float) for part in ("value", "exposure"))
    bins = np.arange(len(value))
    inside = np.ones(len(value)) if name == "recent" else np.clip(np.minimum(bins + 1, RECENT) - (RECENT - width), 0, 1)
    inside = np.where(bins < RECENT, np.minimum(inside, 1.0), 0.0)
    part = np.where(np.isfinite(value) & np.isfinite(exposure), inside, 0.0)
    size = float((part * np.nan_to_num(exposure)).sum())
    return float((part * np.nan_to_num(value)).sum()) / size if size > 0 else None


def _alone(given: pl.DataFrame, what: Metric, name: str, names: Mapping[str, float], place: int) -> float | None:
    """What would be expected by the last hours and, of the other references, one alone."""
    others = [f"{other}_{part}" for other in names if other != name for part in ("value", "exposure")]
    expectation = expect(given.drop(others), what.judged_as)
    return _known(expectation.level[place]) if expectation.known[place] else None


# ---- why it was not judged -------------------------------------------------------------------------------------------


def _unjudged(
    asked: Asked, scored: Scored, mine: dict[str, Any], expectation: Expectation, place: int, known: dict[str, Any]
) -> str:
    """Why a detector did not judge it: masked, learning, or too little to tell."""
    what, volume = asked.what, float(expectation.volume[place])
    hidden = mine["value"] != mine["value"] or not expectation.known[place]
    if hidden and known["masked_bins"] and (named := _masking(asked, scored)):
        return f"masked: {counted(known['masked_bins'], 'bin')} of the hours before it lie inside {named}"
    if not expectation.known[place]:
        return _learning(asked, known, volume)
    least = least_volume(what, scored.detector)
    seen, level = known["value"] or 0.0, float(expectation.level[place])
    if what.kind == "count":
        if max(seen, level) < least:
            few = f"{number(level)} expected and {number(seen)} seen"
            return f"too little: {few} in {show_duration(scored.width)}, it takes {number(least)} to judge it"
        return f"it is new: {number(volume)} before are too few to call it a surge"
    exposure = known["exposure"] or 0.0
    if exposure < max(least, 1):
        few = f"{number(exposure)} {what.volume} in {show_duration(scored.width)}"
        return f"too little: {few}, it takes {number(least)} to judge it"
    return f"the detector {scored.detector.name} had nothing to say of it"


def _masking(asked: Asked, scored: Scored) -> str:
    """What hides the last hours, in words: what is in the monitor's scope or around it, else what may lie across."""
    at, bin_ = scored.fleet.at, scored.fleet.bin
    late = [m for m in asked.masks if m.started_at < at and (m.resolved_at or at) > at - RECENT * bin_]
    found = [m for m in late if related(m.scope, asked.scope)] or late
    if not found:
        return ""
    ends = [f"{m.resolved_at:%H:%M}" if m.resolved_at else "now" for m in found]
    told = [
        f"{m.id} ({show_scope(m.scope)}, {m.started_at:%H:%M} to {end})" for m, end in zip(found, ends, strict=True)
    ]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    again = f"; it is judged again {show_duration(bin_)} after the end of that, at the latest"
    return ", ".join(told[:NAMED]) + more + again


def _learning(asked: Asked, known: dict[str, Any], volume: float) -> str:
    """How much is known, and how much is needed."""
    bin_, what = known["bin"], asked.what
    if what.kind == "count":
        have, need = show_duration(known["recent_bins"] * bin_), show_duration(LEARNT * bin_)
        return f"learning: {have} known before the window, it takes {need} or the same hours of another day"
    if what.judged_as == "mean":
        return f"learning: too few bins with {what.volume} known before the window"
    return f"learning: {number(volume)} {what.volume} known before the window, it takes {number(PRIOR)}"


# ---- what became of it -----------------------------------------------------------------------------------------------


def _verdict(asked: Asked, sweep: Sweep, scored: Scored, score: dict[str, Any]) -> dict[str, Any]:
    """What `Window` has of a judged monitor: the outcome, its reason and the numbers that it comes from."""
    family = sweep.families[scored.family]
    outcome, reason = _judged(asked, scored, score, family.reach)
    shown = {key: score[key] for key in ("observed", "expected", "lower", "upper", "p_value")}
    told = {"raw_p_value": score["raw"], "cutoff": family.reach, "tests": family.tests}
    return {"outcome": outcome, "reason": reason, **told, **shown}


def _judged(asked: Asked, scored: Scored, score: dict[str, Any], cutoff: float) -> tuple[Outcome, str]:
    if score["p_value"] > cutoff:
        return "normal", f"as likely as {score['p_value']:.2g}; an anomaly is less likely than {cutoff:.2g}"
    if not score["notable"]:
        return "suppressed", f"certain, but {_too_little(asked, scored, score)} ({score['effect']:+.0%})"
    if scored.use.shadow:
        return "suppressed", "the detector is on trial: it scores, and alerts nobody"
    cause = asked.cause
    if cause is None:
        company = "an anomaly only in the company of others that are explained"
        if asked.near is not None:
            company += f", such as {asked.near.metric} {asked.near.direction} of {show_scope(asked.near.scope)}"
        return "suppressed", company if asked.config.watches(
            asked.scope
        ) else "certain, but no watched monitor led to it"
    outcome, became = fate(asked.decision)
    if (cause.metric, cause.scope) == (score["metric"], asked.scope):
        return outcome, became
    return "explained", f"by {cause.metric} {cause.direction} of {show_scope(cause.scope)}: {became}"


def _too_little(asked: Asked, scored: Scored, score: dict[str, Any]) -> str:
    tell = getattr(scored.detector, "least_change", None)
    returned = asked.what.kind == "count" and tell is not None and score["effect"] >= tell(asked.what)[1]
    return "it only returns to what other days have" if returned else "no change worth telling"


def fate(decision: Decision | None) -> tuple[Outcome, str]:
    """What became of a cause."""
    if decision is None:
        return "suppressed", "no incident was made of it"
    if decision.action in ("new", "reopened"):
        return "fired", "a new incident" if decision.action == "new" else f"{decision.incident.id} is back"
    if decision.action == "joined":
        return "joined", f"it belongs to {decision.incident.id}, which was open"
    if decision.action == "echo":
        return "echo", decision.reason
    if decision.action == "resolved":
        return "suppressed", f"it belongs to {decision.incident.id}: {decision.reason}"
    return "held", decision.reason


def days_unused(window: Window) -> list[str]:
    """The days that are not comparable with today, in words, such as "day7 not used: public holiday in DE (...)"."""
    used = window.days or {}
    return [
        f"{day} not used: {text}" if day not in used else f"{day} used for its shape only: {text}"
        for day, text in (window.unlike or {}).items()
    ]
