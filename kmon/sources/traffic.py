"""Made-up traffic: the events of any ten minutes, computed alone, with incidents or without."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kmon.sources import market as world
from kmon.sources.market import USUAL, Floats, Habits, Ints
from kmon.sources.scenario import KINDS, Act, SimulatedIncident, epoch_ms

CHUNK = dt.timedelta(minutes=10)
OPERATIONS: tuple[Literal["session", "authorization", "order"], ...] = ("session", "authorization", "order")
STATUSES = ("ok", "declined", "error")
_BLOCK = dt.timedelta(minutes=5)
_BLOCKS = CHUNK // _BLOCK
_CHUNK_MS = CHUNK // dt.timedelta(milliseconds=1)
_BLOCK_MS = _CHUNK_MS // _BLOCKS
_TAIL = dt.timedelta(minutes=4)
"""More than the funnel's delays and the lateness together: 120 s + 60 s + 20 s."""
_MIX_SIZE = 4096
_LATENCY = np.log(np.array([120, 380, 210], dtype=np.float32))[:, None]
"""Log of the median latency in ms, by operation."""


@dataclass(frozen=True)
class _Visits:
    """Sessions (n) and everything that chance decides of them; incidents only decide which of it comes true."""

    cell: Ints
    method: Ints
    agent: Ints
    channel: Ints
    bot: NDArray[np.bool_]
    ms: Ints
    """(3, n): epoch milliseconds of the session, its authorization and its order, should they happen."""
    late: Ints
    """(3, n): microseconds until arrival."""
    happens: NDArray[np.float32]
    """(3, n): in [0, 1); below its probability, the operation happens."""
    ends: NDArray[np.float32]
    """(3, n): in [0, 1); low is an error, high is declined."""
    latency: NDArray[np.float32]
    """(3, n): milliseconds."""
    amount: Floats
    """EUR."""


