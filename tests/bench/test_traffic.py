"""The events that the benchmarks are run with."""

import datetime as dt
import json

import polars as pl
import pytest

from kmon.bench.contestants import stored, totals
from kmon.bench.traffic import CHUNK, Traffic, encode
from kmon.ingest import Ingestion
from kmon.sources import RawBatch

START = dt.datetime(2026, 3, 2, 10, tzinfo=dt.UTC)
TRAFFIC = Traffic(START)


def test_an_event_is_the_same_whichever_others_are_asked_for():
    across = TRAFFIC.lines(CHUNK - 3, 6).splitlines()
    assert across == [TRAFFIC.lines(n, 1).rstrip() for n in range(CHUNK - 3, CHUNK + 3)]


def test_a_seed_makes_the_same_events_and_another_seed_others():
    assert Traffic(START).lines(0, 100) == Traffic(START).lines(0, 100)
    assert Traffic(START).lines(0, 100) != Traffic(START, seed=2).lines(0, 100)


def test_events_are_about_280_bytes_of_json_at_the_rate():
    data = TRAFFIC.lines(0, 11_000)
    events = [json.loads(line) for line in data.splitlines()]
    assert len(data) / len(events) == pytest.approx(280, abs=10)
    assert len({event["event_id"] for event in events}) == len(events)
    last = dt.datetime.fromisoformat(max(event["ts"] for event in events))
    assert (last - START).total_seconds() == pytest.approx(10, abs=0.5)


def test_a_few_partners_have_most_events_and_very_many_have_some():
    partners = TRAFFIC.frame(0, 100_000)["partner"].value_counts()["count"]
    assert partners.max() > 6_000
    assert partners.len() > 30_000


def test_what_an_event_does_not_have_is_left_out():
    lines = encode(TRAFFIC.frame(0, 500)).splitlines()
    assert {("amount" in event) for event in map(json.loads, lines) if event["operation"] == "order"} == {True}
    assert {("amount" in event) for event in map(json.loads, lines) if event["operation"] == "session"} == {False}


def test_kmon_counts_what_the_generator_counts(store, config):
    Ingestion(config, store).emit(RawBatch.consecutive("f", 0, 0, TRAFFIC.lines(0, 5_000), 5_000))
    assert stored(store) == pytest.approx(totals(iter([TRAFFIC.frame(0, 5_000)])))
    assert store.sql("SELECT * FROM dead_letters").height == 0


def test_totals_are_sums_over_frames():
    one, two = TRAFFIC.frame(0, 100), TRAFFIC.frame(100, 50)
    assert totals(iter([one, two])) == pytest.approx(totals(iter([pl.concat([one, two])])))
