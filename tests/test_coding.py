from __future__ import annotations

import polars as pl

from kmon.coding import PerValue, shared


def lengths(asked: list[str]):
    def compute(values: pl.Series) -> list[int]:
        asked.extend(values)
        return [len(value) for value in values]

    return compute


def test_a_value_is_asked_for_once_however_many_batches_have_it():
    asked: list[str] = []
    per_value = PerValue(lengths(asked))
    dtype = shared("test_coding")
    for batch in (["a", "bbb", None], ["bbb", "cc"], ["a"]):
        found = per_value(pl.Series(batch, dtype=pl.String).cast(dtype)).tolist()
        assert found == [len(value or "") for value in batch]
    assert sorted(asked) == ["a", "bbb", "cc"]


def test_a_column_of_another_type_begins_anew():
    per_value = PerValue(lengths([]))
    assert per_value(pl.Series(["aa", "b"]).cast(shared("test_coding_2"))).tolist() == [2, 1]
    assert per_value(pl.Series(["b", "aa"])).tolist() == [1, 2]


def test_nothing_and_nulls_only():
    per_value = PerValue(lengths([]))
    assert per_value(pl.Series([], dtype=pl.String)).tolist() == []
    assert per_value(pl.Series([None, None], dtype=pl.String)).tolist() == [0, 0]
