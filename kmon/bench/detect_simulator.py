"""How well detection finds what is wrong in simulated traffic, judged by its truth.

simulate a day of history and half a day with incidents  ►  replay as if live  ►  compare the incidents with the truth

Every run is another world: other noise, shapes of day and week, sizes of partners and mixes; other incidents, of other
strengths, sudden or by and by, some of them at once, some in combinations that no grouping set has. kmon knows nothing
of it but what the events tell.

A true incident counts as *detectable* if an optimal test would need less than 12 minutes: ln(1/alpha) over the
Kullback-Leibler divergence a minute (Lorden 1971), alpha being one false alarm a day per 100,000 monitors that are
looked at every minute. It is found if an incident whose scope contains its scope, or lies in it, fires while it lasts,
of a metric and in a direction in which its kind shows (SHOWS); an incident that belongs to none of the true ones is
false, also where it is only information. What informs of a campaign counts as neither, nor does what is told of the
pipeline while a partition lags: that is right, and is nobody's outage. What is told of a holiday is false.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import polars as pl

from kmon.bench.rows import Row, reaching, told, under
from kmon.bench.workplace import Options, configured, folder
from kmon.config import PIPELINE
from kmon.leaves import related
from kmon.ledger import Incident, Ledger
from kmon.replay import replay
from kmon.sources.market import AGENTS, COUNTRIES, METHODS, USUAL, Floats, Habits
from kmon.sources.scenario import SimulatedIncident, schedule
from kmon.sources.simulate import CHUNK, MONDAY, Simulation, record
from kmon.store import EmbeddedStore, sql

SIZES = {"small": (300, 10.0), "medium": (2000, 20.0), "large": (6000, 60.0)}
"""Partners and events a second."""
SEEDS = 20
HISTORY, JUDGED = dt.timedelta(hours=26), dt.timedelta(hours=12)
INCIDENTS = 7
"""In the judged time."""
AT_ONCE = 2
"""Of them, which begin while another lasts."""
NARROWED = 0.4
"""Share of the incidents that are narrowed by a value of one more dimension, where they may be."""
GRADUAL = 0.5
"""Share of the incidents that begin by and by, in up to SLOWEST minutes."""
SLOWEST = 10.0
ALPHA = 1 / (100_000 * 1440)
DETECTABLE = dt.timedelta(minutes=12)
AFTERWARDS = dt.timedelta(minutes=10)
"""After the end of a true incident its alarm is late, not false."""
MINUTE = dt.timedelta(minutes=1)
_GONE = "sessions down, authorizations down, orders down"
_LOST = "conversion down, authorizations down, approval down, orders down"
SHOWS = {
    "partner_outage": _GONE,
    "small_partner_silent": _GONE,
    "orders_stop": "orders down, conversion down, approval down",
    "country_conversion_drop": _LOST,
    "browser_breaks": _LOST,
    "slow_decay": _LOST,
    "payment_declines": "approval down, conversion down, orders down",
    "errors_rise": "error_rate up",
    "surge": "sessions up, conversion down",  # bots, who buy nothing
    "campaign": "sessions up, authorizations up, orders up",
}
"""In what a kind of incident shows: the metric that it acts on, and those that follow from it."""


@dataclass(frozen=True)
class World:
    """One simulated stretch of time."""

    size: str
    seed: int
    incidents: int

    @property
    def label(self) -> str:
        return f"{self.size}, seed {self.seed}"


@dataclass(frozen=True)
class Found:
    """What became of one true incident."""

    truth: SimulatedIncident
    bound: float
    """Minutes that an optimal test needs."""
    incidents: tuple[Incident, ...]
    """Those that belong to it, in the order in which they fired."""

    @property
    def detectable(self) -> bool:
        return self.bound < min(DETECTABLE, self.truth.end - self.truth.start) / MINUTE

    @property
    def delay(self) -> float:
        """Minutes until the first one fired."""
        return (self.incidents[0].detected_at - self.truth.start) / MINUTE

    @property
    def resolved(self) -> float | None:
        """Minutes from its end until all of them were resolved; None where one is still open."""
        ends = [incident.resolved_at for incident in self.incidents]
        known = [end for end in ends if end is not None]
        return (max(known) - self.truth.end) / MINUTE if known and len(known) == len(ends) else None

    @property
    def exact(self) -> bool:
        return any(incident.scope == self.truth.scope for incident in self.incidents)


@dataclass(frozen=True)
class Judged:
    """One world after its replay."""

    world: World
    found: tuple[Found, ...]
    false: tuple[Incident, ...]
    monitors: int
    """Combinations with an event in the judged time."""
    sweeps: int
    seconds: float

    @property
    def at_once(self) -> list[list[Found]]:
        """Detectable incidents that last at the same time, two or more."""
        groups: list[list[Found]] = []
        for one in sorted((f for f in self.found if f.detectable), key=lambda f: f.truth.start):
            if groups and one.truth.start < max(f.truth.end for f in groups[-1]):
                groups[-1].append(one)
            else:
                groups.append([one])
        return [group for group in groups if len(group) > 1]


def run(options: Options) -> list[Row]:
    """All sizes with incidents, then without."""
    seeds = options.scaled(SEEDS)
    worlds = [World(size, seed, n) for n in (INCIDENTS, 0) for size in SIZES for seed in range(1, seeds + 1)]
    rows = []
    judged = list(_all(worlds, options))
    for size in SIZES:
        rows += _quality(size, [j for j in judged if j.world.size == size and j.world.incidents])
    rows += _quality("all sizes", [j for j in judged if j.world.incidents])
    rows += _calm([j for j in judged if not j.world.incidents])
    return rows


def _all(worlds: Sequence[World], options: Options) -> Iterator[Judged]:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(judge, world) for world in worlds]
        for number, future in enumerate(as_completed(waiting), 1):
            done = future.result()
            options.say(f"{number} of {len(worlds)} worlds: {done.world.label}")
            yield done


def judge(world: World) -> Judged:
    """Simulate, replay and compare."""
    partners, rate = SIZES[world.size]
    random = np.random.default_rng([world.seed, partners])
    start = MONDAY + dt.timedelta(hours=int(random.integers(0, 24)), days=int(random.integers(0, 7)))
    begin, end = start + HISTORY, start + HISTORY + JUDGED
    seed = int(random.integers(1, 1_000_000))
    usual = habits(random)
    drawn = schedule(world.incidents, start, end, partners, rate, seed, begin, usual, AT_ONCE)
    truth = [varied(one, usual, random) for one in drawn]
    simulation = Simulation(partners, rate, start, seed, truth, habits=usual)
    with folder() as work:
        config = configured(work)
        files, _ = record(simulation, work / "recorded", (HISTORY + JUDGED) // CHUNK)
        with EmbeddedStore(work / "kmon.duckdb", config) as store, Ledger.beside(work / "kmon.duckdb") as ledger:
            summary = replay(config, store, ledger, files, every=config.every, detect_from=begin)
            fired = ledger.incidents()
            monitors = _active(store, config.watch, begin, end)
    calm = Simulation(partners, rate, start, seed, (), habits=usual)
    bounds = {t: _bound(calm, t) for t in truth if not t.harmless}
    found, false = compared(truth, bounds, fired)
    return Judged(world, tuple(found), tuple(false), monitors, summary.sweeps, summary.seconds)


def habits(random: np.random.Generator) -> Habits:
    """Another world's: quieter or wilder, with flatter or steeper days and weeks, other sizes and mixes."""
    hourly = np.roll(USUAL.hourly, random.integers(-3, 4)) ** random.uniform(0.6, 1.4)
    return Habits(
        hourly=hourly / hourly.mean(),
        weekly=1 + (USUAL.weekly - 1) * random.uniform(0, 5),
        countries=_mix(USUAL.countries, random),
        methods=np.array([_mix(row, random) for row in USUAL.methods]),
        agents=_mix(USUAL.agents, random),
        channels=_mix(USUAL.channels, random),
        zipf=random.uniform(0.7, 1.2),
        volatility=random.uniform(0.03, 0.15),
    )


