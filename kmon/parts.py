"""The long-running parts of kmon, each of which also runs on its own: source, jobs, apps, notifier."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime as dt
import functools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import structlog

from kmon.config import Config, KafkaSource, SimulatorSource
from kmon.errors import KmonError
from kmon.ingest import Ingestion, Progress
from kmon.owner import Owner
from kmon.reload import reread, take_over
from kmon.sources import Source
from kmon.sources.files import FilesSource
from kmon.standby import own
from kmon.store import SCHEME, EmbeddedStore, Store, open_for_reading, serving, token_for
from kmon.store.readers import Readers
from kmon.telemetry import exposing

if TYPE_CHECKING:
    from kmon.alerts.notifier import Notifier
    from kmon.ledger import Ledger

log = structlog.get_logger("kmon")
NAMES = ("source", "jobs", "apps", "notifier")
"""In the order in which they are started; they are stopped in the reverse order."""
GLANCE = 0.1
"""Seconds between two looks at whether a signal came."""


def source_of(config: Config) -> Source:
    """The configured source of events."""
    if isinstance(config.source, SimulatorSource):
        from kmon.sources.simulate import Simulator

        return Simulator(config.source)
    if isinstance(config.source, KafkaSource):
        from kmon.sources.kafka import KafkaTopics

        return KafkaTopics(config.source)
    return FilesSource([config.resolve(path) for path in config.source.paths], follow=True)


def store_path(config: Config, store: str | None) -> str:
    """The store's file, for the one who owns it; KmonError for an address, which another process owns."""
    where = store or config.store
    if where.startswith(SCHEME):
        message = f"{where} belongs to another process: name the store's file instead"
        raise KmonError(message)
    return where if store else str(config.resolve(where))


def _serve(config: Config, owned: EmbeddedStore, path: str) -> AbstractContextManager[Readers]:
    open_to_others = config.serve_beyond_localhost
    return serving(owned, config.serve, token_for(path), config.queries, beyond_localhost=open_to_others)


def run_source(
    config: Config,
    stop: threading.Event,
    store: str | None = None,
    on_batch: Callable[[Progress], None] | None = None,
    *,
    pause: threading.Event | None = None,
    standby: bool = False,
) -> Progress:
    """Own the store: ingest the configured source and answer readers, until `stop` is set.

    Where `pause` is set, which it must be with `stop` too, an edited configuration is taken over between two batches.
    StoreBusyError where another process owns the store, unless this one is a `standby`, which waits for that one's end.
    """
    path, pause, done = store_path(config, store), pause or stop, Progress()
    opened = own(path, config, stop, standby=standby)
    if opened is None:
        return done
    owned, config = opened
    with owned:
        owner = Owner.this(config)
        owner.write(owned)  # before it answers: who is answered must not hear of an earlier one
        with _serve(config, owned, path) as readers, exposing(config, owned, readers) as meters:
            log.info("store open", path=path, serving=config.serve)
            while True:
                told = functools.partial(_add, done)
                report = (lambda p, told=told: on_batch(told(p))) if on_batch else None
                pipeline = Ingestion(config, owned, on_batch=report, on_commit=meters.committed)
                done = told(pipeline.run(source_of(config), pause))
                if stop.is_set() or not pause.is_set():  # told to stop, or the source has ended
                    return done
                resume(pause, stop)
                config, owner = take_over(config, owner, owned)


def _add(one: Progress, other: Progress) -> Progress:
    return Progress(*map(operator.add, dataclasses.astuple(one), dataclasses.astuple(other)))


def resume(pause: threading.Event, stop: threading.Event) -> None:
    """Let `pause` be set again, by the next one who asks."""
    pause.clear()
    if stop.is_set():
        pause.set()


def run_jobs(
    config: Config, stop: threading.Event, store: str | None = None, *, pause: threading.Event | None = None
) -> None:
    """Run the scheduled notebooks until `stop` is set; where `pause` is set, by the edited configuration."""
    from kmon.jobs.scheduler import Scheduler
    from kmon.ledger import open_ledger

    with open_ledger(config, store) as ledger:
        scheduler = Scheduler(config, ledger, store=store)

        def reload() -> None:
            nonlocal config
            if pause is not None and pause.is_set() and not stop.is_set():
                resume(pause, stop)
                config = reread(config)
                scheduler.follow(config)

        scheduler.run(stop, reload)


