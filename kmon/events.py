"""The event contract: raw records in, typed events and dead letters out, a whole batch at a time.

A batch that decodes as one is decoded as one. Where a record is broken the batch is halved until the broken ones stand
in small company: only there are records looked at one by one, to say what is wrong with them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from kmon.clock import AROUND, EPOCH, far_ahead, parse_time, to_micros
from kmon.config import Config, EventField, columns_of
from kmon.errors import ConfigError
from kmon.sources import RawBatch
from kmon.store import DeadLetter

KEEP = 65_536
"""Bytes of a rejected record that are kept; its full length is recorded beside them."""
FEW = 1_000
"""Lines that are looked at one by one when one of them is broken."""
LARGEST = 2.0**53
"""A number beyond this is absurd: whole numbers are no longer exact, and sums could overflow."""
POSITION = "#position"
"""The column of an event's position in its source; no field can be called that."""
_REASON = "#reason"
YEAR_1, YEAR_9999 = -62_135_596_800, 253_370_764_800
"""Seconds from 1970 to the beginning of these years."""

_TYPES: dict[str, Callable[[], pl.DataType]] = {
    "string": lambda: pl.Categorical(pl.Categories.random()),  # strict about JSON types, unlike String, and numbered
    "integer": pl.Int64,
    "number": pl.Float64,
    "boolean": pl.Boolean,
    "time": pl.String,  # text or epoch number
}


@dataclass(frozen=True)
class Decoded:
    """A batch of events."""

    source: str
    partition: int
    first: int
    next: int
    """Position after the last record that was decided on."""
    events: pl.DataFrame
    """The fields that are used, `event_time` (UTC without a zone) and POSITION, in order of arrival."""
    dead_letters: list[DeadLetter]


