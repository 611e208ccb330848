"""Whole events as they came, for ad-hoc questions and samples, beside the rollups that are made of them."""

from __future__ import annotations

import datetime as dt

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from kmon.clock import naive
from kmon.events import RECORD, Decoded
from kmon.sources import RawBatch, line_ends


def young_documents(decoded: Decoded, first: int, upto: int, since: dt.datetime) -> pl.DataFrame | None:
    """The documents of the events [first, upto) that are not older than `since`; None where there is none.

    Columns: `event` (counted from `first`), `source`, `partition`, `position`, `size` (bytes), `document` (JSON).
    """
    events = decoded.events[first:upto]
    begin = naive(since)
    if not events.height or events["event_time"].max() < begin:  # type: ignore[operator]
        return None
    rows = np.flatnonzero((events["event_time"] >= begin).to_numpy())
    records = events[RECORD].to_numpy()[rows]
    texts = _texts(decoded.batch, records)
    source, partition, position = _origins(decoded.batch, records)
    return pl.DataFrame(
        [
            pl.Series("event", rows, dtype=pl.UInt32),
            source,
            partition,
            position,
            texts.str.len_bytes().cast(pl.UInt32).alias("size"),
            texts.alias("document"),
        ]
    )


def _origins(batch: RawBatch, records: npt.NDArray[np.int64]) -> tuple[pl.Series, pl.Series, pl.Series]:
    lanes = batch.lanes[records] if batch.lanes is not None else np.zeros(len(records), dtype=np.int32)
    positions = batch.positions[records] if batch.positions is not None else batch.first + records
    sources = pl.Series("source", [move.source for move in batch.moves])
    partitions = pl.Series("partition", [move.partition for move in batch.moves], dtype=pl.Int32)
    return sources[lanes], partitions[lanes], pl.Series("position", positions, dtype=pl.Int64)


def _texts(batch: RawBatch, records: npt.NDArray[np.int64]) -> pl.Series:
    if isinstance(batch.data, pl.DataFrame):
        lines = batch.data[records].write_ndjson().splitlines()
        return pl.Series(lines, dtype=pl.String)
    offsets = np.concatenate([[0], line_ends(batch.data)])
    if len(offsets) == batch.size:  # the last line lacks its newline
        offsets = np.append(offsets, len(batch.data))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(batch.data)]
    lines = pa.Array.from_buffers(pa.large_binary(), batch.size, buffers).take(pa.array(records))
    try:
        texts = lines.cast(pa.large_string())
    except pa.ArrowInvalid:  # a field that nothing reads is not UTF-8
        texts = pa.array([line.decode("utf-8", "replace") for line in lines.to_pylist()], pa.large_string())
    return pl.Series(pl.from_arrow(texts)).str.strip_chars_end("\r\n")
