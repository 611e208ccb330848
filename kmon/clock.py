"""Time: reading it from text and numbers, when an event's is believed, and up to which the data is complete.

Times in arrays are microseconds since 1970, UTC.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config, EventField

Micros = npt.NDArray[np.int64]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
AROUND = 8
"""So many events before and after one are its company."""
SUPPORT = 3
"""So many of its company must be about as late as an event that is far ahead of others, or it is absurd."""
_USUAL, _USUAL_LENGTH = "%Y-%m-%dT%H:%M:%S.%3fZ", 24
"""Read in half the time of other times in RFC 3339, in a column that has no others."""
_NEVER = np.iinfo(np.int64).min
_ALWAYS = np.iinfo(np.int64).max


def floor(at: dt.datetime, step: dt.timedelta) -> dt.datetime:
    """The last multiple of `step` since 1970 up to `at`."""
    return EPOCH + (at - EPOCH) // step * step


def naive(at: dt.datetime) -> dt.datetime:
    """As the store has times: UTC without a zone."""
    return at.astimezone(dt.UTC).replace(tzinfo=None)


class Laps:
    """How long the parts of some work take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, part: str) -> None:
        """A part ends here; the next one begins."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._began
        self._began = now


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse_time(raw: pl.Series, field: EventField) -> pl.Series:
    """`raw` as UTC without a zone, microseconds; null where it is no time of the field's format.

    A local time that the clocks skip in spring is no time; one that comes twice in autumn is the earlier.
    """
    if raw.dtype.is_temporal():
        return _to_utc(raw.cast(pl.Datetime("us", getattr(raw.dtype, "time_zone", None)), strict=False), field.timezone)
    if field.format in ("epoch_s", "epoch_ms"):
        return _from_epoch(raw.cast(pl.Float64, strict=False), 1_000_000 if field.format == "epoch_s" else 1_000)
    if field.format != "auto":
        return _to_utc(raw.str.to_datetime(field.format, time_unit="us", strict=False), field.timezone)
    stamp = _rfc3339(raw)
    if stamp.null_count() > raw.null_count():
        epoch = _from_epoch(raw.cast(pl.Float64, strict=False), 1_000)
        naive = raw.str.replace(" ", "T", literal=True)
        local = _to_utc(naive.str.strptime(pl.Datetime("us"), "%Y-%m-%dT%H:%M:%S%.f", strict=False), field.timezone)
        stamp = pl.select(pl.coalesce(stamp, epoch, local, _rfc3339(raw.str.to_uppercase()))).to_series()
    return stamp


def _rfc3339(text: pl.Series) -> pl.Series:
    first = text.first(ignore_nulls=True)
    if isinstance(first, str) and len(first) == _USUAL_LENGTH and first.endswith("Z"):
        stamp = text.str.to_datetime(_USUAL, time_unit="us", strict=False, cache=False)  # most times differ
        if stamp.null_count() == text.null_count():
            return stamp
    return text.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False).dt.replace_time_zone(None)


def _from_epoch(number: pl.Series, factor: int) -> pl.Series:
    micros = number * factor
    sane = micros.is_between(-2e17, 2.5e17)  # the years that a timestamp can hold; the limits proper come later
    return pl.select(pl.when(sane).then(micros.cast(pl.Int64, strict=False).cast(pl.Datetime("us")))).to_series()


def _to_utc(stamp: pl.Series, zone: str) -> pl.Series:
    if getattr(stamp.dtype, "time_zone", None) is None:
        stamp = stamp.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return stamp.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


# ---- believing -------------------------------------------------------------------------------------------------------


def far_ahead(times: Micros, known: int, ahead: int, now: int, *, final: bool) -> tuple[npt.NDArray[np.bool_], int]:
    """Which of `times`, in order of arrival, are absurd: one of them would move the watermark past all others.

    An event is absurd that is more than `ahead` microseconds ahead of all but a few of those around it. Where time does
    move on at once, as when a shop opens, the events that follow support the first one. At the end of what is known
    that cannot be told: unless `final`, the number of events that are decided on is returned beside the flags. An event
    of the hour before `now` need not wait: that is what a live source sends after a quiet night. The first `known`
    times were decided on before and are company only.
    """
    count = len(times)
    absurd = np.zeros(count, dtype=bool)
    if count == known or times.max() - times.min() <= ahead:
        return absurd, count
    lowest = _windows(times, _ALWAYS).min(axis=1)
    suspects = np.flatnonzero(times - lowest > ahead)
    suspects = suspects[suspects >= known]
    company = _windows(times, _NEVER)[suspects]
    before = np.sort(company[:, :AROUND], axis=1)
    usual = np.where(before[:, 2] > _NEVER, before[:, -3] - before[:, 2], 0)
    limit = np.maximum(ahead, usual)  # where events are hours apart, some hours are no jump
    support = (company >= (times[suspects] - limit)[:, None]).sum(axis=1) - 1
    following = np.minimum(count - 1 - suspects, AROUND)
    contradicted = (following > 0) | (suspects >= AROUND)
    alone = np.where(following == AROUND, support < SUPPORT, final & (support == 0) & contradicted)
    absurd[suspects[alone]] = True
    present = times[suspects] > now - 3_600_000_000
    waiting = suspects[(following < AROUND) & (support < SUPPORT) & ~present]
    return absurd, count if final or not len(waiting) else int(waiting[0])


def _windows(times: Micros, padding: int) -> Micros:
    """(n, 2 * AROUND + 1): each time amid its company."""
    edge = np.full(AROUND, padding)
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([edge, times, edge]), 2 * AROUND + 1)


# ---- completeness ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lanes:
    """The partition of each event of a batch."""

    names: Sequence[str]
    of: npt.NDArray[np.int32]
    """Index into `names`, by event."""

    def last(self) -> dict[str, int]:
        """The index of the last event of each partition that has one."""
        last = np.full(len(self.names), -1)
        last[self.of] = np.arange(len(self.of))  # of the events of a lane the last one counts
        return {name: index for name, index in zip(self.names, last.tolist(), strict=True) if index >= 0}


@dataclass(frozen=True)
class Ticks:
    """What one batch does to the clock, event by event."""

    lanes: Lanes

    before: Micros
    """The watermark when each event arrived; the smallest integer where there was none."""
    late: npt.NDArray[np.bool_]
    """Events that were already behind it."""
    newest: dict[str, Micros]
    """By partition: the newest event time up to and including each event."""

    def late_in(self, first: int, upto: int) -> dict[str, int]:
        """How many of the events [first, upto) were late, by partition; those without any are left out."""
        counts = np.bincount(self.lanes.of[first:upto][self.late[first:upto]], minlength=len(self.lanes.names))
        return {name: int(n) for name, n in zip(self.lanes.names, counts, strict=True) if n}

    def newest_at(self, index: int) -> dict[str, dt.datetime]:
        """The newest event time of each partition after the first `index` + 1 events."""
        return {p: from_micros(int(times[index])) for p, times in self.newest.items() if times[index] != _NEVER}


class Clock:
    """The newest event time of each partition of the stream, and the watermark that follows from them.

    The watermark is the newest event of the slowest partition less the configured lateness, and never goes back. A
    partition that is further behind the fastest one than `idle` has nothing to say and is left out, unless it has
    records that were not read yet: then it is lagging, and holds the watermark however far behind it is. Nothing is
    complete as long as a lagging partition was never heard of.
    """

    def __init__(
        self,
        config: Config,
        newest: Mapping[str, dt.datetime] | None = None,
        unread: Mapping[str, int] | None = None,
    ) -> None:
        self._field = config.events.partition
        self._lateness = to_micros(config.events.lateness)
        self._idle = to_micros(config.events.idle)
        self._newest = {p: to_micros(time - EPOCH) for p, time in (newest or {}).items()}
        self._unread: dict[str, int] = {}
        self._mark = _NEVER
        self._learn(unread or {}, to_come=[])

    @property
    def watermark(self) -> dt.datetime | None:
        """Where the watermark is now; None before the first event."""
        return from_micros(self._mark) if self._mark != _NEVER else None

    @property
    def newest(self) -> dict[str, dt.datetime]:
        """By partition, the newest event time; of one that was not heard of yet, as far as it holds the watermark."""
        return {partition: from_micros(time) for partition, time in self._newest.items() if time != _NEVER}

    @property
    def unread(self) -> dict[str, int]:
        """How many records of each partition were still to be read when that was last told."""
        return self._unread

    def tick(self, events: pl.DataFrame, lanes: Lanes | None = None, unread: Mapping[str, int] | None = None) -> Ticks:
        """Move the clock over a batch of events in order of arrival.

        `lanes` are their partitions, default what the configured field says: then nobody knows what is still to come of
        a partition. `unread` is how many records of each are still to be read after this batch, default as many as
        before.
        """
        times = events["event_time"].dt.epoch("us").to_numpy()
        count, last = len(times), lanes.last() if lanes else {}
        lanes = lanes or self._lanes_of(events)
        if unread is not None:
            self._learn(unread, to_come=last)
        rows = {partition: row for row, partition in enumerate(dict.fromkeys([*self._newest, *lanes.names]))}
        newest = np.empty((len(rows), count), dtype=np.int64)
        lagging = np.empty((len(rows), count), dtype=bool)
        for partition, row in rows.items():
            newest[row] = self._newest.get(partition, _NEVER)
            lagging[row] = self._unread.get(partition, 0) > 0
        for number, partition in enumerate(lanes.names):
            line = newest[rows[partition]]
            np.maximum(line, times, out=line, where=lanes.of == number)
            np.maximum.accumulate(line, out=line)
            lagging[rows[partition], : last.get(partition, 0)] = True
        mark = self._watermark(newest, lagging)
        after = np.maximum.accumulate(np.maximum(mark, self._mark))
        before = np.concatenate([[self._mark], after])[:count]
        if count:
            self._newest = {partition: int(newest[row, -1]) for partition, row in rows.items()}
            self._mark = int(after[-1])
        return Ticks(lanes, before, times < before, {partition: newest[row] for partition, row in rows.items()})

    def _learn(self, unread: Mapping[str, int], to_come: Iterable[str]) -> None:
        """What is left to be read; a partition that was never heard of holds the watermark where it is.

        `to_come` are partitions that have events in the batch, before which they are not read to their end either.
        """
        self._unread = dict(unread)
        lagging = {*to_come, *(partition for partition, count in unread.items() if count)}
        for partition in lagging - self._newest.keys():
            self._newest[partition] = self._mark + self._lateness if self._mark != _NEVER else _NEVER
        newest = np.array([*self._newest.values()], dtype=np.int64)[:, None]
        held = np.array([p in lagging for p in self._newest], dtype=bool)[:, None]
        self._mark = max(self._mark, int(self._watermark(newest, held)[0]))

    def _lanes_of(self, events: pl.DataFrame) -> Lanes:
        if not events.height:
            return Lanes([], np.empty(0, dtype=np.int32))
        if self._field is None or self._field not in events.columns:
            return Lanes(["0"], np.zeros(events.height, dtype=np.int32))
        labels = events[self._field].cast(pl.String).fill_null("0")
        names = labels.unique(maintain_order=True)
        numbers = pl.Series(range(len(names)), dtype=pl.Int32)
        return Lanes(names.to_list(), labels.replace_strict(names, numbers, return_dtype=pl.Int32).to_numpy())

    def _watermark(self, newest: Micros, lagging: npt.NDArray[np.bool_]) -> Micros:
        """(partitions, n) newest times, and whether more is to come, to n watermarks."""
        if not newest.shape[0]:
            return np.full(newest.shape[1], _NEVER)
        fastest = newest.max(axis=0)
        active = newest >= np.where(fastest == _NEVER, _NEVER, fastest - self._idle)
        active &= newest != _NEVER
        active |= lagging
        slowest = newest.min(axis=0, initial=_ALWAYS, where=active)
        return np.where((fastest == _NEVER) | (slowest == _NEVER), _NEVER, slowest - self._lateness)


def to_micros(delta: dt.timedelta) -> int:
    return delta // dt.timedelta(microseconds=1)


def from_micros(micros: int) -> dt.datetime:
    return EPOCH + dt.timedelta(microseconds=micros)
