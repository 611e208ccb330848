"""Whether an open incident's own monitor is still abnormal: a likelihood ratio between what it was and what is normal.

"Still abnormal" is that more than about a quarter of the change is left. The shortest window that can tell decides, so
that the end of a sudden one is seen as soon as its beginning was (a sequential probability ratio test, Wald 1945, of
each window afresh).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from kmon.config import Config
from kmon.detect import Fleet, Scored, Silence, Sweep, load_detector
from kmon.detect.fleet import numbers_of
from kmon.incidents import Verdict
from kmon.ledger import Incident
from kmon.store import Store

TELLING = 3.0
"""Nats that one side must be ahead: about 20 to 1."""
BAND = 6.58
"""Standard deviations between `lower` and `upper` of a score, which cover 99.9 %."""


class Recheck:
    """Judges the monitors of open incidents by what one sweep saw."""

    def __init__(self, store: Store, config: Config, sweep: Sweep) -> None:
        self._store, self._config, self._sweep = store, config, sweep
        own = (load_detector(use, config.path.parent) for use in config.detectors if use.use == Silence.name)
        self._silence = next((one for one in own if isinstance(one, Silence)), None)

    def __call__(self, incident: Incident) -> Verdict:
        numbers = numbers_of(self._store, incident.scope)
        gone = incident.metric not in self._config.metrics  # taken out of kmon.yaml while the incident was open
        if gone or len(numbers) < len(incident.scope):
            return "unjudged"
        if incident.detector == Silence.name and self._silence is not None:
            return self._silence.verdict(self._store, self._config, incident.scope, incident.metric, self._sweep.at)
        scored = sorted((s for s in self._sweep.scored if s.detector.name == incident.detector), key=lambda s: s.width)
        row = row_of(scored[0].fleet, numbers) if scored else None
        if row is None:
            return "unjudged"
        verdicts = (self._verdict(one, incident, row) for one in scored)
        return next((verdict for verdict in verdicts if verdict != "unjudged"), "unjudged")

    def _verdict(self, scored: Scored, incident: Incident, row: int) -> Verdict:
        score = scored.score(incident.metric, row)
        if score is None:
            long = scored.width >= incident.window
            return self._against_its_beginning(scored, row, incident) if long else "unjudged"
        kept = 1 + (incident.observed / incident.expected - 1) / 2 if incident.expected else 2.0
        gain = self._gain(scored, row, incident, score, max(kept, 0.02))
        return "unjudged" if abs(gain) < TELLING else "abnormal" if gain > 0 else "normal"

    def _gain(self, scored: Scored, row: int, incident: Incident, score: dict[str, float], kept: float) -> float:
        """Log-likelihood of `kept` times the expected level over that of the expected one, in nats."""
        observed, expected = score["observed"], score["expected"]
        variance = max((score["upper"] - score["lower"]) / BAND, 1e-12) ** 2
        kind = self._config.metrics[incident.metric].kind
        if kind == "count":
            excess = max(variance / max(expected, 1e-9), 1.0)
            return float((observed * np.log(kept) - expected * (kept - 1)) / excess)
        if kind == "rate":
            trials = self._total(scored, row, incident)[1]
            before, after = np.clip([expected, expected * kept], 1e-6, 1 - 1e-6)
            gain = observed * np.log(after / before) + (1 - observed) * np.log((1 - after) / (1 - before))
            excess = max(variance * trials / (before * (1 - before)), 1.0)
            return float(trials * gain / excess)
        middle = expected * (1 + kept) / 2
        return float((observed - middle) * expected * (kept - 1) / variance)

    def _total(self, scored: Scored, row: int, incident: Incident) -> tuple[float, float]:
        numerator, denominator = self._config.metrics[incident.metric].parts
        totals = [float(scored.fleet.total(m, scored.width)[row]) for m in (numerator, denominator) if m is not None]
        return totals[0], totals[1] if len(totals) > 1 else scored.width / incident.window

    def _against_its_beginning(self, scored: Scored, row: int, incident: Incident) -> Verdict:
        """Where the incident has outlasted its references: which is nearer, what it was or what was expected?"""
        value, size = self._total(scored, row, incident)
        if not size:
            return "unjudged"
        level = value / size
        return "abnormal" if abs(level - incident.observed) < abs(level - incident.expected) else "normal"


def row_of(fleet: Fleet, numbers: dict[str, int]) -> int | None:
    """The row of the monitor with these dimension values; None where it is none."""
    dimensions = [c for c in fleet.monitors.columns if c != "set"]
    same = [pl.col(d).eq_missing(pl.lit(numbers.get(d), pl.UInt32)) for d in dimensions]
    rows = fleet.monitors.with_row_index("row").filter(pl.all_horizontal(same))["row"]
    return int(rows[0]) if len(rows) else None