def run_apps(
    config: Config,
    stop: threading.Event,
    store: str | None = None,
    *,
    pause: threading.Event | None = None,
    port: int | None = None,
    show: bool = False,
) -> None:
    """Serve the pages until `stop` is set; KmonError where the server ends by itself.

    Each page reads the configuration when it is opened: only where the section `apps` changed is the server replaced.
    """
    pause = pause or stop
    while True:
        changed = _serve_apps(config, stop, pause, store, port=port, show=show)
        if changed is None:
            return
        config = changed


def _serve_apps(
    config: Config, stop: threading.Event, pause: threading.Event, store: str | None, *, port: int | None, show: bool
) -> Config | None:
    """Serve the pages until `stop` is set (None), or another configuration has other `apps`."""
    from kmon.apps.serve import serve

    served = serve(config, store, port=port, show=show)
    process = subprocess.Popen(
        served.command,
        env=served.environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  (what it calls takes no lock that a thread could hold)
    )
    try:
        while process.poll() is None:
            if not pause.wait(0.2):
                continue
            if stop.is_set():
                return None
            resume(pause, stop)
            config, before = reread(config), config
            if config.apps != before.apps:
                return config
        message = f"the page server ended by itself with exit code {process.returncode}"
        raise KmonError(message)
    finally:
        terminate(process)


def end_with_parent() -> None:
    """Have Linux ask this process to end when its parent is gone, however it went: its port must be free again."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def run_notifier(
    config: Config, stop: threading.Event, store: str | None = None, *, pause: threading.Event | None = None
) -> None:
    """Deliver alerts until `stop` is set; where `pause` is set, by the edited configuration."""
    from kmon.ledger import open_ledger

    pause = pause or stop
    while True:
        with open_for_reading(config, store) as opened, open_ledger(config, store) as ledger:
            notifier(config, opened, ledger).run(pause)
        if stop.is_set():
            return
        resume(pause, stop)
        config = reread(config)


def notifier(config: Config, store: Store, ledger: Ledger) -> Notifier:
    """The notifier of this configuration, by the wall clock."""
    from kmon.alerts.notifier import Notifier
    from kmon.partners import Partners

    partners = Partners.load(config.resolve(config.partners) if config.partners else None)
    return Notifier(ledger, config, partners, store, lambda: dt.datetime.now(dt.UTC))


def run_part(
    name: str, config: Config, stop: threading.Event, store: str | None = None, *, standby: bool = False
) -> None:
    """Run one part by its name until `stop` is set; SIGHUP has it take over an edited configuration.

    `standby` is for the source.
    """
    with told_to_reload(stop) as pause:
        if name == "source":
            run_source(config, stop, store, pause=pause, standby=standby)
        else:
            {"jobs": run_jobs, "apps": run_apps, "notifier": run_notifier}[name](config, stop, store, pause=pause)


def terminate(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Ask a process group to end, and make it."""
    for sign, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sign)
            process.wait(wait)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@contextmanager
def told_to_reload(stop: threading.Event) -> Iterator[threading.Event]:
    """An event that SIGHUP sets, and whatever sets `stop` here: Ctrl-C, SIGTERM, the parent's death."""
    pause = threading.Event()
    with _noting(signal.SIGHUP) as asked:

        def follow() -> None:
            while not stop.wait(GLANCE):
                if asked:
                    asked.clear()
                    pause.set()
            pause.set()

        threading.Thread(target=follow, daemon=True).start()
        yield pause


@contextmanager
def until_told_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and the death of the parent process set."""
    stop = threading.Event()
    parent = os.getppid()
    with _noting(signal.SIGINT, signal.SIGTERM) as told:

        def watch() -> None:
            while not stop.wait(GLANCE):
                if told or os.getppid() != parent:
                    stop.set()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield stop
        finally:
            stop.set()


@contextmanager
def _noting(*signals: signal.Signals) -> Iterator[list[int]]:
    """The numbers of those of `signals` that came, for a thread to act on.

    To set an event in the handler would not do: the code that it interrupts may hold the event's lock, and so may
    another handler.
    """
    came: list[int] = []
    previous = {sign: signal.signal(sign, lambda number, _: came.append(number)) for sign in signals}
    try:
        yield came
    finally:
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def wait_for(condition: Callable[[], bool], stop: threading.Event, seconds: float) -> bool:
    """Wait until `condition` holds; False where it does not in time, or `stop` is set before."""
    deadline = time.monotonic() + seconds
    while not stop.is_set():
        if condition():
            return True
        if time.monotonic() > deadline or stop.wait(0.1):
            return False
    return False
