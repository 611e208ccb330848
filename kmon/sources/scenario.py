"""What goes wrong in the simulator's world: kinds of incidents, their targets, their schedule."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np

from kmon.sources.market import (
    AGENTS,
    CHANNELS,
    COUNTRIES,
    METHODS,
    PARTITIONS,
    USUAL,
    ZONES,
    Floats,
    Habits,
    Ints,
    Market,
    market,
)

Act = Literal["session", "authorization", "order", "approval", "error", "visits", "arrival"]


@dataclass(frozen=True)
class Kind:
    """How a kind of incident works and where it shows."""

    acts_on: tuple[Act, ...]
    """What is multiplied by the incident's level: the probability that a session, authorization or order happens, is
    approved or fails; `visits` adds copies of a partner's sessions; `arrival` holds a partition back."""
    strength: float
    """The level at full effect: 0 nothing is left, 1 normal, 4 four times as much."""
    metric: str
    direction: Literal["down", "up"]
    volume: float = 0
    """Expected events a minute of the target that make it detectable."""
    minutes: tuple[int, int] = (20, 60)
    """Shortest and longest duration."""
    ramp: tuple[int, int] = (0, 0)
    """Minutes from the start to full effect, and from full effect to the end."""
    harmless: bool = False


KINDS = {
    "partner_outage": Kind(("session", "authorization", "order"), 0, "sessions", "down", 12),
    "orders_stop": Kind(("order",), 0, "orders", "down", 25),
    "country_conversion_drop": Kind(("authorization",), 0.25, "conversion", "down", 30),
    "browser_breaks": Kind(("authorization", "order"), 0.05, "conversion", "down", 40),
    "payment_declines": Kind(("approval",), 0.16, "approval", "down", 40),
    "surge": Kind(("visits",), 4, "sessions", "up", 12),
    "slow_decay": Kind(("authorization",), 0.2, "conversion", "down", 30, (130, 180), (120, 0)),
    "small_partner_silent": Kind(("session", "authorization", "order"), 0, "sessions", "down", 2, (60, 90)),
    "errors_rise": Kind(("error",), 20, "error_rate", "up", 25),
    "campaign": Kind(("visits",), 1.6, "sessions", "up", 12, (100, 160), (20, 20), harmless=True),
    "holiday": Kind(("session",), 0.6, "sessions", "down", 0, (1440, 1440), (60, 60), harmless=True),
    "lagging_partition": Kind(("arrival",), 0, "sessions", "down", 0, (6, 10), harmless=True),
}
REAL = tuple(name for name, kind in KINDS.items() if not kind.harmless)
LIVE = ("browser_breaks", "partner_outage", "payment_declines", "orders_stop", "surge")
_ATTEMPTS = 10
"""Schedules drawn at most, to find one in which every target is large enough at its hour."""
LIVE_DURATION = dt.timedelta(minutes=12)


@dataclass(frozen=True)
class SimulatedIncident:
    """Something that happens to the traffic in [start, end), in UTC."""

    kind: str
    harmless: bool
    start: dt.datetime
    end: dt.datetime
    scope: dict[str, str] = field(hash=False)
    """Dimension values it is limited to; a campaign's channel is where its additional sessions come from."""
    metric: str
    """The metric that shows it best."""
    direction: Literal["down", "up"]
    strength: float
    """See `Kind.strength`."""
    ramp: tuple[float, float] = (0, 0)
    """See `Kind.ramp`."""

    def level(self, ms: Ints) -> Floats:
        """Multiple of the normal at epoch milliseconds: 1 outside the window, `strength` at full effect."""
        start, end = epoch_ms(self.start), epoch_ms(self.end)
        rise, fall = (max(minutes * 60_000, 1e-9) for minutes in self.ramp)
        effect: Floats = np.minimum((ms - start + 1e-6) / rise, (end - ms) / fall).clip(0, 1)
        return 1 + (self.strength - 1) * effect


def incident(kind: str, start: dt.datetime, end: dt.datetime, scope: dict[str, str],
             strength: float | None = None) -> SimulatedIncident:  # fmt: skip
    """An incident with what its kind says of metric, direction and strength."""
    what = KINDS[kind]
    strength = what.strength if strength is None else strength
    return SimulatedIncident(kind, what.harmless, start, end, scope, what.metric, what.direction, strength, what.ramp)


def epoch_ms(at: dt.datetime) -> int:
    """Milliseconds since 1970."""
    return round(at.timestamp() * 1000)


