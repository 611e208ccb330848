"""How long a sweep takes at Klarna's volume, from complete data to incidents in the ledger, and how that grows.

The shipped configuration looks as often as it does live: what the sweep before has read is there. For scale, the bare
grouping sets of the last five minutes and of the same of the day before: what a sweep without memory would have to read
at least.

The store has the hours before now and those of the days that the options say, which is fewer than a year's installation
has (1, 2, 7, 14, 21 and 28): the base grows with every one of them. `silence` looks back over what hours there are.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from kmon.bench import history
from kmon.bench.rows import Row, told, under
from kmon.bench.traffic import KLARNA
from kmon.bench.workplace import Options, configured, folder
from kmon.config import Config
from kmon.detect import Cube, Shelf, read_ahead
from kmon.detect.cube import Base
from kmon.ledger import Ledger
from kmon.store import EmbeddedStore, Span, sql
from kmon.watch import Outcome, Watch

SIZES = {"a fortieth": 0.025, "a quarter": 0.25, "Klarna's volume": 1.0, "two and a half times": 2.5}
"""Times Klarna's partners and events."""
PARTNERS = 500_000
DEAD, BROKEN = "p7", "safari"
"""A large partner of whom nothing comes, and a browser in which nobody orders any more, while it LASTS."""
LEAST = 10.0
"""Events that the shipped detector needs in a window."""
SECONDS, TIMES = 2.0, 3.0
"""What a sweep may take, by itself and of the bare scan."""
T = TypeVar("T")
MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)
CALM, LASTS = 12 * MINUTE, 4 * MINUTE
"""How long sweeps are made before that, in which every width is due, and since then."""


def run(options: Options) -> list[Row]:
    """Every size by itself; the limits are those of Klarna's volume."""
    rows: list[Row] = []
    for name, size in SIZES.items():
        rows += _sized(name, size * options.scale, options, SECONDS if size == 1.0 else None)
    return rows


def _sized(name: str, size: float, options: Options, limit: float | None) -> Iterator[Row]:
    with folder() as work:
        config = configured(work)
        now = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
        path = config.resolve(config.store)
        rate, partners = KLARNA * size, max(100, round(PARTNERS * size))
        history.around(path, config, now, options.say, rate=rate, partners=partners, days=options.days)
        _break(path, config, now)
        with EmbeddedStore(path, config) as store, Ledger.beside(path) as ledger:
            options.say(f"{name}: the bare scan")
            scan = min(_scan(store, config, now) for _ in range(options.repeats))
            options.say(f"{name}: the base")
            begin = now - CALM - LASTS
            shelf = Shelf.of(work / "cubes", store, config)
            cube, base = _timed(lambda: Base.at(store, config, begin, LEAST).read(store, config))
            shelf.put(cube)
            days = f"with day {', '.join(f'-{day}' for day in options.days)}"
            yield told(f"{name}: monitors", len(cube.watched(config)), "", f"of {partners:,} partners; {days}")
            yield told(f"{name}: the base, twice an hour and ahead", base, "s", _memory(cube))
            yield told(f"{name}: the bare scan", scan, "s", "grouping sets of 5 minutes and the same a day before")
            watch = Watch(config, store, ledger, shelf=shelf)
            times = [begin + n * config.every for n in range(1, (now - begin) // config.every + 1)]
            looks = [_look(watch, at, options, name) for at in times[:-1]]
            read_ahead(store, config, times[-2], shelf)  # as the job `prepare` does
            looks.append(_look(watch, now, options, name))
            first_ill = CALM // config.every
            calm, ill = looks[1:first_ill], looks[first_ill:]  # without the first, in which all widths are due
            middle = float(np.median([seconds for _, seconds in calm]))
            longest = max(seconds for _, seconds in calm)
            yield _limited(f"{name}: a sweep, median", middle, limit, f"{len(calm)} sweeps")
            yield _limited(f"{name}: a sweep, longest", longest, limit, "where the longest windows are due")
            if limit is not None:
                yield under(f"{name}: a sweep over the bare scan", middle / scan, "times", TIMES)
            found = [incident for outcome, _ in ill for incident in outcome.new]
            note = "; ".join(f"{i.metric} {i.direction} {i.scope}" for i in found) or "nothing found"
            yield _limited(f"{name}: with two incidents, longest", max(s for _, s in ill), limit, note)
            for part in calm[0][0].parts:
                each = [outcome.parts[part] for outcome, _ in calm]
                yield told(f"{name}: of a sweep, {part}", float(np.mean(each)), "s", f"at most {max(each):.3f}")


def _limited(name: str, value: float, limit: float | None, note: str) -> Row:
    return told(name, value, "s", note) if limit is None else under(name, value, "s", limit, note)


def _look(watch: Watch, at: dt.datetime, options: Options, name: str) -> tuple[Outcome, float]:
    options.say(f"{name}: {at:%H:%M:%S}")
    return _timed(lambda: watch.look(at))


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def _scan(store: EmbeddedStore, config: Config, now: dt.datetime) -> float:
    spans = [Span(n, start - 5 * MINUTE, 1, 5 * MINUTE) for n, start in (("now", now), ("day1", now - DAY))]
    measures = {measure for metric in config.metrics.values() for measure in metric.measures}
    return _timed(lambda: store.windows(spans, config.watch, measures=measures))[1]


def _break(path: Path, config: Config, now: dt.datetime) -> None:
    """Take the events of an outage, and the orders in one browser, out of the last minutes."""
    with EmbeddedStore(path, config) as store:
        lately = f"bucket >= {sql.time(now - LASTS)}"
        partner, browser = store.number("partner", DEAD), store.number("browser", BROKEN)
        store.connection.execute(f"DELETE FROM rollup_10s WHERE {lately} AND partner = {partner}")
        store.connection.execute(f"UPDATE rollup_10s SET orders = 0 WHERE {lately} AND browser = {browser}")


def _memory(cube: Cube) -> str:
    tables = [*cube.today.values(), *(table for day in cube.days.values() for table in day.values.values())]
    return f"{sum(table.nbytes for table in tables) / 2**30:.2f} GiB of memory"
