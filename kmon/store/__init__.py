"""The store: rollups of events in DuckDB, one owner, many readers.

`open` embeds it, `connect` reads it over Quack; code above cannot tell which it has.
"""

from __future__ import annotations

from pathlib import Path

from kmon import environment
from kmon.config import Config
from kmon.errors import StoreBusyError, StoreError
from kmon.store.base import Span, Store
from kmon.store.embedded import Commit, DeadLetter, EmbeddedStore
from kmon.store.quack import RemoteStore, answers
from kmon.store.serving import SCHEME, check_address, serving, token_for

__all__ = [
    "SCHEME",
    "Commit",
    "DeadLetter",
    "EmbeddedStore",
    "RemoteStore",
    "Span",
    "Store",
    "answers",
    "check_address",
    "connect",
    "open",
    "open_for_reading",
    "serving",
    "token_for",
]


def open(path: str | Path, config: Config | None = None) -> EmbeddedStore:
    """Own the DuckDB file `path`: read and write. With `config` it is made where it does not exist."""
    return EmbeddedStore(path, config)


def connect(address: str, token: str | None = None) -> RemoteStore:
    """Read a store that another process owns, such as ``quack:localhost:9494``.

    `token` is what the ``.token`` file beside the store holds; it defaults to KMON_STORE_TOKEN.
    """
    if token is None:
        token = environment.store_token()
    if not token:
        message = f"{address} wants the token in the .token file beside the store: pass it, or set KMON_STORE_TOKEN"
        raise StoreError(message)
    return RemoteStore(address, token)


def open_for_reading(config: Config, store: str | None = None) -> Store:
    """The configured store, whoever owns it: over Quack where a process does, otherwise the file itself.

    `store` is a path or a ``quack:`` address and defaults to the configuration's.
    """
    where = store or (config.store if config.store.startswith(SCHEME) else str(config.resolve(config.store)))
    if where.startswith(SCHEME):
        return RemoteStore(where, token_for(config.resolve(config.store)))
    if not Path(where).exists():
        message = f"{where} does not exist: fill it with 'kmon up', 'kmon ingest' or 'kmon replay'"
        raise StoreError(message)
    try:
        return EmbeddedStore(where, read_only=True)
    except StoreBusyError:
        return RemoteStore(config.serve, token_for(where), patience=0)