def schedule(count: int, start: dt.datetime, end: dt.datetime, partners: int, rate: float,
             seed: int, first: dt.datetime | None = None, habits: Habits = USUAL,
             together: int = 0) -> list[SimulatedIncident]:  # fmt: skip
    """`count` real incidents in [start, end), every kind before any repeats, and harmless ones if it is half a day.

    They begin at `first` or later, by default after the first day of a span over 30 hours, else after the first 40 %.
    So many as `together`, at most half of them, begin while another lasts; the others do not overlap. By start.
    """
    spared = dt.timedelta(days=1) if end - start > dt.timedelta(hours=30) else 0.4 * (end - start)
    first = first or start + spared
    plans = []
    for attempt in range(_ATTEMPTS):
        targets = _Targets(
            market(partners, rate, seed, habits), np.random.default_rng(np.random.SeedSequence([seed, 1, attempt]))
        )
        plan = _plan(count, together, first, end, targets)
        plans.append((targets.weak, plan))
        if not targets.weak:
            break
    incidents, more = min(plans, key=lambda plan: plan[0])[1]
    if end - start >= dt.timedelta(hours=12):
        incidents += _harmless(incidents, first, end, targets)
    return sorted(incidents + more, key=lambda one: one.start)


def _plan(count: int, together: int, first: dt.datetime, end: dt.datetime,
          targets: _Targets) -> tuple[list[SimulatedIncident], list[SimulatedIncident]]:  # fmt: skip
    """Real incidents in [first, end), every kind before any repeats, in random order, `errors_rise` last.

    Those that do not overlap, and those that begin while one of them lasts and end before the next.
    """
    kinds = [str(kind) for _ in range(count) for kind in (*targets.rng.permutation(REAL[:-1]), REAL[-1])][:count]
    alone = count - min(together, count // 2)
    plan = [
        incident(kind, begin, finish, targets.scope(kind, begin + (finish - begin) / 2))
        for kind, begin, finish in _slots(kinds[:alone], first, end, targets.rng)
    ]
    more = []
    for one, kind, limit in zip(plan, kinds[alone:], [*(other.start for other in plan[1:]), end], strict=False):
        begin = one.start + dt.timedelta(seconds=int(targets.rng.uniform(0, (one.end - one.start).total_seconds() / 4)))
        finish = min(begin + dt.timedelta(seconds=int(60 * targets.rng.uniform(*KINDS[kind].minutes))), limit)
        more.append(incident(kind, begin, finish, targets.scope(kind, begin + (finish - begin) / 2)))
    return plan, more


def _slots(kinds: Sequence[str], first: dt.datetime, end: dt.datetime,
           rng: np.random.Generator) -> Iterator[tuple[str, dt.datetime, dt.datetime]]:  # fmt: skip
    """Kinds with windows in whole seconds, spread over [first, end); what does not fit is shortened, gaps first."""
    if not kinds:
        return
    span = (end - first).total_seconds()
    lengths = np.array([rng.uniform(*KINDS[kind].minutes) for kind in kinds]) * 60
    lengths *= min(1, 0.9 * span / lengths.sum())
    gap = min(1800, (span - lengths.sum()) / len(kinds))
    slack = (span - lengths.sum() - gap * len(kinds)) * rng.dirichlet(np.full(len(kinds) + 1, 4.0))[:-1]
    begins = np.cumsum(gap + slack) + np.cumsum(lengths) - lengths
    for kind, begin, length in zip(kinds, begins, lengths, strict=True):
        yield (kind, first + dt.timedelta(seconds=int(begin)), first + dt.timedelta(seconds=int(begin + length)))


def _harmless(
    real: Sequence[SimulatedIncident], first: dt.datetime, end: dt.datetime, targets: _Targets
) -> Iterator[SimulatedIncident]:
    """A campaign and a lagging partition in the widest gaps between the real incidents, and a holiday."""
    edges = [first, *(edge for one in real for edge in (one.start, one.end)), end]
    gaps = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda gap: gap[0] - gap[1])
    for kind, (low, high) in zip(("campaign", "lagging_partition"), (gaps * 2)[:2], strict=True):
        shortest, longest = (dt.timedelta(minutes=minutes) for minutes in KINDS[kind].minutes)
        length = min(
            shortest + targets.rng.integers(0, 11) / 10 * (longest - shortest), max(high - low, shortest * 0.6)
        )
        begin = max(first, low + dt.timedelta(seconds=int((high - low - length).total_seconds() / 2)))
        scope = targets.scope(kind, begin)
        strength = float(targets.rng.uniform(1.5, 1.7)) if kind == "campaign" else None
        yield incident(kind, begin, begin + length, scope, strength)
    scope = targets.scope("holiday", first)
    zone = ZoneInfo(ZONES[COUNTRIES.index(scope["country"])])
    day = (first + (end - first) / 2).astimezone(zone).date()
    midnight, next_midnight = (
        dt.datetime.combine(day + dt.timedelta(days=n), dt.time(), zone).astimezone(dt.UTC) for n in (0, 1)
    )
    yield incident("holiday", midnight, next_midnight, scope)


