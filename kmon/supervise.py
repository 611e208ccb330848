"""``kmon up``: every part in a process of its own, started in order, restarted when it dies, stopped in order."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from kmon import environment, parts
from kmon.apps.serve import free_port
from kmon.config import Config
from kmon.errors import KmonError
from kmon.store import answers, check_address, token_for

log = structlog.get_logger("kmon")
PATIENCE = 60.0
"""Seconds that the source part gets until the store answers."""
SETTLED = 30.0
"""A part that has run for so many seconds has started well: its next death is a new one."""
MOST = 5
"""Deaths in a row after which the source is given up, and everything is stopped."""
LONGEST = 30.0


@dataclass
class _Part:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    again_at: float = field(default=0.0)


class Supervisor:
    """Starts the parts and keeps them running."""

    def __init__(self, config: Config, store: str | None = None, names: Sequence[str] = parts.NAMES) -> None:
        self._config = config
        self._store = parts.store_path(config, store)
        self._parts = [_Part(name) for name in names]

    def run(self, stop: threading.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Run until `stop` is set; KmonError where a part cannot be kept alive.

        `on_ready` is called once, when the store answers and the other parts have been started.
        """
        check_address(self._config.serve)
        if any(part.name == "apps" for part in self._parts):
            free_port(self._config, self._config.apps.port)
        try:
            first, *others = self._parts
            self._start(first)
            if not parts.wait_for(lambda: self._answers(first), stop, PATIENCE):
                if stop.is_set():
                    return
                message = f"the store did not answer at {self._config.serve} within {PATIENCE:.0f} s"
                raise KmonError(message)
            for part in others:
                self._start(part)
            if on_ready is not None:
                on_ready()
            while not stop.wait(0.5):
                for part in self._parts:
                    self._keep(part)
        finally:
            for part in reversed(self._parts):
                if part.process is not None:
                    parts.terminate(part.process)

    def _start(self, part: _Part) -> None:
        config, store = str(self._config.path), self._store
        address = store if part.name == "source" else self._config.serve
        command = [sys.executable, "-m", "kmon", "up", "--part", part.name, "--config", config, "--store", address]
        part.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=environment.for_child(config=config, store=address, token=token_for(store)),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which stops the parts in order
        )
        part.started = time.monotonic()
        log.debug("part started", part=part.name, pid=part.process.pid)

    def _answers(self, source: _Part) -> bool:
        if source.process is not None and (code := source.process.poll()) is not None:
            message = f"the part 'source' ended at once with exit code {code}"
            raise KmonError(message)
        return answers(self._config.serve, self._store)

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
