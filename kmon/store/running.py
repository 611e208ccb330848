"""Working on a connection so that Ctrl-C ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import duckdb
import pyarrow as pa

T = TypeVar("T")
_GLANCE = 0.1
"""Seconds between two looks for signals: since polars handles them too, they interrupt no lock that is waited for."""


def run(connection: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
    """The result of one statement."""
    return aside(connection, lambda: connection.execute(text).to_arrow_table())


def aside(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """What `work` with this connection gives.

    DuckDB looks for signals between pieces of work, which may take minutes each, and makes a RuntimeError of them. So
    in the main thread, the only one that Python gives signals to, another thread does the work.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1, "query") as pool:
        working = pool.submit(work)
        try:
            while wait([working], _GLANCE).not_done:
                pass
        except (KeyboardInterrupt, SystemExit):
            connection.interrupt()
            raise
        return working.result()
