from __future__ import annotations

import datetime as dt
import io
import itertools
import json
import threading
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmon.config import Config, load_config
from kmon.errors import ConfigError
from kmon.events import KEEP, RECORD, Decoder
from kmon.sources import Move, RawBatch
from kmon.sources.files import FilesSource
from kmon.store import DeadLetter
from tests.conftest import EVIL, TEMPLATE, T

NOW = T + dt.timedelta(days=200)
CONFIG = load_config(TEMPLATE)
SHOP = """
source: {{kind: files, paths: [x]}}
events: {{fields: {{{fields}}}}}
dimensions: [shop]
measures: {{n: count(*)}}
metrics: {{n: {{count: n}}}}
watch: [[]]
"""


def decoder(config: Config = CONFIG) -> Decoder:
    return Decoder(config, now=lambda: NOW)


def line(at: dt.datetime | str | int | None = T, **fields: object) -> bytes:
    ts = at.isoformat() if isinstance(at, dt.datetime) else at
    return json.dumps({"ts": ts, "operation": "session", "partner": "p1", **fields}).encode()


def raw(lines: list[bytes], first: int = 0, **options: str) -> RawBatch:
    return RawBatch.consecutive("f", 0, first, b"".join(x + b"\n" for x in lines), len(lines), **options)


@dataclass
class Seen:
    """What came out of batches of one partition: events and rejects with their positions in it."""

    events: pl.DataFrame
    positions: list[int]
    dead_letters: list[DeadLetter]
    next: int


def feed(to: Decoder, *batches: RawBatch) -> Seen:
    """All that comes out of `batches`, as one; offsets follow on each other."""
    parts = [part for batch in (*batches, None) for part in to.feed(batch)]
    moves = [move for part in parts for move in part.batch.moves_of(part.first, part.next)]
    assert [move.first for move in moves[1:]] == [move.next for move in moves[:-1]]
    letters = [
        DeadLetter(*part.batch.origin(each.record), each.reason, each.size, each.raw)
        for part in parts
        for each in part.rejects
    ]
    events = pl.concat([part.events.cast({pl.Categorical: pl.String}) for part in parts])
    positions = [part.batch.origin(record)[2] for part in parts for record in part.events[RECORD]]
    return Seen(events.drop(RECORD), positions, letters, moves[-1].next)


def shop(tmp_path, fields: str) -> Config:
    (tmp_path / "kmon.yaml").write_text(SHOP.format(fields=fields))
    return load_config(tmp_path / "kmon.yaml")


BAD = [
    (b"{", "not JSON"),
    (b"not json at all", "not JSON"),
    (b'{"ts": NaN}', "not JSON"),
    (b"[1, 2]", "not a JSON object but a list"),
    (b"5", "not a JSON object but a number"),
    (b"null", "not a JSON object but null"),
    (b'{"partner": "\xff"}', "not UTF-8"),
    (line(partner="p\x00").replace(rb"\u0000", b"\x00"), "not JSON"),
    (line(None), "no ts"),
    (b"{}", "no ts"),
    (line("yesterday"), "no time: ts cannot be read"),
    (line(True), "no time: ts cannot be read"),
    (line({"a": 1}), "no time: ts cannot be read"),
    (line("1970-01-01T00:00:00Z"), "absurd time: out of range"),
    (line(0), "absurd time: out of range"),
    (line("9999-12-31T23:59:59Z"), "absurd time: out of range"),
    (line(NOW + dt.timedelta(days=1)), "absurd time: out of range"),
    (line(partner=5), "wrong type: partner is a number, not string"),
    (line(partner=12345678901234567890123), "wrong type: partner is a number, not string"),
    (line(partner=["p1"]), "wrong type: partner is a list, not string"),
    (line(partner={"id": 1}), "wrong type: partner is an object, not string"),
    (line(amount="12"), "wrong type: amount is text, not number"),
    (line(amount=True), "wrong type: amount is a boolean, not number"),
    (line(partition=1.5), "wrong type: partition is a number, not integer"),
    (line(partition="1"), "wrong type: partition is text, not integer"),
    (line(amount=1e300), "absurd number: amount is out of range"),
    (line(partition=-(2**63)), "absurd number: partition is out of range"),
    (line(operation="refund"), "unknown operation: refund"),
    (line(operation=None), "no operation"),
    (b"[" * 2_000_000, "too long: 2,000,000 bytes, the limit is 1,048,576"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason + str(i) for i, (_, reason) in enumerate(BAD)])
