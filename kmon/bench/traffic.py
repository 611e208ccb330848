"""Events like Klarna's for the benchmarks: 500,000 Zipf-distributed partners, DESIGN's fields, about 280 bytes each.

No incidents and no shape of the day, which `kmon simulate` has: here millions of events are made in seconds, always the
same ones for a seed.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kmon.sources import market

KLARNA = 1_100.0
"""Events a second: 96 million a day."""
CHUNK = 50_000
"""Events that are drawn at once."""
_OPERATIONS = ("session", "authorization", "order")
_OPERATION_MIX = (0.62, 0.22, 0.16)
_STATUSES = ("ok", "declined", "error")
_STATUS_MIX = {"session": (0.99, 0, 0.01), "authorization": (0.9, 0.09, 0.01), "order": (0.985, 0, 0.015)}
_AT_HOME = 0.8
"""Share of a partner's events that come from its own country."""
_MIX_SIZE = 1 << 16


@dataclass(frozen=True)
class Traffic:
    """Events at `rate` a second from `start` on; event number n is the same whichever others are asked for."""

    start: dt.datetime
    rate: float = KLARNA
    partners: int = 500_000
    seed: int = 1

    @classmethod
    def backlog(cls, count: int) -> Traffic:
        """Traffic whose first `count` events are of yesterday: too old to be kept whole."""
        return cls(dt.datetime.now(dt.UTC) - dt.timedelta(days=1, seconds=count / KLARNA))

    def lines(self, first: int, count: int) -> bytes:
        """The events [first, first + count) as newline-terminated JSON documents."""
        return b"".join(encode(part) for part in self._parts(first, count))

    def batches(self, count: int, size: int) -> Iterator[bytes]:
        """The first `count` events in batches of `size`."""
        for first in range(0, count, size):
            yield self.lines(first, min(size, count - first))

    def write(self, path: Path, count: int) -> int:
        """Write the first `count` events to an ndjson file; its size in bytes."""
        with path.open("wb") as file:
            return sum(file.write(data) for data in self.batches(count, CHUNK))

    def frame(self, first: int, count: int) -> pl.DataFrame:
        """The events as a frame: the fields of DESIGN 5.1, `ts` in UTC."""
        return pl.concat(self._parts(first, count))

    def _parts(self, first: int, count: int) -> Iterator[pl.DataFrame]:
        for index in range(first // CHUNK, -(-(first + count) // CHUNK)):
            low, high = max(first - index * CHUNK, 0), min(first + count - index * CHUNK, CHUNK)
            yield _chunk(self, index)[low:high]

    def draw(self, index: int) -> pl.DataFrame:
        """The events [index * CHUNK, (index + 1) * CHUNK)."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        n = CHUNK
        operation = _draw(rng, _OPERATION_MIX, n)
        by_operation = np.stack([_draw(rng, _STATUS_MIX[name], n) for name in _OPERATIONS])
        partner = np.searchsorted(self._cumulated, rng.random(n)).astype(np.uint32)
        country = np.where(rng.random(n) < _AT_HOME, self._home[partner], _draw(rng, market.COUNTRY_WEIGHTS, n))
        agent = _draw(rng, market.AGENT_MIX, n)
        order = pl.Series(operation == _OPERATIONS.index("order"))
        number = index * CHUNK + np.arange(n)
        behind = np.minimum(rng.standard_exponential(n) * 0.15, 5.0)
        micros = int(self.start.timestamp() * 1e6) + ((number / self.rate - behind) * 1e6).astype(np.int64)
        return pl.DataFrame({
            "event_id": _identifiers(rng, number),
            "ts": pl.Series(micros).cast(pl.Datetime("us", "UTC")).dt.cast_time_unit("ms"),
            "operation": _named(_OPERATIONS, operation),
            "status": _named(_STATUSES, by_operation[operation, np.arange(n)]),
            "partner": self._names.gather(partner),
            "country": _named(market.COUNTRIES, country),
            "payment_method": _named(market.METHODS, _draw(rng, market.METHOD_MIX.mean(axis=0), n)),
            "browser": _named([browser for browser, _ in market.AGENTS], agent),
            "device": _named([device for _, device in market.AGENTS], agent),
            "channel": _named(market.CHANNELS, _draw(rng, market.CHANNEL_MIX, n)),
            "amount": pl.Series(np.exp(4 + rng.standard_normal(n)).round(2)).set(~order, None),
            "currency": pl.Series([None, "EUR"]).gather(order.cast(pl.UInt32)),
            "latency_ms": np.exp(4.6 + 0.4 * rng.standard_normal(n)).astype(np.int64),
        })  # fmt: skip

    @functools.cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        """The share of the first partners, largest first: partner k has 1 / (k + 1) of the traffic of the first."""
        shares: NDArray[np.float64] = np.cumsum(1 / np.arange(1, self.partners + 1))
        return np.asarray(shares / shares[-1])

    @functools.cached_property
    def _home(self) -> NDArray[np.uint8]:
        return _draw(np.random.default_rng(self.seed), market.COUNTRY_WEIGHTS, self.partners)

    @functools.cached_property
    def _names(self) -> pl.Series:
        return pl.select("p" + pl.int_range(1, self.partners + 1).cast(pl.String)).to_series()


@functools.lru_cache(maxsize=2)
def _chunk(traffic: Traffic, index: int) -> pl.DataFrame:
    """Drawn once for all the small pieces that are asked for."""
    return traffic.draw(index)


def encode(events: pl.DataFrame) -> bytes:
    """The events as lines of JSON in the style of Python's `json`; what an event does not have is left out."""
    parts: list[pl.Expr] = [pl.lit('{"event_id": "'), pl.col("event_id"), pl.lit('", "ts": "')]
    parts += [pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")]
    for name in ("operation", "status", "partner", "country", "payment_method", "browser", "device", "channel"):
        parts += [pl.lit(f'", "{name}": "'), pl.col(name)]
    amount = pl.format('", "amount": {}, "currency": "{}', "amount", "currency").fill_null("")
    parts += [amount, pl.lit('", "latency_ms": '), pl.col("latency_ms").cast(pl.String), pl.lit("}\n")]
    return str(events.select(pl.concat_str(parts).str.join("")).item()).encode()


def _draw(rng: np.random.Generator, mix: NDArray[np.float64] | tuple[float, ...], n: int) -> NDArray[np.uint8]:
    """`n` codes in proportion to `mix`."""
    edges = np.rint(np.cumsum(mix) / np.sum(mix) * _MIX_SIZE).astype(np.int64)
    table = np.searchsorted(edges, np.arange(_MIX_SIZE), side="right").astype(np.uint8)
    return np.asarray(table[rng.integers(0, _MIX_SIZE, n, np.uint16)])


def _identifiers(rng: np.random.Generator, number: NDArray[np.int64]) -> pl.Series:
    """Random UUIDs, nearly: unique by their last digits."""
    high = pl.Series(rng.integers(1 << 60, 1 << 63, len(number)))
    digits = pl.select(pl.format("{}{}", high.cast(pl.String).str.slice(0, 16), pl.Series(number) + 10**15)).to_series()
    frame = digits.to_frame("d")
    cuts = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 12)]
    return frame.select(pl.concat_str([pl.col("d").str.slice(*cut) for cut in cuts], separator="-")).to_series()


def _named(names: tuple[str, ...] | list[str], codes: NDArray[np.uint8]) -> pl.Series:
    return pl.Series(names).gather(codes.astype(np.uint32))
