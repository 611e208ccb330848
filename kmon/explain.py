"""Which dimension values carry a change: from many anomalies to few causes.

    the most telling anomaly  ►  its root cause in the base cuboid  ►  without the cause's events, judge the rest again

The most telling anomaly says where to look. The leaves there (`kmon.leaves`) say which scope carries the change
(`kmon.rootcause`), be it one that no grouping set has. The detector judges that scope like any monitor; where it sees
nothing there, or nothing more than in the anomaly, the anomaly names the cause itself. What is no longer abnormal
without the cause was explained by it, be it its parent, its child or a scope that only overlaps it.

What is certain, and has changed by just too little to be an anomaly, may be the whole of which an anomaly is a part. At
last the rest of what is certain and too small is looked into: it may be all that the watched monitors show of something
large where no grouping set looks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from kmon.config import Config
from kmon.config.bins import RECENT, bin_for
from kmon.detect import Cube, Family, Fleet, Mask, Scored, Sweep, observe
from kmon.detect.fleet import numbers_of
from kmon.detect.guests import guest_scored, row_of, scope_of, with_guest
from kmon.leaves import Leaves, disjoint, read_leaves
from kmon.store import Store

Scope = dict[str, str]

PENALTY = 3.0
"""Evidence (nats) that one more dimension value in a scope must add: the shorter of two equal descriptions wins."""
LOYALTY = 1.2
"""Factor on the evidence of a scope that is already an open incident, so that its name does not flap."""
FAINT = 3
"""Of what is certain and too small to be an anomaly, the most telling ones of a metric that are looked into."""
NEARLY = 0.7
"""Of an anomaly's change, which that of a larger scope must be to account for it."""
HARDLY = 1e-3
"""P-value: what is no likelier without a cause, and changed as much, is not explained by it. Fewer events tell less."""
APART = 200
"""Values of a dimension with many that are told apart: those with the most telling anomalies."""
MOST = 25
"""Causes told apart in one sweep; what is left then is told as it stands."""


@dataclass(frozen=True)
class Cause:
    """A scope whose own change explains anomalies."""

    metric: str
    scope: Scope
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
    scope: Scope
    window: dt.timedelta
    direction: str
    observed: float
    expected: float
    p_value: float


Row = dict[str, Any]
"""One anomaly: a row of `Sweep.flagged`."""


def explain(
    sweep: Sweep,
    config: Config,
    store: Store,
    known: Sequence[Scope] = (),
    masks: Sequence[Mask] = (),
    over: Sequence[tuple[Scope, dt.datetime]] = (),
) -> list[Cause]:
    """The causes of a sweep's anomalies, the most telling first.

    `known` are the scopes of open incidents, `masks` what the sweep masked, and `over` the scopes of incidents that are
    over, or nearly, with the time at which they were last seen. Reads the store, where there are any.
    """
    pairs = zip(sweep.scored, sweep.flagged, strict=True)
    rest = _Rest(store, config, sweep.cube)
    pending = [
        _Pending(s, flagged, sweep.families[s.family], store, config, rest) for s, flagged in pairs if not s.use.shadow
    ]
    roots = _Roots(store, config, rest, known, masks)
    causes: list[Cause] = []
    _forget_settled(pending, sweep, config, store)
    _forget_over(pending, sweep, config, store, over)
    _keep_significant(pending)
    while (found := _next(pending, roots, known, alone=len(causes) >= MOST)) is not None:
        holder, row = found
        alone = len(causes) >= MOST
        scope = holder.scope(row)
        first = holder.child(row)
        explained = [c for p in pending for c in (p.take(scope) if alone else p.explain(row, scope))]
        if not alone and not holder.scored.apart:
            rest.take_away(holder.fleet, scope, [row for p in pending for row in p.still_asked()], row["metric"])
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


def _forget_settled(pending: Sequence[_Pending], sweep: Sweep, config: Config, store: Store) -> None:
    """Drop what is abnormal only because of a part of it whose level has changed for good, and lately.

    Inside the part earlier days are of another kind; what merely overlaps it needs some hours to have a new level.
    """
    reach = sweep.at - RECENT * bin_for(config.windows) - max(config.windows)
    for shift in config.calendar.shifts:
        if reach < shift.at <= sweep.at:
            _forget(pending, shift.scope, sweep, config, store)


def _forget_over(
    pending: Sequence[_Pending],
    sweep: Sweep,
    config: Config,
    store: Store,
    over: Sequence[tuple[Scope, dt.datetime]],
) -> None:
    """Drop what is abnormal only because its window reaches back into an incident that is over, and lies across it.

    What is inside such an incident is left: it may have come back.
    """
    for scope, seen in over:
        reaching = [p for p in pending if sweep.at - p.scored.width < seen]
        if any(not scope.items() <= p.scope(row).items() for p in reaching for row in p.rows()):
            _forget(reaching, scope, sweep, config, store)


