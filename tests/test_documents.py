"""Whole events, kept beside the rollups for a while."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from kmon.config import load_config
from kmon.ingest import Ingestion
from kmon.sources import Move, RawBatch
from kmon.store import EmbeddedStore
from tests.conftest import TEMPLATE

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def line(seconds: float = 0, **fields: object) -> bytes:
    at = (NOW - dt.timedelta(seconds=seconds)).isoformat()
    return json.dumps({"ts": at, "operation": "session", "partner": "p1", **fields}, ensure_ascii=False).encode()


def lines(*documents: bytes, first: int = 0) -> RawBatch:
    return RawBatch.consecutive("f", 0, first, b"".join(d + b"\n" for d in documents), len(documents))


def kept(store: EmbeddedStore) -> list[tuple[object, ...]]:
    return store.sql("SELECT source, partition, position, document FROM raw_events ORDER BY ALL").rows()


def test_a_whole_event_is_kept_as_it_came_with_its_origin(config, store):
    documents = [line(note="naïve 🛒"), line(partner=None, city={"name": "Ö"}, status="error")]
    Ingestion(config, store).emit(lines(documents[0], b"junk", b"", documents[1] + b"\r"))
    assert kept(store) == [("f", 0, 0, documents[0].decode()), ("f", 0, 3, documents[1].decode())]
    sizes = store.sql("SELECT size::INT AS size FROM raw_events ORDER BY position")["size"].to_list()
    assert sizes == [len(document) for document in documents]


def test_they_are_found_by_their_dimensions(config, store):
    Ingestion(config, store).emit(lines(line(partner="a"), line(partner="b", status="error"), line(partner="b")))
    found = store.sample_events({"partner": "b"}, NOW - dt.timedelta(minutes=1), NOW + dt.timedelta(minutes=1))
    assert [json.loads(document)["partner"] for document in found["document"]] == ["b", "b"]


def test_events_of_several_partitions_keep_their_origin(config, store):
    data = b"".join(line(partner=p) + b"\n" for p in "abc")
    moves = (Move("t", 0, 0, 3), Move("t", 4, 0, 8))
    lanes, positions = np.array([0, 1, 0], np.int32), np.array([0, 7, 2])
    Ingestion(config, store).emit(RawBatch(moves, data, 3, {}, lanes, positions, np.full(3, -1)))
    assert [row[:3] for row in kept(store)] == [("t", 0, 0), ("t", 0, 2), ("t", 4, 7)]


@pytest.mark.parametrize("keep", ["2h", "0s"])
def test_what_is_older_than_they_are_kept_is_not_even_written(tmp_path, keep):
    path = tmp_path / "kmon.yaml"
    path.write_text(TEMPLATE.read_text().replace("  raw: 2h ", f"  raw: {keep} "))
    config = load_config(path)
    with EmbeddedStore(tmp_path / "k.duckdb", config) as store:
        run = Ingestion(config, store)
        for each in (lines(line(3 * 3600), line(3600), line(60)), None):
            run.emit(each)
        assert [row[2] for row in kept(store)] == ([1, 2] if keep == "2h" else [])
        assert store.sql("SELECT sum(events_)::INT AS n FROM cells").item() == 3


def test_a_row_of_a_table_is_kept_as_json(config, store):
    table = pl.DataFrame({"ts": [NOW.isoformat()], "operation": ["session"], "partner": ["p"], "n": [5]})
    Ingestion(config, store).emit(RawBatch.consecutive("f", 0, 0, table, 1))
    assert json.loads(str(kept(store)[0][3])) == {"ts": NOW.isoformat(), "operation": "session", "partner": "p", "n": 5}


def test_bytes_that_nothing_reads_need_not_be_utf8(config, store):
    Ingestion(config, store).emit(lines(line()[:-1] + b', "note": "\xff"}'))
    documents = [str(row[3]) for row in kept(store)]
    assert all('"note": "\ufffd"' in document for document in documents)
