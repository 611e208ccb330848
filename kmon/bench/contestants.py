"""Who takes part in ``kmon bench ingest``: the bare decode, kmon from files and from Kafka, and others' rollups."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from kmon.bench import contest
from kmon.bench.contest import Contestant, Result
from kmon.bench.stream import PARTITIONS, TOPIC, fill
from kmon.bench.traffic import CHUNK, Traffic
from kmon.bench.workplace import Options, configured
from kmon.config import Config
from kmon.ingest import Ingestion, Progress
from kmon.parts import source_of
from kmon.sources import Source
from kmon.sources.files import FilesSource, Limits
from kmon.store import EmbeddedStore
from kmon.testing.broker import Broker

EVENTS = 2_000_000
USUAL = Limits().records
"""Of a backlog, in the shipped configuration."""
BATCHES = (5_000, 20_000, USUAL)
BARE = "bare polars decode"
_NEEDED = {
    name: pl.Float64 if name == "amount" else pl.String
    for name in ("ts", "operation", "status", "partner", "country", "payment_method", "browser", "device", "channel",
                 "amount")
}  # fmt: skip
_KEYED = "keyed"


@dataclass(frozen=True)
class Rival:
    """Somebody else who can roll events up."""

    name: str
    script: str
    package: str
    share: float
    """Of EVENTS: the slow ones get fewer, as their rate does not depend on it."""
    batches: tuple[int, ...] = (USUAL,)
    from_kafka: bool = False

    def called(self, size: int) -> str:
        """The contestant's name."""
        return f"{self.name}, {size:,} a batch"


RIVALS = (
    Rival("chdb", "chdb_summing", "chdb", 0.5, BATCHES),
    Rival("Pathway", "pathway_groupby", "pathway", 0.1),
    Rival("Bytewax, fold_window", "bytewax_windows", "bytewax", 0.025),
    Rival("Bytewax, a batch as the item", "bytewax_batches", "bytewax", 0.5, BATCHES),
    Rival("Quix Streams", "quix_windows", "quixstreams", 0.025, from_kafka=True),
)


def kmon_called(where: str, size: int) -> str:
    """kmon's own name as a contestant."""
    return f"kmon from {where}, {size:,} a batch"


WHOLE = f"{kmon_called('files', USUAL)}, whole events kept"


