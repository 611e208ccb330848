"""``kmon up``: every part in a process of its own, started in order, restarted when it dies, stopped in order."""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from kmon import environment, parts
from kmon.apps.serve import free_port
from kmon.config import Config, copy_config, load_config
from kmon.errors import KmonError, StoreBusyError, StoreError
from kmon.owner import Owner, Telephone
from kmon.reload import check, draft
from kmon.store import check_address, token_for

log = structlog.get_logger("kmon")
PATIENCE = 60.0
"""Seconds that the source part gets until the store answers."""
SETTLED = 30.0
"""A part that has run for so many seconds has started well: its next death is a new one."""
MOST = 5
"""Deaths in a row after which the source is given up, and everything is stopped."""
LONGEST = 30.0
BRIEFLY = 5.0
"""Seconds that whoever listens at our address has to say that he owns the store."""
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
        self._pause = threading.Event()
        self._source, *self._others = [_Part(name) for name in names]

    def run(self, stop: threading.Event, on_ready: Callable[[Config], None] | None = None) -> None:
        """Run until `stop` is set; KmonError where a part cannot be kept alive.

        `on_ready` is called each time that the store answers and the other parts have been started, with what they go
        by. SIGHUP has an edited kmon.yaml taken over; until then all parts, also one that is restarted, go by a copy of
        what it was.
        """
        with parts.told_to_reload(stop) as self._pause, self._copied():
            self._run(stop, on_ready)

    @contextmanager
    def _copied(self) -> Iterator[None]:
        """A copy of kmon.yaml beside the store, for as long as this runs; those of processes that are gone go too."""
        store = Path(self._store)
        for old in store.parent.glob(f"{glob.escape(store.stem)}.running-*.yaml"):
            if not _exists(old.stem.rpartition("-")[2]):
                old.unlink(missing_ok=True)
        copy = store.parent / f"{store.stem}.running-{os.getpid()}.yaml"
        self._config = copy_config(self._config.path, copy)
        try:
            yield
        finally:
            copy.unlink(missing_ok=True)

    def _run(self, stop: threading.Event, on_ready: Callable[[Config], None] | None) -> None:
        if not self._standby:
            self._check_ports()
        with closing(Telephone(self._config.serve, self._store)) as telephone:
            try:
                while self._until_owner(telephone, stop):
                    for part in self._others:
                        self._start(part)
                    if on_ready is not None:
                        on_ready(self._config)
                    self._until_lost(telephone, stop)
                    self._end(self._others)
            finally:
                self._end([self._source, *self._others])

    def _check_ports(self) -> None:
        """StoreError where somebody else has a port that our parts will want."""
        try:
            check_address(self._config.serve, beyond_localhost=self._config.serve_beyond_localhost)
        except StoreError as error:
            with closing(Telephone(self._config.serve, self._store, limit=BRIEFLY)) as telephone:
                owner = telephone.owner()
            if owner is None:  # it is somebody else who listens there
                raise
            message = f"another process (pid {owner.pid}) owns the store {self._store}: wait for its end with --standby"
            raise StoreBusyError(message, pid=owner.pid) from error
        if any(part.name == "apps" for part in self._others):
            free_port(self._config.apps.host, self._config.apps.port)

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
                self._config = load_config(self._config.file)  # a standby's source copies it anew when it takes over
                return True
            if not self._standby and time.monotonic() - began > PATIENCE:
                message = f"the store did not answer at {self._config.serve} within {PATIENCE:.0f} s"
                raise KmonError(message)
            stop.wait(EVERY / 2)
        return False

    def _until_lost(self, telephone: Telephone, stop: threading.Event) -> None:
        """Keep the parts running until `stop` is set, or another process took the store when our source had died."""
        known: subprocess.Popen[bytes] | None = self._source.process
        while not (self._pause.wait(EVERY) and stop.is_set()):
            if self._pause.is_set():
                parts.resume(self._pause, stop)
                self._reload(telephone, stop)
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

    def _reload(self, telephone: Telephone, stop: threading.Event) -> None:
        """Have all parts take over kmon.yaml as it is now, the source first; a bad one changes nothing."""
        before, owner, stored = self._config, telephone.owner(), telephone.schema()
        copy = before.file
        kept = copy.read_text(encoding="utf-8")
        try:
            with draft(before) as new:
                if owner is not None and stored is not None:
                    check(new, before, stored)
        except KmonError as error:
            log.error("kmon.yaml was not taken over", reason=str(error))
            return
        self._config = new
        if self._source.process is None or owner is None:
            return  # it is being restarted, and begins with the new one
        self._source.process.send_signal(signal.SIGHUP)

        def decided() -> bool:
            now = telephone.owner()
            return now is not None and (now.pid, now.turn) != (owner.pid, owner.turn)

        parts.wait_for(decided, stop, PATIENCE)
        now = telephone.owner()
        if now is not None and now.refused:  # the source said why
            copy.write_text(kept, encoding="utf-8")
            self._config = before
            return
        for part in self._others:
            if part.process is not None:
                part.process.send_signal(signal.SIGHUP)

    def _is_ours(self, owner: Owner | None) -> bool:
        return self._source.process is not None and owner is not None and owner.pid == self._source.process.pid

    @staticmethod
    def _end(ending: Sequence[_Part]) -> None:
        for part in reversed(ending):
            if part.process is not None:
                parts.terminate(part.process)
            part.process, part.deaths, part.again_at = None, 0, 0.0

    def _start(self, part: _Part) -> None:
        config, store = str(self._config.file), self._store
        address = store if part.name == "source" else self._config.serve
        command = [sys.executable, "-m", "kmon", "up", "--part", part.name, "--config", config, "--store", address]
        part.process = subprocess.Popen(
            [*command, *(["--standby"] if part.name == "source" and self._standby else [])],
            stdin=subprocess.DEVNULL,
            env=environment.for_child(config=config, store=address, token=token_for(store)),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which stops the parts in order
            preexec_fn=_begin,  # noqa: PLW1509  (what it calls takes no lock that a thread could hold)
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
        log.warning("part died", part=part.name, exit_code=code, again_in=f"{wait:g} s")
        part.process, part.again_at = None, now + wait


def _begin() -> None:
    """In a new part: end with the supervisor, and let no SIGHUP end it before it can listen to one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parts.end_with_parent()


def _exists(pid: str) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
