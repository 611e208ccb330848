"""Who owns the store: the owner writes its name into the store, and whoever reads the store is told by a live one.

There is no pid file that could be stale: where nobody answers, nobody owns it, and a new owner writes its own name
before it answers. A second process that wants to own it waits in `standby`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from kmon.config import Config
from kmon.errors import StoreError
from kmon.store import EmbeddedStore, RemoteStore, Store, token_for
from kmon.store.quack import LIMIT
from kmon.store.schema import Schema

KEY = "owner"


@dataclass(frozen=True)
class Owner:
    """The process that owns a store."""

    pid: int
    told_by: int
    """The process to send SIGHUP to: itself, or its supervisor."""
    config: str
    """The file by which it runs."""
    digest: str
    """Of that file's text."""
    host: str = ""
    turn: int = 0
    """How many times it was asked to take over another text."""
    asked: str = ""
    """The digest of the last one."""
    refused: str = ""
    """Why it did not; empty where it did."""
    changes: tuple[str, ...] = ()
    """What that changed, in words."""

    @classmethod
    def this(cls, config: Config) -> Owner:
        """This process, which goes by `config`: its supervisor's copy, or the file itself."""
        supervisor = os.getppid() if config.copied else os.getpid()
        return cls(os.getpid(), supervisor, str(config.file), config.digest, socket.gethostname())

    def write(self, store: EmbeddedStore) -> None:
        """Tell the readers of `store`."""
        store.note(KEY, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of(cls, store: Store) -> Owner | None:
        """The last one to own it, which still does where it is the one who answers."""
        found = store.noted(KEY)
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in json.loads(found).items() if k in known}) if found else None


class Telephone:
    """Asks the owner of the store file `store` at `address` who it is, again and again over one connection."""

    def __init__(self, address: str, store: str | Path, *, limit: float = LIMIT) -> None:
        """`limit` is how long, in seconds, an answer may take."""
        self._address, self._store, self._limit = address, store, limit
        self._line: RemoteStore | None = None

    def owner(self) -> Owner | None:
        """The owner; None where nobody answers now."""
        try:
            if self._line is None:
                self._line = RemoteStore(self._address, token_for(self._store), patience=0, limit=self._limit)
            return Owner.of(self._line)
        except StoreError:
            self.close()
            return None

    def schema(self) -> Schema | None:
        """The schema of the store now, which a reload may have changed since the call began; None: nobody answers."""
        if self.owner() is None or self._line is None:
            return None
        found = self._line.noted("schema")
        return Schema.loads(found) if found else None

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
