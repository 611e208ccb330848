"""How many came of each partner in every ten minutes of the last days, kept on disk, so that a look reads what is new.

    <folder>/arrivals/<dimension>.<digest>/<start>     ten minutes: a byte for each value of the dimension

Ten minutes that are over change by late events only: then they are read again. Any hour that ends at a multiple of ten
minutes is the sum of six of them, so that the store is read once, whichever minute of the hour a look is at. Nothing in
it is needed: what is missing, broken or of another store is read again. It is for large fleets; a small one's days are
read in one question (`Store.silent`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import structlog

from kmon.clock import EPOCH, floor, naive
from kmon.detect.cube import LATE
from kmon.store import Span, Store
from kmon.store.schema import ID

log = structlog.get_logger("kmon")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
SLOT = dt.timedelta(minutes=10)
AN_HOUR = HOUR // SLOT
"""Slots that are asked for at once."""
CHECKED = 2 * DAY
"""So far back it is noticed that events came late: the store knows no further what came when."""
MANY = 15
"""A count that does not fit into half a byte."""
HEAD = 4
"""Numbers at the beginning of a file: values, counts that do not fit, records that had come, the sum of all counts."""
FOLDER, HALF = "arrivals", "half"
"""What the folder is called, and how the names of files begin that are being written."""
FORGOTTEN = DAY.total_seconds()
"""Seconds after which what nobody has written to is of another store or configuration, or was left half written."""


@dataclass(frozen=True)
class Seen:
    """Who is silent at `at`, and the days before."""

    at: dt.datetime
    monitors: pl.DataFrame
    """The numbers of the dimensions."""
    newest: pl.Series
    """Of each monitor the last bucket with events (UTC)."""
    counts: Floats
    """(monitors, hours): hour 0 is the one that ends at `at`."""
    everything: Floats
    """(1, hours): of everybody."""
    tests: int
    """How many have come lately, or are silent."""


@dataclass(frozen=True)
class Slot:
    """What came in ten minutes."""

    packed: npt.NDArray[np.uint8]
    """By number (0: without a value): the minute of the last event, from 1 on, times 16, and the count, up to MANY."""
    keys: npt.NDArray[np.int64]
    """The numbers whose count is not below MANY, in order, or is not whole."""
    counts: Floats
    """Theirs."""
    records: int
    """Of any kind, that had come of these ten minutes before they were read."""
    total: float
    """The count of everybody."""

    @classmethod
    def of(cls, rows: pl.DataFrame, records: int) -> Slot:
        """Of the rows of `Store.arrivals` for one window."""
        rows = rows.sort("number")
        numbers, n, minute = (rows[name].to_numpy() for name in ("number", "n", "minute"))
        packed = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 0, dtype=np.uint8)
        large = (n >= MANY) | (n != np.floor(n))
        packed[numbers] = (minute + 1) * 16 + np.where(large, MANY, n).astype(np.uint8)
        return cls(packed, numbers[large].astype(np.int64), n[large].astype(np.float64), records, float(n.sum()))

    @classmethod
    def read(cls, path: Path) -> Slot:
        """OSError, or ValueError where the file is not whole."""
        with path.open("rb") as file:
            told = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        size, large, records, total = told[: 8 * HEAD].view(np.float64)
        ends = np.cumsum([8 * HEAD, 8 * large, 8 * large, size])
        if len(told) != ends[-1]:
            message = f"{path} is not whole"
            raise ValueError(message)
        keys, counts, packed = (told[int(a) : int(b)] for a, b in itertools.pairwise(ends))
        return cls(packed, keys.view(np.int64), counts.view(np.float64), int(records), float(total))

    def write(self, path: Path) -> None:
        """At once, and so that it is on the disk: a machine that goes down leaves none that is half written."""
        head = np.array([len(self.packed), len(self.keys), self.records, self.total], dtype=np.float64)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=HALF, delete=False) as file:
            file.write(b"".join(part.tobytes() for part in (head, self.keys, self.counts, self.packed)))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)

    def of_rows(self, rows: Ints) -> npt.NDArray[np.uint8]:
        """What is `packed` of some numbers, in order; 0 of those that are newer than it."""
        found = np.zeros(len(rows), dtype=np.uint8)
        known = int(np.searchsorted(rows, len(self.packed)))
        found[:known] = self.packed[rows[:known]]
        return found

    def count(self, rows: Ints) -> Floats:
        """The counts of some numbers, in order."""
        found = (self.of_rows(rows) & MANY).astype(np.float64)
        large = np.flatnonzero(found == MANY)
        found[large] = self.counts[np.searchsorted(self.keys, rows[large])]
        return found


@dataclass(frozen=True)
class Arrivals:
    """Of one dimension's values, by a measure that is a count, in so many whole days."""

    folder: Path
    dimension: str
    measure: str
    hours: int

    @classmethod
    def of(cls, folder: Path, store: Store, dimension: str, measure: str, hours: int) -> Arrivals:
        """In `folder`: of this very store, while what it counts is defined as it is."""
        known = store.schema
        parts = [known.measures[measure], known.since.get(measure), known.since.get(dimension), store.noted(ID)]
        digest = hashlib.sha256(repr((dimension, measure, hours, *parts)).encode()).hexdigest()
        return cls(folder / FOLDER / f"{dimension}.{digest[:16]}", dimension, measure, hours)

    def fill(self, store: Store, at: dt.datetime, most: dt.timedelta) -> bool:
        """Read what is missing of the hours before `at`, the newest first, but not more than `most` of it.

        Returns whether all is there. StoreError where the store does not answer.
        """
        first = self._first(store, at)
        records = store.received_by(max(first, at - CHECKED), at, SLOT)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = {path.name for path in self.folder.iterdir()}
            missing = [
                start for start in _slots(first, at) if _name(start) not in there or self._is_late(start, records)
            ]
            allowed = missing[: most // SLOT]
            for span in _joined(allowed):
                rows = store.arrivals(span, self.dimension, self.measure).partition_by("slot", as_dict=True)
                for number in range(span.count):
                    start = span.start + number * SLOT
                    found = rows.get((number,), pl.DataFrame(schema=_NOTHING))
                    Slot.of(found, records.get(start, 0)).write(self._place(start))
            self._tidy(there, at - self.hours * HOUR - DAY)
        except OSError as error:
            log.warning("what came is not kept", folder=str(self.folder), reason=str(error))
            return False
        return len(allowed) == len(missing)

    def silent(self, store: Store, at: dt.datetime, *, quiet: dt.timedelta, lasting: int, least: float) -> Seen | None:
        """As `Store.silent` at the last SLOT that is over by `at`, without those who have come since.

        None where not all that it takes is there.
        """
        then = floor(at, SLOT)
        slots: dict[int, Slot] = {}
        for start in _slots(self._first(store, then), then):
            if (slot := self._slot(start)) is None:
                return None
            slots[(then - start) // SLOT - 1] = slot
        ago = _minutes_ago(slots, lasting)
        tests = int((ago > 0).sum())
        gone = np.flatnonzero(ago > quiet / dt.timedelta(minutes=1))
        chosen = gone[_usual(slots, gone, (ago[gone] - 1) // 60, self.hours) >= least]
        if then < at:
            came = store.arrivals(Span("since", then, 1, at - then), self.dimension, self.measure)["number"]
            chosen = chosen[~np.isin(chosen, came.to_numpy())]
        counts, everything = np.zeros((len(chosen), self.hours)), np.zeros((1, self.hours))
        for back, slot in slots.items():
            counts[:, back // AN_HOUR] += slot.count(chosen)
            everything[0, back // AN_HOUR] += slot.total
        monitors = pl.DataFrame({self.dimension: pl.Series(chosen, dtype=pl.UInt32)})
        newest = pl.Series([naive(then)]) - pl.Series(ago[chosen] * 60_000_000).cast(pl.Duration("us"))
        return Seen(then, monitors, newest, counts, everything, tests)

    def _first(self, store: Store, at: dt.datetime) -> dt.datetime:
        """Where the first slot of a look at `at` begins; before the first event there is nothing to keep."""
        return max(at - self.hours * HOUR, floor(store.oldest() or at, SLOT))

    def _place(self, start: dt.datetime) -> Path:
        return self.folder / _name(start)

    def _is_late(self, start: dt.datetime, records: Mapping[dt.datetime, int]) -> bool:
        """Whether too much of a slot has come since it was read, or it cannot be read."""
        if start not in records:
            return False
        slot = self._slot(start)
        return slot is None or records[start] - slot.records > LATE * slot.records

    def _slot(self, start: dt.datetime) -> Slot | None:
        """None where there is none that can be used."""
        path = self._place(start)
        try:
            return Slot.read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("what came is read again", file=str(path), reason=str(error))
            path.unlink(missing_ok=True)
            return None

    def _tidy(self, there: Collection[str], before: dt.datetime) -> None:
        """Take away what is older, what a process that was killed has left, and what is nobody's any more."""
        old = time.time() - FORGOTTEN
        for name in there:
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # another process does the same
                if name < _name(before) or (name.startswith(HALF) and path.stat().st_mtime < old):
                    path.unlink()
        for other in self.folder.parent.iterdir():
            if other != self.folder and other.stat().st_mtime < old:
                shutil.rmtree(other, ignore_errors=True)


_NOTHING = pl.Schema({"number": pl.UInt32(), "n": pl.Float64(), "minute": pl.UInt8()})


def _name(start: dt.datetime) -> str:
    """Of the file of a slot."""
    return f"{start.astimezone(dt.UTC):%Y%m%dT%H%M}"


def _slots(first: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    """The starts of the slots in [first, end), which are multiples of SLOT, the newest first."""
    return (end - (back + 1) * SLOT for back in range((end - first) // SLOT))


def _joined(starts: list[dt.datetime]) -> Iterator[Span]:
    """Slots, the newest first, as spans of up to an hour."""
    for _, hour in itertools.groupby(starts, lambda start: (start - EPOCH) // HOUR):
        run: list[dt.datetime] = []
        for start in hour:
            if run and run[-1] - start > SLOT:
                yield Span(FOLDER, run[-1], len(run), SLOT)
                run = []
            run.append(start)
        yield Span(FOLDER, run[-1], len(run), SLOT)


def _minutes_ago(slots: Mapping[int, Slot], lasting: int) -> Ints:
    """By number: how long ago the minute of the last event began; 0 where none came in `lasting` hours."""
    width = int(SLOT.total_seconds() / 60)
    ago = np.zeros(max((len(slot.packed) for slot in slots.values()), default=0), dtype=np.int64)
    left = np.arange(1, len(ago))
    for back in range(lasting * AN_HOUR):
        if back in slots:
            packed = slots[back].of_rows(left)
            came = packed > 0
            ago[left[came]] = (back + 1) * width - (packed[came] // 16).astype(np.int64) + 1
            left = left[~came]
    return ago


def _usual(slots: Mapping[int, Slot], rows: Ints, gap: Ints, hours: int) -> Floats:
    """What came yesterday and on the first of the days, in the hours of which the last `gap` + 1 are silent today."""
    found = np.zeros(len(rows))
    for hour in range(gap.max(initial=-1) + 1):
        mine = np.flatnonzero(gap >= hour)
        backs = [(day + hour) * AN_HOUR + slot for day in {24, hours - 24} for slot in range(AN_HOUR)]
        found[mine] += _sum([slots[back] for back in backs if back in slots], rows[-1] + 1)[rows[mine]]
    return found


def _sum(slots: Sequence[Slot], size: int) -> Floats:
    """By number: the counts of a dozen slots."""
    small = np.zeros(size, dtype=np.uint8)  # in which a dozen half bytes have room
    for slot in slots:
        known = slot.packed[:size]
        small[: len(known)] += known & MANY
    found = small.astype(np.float64)
    for slot in slots:
        large = slot.keys < size
        found[slot.keys[large]] += slot.counts[large] - MANY
    return found
