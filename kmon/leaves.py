"""The base cuboid of one window, and what to expect of each of its leaves: what `kmon.rootcause` searches.

read the window and its references  ►  share out the fleet's expectations among the leaves  ►  root causes

A leaf is far too small to be expected alone. Its references (the time just before, the same time of other days) only
tell its part of the whole; then the parts are scaled until they add up to what the sweep expects of each watched
monitor (iterative proportional fitting, Deming and Stephan 1940). So all that the fleet knows, of trends, holidays and
known incidents, holds for the leaves too, and what no grouping set has is as expected as its parts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from kmon.config import MINUTE, Config, Metric
from kmon.detect import Scored
from kmon.detect.contract import BAND
from kmon.detect.fleet import numbers_of
from kmon.rootcause import root_causes
from kmon.store import Span, Store
from kmon.store.base import MANY

Floats = npt.NDArray[np.float64]
MOST = 20_000
"""Leaves at most: those with most events."""
DAYS = 2
"""Other days, the nearest, that tell a leaf's part."""
LEAST_BEFORE, MOST_BEFORE = dt.timedelta(minutes=30), dt.timedelta(hours=2)
"""Of today."""
TIMES = 6
"""Windows of today before this one."""
PRIOR = 50.0
"""Events of the region's usual rate that a leaf's own are mixed with: most leaves have few."""
ROUNDS = 5
"""Of proportional fitting: the sets nearly agree, as they are all of one fleet."""
CERTAIN = 1e-3
"""No rate is expected to be nearer to 0 or 1."""
ENOUGH = 400
"""Monitors that suffice to tell what the fleet's noise is."""


@dataclass(frozen=True)
class Leaves:
    """The leaves of one metric's window inside a region."""

    region: dict[str, str]
    dimensions: tuple[str, ...]
    frame: pl.DataFrame
    """As `root_causes` takes them, the dimensions as the store's numbers: 0 has no value, null is all other values."""
    spread: float

    def without(self, store: Store, scope: Mapping[str, str]) -> Leaves:
        """The leaves outside a scope."""
        if disjoint(self.region, scope):
            return self
        numbers = numbers_of(store, self._own(scope))
        inside = [pl.col(d).eq_missing(pl.lit(n, pl.UInt32)) for d, n in numbers.items()]
        return replace(self, frame=self.frame.filter(~pl.all_horizontal(inside)) if inside else self.frame.clear())

    def causes(self, store: Store, known: Sequence[Mapping[str, str]]) -> list[tuple[dict[str, str], str]]:
        """The scopes that carry the change and its direction, the strongest first; `known` are those of open incidents.

        What has no name, as it lies in the values that are not told apart, is left out.
        """
        inside = [self._own(scope) for scope in known if self.region.items() <= scope.items()]
        numbers = [numbers_of(store, own) for own in inside]
        told = [found for own, found in zip(inside, numbers, strict=True) if len(found) == len(own)]
        causes = []
        for cause in root_causes(self.frame, self.dimensions, spread=self.spread, known=told):
            names = {d: store.names(d, [n])[n] for d, n in cause.scope.items() if n}
            if len(names) == len(cause.scope):
                both = {**self.region, **names}
                causes.append(({d: both[d] for d in store.schema.dimensions if d in both}, cause.direction))
        return causes

    def _own(self, scope: Mapping[str, str]) -> dict[str, str]:
        """What a scope says beyond the region."""
        return {d: value for d, value in scope.items() if d not in self.region}


