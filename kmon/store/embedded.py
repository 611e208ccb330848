"""The store's one owner: a DuckDB file open for writing. It commits batches, compacts, and serves readers."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from kmon.config import Config, columns_of
from kmon.errors import OffsetConflictError, StoreBusyError, StoreError
from kmon.sources import Move
from kmon.store import sql
from kmon.store.base import Store
from kmon.store.grouping import expressions, kinds
from kmon.store.intake import add_intake_sql
from kmon.store.numbers import Numbers
from kmon.store.running import run
from kmon.store.schema import ID, LAYOUT, RAW, Schema, rejected_sql


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be read."""

    source: str
    partition: int
    position: int
    reason: str
    size: int
    """Length in bytes; `raw` may be cut."""
    raw: bytes


@dataclass(frozen=True)
class Commit:
    """What one micro-batch changes, all of it or nothing."""

    moves: Sequence[Move]
    """What happens to the offsets."""
    events: pl.DataFrame
    """Decoded events: the fields, and `event_time` (UTC without a zone)."""
    clocks: Mapping[str, dt.datetime] = field(default_factory=dict)
    """The newest event time of each partition of the stream, as far as this batch moved it."""
    dead_letters: Sequence[DeadLetter] = ()
    late: Mapping[str, int] = field(default_factory=dict)
    """How many of the events came after the watermark had passed them, by partition."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """How many records are left to be read, by partition, where that is another number than before."""
    documents: pl.DataFrame | None = None
    """Whole events to be kept, as `kmon.documents.young_documents` gives them."""
    intake: pl.DataFrame | None = None
    """How many records came, with the columns `kmon.store.intake.INTAKE`."""


class EmbeddedStore(Store):
    """A DuckDB file, opened for writing by this process alone."""

    def __init__(self, path: str | Path, config: Config | None = None, *, read_only: bool = False) -> None:
        """Open `path`, making it from `config` where it does not exist.

        Raises StoreBusyError where another process owns it, StoreError where it cannot be read or made.
        """
        super().__init__()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self.path = str(path)
        self._connection = _connect(self.path, read_only=read_only)
        try:
            self._adopt(self._prepare(config))
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let go of the file, whichever threads have read from it."""
        for cursor in list(self._cursors):
            cursor.close()
        self._connection.close()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The writing connection, for serving."""
        return self._connection

    def arrow(self, text: str) -> pa.Table:
        try:
            cursor = getattr(self._local, "cursor", None)
            if cursor is None:
                cursor = self._local.cursor = self._connection.cursor()
                self._cursors.add(cursor)
            return run(cursor, text)
        except duckdb.Error as error:
            raise StoreError(sql.first_line(error)) from error

    def cardinality(self, dimension: str) -> int:
        return len(self._numbers[dimension])

    def numbers(self, dimension: str, values: Sequence[str]) -> dict[str, int]:
        known = self._numbers.get(dimension)
        return known.find(values) if known else {}

    def _rows(self, text: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(text).fetchall()

    def _prepare(self, config: Config | None) -> Schema:
        existing = self._rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'")
        if not existing:
            if config is None:
                message = f"{self.path} is not a kmon store: fill one with 'kmon ingest' first"
                raise StoreError(message)
            schema = Schema.of(config)
            with self._transaction() as connection:
                for statement in schema.create_sql():
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('schema', $1)", [schema.dumps()])
            self._name()
            return schema
        stored = Schema.loads(str(self._rows("SELECT value FROM meta WHERE key = 'schema'")[0][0]))
        if config is None:
            if stored.layout < LAYOUT:
                message = f"{self.path} was written by an earlier kmon: bring it up to date with 'kmon ingest' once"
                raise StoreError(message)
            return stored
        self._name()
        return self._change(config, stored)

    def _name(self) -> None:
        """Tell this store from all others, where it was not yet."""
        if self.noted(ID) is None:
            self.note(ID, uuid.uuid4().hex)

    def _change(self, config: Config, stored: Schema) -> Schema:
        """Bring the tables to what `config` asks for, in one transaction; ConfigError where history forbids it."""
        schema = Schema.of(config)
        statements = schema.change_sql(stored, config)
        newest = self._rows("SELECT max(newest) FROM clocks")[0][0]
        schema = schema.began(stored, newest and newest.replace(tzinfo=dt.UTC))
        if schema != stored:
            with self._transaction() as connection:
                for statement in statements:
                    connection.execute(statement)
                connection.execute("UPDATE meta SET value = $1 WHERE key = 'schema'", [schema.dumps()])
        return schema

    def _adopt(self, schema: Schema) -> None:
        """Work by `schema`, which is that of the tables."""
        self.schema = schema
        needed = [column for m in schema.measures.values() for column in columns_of(m.expression)]
        self._needed = ["event_time", *dict.fromkeys(c for c in needed if c != "event_time")]
        self._numbers = {
            d: Numbers({value: number for number, value in self._rows(f"SELECT id, value FROM {sql.dictionary(d)}")})
            for d in schema.dimensions
        }
        self._forget_numbers()

    def reconfigure(self, config: Config) -> list[str]:
        """Bring the open store to what `config` asks for; what has changed, in words.

        Not while a batch is being committed by another thread. ConfigError, having changed nothing, where history would
        mean something else. Readers that are connected go on; what they ask of something forgotten fails.
        """
        before = self.schema
        self._adopt(self._change(config, before))
        return self.schema.changes(before)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction at a time on the writing connection."""
        with self._lock, transaction(self._connection, self.path):
            yield self._connection

    def note(self, key: str, value: str) -> None:
        """Keep one fact about the store, which readers find with `noted`."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ($1, $2)", [key, value])

    # ---- writing ---------------------------------------------------------------------------------------------------

    def positions(self) -> dict[tuple[str, int], int]:
        """The next position to read, by source and partition."""
        rows = self.sql("SELECT source, partition, position FROM offsets").rows()
        return {(source, partition): position for source, partition, position in rows}

    def clocks(self) -> dict[str, dt.datetime]:
        """The newest event time of each partition of the stream that has had an event."""
        rows = self.sql("SELECT partition, newest FROM clocks WHERE newest IS NOT NULL").rows()
        return {partition: newest.replace(tzinfo=dt.UTC) for partition, newest in rows}

    def unread(self) -> dict[str, int]:
        """How many records each partition of the stream had left when that was last told."""
        return dict(self.sql("SELECT partition, coalesce(unread, 0) FROM clocks").rows())

    def commit(self, batch: Commit) -> None:
        """Write rollup deltas, dead letters, clocks and the offsets in one transaction.

        Raises OffsetConflictError, having changed nothing, where a stored offset is not where its move begins.
        """
        try:
            self._write(batch)
        except BaseException:
            for numbers in self._numbers.values():
                numbers.rollback()
            raise
        for numbers in self._numbers.values():
            numbers.keep()

    def _write(self, batch: Commit) -> None:
        with self._transaction() as connection:
            self._swap_offsets(connection, batch.moves)
            if batch.events.height:
                numbered = self._numbered(batch.events)
                for dimension, numbers in self._numbers.items():
                    if (fresh := numbers.fresh()) is not None:
                        _run_with(connection, f"INSERT INTO {sql.dictionary(dimension)} SELECT * FROM given", fresh)
                rolled_up = self._rolled_up(numbered)
                if rolled_up is not None:
                    _run_with(connection, self.insert_sql(), rolled_up)
                else:
                    _run_with(connection, self.rollup_sql(), numbered.to_arrow())
                if batch.documents is not None:
                    _run_with(connection, self.documents_sql(), self._located(batch.documents, numbered))
            self._move_clocks(connection, batch)
            if batch.intake is not None and batch.intake.height:
                _run_with(connection, add_intake_sql(), batch.intake.to_arrow())
            if batch.dead_letters:
                letters = _letters(batch.dead_letters)
                _run_with(connection, "INSERT INTO dead_letters SELECT * FROM given", letters)
                _run_with(connection, _REJECTED_SQL, letters)

    def _swap_offsets(self, connection: duckdb.DuckDBPyConnection, moves: Sequence[Move]) -> None:
        if not moves:
            return
        given = sql.values([(move.source, move.partition, move.first, move.next) for move in moves])
        changed = _count(connection, _SWAP_SQL.format(given=given))
        if changed < len(moves):
            changed += _count(connection, _FIRST_SQL.format(given=given))
        if changed < len(moves):
            committed = self.positions()
            found = {move: committed.get((move.source, move.partition), 0) for move in moves}
            move, position = next((m, p) for m, p in found.items() if p != m.first)
            message = f"{move.source}: the store is at position {position}, this batch begins at {move.first}"
            raise OffsetConflictError(message)

    @staticmethod
    def _move_clocks(connection: duckdb.DuckDBPyConnection, batch: Commit) -> None:
        names = dict.fromkeys([*batch.clocks, *batch.late, *batch.unread])
        if not names:
            return
        given = sql.values(
            [(name, batch.clocks.get(name), batch.late.get(name, 0), batch.unread.get(name)) for name in names]
        )
        if _count(connection, _CLOCK_SQL.format(given=given)) < len(names):
            connection.execute(_FIRST_CLOCK_SQL.format(given=given))

    def insert_sql(self) -> str:
        """Append the deltas in ``given``.

        The join with one row has DuckDB insert in one go: for the few rows of a micro-batch its threads would spend
        more time waiting for each other than working.
        """
        return f"INSERT INTO rollup_10s({self.schema.columns()}) SELECT given.* FROM given POSITIONAL JOIN (SELECT 1)"

    def documents_sql(self) -> str:
        """Append the whole events in ``given``."""
        columns = ["event_time", "source", "partition", "position", "size", *self.schema.dimensions, "document"]
        listed = ", ".join(map(sql.name, columns))
        return f"INSERT INTO {RAW}({listed}) SELECT {listed} FROM given"

    def _rolled_up(self, numbered: pl.DataFrame) -> pl.DataFrame | None:
        """The 10-second deltas of numbered events; None where a measure is for DuckDB to make."""
        measures = expressions(tuple(self.schema.measures.items()), kinds(numbered))
        if measures is None:
            return None
        dimensions = [pl.col(f"#{d}").alias(d) for d in self.schema.dimensions]
        return numbered.group_by(pl.col("event_time").dt.truncate("10s").alias("bucket"), *dimensions).agg(measures)

    def _located(self, documents: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
        """Documents with the time and the numbered dimensions of their events."""
        chosen = [pl.col("event_time"), *(pl.col(f"#{d}").alias(d) for d in self.schema.dimensions)]
        return numbered.select(chosen)[documents["event"].to_numpy()].hstack(documents.drop("event"))

    def rollup_sql(self) -> str:
        """Group the numbered events in ``given`` into 10-second deltas."""
        dimensions = "".join(f", {sql.name('#' + d)}" for d in self.schema.dimensions)
        measures = ", ".join(f"({m.expression})::{m.type}" for m in self.schema.measures.values())
        return (
            f"INSERT INTO rollup_10s({self.schema.columns()})"
            f" SELECT time_bucket(INTERVAL 10 SECONDS, event_time){dimensions}, {measures} FROM given GROUP BY ALL"
        )

    def _numbered(self, events: pl.DataFrame) -> pl.DataFrame:
        """What measures read of `events`, and a column ``#dimension`` of numbers for each dimension."""
        columns = [pl.Series(f"#{d}", numbers(events[d])) for d, numbers in self._numbers.items()]
        return events.select(*self._needed, *columns)


