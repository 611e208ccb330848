"""What the ways of decoding have in common: the types of fields, and the records that are no events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

KEEP = 65_536
"""Bytes of a rejected record that are kept; its full length is recorded beside them."""
RECORD = "#record"
"""The column of an event's number in its batch; no field can be called that."""
REASON = "#reason"

TYPES: dict[str, Callable[[], pl.DataType]] = {
    "string": lambda: pl.Categorical(pl.Categories.random()),  # strict about JSON types, unlike String, and numbered
    "integer": pl.Int64,
    "number": pl.Float64,
    "boolean": pl.Boolean,
    "time": pl.String,  # text or epoch number
}


@dataclass(frozen=True)
class Reject:
    """A record that is no event."""

    record: int
    """Its number in the batch."""
    reason: str
    size: int
    """Length in bytes; `raw` may be cut."""
    raw: bytes


def reject(record: int, reason: str, line: bytes) -> Reject:
    return Reject(record, reason, len(line), line[:KEEP])


def too_long(size: int | None, limit: int) -> str:
    return f"too long: {f'{size:,} bytes, ' if size else ''}the limit is {limit:,}"


def numbered(records: Sequence[int]) -> pl.Series:
    """The column RECORD."""
    if isinstance(records, range):
        return pl.int_range(records.start, records.stop, dtype=pl.Int64, eager=True).alias(RECORD)
    return pl.Series(RECORD, records, dtype=pl.Int64)


def field_at(path: list[str]) -> pl.Expr:
    expression = pl.col(path[0])
    for step in path[1:]:
        expression = expression.struct.field(step)
    return expression
