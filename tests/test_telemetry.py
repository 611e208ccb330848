"""What Prometheus reads, over HTTP."""

from __future__ import annotations

import socket
import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from kmon.config import Telemetry
from kmon.ingest import Ingestion
from kmon.sources import RawBatch
from kmon.telemetry import exposing
from kmon.testing import free_port
from tests.test_ingest import batch, line


def scraped(port: int) -> dict[tuple[str, str], float]:
    """(name, the first label's value) to value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, next(iter(s.labels.values()), "")): s.value for family in families for s in family.samples}


def test_prometheus_reads_what_went_in_and_what_is_left(config, store):
    config = config.model_copy(update={"telemetry": Telemetry(port=free_port())})
    with exposing(config, store) as meters:
        run = Ingestion(config, store, on_commit=meters.committed)
        run.emit(batch(line(0), b"junk\n", line(100), line(20), b'{"ts": 5, "operation": "x"}\n'))
        run.emit(RawBatch((), b"", 0, unread={("t", 3): 17}))
        found = scraped(config.telemetry.port)
    assert found["kmon_events_total", ""] == 3
    assert found["kmon_rejected_total", "not JSON"] == 1
    assert found["kmon_late_total", "0"] == 1
    assert found["kmon_lag_messages", "t/3"] == 17
    assert found["kmon_lag_seconds", "0"] > 0
    assert (
        found["kmon_watermark_timestamp_seconds", ""]
        == store.watermark(config.events.lateness, config.events.idle).timestamp()
    )
    assert found["kmon_commit_seconds_count", ""] == 2
    assert found["kmon_store_bytes", ""] == store.bytes()


def test_an_address_that_is_taken_is_told_and_stops_nothing(config, store):
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as logs:
        port = taken.getsockname()[1]
        with exposing(config.model_copy(update={"telemetry": Telemetry(port=port)}), store) as meters:
            meters.committed(1, 0.1)
    assert [entry["event"] for entry in logs] == ["no metrics: choose another address as 'telemetry'"]


def test_without_an_address_nothing_is_exposed(config, store):
    assert config.telemetry is None
    with exposing(config, store) as meters:
        meters.committed(1, 0.1)