def _forget(pending: Sequence[_Pending], scope: Scope, sweep: Sweep, config: Config, store: Store) -> None:
    """Drop what is no anomaly without the events of a scope, and does not lie inside it."""
    if rows := [row for p in pending for row in p.still_asked()]:
        rest = _Rest(store, config, sweep.cube)
        rest.take_away(sweep.scored[0].fleet, scope, rows)
        for holder in pending:
            holder.judge_again(rest, but=scope)


class _Rest:
    """The fleet less the causes that are known by now; read when it is asked for."""

    def __init__(self, store: Store, config: Config, cube: Cube | None) -> None:
        self._store, self._config, self.cube = store, config, cube
        self.causes: list[Scope] = []
        self._fleet: Fleet | None = None
        self._taken = 0
        self._asked = pl.DataFrame()
        self._alone: list[frozenset[str]] = []

    def take_away(self, whole: Fleet, scope: Scope, rows: Sequence[int], metric: str | None = None) -> None:
        """Remove the events of one more scope from the monitors in some rows; none is taken away twice.

        The others keep them: they are not asked for any more, and tell what is usual with them or without. `metric` is
        what changed in the scope, if known.
        """
        self._fleet = self._fleet or whole
        self.causes.append(scope)
        metrics = self._config.metrics
        cause = metrics[metric] if metric is not None and metrics[metric].kind != "count" else None
        same = {name for name, m in metrics.items() if cause is not None and m.parts == (cause.volume, None)}
        self._alone.append(frozenset(same))
        self._asked = whole.monitors[np.unique(np.array(rows, dtype=np.int64))]

    @property
    def untouched(self) -> frozenset[str]:
        """The metrics that no cause has changed: where a conversion fell there are as many sessions as before."""
        return frozenset.intersection(*self._alone) if self._alone else frozenset()

    @property
    def fleet(self) -> Fleet | None:
        """None while there is no cause."""
        while self._fleet is not None and self._taken < len(self.causes):
            without, scope = self.causes[: self._taken], self.causes[self._taken]
            mine = self._fleet if self._taken else self._fleet.copy()
            store, config, asked, cube = self._store, self._config, self._asked, self.cube
            part = observe(store, config, mine.at, scope=scope, without=without, among=asked, cube=cube)
            self._fleet = mine.minus(part)
            self._taken += 1
        return self._fleet


