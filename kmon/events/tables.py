"""Tables (csv, parquet), column by column: what is lost when a column is cast was of a wrong type."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

import polars as pl

from kmon.config import EventField
from kmon.events.records import REASON, RECORD, TYPES, Reject, numbered, reject, too_long

YEAR_1, YEAR_9999 = -62_135_596_800, 253_370_764_800
"""Seconds from 1970 to the beginning of these years."""


def read_table(
    table: pl.DataFrame, fields: Mapping[str, EventField], max_bytes: int
) -> tuple[pl.DataFrame, list[Reject]]:
    """The events of a table, with their numbers, and the rows that are none."""
    columns = []
    length = pl.sum_horizontal(pl.lit(0), pl.col(pl.String).str.len_bytes())
    reasons = [pl.when(length > max_bytes).then(pl.lit(too_long(None, max_bytes)))]
    for name, field in fields.items():
        raw, stop = _column(table, field.path or name)
        if raw is None:
            columns.append(pl.lit(None, dtype=TYPES[field.type]()).alias(name))
            continue
        value = (_nothing(raw, TYPES[field.type]()) if stop else _cast(raw, field)).alias(name)
        columns.append(pl.lit(value))
        lost = pl.lit(f"wrong type: {stop} is not an object" if stop else f"wrong type: {name} is not a {field.type}")
        reasons.append(pl.when(value.is_null() & raw.is_not_null()).then(lost))
    frame = table.select(*columns, numbered(range(table.height)), pl.coalesce(*reasons).alias(REASON))
    bad = frame.filter(pl.col(REASON).is_not_null())
    rejects = [
        reject(record, reason, row_as_json(table, record)) for record, reason in bad.select(RECORD, REASON).rows()
    ]
    return frame.filter(pl.col(REASON).is_null()).drop(REASON), rejects


def row_as_json(table: pl.DataFrame, index: int) -> bytes:
    """A record of a table as JSON, for people: a value that Python cannot hold is left out."""
    record = {}
    for column in table[index]:
        with contextlib.suppress(ValueError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            (record[column.name],) = column.to_list()
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")


def _column(table: pl.DataFrame, path: str) -> tuple[pl.Series | None, str]:
    """The column of that name, or the field inside a nested one; None where there is none.

    Where what stands on the way is no object, it and its path; else the path is empty.
    """
    steps = [path] if path in table.columns else path.split(".")
    column = table.get_column(steps[0], default=None)
    for i, step in enumerate(steps[1:], 1):
        if column is None or not isinstance(column.dtype, pl.Struct):
            return column, ".".join(steps[:i])
        known = {field.name for field in column.dtype.fields}
        column = column.struct.field(step) if step in known else None
    if column is not None and column.dtype.is_float():
        column = column.fill_nan(None)  # NaN is what pandas writes for nothing
    return column, ""


def _cast(raw: pl.Series, field: EventField) -> pl.Series:
    """`raw` as the field's type; null where that loses something."""
    if raw.dtype.is_nested():
        return _nothing(raw, TYPES[field.type]())
    if field.type == "time":
        return _within_years(raw) if raw.dtype in (pl.Datetime, pl.Date) else _strictless(raw, pl.String())
    if field.type == "string":
        return _strictless(_strictless(raw, pl.String()), TYPES["string"]())
    if field.type == "boolean" and raw.dtype == pl.String:
        known = {"true": True, "false": False}
        return raw.str.to_lowercase().replace_strict(known, default=None, return_dtype=pl.Boolean)
    value = _strictless(raw, TYPES[field.type]())
    if field.type == "integer" and raw.dtype.is_float():
        return value.set(value.cast(pl.Float64) != raw, None)
    return value.set(~value.is_finite(), None) if field.type == "number" else value


def _within_years(raw: pl.Series) -> pl.Series:
    """A column of times without those that no calendar has, on which other operations would fail."""
    per_second = {"ms": 1e3, "us": 1e6, "ns": 1e9}
    unit = raw.dtype.time_unit if isinstance(raw.dtype, pl.Datetime) else None
    seconds = raw.to_physical() / per_second[unit] if unit else raw.to_physical() * 86400.0
    return raw.set(~seconds.is_between(YEAR_1, YEAR_9999), None)


def _strictless(raw: pl.Series, dtype: pl.DataType) -> pl.Series:
    try:
        return raw.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:  # there is no way from the one type to the other at all
        return _nothing(raw, dtype)


def _nothing(raw: pl.Series, dtype: pl.DataType) -> pl.Series:
    return pl.Series(raw.name, [None] * len(raw), dtype=dtype)
