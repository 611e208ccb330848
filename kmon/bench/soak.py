"""Whether kmon stays as it is: minutes at five times Klarna's rate through a real Kafka, with somebody asking."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kmon.bench.latency import LIMIT, WARM_UP, Watch, wait
from kmon.bench.owner import Owner, kafka_config, owning
from kmon.bench.rows import Row, missing, told, under
from kmon.bench.stream import PARTITIONS, TOPIC, producing
from kmon.bench.traffic import KLARNA
from kmon.bench.workplace import Options, folder

RATE = 5 * KLARNA
EVERY = 1.0
FLAT = 1.25
"""The last third may need so much more than the one before."""
PER_EVENT = 10.0
"""Bytes of the rollups that an event may take."""
SMALL = 64
"""MiB that the rest of a store takes: names, and blocks that are free to be used."""
CACHE = "1 GB"
"""What the database may use in memory: by default it would go on caching what it wrote, up to half of the machine's."""
THIRDS, MIB = 3, 2**20


@dataclass
class Samples:
    """What was seen of the owner, once a second; by the machine's monotonic clock."""

    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    file: list[float] = field(default_factory=list)
    log: list[float] = field(default_factory=list)


def run(options: Options) -> list[Row]:
    """The rates are compared by thirds: the first warms up, the last must be like the second."""
    from kmon.testing.broker import Broker, BrokerUnavailableError

    seconds = options.minutes * 60
    try:
        with folder() as work, Broker.start(work / "kafka", settings=_little_log()) as broker:
            broker.create_topic(TOPIC, PARTITIONS)
            with owning(kafka_config(work, broker.address, queries={"memory": CACHE})) as owner:
                return list(_soaked(options, owner, broker.address, seconds))
    except BrokerUnavailableError as error:
        return [missing("soak", "s", str(error))]


def _little_log() -> dict[str, object]:
    """The broker forgets what was read long ago, so that the disk holds an hour."""
    return {"log.retention.bytes": 256 << 20, "log.segment.bytes": 64 << 20, "log.retention.check.interval.ms": 10_000}


def _soaked(options: Options, owner: Owner, address: str, seconds: float) -> Iterator[Row]:
    begun, rate = time.monotonic(), RATE * options.scale
    with Watch(owner.connect()) as watch, _sampling(owner, options, seconds) as samples:
        with producing(address, rate, seconds) as paced:
            wait(watch, paced)
        with owner.connect() as store:
            status = store.status()
            counted = int(store.sql("SELECT coalesce(sum(events_), 0)::BIGINT FROM cells").item())
    produced = round(seconds * rate) + len(paced.markers)
    note = f"{seconds / 60:g} minutes at {rate:,.0f} events/s"
    yield under("events lost or doubled", abs(produced - counted), "", 1, f"{produced:,} were produced, {note}")
    latencies, lost = watch.latencies(paced.markers, begun + WARM_UP)
    if lost or len(latencies) < THIRDS:
        yield missing("event to query", "s", f"{lost} of the events that were looked for were never seen")
        return
    yield told("event to query, p50", float(np.median(latencies)), "s", note)
    yield under("event to query, p99", float(np.quantile(latencies, 0.99)), "s", LIMIT, note)
    slow = [float(np.quantile(third, 0.99)) for third in np.array_split(latencies, THIRDS)]
    yield under("event to query, p99, last third", slow[2], "s", FLAT * max(slow[1], LIMIT / 4), _before(slow, "s"))
    memory = [float(np.median(third)) / MIB for third in np.array_split(samples.memory, THIRDS)]
    note = f"{_before(memory, 'MiB')}; the database may use {CACHE}"
    yield under("resident memory, last third", memory[2], "MiB", FLAT * memory[1], note)
    rollups, whole = sum(tier["bytes"] for tier in status["tiers"].values()), status["raw_events"]["bytes"]
    yield under("rollups in the file", rollups / counted, "bytes/event", PER_EVENT, f"{rollups / MIB:,.0f} MiB")
    known = (rollups + whole) / MIB + SMALL
    note = (
        f"predicted: rollups, whole events ({whole / MIB:,.0f} MiB), {SMALL} MiB; log {samples.log[-1] / MIB:,.0f} MiB"
    )
    yield under("file", samples.file[-1] / MIB, "MiB", FLAT * known, note)


def _before(thirds: list[float], unit: str) -> str:
    return f"before: {thirds[0]:.3g} and {thirds[1]:.3g} {unit}"


@contextlib.contextmanager
def _sampling(owner: Owner, options: Options, seconds: float) -> Iterator[Samples]:
    samples, ended = Samples(), threading.Event()
    begun = time.monotonic()

    def work() -> None:
        while True:
            samples.times.append(time.monotonic())
            samples.memory.append(owner.memory())
            file, log = owner.size()
            samples.file.append(file)
            samples.log.append(log)
            options.say(f"{time.monotonic() - begun:.0f} of {seconds:.0f} s, {samples.memory[-1] / MIB:.0f} MiB")
            if ended.wait(EVERY):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
