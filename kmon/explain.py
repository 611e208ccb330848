"""Which dimension values carry a change: from many anomalies to few causes.

Greedy: take the scope whose change is the most telling, remove its events from everything, judge the remaining
anomalies again, and repeat. What is no longer abnormal without the cause was explained by it, be it its parent, its
child or a scope that only overlaps it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from kmon.config import Config
from kmon.detect import Family, Fleet, Scored, Sweep

PENALTY = 3.0
"""Evidence (nats) that one more dimension value in a scope must add: the shorter of two equal descriptions wins."""
LOYALTY = 1.2
"""Factor on the evidence of a scope that is already an open incident, so that its name does not flap."""
MOST = 25
"""Causes told apart in one sweep; what is left then is told as it stands."""


@dataclass(frozen=True)
class Cause:
    """A scope whose own change explains anomalies."""

    metric: str
    scope: dict[str, str]
    direction: str
    window: dt.timedelta
    detector: str
    observed: float
    expected: float
    lower: float
    upper: float
    p_value: float
    effect: float
    evidence: float
    children: tuple[Child, ...]
    """The anomalies it explains, itself first."""


@dataclass(frozen=True)
class Child:
    """One anomaly that a cause explains."""

    metric: str
    scope: dict[str, str]
    window: dt.timedelta
    direction: str
    observed: float
    expected: float
    p_value: float


Names = Callable[[Fleet, int], dict[str, str]]
"""The dimension values of a fleet's row."""
Refetch = Callable[[Fleet, dict[str, str], Sequence[dict[str, str]]], Fleet]
"""The part of a fleet that lies inside a scope and outside the others."""
Row = dict[str, Any]
"""One anomaly: a row of `Sweep.flagged`."""


def explain(
    sweep: Sweep, config: Config, names: Names, refetch: Refetch, known: Sequence[dict[str, str]] = ()
) -> list[Cause]:
    """The causes of a sweep's anomalies, the most telling first; `known` are the scopes of open incidents."""
    pairs = zip(sweep.scored, sweep.flagged, strict=True)
    rest = _Rest(refetch)
    pending = [
        _Pending(s, flagged, sweep.families[s.width], names, config, rest)
        for s, flagged in pairs
        if flagged.height and not s.use.shadow
    ]
    causes: list[Cause] = []
    _keep_significant(pending)
    while (best := _best(pending, known)) is not None:
        holder, row = best
        scope = holder.scope(row)
        alone = len(causes) >= MOST
        first = holder.child(row)
        explained = [c for p in pending for c in (p.take(scope) if alone else p.explain(row, scope))]
        if not alone and not holder.scored.apart and any(p.flagged.height for p in pending):
            rest.take_away(holder.fleet, scope)
            explained += [c for p in pending for c in p.judge_again()]
        keys = ("metric", "direction", "observed", "expected", "lower", "upper", "p_value", "effect", "evidence")
        causes.append(
            Cause(
                scope=scope,
                window=holder.scored.window(row),
                detector=holder.scored.detector.name,
                children=(first, *(child for child in explained if child != first)),
                **{key: row[key] for key in keys},
            )
        )
        _keep_significant(pending)
    return causes


class _Rest:
    """The fleet less the causes that are known by now."""

    def __init__(self, refetch: Refetch) -> None:
        self._refetch = refetch
        self._causes: list[dict[str, str]] = []
        self.fleet: Fleet | None = None

    def take_away(self, whole: Fleet, scope: dict[str, str]) -> None:
        """Remove the events of one more scope; none is taken away twice."""
        before = self.fleet or whole
        self.fleet = before.minus(self._refetch(whole, scope, self._causes))
        self._causes.append(scope)