def test_a_bad_record_is_a_dead_letter_and_its_company_is_not(bad, reason):
    done = feed(decoder(), raw([line(), bad, line()], first=7))
    assert done.positions == [7, 9]
    assert [(x.position, x.reason, x.size, x.raw) for x in done.dead_letters] == [(8, reason, len(bad), bad[:KEEP])]


@pytest.mark.parametrize("count", [3, 3000])
def test_many_bad_records_among_good_ones(count):
    lines = [bad if i % 3 == 0 else line() for i, (bad, _) in zip(range(count), BAD[:-1] * count, strict=False)]
    done = feed(decoder(), raw(lines))
    assert [x.position for x in done.dead_letters] == list(range(0, count, 3))
    assert done.events.height == count - len(done.dead_letters)


def test_a_ten_megabyte_line_is_cut_in_the_dead_letter():
    done = feed(decoder(), raw([line(), b"x" * 10_000_000]))
    assert (done.dead_letters[0].size, len(done.dead_letters[0].raw)) == (10_000_000, KEEP)


def test_blank_lines_are_no_records():
    done = feed(decoder(), raw([line(), b"", b"  \r", line()]))
    assert (done.positions, done.dead_letters, done.next) == ([0, 3], [], 4)


def test_a_damaged_last_record_is_a_dead_letter_even_if_it_reads_well():
    done = feed(decoder(), raw([line(), line()], damage="truncated"))
    assert (done.events.height, [x.reason for x in done.dead_letters]) == (1, ["truncated"])


@pytest.mark.parametrize("name", [name for name in EVIL if name])
def test_names_pass_unchanged(name):
    assert feed(decoder(), raw([line(partner=name)])).events["partner"].to_list() == [name]


def test_texts_that_nothing_reads_are_not_decoded():
    assert {"event_id", "currency"}.isdisjoint(feed(decoder(), raw([line(event_id="1", currency=5)])).events.columns)


ALONE = [bad for bad, _ in BAD] + [line("x"), line(T, operation="order", amount=3)] + [line(partner=n) for n in EVIL]


@given(st.lists(st.sampled_from([*ALONE, *[line()] * 20]), max_size=30), st.lists(st.integers(0, 30), max_size=4))
def test_every_record_is_decoded_or_buried_however_it_is_cut(lines, places):
    cuts = sorted(min(place, len(lines)) for place in places)
    edges = [0, *cuts, len(lines)]
    batches = [raw(lines[a:b], first=a) for a, b in itertools.pairwise(edges) if b > a]
    whole = feed(decoder(), raw(lines)) if lines else None
    if whole is None:
        return
    cut = feed(decoder(), *batches)
    assert sorted([*whole.positions, *(x.position for x in whole.dead_letters)]) == list(range(len(lines)))
    assert cut.events.equals(whole.events)
    assert cut.dead_letters == whole.dead_letters


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_at_all(junk, after):
    lines = [*junk.split(b"\n"), *[line()] * after]
    done = feed(decoder(), raw(lines))
    blank = [i for i, x in enumerate(lines) if not x.strip()]
    assert sorted([*done.positions, *(x.position for x in done.dead_letters), *blank]) == list(range(len(lines)))


# ---- times -----------------------------------------------------------------------------------------------------------

