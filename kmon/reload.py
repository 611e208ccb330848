"""An edited ``kmon.yaml`` is taken over by the kmon that runs: what may change, what has changed, and asking for it.

`kmon reload` checks the file and sends SIGHUP to the process that the store's owner names; that one checks again, and
the owner writes what became of it into the store, where `kmon reload` reads it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from kmon.config import Config, KafkaSource, copy_config, error_at, load_config
from kmon.enrich import Enricher
from kmon.errors import ConfigError, KmonError, StoreBusyError
from kmon.events import Decoder
from kmon.owner import Owner, Telephone
from kmon.store import EmbeddedStore
from kmon.store.schema import Schema

log = structlog.get_logger("kmon")
FIXED = ("store", "serve", "ledger")
"""What cannot change while kmon runs, be it as a standby."""
OWNED = ("serve_beyond_localhost", "queries", "telemetry")
"""What cannot change either while it owns the store: it is set up when the store is taken."""
SAID = ("dimensions", "measures", "histograms", "metrics", "path", "copied", "digest")
"""What is told one by one, or is no key."""
PATIENCE = 60.0
"""Seconds until a running kmon should have taken over a configuration, or refused it."""


def check(new: Config, running: Config | None, stored: Schema) -> list[str]:
    """What would change, in words; ConfigError where that cannot be done while kmon runs, or not at all."""
    if running is not None:
        check_fixed(new, running, (*FIXED, *OWNED))
    _check_parts(new)
    wanted = Schema.of(new)
    wanted.change_sql(stored, new)
    changes = wanted.changes(stored)
    return changes if running is None else [*changes, *_rereadings(new, running), *_settings(new, running)]


def _check_parts(new: Config) -> None:
    """ConfigError where a part of ingestion could not be made anew, which would end it."""
    Decoder(new)
    Enricher(new)
    if isinstance(new.source, KafkaSource):
        from kmon.sources.kafka.client import Client

        Client(new.source, telling=False).close()


def check_fixed(new: Config, running: Config, keys: Sequence[str] = FIXED) -> None:
    """ConfigError where one of `keys` differs, which cannot change while kmon runs."""
    for key in keys:
        if getattr(new, key) != getattr(running, key):
            message = "cannot change while kmon runs: put it back, or stop kmon and start it again"
            raise error_at(new.path, (key,), message)


def _rereadings(new: Config, old: Config) -> list[str]:
    """The fields that are read otherwise from now on, which history cannot know: it stays as it was counted.

    No reason to refuse it: a producer that moves a field goes on with the same history.
    """
    found = []
    for name, field in new.events.fields.items():
        before = old.events.fields.get(name, field)
        for key, now, then in (
            ("path", field.path or name, before.path or name),
            ("type", field.type, before.type),
        ):
            if now != then:
                found.append(f"field {name} has the {key} {now} instead of {then} (history stays as it was counted)")
    return found


def _settings(new: Config, old: Config) -> list[str]:
    """The other keys that changed."""
    keys = (key for key in type(new).model_fields if key not in (*SAID, *FIXED, *OWNED))
    return [f"{key} changed" for key in keys if getattr(new, key) != getattr(old, key)]


def take_over(config: Config, owner: Owner, store: EmbeddedStore) -> tuple[Config, Owner]:
    """The owner's side: go by the file as it is now, and write down what became of it.

    Where that cannot be, nothing changes, and the log says why.
    """
    turn = owner.turn + 1
    try:
        new = load_config(config.file)
        changes = tuple(check(new, config, store.schema))
        store.reconfigure(new)
    except KmonError as error:
        log.error("kmon.yaml was not taken over", reason=str(error))
        owner = replace(owner, turn=turn, asked=_digest(config.file), refused=str(error), changes=())
        owner.write(store)
        return config, owner
    log.warning("took over kmon.yaml", changes=", ".join(changes) or "none")
    owner = replace(owner, turn=turn, digest=new.digest, asked=new.digest, refused="", changes=changes)
    owner.write(store)
    return new, owner


@contextmanager
def draft(config: Config) -> Iterator[Config]:
    """The file as it is now, for a block that decides on it; ConfigError where it is bad.

    Where `config` goes by a copy, a new one takes its place when the block ends well.
    """
    if config.copied is None:
        yield load_config(config.path)
        return
    copy = config.copied.with_suffix(".new")
    try:
        yield copy_config(config.path, copy).model_copy(update={"copied": config.copied})
        copy.replace(config.copied)
    finally:
        copy.unlink(missing_ok=True)


def reread(config: Config) -> Config:
    """The file as it is now; `config` where it is bad, which the log tells."""
    try:
        return load_config(config.file)
    except ConfigError as error:
        log.error("kmon.yaml was not taken over", reason=str(error))
        return config


def _digest(file: Path) -> str:
    """Of a file that may not be a configuration."""
    try:
        return hashlib.sha256(file.read_text(encoding="utf-8-sig").encode()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return ""


def ask(config: Config, store: str) -> list[str]:
    """Have the kmon that owns the store file `store` take over `config`, and wait for it; what has changed, in words.

    ConfigError where it will not have it, KmonError where none runs or it does not answer in time.
    """
    with closing(Telephone(config.serve, store)) as telephone:
        owner = telephone.owner()
        if owner is None or (stored := telephone.schema()) is None:
            raise KmonError(_nobody(config, store))
        running = load_config(owner.config) if owner.config and owner.config != str(config.path) else None
        if owner.host != socket.gethostname():
            message = f"the owner of the store runs on {owner.host}: reload it there"
            raise KmonError(message)
        if (reads := str(running.path) if running else owner.config) != str(config.path):
            message = f"the kmon that runs reads {reads}, not {config.path}: name it with --config"
            raise KmonError(message)
        check(config, running, stored)
        _tell(owner)
        return _answer(telephone, owner, config)


def _nobody(config: Config, store: str) -> str:
    try:
        EmbeddedStore(store, read_only=True).close()
    except StoreBusyError as busy:
        hint = "if 'serve' was edited in kmon.yaml, put it back"
        return f"{store} is owned by process {busy.pid}, which does not answer at {config.serve}: {hint}"
    except KmonError:
        pass
    return f"no kmon runs on {store}: start it with 'kmon up', which reads kmon.yaml"


def _tell(owner: Owner) -> None:
    try:
        os.kill(owner.told_by, signal.SIGHUP)
    except OSError as error:
        message = f"the kmon that runs (pid {owner.told_by}) cannot be told ({error.strerror}): reload it as its user"
        raise KmonError(message) from error


def _answer(telephone: Telephone, before: Owner, config: Config) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        now = telephone.owner()
        if now is not None and (now.pid, now.turn) != (before.pid, before.turn):
            if now.digest == config.digest and not now.refused:
                return list(now.changes)
            if now.asked == config.digest and now.refused:
                raise ConfigError(now.refused)
        time.sleep(0.1)
    message = f"kmon has not taken over {config.path} within {PATIENCE:.0f} s: its log says why"
    raise KmonError(message)
