"""A store with a long past at Klarna's volume, made in SQL, as ingestion and upkeep would have left it.

Two hours in the ten-second tier, each half hour sorted by partner but for the last; two days before them in the minute
tier, an hour a block, sorted by partner within it; 30 days before those in the hour tier, a day a block, sorted alike.
One day is drawn event by event, and the others repeat it.
"""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path

import duckdb

from kmon.bench.workplace import Say
from kmon.config import Config
from kmon.sources import market
from kmon.store import EmbeddedStore, sql
from kmon.store.cells import interval
from kmon.store.schema import Schema
from kmon.store.upkeep import SORTED

HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
BEFORE, HOT = 4, 2
"""Hours that a sweep may look back, and those of them that lie in the ten-second tier."""
_STEPS = 24
"""Ranges of partners in which a day of the hour tier is sorted, one after the other."""
_SMALL = {
    "country": market.COUNTRIES,
    "payment_method": market.METHODS,
    "browser": tuple(dict.fromkeys(browser for browser, _ in market.AGENTS)),
    "device": tuple(dict.fromkeys(device for _, device in market.AGENTS)),
    "channel": market.CHANNELS,
}
_MEASURES = (
    "count(*), count(*), count(*) FILTER (operation = 0), count(*) FILTER (operation = 1),"
    " count(*) FILTER (operation = 1 AND ok), count(*) FILTER (operation = 2 AND ok), count(*) FILTER (failed),"
    " sum(amount) FILTER (operation = 2 AND ok)"
)


def make(
    path: Path,
    config: Config,
    now: dt.datetime,
    say: Say,
    *,
    rate: float,
    partners: int = 500_000,
    hot: int = 2,
    minutes: int = 2,
    hours: int = 30,
) -> None:
    """Fill a new store: `hot` hours, days of `minutes` before them, days of `hours` before those, up to `now`.

    `now` is a whole hour.
    """
    with EmbeddedStore(path, config) as store:
        scratch = path.with_name("scratch.duckdb")
        connection = store.connection
        connection.execute(f"ATTACH {sql.text(str(scratch))} AS scratch")
        maker = _Maker(connection, store.schema, rate, partners)
        maker.dictionaries()
        recent = now - hot * HOUR
        past = recent - minutes * DAY
        for hour in range(24):
            say(f"drawing hour {hour + 1} of 24")
            maker.draw(HOUR)
            maker.minutes(past + hour * HOUR)
            if hours:
                maker.keep_hour(hour)
        for day in range(1, minutes):
            say(f"minutes of day {day + 1} of {minutes}")
            maker.repeat("rollup_1m", past, past + day * DAY)
        if hours:
            say("hours of day 1")
            maker.day_of_hours(past - hours * DAY)
        for day in range(1, hours):
            say(f"hours of day {day + 1} of {hours}")
            maker.repeat("rollup_1h", past - hours * DAY, past + (day - hours) * DAY)
        say(f"the last {hot} hours")
        for hour in range(hot):
            maker.draw(HOUR)
            maker.deltas(recent + hour * HOUR, unsorted=now - SORTED)
        maker.tiers({"rollup_10s": recent, "rollup_1m": past})
        connection.execute("DETACH scratch")
        connection.execute("CHECKPOINT")
    scratch.unlink()


def around(
    path: Path, config: Config, now: dt.datetime, say: Say, *, rate: float, partners: int, days: tuple[int, ...]
) -> None:
    """Fill a new store with what a sweep at `now`, a whole hour, reads: the hours before it, and those `days` ago."""
    with EmbeddedStore(path, config) as store:
        scratch = path.with_name("scratch.duckdb")
        store.connection.execute(f"ATTACH {sql.text(str(scratch))} AS scratch")
        maker = _Maker(store.connection, store.schema, rate, partners)
        maker.dictionaries()
        for day in sorted(days, reverse=True):
            for hour in range(-BEFORE, 1):
                say(f"hour {hour + BEFORE + 1} of {BEFORE + 1}, {day} days ago")
                maker.draw(HOUR)
                maker.minutes(now - day * DAY + hour * HOUR)
        for hour in range(-BEFORE, 0):
            say(f"hour {hour + BEFORE + 1} of {BEFORE} before now")
            maker.draw(HOUR)
            if hour < -HOT:
                maker.minutes(now + hour * HOUR)
            else:
                maker.deltas(now + hour * HOUR, unsorted=now - SORTED)
        maker.tiers({"rollup_10s": now - HOT * HOUR, "rollup_1m": now - max(days) * DAY - BEFORE * HOUR})
        store.connection.execute("DETACH scratch")
        store.connection.execute("CHECKPOINT")
    scratch.unlink()


