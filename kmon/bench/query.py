"""How long questions take of a month at Klarna's volume, while events come in: embedded, and over Quack."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kmon.bench import history
from kmon.bench.owner import kafka_config, owning
from kmon.bench.rows import Row, missing, told, under
from kmon.bench.stream import PARTITIONS, TOPIC, producing
from kmon.bench.traffic import KLARNA, Traffic
from kmon.bench.workplace import Options, configured, folder
from kmon.config import Config
from kmon.ingest import Ingestion
from kmon.sources import Positions, RawBatch
from kmon.store import EmbeddedStore, Store
from kmon.testing.broker import Broker, BrokerUnavailableError

ASKED = 40
LIMIT = 0.05
METRIC = "conversion"
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
PARTNERS = {"large": range(1, 11), "median": range(650, 750), "tiny": range(300_000, 400_000, 997)}
"""Numbers of partners by size: a large one has some percent of all events; half of them are of larger partners than a
median one; a tiny one has some events a day."""
SPANS = {"3 hours": 3 * HOUR, "2 days": 2 * DAY, "30 days": 30 * DAY}
_TICK = 0.1


@dataclass(frozen=True)
class Question:
    """Something that is asked again and again, of another partner each time."""

    name: str
    ask: Callable[[Store, dt.datetime, int], object]
    limit: float | None


def questions() -> Iterator[Question]:
    """Each takes the store, the time of the question, and how often it was asked."""
    for size, numbers in PARTNERS.items():
        for name, span in SPANS.items():
            yield Question(f"series, {size} partner, {name}", _series(numbers, span), LIMIT)
    for size, numbers in PARTNERS.items():
        yield Question(f"breakdown by browser, {size} partner", _breakdown(numbers), LIMIT)
        yield Question(f"top movers by country and browser, {size} partner", _movers(numbers), LIMIT)
    yield Question(
        "breakdown by country, everybody", lambda store, at, _: store.breakdown(METRIC, "country", {}, at, HOUR), None
    )
    yield Question(
        "top movers by partner, everybody", lambda store, at, _: store.top_movers(METRIC, "partner", {}, at, HOUR), None
    )


def run(options: Options) -> list[Row]:
    """The same store twice: embedded in this process, then owned by another one."""
    with folder() as work:
        hour = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
        config = configured(work)
        path = config.resolve(config.store)
        history.make(path, config, hour, options.say, rate=KLARNA * options.scale)
        with EmbeddedStore(path, config) as store:
            cells = int(store.sql("SELECT count(*) FROM cells").item())
            rows = [told("cells in the store", cells, "rows", f"{path.stat().st_size / 2**30:.1f} GiB")]
            with _ingesting(config, store, KLARNA * options.scale):
                rows += _asked("embedded", store, options)
        try:
            rows += _over_quack(work, options)
        except BrokerUnavailableError as error:
            rows.append(missing("over Quack", "s", str(error)))
    return rows


def _over_quack(work: Path, options: Options) -> list[Row]:
    with Broker.start(work / "kafka") as broker:
        broker.create_topic(TOPIC, PARTITIONS)
        with (
            owning(kafka_config(work, broker.address)) as owner,
            producing(broker.address, KLARNA * options.scale, 3600),
            owner.connect() as store,
        ):
            return list(_asked("over Quack", store, options))


def _asked(how: str, store: Store, options: Options) -> Iterator[Row]:
    """Each question in turn, so that a slow moment is everybody's."""
    times = options.scaled(ASKED, least=3)
    everything = list(questions())
    took: Mapping[str, list[float]] = {question.name: [] for question in everything}
    for number in range(times):
        options.say(f"{how}: {number + 1} of {times}")
        for question in everything:
            begun = time.perf_counter()
            question.ask(store, dt.datetime.now(dt.UTC), number)
            took[question.name].append(time.perf_counter() - begun)
    for question in everything:
        name, p95 = f"{question.name}, {how}", float(np.quantile(took[question.name], 0.95))
        note = f"p95; p50 {np.median(took[question.name]) * 1000:.0f} ms"
        yield told(name, p95, "s", note) if question.limit is None else under(name, p95, "s", question.limit, note)


def _series(numbers: range, span: dt.timedelta) -> Callable[[Store, dt.datetime, int], object]:
    return lambda store, at, n: store.series(METRIC, _partner(numbers, n), at - span, at)


def _breakdown(numbers: range) -> Callable[[Store, dt.datetime, int], object]:
    return lambda store, at, n: store.breakdown(METRIC, "browser", _partner(numbers, n), at, HOUR)


def _movers(numbers: range) -> Callable[[Store, dt.datetime, int], object]:
    return lambda store, at, n: store.top_movers(METRIC, ["country", "browser"], _partner(numbers, n), at, HOUR)


def _partner(numbers: range, n: int) -> dict[str, str]:
    return {"partner": f"p{numbers[n * 7 % len(numbers)]}"}


@contextlib.contextmanager
def _ingesting(config: Config, store: EmbeddedStore, rate: float) -> Iterator[None]:
    """Events come into `store` at a rate, in a thread, while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: Ingestion(config, store).run(_Paced(rate), stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Paced:
    """A source of made-up events at a rate."""

    def __init__(self, rate: float) -> None:
        self._traffic = Traffic(dt.datetime.now(dt.UTC), rate)

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        begun, done = time.monotonic(), 0
        while not stop.wait(_TICK):
            due = int((time.monotonic() - begun) * self._traffic.rate)
            if due > done:
                data = self._traffic.lines(done, due - done)
                yield RawBatch.consecutive("bench", 0, done, data, due - done)
                done = due
