"""What the commands print: tables for people, or JSON and nothing else on standard output."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import polars as pl

Format = Literal["table", "json"]
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def visible(text: object) -> str:
    """Text from outside on one line: control characters and newlines are escaped, other letters stay as they are."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def scope(values: Mapping[str, str]) -> str:
    """A scope for people: ``partner=p17 country=SE``, or ``everything``."""
    return " ".join(f"{dimension}={visible(value)}" for dimension, value in values.items()) or "everything"


def right(text: str) -> Text:
    """A figure with its unit, under others."""
    return Text(visible(text), justify="right")


def number(value: object) -> str:
    """A number for people: thousands separated, at most four digits that matter."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    value = _native(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | Mapping):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _native(value: object) -> object:
    """A decimal, which DuckDB's sums of integers are too, as a number."""
    if not isinstance(value, decimal.Decimal):
        return value
    return int(value) if value == value.to_integral_value() else float(value)


def clock(value: dt.datetime | None) -> str:
    """A UTC time to the second."""
    return "-" if value is None else value.strftime("%Y-%m-%d %H:%M:%S")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None, empty: str = ""
) -> None:
    """Print a table; `empty` is what is said instead of one without rows."""
    if not rows and empty:
        out.print(empty)
        return
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    made.show_header = any(columns)
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float | decimal.Decimal) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(visible(number(v))) if not isinstance(v, Text) else v for v in row))
    out.print(made)


def facts(pairs: Mapping[str, object], *, title: str | None = None) -> None:
    """Print names and values, a line each."""
    table(["", ""], [(Text(key, style="dim"), value) for key, value in pairs.items()], title=title)


def frame(data: pl.DataFrame, format: Format) -> None:
    """Print a query's result."""
    if format == "json":
        print_json(data.to_dicts())
    else:
        table(data.columns, data.rows(), empty="no rows")


def print_json(value: object) -> None:
    """Print JSON; times are RFC 3339 UTC, what is no number is null."""
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    value = _native(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime):
        aware = value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
        return aware.isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, int | str | type(None)) else str(value)


def waiting(what: str) -> AbstractContextManager[object]:
    """A spinner on standard error while something takes seconds; nothing where nobody watches."""
    return err.status(what) if err.is_terminal else nullcontext()


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, which leaves standard output to the result."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as bar:
        yield bar, bar.add_task(what, total=total, note="")
