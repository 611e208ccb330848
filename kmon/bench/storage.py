"""How many bytes an event takes in each tier, as they lie in the file after a checkpoint."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

from kmon.bench.rows import Row, told, under
from kmon.bench.traffic import KLARNA, Traffic
from kmon.bench.workplace import Options, configured, folder
from kmon.ingest import Ingestion
from kmon.sources.files import FilesSource
from kmon.store import EmbeddedStore
from kmon.store.upkeep import Upkeep

EVENTS = round(3600 * KLARNA)
"""An hour."""
LIMIT = 10.0
_UNIT = "bytes/event"
_FINEST = "rollup_10s"
_LATER = {_FINEST: dt.timedelta(hours=1), "rollup_1m": dt.timedelta(days=1), "rollup_1h": dt.timedelta(days=60)}
"""How much later than the first event it must be for all of them to be in a tier as they stay there."""


def run(options: Options) -> list[Row]:
    """An hour at Klarna's rate comes in, is sorted as its half hours close, and moves down the tiers."""
    with folder() as work:
        config = configured(work, keep={"raw": "30d"})
        count = options.scaled(EVENTS)
        options.say(f"making {count:,} events")
        path = work / "events.ndjson"
        begin = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0) - dt.timedelta(days=1)
        size = Traffic(begin).write(path, count)
        with EmbeddedStore(work / "kmon.duckdb", config) as store:
            upkeep = Upkeep(store, config)
            upkeep.run(begin, begin)  # from here on it sorts
            pipeline = Ingestion(config, store)
            for batch in FilesSource([path]).read({}, threading.Event()):
                pipeline.emit(batch)
                options.say(f"{pipeline.progress.events:,} events")
            pipeline.emit(None)
            rows = [told("as JSON", size / count, _UNIT)]
            whole = _settled(store)["raw_events"]
            if whole["rows"]:
                rows.append(told("whole events, for as long as they are kept", whole["bytes"] / whole["rows"], _UNIT))
            value, note = _found(store, _FINEST)
            rows.append(told(f"{_FINEST}, of a half hour that has not closed", value, _UNIT, note))
            for tier, later in _LATER.items():
                options.say(f"moving into {tier}")
                upkeep.run(begin + later, begin)
                value, note = _found(store, tier)
                rows.append(under(tier, value, _UNIT, LIMIT, note))
    return rows


def _found(store: EmbeddedStore, tier: str) -> tuple[float, str]:
    """Bytes an event of a tier, and what it has."""
    found = _settled(store)["tiers"][tier]
    note = f"{found['rows'] / max(1, found['events']):.2f} rows an event, {found['events']:,} events"
    return found["bytes"] / max(1, found["events"]), note


def _settled(store: EmbeddedStore) -> dict[str, Any]:
    store.connection.execute("CHECKPOINT")
    return store.status()
