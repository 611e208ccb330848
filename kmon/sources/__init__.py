"""Where events come from: each source turns the outside world into batches of raw records.

``kafka`` reads topics, ``files`` recordings, ``simulate`` makes traffic up. A source is a leaf: it knows nothing of the
store; it is told the positions to start from and yields what follows them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

Positions = Mapping[tuple[str, int], int]
"""The next position to read, by source name and partition; what is missing begins at 0."""


@dataclass(frozen=True)
class Move:
    """What the commit of a batch does to one stored offset: from `first`, which it must be, to `next`."""

    source: str
    """A file's absolute path, a topic."""
    partition: int
    first: int
    next: int


@dataclass(frozen=True)
class RawBatch:
    """Records of one partition or of several, in arrival order, as they came. One without records is a tick."""

    moves: tuple[Move, ...]
    data: bytes | pl.DataFrame
    """JSON documents, each on a line of its own that ends in a newline, or a table of records."""
    size: int
    """Number of records."""
    damaged: Mapping[int, str] = field(default_factory=dict)
    """Why a record is no event (the torn end of an archive, a tombstone), by its number in the batch."""
    lanes: npt.NDArray[np.int32] | None = None
    """Which of `moves` each record belongs to; None: all to the first, and their positions are consecutive."""
    positions: npt.NDArray[np.int64] | None = None
    """Each record's position in its partition, where there are `lanes`."""
    written: npt.NDArray[np.int64] | None = None
    """When each record was written to the source, microseconds since 1970; -1 where that is not known."""
    unread: Mapping[tuple[str, int], int] | None = field(default_factory=dict)
    """Records that the source has and that were not read yet, by source name and partition; a partition that is not
    named has none. None: not known yet."""

    @classmethod
    def consecutive(
        cls, source: str, partition: int, first: int, data: bytes | pl.DataFrame, size: int, damage: str | None = None
    ) -> RawBatch:
        """Records of one partition from position `first` on; `damage` is why the last of them is no event."""
        move = Move(source, partition, first, first + size)
        return cls((move,), data, size, {size - 1: damage} if damage else {})

    @property
    def source(self) -> str:
        """Where consecutive records come from."""
        return self.moves[0].source

    @property
    def first(self) -> int:
        """Position of the first record, of consecutive ones."""
        return self.moves[0].first

    @property
    def next(self) -> int:
        """Position after the last record, of consecutive ones."""
        return self.moves[0].next

    def origin(self, record: int) -> tuple[str, int, int]:
        """Source, partition and position of one record."""
        if self.lanes is None or self.positions is None:
            return self.moves[0].source, self.moves[0].partition, self.moves[0].first + record
        move = self.moves[self.lanes[record]]
        return move.source, move.partition, int(self.positions[record])

    def moves_of(self, first: int, upto: int) -> tuple[Move, ...]:
        """What the offsets do when the records [first, upto) alone are committed."""
        if (first, upto) == (0, self.size):
            return self.moves
        return tuple(
            replace(move, first=begin, next=end)
            for lane, move in enumerate(self.moves)
            if (begin := self._reached(lane, first)) < (end := self._reached(lane, upto))
        )

    def _reached(self, lane: int, record: int) -> int:
        """The offset of a lane when all records before `record` are done."""
        move = self.moves[lane]
        if record in (0, self.size):
            return move.first if record == 0 else move.next
        if self.lanes is None or self.positions is None:
            return move.first + record
        later = np.flatnonzero(self.lanes[record:] == lane)
        return int(self.positions[record + later[0]]) if len(later) else move.next

    def after(self, position: int) -> RawBatch | None:
        """The part of consecutive records from `position` on; None where there is nothing left."""
        skip = position - self.first
        if skip <= 0:
            return self
        if skip >= self.size:
            return None
        if isinstance(self.data, pl.DataFrame):
            data: bytes | pl.DataFrame = self.data[skip:]
        else:
            data = self.data[line_ends(self.data)[skip - 1] :]
        damaged = {record - skip: why for record, why in self.damaged.items() if record >= skip}
        moves = (replace(self.moves[0], first=position),)
        return replace(self, moves=moves, data=data, size=self.size - skip, damaged=damaged)


def line_count(data: bytes) -> int:
    """The number of newlines, in a third of the time that `bytes.count` takes."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def line_ends(data: bytes) -> npt.NDArray[np.int64]:
    """The offset after each newline."""
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1


class Source(Protocol):
    """What the pipeline reads."""

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        """Yield batches after `positions` until there are no more or `stop` is set; SourceError where reading fails.

        When the next batch is asked for, the one before it is being committed, and all before that have been. A source
        that waits for the outside world yields a tick now and then, so that the pipeline sees time go by.
        """
        ...
