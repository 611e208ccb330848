"""How the owner serves the store over Quack, DuckDB's client-server protocol, and who may read it.

Readers may run one SELECT at a time (`kmon.store.rule`), within limits (`kmon.store.readers`). Quack speaks plain HTTP,
on loopback unless told otherwise. Its extensions come from wheels, so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import http.client
import importlib.resources
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from kmon import environment
from kmon.config import Queries
from kmon.errors import StoreError
from kmon.store import sql
from kmon.store.embedded import EmbeddedStore
from kmon.store.readers import Readers
from kmon.store.rule import LEAVE

SCHEME = "quack:"
LOCAL = ("localhost", "127.0.0.1")
LETTING_GO = 2.0
"""Seconds that a server which was stopped a moment ago has to let go of its port."""
ABANDONED = dt.timedelta(minutes=10)
"""A session that asked nothing for so long is ended: Quack itself keeps those of dead readers for good."""
_NO_MORE = b"\3\0" + b"\xff" * 9 + b"\1" + b"\xff" * 4
_SETTINGS = {
    "enable_external_access": "false",  # a query of the store reads and writes nothing else
    "max_expression_depth": "250",  # DuckDB takes minutes to plan a sum of a thousand terms, and cannot be interrupted
    "quack_authorization_function": f"'{LEAVE}'",
    "lock_configuration": "true",
}


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
def serving(
    store: EmbeddedStore, address: str, token: str, queries: Queries | None = None, *, beyond_localhost: bool = False
) -> Iterator[Readers]:
    """Answer readers at `address` (``quack:localhost:9494``) until the block ends.

    From then on this process can load no extension and open no other file through DuckDB. StoreError where the port
    is taken, or where the host is another than this machine's own and `beyond_localhost` is not set.
    """
    check_address(address, beyond_localhost=beyond_localhost)
    connection = store.connection.cursor()
    try:
        with _answering(connection, queries or Queries()) as readers:
            options = f"token={sql.text(token)}" + (", allow_other_hostname=true" if beyond_localhost else "")
            connection.execute(f"CALL quack_serve({sql.text(address)}, {options})")
            try:
                with _ending_abandoned(connection, address):
                    yield readers
            finally:
                readers.close()
                with contextlib.suppress(duckdb.Error):
                    connection.execute(f"CALL quack_stop({sql.text(address)})")
    except duckdb.Error as error:
        message = f"the store cannot be served at {address}: {sql.first_line(error)}"
        raise StoreError(message) from error
    finally:
        connection.close()


@contextlib.contextmanager
def _answering(connection: duckdb.DuckDBPyConnection, queries: Queries) -> Iterator[Readers]:
    """Have Quack ask `Readers` for leave, with the configuration locked, which can be done once in a process."""
    locked = connection.execute("SELECT current_setting('lock_configuration')::VARCHAR").fetchone()
    memory = queries.memory or _half_of_memory()
    if locked != ("true",):
        load_extensions(connection)
        limits = {"memory_limit": f"'{memory}B'", "max_temp_directory_size": f"'{queries.disk}B'"}
        for name, value in (limits | _SETTINGS).items():
            connection.execute(f"SET GLOBAL {name} = {value}")
    readers = Readers(connection, queries, memory)
    try:
        connection.create_function(LEAVE, readers.leave, ["VARCHAR", "VARCHAR"], "VARCHAR", side_effects=True)
        yield readers
    finally:
        readers.close()
        with contextlib.suppress(duckdb.Error):  # the store may have been closed by now
            connection.remove_function(LEAVE)


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@contextlib.contextmanager
def _ending_abandoned(connection: duckdb.DuckDBPyConnection, address: str) -> Iterator[None]:
    """While the block runs, end the sessions of readers that are gone."""
    stop = threading.Event()
    cursor = connection.cursor()

    def keep_ending() -> None:
        while not stop.wait(ABANDONED.total_seconds() / 10):
            with contextlib.suppress(OSError, http.client.HTTPException):  # busy: the next time will do
                end_sessions(cursor, address, dt.datetime.now(dt.UTC) - ABANDONED)

    thread = threading.Thread(target=keep_ending, name="kmon-sessions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        cursor.close()


def end_sessions(connection: duckdb.DuckDBPyConnection, address: str, before: dt.datetime) -> int:
    """End the sessions that asked nothing since `before`, and say how many. A reader that comes back gets a new one."""
    idle = f"SELECT connection_id FROM quack_active_connections() WHERE query_started_at < {sql.time(before)}"
    sessions = [str(session) for (session,) in connection.execute(idle).fetchall()]
    host, port = host_and_port(address)
    for session in sessions:
        # Quack's own message for it, the one that DETACH sends: there is no function for the server's side
        goodbye = b"\1\0\x0b\2\0" + bytes([len(session)]) + session.encode() + _NO_MORE
        there = http.client.HTTPConnection(host, port, timeout=5)
        try:
            there.request("POST", "/quack", goodbye, {"Content-Type": "application/octet-stream"})
            there.getresponse().read()
        finally:
            there.close()
    return len(sessions)


def host_and_port(address: str) -> tuple[str, int]:
    """The two halves of an address; StoreError where it is none."""
    host, _, port = address.removeprefix(SCHEME).rpartition(":")
    if not address.startswith(SCHEME) or not host or not port.isdigit():
        message = f"the store cannot be served at {address!r}: write quack:<host>:<port>"
        raise StoreError(message)
    return host, int(port)


def check_address(address: str, *, beyond_localhost: bool = False) -> None:
    """StoreError where readers cannot be served there: Quack itself would share a port with another server."""
    host, port = host_and_port(address)
    if host not in LOCAL and not beyond_localhost:
        message = (
            f"{address} can be reached from other machines, and Quack does not encrypt: serve at localhost, or set"
            " serve_beyond_localhost: true in kmon.yaml if a proxy with TLS stands in front"
        )
        raise StoreError(message)
    deadline = time.monotonic() + LETTING_GO
    while (error := _bind(host, port)) is not None:
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


def load_extensions(connection: duckdb.DuckDBPyConnection) -> None:
    """Load Quack and the HTTP client it needs, on whichever side."""
    for extension in ("httpfs", "quack"):
        package = importlib.resources.files(f"duckdb_extension_{extension}")
        path = package / "extensions" / f"v{duckdb.__version__}" / f"{extension}.duckdb_extension"
        connection.execute(f"LOAD {sql.text(str(path))}")
