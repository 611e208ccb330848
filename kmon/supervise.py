"""``kmon up``: every part in a process of its own, started in order, restarted when it dies, stopped in order."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import structlog

from kmon import environment, parts
from kmon.apps.serve import free_port
from kmon.config import Config
from kmon.errors import KmonError
from kmon.owner import Owner, Telephone
from kmon.store import check_address, token_for

log = structlog.get_logger("kmon")
PATIENCE = 60.0
"""Seconds that the source part gets until the store answers."""
SETTLED = 30.0
"""A part that has run for so many seconds has started well: its next death is a new one."""
MOST = 5
"""Deaths in a row after which the source is given up, and everything is stopped."""
LONGEST = 30.0
EVERY = 0.5
"""Seconds between two looks at the parts."""


@dataclass
class _Part:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    again_at: float = field(default=0.0)


class Supervisor:
    """Starts the parts and keeps them running."""

    def __init__(
        self, config: Config, store: str | None = None, names: Sequence[str] = parts.NAMES, *, standby: bool = False
    ) -> None:
        """A `standby` waits where another process owns the store, now or later, with all parts but the source away."""
        self._config, self._standby = config, standby
        self._store = parts.store_path(config, store)
        self._source, *self._others = [_Part(name) for name in names]

    def run(self, stop: threading.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Run until `stop` is set; KmonError where a part cannot be kept alive.

        `on_ready` is called each time that the store answers and the other parts have been started.
        """
        if not self._standby:
            check_address(self._config.serve, beyond_localhost=self._config.serve_beyond_localhost)
            if any(part.name == "apps" for part in self._others):
                free_port(self._config, self._config.apps.port)
        with closing(Telephone(self._config.serve, self._store)) as telephone:
            try:
                while self._until_owner(telephone, stop):
                    for part in self._others:
                        self._start(part)
                    if on_ready is not None:
                        on_ready()
                    self._until_lost(telephone, stop)
                    self._end(self._others)
            finally:
                self._end([self._source, *self._others])

    def _until_owner(self, telephone: Telephone, stop: threading.Event) -> bool:
        """Wait until our source owns the store and answers; False where `stop` is set before."""
        source, began = self._source, time.monotonic()
        if source.process is None:
            self._start(source)
        while not stop.is_set():
            if not self._standby and source.process is not None and (code := source.process.poll()) is not None:
                message = f"the part 'source' ended at once with exit code {code}"
                raise KmonError(message)
            self._keep(source)
            if self._is_ours(telephone.owner()):
                return True
            if not self._standby and time.monotonic() - began > PATIENCE:
                message = f"the store did not answer at {self._config.serve} within {PATIENCE:.0f} s"
                raise KmonError(message)
            stop.wait(EVERY / 2)
        return False

    def _until_lost(self, telephone: Telephone, stop: threading.Event) -> None:
        """Keep the parts running until `stop` is set, or another process took the store when our source had died."""
        known: subprocess.Popen[bytes] | None = self._source.process
        while not stop.wait(EVERY):
            for part in (self._source, *self._others):
                self._keep(part)
            if self._source.process is known:
                continue
            owner = telephone.owner()  # asked once: our source may begin to answer between two questions
            if self._is_ours(owner):
                known = self._source.process
            elif owner is not None:
                message = f"another process (pid {owner.pid}) took over the store {self._store}"
                if not self._standby:
                    raise KmonError(message)
                log.warning(f"{message}: standing by again")
                return

    def _is_ours(self, owner: Owner | None) -> bool:
        return self._source.process is not None and owner is not None and owner.pid == self._source.process.pid

    @staticmethod
    def _end(ending: Sequence[_Part]) -> None:
        for part in reversed(ending):
            if part.process is not None:
                parts.terminate(part.process)
            part.process, part.deaths, part.again_at = None, 0, 0.0

    def _start(self, part: _Part) -> None:
        config, store = str(self._config.path), self._store
        address = store if part.name == "source" else self._config.serve
        command = [sys.executable, "-m", "kmon", "up", "--part", part.name, "--config", config, "--store", address]
        part.process = subprocess.Popen(
            [*command, *(["--standby"] if part.name == "source" and self._standby else [])],
            stdin=subprocess.DEVNULL,
            env=environment.for_child(config=config, store=address, token=token_for(store)),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which stops the parts in order
            preexec_fn=parts.end_with_parent,  # noqa: PLW1509  (what it calls takes no lock that a thread could hold)
        )
        part.started = time.monotonic()
        log.debug("part started", part=part.name, pid=part.process.pid)

    def _keep(self, part: _Part) -> None:
        """Restart a part that died, each time a little later."""
        now = time.monotonic()
        if part.process is None:
            if now >= part.again_at:
                self._start(part)
            return
        code = part.process.poll()
        if code is None:
            return
        part.deaths = 1 if now - part.started > SETTLED else part.deaths + 1
        if code == 2 or (part.deaths > MOST and part.name == "source"):  # the others must not stop ingestion
            message = f"the part {part.name!r} ended with exit code {code} and cannot be kept running"
            raise KmonError(message)
        wait = min(LONGEST, 2.0 ** min(part.deaths - 1, 10))
        log.warning("part died", part=part.name, exit_code=code, again_in=dt.timedelta(seconds=wait))
        part.process, part.again_at = None, now + wait
