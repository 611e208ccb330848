"""Who the monitors of a cube are: the combinations of values of each grouping set, as numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.errors import UsageError
from kmon.store.schema import EVENTS

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
DIRECT = 2**26
"""Possible combinations up to which each has a place of its own in memory while cells are summed."""


@dataclass(frozen=True)
class Keys:
    """The monitors of each grouping set as numbers: those of a combination's values, put together as digits are."""

    sets: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]
    """By dimension: how many values it had; newer ones are in no monitor."""
    known: tuple[Ints, ...]
    """By set: the keys of its monitors, in ascending order; their rows follow one another."""
    leaves: bool = False
    """Whether the last set, after that of everything together, has every event: what is no monitor is a sum of it."""

    @classmethod
    def of(
        cls,
        sets: tuple[tuple[str, ...], ...],
        sizes: Mapping[str, int],
        parts: Iterable[pl.DataFrame],
        least: float,
        *,
        leaves: bool = False,
    ) -> Keys:
        """The monitors that have `least` events in one of some `parts`; everything together always.

        Of the leaves all that there can be: the others would be missed where one of them comes later.
        """
        empty = cls(sets, sizes, tuple(np.empty(0, dtype=np.int64) for _ in sets), leaves)
        found: list[list[Ints]] = [[] for _ in sets]
        for cells in parts:
            events = cells[EVENTS].to_numpy()
            for number, grouping in enumerate(sets):
                if not empty.is_of_leaves(number):
                    enough = least if grouping else 1
                    found[number].append(_enough(empty.key(cells, number), events, empty.size(grouping), enough))
        if leaves:
            found[-1] = [np.arange(empty.size(sets[-1]))]
        return cls(sets, sizes, tuple(np.unique(np.concatenate(each)) for each in found), leaves)

    @classmethod
    def among(cls, sets: tuple[tuple[str, ...], ...], sizes: Mapping[str, int], monitors: pl.DataFrame) -> Keys:
        """The monitors that a cube of the same sets has."""
        empty = cls(sets, sizes, ())
        found = []
        for number in range(len(sets)):
            key = empty.key(monitors.filter(pl.col("set") == number), number)
            found.append(np.unique(key[key >= 0]))
        return cls(sets, sizes, tuple(found))

    @property
    def firsts(self) -> list[int]:
        """By set: the row of its first monitor; and how many there are."""
        return [0, *np.cumsum([len(known) for known in self.known]).tolist()]

    def size(self, grouping: Sequence[str]) -> int:
        """How many keys a set can have; UsageError where that is more than there are numbers."""
        size = math.prod(self.sizes[d] + 1 for d in grouping)
        if size >= 2**62:
            message = f"there are too many combinations of {', '.join(grouping)} to watch them all"
            raise UsageError(message)
        return size

    def is_of_leaves(self, number: int) -> bool:
        """Whether a set is that of the leaves."""
        return self.leaves and number == len(self.sets) - 1

    def key(self, cells: pl.DataFrame, number: int) -> Ints:
        """Of each row in a set; -1 where an event had no value in a dimension, or one that is new.

        Such a value is 0 in a leaf.
        """
        key = np.zeros(cells.height, dtype=np.int64)
        missing = np.zeros(cells.height, dtype=bool)
        for dimension in self.sets[number]:
            numbers, size = cells[dimension].to_numpy(), self.sizes[dimension]
            named = (numbers > 0) & (numbers <= size)
            key = key * (size + 1) + np.where(named, numbers, 0)
            missing |= ~named
        if not self.is_of_leaves(number):
            key[missing] = -1
        return key

    def places(self, cells: pl.DataFrame, dimensions: Collection[str]) -> Ints | None:
        """The row of the monitor with the values of each of `cells`, -1 where it is none; None without such a set."""
        return next(self._rows(cells, dimensions), None)

    def _rows(self, cells: pl.DataFrame, dimensions: Collection[str]) -> Iterator[Ints]:
        """The same by each set of monitors that groups by these dimensions, in whatever order."""
        for number, (first, grouping) in enumerate(zip(self.firsts, self.sets, strict=False)):
            if {*grouping} == {*dimensions} and not self.is_of_leaves(number):
                place = _places(self.key(cells, number), self.known[number], self.size(grouping))
                yield np.where(place >= 0, first + place, -1)

    def summed(
        self,
        cells: pl.DataFrame,
        measures: Sequence[str],
        slots: int,
        room: int = 0,
        *,
        sets: Collection[int] | None = None,
    ) -> dict[str, Floats]:
        """By measure: (slots and `room` for more, monitors), what `cells` have of each monitor in each slot.

        Of the monitors of some `sets` only, by their numbers; 0 of the others.
        """
        firsts = self.firsts
        slot = cells["slot"].to_numpy().astype(np.int64)
        tables = {m: np.zeros((slots + room, firsts[-1]), _type(cells[m])) for m in measures}
        amounts = {m: cells[m].fill_null(0).to_numpy() for m in measures}
        given = {m: np.flatnonzero(amount) for m, amount in amounts.items()}
        for number, grouping in enumerate(self.sets):
            known = self.known[number]
            if not len(known) or (sets is not None and number not in sets):
                continue
            place = _places(self.key(cells, number), known, self.size(grouping))
            index = np.where(place >= 0, slot * len(known) + place, -1)
            for measure, some in given.items():
                mine = some if len(some) < cells.height else slice(None)
                where, what = index[mine], amounts[measure][mine]
                inside = where >= 0
                sums = np.bincount(where[inside], what[inside], slots * len(known)).reshape(slots, len(known))
                tables[measure][:slots, firsts[number] : firsts[number + 1]] = sums
        return tables

    def monitors(self) -> pl.DataFrame:
        """A row a monitor: `set`, then the dimensions as numbers, null where the set does not group by them."""
        frames = []
        for number, (grouping, key) in enumerate(zip(self.sets, self.known, strict=True)):
            digits, rest = {}, key
            for dimension in reversed(grouping):
                rest, digits[dimension] = np.divmod(rest, self.sizes[dimension] + 1)
            columns = {d: pl.Series(d, digits[d] if d in digits else [None] * len(key), pl.UInt32) for d in self.sizes}
            frames.append(
                pl.DataFrame({"set": pl.Series([number], dtype=pl.Int32).new_from_index(0, len(key)), **columns})
            )
        return pl.concat(frames)

    def rows_of(self, numbers: Mapping[str, int]) -> list[int]:
        """The rows of the monitors with these values, one for each set that groups by their dimensions."""
        cell = pl.DataFrame({"set": [0], **{dimension: [number] for dimension, number in numbers.items()}})
        return [int(row) for (row,) in self._rows(cell, numbers.keys()) if row >= 0]


def _enough(key: Ints, events: Floats, size: int, least: float) -> Ints:
    """The keys that have `least` events."""
    events, key = events[key >= 0], key[key >= 0]
    if size <= DIRECT:
        return np.flatnonzero(np.bincount(key, events, size) >= least)
    sums = pl.DataFrame({"key": key, "events": events}).group_by("key").agg(pl.col("events").sum())
    return sums.filter(pl.col("events") >= least)["key"].sort().to_numpy()


def _places(key: Ints, known: Ints, size: int) -> Ints:
    """Of each key its place among those that are known; -1 where it is not."""
    if not len(known):
        return np.full(len(key), -1)
    if size <= min(DIRECT, 8 * len(key)):  # a table of all keys is faster than to search for each of many
        table = np.full(size + 1, -1, dtype=np.int32)
        table[known] = np.arange(len(known))
        return table[key].astype(np.int64)  # the last one is that of -1
    place = np.minimum(np.searchsorted(known, key), len(known) - 1)
    return np.where(known[place] == key, place, -1)


def _type(amounts: pl.Series) -> type[np.floating[Any]]:
    """Counts as numbers of half the size, which are exact up to 16 million."""
    return np.float32 if amounts.dtype.is_integer() else np.float64
