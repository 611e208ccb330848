"""The event contract: raw records in, typed events and rejects out, a whole batch at a time.

A batch that decodes as one is decoded as one. Where a record is broken the batch is halved until the broken ones stand
in small company: only there are records looked at one by one, to say what is wrong with them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from kmon.clock import AROUND, EPOCH, far_ahead, parse_time, to_micros
from kmon.config import Config, EventField, columns_of
from kmon.errors import ConfigError
from kmon.sources import RawBatch

KEEP = 65_536
"""Bytes of a rejected record that are kept; its full length is recorded beside them."""
FEW = 1_000
"""Lines that are looked at one by one when one of them is broken."""
LARGEST = 2.0**53
"""A number beyond this is absurd: whole numbers are no longer exact, and sums could overflow."""
RECORD = "#record"
"""The column of an event's number in its batch; no field can be called that."""
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
class Reject:
    """A record that is no event."""

    record: int
    """Its number in the batch."""
    reason: str
    size: int
    """Length in bytes; `raw` may be cut."""
    raw: bytes


@dataclass(frozen=True)
class Decoded:
    """The records [first, next) of a batch, decided on."""

    batch: RawBatch
    first: int
    next: int
    events: pl.DataFrame
    """The fields that are used, `event_time` (UTC without a zone) and RECORD, in order of arrival."""
    rejects: list[Reject]


class Decoder:
    """Decodes the batches of one stream according to the configuration.

    Texts that nothing reads are not decoded. `newest` is the newest event time of an earlier run, if there was one.

    >>> from kmon.config import load_config
    >>> decoder = Decoder(load_config("kmon/templates/kmon.yaml"))
    >>> line = b'{"ts": "2026-11-02T10:00:00Z", "operation": "order", "partner": "p1"}'
    >>> decoder.decode(RawBatch.consecutive("f", 0, 0, line, 1)).events["partner"].to_list()
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
        absurd, waits for the next batch with all that follows it; the offset does not move until then. Where the source
        says when its records were written, an event is absurd that is far ahead of that, and nothing waits.
        """
        if batch is not None and (batch.written is not None or not batch.size):
            return [self.decode(batch)]
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
        if batch.written is not None:
            return Decoded(batch, part.first, part.next, part.events, part.rejects)
        return _decided(part, self._far_ahead(part.times, 0, final=True)[0])

    def _far_ahead(self, times: np.typing.NDArray[np.int64], known: int, *, final: bool) -> tuple[Any, int]:
        ahead, now = to_micros(self._events.max_ahead), to_micros(self._now() - EPOCH)
        return far_ahead(times, known, ahead, now, final=final)

    def _typed(self, batch: RawBatch) -> _Typed:
        if isinstance(batch.data, bytes):
            frame, rejects = self._from_lines(batch.data, batch.size, batch.damaged)
        else:
            frame, rejects = self._from_table(batch.data)
        frame, rejected = self._judge(frame, batch.written)
        rejects.sort(key=lambda reject: reject.record)
        return _Typed(batch, 0, batch.size, frame, rejects).rejecting(rejected)

    # ---- from JSON ---------------------------------------------------------------------------------------------------

    def _from_lines(self, data: bytes, size: int, damaged: Mapping[int, str]) -> tuple[pl.DataFrame, list[Reject]]:
        if not damaged and not _has_longer_line(data, self._events.max_bytes):
            frame = self._parse(data)
            if frame is not None and frame.height == size:
                return frame.with_columns(_column(range(size))), []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        rejects, kept = [], []
        for record, line in zip(range(size), lines, strict=True):  # a pass over lengths, not over events' contents
            if record in damaged:
                rejects.append(_reject(record, damaged[record], line))
            elif len(line) > self._events.max_bytes:
                rejects.append(_reject(record, _too_long(len(line), self._events.max_bytes), line))
            elif line.strip():
                kept.append((record, line))
        broken = {record: (line, reason) for record, line, reason in self._broken(kept)}
        rejects += [_reject(record, reason, line) for record, (line, reason) in broken.items()]
        good = [(record, line) for record, line in kept if record not in broken]
        frame = self._parse(b"\n".join(line for _, line in good))
        if frame is None or not good:
            return self._empty(), rejects
        return frame.with_columns(_column([record for record, _ in good])), rejects

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

    # ---- from tables -------------------------------------------------------------------------------------------------

    def _from_table(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[Reject]]:
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
        frame = table.select(*columns, _column(range(table.height)), pl.coalesce(*reasons).alias(_REASON))
        bad = frame.filter(pl.col(_REASON).is_not_null())
        rejects = [
            _reject(record, reason, _row(table, record)) for record, reason in bad.select(RECORD, _REASON).rows()
        ]
        return frame.filter(pl.col(_REASON).is_null()).drop(_REASON), rejects

    # ---- what is believable ------------------------------------------------------------------------------------------

    def _judge(
        self, frame: pl.DataFrame, written: np.typing.NDArray[np.int64] | None
    ) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
        """Required fields, allowed values, sane numbers, and the event time with its absolute limits."""
        time = self._events.time
        frame = frame.with_columns(parse_time(frame[time], self._fields[time]).alias("event_time"))
        reasons = [pl.when(pl.col(time).is_null()).then(pl.lit(f"no {time}"))]
        reasons.append(pl.when(pl.col("event_time").is_null()).then(pl.lit(f"no time: {time} cannot be read")))
        latest = (self._now() + self._events.max_ahead).replace(tzinfo=None)
        oldest = dt.datetime.combine(self._events.oldest, dt.time())
        sane = pl.col("event_time").is_between(oldest, latest)
        reasons.append(pl.when(~sane).then(pl.lit("absurd time: out of range")))
        if written is not None:
            known = pl.Series(written[frame[RECORD].to_numpy()])
            ahead = pl.col("event_time").dt.epoch("us") - known > to_micros(self._events.max_ahead)
            reasons.append(pl.when((known >= 0) & ahead).then(pl.lit("absurd time: ahead of when it was written")))
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
            zip(frame[RECORD].filter(why.is_not_null()), why.drop_nulls(), strict=True)
        )