class Decoder:
    """Decodes the batches of one stream according to the configuration.

    Texts that nothing reads are not decoded. `newest` is the newest event time of an earlier run, if there was one.

    >>> from kmon.config import load_config
    >>> decoder = Decoder(load_config("kmon/templates/kmon.yaml"))
    >>> line = b'{"ts": "2026-11-02T10:00:00Z", "operation": "order", "partner": "p1"}'
    >>> decoder.decode(RawBatch("f", 0, 0, 1, line, 1)).events["partner"].to_list()
    ['p1']
    """

    def __init__(
        self,
        config: Config,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        newest: dt.datetime | None = None,
    ) -> None:
        self._events = config.events
        self._now = now
        self._fields = {name: field for name, field in config.events.fields.items() if _is_used(name, field, config)}
        self._paths = {name: (field.path or name).split(".") for name, field in self._fields.items()}
        self._check_paths()
        self._recent = np.array([to_micros(newest - EPOCH)] if newest else [], dtype=np.int64)
        self._held: list[_Typed] = []

    def feed(self, batch: RawBatch | None) -> list[Decoded]:
        """Decode the next batch of the stream; None says that there are no more.

        An event that is far ahead of those before it, with too few after it to tell whether time moved on or it is
        absurd, waits for the next batch with all that follows it; the offset does not move until then.
        """
        if batch is not None:
            self._held.append(self._typed(batch))
        times = np.concatenate([self._recent, *(part.times for part in self._held)])
        known = len(self._recent)
        absurd, decided = self._far_ahead(times, known, final=batch is None)
        decoded, start = [], known
        while self._held:
            part = self._held.pop(0)
            count = min(part.events.height, decided - start)
            done, rest = part.split(count)
            decoded.append(_decided(done, absurd[start : start + count]))
            start += count
            if rest is not None:
                self._held.insert(0, rest)
                break
        self._recent = times[max(0, start - AROUND) : start]
        return [each for each in decoded if each.next > each.first]

    def decode(self, batch: RawBatch) -> Decoded:
        """Decode one batch by itself."""
        part = self._typed(batch)
        return _decided(part, self._far_ahead(part.times, 0, final=True)[0])

    def _far_ahead(self, times: np.typing.NDArray[np.int64], known: int, *, final: bool) -> tuple[Any, int]:
        ahead, now = to_micros(self._events.max_ahead), to_micros(self._now() - EPOCH)
        return far_ahead(times, known, ahead, now, final=final)

    def _typed(self, batch: RawBatch) -> _Typed:
        positions = range(batch.first, batch.next)
        if isinstance(batch.data, bytes):
            frame, letters = self._from_lines(batch.data, positions, batch.damage)
        else:
            frame, letters = self._from_table(batch.data, positions)
        frame, rejected = self._judge(frame)
        part = _Typed(batch, batch.first, batch.next, frame, letters)
        return part.rejecting(rejected)

    # ---- from JSON ---------------------------------------------------------------------------------------------------

    def _from_lines(self, data: bytes, positions: range, damage: str | None) -> tuple[pl.DataFrame, list[DeadLetter]]:
        if damage is None and not _has_longer_line(data, self._events.max_bytes):
            frame = self._parse(data)
            if frame is not None and frame.height == len(positions):
                return frame.with_columns(_column(positions)), []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        letters, kept = [], []
        for position, line in zip(positions, lines, strict=True):  # a pass over lengths, not over events' contents
            if damage is not None and position == positions[-1]:
                letters.append(_letter(position, damage, line))
            elif len(line) > self._events.max_bytes:
                letters.append(_letter(position, _too_long(len(line), self._events.max_bytes), line))
            elif line.strip():
                kept.append((position, line))
        broken = {position: (line, reason) for position, line, reason in self._broken(kept)}
        letters += [_letter(position, reason, line) for position, (line, reason) in broken.items()]
        good = [(position, line) for position, line in kept if position not in broken]
        frame = self._parse(b"\n".join(line for _, line in good))
        if frame is None or not good:
            return self._empty(), letters
        return frame.with_columns(_column([position for position, _ in good])), letters

    def _broken(self, lines: list[tuple[int, bytes]]) -> list[tuple[int, bytes, str]]:
        """The lines that cannot be decoded and why, found by halving; few enough lines are looked at one by one."""
        if not lines:
            return []
        frame = self._parse(b"\n".join(line for _, line in lines))
        if frame is not None and frame.height == len(lines):
            return []
        if len(lines) <= FEW:
            found = [(position, line, why) for position, line in lines if (why := self._diagnose(line)) is not None]
            if found:
                seen = {position for position, _, _ in found}
                return found + self._broken([pair for pair in lines if pair[0] not in seen])
            if len(lines) == 1:
                return [(*lines[0], "not JSON that can be read here")]
        half = len(lines) // 2
        return self._broken(lines[:half]) + self._broken(lines[half:])

    def _parse(self, data: bytes) -> pl.DataFrame | None:
        """The named fields of newline-separated documents, or None if any of them is broken or of a wrong type."""
        try:
            frame = pl.read_ndjson(io.BytesIO(data), schema=self._document())
        except pl.exceptions.PolarsError:
            return None
        frame = frame.select(_field(path).alias(name) for name, path in self._paths.items())
        return None if any(map(_has_wide_number, frame.get_columns())) else frame

    def _document(self) -> dict[str, Any]:
        """The schema of a document; nested paths become structs."""
        tree: dict[str, Any] = {}
        for name, path in self._paths.items():
            node = tree
            for step in path[:-1]:
                node = node.setdefault(step, {})
            node[path[-1]] = _TYPES[self._fields[name].type]()
        return {key: _as_type(value) for key, value in tree.items()}

    def _check_paths(self) -> None:
        taken = {tuple(path): name for name, path in self._paths.items()}
        for path, name in taken.items():
            for i in range(1, len(path)):
                if (other := taken.get(path[:i])) is not None:
                    message = f"events.fields.{name}: the path {'.'.join(path)!r} goes through the field {other!r}"
                    raise ConfigError(message)

    def _empty(self) -> pl.DataFrame:
        schema = {name: _TYPES[field.type]() for name, field in self._fields.items()}
        return pl.DataFrame(schema={**schema, POSITION: pl.Int64()})

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

    # ---- from tables -------------------------------------------------------------------------------------------------

    def _from_table(self, table: pl.DataFrame, positions: range) -> tuple[pl.DataFrame, list[DeadLetter]]:
        """CSV and parquet: cast column by column; what is lost in a cast was of a wrong type."""
        columns = []
        length = pl.sum_horizontal(pl.lit(0), pl.col(pl.String).str.len_bytes())
        reasons = [pl.when(length > self._events.max_bytes).then(pl.lit(_too_long(None, self._events.max_bytes)))]
        for name, field in self._fields.items():
            raw = _table_column(table, field.path or name)
            if raw is None:
                columns.append(pl.lit(None, dtype=_TYPES[field.type]()).alias(name))
                continue
            value = _cast(raw, field).alias(name)
            columns.append(pl.lit(value))
            lost = pl.lit(f"wrong type: {name} is not a {field.type}")
            reasons.append(pl.when(value.is_null() & raw.is_not_null()).then(lost))
        frame = table.select(*columns, _column(positions), pl.coalesce(*reasons).alias(_REASON))
        bad = frame.filter(pl.col(_REASON).is_not_null())
        letters = [
            _letter(position, reason, _row(table, position - positions.start))
            for position, reason in bad.select(POSITION, _REASON).rows()
        ]
        return frame.filter(pl.col(_REASON).is_null()).drop(_REASON), letters

    # ---- what is believable ------------------------------------------------------------------------------------------

    def _judge(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
        """Required fields, allowed values, sane numbers, and the event time with its absolute limits."""
        time = self._events.time
        frame = frame.with_columns(parse_time(frame[time], self._fields[time]).alias("event_time"))
        reasons = [pl.when(pl.col(time).is_null()).then(pl.lit(f"no {time}"))]
        reasons.append(pl.when(pl.col("event_time").is_null()).then(pl.lit(f"no time: {time} cannot be read")))
        latest = (self._now() + self._events.max_ahead).replace(tzinfo=None)
        oldest = dt.datetime.combine(self._events.oldest, dt.time())
        sane = pl.col("event_time").is_between(oldest, latest)
        reasons.append(pl.when(~sane).then(pl.lit("absurd time: out of range")))
        for name, field in self._fields.items():
            value = pl.col(name)
            if field.required and name != time:
                reasons.append(pl.when(value.is_null()).then(pl.lit(f"no {name}")))
            if field.type in ("integer", "number"):
                absurd = pl.lit(f"absurd number: {name} is out of range")
                reasons.append(pl.when(~value.is_between(-LARGEST, LARGEST)).then(absurd))
            if field.values is not None and not _are_all_in(frame[name], field.values):
                shown = pl.format(f"unknown {name}: {{}}", value.cast(pl.String).str.slice(0, 60))
                reasons.append(pl.when(~value.cast(pl.String).is_in(list(field.values))).then(shown))
            if field.type == "time" and name != time:
                frame = frame.with_columns(parse_time(frame[name], field).alias(name))
        why = frame.select(pl.coalesce(*reasons).alias(_REASON)).to_series()
        if why.null_count() == frame.height:
            return frame, []
        return frame.filter(why.is_null()), list(
            zip(frame[POSITION].filter(why.is_not_null()), why.drop_nulls(), strict=True)
        )


@dataclass(frozen=True)
class _Typed:
    """Records [first, next) of a batch whose events are believable one by one."""

    batch: RawBatch
    first: int
    next: int
    events: pl.DataFrame
    letters: list[DeadLetter]

    @property
    def times(self) -> np.typing.NDArray[np.int64]:
        return self.events["event_time"].dt.epoch("us").to_numpy()

    def split(self, count: int) -> tuple[_Typed, _Typed | None]:
        """The part with the first `count` events, and the rest if it has events."""
        if count == self.events.height:
            return self, None
        at = int(self.events[POSITION][count])
        head = replace(self, next=at, events=self.events[:count], letters=[x for x in self.letters if x.position < at])
        tail = [letter for letter in self.letters if letter.position >= at]
        return head, replace(self, first=at, events=self.events[count:], letters=tail)

    def rejecting(self, rejected: Sequence[tuple[int, str]]) -> _Typed:
        """With dead letters for records that `events` has no more."""
        if not rejected:
            return self
        raw = _Raw(self.batch)
        letters = [*self.letters, *(_letter(position, reason, raw.of(position)) for position, reason in rejected)]
        return replace(self, letters=sorted(letters, key=lambda letter: letter.position))


def _decided(part: _Typed, absurd: np.typing.NDArray[np.bool_]) -> Decoded:
    if absurd.any():
        flags = pl.Series(absurd)
        reason = "absurd time: ahead of the events around it"
        part = part.rejecting([(position, reason) for position in part.events.filter(flags)[POSITION]])
        part = replace(part, events=part.events.filter(~flags))
    batch = part.batch
    return Decoded(batch.source, batch.partition, part.first, part.next, part.events, part.letters)


class _Raw:
    """The raw bytes of single records, split only when one is asked for."""

    def __init__(self, batch: RawBatch) -> None:
        self._batch = batch
        self._lines = batch.data.split(b"\n") if isinstance(batch.data, bytes) else []

    def of(self, position: int) -> bytes:
        index = position - self._batch.first
        return self._lines[index] if isinstance(self._batch.data, bytes) else _row(self._batch.data, index)


def _row(table: pl.DataFrame, index: int) -> bytes:
    """A record of a table as JSON, for people: a value that Python cannot hold is left out."""
    record = {}
    for column in table[index]:
        with contextlib.suppress(ValueError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            record[column.name] = column.item()
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")


def _is_used(name: str, field: EventField, config: Config) -> bool:
    """Whether a field is decoded: all but texts that nothing reads."""
    read = {config.events.time, config.events.partition, config.enrich.user_agent, *config.dimensions}
    read |= {column for expression in config.measures.values() for column in columns_of(expression)}
    if config.enrich.user_agent:
        read |= {config.enrich.browser, config.enrich.device}
    return field.type != "string" or field.required or field.values is not None or name in read


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
    return isinstance(column.dtype, pl.Categorical) and bool(_seen(column.dtype).str.starts_with("Static(\n").any())


def _are_all_in(column: pl.Series, values: Sequence[str]) -> bool:
    return isinstance(column.dtype, pl.Categorical) and bool(_seen(column.dtype).is_in(list(values)).all())


def _seen(dtype: pl.Categorical) -> pl.Series:
    """The values that a batch's column was made with, which is sooner had than its distinct values."""
    return dtype.categories.to_series()


def _field(path: list[str]) -> pl.Expr:
    expression = pl.col(path[0])
    for step in path[1:]:
        expression = expression.struct.field(step)
    return expression


def _table_column(table: pl.DataFrame, path: str) -> pl.Series | None:
    """The column of that name, or the field inside a nested one; None where there is none."""
    if path in table.columns:
        column = table[path]
    else:
        try:
            column = table.select(_field(path.split("."))).to_series()
        except pl.exceptions.PolarsError:
            return None
    return column.fill_nan(None) if column.dtype.is_float() else column  # NaN is what pandas writes for nothing


def _letter(position: int, reason: str, line: bytes) -> DeadLetter:
    return DeadLetter(position, reason, len(line), line[:KEEP])


def _too_long(size: int | None, limit: int) -> str:
    return f"too long: {f'{size:,} bytes, ' if size else ''}the limit is {limit:,}"


def _column(positions: Sequence[int]) -> pl.Series:
    if isinstance(positions, range):
        return pl.int_range(positions.start, positions.stop, dtype=pl.Int64, eager=True).alias(POSITION)
    return pl.Series(POSITION, positions, dtype=pl.Int64)


def _as_type(node: Any) -> Any:
    return pl.Struct({key: _as_type(value) for key, value in node.items()}) if isinstance(node, dict) else node


def _not_a_number(name: str) -> float:
    message = f"{name} is not JSON"
    raise ValueError(message)


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


def _cast(raw: pl.Series, field: EventField) -> pl.Series:
    """`raw` as the field's type; null where that loses something."""
    if field.type == "time":
        return _within_years(raw) if raw.dtype in (pl.Datetime, pl.Date) else _strictless(raw, pl.String())
    if field.type == "string":
        return _strictless(_strictless(raw, pl.String()), _TYPES["string"]())
    if field.type == "boolean" and raw.dtype == pl.String:
        known = {"true": True, "false": False}
        return raw.str.to_lowercase().replace_strict(known, default=None, return_dtype=pl.Boolean)
    value = _strictless(raw, _TYPES[field.type]())
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
        return pl.Series(raw.name, [None] * len(raw), dtype=dtype)
