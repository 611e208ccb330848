"""The messages of Kafka topics: all their partitions, from the positions that the store keeps.

What happens when Kafka is not as it should be, each with one line in the log:

============================  ========================================================================================
no broker answers             wait; nothing is complete meanwhile: each partition counts as having something unread
topic not there, or deleted   the other topics go on; it is read when it is there
topic re-created              known by its identity, also while kmon was down: the new one is read from its beginning
offsets gone (retention)      how many were lost; on with the earliest one that Kafka has
log ends before our offset    the same topic was truncated: on with its end, as what is before it was counted already
new partitions, new topics    read from their beginning, also with ``start: latest``
gaps between offsets          none: compaction, markers of transactions
user or password refused      SourceError, and so is a topic that kmon may not read
tombstone                     a dead letter; a message with line ends in it is one record all the same
group offsets not kept        only Kafka's tools miss them
============================  ========================================================================================

A thread reads and puts messages together (`reader`), up to the limits of a batch ahead of the pipeline (`messages`);
the pipeline takes what is there (`Book` numbers the moves). The identity of a topic is kept among the store's offsets,
as those of partition -1.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from kmon.config import KafkaSource
from kmon.errors import SourceError
from kmon.sources import Move, Positions, RawBatch
from kmon.sources.kafka.client import Client
from kmon.sources.kafka.messages import Chunk, Handover, Jump
from kmon.sources.kafka.reader import IDENTITY, Reader

__all__ = ["KafkaTopics", "describe"]

_TICK = 0.5
"""Seconds without anything new, after which a batch without records says what is unread."""


class KafkaTopics:
    """A source, as the pipeline reads it."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        """Yield batches until `stop` is set; SourceError where Kafka refuses us, ConfigError for a bad setting."""
        handover = Handover(self._source.batch_records, self._source.batch_bytes)
        reader = Reader(Client(self._source), self._source, positions, handover)
        book = Book(positions, reader)
        thread = threading.Thread(target=reader.run, name="kafka reader", daemon=True)
        thread.start()
        moves: tuple[Move, ...] = ()
        try:
            while not stop.is_set():
                batch = book.batch(handover.take(_TICK))
                yield batch
                reader.committed(moves)  # of the batch before: this one is being committed
                moves = batch.moves
        finally:
            reader.stop()
            handover.close()
            thread.join()


class Book:
    """What the store has, and what a batch does to it."""

    def __init__(self, positions: Positions, reader: Reader) -> None:
        self._stored = dict(positions)
        self._reader = reader

    def batch(self, item: Chunk | Jump | None) -> RawBatch:
        """The batch of what was handed over; a tick where that was nothing."""
        partitions = self._reader.partitions
        if isinstance(item, Jump):
            moves = tuple(self._move(lane, to) for lane, to in item.to.items())
            return RawBatch(moves, b"", 0, unread=self._unread())
        if item is None:
            return RawBatch((), b"", 0, unread=self._unread())
        after = np.full(len(partitions), -1, dtype=np.int64)
        after[item.lanes] = item.positions + 1  # of the messages of a lane the last one counts
        for lane, end in item.ends.items():
            if end > max(after[lane], self._stored.get(partitions[lane], 0)):
                after[lane] = end
        involved = np.flatnonzero(after >= 0)
        number = np.zeros(len(partitions), dtype=np.int32)
        number[involved] = np.arange(len(involved), dtype=np.int32)
        moves = tuple(self._move(int(lane), int(after[lane])) for lane in involved)
        return RawBatch(
            moves,
            item.data,
            len(item),
            item.damaged,
            number[item.lanes],
            item.positions,
            item.written,
            self._unread(),
        )

    def _move(self, lane: int, to: int) -> Move:
        key = self._reader.partitions[lane]
        move = Move(*key, self._stored.get(key, 0), to)
        self._stored[key] = to
        return move

    def _unread(self) -> dict[tuple[str, int], int] | None:
        """By partition, as of the batch that is being made: what waits in this process is unread too."""
        if not self._reader.looked:
            return None
        return {
            key: self._reader.unread(lane, self._stored.get(key, 0))
            for lane, key in enumerate(list(self._reader.partitions))
            if key[1] != IDENTITY
        }


def describe(source: KafkaSource, timeout: float = 5.0) -> str:
    """What is there to be read, for people; SourceError with what to do where it cannot be."""
    client = Client(source, telling=False)
    try:
        topics = client.wanted(timeout)
        if topics is None:
            where = ", ".join(source.brokers)
            message = f"no broker answers at {where} ({client.why}): see whether Kafka runs, and source.brokers"
            raise SourceError(message)
        missing = [name for name in source.topics if not name.startswith("^") and name not in topics]
        if missing or not topics:
            message = f"Kafka has no topic {', '.join(missing or source.topics)}: create it, or correct source.topics"
            raise SourceError(message)
        partitions = sum(len(topic.partitions) for topic in topics.values())
        leaderless = sum(len(topic.leaderless) for topic in topics.values())
        if leaderless:
            message = f"{leaderless} of {partitions} partitions have no leader: see whether all brokers run"
            raise SourceError(message)
        return f"{', '.join(source.brokers)} has {', '.join(sorted(topics))}: {partitions} partitions"
    finally:
        client.close()
