"""Upkeep: how the store's owner keeps it small and quick, in the background.

    ten seconds  ──closed hours──►  minutes  ──days older than keep.minutes──►  hours  ──after keep.hours──►  gone

Rows *move*: the transaction that adds them to the coarser tier takes them from the finer one, so that a cell is in one
tier at any moment and a kill changes nothing. A block (an hour, a day) moves in steps, each a range of the dimension
with most values and a short transaction that holds up no commit; one after the other they leave the block sorted, so
that one partner's history is a few row groups. What comes late moves with the next block, as rows more of its own
block, or merged into it where it is a good part of it. The deltas of a half hour that has closed are sorted where they
are, since looking for one partner in two hours of them would be most of what a question takes. Each ``*_sql`` returns
what is run.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import duckdb
import structlog

from kmon.config import Config
from kmon.errors import StoreError
from kmon.store import sql
from kmon.store.cells import interval
from kmon.store.embedded import EmbeddedStore, transaction
from kmon.store.intake import MERGED_EVERY, merge_intake_sql, old_intake_sql, unmerged_sql
from kmon.store.schema import RAW, TIERS, Schema

log = structlog.get_logger("kmon")
STEP = 1_000_000
"""About so many rows move in one transaction: about a second; smaller steps delay commits no less, and take longer."""
WORTH = 4
"""A block is merged and sorted anew when what came late is at least one in so many of its rows."""
EVERY = 5.0
"""Seconds from one look at what is due to the next."""
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
SORTED = dt.timedelta(minutes=30)
"""The blocks in which deltas are sorted: larger ones leave more of them unsorted, smaller ones make more row groups."""
GRACE, RAW_STEP = dt.timedelta(minutes=1), dt.timedelta(minutes=10)
"""Whole events may be so much too old, and so much of them is deleted at a time."""
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Merge:
    """Rows that go from one tier into the next, a block of time after the other."""

    source: str
    target: str
    block: dt.timedelta


MERGES = (Merge("rollup_10s", "rollup_1m", HOUR), Merge("rollup_1m", "rollup_1h", DAY))
LAST = Merge("rollup_1h", "", DAY)
"""Out of the store."""


class Upkeep:
    """What is due in one store; `config` may be replaced while it runs."""

    def __init__(self, store: EmbeddedStore, config: Config, *, step: int = STEP) -> None:
        self.config = config
        self._store, self._step = store, step
        self._reached: dict[str, dt.datetime] = {}  # by tier: what is older has moved out of it, but for late rows
        self._counted: dt.datetime | None = None  # what came in is merged up to here
        self._sorted: dt.datetime | None = None  # deltas are sorted from where this process began up to here

    def run(self, watermark: dt.datetime | None, now: dt.datetime, stop: threading.Event | None = None) -> int:
        """Do what is due at this watermark and wall clock; the number of transactions.

        Ends between two of them when `stop` is set. StoreError where the store cannot be written.
        """
        done, schema = 0, self._store.schema
        try:
            with contextlib.closing(self._store.connection.cursor()) as cursor:
                for statements in self._due(cursor, watermark, now):
                    with transaction(cursor, self._store.path):
                        for statement in statements:
                            cursor.execute(statement)
                    done += 1
                    if stop is not None and stop.is_set():
                        break
        except (StoreError, duckdb.Error) as error:
            cause = error.__cause__ if isinstance(error, StoreError) else error
            if isinstance(cause, duckdb.TransactionException) or self._store.schema != schema:
                log.debug("upkeep put off", reason=str(error))  # dimensions or measures were changed meanwhile
                self._reached.clear()
            elif isinstance(error, StoreError):
                raise
            else:
                message = f"{self._store.path} cannot be read: {sql.first_line(error)}"
                raise StoreError(message) from error
        return done

    def _due(
        self, cursor: duckdb.DuckDBPyConnection, watermark: dt.datetime | None, now: dt.datetime
    ) -> Iterator[list[str]]:
        keep = self.config.keep
        if watermark is not None:
            for merge, kept in zip((*MERGES, LAST), (keep.ten_seconds, keep.minutes, keep.hours), strict=True):
                yield from self._moved(cursor, merge, watermark - kept)
            yield from self._deltas(cursor, watermark, watermark - keep.ten_seconds)
            yield from self._raw(cursor, watermark - keep.raw, keep.raw_bytes)
            yield from self._intake(cursor, watermark)
        old = f"FROM dead_letters WHERE received_at < {sql.time(now - keep.dead_letters)}"
        if cursor.execute(f"SELECT 1 {old} LIMIT 1").fetchone():
            yield [f"DELETE {old}"]

    def _moved(self, cursor: duckdb.DuckDBPyConnection, merge: Merge, before: dt.datetime) -> Iterator[list[str]]:
        """The steps that take from a tier the blocks that end by `before`, where there is a new one."""
        limit = EPOCH + (before - EPOCH) // merge.block * merge.block
        if limit <= self._reached.get(merge.source, EPOCH):
            return
        schema, order = self._store.schema, self._order()
        first = [begins_sql(merge.source, limit)]
        for start, rows in cursor.execute(blocks_sql(merge, limit)).fetchall():
            block = block_condition(start.replace(tzinfo=dt.UTC), merge.block)
            again = bool(merge.target) and self._is_worth_it(cursor, merge.target, block, rows)
            tiers = [merge.source, *([merge.target] if again else [])]
            for part in self._parts(cursor, tiers, block, order):
                yield [*first, *move_sql(schema, merge, f"{block} AND {part}", order, again=again)]
                first = []
        self._reached[merge.source] = limit

    def _order(self) -> list[str]:
        """The dimensions by which rows are sorted: first the one with most values."""
        return sorted(self._store.schema.dimensions, key=lambda d: -self._store.cardinality(d))

    def _deltas(
        self, cursor: duckdb.DuckDBPyConnection, watermark: dt.datetime, moving: dt.datetime
    ) -> Iterator[list[str]]:
        """The steps that sort the deltas of what has closed since the last look, but for what is about to move."""
        limit = EPOCH + (watermark - EPOCH) // SORTED * SORTED
        start = max(self._sorted or limit, EPOCH + (moving - EPOCH) // SORTED * SORTED)
        schema, order, tier = self._store.schema, self._order(), MERGES[0].source
        while start < limit:
            block = block_condition(start, SORTED)
            for part in self._parts(cursor, [tier], block, order):
                yield sort_sql(schema, tier, f"{block} AND {part}", order)
            start += SORTED
        self._sorted = limit

    def _intake(self, cursor: duckdb.DuckDBPyConnection, watermark: dt.datetime) -> Iterator[list[str]]:
        """The steps that merge what came in lately, and take away what is old."""
        limit = EPOCH + (watermark - EPOCH) // MERGED_EVERY * MERGED_EVERY
        if self._counted is None or limit > self._counted:
            if cursor.execute(f"{unmerged_sql(limit)} LIMIT 1").fetchone():
                yield merge_intake_sql(limit)
            if cursor.execute(f"SELECT 1 {old_intake_sql(watermark)} LIMIT 1").fetchone():
                yield [f"DELETE {old_intake_sql(watermark)}"]
        self._counted = limit

    @staticmethod
    def _is_worth_it(cursor: duckdb.DuckDBPyConnection, tier: str, block: str, late: int) -> bool:
        found = cursor.execute(f"SELECT count(*) FROM {tier} WHERE {block}").fetchone()
        return found is not None and 0 < found[0] <= late * WORTH

    def _parts(
        self, cursor: duckdb.DuckDBPyConnection, tiers: Sequence[str], block: str, order: Sequence[str]
    ) -> list[str]:
        """Conditions that cut a block into ranges of about as many rows as a step has, in the order of its rows."""
        if not order:
            return ["true"]
        column = sql.name(order[0])
        ends = [int(end) for (end,) in cursor.execute(cuts_sql(tiers, block, order[0], self._step)).fetchall()]
        return [
            " AND ".join([f"{column} > {ends[i - 1]}"] * (i > 0) + [f"{column} <= {end}"] * (i < len(ends) - 1))
            or "true"
            for i, end in enumerate(ends)
        ]

    def _raw(self, cursor: duckdb.DuckDBPyConnection, before: dt.datetime, most: int) -> Iterator[list[str]]:
        """The steps that take whole events away which are too old, or too many."""
        found = cursor.execute(raw_begins_sql(most)).fetchone()
        if found is None or found[0] is None:
            return
        oldest, limit = (time.replace(tzinfo=dt.UTC) for time in found)
        if before - oldest >= GRACE:
            limit = max(limit, before)
        while oldest < limit:
            oldest = min(max(oldest, limit - DAY) + RAW_STEP, limit)
            yield [f"DELETE FROM {RAW} WHERE event_time < {sql.time(oldest)}"]


# ---- what is run -----------------------------------------------------------------------------------------------------


def blocks_sql(merge: Merge, limit: dt.datetime) -> str:
    """The blocks before `limit` with rows to move: (start, rows)."""
    width = interval(merge.block)
    return (
        f"SELECT time_bucket({width}, bucket, {sql.time(EPOCH)}) AS start, count(*) FROM {merge.source}"
        f" WHERE bucket < {sql.time(limit)} GROUP BY 1 ORDER BY 1"
    )


def block_condition(start: dt.datetime, width: dt.timedelta) -> str:
    """In literals, which the zone maps prune by."""
    return f"bucket >= {sql.time(start)} AND bucket < {sql.time(start + width)}"


def cuts_sql(tiers: Sequence[str], block: str, dimension: str, step: int) -> str:
    """The largest number of each range of a dimension with about `step` rows, over the rows of a block in `tiers`."""
    column = sql.name(dimension)
    rows = " UNION ALL ".join(f"SELECT {column} AS n FROM {tier} WHERE {block}" for tier in tiers)
    return (
        f"SELECT max(n) FROM (SELECT n, sum(count(*)) OVER (ORDER BY n) - count(*) AS before FROM ({rows}) GROUP BY n)"
        f" GROUP BY before // {step} ORDER BY 1"
    )


def begins_sql(tier: str, limit: dt.datetime) -> str:
    """From the first step on, no reader takes what is left of a block for all of it."""
    return (
        f"INSERT INTO tiers VALUES ({sql.text(tier)}, {sql.time(limit)})"
        " ON CONFLICT (tier) DO UPDATE SET begins = greatest(begins, excluded.begins)"
    )


def move_sql(schema: Schema, merge: Merge, within: str, order: Sequence[str], *, again: bool) -> list[str]:
    """Merge the rows `within` a tier into buckets of the next one, sorted, and take them from the first.

    With `again`, what the next tier has within is merged with them.
    """
    source, target = merge.source, merge.target
    take = f"DELETE FROM {source} WHERE {within}"
    if not target:
        return [take]
    columns, bucket = schema.columns(), sql.name("#bucket")
    width = interval(TIERS[target])
    dimensions = [sql.name(d) for d in schema.dimensions]
    grouped = ", ".join([f"time_bucket({width}, bucket, {sql.time(EPOCH)}) AS {bucket}", *dimensions])
    back = [
        f"INSERT INTO {source}({columns}) SELECT {columns} FROM {target} WHERE {within}",
        f"DELETE FROM {target} WHERE {within}",
    ]
    forth = (
        f"INSERT INTO {target}({columns}) SELECT * FROM (SELECT {grouped}, {schema.merged()} FROM {source}"
        f" WHERE {within} GROUP BY ALL) ORDER BY {', '.join([*map(sql.name, order), bucket])}"
    )
    return [*(back if again else []), forth, take]


def sort_sql(schema: Schema, tier: str, within: str, order: Sequence[str]) -> list[str]:
    """Merge the rows `within` a tier where they are, and sort them."""
    columns, merged = schema.columns(), ", ".join(["bucket", *map(sql.name, schema.dimensions), schema.merged()])
    return [
        f"CREATE TEMP TABLE sorting AS SELECT {merged} FROM {tier} WHERE {within} GROUP BY ALL",
        f"DELETE FROM {tier} WHERE {within}",
        f"INSERT INTO {tier}({columns}) SELECT * FROM sorting ORDER BY {', '.join([*map(sql.name, order), 'bucket'])}",
        "DROP TABLE sorting",
    ]


def raw_begins_sql(most: int) -> str:
    """The time of the oldest whole event, and the time from which on they are not more than `most` bytes."""
    sizes = f"SELECT time_bucket(INTERVAL 10 SECONDS, event_time) AS start, sum(size) AS size FROM {RAW} GROUP BY 1"
    newer = f"SELECT start, sum(size) OVER (ORDER BY start DESC) AS size FROM ({sizes})"
    after = "max(start) + INTERVAL 10 SECONDS"  # where the last ten seconds alone are too many
    return f"SELECT min(start), coalesce(min(start) FILTER (size <= {most}), {after}) FROM ({newer})"


# ---- in the background -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def upkeep_thread(
    store: EmbeddedStore,
    config: Config,
    stop: threading.Event,
    *,
    every: float = EVERY,
    upto: Callable[[], dt.datetime | None] | None = None,
) -> Iterator[Upkeep]:
    """Do what is due while the block runs, and once more when it has ended, unless `stop` was set.

    It is due at the watermark, or at what `upto` says, for whoever looks at the store later than that and needs what
    was kept then. An error sets `stop`, and is raised when the block ends.
    """
    upkeep = Upkeep(store, config)
    ended = threading.Event()
    failed: list[BaseException] = []

    def once(until: threading.Event) -> None:
        events = upkeep.config.events
        at = upto() if upto is not None else store.watermark(events.lateness, events.idle)
        upkeep.run(at, dt.datetime.now(dt.UTC), until)

    def work() -> None:
        try:
            while not ended.wait(every):
                once(ended)
        except BaseException as error:  # raised again where the thread is waited for
            failed.append(error)
            stop.set()

    thread = threading.Thread(target=work, name="upkeep")
    thread.start()
    try:
        yield upkeep
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]
    if not stop.is_set():
        once(stop)
