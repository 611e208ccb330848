"""Opening the store to own it; where another process does, a standby waits beside it and takes over when it ends."""

from __future__ import annotations

import contextlib
import threading

import structlog

from kmon.config import Config
from kmon.errors import ConfigError, StoreBusyError, StoreError
from kmon.reload import check_fixed, draft
from kmon.store import EmbeddedStore

EVERY = 0.25
"""Seconds between two attempts."""
log = structlog.get_logger("kmon")


def own(
    path: str, config: Config, stop: threading.Event, *, standby: bool = False
) -> tuple[EmbeddedStore, Config] | None:
    """Open the store to own it, and say which configuration to go by; StoreBusyError where another process owns it.

    A `standby` waits until that one has ended, however it ends: the lock on the file goes with it. It then goes by
    kmon.yaml as it is now, which the other one may have taken over meanwhile. None where `stop` is set before.
    """
    try:
        return EmbeddedStore(path, config), config
    except StoreBusyError as busy:
        if not standby:
            raise
        log.warning("standing by until the store is free", store=path, owner=busy.pid)
    while not stop.wait(EVERY):
        with contextlib.suppress(StoreBusyError):
            _look_whether_free(path)
            taken = take(path, config)
            log.warning("took over the store", store=path)
            return taken
    return None


def _look_whether_free(path: str) -> None:
    """StoreBusyError where it is not: the file is not read again for each attempt."""
    try:
        EmbeddedStore(path, read_only=True).close()
    except StoreBusyError:
        raise
    except StoreError:  # not made yet, or by an earlier kmon: its owner sees to that
        pass


def take(path: str, config: Config) -> tuple[EmbeddedStore, Config]:
    """Open a store that is free by kmon.yaml as it is now; by `config`, with a warning, where that cannot be.

    ConfigError where the store takes neither.
    """
    try:
        with draft(config) as new:
            check_fixed(new, config)
            return EmbeddedStore(path, new), new
    except ConfigError as error:
        log.warning("kmon.yaml as it is now cannot be used: going by what it was at the start", reason=str(error))
        return EmbeddedStore(path, config), config
