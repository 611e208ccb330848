"""Things that are computed once for each distinct value of a column, however often the value comes.

The values of a field that has few of them, or the same ones again and again, are kept as numbers for the life of the
process: polars' named categories. What is known of a value is then an array that its number leads into.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

_KEPT: dict[str, pl.Series] = {}
"""A column of each shared type: polars forgets the codes of named categories when the last column goes."""


def shared(name: str) -> pl.DataType:
    """The type of a text column whose values have the same codes in every batch of this process."""
    if name not in _KEPT:
        _KEPT[name] = pl.Series([""]).cast(pl.Categorical(pl.Categories(f"kmon.{name}")))
    return _KEPT[name].dtype


class PerValue:
    """A positive number for each value of a column; 0 where there is none.

    `compute` is asked once for each new value, of many at a time. A column of another type than before begins anew.
    """

    def __init__(self, compute: Callable[[pl.Series], npt.ArrayLike]) -> None:
        self._compute = compute
        self.reset()

    def reset(self) -> None:
        """Ask again for every value."""
        self._categories: pl.Categories | None = None
        self._of = np.zeros(0, dtype=np.uint32)

    def __call__(self, column: pl.Series) -> npt.NDArray[np.uint32]:
        """The number of each row's value."""
        if not isinstance(column.dtype, pl.Categorical):
            column = column.cast(pl.String).cast(pl.Categorical(pl.Categories.random()))
        if column.dtype.categories != self._categories:  # type: ignore[attr-defined]
            self.reset()
            self._categories = column.dtype.categories  # type: ignore[attr-defined]
        codes = column.to_physical()
        if not len(codes) or codes.null_count() == len(codes):
            return np.zeros(len(codes), dtype=np.uint32)
        places = (codes.fill_null(0) if codes.null_count() else codes).to_numpy()
        if (size := int(places.max()) + 1) > len(self._of):
            self._of = np.concatenate([self._of, np.zeros(max(size - len(self._of), len(self._of)), dtype=np.uint32)])
        numbers = self._of[places]
        absent = codes.is_null().to_numpy() if codes.null_count() else None
        unknown = numbers == 0
        if absent is not None:
            unknown &= ~absent
        if unknown.any():
            fresh = column.filter(pl.Series(unknown)).unique()
            self._of[fresh.to_physical().to_numpy()] = self._compute(fresh.cast(pl.String))
            numbers = self._of[places]
        if absent is not None:
            numbers[absent] = 0
        return np.asarray(numbers)
