"""The questions of readers, as the owner of the store answers them: each within its limits, none in ingestion's way.

Quack cannot cancel a query, not even one whose reader is gone. But it asks a function for leave before each query, and
that function may name another query to run instead. Ours runs the question itself, on a connection that a watch can
interrupt, puts the result into a database in memory, and names a query that reads it from there. So a question is
cancelled in time whatever its reader does, a reader that takes its time with a result holds no snapshot of the store,
and the sessions of readers run nothing that a reader wrote.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import structlog

from kmon.config import Queries, show_duration
from kmon.store import sql
from kmon.store.rule import Rule, bare, failing

log = structlog.get_logger("kmon")
TICK = 0.05
"""Seconds between two looks at what is running."""
LINGER = 60.0
"""Seconds for which a result waits to be fetched; one that is being fetched stays until the end of that."""
HURRY = 1.0
"""The same where memory is short."""
CROWDED = 0.6
"""The share of the memory limit that questions and their results may hold before some of them go: ingestion needs the
rest."""
NICE = 10
"""How much the operating system prefers ingestion to a thread that answers questions, where it can tell threads."""
STOPPING = 2.0
"""Seconds that cancelled questions get to stop when the store is closed."""
STUBBORN = 60.0
"""Seconds after which a cancelled question that goes on is worth a line in the log."""
_HELD = """
SELECT coalesce(sum(memory_usage_bytes), 0)::BIGINT FROM duckdb_memory()
WHERE tag NOT IN ('BASE_TABLE', 'METADATA', 'EXTERNAL_FILE_CACHE', 'ART_INDEX')
"""


@dataclass
class Tally:
    """What became of the questions so far."""

    answered: int = 0
    failed: int = 0
    """Wrong in themselves."""
    refused: int = 0
    """Not for readers to ask."""
    cancelled: int = 0
    """Over a limit."""


@dataclass(eq=False)
class _Question:
    cursor: duckdb.DuckDBPyConnection
    text: str
    started: float
    reason: str = ""
    """Why it was cancelled."""
    told: bool = False
    """Whether the log has it that this one does not stop."""


class Readers:
    """Answers questions, from many threads at once; `tally` counts them."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, queries: Queries, memory: int) -> None:
        """`connection` is the owner's; `memory` is what its database may use, in bytes."""
        self.tally = Tally()
        self._connection, self._keeper = connection, connection.cursor()
        self._seconds = queries.timeout.total_seconds()
        self._limit = show_duration(queries.timeout)
        self._crowded = int(memory * CROWDED)
        self._rule = Rule(connection)
        self._lock = threading.Lock()
        self._running: set[_Question] = set()
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._numbers = itertools.count(1)
        self._results: dict[str, tuple[str, float]] = {}  # the latest of each session: its database, when it was made
        self._fetched: list[str] = []  # databases whose session has asked another question since
        self._niced = threading.local()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="kmon-readers", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Cancel what is running and take no more questions."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watch.join()
        with self._lock:
            for question in self._running:
                self._cancel(question, "the store was closed: ask again")
        deadline = time.monotonic() + STOPPING
        while self._running and time.monotonic() < deadline:
            time.sleep(TICK)
        self._drop([*self._fetched, *(name for name, _ in self._results.values())])
        for cursor in (*self._idle, self._keeper):
            cursor.close()

    def leave(self, session: str, query: str) -> str | None:
        """What Quack shall run for `session` instead of `query`: what gives its result, or says why there is none.

        None where readers may not run such a query at all.
        """
        self._be_nice()
        with self._cursor() as cursor:
            try:
                text = bare(query)
                allowed = self._rule.allows(cursor, text)
            except duckdb.Error:
                allowed = False
            if not allowed or self._closed.is_set():
                self._count("refused")
                return None
            return self._answer(session, text, cursor)

    def _answer(self, session: str, text: str, cursor: duckdb.DuckDBPyConnection) -> str:
        question, name = _Question(cursor, text, time.monotonic()), f"kmon_result_{next(self._numbers)}"
        cursor.execute(f"ATTACH ':memory:' AS {name}")
        with self._lock:
            self._running.add(question)
        try:
            cursor.execute(f"CREATE TABLE {name}.result AS FROM (\n{text}\n)")
        except duckdb.Error as error:
            with self._lock:
                self._fetched.append(name)
            self._count("cancelled" if question.reason else "failed")
            return failing(question.reason or sql.first_line(error))
        finally:
            with self._lock:
                self._running.discard(question)
        with self._lock:
            self.tally.answered += 1
            if session in self._results:
                self._fetched.append(self._results[session][0])
            self._results[session] = name, time.monotonic()
        return f"FROM {name}.result"

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of one's own; they are kept, since making one costs more than a small question."""
        with self._lock:
            cursor = self._idle.pop() if self._idle else None
        cursor = cursor or self._quiet()
        try:
            yield cursor
        finally:
            with self._lock:
                self._idle.append(cursor)

    def _quiet(self) -> duckdb.DuckDBPyConnection:
        cursor = self._connection.cursor()
        cursor.execute("PRAGMA disable_progress_bar")  # it would be drawn on the owner's terminal
        return cursor

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.tally, what, getattr(self.tally, what) + 1)

    def _be_nice(self) -> None:
        """Have Linux prefer ingestion to this thread, which is one of Quack's, for as long as it lives."""
        if sys.platform == "linux" and not getattr(self._niced, "done", False):
            self._niced.done = True
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    # ---- the watch -------------------------------------------------------------------------------------------------

    def _keep_watch(self) -> None:
        tidied = time.monotonic()
        while not self._closed.wait(TICK):
            now = time.monotonic()
            with self._lock:
                long = [question for question in self._running if now - question.started > TICK]
                for question in long:
                    self._look_at(question, now)
            tidying = now - tidied > 1.0
            crowded = (long or tidying) and self._is_crowded()
            if crowded or tidying:
                tidied = now
                self._tidy(now - (HURRY if crowded else LINGER))
            if crowded and self._is_crowded():  # still, with the results gone that may go
                self._cancel_oldest()

    def _look_at(self, question: _Question, now: float) -> None:
        over = now - question.started - self._seconds
        if over > 0:
            sentence = f"the query took longer than {self._limit} and was cancelled: narrow it by time or partner"
            self._cancel(question, question.reason or sentence)
        if over > STUBBORN and not question.told:
            question.told = True
            log.warning("a cancelled query does not stop", query=question.text[:200], seconds=round(over))

    def _is_crowded(self) -> bool:
        try:
            row = self._keeper.execute(_HELD).fetchone()
        except duckdb.Error:  # nothing may end the watch; a store that was closed answers nothing any more
            return False
        return row is not None and row[0] >= self._crowded

    def _cancel_oldest(self) -> None:
        with self._lock:
            going = [question for question in self._running if not question.reason]
            if going:
                sentence = "the query needed too much memory and was cancelled: narrow it by time or partner"
                self._cancel(min(going, key=lambda question: question.started), sentence)

    @staticmethod
    def _cancel(question: _Question, reason: str) -> None:
        """Call it with the lock: else its connection may be answering another question by now."""
        question.reason = reason
        question.cursor.interrupt()

    def _tidy(self, before: float) -> None:
        """Drop the results that were fetched, and those of `before` that nobody has fetched."""
        with self._lock:
            done, self._fetched = self._fetched, []
            for session, (name, made) in list(self._results.items()):
                if made < before:
                    done.append(name)
                    del self._results[session]
        self._drop(done)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(duckdb.Error):
                self._keeper.execute(f"DETACH {name}")