TIMES = [
    ("{type: time}", "2026-03-29T01:30:00Z", "01:30"),
    ("{type: time}", "2026-03-29t01:30:00.123456789z", "01:30:00.123456"),
    ("{type: time}", "2026-03-29 01:30:00Z", "01:30"),
    ("{type: time}", "2026-03-29T01:30:00+05:30", "20:00"),
    ("{type: time}", "2026-03-29T01:30:00", "01:30"),
    ("{type: time}", "2026-03-29 01:30:00", "01:30"),
    ("{type: time}", 1774747800000, "01:30"),
    ("{type: time}", "1774747800000", "01:30"),
    ("{type: time, format: epoch_ms}", 1774747800000.5, "01:30:00.000500"),
    ("{type: time, format: epoch_s}", 1774747800, "01:30"),
    ("{type: time, format: epoch_s}", "1774747800.25", "01:30:00.250000"),
    ("{type: time, format: '%d/%m/%Y %H:%M'}", "29/03/2026 01:30", "01:30"),
    ("{type: time, format: '%Y-%m-%d %H:%M:%S%z'}", "2026-03-29 01:30:00+0100", "00:30"),
    ("{type: time, timezone: Europe/London}", "2026-03-29T00:30:00", "00:30"),
    ("{type: time, timezone: Europe/London}", "2026-03-29T01:30:00", None),  # the clocks skip it
    ("{type: time, timezone: Europe/London}", "2026-03-29T02:30:00", "01:30"),
    ("{type: time, timezone: Europe/London}", "2025-10-26T01:30:00", "00:30"),  # there are two: the earlier
    ("{type: time, timezone: Europe/London}", "2026-03-29T02:30:00Z", "02:30"),
    ("{type: time}", "2026-03-29", None),
    ("{type: time}", "2026-02-30T00:00:00Z", None),
    ("{type: time}", "", None),
    ("{type: time, format: epoch_s}", "2026-03-29T01:30:00Z", None),
]


@pytest.mark.parametrize(("field", "value", "expected"), TIMES)
@pytest.mark.parametrize("table", [False, True])
def test_times(tmp_path, field, value, expected, table):
    config = shop(tmp_path, f"ts: {field}, shop: {{}}")
    frame = pl.DataFrame({"ts": [str(value)]})
    batch = (
        RawBatch.consecutive("f", 0, 0, frame, 1)
        if table and not isinstance(value, int | float)
        else raw([line(value)])
    )
    done = feed(decoder(config), batch)
    found = [time.time().isoformat("auto").removesuffix(":00") for time in done.events["event_time"]]
    assert found == ([expected] if expected else [])
    assert [x.reason for x in done.dead_letters] == ([] if expected else ["no time: ts cannot be read"])


# ---- nested documents and tables -------------------------------------------------------------------------------------

NESTED = [
    (b'"geo": {"city": {"name": "Umea"}}', "Umea", None),
    (b'"geo": {"city": {}}', None, None),
    (b'"geo": {"city": null}', None, None),
    (b'"geo": null', None, None),
    (b'"other": 1', None, None),
    (b'"geo": "Umea"', None, "wrong type: geo is text, not an object"),
    (b'"geo": {"city": [1]}', None, "wrong type: geo.city is a list, not an object"),
    (b'"geo": {"city": {"name": 5}}', None, "wrong type: shop is a number, not string"),
]


@pytest.mark.parametrize(("part", "expected", "reason"), NESTED)
def test_paths_into_nested_objects(tmp_path, part, expected, reason):
    config = shop(tmp_path, "ts: {type: time}, shop: {path: geo.city.name}")
    done = feed(decoder(config), raw([b'{"ts": "2026-03-02T12:00:00Z", ' + part + b"}"]))
    assert done.events["shop"].to_list() == ([] if reason else [expected])
    assert [x.reason for x in done.dead_letters] == ([reason] if reason else [])


def test_a_path_through_another_field_is_refused(tmp_path):
    config = shop(tmp_path, "ts: {type: time}, shop: {}, city: {path: shop.city, required: true}")
    with pytest.raises(ConfigError, match=r"events.fields.city: the path 'shop.city' goes through the field 'shop'"):
        decoder(config)


@pytest.mark.parametrize("part", ["[]", "[1]", '[{"city": {}}]', '""', "5", "true", '{"city": []}', '{"city": ""}'])
def test_a_parent_that_is_no_object_spoils_only_its_own_record(tmp_path, part):
    config = shop(tmp_path, "ts: {type: time}, shop: {path: geo.city.name}, n: {type: integer, path: geo.city.n}")
    records = [f'{{"ts": "2026-03-02T12:00:00Z", "geo": {geo}}}' for geo in ('{"city": {"name": "a"}}', part, "null")]
    done = feed(decoder(config), raw([record.encode() for record in records]))
    assert done.events["shop"].to_list() == ["a", None]
    assert [(x.position, x.reason.endswith(", not an object")) for x in done.dead_letters] == [(1, True)]


