"""Time: reading it from text and numbers, when an event's is believed, and up to which the data is complete.

Times in arrays are microseconds since 1970, UTC.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
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
_NEVER = np.iinfo(np.int64).min
_ALWAYS = np.iinfo(np.int64).max


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
class Ticks:
    """What one batch does to the clock, event by event."""

    before: Micros
    """The watermark when each event arrived; the smallest integer where there was none."""
    late: npt.NDArray[np.bool_]
    """Events that were already behind it."""
    newest: dict[str, Micros]
    """By partition: the newest event time up to and including each event."""

    def newest_at(self, index: int) -> dict[str, dt.datetime]:
        """The newest event time of each partition after the first `index` + 1 events."""
        return {p: from_micros(int(times[index])) for p, times in self.newest.items() if times[index] != _NEVER}


class Clock:
    """The newest event time of each partition of the stream, and the watermark that follows from them.

    The watermark is the newest event of the slowest partition less the configured lateness, and never goes back. A
    partition that is further behind the fastest one than `idle` is left out: it has nothing to say, or it is reported
    as lagging.
    """

    def __init__(self, config: Config, newest: Mapping[str, dt.datetime] | None = None) -> None:
        self._field = config.events.partition
        self._lateness = to_micros(config.events.lateness)
        self._idle = to_micros(config.events.idle)
        self._newest = {p: to_micros(time - EPOCH) for p, time in (newest or {}).items()}
        self._mark = int(self._watermark(np.array([list(self._newest.values())], dtype=np.int64).T)[0])

    @property
    def watermark(self) -> dt.datetime | None:
        """Where the watermark is now; None before the first event."""
        return from_micros(self._mark) if self._mark != _NEVER else None

    def tick(self, events: pl.DataFrame) -> Ticks:
        """Move the clock over a batch of events in order of arrival."""
        times = events["event_time"].dt.epoch("us").to_numpy()
        running: dict[str, Micros] = {}
        partitions = self._partitions(events)
        for partition in dict.fromkeys([*self._newest, *partitions.unique(maintain_order=True).to_list()]):
            mine = np.where((partitions == partition).to_numpy(), times, _NEVER)
            running[partition] = np.maximum.accumulate(np.maximum(mine, self._newest.get(partition, _NEVER)))
        after = self._watermark(np.array(list(running.values()), dtype=np.int64).reshape(len(running), len(times)))
        after = np.maximum.accumulate(np.maximum(after, self._mark))
        before = np.concatenate([[self._mark], after])[: len(times)]
        if len(times):
            self._newest = {p: int(line[-1]) for p, line in running.items()}
            self._mark = int(after[-1])
        return Ticks(before, times < before, running)

    def _partitions(self, events: pl.DataFrame) -> pl.Series:
        if self._field is None or self._field not in events.columns:
            return pl.Series(["0"] * events.height, dtype=pl.String)
        return events[self._field].cast(pl.String).fill_null("0")

    def _watermark(self, newest: Micros) -> Micros:
        """(partitions, n) newest times to n watermarks."""
        if not newest.shape[0]:
            return np.full(newest.shape[1], _NEVER)
        fastest = newest.max(axis=0)
        known = newest != _NEVER
        active = known & (newest >= np.where(fastest == _NEVER, _NEVER, fastest - self._idle))
        slowest = np.where(active, newest, _ALWAYS).min(axis=0)
        return np.where(fastest == _NEVER, _NEVER, slowest - self._lateness)


def to_micros(delta: dt.timedelta) -> int:
    return delta // dt.timedelta(microseconds=1)


def from_micros(micros: int) -> dt.datetime:
    return EPOCH + dt.timedelta(microseconds=micros)
