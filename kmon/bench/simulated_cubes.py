"""Simulated base cuboids with known causes: leaves of very different size, whose levels wander, and a short history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.rootcause import spread_between

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SIZES = ((200, 3), (1_000, 4), (5_000, 5), (20_000, 6))
"""Leaves and dimensions."""
CARDINALITIES = {"country": 15, "browser": 6, "device": 4, "payment_method": 8, "partner": 0, "channel": 5}
"""Values by dimension; there are as many partners as a twentieth of the leaves."""
HISTORY = 10
"""Windows before, from which the expected level is taken."""
BUSY = 20.0
"""Events (or of a rate's rarer outcome) a leaf, on average."""
TELLING = 8.0
"""Standard deviations by which a cause changes the total of its scope: less could not be told from chance."""
TRIES = 2_000
"""Scopes looked at before another world is drawn."""


@dataclass(frozen=True)
class World:
    """What to draw."""

    kind: str
    """count or rate"""
    leaves: int
    dimensions: int
    causes: int
    spread: float
    """Of the leaves' levels between windows, see `kmon.rootcause.root_causes`."""
    uneven: float = 0.0
    """Standard deviation, from leaf to leaf, of the logarithm of a cause's factor."""
    everywhere: bool = False
    """The one cause lies in no dimension: everything changes."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(CARDINALITIES)[: self.dimensions]


@dataclass(frozen=True)
class Cube:
    """A world as it was drawn."""

    leaves: pl.DataFrame
    """As `kmon.rootcause.root_causes` takes them."""
    truth: list[dict[str, Any]]
    """The scopes that changed."""
    spread: float
    """As the history shows it."""


def cube(world: World, random: np.random.Generator) -> Cube:
    """Draw leaves, their history, and what changed.

    A cause multiplies the count, or the odds of the rate, inside a scope of one to three dimensions: down to 0 to 0.6,
    or up to 1.6 to 4. Causes share less than half of their volume with each other.
    """
    while True:  # in a few small worlds no scope is large enough
        leaves = _leaves(world, random)
        volume = BUSY * random.lognormal(0, 1.5, leaves.height) / np.exp(1.5**2 / 2)
        scopes = _scopes(world, leaves, volume, random)
        if len(scopes) == world.causes:
            break
    rate = np.clip(random.beta(3, 7, leaves.height), 0.02, 0.98)
    factor = np.ones(leaves.height)
    for _, inside in scopes:
        change = random.uniform(0, 0.6) if random.random() < 0.5 else random.uniform(1.6, 4)
        factor[inside] *= change * random.lognormal(0, world.uneven, inside.sum())
    draw = _counts if world.kind == "count" else _rates
    drawn, spread = draw(volume, rate, factor, world.spread, random)
    return Cube(leaves.hstack(pl.DataFrame(drawn)), [scope for scope, _ in scopes], spread)


def _leaves(world: World, random: np.random.Generator) -> pl.DataFrame:
    """Distinct combinations of values, the first value of a dimension the most frequent (Zipf)."""
    columns = {}
    for name in world.names:
        size = CARDINALITIES[name] or max(2, world.leaves // 20)
        weight = 1 / np.arange(1, size + 1) ** 0.8
        # a combination comes up more than once: draw more than are wanted
        drawn = random.choice(size, 3 * world.leaves, p=weight / weight.sum())
        columns[name] = pl.Series(drawn).cast(pl.String)
    return pl.DataFrame(columns).unique(maintain_order=True).head(world.leaves)


def _scopes(
    world: World, leaves: pl.DataFrame, volume: Floats, random: np.random.Generator
) -> list[tuple[dict[str, Any], Bools]]:
    """Scopes whose change can be told, each drawn from a random leaf's values, and the leaves inside."""
    if world.everywhere:
        return [({}, np.ones(leaves.height, dtype=bool))]
    scopes: list[tuple[dict[str, Any], Bools]] = []
    for _ in range(TRIES):
        if len(scopes) == world.causes:
            break
        length = random.integers(1, min(3, leaves.width) + 1)
        names = [leaves.columns[i] for i in sorted(random.choice(leaves.width, length, replace=False))]
        row = leaves.row(int(random.integers(leaves.height)), named=True)
        scope = {name: row[name] for name in names}
        inside = np.logical_and.reduce([(leaves[name] == value).to_numpy() for name, value in scope.items()])
        size = volume[inside].sum()
        noise = np.sqrt((volume * (1 + world.spread * volume))[inside].sum())
        apart = all(volume[inside & other].sum() < min(size, volume[other].sum()) / 2 for _, other in scopes)
        if 0.4 * size > TELLING * noise and size < volume.sum() / 2 and inside.sum() > 2 and apart:
            scopes.append((scope, inside))
    return scopes


def _counts(
    volume: Floats, _: Floats, factor: Floats, spread: float, random: np.random.Generator
) -> tuple[dict[str, Floats], float]:
    """Poisson counts around levels that wander (gamma), and the spread that their history shows."""

    def drawn(mean: Floats) -> Floats:
        return random.poisson(mean * random.gamma(1 / spread, spread, len(mean)) if spread else mean).astype(float)

    before = np.array([drawn(volume) for _ in range(HISTORY)]).T
    return {"observed": drawn(volume * factor), "expected": before.mean(axis=1)}, spread_between(before)


def _rates(
    volume: Floats, rate: Floats, factor: Floats, spread: float, random: np.random.Generator
) -> tuple[dict[str, Floats], float]:
    """Binomial numerators around rates that wander (beta), and the spread that their history shows."""

    def drawn(exposure: Floats, mean: Floats) -> Floats:
        size = 1 / spread - 1 if spread else 0
        level = random.beta(np.maximum(mean * size, 1e-9), (1 - mean) * size) if spread else mean
        return random.binomial(exposure.astype(np.int64), level).astype(float)

    exposure = random.poisson(volume / rate, (HISTORY + 1, len(volume))).astype(float)
    before = np.array([drawn(part, rate) for part in exposure[1:]])
    hits, seen = before.sum(axis=0), exposure[1:].sum(axis=0)
    usual = (hits + hits.sum() / seen.sum()) / (seen + 1)  # a leaf without history has everything's rate
    odds = factor * rate / (1 - rate)
    observed = drawn(exposure[0], odds / (1 + odds))
    leaves = {"observed": observed, "exposure": exposure[0], "expected": usual * exposure[0]}
    return leaves, spread_between(before.T, exposure[1:].T)