class _Pending:
    """The anomalies of one detector and window that no cause explains yet."""

    def __init__(
        self, scored: Scored, flagged: pl.DataFrame, family: Family, names: Names, config: Config, rest: _Rest
    ) -> None:
        self.scored, self.fleet, self.family = scored, scored.fleet, family
        self.flagged = flagged.with_columns(alone=False)
        self._names, self._config, self._rest = names, config, rest
        self._scopes: dict[int, dict[str, str]] = {}

    def rows(self) -> Iterator[Row]:
        return self.flagged.iter_rows(named=True)

    def scope(self, row: Row) -> dict[str, str]:
        number = row["row"]
        if number not in self._scopes:
            self._scopes[number] = self._names(self.scored.fleet, number)
        return self._scopes[number]

    def stands_alone(self, row: Row, cause: Row, scope: dict[str, str]) -> bool:
        """Whether this is a count that falls inside a scope where something rose: a campaign hides no failure.

        A rate that falls there is explained: its denominator swelled.
        """
        metrics = self._config.metrics
        welcome = metrics[cause["metric"]].good == cause["direction"]
        lost = metrics[row["metric"]].kind == "count" and metrics[row["metric"]].good != row["direction"]
        return welcome and lost and scope.items() <= self.scope(row).items()

    def child(self, row: Row) -> Child:
        keys = ("metric", "direction", "observed", "expected", "p_value")
        return Child(scope=self.scope(row), window=self.scored.window(row), **{key: row[key] for key in keys})

    def take(self, scope: dict[str, str]) -> list[Child]:
        """The anomalies with exactly this scope, which are no longer pending."""
        return self._remove(pl.Series([self.scope(row) == scope for row in self.rows()], dtype=pl.Boolean))

    def explain(self, cause: Row, scope: dict[str, str]) -> list[Child]:
        """Remove and return the anomalies inside the scope of a cause, but for those that stand alone."""
        alone = pl.Series([self.stands_alone(row, cause, scope) for row in self.rows()], dtype=pl.Boolean)
        inside = pl.Series([scope.items() <= self.scope(row).items() for row in self.rows()], dtype=pl.Boolean)
        self.flagged = self.flagged.with_columns(alone=pl.col("alone") | alone)
        return self._remove(inside & ~alone)

    def judge_again(self) -> list[Child]:
        """Remove and return the anomalies that are none without the causes known by now."""
        if self._rest.fleet is None or self.scored.apart or not self.flagged.height:
            return []
        gone = []
        for (metric,), part in self.flagged.group_by("metric", maintain_order=True):
            again = self.scored.again(self._rest.fleet, str(metric), part["row"].to_list(), self._config)
            same = again["notable"] & (again["direction"] == part["direction"])
            still = same & (again["p_value"] <= self.family.cutoff)
            gone.append(part.select("metric", "row").with_columns(gone=~still))
        marked = self.flagged.join(pl.concat(gone), on=["metric", "row"], how="left", maintain_order="left")
        return self._remove(marked["gone"] & ~marked["alone"])

    def _remove(self, which: pl.Series) -> list[Child]:
        removed = [self.child(row) for row in self.flagged.filter(which).iter_rows(named=True)]
        self.flagged = self.flagged.filter(~which)
        return removed


def _keep_significant(pending: Sequence[_Pending]) -> None:
    """Drop what is significant only in the company of anomalies that are explained by now.

    The Benjamini-Hochberg cut-off rises with the number of anomalies: hundreds that one outage causes would let noise
    elsewhere pass.
    """
    for width in {holder.scored.width for holder in pending}:
        same = [holder for holder in pending if holder.scored.width == width]
        p = np.sort(np.concatenate([holder.flagged["p_value"].to_numpy() for holder in same]))
        family = same[0].family
        passed = p[p <= family.rate * np.arange(1, len(p) + 1) / max(family.tests, 1)]
        cutoff = float(passed.max()) if len(passed) else 0.0
        for holder in same:
            holder.flagged = holder.flagged.filter(pl.col("p_value") <= cutoff)


def _best(pending: Sequence[_Pending], known: Sequence[dict[str, str]]) -> tuple[_Pending, Row] | None:
    """The pending anomaly that tells most, its evidence weighed against the length of its scope."""

    def rank(found: tuple[_Pending, Row]) -> float:
        holder, row = found
        scope = holder.scope(row)
        return float(row["evidence"]) * (LOYALTY if scope in known else 1) - PENALTY * len(scope)

    return max(((holder, row) for holder in pending for row in holder.rows()), key=rank, default=None)