class Simulation:
    """Traffic of `partners` with `rate` events a second on an average day, from `start` on.

    `incidents` are given as a list, `live` lists more of them for a span of time (see `live_schedule`). The traffic
    that no incident touches is the same with and without them.
    """

    def __init__(
        self,
        partners: int,
        rate: float,
        start: dt.datetime,
        seed: int,
        incidents: Sequence[SimulatedIncident] = (),
        live: Callable[[dt.datetime, dt.datetime], list[SimulatedIncident]] | None = None,
        habits: Habits = USUAL,
    ) -> None:
        self.market = world.market(partners, rate, seed, habits)
        self.start, self.seed, self.incidents, self.live = start, seed, tuple(incidents), live
        self._names = pl.Series([f"p{k + 1}" for k in range(partners)])
        self._mixes = {
            "method": np.stack([_quantised(mix) for mix in habits.methods]),
            "agent": _quantised(habits.agents),
            "channel": _quantised(habits.channels),
        }
        self._born_of: dict[int, pl.DataFrame] = {}

    def during(self, low: dt.datetime, high: dt.datetime) -> list[SimulatedIncident]:
        """The incidents that touch [low, high)."""
        listed = [one for one in self.incidents if one.start < high and one.end > low]
        return listed + (self.live(low, high) if self.live else [])

    def chunk(self, index: int) -> pl.DataFrame:
        """The events that arrive in ten minutes, [start + index * CHUNK, start + (index + 1) * CHUNK), in that order.

        The fields of an event, `partition` (0 to 3), `arrival` (microseconds, UTC); `ts` has milliseconds.
        """
        return self._readable(self._arriving(index).sort("arrival", "turn", maintain_order=True))

    def count(self, index: int) -> int:
        """The number of events in a chunk, sooner than by making it."""
        return len(self._arriving(index))

    def _arriving(self, index: int) -> pl.DataFrame:
        """The events of a chunk as codes, in no order; `turn` is the order of those that arrive at once."""
        low = self.start + index * CHUNK
        lags = [one for one in self.during(low - CHUNK, low + CHUNK) if one.kind == "lagging_partition"]
        back = 2 if lags else 1
        self._born_of = {k: born for k, born in self._born_of.items() if index - 2 <= k <= index}
        for k in range(index - back, index + 1):
            if k not in self._born_of:
                self._born_of[k] = self._born(k)
        events = pl.concat([self._born_of[k] for k in range(index - back, index + 1)])
        events = events.with_columns(turn=pl.lit(0, pl.Int64))
        for lag in lags:
            from_us, until_us = epoch_ms(lag.start) * 1000, epoch_ms(lag.end) * 1000
            held = (pl.col("partition") == int(lag.scope["partition"])) & pl.col("arrival").is_between(
                from_us, until_us, closed="left"
            )
            events = events.with_columns(
                arrival=pl.when(held).then(until_us).otherwise("arrival"),
                turn=pl.when(held).then("ms").otherwise("turn"),
            )
        low_us, start_ms = epoch_ms(low) * 1000, epoch_ms(self.start)
        arrives = pl.col("arrival").is_between(low_us, low_us + _CHUNK_MS * 1000, closed="left")
        return events.filter(arrives & (pl.col("ms") >= start_ms))

    def _readable(self, events: pl.DataFrame) -> pl.DataFrame:
        """Codes as names."""

        def named(names: Sequence[str], codes: str) -> pl.Series:
            return pl.Series(names).gather(events[codes])

        order = events["operation"] == OPERATIONS.index("order")
        return pl.DataFrame({
            "event_id": events["id"].cast(pl.String),
            "ts": events["ms"].cast(pl.Datetime("ms", "UTC")),
            "operation": named(OPERATIONS, "operation"),
            "status": named(STATUSES, "status"),
            "partner": self._names.gather(events["partner"]),
            "country": named(world.COUNTRIES, "country"),
            "payment_method": named(world.METHODS, "method"),
            "browser": named([browser for browser, _ in world.AGENTS], "agent"),
            "device": named([device for _, device in world.AGENTS], "agent"),
            "channel": named(world.CHANNELS, "channel"),
            "amount": events["amount"].set(~order, None),
            "currency": pl.Series([None, "EUR"]).gather(order.cast(pl.UInt32)),
            "latency_ms": events["latency"],
            "partition": events["partition"],
            "arrival": events["arrival"].cast(pl.Datetime("us", "UTC")),
        })  # fmt: skip

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))

    def _born(self, index: int) -> pl.DataFrame:
        """All events of the sessions that begin in a chunk, as codes; columns as `_readable` takes them."""
        low = self.start + index * CHUNK
        active = self.during(low, low + CHUNK + _TAIL)
        visits = self._visits(index)
        extra = [self._more(visits, one, index) for one in active if "visits" in KINDS[one.kind].acts_on]
        parts, first = [], 0
        for some in (visits, *extra):
            parts += self._funnel(some, active, index, first)
            first += len(some.cell)
        return pl.concat(parts)

    def _visits(self, index: int) -> _Visits:
        """The sessions that begin in a chunk, without incidents: Poisson by cell and block of five minutes."""
        rng = self._rng(2, index + 2)
        cells, times = [], []
        for block in range(index * _BLOCKS, (index + 1) * _BLOCKS):
            begin = self.start + block * _BLOCK
            by_country, by_partner = self.market.shape(begin + _BLOCK / 2), self._mood(block)
            level = by_country[self.market.cell_country] * by_partner[self.market.cell_partner]
            counts = rng.poisson(self.market.cell_rate * _BLOCK.total_seconds() * level)
            cells.append(np.repeat(np.arange(len(counts)), counts))
            times.append(epoch_ms(begin) + rng.integers(0, _BLOCK_MS, len(cells[-1])))
        return self._draw(rng, np.concatenate(cells), np.concatenate(times))

    def _mood(self, block: int) -> Floats:
        """Each partner's intensity in a block relative to its shape: lognormal, mean 1, slowly varying."""
        knots = [self._rng(3, block + k + 8).standard_normal(self.market.partners, np.float32) for k in range(3)]
        volatility = self.market.habits.volatility
        return np.exp(volatility * np.sum(knots, axis=0, dtype=np.float64) / math.sqrt(3) - volatility**2 / 2)

    def _draw(self, rng: np.random.Generator, cell: Ints, ms: Ints) -> _Visits:
        """Sessions of given cells and times (epoch ms), with everything else drawn."""
        n = len(cell)

        def pick() -> NDArray[np.uint16]:
            return rng.integers(0, _MIX_SIZE, n, np.uint16)

        thinking = np.minimum(2000 + rng.standard_gamma(2, n) * 14_000, 120_000).astype(np.int64)
        deciding = np.minimum(500 + rng.standard_exponential(n) * 2500, 60_000).astype(np.int64)
        amount = self.market.basket[self.market.cell_partner[cell]] + 0.5 * rng.standard_normal(n)
        return _Visits(
            cell=cell,
            method=self._mixes["method"][self.market.cell_country[cell], pick()],
            agent=self._mixes["agent"][pick()],
            channel=self._mixes["channel"][pick()],
            bot=np.zeros(n, dtype=bool),
            ms=np.stack([ms, ms + thinking, ms + thinking + deciding]),
            late=np.minimum(rng.standard_exponential((3, n)) * 1e6, 20e6).astype(np.int64),
            happens=rng.random((3, n), np.float32),
            ends=rng.random((3, n), np.float32),
            latency=np.exp(_LATENCY + np.float32(0.35) * rng.standard_normal((3, n), np.float32)),
            amount=np.exp(amount).round(2),
        )

    def _more(self, visits: _Visits, one: SimulatedIncident, index: int) -> _Visits:
        """The additional sessions of a surge (bots) or a campaign (one channel): others in the partner's own cells."""
        rng = self._rng(4, index + 2, epoch_ms(one.start))
        begin = self.start + index * CHUNK
        low, high = epoch_ms(max(begin, one.start)), epoch_ms(min(begin + CHUNK, one.end))
        partner = self.market.cell_partner[visits.cell] == int(one.scope["partner"][1:]) - 1
        template = np.flatnonzero(partner & (visits.ms[0] >= low) & (visits.ms[0] < high))
        copies = np.repeat(template, rng.poisson(one.level(visits.ms[0, template]) - 1))
        ms = low + (visits.ms[0, copies] - low + rng.integers(0, 60_000, len(copies))) % max(high - low, 1)
        more = self._draw(rng, visits.cell[copies], ms)
        more.bot[:] = one.kind == "surge"
        if "channel" in one.scope:
            more.channel[:] = world.CHANNELS.index(one.scope["channel"])
        return more

    def _funnel(
        self, visits: _Visits, active: Sequence[SimulatedIncident], index: int, first: int
    ) -> list[pl.DataFrame]:
        """What comes true of visits, whose numbers in the chunk begin at `first`: a frame for each operation."""
        partner, country = self.market.cell_partner[visits.cell], self.market.cell_country[visits.cell]
        matching = [(one, self._matches(one, visits)) for one in active]

        def level(act: Act, stage: int) -> Floats:
            product = np.ones(len(partner))
            for one, match in matching:
                if act in KINDS[one.kind].acts_on:
                    product[match] *= one.level(visits.ms[stage, match])
            return product

        human = np.where(visits.bot, 0, self.market.authorizes[partner])
        normally = (np.float64(1), human, np.float64(world.ORDERED))
        going, frames = np.ones(len(partner), dtype=bool), []
        for stage, operation in enumerate(OPERATIONS):
            happens = going & (visits.happens[stage] < normally[stage] * level(operation, stage))
            error = visits.ends[stage] < world.FAILING * level("error", stage)
            declined = np.zeros_like(error)
            if operation == "authorization":
                declined = ~error & (visits.ends[stage] >= world.APPROVAL[visits.method] * level("approval", stage))
            going = happens & ~error & ~declined
            row = np.flatnonzero(happens)
            frames.append(pl.DataFrame({
                "id": ((index + 2) << 28) + ((first + row) << 2) + stage,
                "ms": visits.ms[stage, row],
                "arrival": visits.ms[stage, row] * 1000 + visits.late[stage, row],
                "operation": np.full(len(row), stage, np.uint8),
                "status": (declined + 2 * error.astype(np.uint8))[row],
                "partner": partner[row].astype(np.uint32),
                "country": country[row].astype(np.uint8),
                "method": visits.method[row].astype(np.uint8),
                "agent": visits.agent[row].astype(np.uint8),
                "channel": visits.channel[row].astype(np.uint8),
                "amount": visits.amount[row],
                "latency": visits.latency[stage, row].round(),
                "partition": self.market.partition[partner[row]],
            }))  # fmt: skip
        return frames

    def _matches(self, one: SimulatedIncident, visits: _Visits) -> Ints:
        """Indices of the visits in an incident's scope."""
        match = np.ones(len(visits.cell), dtype=bool)
        for dimension, value in one.scope.items():
            match dimension:
                case "partner":
                    match &= self.market.cell_partner[visits.cell] == int(value[1:]) - 1
                case "country":
                    match &= self.market.cell_country[visits.cell] == world.COUNTRIES.index(value)
                case "payment_method":
                    match &= visits.method == world.METHODS.index(value)
                case "browser":
                    match &= np.array([browser == value for browser, _ in world.AGENTS])[visits.agent]
        return np.flatnonzero(match)


def _quantised(mix: Floats) -> NDArray[np.int64]:
    """A table of _MIX_SIZE codes in which each occurs in proportion to `mix`: drawing is a look-up."""
    edges = np.rint(np.cumsum(mix) / mix.sum() * _MIX_SIZE).astype(np.int64)
    return np.searchsorted(edges, np.arange(_MIX_SIZE), side="right")
