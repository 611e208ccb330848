"""The numbers that stand for a dimension's values in the rollups."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.coding import PerValue


class Numbers:
    """Numbers for the values of one dimension, from 1 on. New ones are forgotten unless `keep` is called."""

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known
        self._fresh: dict[str, int] = {}
        self._per_value = PerValue(self._number)

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, column: pl.Series) -> npt.NDArray[np.uint32]:
        return self._per_value(column)

    def find(self, values: Iterable[str]) -> dict[str, int]:
        """The numbers of those of `values` that are in the store."""
        return {value: self._known[value] for value in values if value in self._known}

    def fresh(self) -> pl.DataFrame | None:
        """What the store does not have yet: `id`, `value`; None where it has all."""
        if not self._fresh:
            return None
        return pl.DataFrame(
            {"id": list(self._fresh.values()), "value": list(self._fresh)}, {"id": pl.UInt32, "value": pl.String}
        )

    def keep(self) -> None:
        """The new values are in the store now."""
        self._known.update(self._fresh)
        self._fresh = {}

    def rollback(self) -> None:
        """The new values did not get into the store."""
        if self._fresh:
            self._fresh = {}
            self._per_value.reset()

    def _number(self, values: list[str]) -> list[int]:
        for value in values:
            if value not in self._known and value not in self._fresh:
                self._fresh[value] = len(self._known) + len(self._fresh) + 1
        return [self._known.get(value) or self._fresh[value] for value in values]
