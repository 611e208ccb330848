"""A small shop: another schema than payments, 26 hours of one visit every 10 seconds a shop, every fourth buys."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl

from kmon.config import Config, load_config
from kmon.ledger import Incident, Ledger, SweepRecord
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore

END = dt.datetime(2026, 1, 10, 12, tzinfo=dt.UTC)
"""The watermark of a store as `fill` leaves it."""
EVIL = """<b>O'Neil "😀"</b>"""
SHOPS = ("north", "south", EVIL)
YAML = """
name: shops
store: shop.duckdb
serve: quack:localhost:{port}
partners: shops.csv
source: {{kind: files, paths: [events/*.ndjson]}}
events:
  lateness: 0s
  fields: {{ts: {{type: time}}, shop: {{}}, region: {{}}, bought: {{type: boolean}}}}
dimensions: [shop, region]
measures:
  visits: count(*)
  purchases: count(*) FILTER (bought)
metrics:
  visits: {{count: visits}}
  conversion: {{rate: purchases / visits}}
watch: [[], [shop]]
incidents: {{impact: [purchases]}}
"""


def configured(folder: Path, port: int = 9494) -> Config:
    """A ``kmon.yaml`` and a partner reference in `folder`."""
    (folder / "kmon.yaml").write_text(YAML.format(port=port), encoding="utf-8")
    (folder / "shops.csv").write_text("partner,name,account_team\nnorth,North & Sons,Retail\n", encoding="utf-8")
    return load_config(folder / "kmon.yaml")


def visits(start: dt.datetime, end: dt.datetime, shops: tuple[str, ...] = SHOPS, buying: bool = True) -> pl.DataFrame:
    """One visit a shop every 10 seconds of [start, end); none buys unless `buying`."""
    first, last = (t.replace(tzinfo=None) for t in (start, end))
    times = pl.datetime_range(first, last, "10s", closed="left", eager=True).alias("event_time")
    number = pl.int_range(pl.len())
    region = pl.when(number % 3 == 0).then(pl.lit("EU")).otherwise(pl.lit("US"))
    base = times.to_frame().with_columns(region=region, bought=(number % 4 == 0) & buying)
    return pl.concat([base.with_columns(shop=pl.lit(shop)) for shop in shops])


def add(store: EmbeddedStore, events: pl.DataFrame, end: dt.datetime) -> None:
    """Commit `events`, after which the data is complete up to `end`; those of the last hour are kept whole."""
    first = next(iter(store.positions().values()), 0)
    moves, whole = [Move("test", 0, first, first + events.height)], documents(events, end - dt.timedelta(hours=1))
    store.commit(Commit(moves, events, {"0": end}, documents=whole))


def documents(events: pl.DataFrame, since: dt.datetime) -> pl.DataFrame:
    """The events that are not older than `since`, as they came."""
    young = events.with_row_index("event").filter(pl.col("event_time") >= since.replace(tzinfo=None))
    texts = [
        json.dumps(
            {
                "ts": f"{row['event_time'].isoformat()}Z",
                **{name: row[name] for name in ("shop", "region", "bought")},
                "basket": {"items": 1 + row["event"] % 4, "total": 19.9},
                "note": EVIL,
            }
        )
        for row in young.iter_rows(named=True)
    ]
    return young.select(
        "event",
        source=pl.lit("test"),
        partition=pl.lit(0, pl.Int32),
        position=pl.col("event").cast(pl.Int64),
        size=pl.Series([len(text) for text in texts], dtype=pl.UInt32),
        document=pl.Series(texts, dtype=pl.String),
    )


def fill(config: Config) -> Path:
    """The store of `config` with 26 hours up to END; in the last half hour nobody bought at the evil shop."""
    path = config.resolve(config.store)
    ill = END - dt.timedelta(minutes=30)
    with EmbeddedStore(path, config) as store:
        whole = visits(END - dt.timedelta(hours=26), END)
        broken = (pl.col("shop") == EVIL) & (pl.col("event_time") >= ill.replace(tzinfo=None))
        add(store, whole.with_columns(bought=pl.col("bought") & ~broken), END)
    with Ledger.beside(path) as ledger:
        ledger.record(SweepRecord(END, END, 0.1, 10, 10, 1, 1e-6), [incident()])
    return path


def incident(**changes: object) -> Incident:
    """The evil shop's conversion, down since half an hour."""
    fields = {
        "id": "inc_1", "status": "firing", "severity": "critical", "metric": "conversion", "direction": "down",
        "scope": {"shop": EVIL}, "started_at": END - dt.timedelta(minutes=30),
        "detected_at": END - dt.timedelta(minutes=25), "resolved_at": None, "observed": 0.0, "expected": 0.25,
        "lower": 0.1, "upper": 0.4, "p_value": 1e-9, "impact": {"purchases": -45.0}, "anomalies": 3, "channel": "#x",
        "url": "", "window": dt.timedelta(minutes=5), "evidence": 20.0, "seen_at": END, "quiet": 0,
        "detector": "compare", "reason": "first seen",
    }  # fmt: skip
    return Incident(**{**fields, **changes})  # type: ignore[arg-type]
