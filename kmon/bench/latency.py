"""How long an event takes from the producer, through a real Kafka, until a query over Quack sees it."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from kmon.bench import history
from kmon.bench.owner import Owner, kafka_config, owning
from kmon.bench.rows import Row, missing, told, under
from kmon.bench.stream import MARKER, PARTITIONS, TOPIC, Paced, producing
from kmon.bench.traffic import KLARNA
from kmon.bench.workplace import Options, folder
from kmon.errors import KmonError, StoreError
from kmon.store import Store

RATES = (KLARNA, 5_000.0)
SECONDS = 60.0
WARM_UP = 5.0
LIMIT = 1.0
_EVERY = 0.01
_SETTLE = 10.0
_SEEN = (
    f"SELECT DISTINCT d.value FROM cells c JOIN dim_partner d ON d.id = c.partner"
    f" WHERE d.value > '{MARKER}{{after:09d}}' AND d.value < '{MARKER}:'"
)
_ANALYSIS = (
    "SELECT country, browser, payment_method, count(DISTINCT partner), sum(orders), sum(sessions)"
    " FROM rollup GROUP BY ALL ORDER BY 5 DESC"
)
"""What a heavy analyst asks again and again: all of history."""


class Watch:
    """Looks for markers in a store, and remembers when each was first seen, by the machine's monotonic clock."""

    def __init__(self, store: Store) -> None:
        self.seen: dict[int, float] = {}
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store.close()

    def _look(self) -> None:
        after = 0
        while not self._ended.wait(_EVERY):
            found = self._store.sql(_SEEN.format(after=after))
            now = time.monotonic()
            for name in found.to_series():
                self.seen.setdefault(int(name.removeprefix(MARKER)), now)
            while after + 1 in self.seen:
                after += 1

    def latencies(self, produced: dict[int, float], since: float) -> tuple[np.ndarray, int]:
        """Seconds of each marker that was produced after `since`, in order, and how many were never seen."""
        mine = {marker: when for marker, when in sorted(produced.items()) if when >= since}
        found = [self.seen[marker] - when for marker, when in mine.items() if marker in self.seen]
        return np.array(found), len(mine) - len(found)


def run(options: Options) -> list[Row]:
    """At both rates, without and with an analyst who runs full scans one after the other."""
    from kmon.testing.broker import Broker, BrokerUnavailableError

    rows: list[Row] = []
    try:
        for rate in RATES:
            for analyst in (False, True):
                options.say(f"{rate:,.0f} events/s{', with an analyst' if analyst else ''}")
                with folder() as work, Broker.start(work / "kafka") as broker:
                    broker.create_topic(TOPIC, PARTITIONS)
                    rows += measured(options, work, broker.address, rate, analyst=analyst)
    except BrokerUnavailableError as error:
        return [missing("event to query over Quack", "s", str(error))]
    return rows


def measured(options: Options, work: Path, address: str, rate: float, *, analyst: bool) -> Iterator[Row]:
    """One rate, without or with an analyst; `work` is an empty folder, and the topic is new."""
    config = kafka_config(work, address)
    path = config.resolve(config.store)
    if analyst:
        hour = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
        history.make(path, config, hour, options.say, rate=KLARNA * options.scale / 10, hot=0, minutes=2, hours=0)
    warm_up = WARM_UP * min(1.0, options.scale)
    seconds = warm_up + max(1.0, SECONDS * options.scale)
    with owning(config) as owner:
        nobody: AbstractContextManager[list[float]] = contextlib.nullcontext([])
        with (
            Watch(owner.connect()) as watch,
            _analysing(owner) if analyst else nobody as scans,
            producing(address, rate, seconds) as paced,
        ):
            wait(watch, paced)
    begun = min(paced.markers.values(), default=0.0)
    latencies, lost = watch.latencies(paced.markers, begun + warm_up)
    what = f"event to query at {rate:,.0f}/s{', analyst scanning' if analyst else ''}"
    note = f"{len(latencies):,} events looked for"
    if analyst and scans:
        note += f"; {len(scans)} scans, {np.median(scans):.2f} s each"
    if lost or not len(latencies):
        yield missing(what, "s", f"{lost} of the events were never seen")
        return
    yield told(f"{what}, p50", float(np.median(latencies)), "s", note)
    yield under(f"{what}, p99", float(np.quantile(latencies, 0.99)), "s", LIMIT, note)
    yield told(f"{what}, worst", float(latencies.max()), "s", f"the producer was up to {paced.slowest:.3f} s late")


def wait(watch: Watch, paced: Paced) -> None:
    """Until the producer has ended and its last marker was seen, or was not in a while."""
    while not paced.done:
        time.sleep(0.05)
    deadline = time.monotonic() + _SETTLE
    while max(paced.markers, default=0) not in watch.seen and time.monotonic() < deadline:
        time.sleep(0.05)


@contextlib.contextmanager
def _analysing(owner: Owner) -> Iterator[list[float]]:
    """Full scans, one after the other, while the block runs; how long each took."""
    took: list[float] = []
    ended = threading.Event()

    def work() -> None:
        with owner.connect() as store:
            while not ended.is_set():
                begun = time.monotonic()
                with contextlib.suppress(StoreError):  # one that was cancelled took its time too
                    store.sql(_ANALYSIS)
                took.append(time.monotonic() - begun)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join(60)
        if thread.is_alive():
            message = "the analyst's query did not come back within a minute"
            raise KmonError(message)
