"""``kmon doctor``: is everything there that kmon needs, and what to do where it is not."""

from __future__ import annotations

import glob
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kmon import environment
from kmon.config import Config, FilesSource, KafkaSource, SlackSink, counted
from kmon.errors import KmonError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def examine(config: Config, store: str | None = None) -> Iterator[Check]:
    """Look at one thing after the other; a failed check does not stop the others."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("installation", _installation),
        ("configuration", lambda: f"{config.path}: {_watched(config)}"),
        ("detectors", lambda: _detectors(config)),
        ("notebooks", lambda: _notebooks(config)),
        ("store", lambda: _store(config, store)),
        ("ledger", lambda: _ledger(config, store)),
        ("source", lambda: _source(config)),
        *((f"sink {name}", lambda sink=sink: _sink(sink)) for name, sink in config.sinks.items()),
        ("partners", lambda: _partners(config)),
        ("store server", lambda: _store_port(config)),
        ("page server", lambda: _page_port(config)),
        ("telemetry", lambda: _telemetry_port(config)),
        ("disk", lambda: _disk(config)),
    ]
    for name, check in checks:
        try:
            yield Check(name, ok=True, detail=check())
        except KmonError as error:
            yield Check(name, ok=False, detail=str(error))


def check_named(config: Config) -> None:
    """KmonError where a detector, a notebook or the partners that the configuration names cannot be had."""
    for check in (_detectors, _notebooks, _partners):
        check(config)


def _installation() -> str:
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("kmon", "duckdb", "polars", "panel", "papermill")
    )
    quack = importlib.metadata.version("duckdb-extension-quack")
    if quack != importlib.metadata.version("duckdb"):
        message = f"duckdb-extension-quack {quack} does not fit DuckDB: install both in the same version"
        raise KmonError(message)
    return f"Python {sys.version.split()[0]}, {versions}"


def _watched(config: Config) -> str:
    return f"{counted(len(config.metrics), 'metric')}, {counted(len(config.watch), 'grouping set')}"


def _detectors(config: Config) -> str:
    from kmon.detect.contract import load_detectors

    return ", ".join(one.name + (" (shadow)" if use.shadow else "") for use, one in load_detectors(config))


def _notebooks(config: Config) -> str:
    from kmon.resources import notebook

    return ", ".join(str(notebook(config, job.notebook)) for job in config.jobs.values()) or "no jobs"


def _store(config: Config, store: str | None) -> str:
    from kmon.store import SCHEME, open_for_reading
    from kmon.store.schema import Schema

    where = store or config.store
    if not where.startswith(SCHEME) and not config.resolve(where).exists():
        return f"{config.resolve(where)} does not exist yet: 'kmon up' makes it"
    with open_for_reading(config, store) as opened:
        wanted = Schema.of(config)
        wanted.change_sql(opened.schema, config)  # says what the store has and the configuration has not
        newest = opened.newest()
        found = f"answers; newest event {newest:%Y-%m-%d %H:%M:%S} UTC" if newest else "answers; no events yet"
        changes = wanted.changes(opened.schema)
        found += f"; 'kmon reload' would take over: {', '.join(changes)}" if changes else ""
        if idle := [name for name in config.forget if name not in wanted.gone(opened.schema)]:
            found += f"; 'forget' has nothing left to drop of {', '.join(idle)}: take it out of {config.path.name}"
        return found


def _ledger(config: Config, store: str | None) -> str:
    from kmon.ledger import open_ledger

    with open_ledger(config, store) as ledger:
        open_, waiting = ledger.open_incidents(), ledger.deliveries(status=["pending"])
        return f"{counted(len(open_), 'open incident')}, {counted(len(waiting), 'alert')} waiting"


def _source(config: Config) -> str:
    source = config.source
    if isinstance(source, FilesSource):
        found = sum(len(glob.glob(str(config.resolve(path)), recursive=True)) for path in source.paths)  # noqa: PTH207
        return f"{counted(found, 'file')} {'matches' if found == 1 else 'match'} {', '.join(source.paths)}"
    if isinstance(source, KafkaSource):
        from kmon.sources.kafka import describe

        return describe(source)
    return f"simulator: {counted(source.partners, 'partner')}, {source.rate:g} events/s"


def _sink(sink: object) -> str:
    if not isinstance(sink, SlackSink):
        return "needs nothing"
    from kmon.alerts.sinks.slack import whoami

    return f"{environment.slack_api_url()} knows the bot as {whoami()}"


def _partners(config: Config) -> str:
    from kmon.partners import Partners

    if config.partners is None:
        return "no reference: every incident goes to the default channel"
    return counted(Partners.load(config.resolve(config.partners)).frame.height, "partner")


def _store_port(config: Config) -> str:
    from kmon.store import SCHEME, check_address

    if config.store.startswith(SCHEME):
        return "another process serves the store"
    if _is_running(config):
        return f"kmon is running and answers at {config.serve}"
    check_address(config.serve, beyond_localhost=config.serve_beyond_localhost)
    return f"{config.serve} is free"


def _page_port(config: Config) -> str:
    return _port(config, config.apps.host, config.apps.port, "the pages", "apps.port")


def _telemetry_port(config: Config) -> str:
    address = config.telemetry
    if address is None:
        return "not asked for: Prometheus is told nothing"
    return _port(config, address.host, address.port, "kmon's own metrics", "telemetry.port")


def _port(config: Config, host: str, port: int, what: str, key: str) -> str:
    from kmon.apps.serve import free_port

    try:
        return f"port {free_port(host, port, what, key)} is free"
    except KmonError:
        if not _is_running(config):
            raise
        return f"port {port} is in use, as it is while kmon is running"


def _is_running(config: Config) -> bool:
    from kmon.store import answers

    return answers(config.serve, config.resolve(config.store))


def _disk(config: Config) -> str:
    return _room(shutil.disk_usage(config.path.parent).free, config)


def _room(free: int, config: Config) -> str:
    if free < 2**30:
        message = f"only {free / 2**20:.0f} MiB are free beside {config.path}: make room"
        raise KmonError(message)
    return f"{free / 2**30:.0f} GiB free"
