"""Reading a Kafka source as the pipeline does, with the store's offsets in a dictionary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager

from confluent_kafka import Producer

from kmon.config.models import KafkaSource
from kmon.sources import RawBatch
from kmon.sources.kafka import KafkaTopics


def source(address: str, *topics: str, **values) -> KafkaSource:
    values["settings"] = {"topic.metadata.refresh.interval.ms": 500, **values.get("settings", {})}
    return KafkaSource(kind="kafka", brokers=[address], topics=topics, **values)


def put(producer: Producer, topic: str, *values: bytes | None, partition: int = 0, **more) -> None:
    """Messages that Kafka has when this returns."""
    for value in values:
        producer.produce(topic, value, partition=partition, **more)
    assert producer.flush(30) == 0


class Reading:
    """One run of a source; each batch is committed to `positions` before the next one is asked for."""

    def __init__(self, read: KafkaSource, positions: Mapping[tuple[str, int], int] | None = None) -> None:
        self.positions = dict(positions or {})
        self.batches: list[RawBatch] = []
        self.records: list[tuple[str, int, int, bytes]] = []
        """Topic, partition, position and value."""
        self.unread: dict[tuple[str, int], int] = {}
        self.stop = threading.Event()
        self._batches = KafkaTopics(read).read(dict(self.positions), self.stop)

    def step(self) -> RawBatch:
        batch = next(self._batches)
        self.batches.append(batch)
        for move in batch.moves:
            assert self.positions.get((move.source, move.partition), 0) == move.first
            self.positions[move.source, move.partition] = move.next
        assert isinstance(batch.data, bytes)
        values = batch.data.split(b"\n")[:-1]
        assert len(values) == batch.size
        self.records += [(*batch.origin(number), value) for number, value in enumerate(values)]
        self.unread = dict(batch.unread or {})
        return batch

    def until(self, condition: Callable[[], bool], patience: float = 60) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, (self.positions, self.unread, len(self.records))
            self.step()

    @property
    def values(self) -> list[bytes]:
        return [value for *_, value in self.records]


@contextmanager
def reading(read: KafkaSource, positions: Mapping[tuple[str, int], int] | None = None):
    run = Reading(read, positions)
    try:
        yield run
    finally:
        run.stop.set()
        run._batches.close()
