from __future__ import annotations

import gzip
import itertools
import json
import os
import threading

import polars as pl
import pytest
import zstandard

from kmon.errors import SourceError
from kmon.events import Decoder
from kmon.sources.files import FilesSource, Limits
from tests.conftest import T

LINES = [json.dumps({"ts": T.isoformat(), "operation": "session", "n": i}).encode() for i in range(400)]
WHOLE = b"".join(line + b"\n" for line in LINES)


def zst(data: bytes, frames: int = 3) -> bytes:
    size = len(data) // frames + 1
    return b"".join(zstandard.compress(data[i : i + size]) for i in range(0, len(data), size))


def table(data: bytes) -> pl.DataFrame:
    return pl.read_ndjson(data) if data else pl.DataFrame({"ts": [], "operation": [], "n": []})


KINDS = {
    "a.ndjson": lambda data: data,
    "a.jsonl": lambda data: data.removesuffix(b"\n"),
    "a.ndjson.gz": gzip.compress,
    "b.ndjson.gz": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]) + b"\0" * 512,
    "a.ndjson.zst": zst,
    "a.csv": lambda data: table(data).write_csv().encode(),
    "a.parquet": lambda data: table(data).write_parquet,
}


def write(path, data: bytes):
    made = KINDS[path.name](data)
    made(path) if callable(made) else path.write_bytes(made)
    return path


def read(*paths, positions=None, **options):
    source = FilesSource(paths, **options)
    return list(source.read(positions or {}, threading.Event()))


def numbers(batches) -> list[int]:
    """The field `n` of all records; offsets must follow on each other in each file."""
    for one, after in itertools.pairwise(batches):
        assert after.first == (one.next if one.source == after.source else 0)
    assert all(batch.next - batch.first == batch.size for batch in batches)
    frames = [b.data if isinstance(b.data, pl.DataFrame) else pl.read_ndjson(b.data) for b in batches if not b.damaged]
    return [int(n) for frame in frames for n in frame["n"]]


SMALL = Limits(records=7, bytes=1000)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, name):
    batches = read(write(tmp_path / name, WHOLE), limits=SMALL)
    assert numbers(batches) == list(range(400))
    assert max(batch.size for batch in batches) <= 7 or name.endswith("csv")


@pytest.mark.parametrize("name", KINDS)
def test_empty_files(tmp_path, name):
    assert read(write(tmp_path / name, b"")) == []


def test_files_without_a_byte(tmp_path):
    paths = [tmp_path / name for name in ("a.ndjson", "a.csv", "a.ndjson.gz", "a.ndjson.zst")]
    for path in paths:
        path.touch()
    assert read(*paths) == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("position", [0, 1, 6, 7, 8, 200, 399, 400, 500])
def test_reading_goes_on_at_any_position(tmp_path, name, position):
    path = write(tmp_path / name, WHOLE)
    batches = read(path, positions={(str(path), 0): position, ("other", 0): 3}, limits=SMALL)
    assert numbers(batches) == list(range(position, 400))
    assert [batch.first for batch in batches[:1]] == [position][: len(batches)]


@pytest.mark.parametrize("name", ["a.ndjson.gz", "b.ndjson.gz", "a.ndjson.zst"])
@pytest.mark.parametrize("lost", [1, 40, 700])
def test_a_truncated_archive_gives_what_it_has(tmp_path, config, name, lost):
    data = b"".join(line[:-1] + b', "x": "%d"}\n' % (i**7) for i, line in enumerate(LINES))
    path = write(tmp_path / name, data)
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:-lost])
    after = write(tmp_path / "a.ndjson", WHOLE)
    batches = read(path, after)
    damaged = [batch for batch in batches if batch.damaged]
    kept = numbers([batch for batch in batches if batch.source == str(path)])
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) <= 400
    assert [(b.size, b.damaged) for b in damaged] == [(1, {0: "damaged archive: it ends in the middle"})]
    assert [x.reason for x in Decoder(config).decode(damaged[0]).rejects] == [damaged[0].damaged[0]]
    assert numbers([batch for batch in batches if batch.source == str(after)]) == list(range(400))
    assert read(path, positions={(str(path), 0): damaged[0].next}) == []


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst", "a.parquet", "a.csv", "a.ndjson"])
def test_junk_is_one_damaged_record_or_a_bad_line(tmp_path, config, name):
    path = tmp_path / name
    path.write_bytes(b"\x00\xff junk" * 5)
    decoded = [Decoder(config).decode(batch) for batch in read(path)]
    assert sum(each.events.height for each in decoded) == 0
    assert sum(len(each.rejects) for each in decoded) == (0 if name == "a.csv" else 1)