COLUMNS = [
    ({"geo.city.name": ["Umea", None]}, ["Umea", None], None),
    ({"geo": [{"city": {"name": "Umea"}}, {"city": None}]}, ["Umea", None], None),
    ({"geo": [{"city": {"name": "Umea"}}, None]}, ["Umea", None], None),
    ({"geo": [{"city": {"name": 5}}, {"city": {"name": None}}]}, ["5", None], None),
    ({"geo": [{"city": {"zip": "1"}}, None]}, [None, None], None),
    ({"geo": [{"town": "Umea"}, None]}, [None, None], None),
    ({"geo": [None, None]}, [None, None], None),
    ({"other": [1, 2]}, [None, None], None),
    ({"geo": ["Umea", None]}, [None], "wrong type: geo is not an object"),
    ({"geo": [5, None]}, [None], "wrong type: geo is not an object"),
    ({"geo": [[{"city": {"name": "Umea"}}], None]}, [None], "wrong type: geo is not an object"),
    ({"geo": [{"city": "Umea"}, {"city": None}]}, [None], "wrong type: geo.city is not an object"),
    ({"geo": [{"city": ["Umea"]}, None]}, [None], "wrong type: geo.city is not an object"),
    ({"geo": [{"city": {"name": ["Umea"]}}, None]}, [None], "wrong type: shop is not a string"),
    ({"geo": [{"city": {"name": {"en": "Umea"}}}, None]}, [None], "wrong type: shop is not a string"),
]


FLAT = [case for case in COLUMNS if not any(isinstance(x, dict | list) for x in next(iter(case[0].values())))]


@pytest.mark.parametrize(
    ("kind", "columns", "expected", "reason"), [*(("parquet", *case) for case in COLUMNS), *(("csv", *c) for c in FLAT)]
)
def test_paths_into_columns(tmp_path, kind, columns, expected, reason):
    config = shop(tmp_path, "ts: {type: time}, shop: {path: geo.city.name}")
    table = pl.DataFrame({"ts": ["2026-03-02T12:00:00Z"] * 2, **columns})
    path = tmp_path / f"events.{kind}"
    getattr(table, f"write_{kind}")(path)
    (batch,) = FilesSource([path]).read({}, threading.Event())
    done = feed(decoder(config), batch)
    assert done.events["shop"].to_list() == expected
    assert [(x.position, x.reason) for x in done.dead_letters] == ([(0, reason)] if reason else [])


CELLS = [
    ("integer", ["5", "-7", "x", "5.5", ""], [5, -7, "x", "x", None]),
    ("number", ["5", "1e3", "nan", "inf", "1,5"], [5.0, 1000.0, "x", "x", "x"]),
    ("boolean", ["true", "FALSE", "yes", "1", ""], [True, False, "x", "x", None]),
    ("string", ["5", "a\u2028b", "x\x00y", "🛒", ""], ["5", "a\u2028b", "x\x00y", "🛒", None]),
    ("integer", [1.0, float("nan"), 1.5, 2.0**40, None], [1, None, "x", 2**40, None]),
    ("number", [1.0, float("nan"), float("inf"), -0.0, None], [1.0, None, "x", -0.0, None]),
    ("string", [1, 2, 3, 4, None], ["1", "2", "3", "4", None]),
    ("string", [[1], [2], None, None, None], ["x", "x", None, None, None]),
    ("number", [b"\xff", b"5", None, None, None], ["x", "x", None, None, None]),
]


@pytest.mark.parametrize(("kind", "given", "expected"), CELLS)
def test_cells_of_tables(tmp_path, kind, given, expected):
    config = shop(tmp_path, f"ts: {{type: time}}, shop: {{}}, cell: {{type: {kind}, required: false, path: a.b}}")
    config = config.model_copy(update={"dimensions": ("shop", "cell")})
    table = pl.DataFrame(
        {"ts": ["2026-03-02T12:00:00Z"] * 5, "a.b": pl.Series([x or None if x == "" else x for x in given])}
    )
    done = feed(decoder(config), RawBatch.consecutive("f", 0, 0, table, 5))
    assert done.events["cell"].to_list() == [x for x in expected if x != "x"]
    assert [x.position for x in done.dead_letters] == [i for i, x in enumerate(expected) if x == "x"]
    assert {x.reason for x in done.dead_letters} <= {f"wrong type: cell is not a {kind}"}


