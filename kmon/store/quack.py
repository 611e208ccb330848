"""Reading a store that another process owns, over Quack; see DESIGN, section 6, for the protocol's edges."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import http.client
import math
import threading
import time
import weakref
from pathlib import Path

import duckdb
import pyarrow as pa

from kmon.errors import StoreError
from kmon.store import sql
from kmon.store.base import Store
from kmon.store.rule import readable
from kmon.store.running import aside, run
from kmon.store.schema import Schema
from kmon.store.serving import host_and_port, load_extensions, token_for

LIMIT = 60.0
"""Seconds after which a reader gives up on an owner that does not answer."""
FRESH = 1.0
"""Seconds for which a reader takes the schema and the tiers to be as they were: a reload or upkeep may change them."""
_FACTS = "SELECT value, (SELECT list({'tier': tier, 'begins': begins}) FROM tiers) FROM meta WHERE key = 'schema'"
_WRONG = """
SELECT json_extract_string(parsed, '$.error_message') FROM (SELECT json_serialize_sql($1::VARCHAR) AS parsed)
WHERE json_extract_string(parsed, '$.error_type') = 'parser'
"""


def answers(address: str, store: str | Path) -> bool:
    """Whether the owner of the store file `store` answers at `address` now."""
    try:
        RemoteStore(address, token_for(store), patience=0).close()
    except StoreError:
        return False
    return True


class RemoteStore(Store):
    """A store that another process owns, read over Quack. Each thread has a session of its own."""

    def __init__(
        self, address: str, token: str, *, patience: float = 10.0, limit: float = LIMIT, fresh: float = FRESH
    ) -> None:
        """Connect to `address`; StoreError where nobody answers there.

        `patience` is how long, in seconds, a query waits for an owner that is being restarted; `limit` how long it
        waits for an answer of one that is there. The owner has a limit of its own and keeps it. `fresh` is how old what
        is known of the schema may be.
        """
        super().__init__()
        self._limit, self._fresh = limit, fresh
        self._address, self._token, self._patience = address, token, patience
        self._local = threading.local()
        self._sessions: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self._looked, self._stored = -math.inf, ""
        self.refresh()

    def refresh(self) -> None:
        if time.monotonic() - self._looked < self._fresh:
            return
        stored, begins = self._one(_FACTS)
        self._begins = {entry["tier"]: entry["begins"].replace(tzinfo=dt.UTC) for entry in begins or []}
        self._looked = time.monotonic()
        if stored != self._stored:
            self.schema, self._stored = Schema.loads(stored), stored
            self._forget_numbers()

    def begins(self, tier: str) -> dt.datetime | None:
        self.refresh()
        return self._begins.get(tier)

    def close(self) -> None:
        """End the sessions of all threads."""
        for session in list(self._sessions):
            _end(session)
        self._local = threading.local()

    def arrow(self, text: str) -> pa.Table:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return run(self._session(), f"FROM remote.query({sql.text(text)})")
            except duckdb.Error as error:
                if "Timeout was reached" in str(error):
                    self._forget_session()
                    raise StoreError(self._silence()) from error
                self._looked = -math.inf  # it may be the schema that is another one
                if not _owner_gone(error):
                    raise StoreError(self._explain(error, text)) from error
                self._forget_session()
                if time.monotonic() > deadline:
                    message = f"nobody answers at {self._address}: start the owner of the store with 'kmon up'"
                    raise StoreError(message) from error
                time.sleep(0.2)

    def _silence(self) -> str:
        return f"{self._address} did not answer within {self._limit:g} s: is its owner overloaded?"

    def _knock(self) -> None:
        """StoreError where somebody listens and says nothing: DuckDB's ATTACH would wait for ever."""
        host, port = host_and_port(self._address)
        knock = http.client.HTTPConnection(host, port, timeout=self._limit)
        try:
            knock.request("HEAD", "/")
            knock.getresponse()
        except TimeoutError as error:
            raise StoreError(self._silence()) from error
        except (OSError, http.client.HTTPException):  # nobody listens, or not in this way: ATTACH says it better
            return
        finally:
            knock.close()

    def _forget_session(self) -> None:
        if (session := getattr(self._local, "session", None)) is not None:
            del self._local.session
            _end(session)

    def _explain(self, error: duckdb.Error, query: str) -> str:
        text = sql.first_line(error)
        if text == "Authentication failed":
            return f"{self._address} does not take this token: the .token file beside the store holds the right one"
        if text == "Authorization failed":
            wrong = self._session().execute(_WRONG, [query]).fetchone() if readable(query) else None
            rule = "readers of a store may run one SELECT at a time, and no function that reads files or acts"
            return f"{wrong[0]}: {rule}" if wrong and wrong[0] else rule
        return text

    def _session(self) -> duckdb.DuckDBPyConnection:
        session: duckdb.DuckDBPyConnection | None = getattr(self._local, "session", None)
        if session is None:
            self._knock()
            session = duckdb.connect()
            self._sessions.add(session)
            aside(session, functools.partial(self._attach, session))
            self._local.session = session
        return session

    def _attach(self, session: duckdb.DuckDBPyConnection) -> None:
        load_extensions(session)
        session.execute("SET http_retries = 0")  # a query that is sent again is worked on twice
        session.execute(f"SET http_timeout = {max(1, round(self._limit))}")
        session.execute(f"CREATE SECRET (TYPE quack, TOKEN {sql.text(self._token)})")
        session.execute(f"ATTACH {sql.text(self._address)} AS remote")


def _end(session: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):
        aside(session, lambda: session.execute("DETACH remote"))
    session.close()


def _owner_gone(error: duckdb.Error) -> bool:
    """Whether the server is away or was restarted, so that connecting again may help.

    What a query does wrong at the far end comes as an InvalidInputException too.
    """
    return isinstance(error, duckdb.IOException) or sql.first_line(error) == "Invalid connection id"
