"""Whether an open incident's own monitor is still abnormal: a likelihood ratio between what it was and what is normal.

"Still abnormal" is that more than about a quarter of the change is left. The shortest window that can tell decides, so
that the end of a sudden one is seen as soon as its beginning was (a sequential probability ratio test, Wald 1945, of
each window afresh).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import structlog

from kmon.config import Config
from kmon.detect import Fleet, Mask, OwnWindows, Scored, Sweep
from kmon.detect.contract import BAND
from kmon.detect.fleet import numbers_of
from kmon.detect.guests import guest_scored, row_of, with_guest
from kmon.detect.own import kept_of, normal_gain, verdict_of
from kmon.errors import StoreError
from kmon.incidents import Verdict
from kmon.ledger import Incident
from kmon.store import Store

log = structlog.get_logger("kmon")


class Recheck:
    """Judges the monitors of open incidents by what one sweep saw; one that no grouping set has is read for it."""

    def __init__(self, store: Store, config: Config, sweep: Sweep, masks: Sequence[Mask] = ()) -> None:
        self._store, self._config, self._sweep, self._masks = store, config, sweep, masks
        self._joined: dict[frozenset[tuple[str, str]], Fleet | None] = {}

    def __call__(self, incident: Incident) -> Verdict:
        numbers = numbers_of(self._store, incident.scope)
        gone = incident.metric not in self._config.metrics  # taken out of kmon.yaml while the incident was open
        if gone or len(numbers) < len(incident.scope):
            return "unjudged"
        if (own := self._sweep.apart.get(incident.detector)) is not None:
            return self._by_its_own(own, incident)
        scored = sorted((s for s in self._sweep.scored if s.detector.name == incident.detector), key=lambda s: s.width)
        if not scored:
            return "unjudged"
        row = row_of(scored[0].fleet, numbers)
        if row is None and not self._config.watches(incident.scope):
            scored = self._as_guest(scored, incident)
            row = scored[0].fleet.monitors.height - 1 if scored else None
        if row is None:
            return "unjudged"
        verdicts = (self._verdict(one, incident, row) for one in scored)
        return next((verdict for verdict in verdicts if verdict != "unjudged"), "unjudged")

    def _by_its_own(self, detector: OwnWindows, incident: Incident) -> Verdict:
        """What a detector with windows of its own says; "unjudged" where the store has no time for it."""
        at, since = self._sweep.at, self._sweep.since
        try:
            return detector.verdict(self._store, self._config, incident, at, since=since, masks=self._masks)
        except StoreError as error:
            log.warning(f"{detector.name} does not judge an incident again", incident=incident.id, reason=str(error))
            return "unjudged"

    def _as_guest(self, scored: Sequence[Scored], incident: Incident) -> list[Scored]:
        """What is said of the incident's monitor in each width; nothing where it has no events."""
        key = frozenset(incident.scope.items())
        if key not in self._joined:
            own, cube = scored[0].fleet, self._sweep.cube
            joined = with_guest(own, self._store, self._config, incident.scope, masks=self._masks, cube=cube)
            self._joined[key] = joined
        fleet = self._joined[key]
        return [guest_scored(one, fleet, incident.metric, self._config) for one in scored] if fleet else []

    def _verdict(self, scored: Scored, incident: Incident, row: int) -> Verdict:
        score = scored.score(incident.metric, row)
        if score is None:
            long = scored.width >= incident.window
            return self._against_its_beginning(scored, row, incident) if long else "unjudged"
        return verdict_of(self._gain(scored, row, incident, score, kept_of(incident)), self._config)

    def _gain(self, scored: Scored, row: int, incident: Incident, score: dict[str, float], kept: float) -> float:
        """Log-likelihood of `kept` times the expected level over that of the expected one, in nats."""
        observed, expected = score["observed"], score["expected"]
        variance = max((score["upper"] - score["lower"]) / BAND, 1e-12) ** 2
        metric = self._config.metrics[incident.metric]
        if metric.kind == "count":
            excess = max(variance / max(expected, 1e-9), 1.0)
            return float((observed * np.log(kept) - expected * (kept - 1)) / excess)
        if metric.kind == "rate":
            trials = float(scored.fleet.total(metric.volume, scored.width, slice(row, row + 1))[0])
            before, after = np.clip([expected, expected * kept], 1e-6, 1 - 1e-6)
            gain = observed * np.log(after / before) + (1 - observed) * np.log((1 - after) / (1 - before))
            excess = max(variance * trials / (before * (1 - before)), 1.0)
            return float(trials * gain / excess)
        return normal_gain(observed, expected, variance, kept)

    def _against_its_beginning(self, scored: Scored, row: int, incident: Incident) -> Verdict:
        """Where the incident has outlasted its references: which is nearer, what it was or what was expected?"""
        metric = self._config.metrics[incident.metric]
        level = scored.fleet.value(metric, scored.width, row)
        if metric.kind == "count":
            level *= incident.window / scored.width
        if not np.isfinite(level):
            return "unjudged"
        return "abnormal" if abs(level - incident.observed) < abs(level - incident.expected) else "normal"
