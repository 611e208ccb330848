"""Quack, DuckDB's client-server protocol: how the owner serves the store and everybody else reads it.

Readers may run one SELECT at a time, checked at the server with DuckDB's own parser; see DESIGN, section 6, for the
protocol's edges. The extensions come from wheels, so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.resources
import os
import re
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from kmon import environment
from kmon.errors import StoreError
from kmon.store import sql
from kmon.store.base import Store
from kmon.store.embedded import EmbeddedStore
from kmon.store.schema import Schema

SCHEME = "quack:"
LETTING_GO = 2.0
"""Seconds that a server which was stopped a moment ago has to let go of its port."""
_RULES = "kmon_rules"
"""A database in memory with the rule for readers, so that the store's file holds nothing but data."""
_READABLE = (
    "duckdb_columns", "duckdb_databases", "duckdb_functions", "duckdb_indexes", "duckdb_schemas", "duckdb_tables",
    "duckdb_types", "duckdb_views", "generate_series", "histogram", "histogram_values", "json_each", "json_tree",
    "pragma_database_size", "pragma_show", "pragma_storage_info", "pragma_table_info", "pragma_version", "range",
    "repeat", "summary", "unnest",
)  # fmt: skip
"""The table functions that readers may call: no files, no side effects, and none that runs SQL from a text."""
_FORBIDDEN = """
SELECT DISTINCT function_name FROM duckdb_functions()
WHERE function_type IN ('table', 'pragma', 'table_macro') AND NOT list_contains($1, function_name)
"""
_RULE = """
CREATE MACRO kmon_rules.main.may_run(session, query) AS (
    json_extract_string(json_serialize_sql(query::VARCHAR), '$.error') = 'false'
    AND json_array_length(json_serialize_sql(query::VARCHAR), '$.statements') = 1
    AND NOT regexp_matches(lower(json_serialize_sql(query::VARCHAR)), {forbidden})
)
"""


_WRONG = "SELECT json_extract_string(json_serialize_sql($1::VARCHAR), '$.error_message')"


def token_file(store: str | Path) -> Path:
    """Where the token of a served store lies: ``x.duckdb`` has ``x.token``."""
    return Path(store).with_suffix(".token")


def token_for(store: str | Path) -> str:
    """The token from the environment, or the one beside the store; it is generated, readable by its owner only."""
    from_environment = environment.store_token()
    if from_environment:
        return from_environment
    path = token_file(store)
    try:
        with contextlib.suppress(FileExistsError), os.fdopen(_create(path), "w") as file:
            file.write(secrets.token_urlsafe(24))
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"{path} cannot be read or made ({error.strerror}): set KMON_STORE_TOKEN instead"
        raise StoreError(message) from error


def _create(path: Path) -> int:
    """A new file that only its owner may read; FileExistsError where there is one."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)


@contextlib.contextmanager
def serving(store: EmbeddedStore, address: str, token: str) -> Iterator[None]:
    """Answer readers at `address` (``quack:localhost:9494``) until the block ends.

    From then on this process can load no extension and open no other file through DuckDB. StoreError where the port
    is taken.
    """
    check_address(address)
    connection = store.connection.cursor()
    try:
        _close_to_readers(connection)
        connection.execute(f"CALL quack_serve({sql.text(address)}, token={sql.text(token)})")
    except duckdb.Error as error:
        message = f"the store cannot be served at {address}: {sql.first_line(error)}"
        raise StoreError(message) from error
    try:
        yield
    finally:
        with contextlib.suppress(duckdb.Error):
            connection.execute(f"CALL quack_stop({sql.text(address)})")
        connection.close()


def _close_to_readers(connection: duckdb.DuckDBPyConnection) -> None:
    """Let readers run one SELECT at a time, and lock that; once in the life of the database's process."""
    locked = connection.execute("SELECT current_setting('lock_configuration')::VARCHAR").fetchone()
    if locked == ("true",):
        return
    _load_extensions(connection)
    names = [re.escape(name) for (name,) in connection.execute(_FORBIDDEN, [list(_READABLE)]).fetchall()]
    forbidden = f'"function_name":"(quack_.*|getenv|write_log|{"|".join(sorted(names))})"'
    connection.execute(f"ATTACH ':memory:' AS {_RULES}")
    connection.execute(_RULE.format(forbidden=sql.text(forbidden)))
    connection.execute(f"SET GLOBAL quack_authorization_function = '{_RULES}.main.may_run'")
    connection.execute("SET GLOBAL enable_external_access = false")
    connection.execute("SET GLOBAL lock_configuration = true")


