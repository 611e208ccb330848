"""The store's owner as a process of its own, as in production: ``kmon ingest`` from a topic, answering over Quack."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kmon.bench.stream import TOPIC
from kmon.bench.workplace import configured
from kmon.config import Config
from kmon.errors import KmonError, StoreError
from kmon.store import RemoteStore, token_for
from kmon.testing.ports import free_port

_PATIENCE = 60.0


@dataclass(frozen=True)
class Owner:
    """A running owner."""

    config: Config
    pid: int

    @property
    def file(self) -> Path:
        """The store's."""
        return self.config.resolve(self.config.store)

    def connect(self) -> RemoteStore:
        """A reader of its store."""
        return RemoteStore(self.config.serve, token_for(self.file), patience=_PATIENCE)

    def memory(self) -> float:
        """Resident, in bytes."""
        return float(psutil.Process(self.pid).memory_info().rss)

    def size(self) -> tuple[int, int]:
        """Bytes of the store's file and of its log."""
        log = self.file.with_name(self.file.name + ".wal")
        return self.file.stat().st_size, log.stat().st_size if log.exists() else 0


def kafka_config(where: Path, address: str, **other: Any) -> Config:
    """The shipped configuration for the topic of a broker, served at a free port, with `other` keys."""
    source = {"kind": "kafka", "brokers": [address], "topics": [TOPIC]}
    return configured(where, source, serve=f"quack:127.0.0.1:{free_port()}", **other)


@contextlib.contextmanager
def owning(config: Config) -> Iterator[Owner]:
    """Run ``kmon ingest`` with this configuration; KmonError where it does not answer in a minute."""
    log = config.path.with_name("owner.log")
    command = [sys.executable, "-m", "kmon", "ingest", "--config", str(config.path)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    owner = Owner(config, process.pid)
    try:
        _wait_until_it_answers(owner, process, log)
        yield owner
    finally:
        _end(process)


def _wait_until_it_answers(owner: Owner, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            RemoteStore(owner.config.serve, token_for(owner.file), patience=0).close()
        except StoreError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                message = f"the store's owner does not answer: {said[-1] if said else error}"
                raise KmonError(message) from error
            time.sleep(0.1)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.kill(process.pid, sign)
                process.wait(20)