def test_a_truncated_parquet_file_is_one_damaged_record(tmp_path):
    path = write(tmp_path / "a.parquet", WHOLE)
    path.write_bytes(path.read_bytes()[:-50])
    assert [batch.damaged[0][:13] for batch in read(path)] == ["damaged file:"]


def test_a_ten_megabyte_line(tmp_path, config):
    path = tmp_path / "a.ndjson"
    path.write_bytes(LINES[0] + b"\n" + b'{"x": "' + b"y" * 10_000_000 + b'"}\n' + LINES[1])
    decoded = [Decoder(config).decode(batch) for batch in read(path)]
    assert [(each.batch.first, each.events.height, [x.size for x in each.rejects]) for each in decoded] == [
        (0, 1, [10_000_009]), (2, 1, []),
    ]  # fmt: skip


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.ndjson").write_bytes(b"\xef\xbb\xbf" + WHOLE)
    assert len(numbers(read(tmp_path / "a.ndjson"))) == 400


def test_files_come_in_the_given_order_and_patterns_in_that_of_names(tmp_path):
    for name in ("b", "c", "a", "z"):
        (tmp_path / f"{name}.ndjson").write_bytes(LINES[0])
    batches = read(tmp_path / "z.ndjson", tmp_path / "*.ndjson")
    assert [batch.source for batch in batches] == [str(tmp_path / f"{name}.ndjson") for name in "zabc"]


def test_the_same_file_twice_is_read_once(tmp_path):
    path = write(tmp_path / "a.ndjson", WHOLE)
    (tmp_path / "link.ndjson").symlink_to(path)
    other = tmp_path / "x" / ".." / "a.ndjson"
    (tmp_path / "x").mkdir()
    assert len(numbers(read(path, path, other, tmp_path / "link.ndjson"))) == 400


def test_a_name_that_looks_like_a_pattern(tmp_path):
    path = tmp_path / "a[1].ndjson"
    path.write_bytes(LINES[0])
    (tmp_path / "a[1].csv").write_bytes(b"n\n1\n")
    assert len(read(path, tmp_path / "a[1].csv")) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.ndjson", "{} does not exist"),
        ("folder.ndjson", "{} is not a file"),
        ("a.txt", "{} is of no known kind: name it .ndjson, .ndjson.gz, .ndjson.zst, .csv or .parquet"),
        ("a.zst", "{} is of no known kind: name it .ndjson, .ndjson.gz, .ndjson.zst, .csv or .parquet"),
        ("a.ndjson/b.ndjson", "{} does not exist"),
    ],
)
def test_what_is_no_file_of_events_is_one_sentence(tmp_path, name, says):
    (tmp_path / "folder.ndjson").mkdir()
    for there in ("a.txt", "a.zst", "a.ndjson"):
        (tmp_path / there).write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == says.format(tmp_path / name)


def test_a_growing_file_is_followed_by_its_complete_lines(tmp_path):
    path, stop = tmp_path / "a.ndjson", threading.Event()
    path.write_bytes(WHOLE + LINES[0][:10])
    batches = FilesSource([path, tmp_path / "later*.ndjson"], follow=True, every=0).read({}, stop)
    assert next(batches).size == 400
    with path.open("ab") as file:
        file.write(LINES[0][10:] + b"\n" + LINES[1] + b"\n{")
    assert (grown := next(batches)).data == LINES[0] + b"\n" + LINES[1] + b"\n"
    assert (grown.first, grown.next) == (400, 402)
    (tmp_path / "later1.ndjson").write_bytes(LINES[5] + b"\n")
    assert next(batches).source == str(tmp_path / "later1.ndjson")
    stop.set()
    assert list(batches) == []


def test_following_waits_for_a_file_that_does_not_exist_yet(tmp_path):
    stop = threading.Event()
    stop.set()
    assert list(FilesSource([tmp_path / "later.ndjson"], follow=True).read({}, stop)) == []


def test_stopping_ends_between_two_batches(tmp_path):
    stop = threading.Event()
    batches = FilesSource([write(tmp_path / "a.ndjson", WHOLE)], limits=SMALL).read({}, stop)
    next(batches)
    stop.set()
    assert list(batches) == []


def test_a_pattern_that_matches_nothing_is_told(tmp_path):
    with pytest.raises(SourceError, match="matches no file"):
        list(FilesSource([tmp_path / "*.ndjson"]).read({}, threading.Event()))