def _mix(usual: Floats, random: np.random.Generator) -> Floats:
    """Other shares: each is off by about a factor of 1.5, and none is nothing."""
    other = usual * random.lognormal(0, 0.4, len(usual))
    return np.asarray(other / other.sum())


def varied(one: SimulatedIncident, usual: Habits, random: np.random.Generator) -> SimulatedIncident:
    """With another strength, beginning at once or by and by, in its scope or a part of it.

    Seven tenths of a total failure, or of a rise, are still an incident. What is harmless stays as it is.
    """
    if one.harmless:
        return one
    strength = 1 + (one.strength - 1) * float(random.uniform(0.7, 1.0))
    gradual = random.random() < GRADUAL and not any(one.ramp)
    ramp = (float(random.uniform(1, SLOWEST)), 0.0) if gradual else one.ramp
    scope = _narrowed(one, usual, random) if random.random() < NARROWED else one.scope
    return replace(one, strength=strength, ramp=ramp, scope=scope)


def _narrowed(one: SimulatedIncident, usual: Habits, random: np.random.Generator) -> dict[str, str]:
    """The scope with one more value, chosen by its share; that of a partner as a whole stays as it is."""
    mixes = {
        "country": (COUNTRIES, usual.countries),
        "payment_method": (METHODS, usual.methods.mean(axis=0)),
        "browser": ([browser for browser, _ in AGENTS], usual.agents),
    }
    if not mixes.keys() & one.scope.keys():
        return one.scope
    dimension = str(random.choice([d for d in mixes if d not in one.scope]))
    values, shares = mixes[dimension]
    return {**one.scope, dimension: str(random.choice(values, p=shares))}


