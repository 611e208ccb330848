"""Messages become batches: nothing of a message is lost on the way, and what waits is bounded."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from confluent_kafka import Message

from kmon.errors import SourceError
from kmon.sources.kafka.messages import EMPTY, TOMBSTONE, Chunk, Handover, Jump, chunk, merged

LANES = {("a", 0): 0, ("a", 1): 1, ("b", 0): 2}


def message(topic="a", partition=0, offset=0, value=b"{}", at=1_000):
    return Message(topic=topic, partition=partition, offset=offset, key=None, value=value, timestamp=(1, at))


def some(count, size=10, lane=0, first=0):
    positions = np.arange(first, first + count)
    return Chunk(b"x" * (size - 1) * count + b"\n" * count, np.full(count, lane, np.int32), positions, positions)


def test_a_chunk_has_each_message_on_a_line_with_where_and_when_it_was():
    read = chunk([message(value=b'{"x": 1}'), message("b", 0, 7, b'{"y": 2}', 2_500)], LANES, {1: 9})
    assert read.data == b'{"x": 1}\n{"y": 2}\n'
    assert (read.lanes.tolist(), read.positions.tolist()) == ([0, 2], [0, 7])
    assert (read.written.tolist(), read.ends) == ([1_000_000, 2_500_000], {1: 9})


def test_line_ends_in_a_message_are_spaces_and_a_tombstone_is_a_damaged_record():
    values = [b'{\n "x": 1\n}\n', None, b"", b"{}"]
    read = chunk([message(offset=i, value=value) for i, value in enumerate(values)], LANES, {})
    assert read.data == b'{  "x": 1 } \n\n\n{}\n'
    assert read.damaged == {1: TOMBSTONE, 2: EMPTY}


def test_no_messages_are_no_lines():
    assert (chunk([], LANES, {0: 3}).data, len(chunk([], LANES, {0: 3}))) == (b"", 0)


def test_merging_counts_the_records_on():
    both = merged([chunk([message(value=None)], LANES, {0: 1}), chunk([message(), message(value=None)], LANES, {0: 3})])
    assert both.damaged == {0: TOMBSTONE, 2: TOMBSTONE}
    assert both.ends == {0: 3}
    assert both.data.count(b"\n") == len(both) == 3


def test_what_waits_is_taken_together_and_a_jump_alone():
    handover = Handover(records=100, size=1000)
    for item in (some(40), some(30), Jump({0: 5}), some(1)):
        handover.put(item)
    assert len(handover.take(1)) == 70
    assert handover.take(1) == Jump({0: 5})
    assert len(handover.take(1)) == 1
    assert handover.take(0.01) is None


@pytest.mark.parametrize(("records", "size"), [(50, 10**6), (10**6, 500)])
def test_no_more_is_taken_than_the_limits(records, size):
    handover = Handover(records, size)
    handover.put(some(30))
    handover.put(some(30))
    assert [len(handover.take(1)), len(handover.take(1))] == [30, 30]


def test_the_reader_waits_while_a_batch_is_waiting():
    handover = Handover(records=10, size=10**9)
    handover.put(some(10))
    waiting = threading.Thread(target=handover.put, args=[some(10, first=10)])
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert len(handover.take(1)) == 10
    waiting.join(5)
    assert handover.take(1).positions[0] == 10


def test_closing_lets_the_reader_go_and_failing_comes_after_what_was_read():
    handover = Handover(records=1, size=1)
    handover.put(some(1))
    handover.fail(SourceError("refused"))
    assert len(handover.take(1)) == 1
    with pytest.raises(SourceError, match="refused"):
        handover.take(1)
    full = Handover(records=1, size=1)
    full.put(some(1))
    waiting = threading.Thread(target=full.put, args=[some(1)])
    waiting.start()
    full.close()
    waiting.join(5)
    assert not waiting.is_alive()
