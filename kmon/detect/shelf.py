"""Cubes on disk, so that a job that starts afresh goes on with what the one before it has read.

    <folder>/<as_of>/cube.json        up to where it is filled, and by what configuration; written last
    <folder>/<as_of>/*.npy            the tables, of which the columns of today are filled in place

Nothing in it is needed: what is missing, broken or by another configuration is read again from the store. Two that fill
the same cube write the same numbers.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from kmon.config import Config
from kmon.detect.cube import Cube, Day, Keys
from kmon.store import Span, Store

log = structlog.get_logger("kmon")
KEPT = 2
"""The newest cubes: the one in use and the next, which may be read ahead."""
TOLD = "cube.json"


@dataclass(frozen=True)
class Shelf:
    """The cubes of one store and configuration, in a folder."""

    folder: Path
    digest: str

    @classmethod
    def of(cls, folder: Path, store: Store, config: Config) -> Shelf:
        """In `folder`, for what a cube depends on: watch, windows, metrics, and the schema of the store."""
        parts = [config.watch, config.windows, config.every, config.detectors, config.metrics]
        return cls(folder, hashlib.sha256(repr([*parts, store.schema, store.oldest()]).encode()).hexdigest())

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
            if not _is_of(cube, where):
                self._write(cube, where)
            told = json.dumps({"digest": self.digest, **_told(cube)})
            with tempfile.NamedTemporaryFile("w", dir=where, delete=False, encoding="utf-8") as file:
                file.write(told)
            Path(file.name).replace(where / TOLD)
            for old in sorted(p for p in self.folder.iterdir() if (p / TOLD).exists())[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            log.warning("what sweeps have read is not kept", folder=str(where), reason=str(error))

    def _place(self, as_of: dt.datetime) -> Path:
        return self.folder / f"{as_of.astimezone(dt.UTC):%Y%m%dT%H%M%S}"

    def _write(self, cube: Cube, where: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as made:
            for name, table in _tables(cube).items():
                np.save(Path(made) / name, table)
            shutil.rmtree(where, ignore_errors=True)
            shutil.copytree(made, where, copy_function=os.replace)


def _tables(cube: Cube) -> dict[str, Any]:
    """All arrays of a cube by the names of their files."""
    measures = [*cube.today]
    tables = {f"today.{i}.npy": cube.today[m] for i, m in enumerate(measures)}
    for name, day in cube.days.items():
        tables |= {f"{name}.{i}.npy": day.values[m] for i, m in enumerate(measures)}
    return tables | {f"set.{i}.npy": known for i, known in enumerate(cube.keys.known)}


def _is_of(cube: Cube, where: Path) -> bool:
    """Whether a cube's columns are those of the files there."""
    return all(
        isinstance(table, np.memmap) and table.filename is not None and Path(table.filename).parent == where
        for table in cube.today.values()
    )


def _told(cube: Cube) -> dict[str, Any]:
    """What is no array, as JSON."""
    times = {key: getattr(cube, key).isoformat() for key in ("as_of", "until", "oldest", "end")}
    widths = {key: getattr(cube, key).total_seconds() for key in ("bin", "grain")}
    days = {name: [day.span.start.isoformat(), day.span.count] for name, day in cube.days.items()}
    keys = {"sets": cube.keys.sets, "sizes": cube.keys.sizes}
    return {**times, **widths, "days": days, "measures": [*cube.today], "late": cube.late, **keys}


def _read(where: Path, told: dict[str, Any]) -> Cube:
    def table(name: str, mode: Any = "r") -> Any:
        return np.load(where / name, mmap_mode=mode)

    times = {key: dt.datetime.fromisoformat(told[key]) for key in ("as_of", "until", "oldest", "end")}
    bin_, grain = (dt.timedelta(seconds=told[key]) for key in ("bin", "grain"))
    sets = tuple(tuple(grouping) for grouping in told["sets"])
    measures = told["measures"]
    days = {
        name: Day(
            Span(name, dt.datetime.fromisoformat(start), count, bin_),
            {m: table(f"{name}.{i}.npy") for i, m in enumerate(measures)},
        )
        for name, (start, count) in told["days"].items()
    }
    today = {m: table(f"today.{i}.npy", "r+") for i, m in enumerate(measures)}
    keys = Keys(sets, told["sizes"], tuple(np.array(table(f"set.{i}.npy")) for i in range(len(sets))))
    return Cube(**times, bin=bin_, grain=grain, keys=keys, today=today, days=days, late=told["late"])
