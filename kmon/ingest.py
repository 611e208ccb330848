"""Ingestion: the way of an event from its source into the store.

    source ──► decode ──► enrich ──► clock ──► commit

The elements of the stream are batches, and an error anywhere stops it: what was not committed is read again. A batch is
committed while the next one is decoded, one at a time and in order. Rolling up is part of the commit: deltas, dead
letters, clocks and the offsets are one transaction.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import streamz
import structlog

from kmon.clock import EPOCH, Clock, Lanes, Ticks, floor, to_micros
from kmon.config import Config
from kmon.documents import young_documents
from kmon.enrich import Enricher
from kmon.events import RECORD, Decoded, Decoder
from kmon.sources import RawBatch, Source
from kmon.store import Commit, DeadLetter, EmbeddedStore
from kmon.store.intake import INTAKE, READING
from kmon.store.upkeep import upkeep_thread

log = structlog.get_logger("kmon")
TOLD = 60.0
"""Seconds from one line in the log about rejected records to the next one of the same kind."""


@dataclass(frozen=True)
class Progress:
    """What one run has done so far."""

    events: int = 0
    dead_letters: int = 0
    late: int = 0
    """Events that came after the watermark had passed them; they count all the same."""
    batches: int = 0


class Ingestion:
    """One run of the pipeline into one store.

    `on_step`, if given, is called with each multiple of `step` that the watermark passes, and before any event is
    committed that arrived later and belongs to what was complete by then: a replay sees what a live run saw. It is not
    called for a step without a single event, in which there is nothing to judge. A run that goes on with a store begins
    with the steps in it: whether an earlier run called them is for `on_step` to know. `on_commit` is told the events
    and the seconds of each commit.
    """

    def __init__(
        self,
        config: Config,
        store: EmbeddedStore,
        *,
        step: dt.timedelta | None = None,
        on_step: Callable[[dt.datetime], None] | None = None,
        on_batch: Callable[[Progress], None] | None = None,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        self.progress = Progress()
        self._config, self._store = config, store
        self._clock = Clock(config, store.clocks(), store.unread())
        self._unread = self._clock.unread
        self._step = step if on_step else None
        self._on_step, self._on_batch, self._on_commit = on_step, on_batch, on_commit
        self._passed: dt.datetime | None = None
        self._busy: set[dt.datetime] = set()  # ends of steps with events, until they are passed
        if self._step is not None:
            self._busy = {start + self._step for start in store.busy(self._step)}
        self._untold: Counter[str] = Counter()  # by kind of reason: rejected since the last line in the log
        self._told: dict[str, float] = {}  # by kind of reason: when that was
        self._committer = ThreadPoolExecutor(1, "commit")
        self._committing: Future[None] | None = None
        self._source = streamz.Stream()
        enrich = Enricher(config)
        (
            self._source.map(Decoder(config, newest=store.newest()).feed)
            .flatten()
            .map(lambda decoded: replace(decoded, events=enrich(decoded.events)))
            .map(lambda decoded: (decoded, self._clock.tick(decoded.events, _lanes(decoded), _unread(decoded))))
            .map(lambda pair: list(self._pieces(*pair)))
            .flatten()
            .sink(lambda piece: self._commit(*piece))
        )

    def run(self, source: Source, stop: threading.Event | None = None) -> Progress:
        """Read `source` from the stored positions until it ends or `stop` is set, with the store's upkeep beside."""
        stop = stop or threading.Event()
        with upkeep_thread(self._store, self._config, stop, upto=None if self._step is None else self._looked_at):
            self._run_steps(self._floor(self._clock.watermark))  # an earlier run may have been killed before it did
            self._store.note(READING, json.dumps([str(dt.datetime.now(dt.UTC)), str(self._clock.watermark or "")]))
            try:
                for raw in source.read(self._store.positions(), stop):
                    self._send(raw)
                if not stop.is_set():  # told to stop, what waits for the next batch is read again
                    self._send(None)
                self._wait()
            finally:
                self._committer.shutdown()
        if self._on_batch is not None:
            self._on_batch(self.progress)
        return self.progress

    def emit(self, raw: RawBatch | None) -> None:
        """Send one batch down the pipeline, and wait until it is committed; None says that no more will come."""
        self._send(raw)
        self._wait()

    def _send(self, raw: RawBatch | None) -> None:
        self._source.emit(raw)
        self._run_steps(self._floor(self._clock.watermark))
        if self._on_batch is not None:
            self._on_batch(self.progress)

    def _pieces(self, decoded: Decoded, ticks: Ticks) -> Iterator[tuple[Commit, dt.datetime | None]]:
        """Cut a batch before each event that arrived after its step was complete: (commit, step before it)."""
        cuts = [(0, None), *self._cuts(decoded, ticks)]
        letters = [DeadLetter(*decoded.batch.origin(r.record), r.reason, r.size, r.raw) for r in decoded.rejects]
        records = [reject.record for reject in decoded.rejects]
        for number, (start, step) in enumerate(cuts):
            last = number == len(cuts) - 1
            news = self._news() if last else {}
            end = decoded.events.height if last else cuts[number + 1][0]
            first = decoded.first if number == 0 else int(decoded.events[RECORD][start])
            upto = decoded.next if last else int(decoded.events[RECORD][end])
            commit = Commit(
                decoded.batch.moves_of(first, upto),
                decoded.events[start:end],
                ticks.newest_at(end - 1) if end > start else self._clock.newest if news else {},
                letters[bisect_left(records, first) : bisect_left(records, upto)],
                ticks.late_in(start, end),
                news,
                young_documents(decoded, start, end, self._keep_since()),
                self._intake(decoded, ticks, (start, end), (first, upto)),
            )
            yield commit, step

    def _intake(
        self, decoded: Decoded, ticks: Ticks, events: tuple[int, int], records: tuple[int, int]
    ) -> pl.DataFrame | None:
        """How many of the events and records in these ranges came, by minute, partition and kind of reject."""
        heard, newest = dt.datetime.now(dt.UTC), max(self._clock.newest.values(), default=None)
        times, kinds = _rejects(decoded, records, (newest or heard).replace(tzinfo=None))
        start, end = events
        lanes = pl.Series(ticks.lanes.of[start:end], dtype=pl.UInt32)
        names = pl.Series(ticks.lanes.names, dtype=pl.String).gather(lanes)
        came = pl.DataFrame({"minute": decoded.events["event_time"][start:end], "partition": names, "reason": ""})
        bad = pl.DataFrame({"minute": times, "partition": "", "reason": kinds}, schema_overrides=INTAKE)
        rows = pl.concat([came.cast(bad.schema), bad]).with_columns(pl.col("minute").dt.truncate("1m"))
        counted = rows.group_by("minute", "partition", "reason").agg(records=pl.len())
        return counted.with_columns(heard=pl.lit(heard.replace(tzinfo=None))).select(
            pl.col(name).cast(kind) for name, kind in INTAKE.items()
        )

    def _news(self) -> dict[str, int]:
        """By partition, what is unread where that has changed since it was last asked for."""
        before, self._unread = self._unread, self._clock.unread
        now = {name: self._unread.get(name, 0) for name in before.keys() | self._unread.keys()}
        return {name: count for name, count in now.items() if count != before.get(name, 0)}

    def _keep_since(self) -> dt.datetime:
        """Events from then on are kept whole: by the clock, as a backlog older than that would be gone at once."""
        return dt.datetime.now(dt.UTC) - self._config.keep.raw

    def _cuts(self, decoded: Decoded, ticks: Ticks) -> list[tuple[int, dt.datetime | None]]:
        if self._step is None or not decoded.events.height:
            return []
        width = to_micros(self._step)
        passed = ticks.before // width  # the step that was complete when each event arrived
        done = (self._passed - EPOCH) // self._step if self._passed else np.iinfo(np.int64).min
        times = decoded.events["event_time"].dt.epoch("us").to_numpy()
        too_late = np.flatnonzero((times < passed * width) & (passed > done) & ticks.late)
        steps, first = np.unique(passed[too_late], return_index=True)
        return [(int(too_late[i]), EPOCH + int(s) * self._step) for s, i in zip(steps, first, strict=True)]

    def _commit(self, commit: Commit, step: dt.datetime | None) -> None:
        """Commit in the background, once the commit before has ended."""
        self._wait()
        self._run_steps(step)
        if self._on_step is not None:  # which looks at the store as it was then
            self._write(commit)
        else:
            self._committing = self._committer.submit(self._write, commit)

    def _wait(self) -> None:
        """Until all is committed; raises what the commit raised."""
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.result()

    def _write(self, commit: Commit) -> None:
        if not (commit.moves or commit.events.height or commit.unread):  # a tick that tells nothing new
            return
        began = time.monotonic()
        self._store.commit(commit)
        self._tell(commit.dead_letters)
        if self._on_commit is not None:
            self._on_commit(commit.events.height, time.monotonic() - began)
        if self._step is not None:
            width = to_micros(self._step)
            numbers = np.unique(commit.events["event_time"].dt.epoch("us").to_numpy() // width)
            self._busy |= {EPOCH + (int(n) + 1) * self._step for n in numbers}
        self.progress = Progress(
            self.progress.events + commit.events.height,
            self.progress.dead_letters + len(commit.dead_letters),
            self.progress.late + sum(commit.late.values()),
            self.progress.batches + 1,
        )

    def _tell(self, letters: Sequence[DeadLetter]) -> None:
        """A line in the log for each kind of reason, though not for each record."""
        alike: dict[str, list[DeadLetter]] = defaultdict(list)
        for letter in letters:
            alike[letter.reason.partition(":")[0]].append(letter)
        for kind, (first, *others) in alike.items():
            self._untold[kind] += 1 + len(others)
            if (now := time.monotonic()) - self._told.get(kind, -TOLD) >= TOLD:
                where = {"source": first.source, "partition": first.partition, "position": first.position}
                log.warning("records rejected", reason=kind, records=self._untold.pop(kind), **where)
                self._told[kind] = now

    def _run_steps(self, upto: dt.datetime | None) -> None:
        if self._on_step is None or upto is None:
            return
        passed = sorted(step for step in self._busy if step <= upto)
        self._busy.difference_update(passed)
        for step in passed:
            if self._passed is None or step > self._passed:  # a late event's step has been called before
                self._passed = step
                self._on_step(step)

    def _looked_at(self) -> dt.datetime | None:
        """The newest step: one batch of a file can hold months, and what they were compared with must not go before."""
        return self._passed

    def _floor(self, time: dt.datetime | None) -> dt.datetime | None:
        return None if time is None or self._step is None else floor(time, self._step)


def _lanes(decoded: Decoded) -> Lanes | None:
    """The partition of each event, where the source tells it and not a field of the event."""
    batch = decoded.batch
    if batch.lanes is None:
        return None
    names = [label(move.source, move.partition) for move in batch.moves]
    return Lanes(names, batch.lanes[decoded.events[RECORD].to_numpy()])


def _rejects(decoded: Decoded, records: tuple[int, int], newest: dt.datetime) -> tuple[list[dt.datetime], list[str]]:
    """When the rejected ones of these records came and why they are: the time of the event before each of them.

    `newest` is the newest event of all, which stands for it where the batch has none.
    """
    first, upto = records
    rejects = [reject for reject in decoded.rejects if first <= reject.record < upto]
    if not rejects:
        return [], []
    kinds = [reject.reason.partition(":")[0] for reject in rejects]
    if not decoded.events.height:
        return [newest] * len(rejects), kinds
    before = decoded.events[RECORD].to_numpy().searchsorted([r.record for r in rejects], side="right") - 1
    return decoded.events["event_time"].gather(np.maximum(before, 0)).to_list(), kinds


def _unread(decoded: Decoded) -> dict[str, int] | None:
    unread = decoded.batch.unread
    return None if unread is None else {label(*partition): count for partition, count in unread.items()}


def label(source: str, partition: int) -> str:
    """What the clock calls a partition of a source."""
    return f"{source}/{partition}"
