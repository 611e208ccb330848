"""Measures: SQL aggregates over an event that can be merged."""

from __future__ import annotations

import typing
from typing import Literal

import sqlglot
from sqlglot import expressions as sql


def merge_function(expression: str) -> Literal["sum", "min", "max"]:
    """The aggregate that merges partial results of a measure's SQL `expression`; ValueError if there is none."""
    outer = _parse(expression)
    if outer.find(sql.Query) is not None:
        message = f"{expression!r} has a query in it: a measure is of one event's fields"
        raise ValueError(message)
    if isinstance(outer, sql.Filter):
        outer = outer.this
    if isinstance(outer, sql.Count | sql.CountIf | sql.Sum) and not list(outer.find_all(sql.Distinct)):
        return "sum"
    if isinstance(outer, sql.Min):
        return "min"
    if isinstance(outer, sql.Max):
        return "max"
    message = f"{expression!r} is not mergeable: a measure is one count, sum, min or max, with an optional FILTER"
    raise ValueError(message)


def is_count(expression: str) -> bool:
    """Whether a measure's SQL `expression` counts events."""
    outer = _parse(expression)
    return isinstance(outer.this if isinstance(outer, sql.Filter) else outer, sql.Count | sql.CountIf)


def columns_of(expression: str) -> list[str]:
    """The event fields that a measure's SQL `expression` reads, in order of appearance."""
    return list(dict.fromkeys(column.name for column in _parse(expression).find_all(sql.Column)))


def comparisons(expression: str) -> list[tuple[str, str]]:
    """The texts that a measure's SQL `expression` compares event fields with: (field, text)."""
    found = []
    for node in _parse(expression).find_all(sql.EQ, sql.NEQ, sql.In):
        literals = [part for part in node.find_all(sql.Literal) if part.is_string]
        if isinstance(node.this, sql.Column):
            found += [(node.this.name, str(literal.this)) for literal in literals]
    return found


def equalities(expression: str) -> dict[str, tuple[str, ...]]:
    """The texts that event fields have in the events that a measure is made of: {field: texts}.

    Nothing where its FILTER says anything else.
    """
    where, found = _parse(expression).find(sql.Where), {}
    if where is None:
        return {}
    for node in where.this.flatten() if isinstance(where.this, sql.And) else [where.this]:
        texts = node.expressions if isinstance(node, sql.In) else [node.args.get("expression")]
        literals = [str(text.this) for text in texts if isinstance(text, sql.Literal) and text.is_string]
        if not isinstance(node, sql.EQ | sql.In) or not isinstance(node.this, sql.Column) or node.this.name in found:
            return {}
        if not literals or len(literals) < len(texts):
            return {}
        found[node.this.name] = tuple(literals)
    return found


def _parse(expression: str) -> sql.Expression:
    try:
        return typing.cast("sql.Expression", sqlglot.parse_one(expression, dialect="duckdb"))
    except sqlglot.errors.SqlglotError as error:
        message = f"{expression!r} is not a SQL expression"
        raise ValueError(message) from error
