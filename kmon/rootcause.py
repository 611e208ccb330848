"""Root cause over dimensions: the few scopes of the base cuboid that carry a change of a count or a rate.

A scan statistic over the lattice of dimension values. Each scope (a value for some dimensions, any for the others) is
weighed by the likelihood ratio of "inside, the level changed by one common factor; outside nothing did" (Kulldorff
1997, in the expectation-based form of Neill 2009), less the length of its description (Rissanen 1978): naming one of
many values costs more than naming one of few, and a parent costs less than its child. The best scope is a cause; its
leaves are taken away, and the search repeats on what remains. Over-dispersion makes each leaf's count an effective one
(Rao and Scott 1992), so that a large leaf that merely wanders cannot outvote all the others. Where the leaves of the
strongest cause do not follow its one factor, the yardstick is too fine by what they scatter, and weaker causes must
show so much more (quasi-likelihood, McCullagh and Nelder 1989, section 9.2): a large incident has many small echoes.

The search goes by breadth and leaves out what cannot win: no scope has more evidence than its leaves have by
themselves, as the Kullback-Leibler divergence is jointly convex.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit, logit

from kmon.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEAST = 10.0
"""Evidence (nats, less the description) that a cause has: chance alone gives so much once in e^10 searches or so."""
MOST = 10
"""Causes told apart in one search."""
ALIKE = 0.75
"""Everything changed if the rest did by this share (on the log scale) of what the most telling scope did."""
DOUBT = 0.5
"""Nats by which the rest may speak against that, a standard deviation: few events tell little of how much."""
HALF = 0.5
"""Events that a scope is expected to show at least: what was never seen may still be seen."""
TINY = 1e-9
"""A rate that is never expected, or its complement that is always."""
MEDIAN_CHI2 = 0.455
"""Of the chi-square distribution with one degree of freedom."""
DENSE = 4
"""Groups a row up to which sums are taken without listing the groups first."""


@dataclass(frozen=True)
class RootCause:
    """A scope whose own change explains a part of the whole change."""

    scope: dict[str, Any]
    """A value for each dimension that matters; empty if all changed alike."""
    direction: str
    """up or down"""
    evidence: float
    """Log-likelihood gained by admitting the change, in nats, the length of the description taken off."""
    observed: float
    """Inside the scope: the count, or the rate."""
    expected: float
    change: float
    """Events, or events of the numerator, more (or less) than expected."""
    share: float
    """Of all change: this cause's, the other causes' and what is left, each without its sign. From 0 to 1."""
    remaining: float
    """Share of all change that this cause and the stronger ones do not explain."""


def root_causes(
    leaves: pl.DataFrame,
    dimensions: Sequence[str],
    *,
    spread: float = 0.0,
    least: float = LEAST,
    most: int = MOST,
    known: Sequence[Mapping[str, Any]] = (),
) -> list[RootCause]:
    """The smallest set of scopes that explains how `leaves` differ from what was expected, the strongest first.

    `leaves` has a row for each combination of `dimensions` (strings or integers; null is a value like any other) with
    the columns `observed` and `expected`: counts; or of a rate its numerator and what that should be, with the
    denominator as `exposure`. Rows that are null or NaN in one of them, or have no exposure, say nothing. Optional is
    `dispersion`: variance over what Poisson's or the binomial law says, 1 or more. `spread` adds to it what grows with
    size: the variance of a leaf's own level, relative to its square (counts), or to p (1 - p) (rates: the intra-class
    correlation); see `spread_between`. Scopes that are `known` for causes stay so unless another tells LEAST more.

    A dimension with one value explains nothing and is in no scope. Several abnormal values of one dimension are
    several causes. The order of the rows does not matter.

    >>> leaves = pl.DataFrame({"browser": ["safari", "chrome"], "observed": [10, 99], "expected": [90.0, 100.0]})
    >>> [(c.scope, c.direction) for c in root_causes(leaves, ["browser"])]
    [({'browser': 'safari'}, 'down')]
    """
    whole = cube = _Cube.of(leaves, dimensions, spread)
    found: list[_Scope] = []
    floor = least
    while len(found) < most and cube.height and (best := cube.strongest(floor, known)) is not None:
        inside = cube.inside(best)
        if not found:
            floor = least * _misfit(cube.take(inside))
        found.append(best)
        cube = cube.take(~inside)
    return _told(whole, found)


def spread_between(value: Floats, exposure: Floats | None = None) -> float:
    """The spread of leaves' levels between windows without an incident, by moments; 0 where they show none.

    `value` has the shape (leaves, windows): counts, or the numerators of rates with `exposure` their denominators.
    """
    size = np.ones_like(value) if exposure is None else exposure
    live = size > 0
    windows, total = live.sum(axis=1), size.sum(axis=1)
    level = np.divide(value.sum(axis=1), total, out=np.zeros(len(value)), where=total > 0)
    variance = level if exposure is None else level * (1 - level)
    live &= ((windows > 1) & (variance > 0))[:, None]
    if not live.any():
        return 0.0
    with np.errstate(all="ignore"):
        chi2 = (value - size * level[:, None]) ** 2 / (size * variance[:, None])
        excess = chi2 * (windows / (windows - 1))[:, None] - 1
    growth = np.broadcast_to(level[:, None], value.shape) if exposure is None else size - 1
    weight = float(growth[live].sum())
    return max(0.0, float(excess[live].sum()) / weight) if weight > 0 else 0.0


@dataclass(frozen=True)
class _Scope:
    """A scope by the positions of its dimensions and the codes of its values."""

    dimensions: tuple[int, ...]
    codes: tuple[int, ...]
    gain: float
    effect: float
    """Logarithm of observed over expected."""


@dataclass(frozen=True)
class _Cube:
    """The leaves as arrays, in an order of their own."""

    names: tuple[str, ...]
    values: tuple[pl.Series, ...]
    """By dimension, what its codes stand for."""
    costs: Floats
    """By dimension, the length in nats of naming one of its values."""
    codes: Ints
    """(dimensions, leaves)"""
    observed: Floats
    """Effective: divided by the dispersion, as are the next two."""
    expected: Floats
    exposure: Floats | None
    dispersion: Floats

    @classmethod
    def of(cls, leaves: pl.DataFrame, dimensions: Sequence[str], spread: float) -> _Cube:
        leaves = _checked(leaves, dimensions)
        names, values, codes = [], [], []
        for name in dimensions:
            known = leaves.select(pl.col(name).unique().sort()).with_row_index("_code")
            if known.height > 1:
                joined = leaves.select(name).join(known, on=name, how="left", nulls_equal=True, maintain_order="left")
                names.append(name)
                values.append(known[name])
                codes.append(joined["_code"].to_numpy().astype(np.int64))
        observed, expected = (leaves[name].to_numpy() for name in ("observed", "expected"))
        exposure = leaves["exposure"].to_numpy() if "exposure" in leaves.columns else None
        size = expected if exposure is None else np.maximum(exposure - 1, 0)
        dispersion = leaves["dispersion"].to_numpy() * (1 + spread * size)
        costs = np.array([np.log(len(names) * len(value)) for value in values])
        table = np.array(codes, dtype=np.int64).reshape(len(names), leaves.height)
        exposure = None if exposure is None else exposure / dispersion
        effective = (observed / dispersion, expected / dispersion, exposure)
        cube = cls(tuple(names), tuple(values), costs, table, *effective, dispersion)
        # sums in one order whatever the order of the rows, so that rounding decides no tie
        return cube.take(np.lexsort((dispersion, expected, observed, *table)))

    @property
    def height(self) -> int:
        return len(self.observed)

    def take(self, which: Ints | Bools) -> _Cube:
        """Some of the leaves."""
        return replace(
            self,
            codes=self.codes[:, which],
            observed=self.observed[which],
            expected=self.expected[which],
            exposure=None if self.exposure is None else self.exposure[which],
            dispersion=self.dispersion[which],
        )

    def inside(self, scope: _Scope) -> Bools:
        parts = [self.codes[d] == code for d, code in zip(scope.dimensions, scope.codes, strict=True)]
        return np.logical_and.reduce(parts) if parts else np.ones(self.height, dtype=bool)

    def strongest(self, floor: float, known: Sequence[Mapping[str, Any]] = ()) -> _Scope | None:
        """The scope with the highest gain, of those that reach `floor`; a known one if it has nearly as much."""
        best = self._best(floor)
        loyal = [scope for one in known if (scope := self._scope(one)) is not None and scope.gain >= floor]
        told = max(loyal, key=lambda scope: scope.gain, default=None)
        return told if best and told and told.gain + LEAST >= best.gain else best

    def _scope(self, named: Mapping[str, Any]) -> _Scope | None:
        """A scope that was named; None where it names what the leaves do not have, or everything."""
        if not named or not named.keys() <= set(self.names):
            return None
        pairs = sorted((self.names.index(name), value) for name, value in named.items())
        codes = [(d, self.values[d].index_of(value)) for d, value in pairs]
        known = [(d, code) for d, code in codes if code is not None]
        found = _Scope(tuple(d for d, _ in known), tuple(code for _, code in known), 0.0, 0.0)
        rows = np.flatnonzero(self.inside(found))
        if len(known) < len(codes) or not len(rows):
            return None
        gains, effects = _gains(self, rows, np.zeros(len(rows), dtype=np.int64), 1)
        cost = self.costs[list(found.dimensions)].sum()
        return replace(found, gain=float(gains[0] - cost), effect=float(effects[0]))

    def _best(self, floor: float) -> _Scope | None:
        whole, *local = self._rising(floor)
        best = max(local, key=lambda scope: scope.gain, default=None)
        if best is None or (whole.gain > best.gain and self._alike(best)):
            return whole if whole.gain >= floor else None
        return best

    def _alike(self, scope: _Scope) -> bool:
        """Whether all the rest changed as this scope did."""
        rest = self.take(~self.inside(scope))
        if not rest.height:
            return True
        observed, expected = rest.observed.sum(), rest.expected.sum()
        exposure = None if rest.exposure is None else rest.exposure.sum()
        alike = expected * np.exp(ALIKE * scope.effect)
        if exposure is not None:
            alike = min(alike, exposure * (1 - TINY))
        further = (observed - alike) * scope.effect >= 0
        return bool(further or _divergence(observed, alike, exposure) <= DOUBT)

    def _rising(self, floor: float) -> Iterator[_Scope]:
        """The whole, then scopes by breadth, each with a higher gain than any before it but the whole."""
        everything = np.arange(self.height)
        nowhere = np.zeros(self.height, dtype=np.int64)
        gains, effects = _gains(self, everything, nowhere, 1)
        yield _Scope((), (), float(gains[0]), float(effects[0]))
        bounds = _bounds(self)
        hopeful: dict[tuple[int, ...], Bools] = {(): np.ones(self.height, dtype=bool)}
        best = floor
        for chosen in _subsets(len(self.names)):
            parents = [hopeful[parent] for parent in combinations(chosen, len(chosen) - 1)]
            rows = np.flatnonzero(np.logical_and.reduce(parents))
            hopeful[chosen] = np.zeros(self.height, dtype=bool)
            if not len(rows):
                continue
            cost = self.costs[list(chosen)].sum()
            groups, count = self._grouped(chosen, rows)
            gains, effects = _gains(self, rows, groups, count)
            top = int(gains.argmax())
            if gains[top] - cost >= best:
                best = float(gains[top] - cost)
                first = rows[int((groups == top).argmax())]
                yield _Scope(chosen, tuple(self.codes[list(chosen), first].tolist()), best, float(effects[top]))
            bound = np.bincount(groups, weights=bounds[rows], minlength=count)
            hopeful[chosen][rows[bound[groups] - cost > best]] = True

    def _grouped(self, chosen: tuple[int, ...], rows: Ints) -> tuple[Ints, int]:
        """The number of its group for each of `rows`, and how many numbers there are."""
        groups = np.zeros(len(rows), dtype=np.int64)
        count = 1
        for d in chosen:
            if count * len(self.values[d]) > DENSE * len(rows) + 1000:  # sparse: list what there is
                known, groups = np.unique(groups, return_inverse=True)
                count = len(known)
            groups = groups * len(self.values[d]) + self.codes[d, rows]
            count *= len(self.values[d])
        return groups, count


def _checked(leaves: pl.DataFrame, dimensions: Sequence[str]) -> pl.DataFrame:
    """The rows that say something, all numbers as floats; UsageError where a column is missing."""
    for name in (*dimensions, "observed", "expected"):
        if name not in leaves.columns:
            message = f"the leaves have no column {name!r}"
            raise UsageError(message)
    if "dispersion" not in leaves.columns:
        leaves = leaves.with_columns(dispersion=1.0)
    numbers = [n for n in ("observed", "expected", "exposure", "dispersion") if n in leaves.columns]
    leaves = leaves.select(*dimensions, pl.col(numbers).cast(pl.Float64))
    leaves = leaves.filter(pl.all_horizontal(pl.col(numbers).is_finite()))
    if "exposure" not in numbers:
        return leaves.with_columns(pl.col("observed", "expected").clip(0), pl.col("dispersion").clip(1))
    leaves = leaves.filter(pl.col("exposure") > 0)
    bounded = pl.col("observed", "expected").clip(pl.lit(0.0), pl.col("exposure"))
    return leaves.with_columns(bounded, pl.col("dispersion").clip(1))


def _subsets(dimensions: int) -> Iterator[tuple[int, ...]]:
    """All but the empty one, short ones first."""
    for length in range(1, dimensions + 1):
        yield from combinations(range(dimensions), length)


def _gains(cube: _Cube, rows: Ints, groups: Ints, count: int) -> tuple[Floats, Floats]:
    """Evidence (nats) and effect (log of observed over expected) of each group of the rows."""

    def summed(part: Floats) -> Floats:
        return np.bincount(groups, weights=part[rows], minlength=count).astype(np.float64)

    observed, expected = summed(cube.observed), np.maximum(summed(cube.expected), HALF)
    exposure = None if cube.exposure is None else summed(cube.exposure)
    if exposure is not None:
        expected = np.minimum(expected, np.maximum(exposure - HALF, exposure / 2))
    return _divergence(observed, expected, exposure), np.log((observed + HALF) / (expected + HALF))


def _bounds(cube: _Cube) -> Floats:
    """What each leaf can at most add to the evidence of a scope."""
    expected = np.maximum(cube.expected, TINY)
    if cube.exposure is not None:
        expected = np.minimum(expected, cube.exposure * (1 - TINY))
    return _divergence(cube.observed, expected, cube.exposure)


def _misfit(cube: _Cube) -> float:
    """How far leaves scatter around one common factor (of the odds, for a rate): chi-square a degree of freedom, >= 1.

    By medians, so that another cause that crosses this one does not count as scatter, and of the leaves that are
    expected to show an event.
    """
    observed, expected, exposure = cube.observed, cube.expected, cube.exposure
    if exposure is None:
        fitted = variance = expected * _weighted_median((observed + HALF) / (expected + HALF), expected)
    else:
        usual = logit(np.clip(expected / exposure, TINY, 1 - TINY))
        shifts = np.log((observed + HALF) / (exposure - observed + HALF)) - usual
        fitted = exposure * expit(usual + _weighted_median(shifts, exposure))
        variance = fitted * (1 - fitted / exposure)
    telling = variance >= 1
    if telling.sum() < 2:
        return 1.0
    chi2 = (observed[telling] - fitted[telling]) ** 2 / variance[telling]
    return max(1.0, float(np.median(chi2)) / MEDIAN_CHI2)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = weights[order].cumsum()
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _divergence(observed: Floats, expected: Floats, exposure: Floats | None) -> Floats:
    """Log-likelihood of the observed level over that of the expected one: of a Poisson or a binomial variable."""
    if exposure is None:
        return _xlogy(observed, expected) - observed + expected
    return _xlogy(observed, expected) + _xlogy(np.maximum(exposure - observed, 0), exposure - expected)


def _xlogy(x: Floats, y: Floats) -> Floats:
    """x log(x / y), 0 where x is."""
    return x * np.log(np.divide(x, y, out=np.ones_like(x), where=(x > 0) & (y > 0)))


def _told(whole: _Cube, found: Sequence[_Scope]) -> list[RootCause]:
    """The causes, each with the leaves that no stronger one took."""
    parts, rest = [], whole
    for scope in found:
        inside = rest.inside(scope)
        parts.append(rest.take(inside))
        rest = rest.take(~inside)
    changes = [_total(part, part.observed - part.expected) for part in (*parts, rest)]
    total = sum(map(abs, changes)) or 1.0
    shares = [abs(change) / total for change in changes]
    causes = []
    for number, (scope, part) in enumerate(zip(found, parts, strict=True)):
        size = 1.0 if part.exposure is None else _total(part, part.exposure)
        named = zip(scope.dimensions, scope.codes, strict=True)
        causes.append(
            RootCause(
                scope={whole.names[d]: whole.values[d][code] for d, code in named},
                direction="up" if scope.effect > 0 else "down",
                evidence=scope.gain,
                observed=_total(part, part.observed) / size,
                expected=_total(part, part.expected) / size,
                change=changes[number],
                share=shares[number],
                remaining=sum(shares[number + 1 :]),
            )
        )
    return causes


def _total(cube: _Cube, effective: Floats) -> float:
    """In events."""
    return float((effective * cube.dispersion).sum())
