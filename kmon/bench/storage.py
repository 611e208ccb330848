"""How many bytes an event takes in each tier, as they lie in the file after a checkpoint."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from kmon.bench.rows import Row, told, under
from kmon.bench.traffic import KLARNA, Traffic
from kmon.bench.workplace import Options, configured, folder
from kmon.ingest import Ingestion
from kmon.sources.files import FilesSource
from kmon.store import EmbeddedStore
from kmon.store.schema import TIERS
from kmon.store.upkeep import Upkeep

EVENTS = round(3600 * KLARNA)
"""An hour."""
LIMIT = 10.0
_UNIT = "bytes/event"
_LATER = {"rollup_1m": dt.timedelta(days=1), "rollup_1h": dt.timedelta(days=60)}
"""How much later than the newest event it must be for all events to have moved into a tier."""


def run(options: Options) -> list[Row]:
    """An hour at Klarna's rate comes in as it would live, and moves down the tiers."""
    with folder() as work:
        config = configured(work, keep={"raw": "30d"})
        count = options.scaled(EVENTS)
        options.say(f"making {count:,} events")
        path = work / "events.ndjson"
        size = Traffic.backlog(count).write(path, count)
        with EmbeddedStore(work / "kmon.duckdb", config) as store:
            pipeline = Ingestion(config, store, on_batch=lambda done: options.say(f"{done.events:,} events"))
            pipeline.run(FilesSource([path]))
            rows = [told("as JSON", size / count, _UNIT)]
            whole = _settled(store)["raw_events"]
            if whole["rows"]:
                rows.append(told("whole events, for as long as they are kept", whole["bytes"] / whole["rows"], _UNIT))
            upkeep = Upkeep(store, config)
            newest = store.newest() or dt.datetime.now(dt.UTC)
            for tier in TIERS:
                if tier in _LATER:
                    options.say(f"moving into {tier}")
                    upkeep.run(newest + _LATER[tier], newest)
                rows += _tier(store, tier)
    return rows


def _tier(store: EmbeddedStore, tier: str) -> Iterator[Row]:
    status = _settled(store)
    found = status["tiers"][tier]
    note = f"{found['rows'] / max(1, found['events']):.2f} rows an event, {found['events']:,} events"
    yield under(tier, found["bytes"] / max(1, found["events"]), _UNIT, LIMIT, note)


def _settled(store: EmbeddedStore) -> dict[str, Any]:
    store.connection.execute("CHECKPOINT")
    return store.status()
