"""What a benchmark says: a figure, what it must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kmon import show


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark."""

    name: str
    value: float | None
    """None: it could not be measured, and `note` says why."""
    unit: str
    limit: float | None = None
    """What `value` must reach or stay under, in the same unit; None: the figure is for information."""
    ratio: float | None = None
    """`value` relative to what it is compared with in the same run: a rival's figure, the bare decode, or the limit."""
    ok: bool | None = None
    """Whether the limit was kept; None where there is none, or no figure."""
    note: str = ""


def reaching(name: str, value: float, unit: str, reference: float, share: float = 1.0, note: str = "") -> Row:
    """A figure that must be at least `share` of `reference`."""
    return Row(name, value, unit, share * reference, value / reference, value >= share * reference, note)


def under(name: str, value: float, unit: str, limit: float, note: str = "") -> Row:
    """A figure that must be less than `limit`."""
    return Row(name, value, unit, limit, value / limit, value < limit, note)


def told(name: str, value: float, unit: str, note: str = "") -> Row:
    """A figure without a limit."""
    return Row(name, value, unit, note=note)


def missing(name: str, unit: str, why: str) -> Row:
    """A figure that could not be had."""
    return Row(name, None, unit, note=why)


def print_rows(rows: Sequence[Row], format: Literal["table", "json", "markdown"], title: str) -> None:
    """Print them as JSON, as a table for people, or as one for ``docs/benchmarks.md``."""
    if format == "json":
        show.print_json([asdict(row) for row in rows])
    elif format == "markdown":
        show.out.print(f"{title}\n\n{markdown(rows)}", markup=False)
    else:
        columns = ["name", "value", "unit", "limit", "ratio", "ok", "note"]
        show.table(columns, [[_shown(row, column) for column in columns] for row in rows], title=title)


def markdown(rows: Sequence[Row]) -> str:
    """The table of the documentation."""
    lines = ["| what | value | unit | limit | ratio | ok | |", "| --- | ---: | --- | ---: | ---: | --- | --- |"]
    lines += [
        f"| {r.name} | {show.number(r.value)} | {r.unit} | {show.number(r.limit)} | {show.number(r.ratio)} |"
        f" {_shown(r, 'ok')} | {r.note} |"
        for r in rows
    ]
    return "\n".join(lines)


def _shown(row: Row, column: str) -> Any:
    value = getattr(row, column)
    return {True: "yes", False: "NO", None: ""}[value] if column == "ok" else value