@contextlib.contextmanager
def transaction(connection: duckdb.DuckDBPyConnection, path: str) -> Iterator[None]:
    """All of the block or nothing; errors of the database are told as the store at `path` that cannot be written."""
    try:
        connection.execute("BEGIN")
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        with contextlib.suppress(duckdb.Error):  # a failed COMMIT has already rolled back
            connection.execute("ROLLBACK")
        if isinstance(error, duckdb.Error):
            message = f"{path} cannot be written: {sql.first_line(error)}"
            raise StoreError(message) from error
        raise


def _run_with(connection: duckdb.DuckDBPyConnection, statement: str, table: pa.Table | pl.DataFrame) -> None:
    """Run a statement that reads `table` under the name ``given``."""
    connection.register("given", table)
    connection.execute(statement)
    connection.unregister("given")


def _count(connection: duckdb.DuckDBPyConnection, statement: str) -> int:
    """Run a statement; the number of rows that it changed."""
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def _letters(letters: Sequence[DeadLetter]) -> pa.Table:
    received = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    return pa.table(
        {
            "source": [letter.source for letter in letters],
            "partition": [letter.partition for letter in letters],
            "position": [letter.position for letter in letters],
            "received_at": [received] * len(letters),
            "reason": [letter.reason for letter in letters],
            "size": [letter.size for letter in letters],
            "raw": pa.array([letter.raw for letter in letters], pa.binary()),
        }
    )