def related(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether one of two scopes contains the other."""
    return one.items() <= other.items() or other.items() <= one.items()


def disjoint(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two scopes have nothing in common."""
    return any(other.get(dimension, value) != value for dimension, value in one.items())


def read_leaves(
    store: Store,
    config: Config,
    scored: Scored,
    metric: str,
    region: dict[str, str],
    apart: Mapping[str, Collection[str]],
    row: int,
) -> Leaves | None:
    """The leaves of the window that `scored` judged inside `region`; None where there are none, or nothing is expected.

    Of a dimension with many values those in `apart` are told apart, the others together. A quantile is a rate here: the
    share of events beyond the edge of the monitor in `row`, which is to be explained.
    """
    what, fleet, width = config.metrics[metric], scored.fleet, scored.width
    scores = scored.scores.filter(pl.col("metric") == metric)
    if what.kind == "mean" or scores.is_empty():
        return None
    hits, trials = what.measures[:1], what.measures[1:]
    if what.kind == "quantile":
        edge = scored.edge(what, row)
        hits, trials, scores = what.beyond(edge), (what.volume,), scored.beyond(what, edge, scores)
    dimensions = [d for d in store.schema.dimensions if d not in region]
    if not dimensions:  # the region is a leaf
        return None
    folded = {d: apart.get(d, ()) for d in dimensions if store.cardinality(d) > MANY}
    spans = _spans(fleet.at, width, [int(name.removeprefix("day")) for name in fleet.days])
    cells = store.leaves(spans, region, [*hits, *trials], apart=folded, most=MOST)
    frame = _expected(cells, spans, hits, trials)
    monitors = fleet.monitors[scores["row"]].with_columns(level=scores["expected"])
    inside = [pl.col(d) == number for d, number in numbers_of(store, region).items()]
    margins = monitors.filter(inside) if inside else monitors
    frame = frame.with_columns(expected=pl.Series(_fitted(frame, margins, dimensions)))
    if trials:
        frame = frame.with_columns(pl.col("expected").clip(upper_bound=(1 - CERTAIN) * pl.col("exposure")))
    noise, spread = _noise(scored, scores, what)
    return Leaves(region, tuple(dimensions), frame.with_columns(dispersion=noise), spread)


def _spans(at: dt.datetime, width: dt.timedelta, days: Sequence[int]) -> list[Span]:
    """The window, today before it, and the time around it of other days; each as one window."""
    before = min(max(TIMES * width, LEAST_BEFORE), max(MOST_BEFORE, width))
    wide = -(-width // MINUTE) * MINUTE  # as other days are kept by the minute
    around = [Span(f"day{n}", at - dt.timedelta(days=n) - 2 * wide, 1, 3 * wide) for n in sorted(days)[:DAYS]]
    return [Span("now", at - width, 1, width), Span("before", at - width - before, 1, before), *around]


def _expected(cells: pl.DataFrame, spans: Sequence[Span], hits: Sequence[str], trials: Sequence[str]) -> pl.DataFrame:
    """`observed`, `expected` by the references alone, and of a rate `exposure`, beside the dimensions.

    `hits` are the measures whose sum is the count, or the numerator; `trials` is the denominator, if there is one.
    """

    def total(measures: Sequence[str], among: Sequence[Span]) -> pl.Expr:
        return pl.sum_horizontal(f"{measure}_{span.name}" for measure in measures for span in among)

    now, past = spans[:1], spans[1:]
    counted = [f"{m}_{span.name}" for m in (*hits, *trials) for span in spans]
    observed, before = total(hits, now), total(hits, past)
    if not trials:
        part = now[0].width / sum((span.width for span in past), dt.timedelta())
        return cells.select(pl.exclude(counted), observed=observed, expected=before * part)
    size, seen = total(trials, now), total(trials, past)
    usual = before.sum() / pl.max_horizontal(seen.sum(), 1.0)
    rate = (before + PRIOR * usual) / (seen + PRIOR)
    return cells.select(pl.exclude(counted), observed=observed, expected=rate * size, exposure=size)


def _fitted(frame: pl.DataFrame, margins: pl.DataFrame, dimensions: Sequence[str]) -> Floats:
    """What is expected of the leaves, scaled to the level that each monitor of `margins` is expected to have.

    `margins` has `set`, dimensions and `level`: a count, or a rate of what its leaves have. Where the region itself is
    no judged monitor, most of it is taken to be as ever.
    """
    expected = frame["expected"].to_numpy().astype(np.float64)
    size = frame["exposure"].to_numpy() if "exposure" in frame.columns else None
    fits = []
    if (
        not margins.height
        or not margins.select(
            pl.all_horizontal(pl.col(d).is_null() for d in dimensions if d in margins.columns).any()
        ).item()
    ):
        expected *= _level(frame, dimensions)
    sets = margins.partition_by("set", maintain_order=True)
    for part in sorted(sets, key=lambda part: -sum(part.null_count().row(0))):  # what is finer is known better
        own = [d for d in dimensions if d in part.columns and part[d].null_count() == 0]
        numbered = part.select(*own, "level").with_row_index("monitor")
        if own:
            monitor = frame.select(own).join(numbered, on=own, how="left", maintain_order="left")["monitor"]
        else:
            monitor = pl.Series([0], dtype=pl.UInt32).new_from_index(0, frame.height)
        leaves = monitor.is_not_null().to_numpy()
        group = monitor.drop_nulls().to_numpy().astype(np.int64)
        if not leaves.any():
            continue
        level = numbered["level"].to_numpy()
        whole = 1.0 if size is None else np.bincount(group, size[leaves], len(level))
        fits.append((leaves, group, level * whole))
    for _ in range(ROUNDS):
        for leaves, group, target in fits:
            total = np.bincount(group, expected[leaves], len(target))
            factor = np.divide(target, total, out=np.ones_like(total), where=(total > 0) & (target > 0))
            expected[leaves] *= factor[group]
    return expected


def _level(frame: pl.DataFrame, dimensions: Sequence[str]) -> float:
    """Observed over expected, of the dimension value in the middle by what is expected."""
    sums = [frame.group_by(d).agg(pl.col("observed", "expected").sum()).drop(d) for d in dimensions]
    values = pl.concat(sums).filter(pl.col("expected") > 0).with_columns(ratio=pl.col("observed") / pl.col("expected"))
    below = values.sort("ratio").with_columns(pl.col("expected").cum_sum() / pl.col("expected").sum())
    middle = below.filter(pl.col("expected") >= 0.5)["ratio"]
    return float(middle[0]) if len(middle) else 1.0


def _noise(scored: Scored, scores: pl.DataFrame, metric: Metric) -> tuple[float, float]:
    """Of the variance that the detector reckons with: times what chance says, and what grows with a monitor's size.

    A line through its monitors, by the median of all slopes (Theil 1950, Sen 1968).
    """
    level = scores["expected"].to_numpy()
    variance = ((scores["upper"] - scores["lower"]).to_numpy() / BAND) ** 2
    if metric.kind == "count":
        size, chance = level, level
    else:
        size = scored.fleet.total(metric.volume, scored.width)[scores["row"].to_numpy()]
        chance = level * (1 - level) / np.maximum(size, 1.0)
    telling = np.flatnonzero((chance > 0) & (size > 0) & np.isfinite(variance))
    telling = telling[:: -(-len(telling) // ENOUGH) or 1]
    if len(telling) < 2:
        return 1.0, 0.0
    ratio = variance[telling] / chance[telling]
    if np.ptp(size[telling]) == 0:
        return max(1.0, float(np.median(ratio))), 0.0
    slope, middle, *_ = stats.theilslopes(ratio, size[telling])
    noise = max(1.0, float(middle))
    return noise, max(0.0, float(slope)) / noise
