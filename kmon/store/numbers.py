"""The numbers that stand for a dimension's values in the rollups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.coding import PerValue


class Numbers:
    """Numbers for the values of one dimension, from 1 on. New ones are forgotten unless `keep` is called."""

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known
        self.fresh: dict[str, int] = {}
        self._per_value = PerValue(self._number)

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, column: pl.Series) -> npt.NDArray[np.uint32]:
        return self._per_value(column)

    def keep(self) -> None:
        """The new values are in the store now."""
        self._known.update(self.fresh)
        self.fresh = {}

    def rollback(self) -> None:
        """The new values did not get into the store."""
        if self.fresh:
            self.fresh = {}
            self._per_value.reset()

    def _number(self, values: list[str]) -> list[int]:
        for value in values:
            if value not in self._known and value not in self.fresh:
                self.fresh[value] = len(self._known) + len(self.fresh) + 1
        return [self._known.get(value) or self.fresh[value] for value in values]
