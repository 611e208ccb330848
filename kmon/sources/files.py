"""Recorded events: ndjson (plain, .gz, .zst), csv and parquet, in the given order, which is arrival order.

A position is the number of the record in its file, so that reading goes on where it stopped; a file is known by its
absolute path. A damaged file gives what can be read of it, and a record marked as damaged in place of the rest.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import os
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import zstandard

from kmon.errors import SourceError
from kmon.sources import Positions, RawBatch, line_count, line_ends

JSON = (".ndjson", ".jsonl", ".json")
_PIECE = 1 << 20
"""Bytes that are read at once: so few that they stay in the processor's cache while lines are counted."""
_PACKED = 1 << 15
"""Bytes of an archive that are unpacked at once: what is lost where it is corrupt."""
FEW = 1_000
"""Lines that a quoted text of a table may go on over."""
SETTLED = 5.0
"""Seconds without a change after which a file that cannot be read bit by bit counts as complete."""
Item = TypeVar("Item")
log = structlog.get_logger("kmon")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Limits:
    """The size of a batch."""

    records: int = 100_000
    """At most."""
    bytes: int = 32 << 20
    """Of JSON, about."""


@dataclass
class Place:
    """How far a plain JSON file has been read: complete lines, and their bytes."""

    position: int = 0
    offset: int = 0


class FilesSource:
    """Files, one after the other.

    With `follow` it goes on watching, every so many seconds: new files that match, and new complete lines of plain JSON
    files. Other kinds are read once they have not changed for SETTLED seconds, as a half-copied archive looks damaged.
    A file that cannot be read is told in the log, and the others are read. A plain JSON file that was truncated or
    replaced is a new file: its source is ``path#2`` from then on, ``path#3`` after the next time.
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
        states: dict[Path, tuple[int, int]] = {}
        while True:
            for path in self._files():
                found = _stat(path)
                if found is None or not self._is_settled(path, found):
                    continue
                state = found.st_size, found.st_ino
                if states.get(path) == state:
                    continue
                try:
                    for batch in self._new(path, reached, places, replaced=_is_replaced(states.get(path), state)):
                        yield batch
                        reached[batch.source] = batch.next
                        if stop.is_set():
                            return
                except SourceError as error:
                    if not self._follow:
                        raise
                    log.warning("file left out", reason=str(error))
                states[path] = state
            if not self._follow or stop.wait(self._every):
                return

    def _new(
        self, path: Path, reached: dict[str, int], places: dict[Path, Place], *, replaced: bool
    ) -> Iterator[RawBatch]:
        """What is new in a file, as the latest of the sources that it has been."""
        number = max((_number(path, source) for source in reached), default=0) or 1
        place = places.setdefault(path, Place())
        if not replaced:
            source = _source(path, number)
            yield from read_file(
                path, reached.get(source, 0), self._limits, growing=self._follow, place=place, source=source
            )
            # shorter than what was read, where a last line without its newline may have counted too
            replaced = _is_plain(path) and place.position < reached.get(source, 0) - 1
        if replaced and self._follow:
            source = _source(path, number + 1)
            log.warning("file was truncated or replaced: it is read anew", path=str(path), source=source)
            places[path] = Place()
            yield from read_file(path, 0, self._limits, growing=True, place=places[path], source=source)

    def _is_settled(self, path: Path, found: os.stat_result) -> bool:
        return not self._follow or _is_plain(path) or time.time() - found.st_mtime >= SETTLED

    def _files(self) -> list[Path]:
        """The files that there are now, each once; SourceError for a name that is no pattern and does not exist."""
        found: dict[Path, None] = {}
        for pattern in self._patterns:
            try:
                literal = Path(pattern).exists() or not glob.has_magic(pattern)
                matches = [pattern] if literal else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
                if not matches and not self._follow:
                    message = f"{pattern} matches no file"
                    raise SourceError(message)
                for match in matches:
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
    path: Path,
    first: int = 0,
    limits: Limits | None = None,
    *,
    growing: bool = False,
    place: Place | None = None,
    source: str | None = None,
) -> Iterator[RawBatch]:
    """The records of one file from number `first` on; SourceError where it cannot be opened.

    Of a `growing` file the last line is left alone until its newline is there. `place` says where to begin in plain
    JSON, no later than `first`, and is moved. `source` is what the batches are said to be of, default the path.
    """
    limits, source = limits or Limits(), source or str(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    try:
        if last == ".parquet":
            yield from _read_table(source, _parquet(path, limits.records), first)
        elif last == ".csv":
            with path.open("rb") as raw:
                yield from _read_csv(source, raw, first, limits)
        elif last in JSON:
            with path.open("rb") as raw:
                yield from _read_json(source, raw, first, limits, place or Place(), growing=growing)
        elif last in (".gz", ".zst") and suffixes[-2:-1] and suffixes[-2] in JSON:
            with path.open("rb") as raw:
                yield from _read_json(source, _Unpacked(raw, last), first, limits, Place(), growing=False)
        else:
            message = f"{path} is of no known kind: name it .ndjson, .ndjson.gz, .ndjson.zst, .csv or .parquet"
            raise SourceError(message)
    except OSError as error:
        reason = "no permission" if isinstance(error, PermissionError) else error.strerror or str(error)
        message = f"{path} cannot be read: {reason}"
        raise SourceError(message) from error


def _read_json(
    source: str, stream: BinaryIO | _Unpacked, first: int, limits: Limits, place: Place, *, growing: bool
) -> Iterator[RawBatch]:
    if place.offset and isinstance(stream, io.IOBase):
        stream.seek(place.offset)
    rest, damage = b"", None
    with contextlib.closing(_ahead(_batches(stream, limits))) as batches:
        try:
            for read, size in batches:
                marked = place.offset == 0 and read.startswith(_BOM)
                lines = read[len(_BOM) :] if marked else read
                place.offset += len(_BOM) if marked else 0
                if not size:
                    rest = lines
                    continue
                batch = RawBatch.consecutive(source, 0, place.position, lines, size)
                place.position, place.offset = place.position + size, place.offset + len(lines)
                if (trimmed := batch.after(first)) is not None:
                    yield trimmed
        except _DamagedError as error:
            damage = f"damaged archive: {error}"
    if ((rest and not growing) or damage) and place.position >= first:
        yield RawBatch.consecutive(source, 0, place.position, rest + b"\n", 1, damage)


def _ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same, each made while the one before it is worked on."""
    with ThreadPoolExecutor(1, "read") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _batches(stream: BinaryIO | _Unpacked, limits: Limits) -> Iterator[tuple[bytes, int]]:
    """Batches of lines, and how many each has: 0 is the last one's, which has no newline. Then what reading raises."""
    parts: list[bytes] = []
    size, length, damage = 0, 0, None
    while True:
        try:
            piece = stream.read(_PIECE)
        except _DamagedError as error:
            piece, damage = b"", error
        if not piece:
            break
        begin, lines = 0, line_count(piece)
        while lines and (size + lines >= limits.records or length + len(piece) - begin >= limits.bytes):
            ends = line_ends(piece[begin:])
            taken = min(lines, limits.records - size)
            end = begin + int(ends[taken - 1])
            yield b"".join([*parts, piece[begin:end]]), size + taken
            parts, size, length, begin, lines = [], 0, 0, end, lines - taken
        parts.append(piece[begin:])
        size, length = size + lines, length + len(piece) - begin
    data = b"".join(parts)
    end = data.rfind(b"\n") + 1
    if end:
        yield data[:end], size
    if data[end:]:
        yield data[end:], 0
    if damage is not None:
        raise damage


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
        if not any(out) and self._damage:
            raise _DamagedError(self._damage)
        return b"".join(out)


