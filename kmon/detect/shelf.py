"""Cubes on disk, so that a job that starts afresh goes on with what the one before it has read.

    <folder>/<as_of>/cube.json        up to where it is filled, and by what configuration; written last
    <folder>/<as_of>/*.npy            the tables, of which the columns of today are filled in place
    <folder>/arrivals/                who came when, for who is silent (`kmon.detect.arrivals`)

Nothing in it is needed: what is missing, broken, by another configuration or of another store is read again from the
store. Two that fill the same cube write the same numbers.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from kmon.config import Config
from kmon.detect.arrivals import FOLDER, Arrivals
from kmon.detect.cube import Cube, Day
from kmon.detect.keys import Keys
from kmon.store import Span, Store
from kmon.store.schema import ID

log = structlog.get_logger("kmon")
KEPT = 2
"""The newest cubes: the one in use and the next, which may be read ahead."""
TOLD = "cube.json"
LEFT = 3600.0
"""Seconds after which an unfinished folder is nobody's any more."""


@dataclass(frozen=True)
class Shelf:
    """The cubes of one store and configuration, in a folder."""

    folder: Path
    digest: str

    @classmethod
    def of(cls, folder: Path, store: Store, config: Config) -> Shelf:
        """In `folder`, for what a cube depends on: watch, windows, metrics, and the schema of the store.

        Of this very store: another one may have been made anew in its place. And since this machine was started: what
        a page of a table holds may not have reached the disk when it went down.
        """
        parts = [config.watch, config.windows, config.every, config.detectors, config.metrics]
        parts += [store.schema, store.noted(ID), _boot()]
        return cls(folder, hashlib.sha256(repr(parts).encode()).hexdigest())

    def take(self, as_of: dt.datetime) -> Cube | None:
        """The cube with this base; None where there is none that can be used."""
        where = self._place(as_of)
        try:
            told = json.loads((where / TOLD).read_text(encoding="utf-8"))
            return _read(where, told) if told["digest"] == self.digest else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("what sweeps have read is read again", folder=str(where), reason=str(error))
            shutil.rmtree(where, ignore_errors=True)
            return None

    def put(self, cube: Cube) -> None:
        """Keep a cube, or how far it has been filled by now; a full disk is no reason not to judge."""
        where = self._place(cube.as_of)
        try:
            if not cube.copy or _copy_at(where) != cube.copy:
                self._write(cube, where)
            told = json.dumps({"digest": self.digest, **_told(cube)})
            with tempfile.NamedTemporaryFile("w", dir=where, delete=False, encoding="utf-8") as file:
                file.write(told)
            Path(file.name).replace(where / TOLD)
            self._tidy()
        except OSError as error:
            log.warning("what sweeps have read is not kept", folder=str(where), reason=str(error))

    def arrivals(self, store: Store, dimension: str, measure: str, hours: int) -> Arrivals:
        """Who came when in so many hours, of the values of a dimension; by a measure that is a count."""
        return Arrivals.of(self.folder, store, dimension, measure, hours)

    def _place(self, as_of: dt.datetime) -> Path:
        return self.folder / f"{as_of.astimezone(dt.UTC):%Y%m%dT%H%M%S}"

    def _write(self, cube: Cube, where: Path) -> None:
        """All of a cube, at once: of two that do it the second one fails. From then on it is filled in place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as made:
            for name, table in _tables(cube).items():
                np.save(Path(made) / name, table)
            shutil.rmtree(where, ignore_errors=True)
            Path(made).rename(where)
        cube.copy = uuid.uuid4().hex
        cube.today = {m: _table(where, f"today.{i}.npy", "r+") for i, m in enumerate(cube.today)}

    def _tidy(self) -> None:
        """Take away all but the newest cubes, and after a while what a process that was killed has left."""
        there = sorted(path for path in self.folder.iterdir() if path.name != FOLDER)
        whole = [place for place in there if (place / TOLD).exists()]
        left = [place for place in there if place not in whole and time.time() - place.stat().st_mtime > LEFT]
        for old in (*whole[:-KEPT], *left):
            shutil.rmtree(old, ignore_errors=True)


def _tables(cube: Cube) -> dict[str, Any]:
    """All arrays of a cube by the names of their files."""
    measures = [*cube.today]
    tables = {f"today.{i}.npy": cube.today[m] for i, m in enumerate(measures)}
    for name, day in cube.days.items():
        tables |= {f"{name}.{i}.npy": day.values[m] for i, m in enumerate(measures)}
    tables |= {f"usual.{i}.npy": cube.usual(m) for i, m in enumerate(measures)}
    return tables | {f"set.{i}.npy": known for i, known in enumerate(cube.keys.known)}


def _copy_at(where: Path) -> str | None:
    """Which copy is there: another process may have put its own in place of the one that a cube was taken from."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads((where / TOLD).read_text(encoding="utf-8"))["copy"])
    return None


def _told(cube: Cube) -> dict[str, Any]:
    """What is no array, as JSON."""
    times = {key: getattr(cube, key).isoformat() for key in ("as_of", "until", "oldest", "end")}
    widths = {key: getattr(cube, key).total_seconds() for key in ("bin", "grain")}
    days = {name: [day.span.start.isoformat(), day.span.count] for name, day in cube.days.items()}
    keys = {"sets": cube.keys.sets, "sizes": cube.keys.sizes, "leaves": cube.keys.leaves}
    return {**times, **widths, "days": days, "measures": [*cube.today], "late": cube.late, "copy": cube.copy, **keys}


def _boot() -> str:
    """Which start of this machine it is; nothing where that is not told."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return ""


def _table(where: Path, name: str, mode: Any = "r") -> Any:
    return np.load(where / name, mmap_mode=mode)


def _read(where: Path, told: dict[str, Any]) -> Cube:
    times = {key: dt.datetime.fromisoformat(told[key]) for key in ("as_of", "until", "oldest", "end")}
    bin_, grain = (dt.timedelta(seconds=told[key]) for key in ("bin", "grain"))
    sets = tuple(tuple(grouping) for grouping in told["sets"])
    measures = told["measures"]
    days = {
        name: Day(
            Span(name, dt.datetime.fromisoformat(start), count, bin_),
            {m: _table(where, f"{name}.{i}.npy") for i, m in enumerate(measures)},
        )
        for name, (start, count) in told["days"].items()
    }
    today = {m: _table(where, f"today.{i}.npy", "r+") for i, m in enumerate(measures)}
    known = tuple(np.array(_table(where, f"set.{i}.npy")) for i in range(len(sets)))
    keys = Keys(sets, told["sizes"], known, told["leaves"])
    usuals = {m: np.array(_table(where, f"usual.{i}.npy")) for i, m in enumerate(measures)}
    late, copy = told["late"], told["copy"]
    return Cube(**times, bin=bin_, grain=grain, keys=keys, today=today, days=days, late=late, copy=copy, usuals=usuals)