class Recordings:
    """The same events as files of several lengths and as topics, and what their rollup must add up to."""

    def __init__(self, work: Path, options: Options, broker: Broker | None) -> None:
        self._work, self._options, self._broker = work, options, broker
        self._count = options.scaled(EVENTS)
        self._traffic = Traffic.backlog(self._count)
        self.rivals = [rival for rival in RIVALS if options.rivals and (broker or not rival.from_kafka)]
        self.expected = {}
        for count in {self._count, *map(self._share, self.rivals)}:
            options.say(f"making {count:,} events")
            self.expected[count] = self._write(count)
        if broker is not None:
            self._fill(broker)
        self._warm_up()

    def contestants(self) -> Iterator[Contestant]:
        """Everybody, in the order in which they run."""
        yield self._bare(USUAL)
        yield from (self._from_files(kmon_called("files", size), size) for size in BATCHES)
        yield self._from_files(WHOLE, USUAL, keep={"raw": "30d", "raw_bytes": 10**12})
        if self._broker is not None:
            yield from (self._from_kafka(self._broker.address, size) for size in BATCHES)
        for rival in self.rivals:
            yield from (self._rival(rival, size) for size in rival.batches)

    def _warm_up(self) -> None:
        """What is imported when it is first used is not part of anybody's time; rivals see to that themselves."""
        lines = self._work / "warm-up.ndjson"
        self._traffic.write(lines, 1)
        _ingest(configured(self._work), FilesSource([lines]), 1)

    def _bare(self, size: int) -> Contestant:
        lines = self._path(self._count).read_bytes().splitlines(keepends=True)
        batches = [b"".join(lines[at : at + size]) for at in range(0, len(lines), size)]
        return Contestant(BARE, self._count, lambda: _decode(batches))

    def _from_files(self, name: str, size: int, **other: Any) -> Contestant:
        path, config = self._path(self._count), configured(self._work, **other)
        source = FilesSource([path], limits=Limits(records=size))
        return Contestant(name, self._count, lambda: _ingest(config, source, self._count))

    def _from_kafka(self, address: str, size: int) -> Contestant:
        source = {"kind": "kafka", "brokers": [address], "topics": [TOPIC], "batch_records": size}
        config = configured(self._work, source)
        return Contestant(
            kmon_called("Kafka", size), self._count, lambda: _ingest(config, source_of(config), self._count)
        )

    def _rival(self, rival: Rival, size: int) -> Contestant:
        count = self._share(rival)
        given: list[str | Path] = ["--file", self._path(count), "--batch", str(size)]
        if rival.from_kafka and self._broker is not None:
            given += ["--broker", self._broker.address, "--topic", _KEYED, "--events", str(count)]
        return Contestant(rival.called(size), count, lambda: contest.rival(rival.script, rival.package, *given))

    def _share(self, rival: Rival) -> int:
        return self._options.scaled(round(EVENTS * rival.share))

    def _path(self, count: int) -> Path:
        return self._work / f"{count}.ndjson"

    def _write(self, count: int) -> dict[str, float]:
        self._traffic.write(self._path(count), count)
        return totals(self._traffic.frame(at, min(CHUNK, count - at)) for at in range(0, count, CHUNK))

    def _fill(self, broker: Broker) -> None:
        self._options.say("filling the topics")
        broker.create_topic(TOPIC, PARTITIONS)
        fill(broker.address, TOPIC, self._path(self._count).read_bytes().splitlines())
        for count in {self._share(rival) for rival in self.rivals if rival.from_kafka}:
            broker.create_topic(_KEYED)
            cells = self._traffic.frame(0, count).select(
                pl.concat_str("partner", "country", "payment_method", "browser", "device", "channel", separator="|"),
                "ts",
            )
            lines = self._path(count).read_bytes().splitlines()
            fill(broker.address, _KEYED, lines, cells["partner"].to_list(), cells["ts"].dt.epoch("ms").to_list())


def totals(frames: Iterator[pl.DataFrame]) -> dict[str, float]:
    """What the measures of all events add up to, counted without kmon."""
    operation, ok = pl.col("operation"), pl.col("status") == "ok"
    order = (operation == "order") & ok
    sums = pl.concat(
        frame.select(
            events=pl.len(),
            sessions=(operation == "session").sum(),
            authorizations=(operation == "authorization").sum(),
            approved=((operation == "authorization") & ok).sum(),
            orders=order.sum(),
            errors=(pl.col("status") == "error").sum(),
            amount=pl.col("amount").filter(order).sum(),
        )
        for frame in frames
    ).sum()
    return {name: float(value) for name, value in sums.row(0, named=True).items()}


def stored(store: EmbeddedStore) -> dict[str, float]:
    """What the measures of a store add up to."""
    names = [name for name in store.schema.measures if not name.endswith("_")]
    sums = ", ".join(f"coalesce(sum({name}), 0)::DOUBLE AS {name}" for name in names)
    return dict(store.sql(f"SELECT {sums} FROM cells").row(0, named=True))


def _decode(batches: Sequence[bytes]) -> Result:
    begun = time.perf_counter()
    for batch in batches:
        pl.read_ndjson(io.BytesIO(batch), schema=_NEEDED)
    return Result(time.perf_counter() - begun, {})


def _ingest(config: Config, source: Source, count: int) -> Result:
    """From the opening of the source to the commit of the last event, into a new store."""
    with (
        TemporaryDirectory(prefix="kmon-bench-store-") as name,
        EmbeddedStore(Path(name) / "kmon.duckdb", config) as store,
    ):
        stop = threading.Event()
        begun = ended = time.perf_counter()

        def committed(events: int, _: float) -> None:
            nonlocal ended
            if events:
                ended = time.perf_counter()

        def enough(done: Progress) -> None:  # told with the batch after the last one
            if done.events + done.dead_letters >= count:
                stop.set()

        Ingestion(config, store, on_batch=enough, on_commit=committed).run(source, stop)
        return Result(ended - begun, stored(store))
