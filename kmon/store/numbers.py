"""The numbers that stand for a dimension's values in the rollups."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.coding import PerValue


class Numbers:
    """Numbers for the values of one dimension, from 1 on. New ones are forgotten unless `keep` is called."""

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known  # the new ones are the last
        self._kept = len(known)
        self._per_value = PerValue(self._number)

    def __len__(self) -> int:
        return self._kept

    def __call__(self, column: pl.Series) -> npt.NDArray[np.uint32]:
        return self._per_value(column)

    def find(self, values: Iterable[str]) -> dict[str, int]:
        """The numbers of those of `values` that are in the store."""
        return {value: number for value in values if 0 < (number := self._known.get(value, 0)) <= self._kept}

    def fresh(self) -> pl.DataFrame | None:
        """What the store does not have yet: `id`, `value`; None where it has all."""
        values = self._fresh()
        if not values:
            return None
        ids = pl.int_range(self._kept + 1, len(self._known) + 1, dtype=pl.UInt32, eager=True)
        return pl.DataFrame({"id": ids, "value": pl.Series(values, dtype=pl.String)})

    def keep(self) -> None:
        """The new values are in the store now."""
        self._kept = len(self._known)

    def rollback(self) -> None:
        """The new values did not get into the store."""
        if fresh := self._fresh():
            for value in fresh:
                del self._known[value]
            self._per_value.reset()

    def _fresh(self) -> list[str]:
        """In the order of their numbers."""
        return list(islice(reversed(self._known), len(self._known) - self._kept))[::-1]

    def _number(self, values: pl.Series) -> list[int]:
        known = self._known
        return [known.setdefault(value, len(known) + 1) for value in values.to_list()]
