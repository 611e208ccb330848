"""From a raw batch to typed events that can be believed, and records that are none."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from kmon.clock import AROUND, EPOCH, far_ahead, parse_time, to_micros
from kmon.coding import PerValue
from kmon.config import Config, EventField, columns_of
from kmon.events.lines import Lines
from kmon.events.records import REASON, RECORD, Reject, reject
from kmon.events.tables import read_table, row_as_json
from kmon.sources import RawBatch

BLANK = "blank: a message of white space"
LARGEST = 2.0**53
"""A number beyond this is absurd: whole numbers are no longer exact, and sums could overflow."""


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
        coded = {*config.dimensions, *(name for name, field in self._fields.items() if field.values is not None)}
        self._allowed = {
            name: PerValue(_places(field.values)) for name, field in self._fields.items() if field.values is not None
        }
        self._lines = Lines(self._fields, coded, config.events.max_bytes)
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
            blank = None if batch.lanes is None else BLANK
            frame, rejects = self._lines.read(batch.data, batch.size, batch.damaged, blank)
        else:
            frame, rejects = read_table(batch.data, self._fields, self._events.max_bytes)
        frame, rejected = self._judge(frame, batch.written)
        rejects.sort(key=lambda reject: reject.record)
        return _Typed(batch, 0, batch.size, frame, rejects).rejecting(rejected)

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
            if field.values is not None and (self._allowed[name](frame[name]) > len(field.values)).any():
                shown = pl.format(f"unknown {name}: {{}}", value.cast(pl.String).str.slice(0, 60))
                reasons.append(pl.when(~value.cast(pl.String).is_in(list(field.values))).then(shown))
            if field.type == "time" and name != time:
                frame = frame.with_columns(parse_time(frame[name], field).alias(name))
        why = frame.select(pl.coalesce(*reasons).alias(REASON)).to_series()
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
        rejects = [*self.rejects, *(reject(record, reason, raw.of(record)) for record, reason in rejected)]
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
        return self._lines[record] if isinstance(self._batch.data, bytes) else row_as_json(self._batch.data, record)


def _is_used(name: str, field: EventField, config: Config) -> bool:
    """Whether a field is decoded: all but texts that nothing reads."""
    read = {config.events.time, config.events.partition, config.enrich.user_agent, *config.dimensions}
    read |= {column for expression in config.measures.values() for column in columns_of(expression)}
    if config.enrich.money is not None:
        read.add(config.enrich.money.currency)
    if config.enrich.user_agent:
        read |= {config.enrich.browser, config.enrich.device}
    return field.type != "string" or field.required or field.values is not None or name in read


def _places(allowed: Sequence[str]) -> Callable[[pl.Series], list[int]]:
    """What numbers values by their places in `allowed`, and all others by the one after the last."""
    places = {value: place for place, value in enumerate(allowed, start=1)}
    return lambda values: [places.get(value, len(allowed) + 1) for value in values.to_list()]
