"""The figures of docs/detection-series.md about the sweep: ``python -m tests.detect.adapted_figures null|cost``."""

# ruff: noqa: T201
from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kmon.detect import Surprise
from kmon.detect.adapted import Adapted
from kmon.detect.models import A_DAY
from kmon.detect.past import Past, chosen
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, DAY, config

LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)


def null(series: float = 60) -> None:
    """How often normal counts have a p-value as small as that, as a multiple of what it says: in 60 days after 28."""
    rng = np.random.default_rng(1)
    n = 88 * A_DAY
    times = 1_700_006_400.0 + 300.0 * np.arange(n)
    shape = 1 + 0.6 * np.sin(2 * np.pi * np.arange(n) / A_DAY)
    print("events a step  noise               " + "".join(f"p<={level:<8g}" for level in LEVELS))
    for level in (5.0, 30.0, 300.0):
        for name, spread in (("Poisson", 0.0), ("negative binomial", 0.1)):
            found = []
            for _ in range(int(series)):
                mean = level * shape * (rng.gamma(1 / spread, spread, n) if spread else 1.0)
                p = Surprise().judge(times, rng.poisson(mean).astype(float), last=60 * A_DAY).p_value
                found.append(np.asarray(p)[-60 * A_DAY :])
            p = np.concatenate(found)
            told = "".join(f"{(p <= a).mean() / a:<11.2f}" for a in LEVELS)
            print(f"{level:13g}  {name:18}  {told} of {len(p):,} points")


def cost(a_day: float = 200_000, partners: float = 20) -> None:
    """A look at the largest of 50,000 partners (Zipf), over 28 days with so many rows a day."""
    models = {"largest": int(partners), "history": "28d"}
    full = config(watch=[["partner"]], detectors=[{"use": "kmon.detect:Surprise"}], models=models)
    rows = int(a_day)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "kmon.duckdb")
        store = EmbeddedStore(path, full)
        con = store.connection
        con.execute("INSERT INTO dim_partner SELECT i, 'p' || i FROM range(1, 50001) t(i)")
        for day in range(28):
            con.execute(
                "INSERT INTO rollup_1m (bucket, partner, country, browser, events_, sessions, orders)"
                f" SELECT TIMESTAMP '2025-12-13 12:00' + INTERVAL {day} DAY + to_minutes(i * 1440 // {rows}) AS bucket,"
                " least(50000, exp(random() * ln(50000.0)))::UINTEGER AS partner, 1, 1, 2, 2, (random() < 0.4)::INT"
                f" FROM range({rows}) t(i) ORDER BY time_bucket(INTERVAL 1 HOUR, bucket), partner"
            )
        store.close()
        store = EmbeddedStore(path, full)  # which knows the dictionary now
        for _ in range(3):
            laps = [time.perf_counter()]
            scopes = chosen(full, store, AT)
            laps.append(time.perf_counter())
            past = Past(store, full, [], AT - 28 * DAY, AT)
            for scope in scopes:
                past.read(scope, newest=1)
            laps.append(time.perf_counter())
            cpu = time.process_time()
            looked = Adapted(Surprise()).look(store, full, AT)
            cpu = time.process_time() - cpu
            laps.append(time.perf_counter())
            choose, read, look = np.diff(laps)
            judged = looked.scores.height if looked else 0
            print(f"{28 * rows:,} rows: choose {choose:.2f} s, read {read:.2f} s, the whole look {look:.2f} s,"
                  f" {judged} judged; {cpu:.2f} s of processor")  # fmt: skip


if __name__ == "__main__":
    {"null": null, "cost": cost}[sys.argv[1]](*map(float, sys.argv[2:]))
