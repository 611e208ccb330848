"""Messages on their way into batches, and the bounded place where they wait for the pipeline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from kmon.sources import line_count

Partition = tuple[str, int]
TOMBSTONE = "tombstone: a message without a value"
EMPTY = "empty: a message whose value has no bytes"


@dataclass(frozen=True)
class Chunk:
    """Consecutive messages as they came, of several partitions, each known by its number (its lane)."""

    data: bytes
    """The values, a line each."""
    lanes: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    written: npt.NDArray[np.int64]
    """Microseconds since 1970, -1 where Kafka does not know."""
    damaged: Mapping[int, str] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    """The lanes that are read to their end, and the position there."""

    def __len__(self) -> int:
        return len(self.lanes)


@dataclass(frozen=True)
class Jump:
    """Positions that move without a message: over what Kafka no longer has, or back to the start of a new topic."""

    to: Mapping[int, int]
    """The new position, by lane."""


def chunk(messages: Sequence[Message], lanes: Mapping[Partition, int], ends: Mapping[int, int]) -> Chunk:
    """Put messages without errors together; `lanes` numbers the partitions. All that is done message by message."""
    values: list[Any] = list(map(Message.value, messages))
    damaged = {}
    if not all(values):
        damaged = {n: TOMBSTONE if value is None else EMPTY for n, value in enumerate(values) if not value}
        values = [value or b"" for value in values]
    data = b"\n".join(values)
    if line_count(data) > max(len(values) - 1, 0):  # JSON may be written over several lines: they are one record
        data = b"\n".join([value.replace(b"\n", b" ") for value in values])
    times = _integers(map(itemgetter(1), map(Message.timestamp, messages)), len(messages))
    return Chunk(
        data + b"\n" if values else b"",
        _lanes_of(messages, lanes),
        _integers(map(Message.offset, messages), len(messages)),
        np.where(times > 0, times * 1000, -1),
        damaged,
        ends,
    )


def _lanes_of(messages: Sequence[Message], lanes: Mapping[Partition, int]) -> npt.NDArray[np.int32]:
    topics: Iterable[Any] = map(Message.topic, messages)
    partitions: Iterable[Any] = map(Message.partition, messages)
    if len({topic for topic, _ in lanes}) == 1:  # as ever: half the time of looking up pairs
        of = {number: lane for (_, number), lane in lanes.items()}
        found = map(of.__getitem__, partitions)
    else:
        found = map(lanes.__getitem__, zip(topics, partitions, strict=True))
    return np.fromiter(found, dtype=np.int32, count=len(messages))


def _integers(values: Iterable[Any], count: int) -> npt.NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64, count=count)


def merged(chunks: Sequence[Chunk]) -> Chunk:
    """Several chunks as one."""
    if len(chunks) == 1:
        return chunks[0]
    damaged: dict[int, str] = {}
    ends: dict[int, int] = {}
    begin = 0
    for one in chunks:
        damaged |= {begin + number: why for number, why in one.damaged.items()}
        ends |= one.ends
        begin += len(one)
    return Chunk(
        b"".join([one.data for one in chunks]),
        np.concatenate([one.lanes for one in chunks]),
        np.concatenate([one.positions for one in chunks]),
        np.concatenate([one.written for one in chunks]),
        damaged,
        ends,
    )


class Handover:
    """Between the thread that reads and the pipeline: what waits is one batch and the chunk that fills it.

    While the pipeline is busy, what comes is put together; so batches are as small as the load is light, and grow
    with a backlog up to the limits.
    """

    def __init__(self, records: int, size: int) -> None:
        self._records, self._size = records, size
        self._waiting: deque[Chunk | Jump] = deque()
        self._held = [0, 0]
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None

    def put(self, item: Chunk | Jump) -> None:
        """Wait for room and hand over; nothing after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._full())
            self._waiting.append(item)
            if isinstance(item, Chunk):
                self._held = [self._held[0] + len(item), self._held[1] + len(item.data)]
            self._changed.notify_all()

    def take(self, timeout: float) -> Chunk | Jump | None:
        """What waits, up to the limits; None where nothing came in time. Raises what the reader failed with."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._failure or self._closed, timeout)
            if not self._waiting:
                if self._failure is not None:
                    raise self._failure
                return None
            first = self._waiting.popleft()
            if isinstance(first, Jump):
                return first
            taken, records, size = [first], len(first), len(first.data)
            while self._waiting and isinstance(following := self._waiting[0], Chunk):
                records, size = records + len(following), size + len(following.data)
                if records > self._records or size > self._size:
                    break
                taken.append(following)
                self._waiting.popleft()
            for one in taken:
                self._held = [self._held[0] - len(one), self._held[1] - len(one.data)]
            self._changed.notify_all()
        return merged(taken)

    def fail(self, error: BaseException) -> None:
        """Have `take` raise, after what was read before."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _full(self) -> bool:
        return self._held[0] >= self._records or self._held[1] >= self._size