def compared(
    truth: Sequence[SimulatedIncident], bounds: Mapping[SimulatedIncident, float], fired: Sequence[Incident]
) -> tuple[list[Found], list[Incident]]:
    """What became of the true incidents, for which an optimal test needs `bounds` minutes, and the false alerts."""
    of_data = [i for i in fired if i.metric == PIPELINE]
    of_traffic = [i for i in fired if i.metric != PIPELINE]
    found = [Found(t, bound, tuple(_of(t, of_traffic))) for t, bound in bounds.items()]
    lags = [i for t in truth if t.kind == "lagging_partition" for i in _during(t, of_data)]
    welcome = [i for i in of_traffic if i.severity == "info"]
    campaigns = [i for t in truth if t.kind == "campaign" for i in _of(t, welcome)]
    right = {i.id for i in (*lags, *campaigns, *(i for one in found for i in one.incidents))}
    return found, [i for i in fired if i.id not in right]


def _during(truth: SimulatedIncident, incidents: Sequence[Incident]) -> list[Incident]:
    return [i for i in incidents if truth.start <= i.detected_at <= truth.end + AFTERWARDS]


def _of(truth: SimulatedIncident, incidents: Sequence[Incident]) -> list[Incident]:
    """Those that belong to it, in the order in which they fired."""
    mine = [i for i in _during(truth, incidents) if related(i.scope, truth.scope) and _fits(truth, i)]
    return sorted(mine, key=lambda i: i.detected_at)


def _fits(truth: SimulatedIncident, incident: Incident) -> bool:
    return f"{incident.metric} {incident.direction}" in SHOWS[truth.kind].split(", ")


def _bound(calm: Simulation, one: SimulatedIncident) -> float:
    """Minutes until an optimal test knows: the divergence adds up from the beginning, as strong as it is by then."""
    numerator, denominator = _PARTS[one.metric]
    first, last = (one.start - calm.start) // CHUNK, (one.end - calm.start) // CHUNK
    events = pl.concat([calm.chunk(k) for k in range(first, last + 1)])
    inside = [pl.col(d) == v for d, v in one.scope.items() if d in events.columns]
    events = events.filter(pl.all_horizontal(inside) if inside else pl.lit(value=True))
    minutes = (last - first + 1) * (CHUNK / MINUTE)
    hits = events.filter(numerator).height / minutes
    size = events.filter(denominator).height / minutes if denominator is not None else 0.0
    needed, known, after = math.log(1 / ALPHA), 0.0, 0
    while known < needed and one.start + after * MINUTE < one.end:
        at = int((one.start + (after + 0.5) * MINUTE).timestamp() * 1000)
        known += _divergence(hits, size, float(one.level(np.array([at]))[0]))
        after += 1
    return after - (known - needed) / max(known / max(after, 1), 1e-9) if known >= needed else math.inf