class _Pending:
    """The anomalies of one detector and window that no cause explains yet."""

    def __init__(
        self, scored: Scored, flagged: pl.DataFrame, family: Family, store: Store, config: Config, rest: _Rest
    ) -> None:
        self.scored, self.fleet, self.family = scored, scored.fleet, family
        self.flagged = flagged.with_columns(alone=False)
        certain = scored.scores.filter(pl.col("p_value") <= family.cutoff, ~pl.col("notable"))
        self.faint = certain.clear() if scored.apart else certain
        """What is certain and too small to be an anomaly."""
        self._store, self._config, self._rest = store, config, rest
        self._scopes: dict[int, Scope] = {}

    def rows(self) -> Iterator[Row]:
        return self.flagged.iter_rows(named=True)

    def scope(self, row: Row) -> Scope:
        if "scope" in row:  # a guest's, which the fleet does not have
            return dict(row["scope"])
        number = row["row"]
        if number not in self._scopes:
            self._scopes[number] = scope_of(self._store, self.fleet, number)
        return self._scopes[number]

    def stands_alone(self, row: Row, cause: Row, scope: Scope) -> bool:
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

    def take(self, scope: Scope) -> list[Child]:
        """The anomalies with exactly this scope, which are no longer pending."""
        return self._remove(pl.Series([self.scope(row) == scope for row in self.rows()], dtype=pl.Boolean))

    def explain(self, cause: Row, scope: Scope) -> list[Child]:
        """Remove and return the anomalies inside the scope of a cause, but for those that stand alone."""
        alone = pl.Series([self.stands_alone(row, cause, scope) for row in self.rows()], dtype=pl.Boolean)
        inside = pl.Series([self._lies_in(row, cause, scope) for row in self.rows()], dtype=pl.Boolean)
        self.flagged = self.flagged.with_columns(alone=pl.col("alone") | alone)
        return self._remove(inside & ~alone)

    def _lies_in(self, row: Row, cause: Row, scope: Scope) -> bool:
        """Whether an anomaly is inside a cause; or overlaps it and changed alike, and cannot be judged again."""
        mine = self.scope(row)
        alike = self.scored.overlaps and row["direction"] == cause["direction"] and not disjoint(mine, scope)
        return alike or scope.items() <= mine.items()

    def judge_again(self, rest: _Rest | None = None, but: Scope | None = None) -> list[Child]:
        """Remove and return the anomalies that are none without the causes known by now; none inside the scope `but`.

        `rest` is another fleet to judge them in.
        """
        known = rest or self._rest
        if self.scored.apart or not self.flagged.height or (fleet := known.fleet) is None:
            return []
        gone = []
        for (metric,), part in self.flagged.group_by("metric", maintain_order=True):
            again = self.scored.again(fleet, str(metric), part["row"].to_list(), self._config)
            same = again["notable"] & (again["direction"] == part["direction"])
            still = same & (again["p_value"] <= self.family.reach)
            if metric in known.untouched:
                still |= part["direction"] == "down"
            as_much = (again["effect"].abs() >= NEARLY * part["effect"].abs()) & (again["p_value"] <= HARDLY)
            still |= same & as_much & (part["direction"] == self._config.metrics[str(metric)].good)
            gone.append(part.select("metric", "row").with_columns(gone=~still))
        marked = self.flagged.join(pl.concat(gone), on=["metric", "row"], how="left", maintain_order="left")
        inside = [but is not None and but.items() <= self.scope(row).items() for row in self.rows()]
        return self._remove(marked["gone"] & ~marked["alone"] & ~pl.Series(inside, dtype=pl.Boolean))

    def still_asked(self) -> Iterator[int]:
        """The rows that may be judged again."""
        if not self.scored.apart:
            yield from self.flagged["row"]
            for metric in self.faint["metric"].unique():
                yield from (row["row"] for row in self.most_telling_faint(metric))

    def most_telling_faint(self, metric: str) -> Iterator[Row]:
        yield from self.faint.filter(pl.col("metric") == metric).top_k(FAINT, by="evidence").iter_rows(named=True)

    def is_still_certain(self, row: Row) -> bool:
        """Whether it is without the causes known by now."""
        if (fleet := self._rest.fleet) is None:
            return True
        (again,) = self.scored.again(fleet, row["metric"], [row["row"]], self._config).to_dicts()
        return bool(again["p_value"] <= self.family.reach and again["direction"] == row["direction"])

    def _remove(self, which: pl.Series) -> list[Child]:
        removed = [self.child(row) for row in self.flagged.filter(which).iter_rows(named=True)]
        self.flagged = self.flagged.filter(~which)
        return removed


def _keep_significant(pending: Sequence[_Pending]) -> None:
    """Drop what is significant only in the company of anomalies that are explained by now.

    The Benjamini-Hochberg cut-off rises with the number of anomalies: hundreds that one outage causes would let noise
    elsewhere pass.
    """
    for key in {holder.scored.family for holder in pending}:
        same = [holder for holder in pending if holder.scored.family == key]
        p = np.sort(np.concatenate([holder.flagged["p_value"].to_numpy() for holder in same]))
        family = same[0].family
        passed = p[p <= family.rate * np.arange(1, len(p) + 1) / max(family.tests, 1)]
        cutoff = float(passed.max()) if len(passed) else 0.0
        for holder in same:
            holder.flagged = holder.flagged.filter(pl.col("p_value") <= cutoff)


def _next(
    pending: Sequence[_Pending], roots: _Roots, known: Sequence[Scope], *, alone: bool
) -> tuple[_Pending, Row] | None:
    """The next cause; where it is to stand `alone` the most telling anomaly itself. None where nothing is left."""
    best = _best(pending, known)
    if alone:
        return best
    if best is None:
        return _hidden(pending, roots, known)
    holder, row = best
    if holder.scored.apart or holder.scope(row) in known:
        return best
    row = _whole(holder, row, known, roots.rest.causes)
    return holder, roots.of(holder, row) or row


def _whole(holder: _Pending, row: Row, known: Sequence[Scope], causes: Sequence[Scope]) -> Row:
    """What an anomaly is a part of and tells more, though it has changed by just too little itself; or the anomaly.

    What a known cause has a part in may have changed for that reason.
    """
    scope = holder.scope(row)
    same = holder.faint.filter(
        pl.col("metric") == row["metric"],
        pl.col("direction") == row["direction"],
        pl.col("effect").abs() >= NEARLY * abs(row["effect"]),
        pl.col("evidence") > row["evidence"],
    )
    around = [one for one in same.iter_rows(named=True) if holder.scope(one).items() < scope.items()]
    others = [one for one in around if all(disjoint(holder.scope(one), cause) for cause in causes)]
    return max((row, *others), key=lambda one: _rank(holder, one, known))


