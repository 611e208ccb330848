"""The simulator: made-up traffic with incidents, deterministic, so that a recording repeats.

`write` records days of it together with the truth about what was wrong, and the `Simulator` is a source that plays a
history and then follows the wall clock.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import zstandard

from kmon.config import SimulatorSource
from kmon.sources import Positions, RawBatch
from kmon.sources.market import reference
from kmon.sources.scenario import SimulatedIncident, epoch_ms, incident, live_schedule, schedule
from kmon.sources.traffic import CHUNK, Simulation

__all__ = [
    "CHUNK", "LEAD", "MONDAY", "SimulatedIncident", "Simulation", "Simulator", "encode", "incident", "live_schedule",
    "record", "reference", "schedule", "write",
]  # fmt: skip

MONDAY = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
"""Where recordings begin by default."""
LEAD = dt.timedelta(minutes=6)
"""The first live incident is under way when history ends, so that even at night the evidence is there at once."""
_BATCH = 20_000
_POLL = 0.5
"""Seconds between two looks at the clock, live."""
_FILE_CHUNKS = 36


def encode(events: pl.DataFrame) -> bytes:
    """Rows of `Simulation.chunk` as newline-terminated JSON objects, without the null fields and the arrival."""
    out = io.BytesIO()
    text = pl.col("ts").dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ")
    events.drop("arrival").with_columns(ts=text).write_ndjson(out)
    return out.getvalue().replace(b',"amount":null,"currency":null', b"")


def write(
    out: Path,
    *,
    partners: int,
    rate: float,
    days: float,
    incidents: int,
    seed: int,
    start: dt.datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Record `days` of traffic in the folder `out`: ``events-*.ndjson.zst``, ``truth.json`` and ``partners.csv``.

    A file holds six hours of arrival; the names sort in arrival order. `progress` is told the chunks done and in all.
    Returns the files, the number of events and incidents, start and end. Equal arguments give equal bytes.
    """
    start = start or MONDAY
    chunks = max(1, round(days * (dt.timedelta(days=1) / CHUNK)))
    end = start + chunks * CHUNK
    listed = schedule(incidents, start, end, partners, rate, seed)
    simulation = Simulation(partners, rate, start, seed, listed)
    files, total = record(simulation, out, chunks, progress)
    span = {"start": _rfc3339(start), "end": _rfc3339(end)}
    truth = {"seed": seed, "partners": partners, "rate": rate, **span, "incidents": [_told(one) for one in listed]}
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    reference(partners, seed).write_csv(out / "partners.csv")
    return {"files": list(map(str, files)), "events": total, "incidents": len(listed), **span}


def record(
    simulation: Simulation, out: Path, chunks: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Path], int]:
    """Write the first `chunks` of a simulation; the files in the order of arrival, and how many events they have."""
    out.mkdir(parents=True, exist_ok=True)
    total, files = 0, []
    for first in range(0, chunks, _FILE_CHUNKS):
        path = out / f"events-{first // _FILE_CHUNKS:03d}.ndjson.zst"
        with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
            for index in range(first, min(first + _FILE_CHUNKS, chunks)):
                events = simulation.chunk(index)
                packed.write(encode(events))
                total += len(events)
                if progress:
                    progress(index + 1, chunks)
        files.append(path)
    return files, total


def _told(one: SimulatedIncident) -> dict[str, Any]:
    """An incident as ``truth.json`` has it."""
    window = {"started_at": _rfc3339(one.start), "ended_at": _rfc3339(one.end)}
    told = {"kind": one.kind, "harmless": one.harmless, **window}
    return {**told, "scope": one.scope, "metric": one.metric, "direction": one.direction}


def _rfc3339(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Simulator:
    """The source ``kind: simulator``: a history as fast as it is read, then live by the wall clock.

    One partition, 0; a position is the number of events before it, so that resuming means to count them again
    (millions a second). The source's name, ``simulator:<seed>:<start, epoch seconds>``, tells a later run which traffic
    to continue. `now` and `wait` (on the stop event, seconds) are there for tests.
    """

    def __init__(
        self,
        config: SimulatorSource,
        *,
        now: Callable[[], dt.datetime] = _utc_now,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self.config, self._now, self._wait = config, now, wait
        minutes = (now() - config.history).timestamp() // 60
        self.start = dt.datetime.fromtimestamp(minutes * 60, dt.UTC)
        """When the traffic begins; `read` replaces it by what the positions continue."""
        self._caught_up_at: int | None = None

    @property
    def name(self) -> str:
        """What the offset is stored under."""
        return f"simulator:{self.config.seed}:{epoch_ms(self.start) // 1000}"

    @property
    def history_end(self) -> dt.datetime:
        """Where history ends; the endless incidents of the demo begin a little before (`LEAD`)."""
        return self.start + self.config.history

    def simulation(self) -> Simulation:
        """The traffic from `start` on: four incidents in the history, then one every `incident_every`."""
        size = (self.config.partners, self.config.rate)
        seed, quiet = self.config.seed, dt.timedelta(hours=2)
        past: list[SimulatedIncident] = []
        if self.config.history >= 3 * quiet:
            past = schedule(4, self.start, self.history_end - quiet, *size, seed)
        begin = self.history_end - LEAD
        live = live_schedule(begin, self.config.incident_every, *size, seed)
        return Simulation(*size, self.start, seed, past, live)

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        """Yield what has arrived by the wall clock after `positions`, in batches, until `stop` is set."""
        position, simulation = self._resume(positions), self.simulation()
        index, row = 0, position
        while row and not stop.is_set() and (size := simulation.count(index)) <= row:
            index, row = index + 1, row - size
        while not stop.is_set():
            events, end = simulation.chunk(index), self.start + (index + 1) * CHUNK
            while not stop.is_set():
                now = self._now()
                arrived = int(events["arrival"].search_sorted(now, side="right"))
                for first in range(row, arrived, _BATCH):
                    row = min(first + _BATCH, arrived)
                    size = row - first
                    if row == arrived and now < end:
                        self._caught_up_at = self._caught_up_at or position + size
                    yield RawBatch.consecutive(self.name, 0, position, encode(events[first:row]), size)
                    position += size
                    if stop.is_set():
                        return
                if now >= end:
                    break
                self._wait(stop, _POLL)
            index, row = index + 1, 0

    def caught_up(self, batch: RawBatch) -> bool:
        """Whether the batch reached the wall clock when it was made: what follows is live."""
        return self._caught_up_at is not None and batch.next >= self._caught_up_at

    def backlog(self, positions: Positions) -> int:
        """About how many events lie between `positions` and the wall clock."""
        done = self._resume(positions)
        return max(0, round((self._now() - self.start).total_seconds() * self.config.rate - done))

    def _resume(self, positions: Positions) -> int:
        """Continue the newest traffic of this seed in `positions`, if any: sets `start` and returns the position."""
        known = [name for name, _ in positions if name.startswith(f"simulator:{self.config.seed}:")]
        if not known:
            return 0
        epoch = max(int(name.rsplit(":", 1)[1]) for name in known)
        self.start = dt.datetime.fromtimestamp(epoch, dt.UTC)
        return positions[self.name, 0]
