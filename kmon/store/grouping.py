"""Rolling up before the store sees it: a measure's SQL as a polars expression, where it is of the usual kind.

Polars groups a micro-batch in a third of the time that DuckDB takes (docs/benchmarks.md), as DuckDB's threads wait for
each other on so few rows. What is not translated here is grouped by DuckDB, which gives the same rows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
import sqlglot
from sqlglot import expressions as ast

from kmon.store.schema import Measure

_COMPARISONS: Mapping[type[ast.Expression], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.EQ: operator.eq,
    ast.NEQ: operator.ne,
    ast.LT: operator.lt,
    ast.LTE: operator.le,
    ast.GT: operator.gt,
    ast.GTE: operator.ge,
}
_TYPES = {"BIGINT": pl.Int64(), "DOUBLE": pl.Float64()}


class _OtherSqlError(Exception):
    """Not of the usual kind."""


Kinds = tuple[tuple[str, str], ...]
"""What the columns of some events are: (name, number, text or other)."""


def kinds(events: pl.DataFrame) -> Kinds:
    """The kinds of the columns of `events`."""

    def kind(dtype: pl.DataType) -> str:
        return "number" if dtype.is_numeric() else "text" if isinstance(dtype, pl.Categorical | pl.String) else "other"

    return tuple((name, kind(dtype)) for name, dtype in events.schema.items())


@functools.lru_cache(maxsize=64)
def expressions(measures: tuple[tuple[str, Measure], ...], columns: Kinds) -> list[pl.Expr] | None:
    """An aggregate for each measure over events with such columns; None where one cannot be told in polars."""
    given = dict(columns)
    try:
        return [_measure(measure, given).alias(name) for name, measure in measures]
    except _OtherSqlError:
        return None


def _measure(measure: Measure, given: Mapping[str, str]) -> pl.Expr:
    if measure.type not in _TYPES:
        raise _OtherSqlError
    node: Any = sqlglot.parse_one(measure.expression, dialect="duckdb")
    condition = None
    if isinstance(node, ast.Filter):
        condition = _condition(node.expression.this, given)
        node = node.this
    value = _aggregate(node, condition, given, _TYPES[measure.type])
    return value if isinstance(node, ast.Count) else value.cast(_TYPES[measure.type])


def _aggregate(node: Any, condition: pl.Expr | None, given: Mapping[str, str], type: pl.DataType) -> pl.Expr:
    inner: Any = node.this
    if isinstance(node, ast.Count) and isinstance(inner, ast.Star):
        return pl.len() if condition is None else condition.sum()
    if not isinstance(inner, ast.Column):
        raise _OtherSqlError
    value = _column(inner, given)
    if condition is not None:
        value = pl.when(condition).then(value)
    if isinstance(node, ast.Count):
        return value.count()
    if given[inner.name] != "number":
        raise _OtherSqlError
    if isinstance(node, ast.Sum):  # of nothing it is null in SQL, and 0 in polars
        return pl.when(value.count() > 0).then(value.cast(type).sum())
    if isinstance(node, ast.Min | ast.Max):
        return value.min() if isinstance(node, ast.Min) else value.max()
    raise _OtherSqlError


def _condition(node: Any, given: Mapping[str, str]) -> pl.Expr:
    """A condition in SQL's and polars' common three-valued logic."""
    if isinstance(node, ast.Paren):
        return _condition(node.this, given)
    if isinstance(node, ast.And | ast.Or):
        join = operator.and_ if isinstance(node, ast.And) else operator.or_
        return functools.reduce(join, (_condition(part, given) for part in node.flatten()))
    if isinstance(node, ast.Not):
        return ~_condition(node.this, given)
    if isinstance(node, ast.Is) and isinstance(node.expression, ast.Null):
        return _column(node.this, given).is_null()
    if isinstance(node, ast.In) and node.expressions:
        column = _column(node.this, given)
        return functools.reduce(operator.or_, (column == _literal(e, node.this, given) for e in node.expressions))
    compare = _COMPARISONS.get(type(node))
    if compare is None:
        raise _OtherSqlError
    value = _literal(node.expression, node.this, given)
    text = given[node.this.name] == "text"
    if text and not isinstance(node, ast.EQ | ast.NEQ):  # the order of texts is not the order of their numbers
        raise _OtherSqlError
    return compare(_column(node.this, given), value)


def _column(node: ast.Expression, given: Mapping[str, str]) -> pl.Expr:
    if not isinstance(node, ast.Column) or node.table or node.name not in given:
        raise _OtherSqlError
    if given[node.name] == "other":
        raise _OtherSqlError
    return pl.col(node.name)


def _literal(node: ast.Expression, column: ast.Expression, given: Mapping[str, str]) -> pl.Expr:
    """A literal of the column's own kind; what SQL would convert first is not of the usual kind."""
    if not isinstance(node, ast.Literal) or not isinstance(column, ast.Column) or column.name not in given:
        raise _OtherSqlError
    if node.is_string != (given[column.name] == "text"):
        raise _OtherSqlError
    return pl.lit(str(node.this)) if node.is_string else pl.lit(float(node.this))
