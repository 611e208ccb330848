"""kmon itself, for Prometheus: what went in, how far behind it is, what was refused, what readers asked.

What the store knows is read from it when Prometheus asks, so that it survives a restart of kmon; the owner's process
adds what only it knows. An address that is taken is told in the log, and stops nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kmon.config import Config
from kmon.errors import StoreError
from kmon.store import Store
from kmon.store.readers import Readers

log = structlog.get_logger("kmon")


class Meters:
    """What the pipeline counts in its own process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter("kmon_events", "Events committed by this process.", registry=registry)
        self._size = Histogram(
            "kmon_batch_events", "Events in a commit.", buckets=[1, 10, 100, 1e3, 1e4, 5e4], registry=registry
        )
        self._seconds = Histogram("kmon_commit_seconds", "How long a commit took.", registry=registry)

    def committed(self, events: int, seconds: float) -> None:
        """One more commit."""
        self._events.inc(events)
        self._size.observe(events)
        self._seconds.observe(seconds)


class FromStore(Collector):
    """What the store and its readers say, read at each scrape."""

    def __init__(self, store: Store, config: Config, readers: Readers | None = None) -> None:
        self._store, self._config, self._readers = store, config, readers

    def collect(self) -> Iterable[Metric]:
        try:
            yield from self._clocks()
            rejected = CounterMetricFamily("kmon_rejected", "Records that are no events.", labels=["reason"])
            for reason, records in self._store.sql("SELECT reason, records FROM rejected ORDER BY 1").rows():
                rejected.add_metric([reason], records)
            yield rejected
            yield GaugeMetricFamily("kmon_store_bytes", "Size of the store's file.", value=self._store.bytes())
        except StoreError as error:  # it is being closed
            log.debug("no metrics from the store", reason=str(error))
        if self._readers is not None:
            queries = CounterMetricFamily("kmon_queries", "What became of readers' questions.", labels=["outcome"])
            for outcome, count in vars(self._readers.tally).items():
                queries.add_metric([outcome], count)
            yield queries

    def _clocks(self) -> Iterable[Metric]:
        now = dt.datetime.now(dt.UTC)
        unread = GaugeMetricFamily("kmon_lag_messages", "Records left to be read.", labels=["partition"])
        behind = GaugeMetricFamily("kmon_lag_seconds", "Age of the newest event.", labels=["partition"])
        late = CounterMetricFamily("kmon_late", "Events after the watermark; they count.", labels=["partition"])
        for partition, newest, n, left in self._store.sql("SELECT partition, newest, late, unread FROM clocks").rows():
            late.add_metric([partition], n or 0)
            if left is not None:
                unread.add_metric([partition], left)
            if newest is not None:
                behind.add_metric([partition], (now - newest.replace(tzinfo=dt.UTC)).total_seconds())
        yield from (unread, behind, late)
        mark = self._store.watermark(self._config.events.lateness, self._config.events.idle)
        if mark is not None:
            told = "Event time up to which the data is complete."
            yield GaugeMetricFamily("kmon_watermark_timestamp_seconds", told, value=mark.timestamp())


@contextlib.contextmanager
def exposing(config: Config, store: Store, readers: Readers | None = None) -> Iterator[Meters]:
    """Answer Prometheus under ``/metrics`` at the configured address while the block runs, if there is one."""
    registry = CollectorRegistry()
    meters = Meters(registry)
    address = config.telemetry
    if address is None:
        yield meters
        return
    registry.register(FromStore(store, config, readers))
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        why = error.strerror or str(error)
        log.warning("no metrics: choose another address as 'telemetry'", at=f"{address.host}:{address.port}", why=why)
        yield meters
        return
    try:
        yield meters
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
