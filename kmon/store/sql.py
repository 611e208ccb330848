"""Quoting: the one place where names and values become SQL text, and the errors that SQL text may meet."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

Where = Mapping[str, str | Sequence[str]]
"""Dimension values to keep: one, or any of several."""


def name(identifier: str) -> str:
    """An identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string literal; a NUL byte, which SQL text cannot hold, becomes a call."""
    parts = ["'" + part.replace("'", "''") + "'" for part in value.split("\x00")]
    return parts[0] if len(parts) == 1 else "(" + " || chr(0) || ".join(parts) + ")"


def time(value: dt.datetime) -> str:
    """A timestamp literal in UTC; `value` must be aware."""
    if value.tzinfo is None:
        message = f"{value} has no time zone"
        raise ValueError(message)
    return f"TIMESTAMP '{value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(sep=' ')}'"


def values(rows: Sequence[Sequence[str | int | dt.datetime | None]]) -> str:
    """Rows of literals, to select from."""
    return "(VALUES " + ", ".join(f"({', '.join(map(_literal, row))})" for row in rows) + ")"


def _literal(value: str | int | dt.datetime | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(int(value))
    return text(value) if isinstance(value, str) else time(value)


def dictionary(dimension: str) -> str:
    """The table that numbers a dimension's values."""
    return name(f"dim_{dimension}")


def first_line(error: BaseException) -> str:
    """A database error without its kind and its sketch of the statement."""
    return str(error).splitlines()[0].split("Error: ", 1)[-1]