def check_address(address: str) -> None:
    """StoreError where the port is taken: Quack itself would share it with another server of a store."""
    host, _, port = address.removeprefix(SCHEME).rpartition(":")
    if not address.startswith(SCHEME) or not host or not port.isdigit():
        message = f"the store cannot be served at {address!r}: write quack:<host>:<port>"
        raise StoreError(message)
    deadline = time.monotonic() + LETTING_GO
    while (error := _bind(host, int(port))) is not None:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        if in_use and time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        reason = "the port is in use" if in_use else str(error)
        hint = "is 'kmon up' running already? If not, choose another one as 'serve' in kmon.yaml"
        message = f"the store cannot be served at {address} ({reason}): {hint}"
        raise StoreError(message) from error


def _bind(host: str, port: int) -> OSError | OverflowError | None:
    """Why the port cannot be had; None where it can.

    Quack binds with SO_REUSEPORT. So does whatever another server of a store left behind: its connections, which linger
    for a minute after it was killed and are in nobody's way; and the server itself, which only a connection shows.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind((host, port))
        with socket.socket() as probe:
            probe.settimeout(1.0)
            probe.connect((host, port))
            if probe.getsockname() == probe.getpeername():  # where nobody listens, a socket can meet itself
                return None
            return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except ConnectionRefusedError:
        return None
    except (OSError, OverflowError) as error:
        return error


def answers(address: str, store: str | Path) -> bool:
    """Whether the owner of the store file `store` answers at `address` now."""
    try:
        RemoteStore(address, token_for(store), patience=0).close()
    except StoreError:
        return False
    return True


class RemoteStore(Store):
    """A store that another process owns, read over Quack. Each thread has a session of its own."""

    def __init__(self, address: str, token: str, *, patience: float = 10.0) -> None:
        """Connect to `address`; StoreError where nobody answers there.

        `patience` is how long, in seconds, a query waits for an owner that is being restarted.
        """
        super().__init__()
        self._address, self._token, self._patience = address, token, patience
        self._local = threading.local()
        self._sessions: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self.schema = Schema.loads(str(self._one("SELECT value FROM meta WHERE key = 'schema'")[0]))

    def close(self) -> None:
        """End the sessions of all threads."""
        for session in list(self._sessions):
            _end(session)
        self._local = threading.local()

    def arrow(self, text: str) -> pa.Table:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._session().execute(f"FROM remote.query({sql.text(text)})").to_arrow_table()
            except duckdb.Error as error:
                if not _owner_gone(error):
                    raise StoreError(self._explain(error, text)) from error
                if (session := getattr(self._local, "session", None)) is not None:
                    del self._local.session
                    _end(session)
                if time.monotonic() > deadline:
                    message = f"nobody answers at {self._address}: start the owner of the store with 'kmon up'"
                    raise StoreError(message) from error
                time.sleep(0.2)

    def _explain(self, error: duckdb.Error, query: str) -> str:
        text = sql.first_line(error)
        if text == "Authentication failed":
            return f"{self._address} does not take this token: copy it from the .token file beside the store"
        if text == "Authorization failed":
            wrong = self._session().execute(_WRONG, [query]).fetchone()
            rule = "readers of a store may run one SELECT at a time, and no function that reads files or acts"
            return f"{wrong[0]}: {rule}" if wrong and wrong[0] else rule
        return text

    def _session(self) -> duckdb.DuckDBPyConnection:
        session: duckdb.DuckDBPyConnection | None = getattr(self._local, "session", None)
        if session is None:
            session = duckdb.connect()
            self._sessions.add(session)
            _load_extensions(session)
            session.execute(f"CREATE SECRET (TYPE quack, TOKEN {sql.text(self._token)})")
            session.execute(f"ATTACH {sql.text(self._address)} AS remote")
            self._local.session = session
        return session


def _end(session: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):
        session.execute("DETACH remote")
    session.close()


def _owner_gone(error: duckdb.Error) -> bool:
    """Whether the server is away or was restarted, so that connecting again may help.

    What a query does wrong at the far end comes as an InvalidInputException too.
    """
    return isinstance(error, duckdb.IOException) or sql.first_line(error) == "Invalid connection id"


def _load_extensions(connection: duckdb.DuckDBPyConnection) -> None:
    for extension in ("httpfs", "quack"):
        package = importlib.resources.files(f"duckdb_extension_{extension}")
        path = package / "extensions" / f"v{duckdb.__version__}" / f"{extension}.duckdb_extension"
        connection.execute(f"LOAD {sql.text(str(path))}")
