"""Where a benchmark works: a temporary folder, the shipped configuration with another source, and the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from kmon.config import Config, load_config
from kmon.resources import TEMPLATE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a benchmark is run."""

    scale: float = 1.0
    """Of the amount of data and time; below 1 the figures mean little, and everything is still done."""
    minutes: float = 2.0
    """How long the soak takes."""
    repeats: int = 3
    """How often each contestant runs, in turn; the best run counts, as neighbours only ever slow one down."""
    rivals: bool = True
    """Whether others take part."""
    data: Path | None = None
    """Folder of public data sets; None: KMON_DATA, or where a checkout has it."""
    days: tuple[int, ...] = (1,)
    """Days ago of which the benchmark of a sweep's speed has history: each takes as much disk and time to make again,
    and the sweeps more memory and time."""
    say: Say = field(default=lambda _: None)
    """Is told what goes on."""

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for the time of a benchmark; Ctrl-C and SIGTERM end it at once, and nothing that it started is left.

    An exception in their place could be lost in a callback, and would wait for each process to end in good order.
    """
    with tempfile.TemporaryDirectory(prefix="kmon-bench-", ignore_cleanup_errors=True) as name:

        def end(number: int, _: object) -> None:
            for started in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    started.kill()
            shutil.rmtree(name, ignore_errors=True)
            os._exit(128 + number)

        previous = {sign: signal.signal(sign, end) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield Path(name)
        finally:
            for sign, handler in previous.items():
                signal.signal(sign, handler)


def configured(where: Path, source: Mapping[str, Any] | None = None, **other: Any) -> Config:
    """The shipped configuration as `where`/kmon.yaml, with another source and other keys of the first level."""
    document = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    document |= {"source": dict(source or {"kind": "files", "paths": ["none.ndjson"]}), **other}
    path = where / "kmon.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return load_config(path)


def machine() -> str:
    """What the figures were measured on, in a line."""
    from importlib.metadata import version

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = ", ".join(f"{name} {version(name)}" for name in ("polars", "duckdb"))
    return f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, Python {platform.python_version()}, {parts}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