@dataclass
class _Targets:
    """Chooses what an incident hits: large enough to be seen at that hour and, where possible, not yet chosen."""

    market: Market
    rng: np.random.Generator
    used: set[str] = field(default_factory=set)
    weak: int = 0
    """How many choices were smaller than asked for."""

    def scope(self, kind: str, at: dt.datetime) -> dict[str, str]:
        match kind:
            case "browser_breaks":
                browsers = dict.fromkeys((browser for browser, _ in AGENTS), 0.0)
                for (browser, _), share in zip(AGENTS, self.market.habits.agents, strict=True):
                    browsers[browser] += share * self.market.volume(at).sum()
                volumes = np.array(list(browsers.values()))
                scope = {"browser": self._pick(tuple(browsers), volumes, KINDS[kind].volume)}
            case "payment_declines":
                countries = np.bincount(self.market.cell_country, self.market.cell_volume(at), len(COUNTRIES))
                volumes = countries @ self.market.habits.methods
                scope = {"payment_method": self._pick(METHODS, volumes, KINDS[kind].volume)}
            case "holiday":
                scope = {"country": self._pick(COUNTRIES, self.market.habits.countries, 0.05)}
            case "lagging_partition":
                scope = {"partition": str(self.rng.integers(PARTITIONS))}
            case "small_partner_silent":
                scope = {"partner": self._small(at)}
            case _:
                scope = self._partner_scope(kind, at)
        return scope

    def _partner_scope(self, kind: str, at: dt.datetime) -> dict[str, str]:
        partner = self._partner(at, KINDS[kind].volume)
        if kind == "campaign":
            return {"partner": partner, "channel": str(self.rng.choice(CHANNELS[1:]))}
        if kind == "country_conversion_drop":
            cells = np.flatnonzero(self.market.cell_partner == int(partner[1:]) - 1)
            names = [COUNTRIES[country] for country in self.market.cell_country[cells]]
            volume = self.market.cell_volume(at)[cells]
            return {"partner": partner, "country": self._pick(names, volume, KINDS[kind].volume)}
        return {"partner": partner}

    def _pick(self, names: Sequence[str], volumes: Floats, least: float) -> str:
        """One of `names` with at least that volume, or the one with the largest."""
        order = np.argsort(-volumes, kind="stable")
        enough = [names[i] for i in order if volumes[i] >= least]
        if not enough:
            enough, self.weak = [names[order[0]]], self.weak + 1
        fresh = [name for name in enough if name not in self.used] or enough
        chosen = str(fresh[int(self.rng.integers(len(fresh)))])
        self.used.add(chosen)
        return chosen

    def _partner(self, at: dt.datetime, least: float) -> str:
        """One of the twenty largest unused partners with that volume, or the largest unused one."""
        head = range(min(self.market.partners, len(self.used) + 20))
        fresh = [k for k in head if f"p{k + 1}" not in self.used] or list(head)
        return self._pick([f"p{k + 1}" for k in fresh], self.market.volume(at)[fresh], least)

    def _small(self, at: dt.datetime) -> str:
        """A partner with 2 to 5 events a minute on average, else the largest below that, else the smallest."""
        least, most = 2, 5
        average, now = self.market.volume(), self.market.volume(at)
        small = np.flatnonzero((average >= least) & (average <= most))
        if not len(small):
            below = np.flatnonzero(average < least)
            small = below[:1] if len(below) else np.array([self.market.partners - 1])
        fresh = [k for k in small if f"p{k + 1}" not in self.used] or list(small)
        nearest = sorted(fresh, key=lambda k: abs(now[k] - (least + most) / 2))[:5]
        return self._pick([f"p{k + 1}" for k in nearest], now[nearest], 0)


def live_schedule(start: dt.datetime, every: dt.timedelta, partners: int, rate: float,
                  seed: int) -> Callable[[dt.datetime, dt.datetime], list[SimulatedIncident]]:  # fmt: skip
    """Endless incidents for a demo, of twelve minutes each: the first at `start`, then one `every` so often.

    Returns a function that lists those that touch a span [low, high). They hit targets that show it within a minute or
    two, a different one each time.
    """
    volume = market(partners, rate, seed).volume()
    large, largest = (int(np.count_nonzero(volume[:8] >= least)) or 1 for least in (15, 45))

    def scope(n: int) -> dict[str, str]:
        turn = n // len(LIVE) + seed
        match LIVE[n % len(LIVE)]:
            case "browser_breaks":
                return {"browser": ("chrome", "safari", "edge", "firefox")[turn % 4]}
            case "payment_declines":
                return {"payment_method": ("invoice", "card", "installments", "wallet")[turn % 4]}
            case "orders_stop":
                return {"partner": f"p{turn % largest + 1}"}
            case kind:
                return {"partner": f"p{(turn + (1 if kind == 'partner_outage' else 4)) % large + 1}"}

    def between(low: dt.datetime, high: dt.datetime) -> list[SimulatedIncident]:
        first = max(0, math.floor((low - LIVE_DURATION - start) / every) + 1)
        begins = [(n, start + n * every) for n in range(first, math.ceil((high - start) / every))]
        return [incident(LIVE[n % len(LIVE)], begin, begin + LIVE_DURATION, scope(n)) for n, begin in begins]

    return between