def _read_table(source: str, tables: Iterator[pl.DataFrame], first: int) -> Iterator[RawBatch]:
    position, damage = 0, None
    while True:
        try:
            table = next(tables, None)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException) as error:
            table, damage = None, f"damaged file: {str(error).splitlines()[0]}"
        if table is None:
            break
        skip = max(0, first - position)
        if skip < table.height:
            yield RawBatch.consecutive(source, 0, position + skip, table[skip:], table.height - skip)
        position += table.height
    if damage and position >= first:
        yield RawBatch.consecutive(source, 0, position, b"\n", 1, damage)


def _parquet(path: Path, records: int) -> Iterator[pl.DataFrame]:
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        for part in file.iter_batches(batch_size=records):
            yield pl.DataFrame(pl.from_arrow(part))


def _read_csv(source: str, raw: BinaryIO, first: int, limits: Limits) -> Iterator[RawBatch]:
    """Every column as text: what type a field has is for the configuration to say. A row that is none is damaged."""
    header = raw.readline().removeprefix(_BOM)
    position = 0
    while lines := list(itertools.islice(raw, limits.records)):
        quotes = sum(line.count(b'"') for line in lines)
        most = len(lines) + FEW
        while quotes % 2 and len(lines) < most and (line := raw.readline()):
            lines.append(line)  # the batch ended inside a quoted text, which goes on
            quotes += line.count(b'"')
        for data, size, damage in _rows(header, lines):
            skip = max(0, first - position)
            if skip < size:
                rest = data[skip:] if skip else data
                yield RawBatch.consecutive(source, 0, position + skip, rest, size - skip, damage)
            position += size


def _rows(header: bytes, lines: list[bytes]) -> Iterator[tuple[pl.DataFrame | bytes, int, str | None]]:
    """Data, size and damage of batches: frames, and the lines that are no rows in their place, found by halving."""
    data = header + b"".join(lines)
    table = None
    if data.count(b'"') % 2 == 0:
        with contextlib.suppress(pl.exceptions.PolarsError):
            table = pl.read_csv(io.BytesIO(data), infer_schema=False)
    if table is None and len(lines) == 1:
        yield lines[0].rstrip(b"\r\n") + b"\n", 1, "not a row of the table"
    elif table is None:
        half = len(lines) // 2
        yield from _rows(header, lines[:half])
        yield from _rows(header, lines[half:])
    elif table.height:
        yield table, table.height, None


def _stat(path: Path) -> os.stat_result | None:
    """None where the file has just gone."""
    try:
        return path.stat()
    except OSError:
        return None


def _is_replaced(before: tuple[int, int] | None, now: tuple[int, int]) -> bool:
    return before is not None and (now[0] < before[0] or now[1] != before[1])


def _is_plain(path: Path) -> bool:
    return path.suffix.lower() in JSON


def _source(path: Path, number: int) -> str:
    return str(path) if number == 1 else f"{path}#{number}"


def _number(path: Path, source: str) -> int:
    """Which of the sources that `path` has been this is; 0 for another file's."""
    rest = source.removeprefix(str(path))
    if rest == source:
        return 0
    return 1 if not rest else int(rest[1:]) if rest[0] == "#" and rest[1:].isdigit() else 0
