"""Recorded events: ndjson (plain, .gz, .zst), csv and parquet, in the given order, which is arrival order.

A position is the number of the record in its file, so that reading goes on where it stopped; a file is known by its
absolute path. A damaged file gives what can be read of it, and a record marked as damaged in place of the rest.
"""

from __future__ import annotations

import glob
import io
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from kmon.errors import SourceError
from kmon.sources import Positions, RawBatch

JSON = (".ndjson", ".jsonl", ".json")
_PACKED = 1 << 15
"""Bytes of an archive that are unpacked at once: what is lost where it is corrupt."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Limits:
    """The size of a batch."""

    records: int = 50_000
    """At most."""
    bytes: int = 8 << 20
    """Of JSON, about."""


@dataclass
class Place:
    """How far a plain JSON file has been read: complete lines, and their bytes."""

    position: int = 0
    offset: int = 0


class FilesSource:
    """Files, one after the other.

    With `follow` it goes on watching, every so many seconds: new files that match, and new complete lines of plain JSON
    files.
    """

    def __init__(
        self, paths: Sequence[str | Path], *, follow: bool = False, every: float = 1.0, limits: Limits | None = None
    ) -> None:
        self._patterns = [str(path) for path in paths]
        self._follow, self._every, self._limits = follow, every, limits or Limits()

    def read(self, positions: Positions, stop: threading.Event) -> Iterator[RawBatch]:
        """Batches of the files' records after `positions`; a plain JSON file's position counts lines."""
        reached = {key[0]: position for key, position in positions.items()}
        places: dict[Path, Place] = {}
        sizes: dict[Path, int] = {}
        while True:
            for path in self._files():
                size = _size(path)
                if size is None or sizes.get(path) == size:
                    continue
                first, place = reached.get(str(path), 0), places.setdefault(path, Place())
                for batch in read_file(path, first, self._limits, growing=self._follow, place=place):
                    yield batch
                    reached[batch.source] = batch.next
                    if stop.is_set():
                        return
                sizes[path] = size
            if not self._follow or stop.wait(self._every):
                return

    def _files(self) -> list[Path]:
        """The files that there are now, each once; SourceError for a name that is no pattern and does not exist."""
        found: dict[Path, None] = {}
        for pattern in self._patterns:
            try:
                literal = Path(pattern).exists() or not glob.has_magic(pattern)
                for match in [pattern] if literal else sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
                    path = Path(match)
                    if path.is_file():
                        found[path.resolve()] = None
                    elif not self._follow:
                        message = f"{match} is not a file" if path.exists() else f"{match} does not exist"
                        raise SourceError(message)
            except OSError as error:
                message = f"{pattern} cannot be read: {error.strerror}"
                raise SourceError(message) from error
        return list(found)


def read_file(
    path: Path, first: int = 0, limits: Limits | None = None, *, growing: bool = False, place: Place | None = None
) -> Iterator[RawBatch]:
    """The records of one file from number `first` on; SourceError where it cannot be opened.

    Of a `growing` file the last line is left alone until its newline is there. `place` says where to begin in plain
    JSON, no later than `first`, and is moved.
    """
    limits = limits or Limits()
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    try:
        if last in (".parquet", ".csv"):
            yield from _read_table(path, (_parquet if last == ".parquet" else _csv)(path, limits.records), first)
        elif last in JSON:
            with path.open("rb") as raw:
                yield from _read_json(path, raw, first, limits, place or Place(), growing=growing)
        elif last in (".gz", ".zst") and suffixes[-2:-1] and suffixes[-2] in JSON:
            with path.open("rb") as raw:
                yield from _read_json(path, _Unpacked(raw, last), first, limits, Place(), growing=False)
        else:
            message = f"{path} is of no known kind: name it .ndjson, .ndjson.gz, .ndjson.zst, .csv or .parquet"
            raise SourceError(message)
    except OSError as error:
        reason = "no permission" if isinstance(error, PermissionError) else error.strerror or str(error)
        message = f"{path} cannot be read: {reason}"
        raise SourceError(message) from error


def _read_json(
    path: Path, stream: BinaryIO | _Unpacked, first: int, limits: Limits, place: Place, *, growing: bool
) -> Iterator[RawBatch]:
    if place.offset and isinstance(stream, io.IOBase):
        stream.seek(place.offset)
    rest, damage = b"", None
    while True:
        try:
            chunk = stream.read(limits.bytes)
        except _DamagedError as error:
            chunk, damage = b"", f"damaged archive: {error}"
        if not chunk:
            break
        if place.offset == 0 and not rest and chunk.startswith(_BOM):
            chunk, place.offset = chunk[len(_BOM) :], len(_BOM)
        data = rest + chunk if rest else chunk
        end = data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        if data:
            size = int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))
            batch = RawBatch(str(path), 0, place.position, place.position + size, data, size)
            place.position, place.offset = place.position + size, place.offset + len(data)
            if (trimmed := batch.after(first)) is not None:
                yield from _split(trimmed, limits.records)
    if ((rest and not growing) or damage) and place.position >= first:
        yield RawBatch(str(path), 0, place.position, place.position + 1, rest + b"\n", 1, damage)


class _DamagedError(Exception):
    """The rest of a file cannot be read."""


class _Unpacked:
    """An archive of any number of gzip members or zstandard frames, that says so where it ends in the middle of one."""

    def __init__(self, raw: BinaryIO, kind: str) -> None:
        self._raw = raw
        self._new: Callable[[], Any] = (
            (lambda: zlib.decompressobj(wbits=31)) if kind == ".gz" else zstandard.ZstdDecompressor().decompressobj
        )
        self._decoder: Any = None
        self._pending = b""
        self._damage: str | None = None

    def read(self, size: int) -> bytes:
        """About `size` bytes; none at the end. What was read before the damage comes before the error."""
        out: list[bytes] = []
        length = 0
        while length < size and self._damage is None:
            data = self._pending or self._raw.read(_PACKED)
            self._pending = b""
            if not data:
                self._damage = "it ends in the middle" if self._decoder is not None else ""
                break
            self._decoder = self._decoder or self._new()
            try:
                out.append(self._decoder.decompress(data))
            except (zlib.error, zstandard.ZstdError) as error:
                self._damage = str(error)
                break
            length += len(out[-1])
            if self._decoder.eof:
                self._pending, self._decoder = self._decoder.unused_data.lstrip(b"\0"), None
        if not out and self._damage:
            raise _DamagedError(self._damage)
        return b"".join(out)


def _split(batch: RawBatch, records: int) -> Iterator[RawBatch]:
    while batch.size > records:
        rest = batch.after(batch.first + records)
        if rest is None or not isinstance(batch.data, bytes) or not isinstance(rest.data, bytes):
            break
        head = batch.data[: len(batch.data) - len(rest.data)]
        yield replace(batch, next=rest.first, data=head, size=records)
        batch = rest
    yield batch


def _read_table(path: Path, tables: Iterator[pl.DataFrame], first: int) -> Iterator[RawBatch]:
    position, damage = 0, None
    while True:
        try:
            table = next(tables, None)
        except (pl.exceptions.PolarsError, pa.ArrowException) as error:
            table, damage = None, f"damaged file: {str(error).splitlines()[0]}"
        if table is None:
            break
        skip, end = max(0, first - position), position + table.height
        if skip < table.height:
            yield RawBatch(str(path), 0, position + skip, end, table[skip:], table.height - skip)
        position = end
    if damage and position >= first:
        yield RawBatch(str(path), 0, position, position + 1, b"\n", 1, damage)


def _parquet(path: Path, records: int) -> Iterator[pl.DataFrame]:
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        for part in file.iter_batches(batch_size=records):
            yield pl.DataFrame(pl.from_arrow(part))


def _csv(path: Path, records: int) -> Iterator[pl.DataFrame]:
    """Every column as text: what type a field has is for the configuration to say."""
    with path.open("rb") as raw:
        if not raw.read(1):
            return
    lazy = pl.scan_csv(path, infer_schema=False, truncate_ragged_lines=True, encoding="utf8-lossy", glob=False)
    yield from lazy.collect_batches(chunk_size=records, maintain_order=True)


def _size(path: Path) -> int | None:
    """In bytes; None where the file has just gone."""
    try:
        return path.stat().st_size
    except OSError:
        return None
