"""What polars rolls up is what DuckDB would, measure by measure."""

from __future__ import annotations

import datetime as dt

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmon.config import merge_function
from kmon.store.grouping import expressions, kinds
from kmon.store.schema import Measure, Schema
from tests.conftest import T

TRANSLATED = [
    "count(*)",
    "count(amount)",
    "count(status)",
    "count(*) FILTER (operation = 'order')",
    "count(*) FILTER (WHERE operation = 'order' AND status = 'ok')",
    "count(*) FILTER (operation <> 'order' OR status = 'ok')",
    "count(*) FILTER (NOT (operation = 'order' AND status = 'ok'))",
    "count(*) FILTER (operation IN ('order', 'session'))",
    "count(*) FILTER (status IS NULL)",
    "count(*) FILTER (status IS NOT NULL AND amount >= 1.5)",
    "count(amount) FILTER (amount < 2 OR pieces > 1)",
    "count(\"amount\") FILTER (operation = 'order' OR status = 'ok')",
    "count(*) FILTER ((operation = 'order' OR status = 'ok') AND \"amount\" > 1.0 AND \"amount\" <= 1.58489)",
    "sum(amount)",
    "sum(pieces) FILTER (operation = 'order')",
    "min(amount) FILTER (status = 'ok')",
    "max(amount)",
]
LEFT_TO_DUCKDB = [
    "sum(amount * pieces)",
    "count(*) FILTER (lower(operation) = 'order')",
    "count(*) FILTER (operation > 'order')",
    "count(*) FILTER (amount = '1')",
    "count_if(amount > 1)",
    "max(event_time)",
]
EVENTS = st.fixed_dictionaries(
    {
        "operation": st.sampled_from(["order", "session", None]),
        "status": st.sampled_from(["ok", "error", None]),
        "amount": st.sampled_from([None, 0.0, 1.0, 1.5, 2.0, -3.25]),
        "pieces": st.sampled_from([None, 0, 1, 2, 2**40]),
    }
)


def table(rows: list[dict[str, object]]) -> pl.DataFrame:
    schema = {"operation": pl.String, "status": pl.String, "amount": pl.Float64, "pieces": pl.Int64}
    coded = pl.Categorical(pl.Categories("kmon.test"))
    frame = pl.DataFrame(rows, schema=schema).with_columns(pl.col("operation", "status").cast(coded))
    return frame.with_columns(event_time=pl.lit(T.replace(tzinfo=None)))


def measure(text: str) -> Measure:
    return Measure(text, merge_function(text), "BIGINT" if text.startswith("count") else "DOUBLE")


@pytest.mark.parametrize("text", TRANSLATED)
@given(rows=st.lists(EVENTS, min_size=1, max_size=12))
def test_polars_and_duckdb_roll_up_alike(text, rows):
    given = table(rows)
    made = expressions((("m", measure(text)),), kinds(given))
    assert made is not None
    expected = duckdb.sql(f"SELECT ({text})::{measure(text).type} FROM given").fetchone()[0]  # reads `given` by name
    assert given.select(made).item() == expected


@pytest.mark.parametrize("text", LEFT_TO_DUCKDB)
def test_what_is_not_of_the_usual_kind_is_left_to_duckdb(text):
    given = table([{"operation": "order", "status": "ok", "amount": 1.0, "pieces": 1}])
    assert expressions((("m", Measure(text, "sum", "DOUBLE")),), kinds(given)) is None


def test_the_measures_that_ship_are_all_rolled_up_by_polars(config):
    given = table([]).with_columns(pl.lit(None, pl.Float64).alias("latency_ms"))
    assert expressions(tuple(Schema.of(config).measures.items()), kinds(given)) is not None


def test_buckets_are_those_of_duckdb_also_before_1970(store, commit):
    times = [T + dt.timedelta(seconds=s) for s in (0, 9.999999, 10)] + [dt.datetime(1960, 1, 1, 0, 0, 5, tzinfo=dt.UTC)]
    commit(*({"event_time": time} for time in times))
    buckets = store.sql("SELECT bucket, events_ FROM rollup_10s ORDER BY 1").rows()
    naive = T.replace(tzinfo=None)
    before = dt.datetime(1960, 1, 1, tzinfo=dt.UTC).replace(tzinfo=None)
    assert buckets == [(before, 1), (naive, 2), (naive + dt.timedelta(seconds=10), 1)]
