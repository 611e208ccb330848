"""How well root causes are found: on real incidents where those data are, and on simulated base cuboids.

*Element F1*: the (dimension, value) pairs of all told causes of a case are one set, those of its true causes another;
true positives, false positives and false negatives are summed over all cases before F1 is taken (micro average).
*Exact*: the share of cases whose told scopes are the true ones, no more and no fewer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kmon import environment
from kmon.bench.rows import Row, missing, reaching, told, under
from kmon.bench.simulated_cubes import SIZES, World, cube
from kmon.bench.workplace import Options
from kmon.rootcause import LEAST, Floats, RootCause, root_causes, spread_between

Scope = dict[str, Any]

REACH = 0.6
"""Element F1 on the real incidents; the best published implementation has 0.42 there."""
QUICK = 50.0
"""Milliseconds a case."""
PRIOR = 50.0
"""Sessions of everything's usual rate that a leaf's own history is mixed with: most leaves have little history."""
DRIFT = 0.005
"""Least spread of real rates: ten minutes of history do not show all the ways in which a rate wanders."""
SEED = 20260301
CUBES = 40
"""Simulated cubes of each sort."""
KINDS = ("count", "rate")
SPREADS = (0.0, 0.003, 0.02)
UNEVEN = 0.3
"""How unlike a cause's factor is from leaf to leaf, where it is not the same for all."""
LARGE = (100_000, 6)
"""Leaves and dimensions of the large cube."""


@dataclass(frozen=True)
class Case:
    """A cube and what really changed in it."""

    name: str
    leaves: pl.DataFrame
    dimensions: tuple[str, ...]
    truth: list[Scope]
    spread: float


@dataclass(frozen=True)
class Verdict:
    """What was told of a case."""

    case: Case
    causes: list[RootCause]
    milliseconds: float


def run(options: Options) -> list[Row]:
    """Real incidents, then simulated ones, then cubes in which everything or nothing changed, then a large cube."""
    rows = []
    folder = options.data or environment.data_folder()
    found = sorted(p for p in folder.glob("rca_*.parquet") if _truth_of(p).exists())
    for path in found:
        options.say(f"reading {path.name}")
        rows += _real(path.stem, judged(incidents(path)))
        rows.append(_varied(path))
    if not found:
        rows.append(missing("rca_*, element F1", "", f"no real incidents in {folder}: set KMON_DATA to their folder"))
    count = options.scaled(CUBES, 2)
    for kind, causes, uneven in product(KINDS, (1, 2, 3), (0.0, UNEVEN)):
        name = f"simulated {kind}s, causes: {causes}{', uneven' if uneven else ''}"
        options.say(name)
        verdicts = judged(simulated(kind, causes, count, uneven))
        rows.append(told(f"{name}, element F1", element_f1(verdicts), "", f"exact: {exact(verdicts):.3f}"))
    everywhere = judged(c for kind in KINDS for c in simulated(kind, 1, count, UNEVEN, everywhere=True))
    rows.append(told("simulated, everything changed, exact", exact(everywhere), "", f"{len(everywhere)} cubes"))
    quiet = judged(case for kind in KINDS for case in simulated(kind, 0, 5 * count))
    false = sum(len(verdict.causes) for verdict in quiet)
    rows.append(told("simulated, nothing changed, causes told", false, "", f"{len(quiet)} cubes"))
    return [*rows, *_large(options)]


def incidents(path: Path, prior: float = PRIOR, drift: float = DRIFT) -> Iterator[Case]:
    """Real incidents on a rate, from a parquet file and the truth beside it.

    Columns: case, minute (epoch seconds), dimensions (strings), value and cnt. A leaf's rate is expected to be what it
    was in the minutes before the incident's, see PRIOR and DRIFT.
    """
    data = pl.read_parquet(path)
    for entry in json.loads(_truth_of(path).read_text(encoding="utf-8")):
        part = data.filter(pl.col("case") == entry["case"])
        causes = entry["cause"] if isinstance(entry["cause"], list) else [entry["cause"]]
        truth = [{dimension: str(value) for dimension, value in scope.items()} for scope in causes]
        dimensions = tuple(entry["dimensions"])
        before = part.filter(pl.col("minute") < entry["timestamp"])
        now = part.filter(pl.col("minute") == entry["timestamp"])
        spread = max(drift, spread_between(*_windows(before, dimensions)))
        yield Case(entry["case"], _expected(now, before, dimensions, prior), dimensions, truth, spread)


def _expected(now: pl.DataFrame, before: pl.DataFrame, dimensions: tuple[str, ...], prior: float) -> pl.DataFrame:
    """The leaves of a minute, as `root_causes` takes them."""
    history = before.group_by(dimensions).agg(before_value=pl.col("value").sum(), before_cnt=pl.col("cnt").sum())
    usual = float(before["value"].sum()) / max(1.0, float(before["cnt"].sum()))
    rate = (pl.col("before_value").fill_null(0) + prior * usual) / (pl.col("before_cnt").fill_null(0) + prior)
    joined = now.join(history, on=dimensions, how="left", nulls_equal=True)
    return joined.select(*dimensions, observed="value", exposure="cnt", expected=rate * pl.col("cnt"))