def test_a_rejected_row_of_a_table_is_kept_as_json():
    rows = {"ts": ["2026-03-02T12:00:00", "x"], "operation": ["order", "a\u2028b"], "amount": ["1", "two\x85"]}
    table = pl.DataFrame({**rows, "items": [[], [{"sku": "a"}]]})
    done = feed(decoder(), RawBatch.consecutive("f", 0, 3, table, 2))
    (letter,) = done.dead_letters
    kept = json.loads(letter.raw)
    assert (letter.position, kept["amount"], kept["items"]) == (4, "two\x85", [{"sku": "a"}])


def test_long_rows_and_missing_columns_of_tables():
    table = pl.DataFrame({"operation": ["x" * 2_000_000, "order"]})
    done = feed(decoder(), RawBatch.consecutive("f", 0, 0, table, 2))
    assert [x.reason for x in done.dead_letters] == ["too long: the limit is 1,048,576", "no ts"]


def test_the_same_records_through_json_csv_and_parquet():
    rows = [json.loads(line(T, amount=1.5)), json.loads(line("x")), json.loads(line(T, operation="refund"))]
    frame = pl.DataFrame(rows)
    csv = pl.read_csv(io.BytesIO(frame.write_csv().encode()), infer_schema=False)
    batches = [RawBatch.consecutive("f", 0, 0, data, 3) for data in (frame, csv)]
    results = [feed(decoder(), batch) for batch in (raw([json.dumps(row).encode() for row in rows]), *batches)]
    assert {tuple((x.position, x.reason) for x in done.dead_letters) for done in results} == {
        ((1, "no time: ts cannot be read"), (2, "unknown operation: refund"))
    }
    assert {tuple(done.events["amount"]) for done in results} == {(1.5,)}


def test_records_of_several_partitions_keep_their_origin():
    moves = (Move("a", 0, 5, 9), Move("b", 3, 0, 3))
    lines = [line(partner="p1"), b"junk", line(partner="p2"), b"", line(partner="p3")]
    lanes, positions = np.array([0, 1, 0, 1, 0], np.int32), np.array([5, 0, 6, 2, 8])
    data = b"".join(x + b"\n" for x in lines)
    batch = RawBatch(moves, data, 5, {3: "tombstone"}, lanes, positions, np.full(5, -1))
    (done,) = decoder().feed(batch)
    assert [batch.origin(record) for record in done.events[RECORD]] == [("a", 0, 5), ("a", 0, 6), ("a", 0, 8)]
    assert [(batch.origin(r.record), r.reason) for r in done.rejects] == [
        (("b", 3, 0), "not JSON"),
        (("b", 3, 2), "tombstone"),
    ]
    assert batch.moves_of(0, 5) == moves
    assert batch.moves_of(0, 2) == (Move("a", 0, 5, 6), Move("b", 3, 0, 2))
    assert batch.moves_of(2, 5) == (Move("a", 0, 6, 9), Move("b", 3, 2, 3))


def test_an_event_is_absurd_that_is_far_ahead_of_when_it_was_written():
    hours = [0, 2, 0.5, 200]
    lines = [line(T + dt.timedelta(hours=h)) for h in hours]
    written = np.array([int(T.timestamp() * 1e6)] * 3 + [-1])
    batch = RawBatch((Move("a", 0, 0, 4),), b"".join(x + b"\n" for x in lines), 4, written=written)
    (done,) = decoder().feed(batch)
    assert done.events[RECORD].to_list() == [0, 2, 3]
    assert [r.reason for r in done.rejects] == ["absurd time: ahead of when it was written"]


def test_a_number_is_no_text_also_where_a_text_of_the_same_letters_came_before():
    one = decoder()
    texts = ["42", "true", '{"id": 1}', "[1]", "-1.5e3", "4x", None]
    others = [42, True, {"id": 1}, [1], -1500.0]
    for values in (texts, [*texts, *others], texts):
        done = one.decode(raw([line(partner=value) for value in values]))
        assert done.events["partner"].cast(pl.String).to_list() == texts
        assert [reject.record for reject in done.rejects] == list(range(len(texts), len(values)))


def test_what_was_refused_once_is_refused_again():
    one = decoder()
    for _ in range(2):
        done = one.decode(raw([line(), line(operation="refund")]))
        assert [r.reason for r in done.rejects] == ["unknown operation: refund"]