def _hidden(pending: Sequence[_Pending], roots: _Roots, known: Sequence[Scope]) -> tuple[_Pending, Row] | None:
    """A guest that explains what is certain and too small to be an anomaly, and has nothing to do with what is told."""
    told = [*known, *roots.rest.causes]

    def is_new(scope: Scope) -> bool:
        return not any(scope.items() <= one.items() or one.items() <= scope.items() for one in told)

    for metric in sorted({metric for holder in pending for metric in holder.faint["metric"]}):
        faint = [(h, row) for h in pending for row in h.most_telling_faint(metric) if is_new(h.scope(row))]
        faint.sort(key=lambda one: _rank(one[0], one[1], known), reverse=True)
        holder, row = next((one for one in faint[:FAINT] if one[0].is_still_certain(one[1])), (None, None))
        if holder is not None and row is not None and (guest := roots.of(holder, row)) and "scope" in guest:
            return holder, guest
    return None


def _best(pending: Sequence[_Pending], known: Sequence[Scope]) -> tuple[_Pending, Row] | None:
    """The pending anomaly that tells most; of a detector with overlapping windows of its own only where no other is."""
    found = ((holder, row) for holder in pending for row in holder.rows())
    return max(found, key=lambda one: (not one[0].scored.overlaps, _rank(one[0], one[1], known)), default=None)


def _rank(holder: _Pending, row: Row, known: Sequence[Scope]) -> float:
    """How much an anomaly tells: its evidence weighed against the length of its scope."""
    scope = holder.scope(row)
    return float(row["evidence"]) * (LOYALTY if scope in known else 1) - PENALTY * len(scope)


class _Roots:
    """The root causes of anomalies in the base cuboid, whose leaves are read once for each metric and window."""

    def __init__(
        self, store: Store, config: Config, rest: _Rest, known: Sequence[Scope], masks: Sequence[Mask]
    ) -> None:
        self._store, self._config, self._known, self._masks = store, config, known, masks
        self.rest = rest
        self._read: dict[tuple[str, dt.timedelta], Leaves | None] = {}

    def of(self, holder: _Pending, row: Row) -> Row | None:
        """The strongest root cause that the detector confirms where an anomaly is; None where there is none."""
        leaves = self._leaves(holder, row)
        if leaves is None:
            return None
        for scope, direction in leaves.causes(self._store, self._known):
            confirmed = self._confirmed(holder, row, scope)
            if confirmed is not None and confirmed["direction"] == direction:
                return confirmed
        return None

    def _confirmed(self, holder: _Pending, row: Row, scope: Scope) -> Row | None:
        """The anomaly of a scope: a pending one; or of a guest, which must tell more than `row` does."""
        same = [r for r in holder.rows() if r["metric"] == row["metric"] and holder.scope(r) == scope]
        if same or row_of(holder.fleet, numbers_of(self._store, scope)) is not None:
            return same[0] if same else None
        store, config, rest = self._store, self._config, self.rest
        joined = with_guest(holder.fleet, store, config, scope, masks=self._masks, without=rest.causes, cube=rest.cube)
        if joined is None:
            return None
        judged = guest_scored(holder.scored, joined, row["metric"], self._config).scores
        alone = holder.family.rate / max(holder.family.tests, 1)  # of the many that might be: it has no company
        notable = judged.filter(pl.col("notable") & (pl.col("p_value") <= alone))
        guest = {**notable.row(0, named=True), "scope": scope} if notable.height else None
        return guest if guest and _rank(holder, guest, self._known) > _rank(holder, row, self._known) else None

    def _leaves(self, holder: _Pending, row: Row) -> Leaves | None:
        """The leaves of the region that all pending anomalies of the metric and window share, without known causes."""
        key = (row["metric"], holder.scored.width)
        same = [row, *sorted(holder.rows(), key=lambda r: -r["evidence"])]
        scopes = [holder.scope(r) for r in same if r["metric"] == key[0]]
        found = self._read.get(key)
        if key not in self._read or (found is not None and not found.region.items() <= holder.scope(row).items()):
            region = dict(set.intersection(*({*scope.items()} for scope in scopes)))
            values: dict[str, dict[str, None]] = {}
            for scope in (*self.rest.causes, *scopes):
                for dimension, value in scope.items():
                    values.setdefault(dimension, {})[value] = None
            apart = {d: list(named)[:APART] for d, named in values.items()}
            found = read_leaves(self._store, self._config, holder.scored, key[0], region, apart, row["row"])
            self._read[key] = found
        if found is None:
            return None
        for scope in self.rest.causes:
            found = found.without(self._store, scope)
        return found