# Statements of a commit are few and short: planning one takes as long as inserting a thousand rows.
_SWAP_SQL = (
    "UPDATE offsets SET position = m.next FROM {given} AS m(source, partition, first, next)"
    " WHERE offsets.source = m.source AND offsets.partition = m.partition AND position = m.first"
)
_FIRST_SQL = (
    "INSERT INTO offsets SELECT m.source, m.partition, m.next FROM {given} AS m(source, partition, first, next)"
    " ANTI JOIN offsets USING (source, partition) WHERE m.first = 0"
)
_CLOCK_SQL = (
    "UPDATE clocks SET newest = greatest(clocks.newest, m.newest::TIMESTAMP), late = clocks.late + m.late,"
    " unread = coalesce(m.unread::BIGINT, clocks.unread)"
    " FROM {given} AS m(partition, newest, late, unread) WHERE clocks.partition = m.partition"
)
_FIRST_CLOCK_SQL = (
    "INSERT INTO clocks SELECT partition, m.newest::TIMESTAMP, m.late, m.unread::BIGINT"
    " FROM {given} AS m(partition, newest, late, unread) ANTI JOIN clocks USING (partition)"
)
_REJECTED_SQL = (
    f"INSERT INTO rejected {rejected_sql('given')}"
    " ON CONFLICT (reason) DO UPDATE SET records = records + excluded.records"
)
_Settings = dict[str, str | bool | int | float | list[str]]
_SETTINGS: _Settings = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a table is a table of the store, never a variable of this process
    "checkpoint_threshold": "64MB",  # of the log, before it is merged into the file: fewer, larger merges
}

_READING: _Settings = {
    "enable_external_access": "false",  # a query of the store reads and writes nothing else
    "lock_configuration": "true",
}


def _connect(path: str, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(path, read_only=read_only, config={**_SETTINGS, **(_READING if read_only else {})})
    except duckdb.Error as error:
        reason = sql.first_line(error)
        if "Could not set lock" in reason or "different configuration" in reason:
            found = re.search(r"\(PID (\d+)\)", reason)
            message = (
                f"{path} is owned by another process{f' (pid {found[1]})' if found else ''}: read it through its quack:"
                " address, stop that process, or wait for its end with --standby"
            )
            raise StoreBusyError(message, pid=int(found[1]) if found else None) from error
        if "Permission denied" in reason:
            message = f"{path} cannot be opened: no permission to {'read' if read_only else 'write'} there"
            raise StoreError(message) from error
        message = f"{path} cannot be opened as a store: {reason}"
        raise StoreError(message) from error
