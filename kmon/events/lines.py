"""JSON documents, a line each. A batch that decodes as one is decoded as one.

Where a record is broken the batch is halved until the broken ones stand in small company: only there are records looked
at one by one, to say what is wrong with them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.coding import PerValue, shared
from kmon.config import EventField
from kmon.errors import ConfigError
from kmon.events.records import RECORD, TYPES, Reject, field_at, numbered, reject, too_long

FEW = 1_000
"""Lines that are looked at one by one when one of them is broken."""
TEXT, OTHER = 1, 2
"""What a value is that was read as a text: surely one, or perhaps a number, a boolean, a list or an object."""
_OTHER = r"(?s)^(?:-?\d[\d.eE+-]*|true|false|[\[{].*)$"


class Lines:
    """Decodes the `fields` of documents; those named in `coded` have values that come again and again."""

    def __init__(self, fields: Mapping[str, EventField], coded: set[str], max_bytes: int) -> None:
        self._fields, self._max_bytes = fields, max_bytes
        self._paths = {name: (field.path or name).split(".") for name, field in fields.items()}
        self._check_paths()
        self._coded = {
            name: (shared(name), PerValue(_look_like_text))
            for name, field in fields.items()
            if field.type == "string" and name in coded
        }

    def read(
        self, data: bytes, size: int, damaged: Mapping[int, str], blank: str | None = None
    ) -> tuple[pl.DataFrame, list[Reject]]:
        """The events among `size` lines, with their numbers, and the lines that are none.

        `blank` is what is wrong with a blank line, where it is a record as any other.
        """
        if not damaged and not _has_longer_line(data, self._max_bytes):
            frame = self._parse(data)
            if frame is not None and frame.height == size:
                return frame.with_columns(numbered(range(size))), []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        rejects, kept = [], []
        for record, line in zip(range(size), lines, strict=True):  # a pass over lengths, not over events' contents
            if record in damaged:
                rejects.append(reject(record, damaged[record], line))
            elif len(line) > self._max_bytes:
                rejects.append(reject(record, too_long(len(line), self._max_bytes), line))
            elif line.strip():
                kept.append((record, line))
            elif blank:
                rejects.append(reject(record, blank, line))
        broken = {record: (line, reason) for record, line, reason in self._broken(kept)}
        rejects += [reject(record, reason, line) for record, (line, reason) in broken.items()]
        good = [(record, line) for record, line in kept if record not in broken]
        frame = self._parse(b"\n".join(line for _, line in good))
        if frame is None or not good:
            return self._empty(), rejects
        return frame.with_columns(numbered([record for record, _ in good])), rejects

    def _broken(self, lines: list[tuple[int, bytes]]) -> list[tuple[int, bytes, str]]:
        """The lines that cannot be decoded and why, found by halving; few enough lines are looked at one by one."""
        if not lines:
            return []
        frame = self._parse(b"\n".join(line for _, line in lines))
        if frame is not None and frame.height == len(lines):
            return []
        if len(lines) <= FEW:
            found = [(record, line, why) for record, line in lines if (why := self._diagnose(line)) is not None]
            if found:
                seen = {record for record, _, _ in found}
                return found + self._broken([pair for pair in lines if pair[0] not in seen])
            if len(lines) == 1:
                return [(*lines[0], "not JSON that can be read here")]
        half = len(lines) // 2
        return self._broken(lines[:half]) + self._broken(lines[half:])

    def _parse(self, data: bytes) -> pl.DataFrame | None:
        """The named fields of newline-separated documents, or None if any of them is broken or of a wrong type."""
        for strict in (False, True):
            try:
                frame = pl.read_ndjson(io.BytesIO(data), schema=self._document(strict=strict))
            except pl.exceptions.PolarsError:
                return None
            frame = frame.select(field_at(path).alias(name) for name, path in self._paths.items())
            if any(map(_has_wide_number, frame.get_columns())):
                return None
            frame = frame.with_columns(
                pl.col(name).cast(pl.String).cast(dtype) for name, (dtype, _) in self._coded.items()
            )
            if strict or all((check(frame[name]) <= TEXT).all() for name, (_, check) in self._coded.items()):
                break  # otherwise some text may be a number that polars took for a text
        return frame

    def _document(self, *, strict: bool) -> dict[str, Any]:
        """The schema of a document; nested paths become structs.

        Unless it is `strict`, coded fields are read as texts whatever they are, which is sooner done.
        """
        tree: dict[str, Any] = {}
        for name, path in self._paths.items():
            node = tree
            for step in path[:-1]:
                node = node.setdefault(step, {})
            lenient = name in self._coded and not strict
            node[path[-1]] = pl.String() if lenient else TYPES[self._fields[name].type]()
        return {key: _as_type(value) for key, value in tree.items()}

    def _check_paths(self) -> None:
        taken = {tuple(path): name for name, path in self._paths.items()}
        for path, name in taken.items():
            for i in range(1, len(path)):
                if (other := taken.get(path[:i])) is not None:
                    message = f"events.fields.{name}: the path {'.'.join(path)!r} goes through the field {other!r}"
                    raise ConfigError(message)

    def _empty(self) -> pl.DataFrame:
        schema = {name: TYPES[field.type]() for name, field in self._fields.items()}
        return pl.DataFrame(schema={**schema, RECORD: pl.Int64()})

    def _diagnose(self, line: bytes) -> str | None:
        """Why one line cannot be decoded, in words; None if nothing is wrong with it."""
        try:
            document = json.loads(line.decode("utf-8"), parse_constant=_not_a_number)
        except UnicodeDecodeError:
            return "not UTF-8"
        except (ValueError, RecursionError):
            return "not JSON"
        if not isinstance(document, dict):
            return f"not a JSON object but {_kind(document)}"
        for name, field in self._fields.items():
            value: Any = document
            for i, step in enumerate(self._paths[name]):
                if not isinstance(value, dict):
                    return f"wrong type: {'.'.join(self._paths[name][:i])} is {_kind(value)}, not an object"
                value = value.get(step)
                if value is None:
                    break
            if value is not None and not _fits(value, field):
                return f"wrong type: {name} is {_kind(value)}, not {field.type}"
        return None


def _has_longer_line(data: bytes, limit: int) -> bool:
    """Whether a line is longer than `limit` bytes, without looking at every line."""
    start = 0
    while len(data) - start > limit:
        end = data.rfind(b"\n", start, start + limit + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _has_wide_number(column: pl.Series) -> bool:
    """Whether polars 2.1 took an integer of more than 64 bits for text."""
    if not isinstance(column.dtype, pl.Categorical):
        return False
    return bool(column.dtype.categories.to_series().str.starts_with("Static(\n").any())


def _as_type(node: Any) -> Any:
    return pl.Struct({key: _as_type(value) for key, value in node.items()}) if isinstance(node, dict) else node


def _not_a_number(name: str) -> float:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _look_like_text(values: pl.Series) -> npt.ArrayLike:
    return np.where(values.str.contains(_OTHER).to_numpy(), OTHER, TEXT)


def _kind(value: object) -> str:
    names: dict[type, str] = {bool: "a boolean", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _fits(value: object, field: EventField) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str),
        "integer": isinstance(value, int) and number and -(2**63) <= value < 2**63,
        "number": number,
        "boolean": isinstance(value, bool),
        "time": True,  # whatever it is, it is read as text and judged as a time
    }[field.type]