def follow(folder, positions, stop):
    return FilesSource([folder / "*"], follow=True, every=0).read(positions, stop)


@pytest.mark.parametrize("how", ["truncated", "replaced"])
@pytest.mark.parametrize("meanwhile", ["watched", "stopped"])
def test_a_file_that_is_truncated_or_replaced_is_read_anew_under_another_name(tmp_path, how, meanwhile):
    path, stop = tmp_path / "a.ndjson", threading.Event()
    path.write_bytes(b"\n".join(LINES[:100]) + b"\n")
    batches = follow(tmp_path, {}, stop)
    first = next(batches)
    assert (first.source, first.next) == (str(path), 100)
    if meanwhile == "stopped":
        batches = follow(tmp_path, {(str(path), 0): 100}, stop)
    if how == "replaced":
        other = tmp_path.parent / "other"
        other.write_bytes(LINES[7] + b"\n")
        other.rename(path)
    else:
        path.write_bytes(LINES[7] + b"\n")
    again = next(batches)
    assert (again.source, again.first, again.data) == (f"{path}#2", 0, LINES[7] + b"\n")
    with path.open("ab") as file:
        file.write(LINES[8] + b"\n")
    more = next(batches)
    assert (more.source, more.first, more.data) == (f"{path}#2", 1, LINES[8] + b"\n")
    stop.set()
    stop = threading.Event()
    resumed = follow(tmp_path, {(str(path), 0): 100, (f"{path}#2", 0): 1}, stop)
    assert next(resumed).data == LINES[8] + b"\n"


def test_a_last_line_without_its_end_was_read_once(tmp_path):
    path, stop = tmp_path / "a.ndjson", threading.Event()
    path.write_bytes(LINES[0] + b"\n" + LINES[1])
    assert [batch.next for batch in FilesSource([path]).read({}, stop)] == [1, 2]
    followed = follow(tmp_path, {(str(path), 0): 2}, stop)
    with path.open("ab") as file:
        file.write(b"\n" + LINES[2] + b"\n")
    assert (batch := next(followed)).data == LINES[2] + b"\n"
    assert batch.source == str(path)


def test_an_archive_that_is_still_being_copied_is_waited_for(tmp_path):
    path, stop = tmp_path / "a.ndjson.zst", threading.Event()
    whole = zstandard.compress(WHOLE)
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.ndjson").write_bytes(LINES[0] + b"\n")
    (tmp_path / "notes.txt").write_text("of no known kind: left out")
    os.utime(tmp_path / "notes.txt", (0, 0))
    batches = follow(tmp_path, {}, stop)
    assert next(batches).source.endswith("b.ndjson")
    path.write_bytes(whole)
    os.utime(path, (0, 0))
    assert (batch := next(batches)).damaged == {}
    assert batch.next == 400


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_an_archive_cut_in_its_header_is_damaged(tmp_path, kind):
    packed = gzip.compress(WHOLE) if kind == "gz" else zstandard.compress(WHOLE)
    path = tmp_path / f"a.ndjson.{kind}"
    path.write_bytes(packed[:3])
    (batch,) = FilesSource([path]).read({}, threading.Event())
    assert batch.damaged == {0: "damaged archive: it ends in the middle"}


BROKEN_ROW = {
    "a quote without its end": b'2026-03-02T12:00:00Z,"session,1',
    "a field too many": b"2026-03-02T12:00:00Z,session,1,2",
    "not UTF-8": b"2026-03-02T12:00:00Z,s\xff,1",
}


@pytest.mark.parametrize("what", BROKEN_ROW)
@pytest.mark.parametrize("first", [0, 150, 160])
def test_a_broken_row_of_a_csv_is_one_dead_letter_with_its_bytes(tmp_path, what, first):
    rows = [f"{T.isoformat()},session,{i}".encode() for i in range(300)]
    rows[20] = f'{T.isoformat()},"ses\nsion",20'.encode()
    rows[155] = BROKEN_ROW[what]
    path = tmp_path / "a.csv"
    path.write_bytes(b"ts,operation,n\n" + b"\n".join(rows) + b"\n")
    batches = list(FilesSource([path], limits=Limits(100)).read({(str(path), 0): first}, threading.Event()))
    assert [b.first for b in batches[1:]] == [b.next for b in batches[:-1]]
    assert (batches[0].first, batches[-1].next) == (first, 300)
    damaged = [(b.first, b.data) for b in batches if b.damaged]
    assert damaged == ([(155, BROKEN_ROW[what] + b"\n")] if first <= 155 else [])
