"""Where events come from: each source turns the outside world into batches of raw records.

``files`` reads recordings, ``simulate`` makes traffic up. A source is a leaf: it knows nothing of the store; it is told
the positions to start from and yields what follows them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import polars as pl

Positions = Mapping[tuple[str, int], int]
"""The next position to read, by source name and partition; what is missing begins at 0."""


@dataclass(frozen=True)
class RawBatch:
    """Consecutive records of one partition, in arrival order, as they came."""

    source: str
    """What the offset is stored under: a file's absolute path, a topic."""
    partition: int
    first: int
    """Position of the first record."""
    next: int
    """Position after the last record; a batch commits by moving the stored offset from `first` to `next`."""
    data: bytes | pl.DataFrame
    """Newline-terminated JSON documents, or a table of records."""
    size: int
    """Number of records."""
    damage: str | None = None
    """Why the last record is incomplete (a truncated archive), if it is."""

    def after(self, position: int) -> RawBatch | None:
        """The part from `position` on; None where there is nothing left."""
        skip = position - self.first
        if skip <= 0:
            return self
        if skip >= self.size:
            return None
        if isinstance(self.data, pl.DataFrame):
            data: bytes | pl.DataFrame = self.data[skip:]
        else:
            at = 0
            for _ in range(skip):
                at = self.data.index(b"\n", at) + 1
            data = self.data[at:]
        return replace(self, first=position, data=data, size=self.size - skip)


class Source(Protocol):
    """What the pipeline reads."""

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        """Yield batches after `positions` until there are no more or `stop` is set; SourceError where reading fails."""
        ...