_OPERATION, _STATUS = pl.col("operation"), pl.col("status")
_PARTS = {
    "sessions": (_OPERATION == "session", None),
    "orders": ((_OPERATION == "order") & (_STATUS == "ok"), None),
    "conversion": ((_OPERATION == "order") & (_STATUS == "ok"), _OPERATION == "session"),
    "approval": ((_OPERATION == "authorization") & (_STATUS == "ok"), _OPERATION == "authorization"),
    "error_rate": (_STATUS == "error", pl.lit(value=True)),
}
"""The events that a metric of the truth counts: numerator and denominator."""


def _divergence(hits: float, size: float, level: float) -> float:
    """Nats a minute between `level` times the usual and the usual."""
    if not size:
        return hits * (level * math.log(level) - level + 1) if level > 0 else hits
    before = min(max(hits / size, 1e-6), 1 - 1e-6)
    after = min(max(before * level, 1e-6), 1 - 1e-6)
    return size * (after * math.log(after / before) + (1 - after) * math.log((1 - after) / (1 - before)))


def _active(store: EmbeddedStore, sets: Sequence[Sequence[str]], begin: dt.datetime, end: dt.datetime) -> int:
    """How many combinations had an event."""
    within = f"bucket >= {sql.time(begin)} AND bucket < {sql.time(end)}"
    return sum(
        store.sql(f"SELECT DISTINCT {', '.join(map(sql.name, grouping))} FROM cells WHERE {within}").height
        if grouping
        else 1
        for grouping in sets
    )


def _quality(size: str, judged: Sequence[Judged]) -> list[Row]:
    real = [f for j in judged for f in j.found if f.detectable]
    caught = [f for f in real if f.incidents]
    false = sum(len(j.false) for j in judged)
    true = sum(bool(f.incidents) for j in judged for f in j.found)
    ratios = [f.delay / max(f.bound, 1e-9) for f in caught]
    note = f"{len(real)} detectable, {false} false"
    over = [minutes for f in caught if (minutes := f.resolved) is not None]
    groups = [group for j in judged for group in j.at_once]
    whole = sum(all(f.exact for f in group) for group in groups)
    return [
        reaching(f"{size}: recall", len(caught) / max(1, len(real)), "", 0.95, note=note),
        reaching(f"{size}: precision", true / max(1, true + false), "", 0.9),
        under(f"{size}: delay over the bound, median", float(np.median(ratios)) if ratios else math.nan, "", 1.5),
        reaching(f"{size}: exact scope", sum(f.exact for f in caught) / max(1, len(caught)), "", 0.9),
        told(f"{size}: several at once, all exact", whole / max(1, len(groups)), "", f"{len(groups)} times"),
        under(f"{size}: incidents per true one", sum(len(f.incidents) for f in caught) / max(1, len(caught)), "", 1.5),
        told(
            f"{size}: minutes until resolved after the end, median",
            float(np.median(over)) if over else math.nan,
            "min",
            f"{len(caught) - len(over)} of {len(caught)} still open",
        ),
        told(
            f"{size}: a sweep",
            1000 * sum(j.seconds for j in judged) / max(1, sum(j.sweeps for j in judged)),
            "ms",
            "with ingestion",
        ),
    ]


def _calm(judged: Sequence[Judged]) -> list[Row]:
    """False incidents where nothing is wrong."""
    days = sum(j.monitors * (JUDGED / dt.timedelta(days=1)) for j in judged) / 100_000
    false = sum(len(j.false) for j in judged)
    note = f"{false} in {days:.2f} days of 100,000 active monitors"
    return [under("false incidents a day per 100,000 monitors", false / max(days, 1e-9), "", 1.0, note)]
