"""The figures of docs/detection-calendar.md: ``python -m tests.detect.silence_figures null|delay|scale``."""

# ruff: noqa: T201
from __future__ import annotations

import datetime as dt
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kmon.detect import Shelf, Silence
from kmon.detect.arrivals import SLOT
from kmon.detect.silence import History, chance, longest, usual
from kmon.store import EmbeddedStore, Span
from tests.detect.worlds import AT, DAY, config

HOURS = 24 * 8
SHAPE = 1 + 0.8 * np.sin(2 * np.pi * np.arange(24) / 24)
RATES = (0.5, 1, 3, 8, 20)


def arrivals(rate, n, rng, *, spread=0.0, gone=0.0):
    """(hourly counts, hours since the last event) of `n` partners with a daily shape, silent for `gone` hours or more.

    The level of each day is lognormal with a standard deviation of `spread`.
    """
    fine = 20  # parts of an hour
    level = np.exp(spread * rng.standard_normal((n, 8)) - spread**2 / 2)
    start = rng.integers(0, 24, n)
    hour = np.arange(HOURS)
    mean = rate * SHAPE[(start[:, None] - hour) % 24] * level[:, hour // 24]
    events = rng.poisson(np.repeat(mean / fine, fine, axis=1))
    events[:, : round(gone * fine)] = 0
    first = np.argmax(events > 0, axis=1) / fine
    return events.reshape(n, HOURS, fine).sum(axis=2).astype(float), first


def p_values(counts, silent):
    """As the detector says them: (without, with) the rule of the longest silence."""
    m = len(counts)
    given = History(counts, silent, np.ones((m, 7), bool), np.zeros((m, 7), np.int64), np.ones((m, 24)))
    with np.errstate(all="ignore"):
        due = usual(given, silent)
        p = chance(due.expected, due.excess)
        return p, np.where(due.expected > longest(given), p, 1.0)


def null(n=8_000):
    """How often normal partners have a p-value as small as that, as a multiple of what it says."""
    rng = np.random.default_rng(1)
    print("events/h  spread   p<=0.1   0.01  0.001 | longer than ever: 0.01  0.001")
    for rate in RATES:
        for spread in (0.0, 0.3):
            p, told = p_values(*arrivals(rate, n, rng, spread=spread))
            plain = [(p <= a).mean() / a for a in (0.1, 0.01, 0.001)]
            long = [(told <= a).mean() / a for a in (0.01, 0.001)]
            print(
                f"{rate:8} {spread:7} "
                + "".join(f"{x:8.2f}" for x in plain)
                + " |"
                + "".join(f"{x:8.2f}" for x in long)
            )


def delay(n=400):
    """Hours of silence until the p-value is small enough: of a fleet of a hundred partners, and of 400,000."""
    print("events/h   hours until p<=6e-7 (median, 90 %)   until p<=1.6e-10   never in 24 h")
    for rate in RATES[1:]:
        hours = np.arange(1, 24, 0.5)
        p = np.stack([p_values(*arrivals(rate, n, np.random.default_rng(int(10 * h)), gone=h))[1] for h in hours])
        found = []
        for cutoff in (6e-7, 1.6e-10):
            hit = (p <= cutoff).mean(axis=1)
            found += [hours[np.argmax(hit >= q)] if (hit >= q).any() else np.inf for q in (0.5, 0.9)]
        print(f"{rate:8} {found[0]:12} {found[1]:8} {found[2]:18} {found[3]:8} {1 - hit.max():16.2f}")


def scale(share=0.05):
    """A look at 500,000 partners (Zipf), over 8 days of minutes at a share of 96 million rows a day."""
    full = config(windows=["1h"], watch=[["partner"]])
    with tempfile.TemporaryDirectory() as folder:
        path, rows = str(Path(folder) / "kmon.duckdb"), int(96e6 * share)
        with EmbeddedStore(path, full) as store:
            con = store.connection
            con.execute("INSERT INTO dim_partner SELECT i, 'p' || i FROM range(1, 500001) t(i)")
            for day in range(8):
                con.execute(
                    "INSERT INTO rollup_1m (bucket, partner, country, browser, events_, sessions, orders)"
                    f" SELECT TIMESTAMP '2026-01-{day + 2:02} 12:00' + to_minutes(i * 1440 // {rows}) AS bucket,"
                    " least(500000, exp(random() * ln(500000.0)))::UINTEGER AS partner, 1, 1, 1, 1, 0"
                    f" FROM range({rows}) t(i) ORDER BY time_bucket(INTERVAL 1 HOUR, bucket), partner"
                )
            con.execute("CHECKPOINT")
        print(f"{8 * rows:,} rows")
        with EmbeddedStore(path, full) as store:
            looks(store, full, Path(folder))


def looks(store, full, folder):
    """What a look costs without a shelf and with one."""
    shelf, silence, before = Shelf.of(folder / "cubes", store, full), Silence(), AT - dt.timedelta(minutes=10)
    for _ in range(2):
        told("a look without a shelf", lambda: silence.look(store, full, AT))
    for _ in range(4):
        told("two days read ahead", lambda: silence.read_ahead(store, full, before, shelf))
    kept = sum(path.stat().st_size for path in shelf.folder.rglob("*"))
    print(f"{kept / 1e6:,.0f} MB kept")
    hour = Span("an hour", AT - DAY, 6, SLOT)
    told("its largest question, an hour", lambda: store.arrivals(hour, "partner", "sessions"))
    for what in ("the next look", "and again"):
        told(what, lambda: silence.look(store, full, AT, shelf=shelf))


def told(what, work):
    """Say how long some work takes, and of a look how many monitors were judged."""
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    spent = f"{time.perf_counter() - began:.2f} s, {time.process_time() - cpu:.2f} s of processor"
    judged = f"; {found[1].height} judged of {found[2]:,}" if isinstance(found, tuple) else ""
    print(f"{what}: {spent}{judged}", flush=True)


if __name__ == "__main__":
    {"null": null, "delay": delay, "scale": scale}[sys.argv[1]](*map(float, sys.argv[2:]))
