"""Replay: recorded events through the same pipeline, with a look each time the watermark passes a step, as if live."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmon.config import Config
from kmon.detect import Shelf
from kmon.ingest import Ingestion, Progress
from kmon.ledger import Ledger
from kmon.sources.files import FilesSource
from kmon.store import EmbeddedStore
from kmon.watch import Watch


@dataclass(frozen=True)
class Summary:
    """What a replay did; the JSON that ``kmon replay --format json`` prints."""

    events: int
    dead_letters: int
    sweeps: int
    incidents: int
    seconds: float

    def public(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    config: Config,
    store: EmbeddedStore,
    ledger: Ledger,
    files: Sequence[str | Path],
    *,
    every: dt.timedelta,
    detect_from: dt.datetime | None = None,
    deliver: bool = False,
    on_progress: Callable[[Progress, dt.datetime | None], None] | None = None,
    stop: threading.Event | None = None,
    shelf: Shelf | None = None,
) -> Summary:
    """Replay `files` in the given order, which is arrival order.

    A sweep is made each time the watermark passes a multiple of `every`, from `detect_from` on. A replay that was
    stopped goes on where it was: what the store has is not read again, and what the ledger has judged is not judged
    again. On the `shelf` is what its sweeps had read, without what came late since: only with it the same is found as
    in one go. Incidents are recorded; alerts go into the outbox only with `deliver`.
    """
    began = time.monotonic()
    watch = Watch(config, store, ledger, deliver=deliver, shelf=shelf)
    last = ledger.last_sweep()
    judged = last.at if last else None
    sweeps = incidents = 0
    latest: dt.datetime | None = None

    def look(at: dt.datetime) -> None:
        nonlocal sweeps, incidents, latest, judged
        latest = at
        if (detect_from and at < detect_from) or (judged and at <= judged):
            return
        incidents += len(watch.look(at).new)
        sweeps, judged = sweeps + 1, at

    ingestion = Ingestion(
        config,
        store,
        step=every,
        on_step=look,
        on_batch=lambda progress: on_progress(progress, latest) if on_progress else None,
    )
    done = ingestion.run(FilesSource(files), stop)
    return Summary(done.events, done.dead_letters, sweeps, incidents, round(time.monotonic() - began, 3))