def _windows(rows: pl.DataFrame, dimensions: Sequence[str]) -> tuple[Floats, Floats]:
    """`value` and `cnt` as arrays of shape (leaves, minutes)."""
    places = rows.select(
        leaf=pl.struct(dimensions).rank("dense") - 1, minute=pl.col("minute").rank("dense") - 1, v="value", n="cnt"
    )
    shape = (int(places["leaf"].max() or 0) + 1, int(places["minute"].max() or 0) + 1)  # type: ignore[arg-type]
    value, exposure = np.zeros(shape), np.zeros(shape)
    where = places["leaf"].to_numpy(), places["minute"].to_numpy()
    value[where], exposure[where] = places["v"].to_numpy(), places["n"].to_numpy()
    return value, exposure


def simulated(kind: str, causes: int, count: int, uneven: float = 0.0, *, everywhere: bool = False) -> Iterator[Case]:
    """Cubes of several sizes and spreads in turn, with so many simultaneous causes."""
    random = np.random.default_rng([SEED, len(kind), causes])
    for number in range(count):
        leaves, dimensions = SIZES[number % len(SIZES)]
        spread = SPREADS[number % len(SPREADS)]
        yield _simulated(World(kind, leaves, dimensions, causes, spread, uneven, everywhere), random)


def _simulated(world: World, random: np.random.Generator) -> Case:
    drawn = cube(world, random)
    return Case(f"{world.kind}, {world.causes}", drawn.leaves, world.names, drawn.truth, drawn.spread)


def judged(cases: Iterable[Case], least: float = LEAST) -> list[Verdict]:
    """What is told of each case, and how long that takes."""
    verdicts = []
    for case in cases:
        begin = time.perf_counter()
        causes = root_causes(case.leaves, case.dimensions, spread=case.spread, least=least)
        verdicts.append(Verdict(case, causes, 1000 * (time.perf_counter() - begin)))
    return verdicts


def element_f1(verdicts: Sequence[Verdict]) -> float:
    """Micro-averaged over all cases, see the module; 1 where there is nothing to find and nothing was told."""
    hits = wrong = 0
    for verdict in verdicts:
        true, said = _elements(verdict.case.truth), _elements(cause.scope for cause in verdict.causes)
        hits += len(true & said)
        wrong += len(true ^ said)
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 1.0


def exact(verdicts: Sequence[Verdict]) -> float:
    """Share of the cases whose causes are told exactly."""
    same = [_scopes(v.case.truth) == _scopes(cause.scope for cause in v.causes) for v in verdicts]
    return sum(same) / max(1, len(same))


def _elements(scopes: Iterable[Scope]) -> set[tuple[str, str]]:
    return {(dimension, str(value)) for scope in scopes for dimension, value in scope.items()}


def _scopes(scopes: Iterable[Scope]) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(_elements([scope])) for scope in scopes}


def _real(name: str, verdicts: Sequence[Verdict]) -> list[Row]:
    took, note = [verdict.milliseconds for verdict in verdicts], f"{len(verdicts)} cases"
    return [
        reaching(f"{name}, element F1", element_f1(verdicts), "", REACH, note=note),
        told(f"{name}, exact", exact(verdicts), "", note),
        told(f"{name}, a case, median", float(np.median(took)), "ms"),
        under(f"{name}, a case, at most", max(took), "ms", QUICK),
    ]


def _varied(path: Path) -> Row:
    """The worst that comes of other constants."""
    scores = [
        element_f1(judged(incidents(path, prior, drift), least))
        for factor in (0.7, 1.3)
        for prior, drift, least in (
            (factor * PRIOR, DRIFT, LEAST),
            (PRIOR, factor * DRIFT, LEAST),
            (PRIOR, DRIFT, factor * LEAST),
        )
    ]
    return reaching(
        f"{path.stem}, element F1, a constant 30 % off, worst", min(scores), "", REACH, note=f"{len(scores)} ways"
    )


def _large(options: Options) -> list[Row]:
    """The time for a base cuboid of a large fleet, with thousands of partners."""
    leaves, dimensions = LARGE
    rows = []
    for kind in KINDS:
        options.say(f"simulating a large cube of {kind}s")
        world = World(kind, options.scaled(leaves, 100), dimensions, 3, spread=0.003)
        case = _simulated(world, np.random.default_rng(SEED))
        verdicts = judged([case] * options.repeats)
        name = f"{case.leaves.height:,} leaves x {dimensions} dimensions, {kind}s"
        note = f"best of {options.repeats}; {len(verdicts[0].causes)} causes told of {len(case.truth)}"
        rows += [
            told(f"{name}, a case", min(verdict.milliseconds for verdict in verdicts), "ms", note),
            told(f"{name}, element F1", element_f1(verdicts[:1]), ""),
        ]
    return rows


def _truth_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_truth.json")