class _Maker:
    def __init__(self, connection: duckdb.DuckDBPyConnection, schema: Schema, rate: float, partners: int) -> None:
        self._connection, self._schema, self._rate, self._partners = connection, schema, rate, partners
        self._dimensions = ", ".join(map(sql.name, schema.dimensions))

    def dictionaries(self) -> None:
        partners = sql.dictionary("partner")
        self._run(f"INSERT INTO {partners} SELECT i, 'p' || i FROM range(1, {self._partners} + 1) r(i)")
        for dimension, values in _SMALL.items():
            rows = ", ".join(f"({number}, {sql.text(value)})" for number, value in enumerate(values, 1))
            self._run(f"INSERT INTO {sql.dictionary(dimension)} VALUES {rows}")

    def draw(self, span: dt.timedelta) -> None:
        """Events of `span` at random into ``scratch.events``; partner k is about k times rarer than the first."""
        seconds = span.total_seconds()
        agents = len(market.AGENTS)
        self._run(f"""
            CREATE OR REPLACE TABLE scratch.events AS
            WITH drawn AS (
                SELECT (random() * {seconds})::UINTEGER AS second,
                    least(floor(exp(random() * ln({self._partners} + 1))), {self._partners})::UINTEGER AS partner,
                    random() AS at_home, (random() * 65536)::UINTEGER AS other, random() AS agent, random() AS kind,
                    random() AS fate, exp(4 + random() + random() + random() - 1.5) AS amount
                FROM range({round(seconds * self._rate)})
            )
            SELECT second, partner,
                1 + (CASE WHEN at_home < 0.8 THEN hash(partner) ELSE other END) % {len(market.COUNTRIES)} AS country,
                1 + (other >> 4) % {len(market.METHODS)} AS payment_method,
                1 + floor(pow(agent, 1.5) * {agents})::UINTEGER % {len(_SMALL["browser"])} AS browser,
                1 + floor(agent * {len(_SMALL["device"])})::UINTEGER AS device,
                1 + (other >> 8) % {len(market.CHANNELS)} AS channel,
                CASE WHEN kind < 0.62 THEN 0 WHEN kind < 0.84 THEN 1 ELSE 2 END::UTINYINT AS operation,
                fate < 0.95 AS ok, fate > 0.99 AS failed, round(amount, 2) AS amount
            FROM drawn
        """)

    def minutes(self, start: dt.datetime) -> None:
        """The events as an hour of the minute tier."""
        bucket = f"{sql.time(start)} + to_minutes((second // 60)::BIGINT)"
        self._insert("rollup_1m", bucket, f"{self._dimensions}, 1")

    def deltas(self, start: dt.datetime, unsorted: dt.datetime) -> None:
        """The events as an hour of the ten-second tier: half hours, sorted by partner if they end by `unsorted`."""
        bucket = f"{sql.time(start)} + to_seconds((second // 10 * 10)::BIGINT)"
        by_partner = f"CASE WHEN bucket < {sql.time(unsorted)} THEN partner ELSE 0 END"
        self._insert("rollup_10s", bucket, f"time_bucket({interval(SORTED)}, bucket), {by_partner}, 1")

    def keep_hour(self, hour: int) -> None:
        """The events as one hour of the day that ``day_of_hours`` writes."""
        grouped = f"SELECT {hour} AS hour, {self._dimensions}, {_MEASURES} FROM scratch.events GROUP BY ALL"
        names = ", ".join(["hour", *map(sql.name, (*self._schema.dimensions, *self._schema.measures))])
        if hour == 0:
            self._run(f"CREATE TABLE scratch.day AS SELECT * FROM ({grouped}) t({names}) LIMIT 0")
        self._run(f"INSERT INTO scratch.day {grouped}")

    def day_of_hours(self, start: dt.datetime) -> None:
        edges = [int(self._partners ** (step / _STEPS)) for step in range(_STEPS + 1)]
        edges[0], edges[-1] = 0, self._partners
        measures = ", ".join(map(sql.name, self._schema.measures))
        for low, high in itertools.pairwise(edges):
            self._run(
                f"INSERT INTO rollup_1h({self._schema.columns()})"
                f" SELECT {sql.time(start)} + to_hours(hour::BIGINT), {self._dimensions}, {measures} FROM scratch.day"
                f" WHERE partner > {low} AND partner <= {high} ORDER BY {self._dimensions}, hour"
            )

    def repeat(self, tier: str, start: dt.datetime, target: dt.datetime) -> None:
        """The day of a tier that begins at `start` once more, at `target`, in the same order."""
        rest = self._schema.columns().split(", ", 1)[1]
        shift = interval(target - start)
        self._run(
            f"INSERT INTO {tier}({self._schema.columns()}) SELECT bucket + {shift}, {rest} FROM {tier}"
            f" WHERE bucket >= {sql.time(start)} AND bucket < {sql.time(start + DAY)}"
        )

    def tiers(self, begins: dict[str, dt.datetime]) -> None:
        for tier, limit in begins.items():
            self._run(f"INSERT OR REPLACE INTO tiers VALUES ({sql.text(tier)}, {sql.time(limit)})")

    def _insert(self, tier: str, bucket: str, order: str) -> None:
        grouped = f"SELECT {bucket} AS bucket, {self._dimensions}, {_MEASURES} FROM scratch.events GROUP BY ALL"
        self._run(f"INSERT INTO {tier}({self._schema.columns()}) SELECT * FROM ({grouped}) ORDER BY {order}")

    def _run(self, text: str) -> None:
        self._connection.execute(text)