@dataclass(frozen=True)
class _Typed:
    """Records [first, next) of a batch whose events are believable one by one."""

    batch: RawBatch
    first: int
    next: int
    events: pl.DataFrame
    rejects: list[Reject]

    @property
    def times(self) -> np.typing.NDArray[np.int64]:
        return self.events["event_time"].dt.epoch("us").to_numpy()

    def split(self, count: int) -> tuple[_Typed, _Typed | None]:
        """The part with the first `count` events, and the rest if it has events."""
        if count == self.events.height:
            return self, None
        at = int(self.events[RECORD][count])
        head = replace(self, next=at, events=self.events[:count], rejects=[x for x in self.rejects if x.record < at])
        tail = [reject for reject in self.rejects if reject.record >= at]
        return head, replace(self, first=at, events=self.events[count:], rejects=tail)

    def rejecting(self, rejected: Sequence[tuple[int, str]]) -> _Typed:
        """With the records that `events` has no more among the rejects."""
        if not rejected:
            return self
        raw = _Raw(self.batch)
        rejects = [*self.rejects, *(_reject(record, reason, raw.of(record)) for record, reason in rejected)]
        return replace(self, rejects=sorted(rejects, key=lambda reject: reject.record))


def _decided(part: _Typed, absurd: np.typing.NDArray[np.bool_]) -> Decoded:
    if absurd.any():
        flags = pl.Series(absurd)
        reason = "absurd time: ahead of the events around it"
        part = part.rejecting([(record, reason) for record in part.events.filter(flags)[RECORD]])
        part = replace(part, events=part.events.filter(~flags))
    return Decoded(part.batch, part.first, part.next, part.events, part.rejects)


class _Raw:
    """The raw bytes of single records, split only when one is asked for."""

    def __init__(self, batch: RawBatch) -> None:
        self._batch = batch
        self._lines = batch.data.split(b"\n") if isinstance(batch.data, bytes) else []

    def of(self, record: int) -> bytes:
        return self._lines[record] if isinstance(self._batch.data, bytes) else _row(self._batch.data, record)


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


def _reject(record: int, reason: str, line: bytes) -> Reject:
    return Reject(record, reason, len(line), line[:KEEP])


def _too_long(size: int | None, limit: int) -> str:
    return f"too long: {f'{size:,} bytes, ' if size else ''}the limit is {limit:,}"


def _column(records: Sequence[int]) -> pl.Series:
    if isinstance(records, range):
        return pl.int_range(records.start, records.stop, dtype=pl.Int64, eager=True).alias(RECORD)
    return pl.Series(RECORD, records, dtype=pl.Int64)


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
