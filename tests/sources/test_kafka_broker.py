"""The Kafka source on a real Kafka: what it does when Kafka is not as it should be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from structlog.testing import capture_logs

from kmon.errors import SourceError
from kmon.sources.kafka import describe
from tests.sources.reading import put, reading, source

pytestmark = [pytest.mark.xdist_group("kafka"), pytest.mark.timeout(180)]


@pytest.fixture
def producer(broker):
    return Producer({"bootstrap.servers": broker.address, "log_level": 0, "message.max.bytes": 20_000_000})


@pytest.fixture
def topic(broker, request):
    name = request.node.name.replace("[", ".").replace("]", "")[:200]
    broker.create_topic(name)
    yield name
    if name in broker.admin.list_topics(timeout=10).topics:
        broker.delete_topic(name)


@pytest.fixture
def logs():
    with capture_logs() as lines:
        yield lines


def said(logs, event):
    return [line for line in logs if line["event"].startswith(event)]


def trim(broker, topic, before):
    """What retention does: nothing before an offset is there any more."""
    partition, admin = TopicPartition(topic, 0, before), broker.admin
    admin.delete_records([partition])[partition].result(20)


def test_offsets_that_retention_took_are_told_and_stepped_over(broker, producer, topic, logs):
    put(producer, topic, *(b"%d" % n for n in range(10)))
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: len(run.records) == 10)
    trim(broker, topic, 8)
    with reading(source(broker.address, topic), run.positions | {(topic, 0): 5}) as run:
        run.until(lambda: len(run.records) == 2)
    assert run.values == [b"8", b"9"]
    assert [(line["lost"], line["next"]) for line in said(logs, "kafka no longer has")] == [(3, 8)]
    gap = next(move for batch in run.batches if not batch.size for move in batch.moves)
    assert (gap.first, gap.next) == (5, 8)


def test_what_the_store_never_had_is_not_lost(broker, producer, topic, logs):
    put(producer, topic, b"0", b"1", b"2")
    trim(broker, topic, 2)
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: len(run.records) == 1)
    assert (run.values, run.positions[topic, 0], logs) == ([b"2"], 3, [])


def test_a_deleted_topic_holds_up_no_other_and_is_read_again_when_it_is_there(broker, producer, topic, logs):
    other = f"{topic}.other"
    broker.create_topic(other)
    put(producer, topic, *[b"old"] * 5)
    with reading(source(broker.address, topic, other)) as run:
        run.until(lambda: len(run.records) == 5)
        broker.delete_topic(topic)
        run.until(lambda: bool(said(logs, "kafka topic was deleted")))
        put(producer, other, b"the other goes on")
        run.until(lambda: len(run.records) == 6)
        assert run.unread[topic, 0] == 0
        broker.create_topic(topic, partitions=2)
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})  # the old one knows of one partition
        put(producer, topic, b"new", b"new")
        put(producer, topic, b"in the second partition", partition=1)
        run.until(lambda: len(run.records) == 9)
    assert run.records[-3:].count((topic, 0, 1, b"new")) == 1
    assert run.positions[topic, 0] == 2
    assert len(said(logs, "kafka topic was deleted")) == len(said(logs, "kafka topic was re-created")) == 1


def test_a_topic_that_was_deleted_meanwhile_has_nothing_to_be_read(broker, producer, topic):
    other = f"{topic}.other"
    broker.create_topic(other)
    before = {(topic, 0): 5, (other, 0): 0, ("not read any more", 0): 3, ("not read any more", -1): 7}
    broker.delete_topic(topic)
    with reading(source(broker.address, topic, other), before) as run:
        run.until(lambda: run.unread and not any(run.unread.values()))
    assert run.unread == {(other, 0): 0}  # what is not named has nothing unread


@pytest.mark.parametrize("messages", [2, 5, 8])
def test_a_topic_that_was_recreated_meanwhile_is_read_from_its_beginning(broker, producer, topic, logs, messages):
    put(producer, topic, *[b"old"] * 5)
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: len(run.records) == 5)
    broker.delete_topic(topic)
    broker.create_topic(topic)
    put(producer, topic, *[b"new"] * messages)
    with reading(source(broker.address, topic), run.positions) as again:
        again.until(lambda: len(again.records) == messages)
        again.until(lambda: again.unread[topic, 0] == 0)
    assert again.values == [b"new"] * messages
    assert again.positions[topic, 0] == messages
    assert len(said(logs, "kafka topic was re-created")) == 1


def test_a_truncated_topic_goes_on_at_its_end(broker, producer, topic, logs):
    put(producer, topic, b"0", b"1", b"2")
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: len(run.records) == 3)
    with reading(source(broker.address, topic), run.positions | {(topic, 0): 1000}) as run:
        run.until(lambda: run.positions[topic, 0] == 3)
        put(producer, topic, b"3")
        run.until(lambda: run.values == [b"3"])
    assert [line["next"] for line in said(logs, "kafka partition ends before")] == [3]


def test_a_topic_that_is_not_there_yet_is_waited_for(broker, producer, logs):
    with reading(source(broker.address, "later", start="latest")) as run:
        run.until(lambda: bool(said(logs, "kafka has no such topic")))
        broker.create_topic("later")
        put(producer, "later", b"first")
        run.until(lambda: run.values == [b"first"])
    assert len(said(logs, "kafka has no such topic")) == 1
    broker.delete_topic("later")


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_new_partition_is_read_from_its_beginning(broker, producer, topic, start):
    with reading(source(broker.address, topic, start=start)) as run:
        run.until(lambda: (topic, 0) in run.positions or start == "earliest")
        run.step()
        broker.add_partitions(topic, 3)
        put(producer, topic, b"x", b"y", partition=2)
        run.until(lambda: len(run.records) == 2)
    assert run.positions[topic, 2] == 2


def test_a_broker_that_goes_away_is_waited_for_and_told_once(broker, producer, topic, logs):
    put(producer, topic, b"before")
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: run.values == [b"before"])
        run.until(lambda: run.unread == {(topic, 0): 0})
        broker.kill()
        run.until(lambda: bool(said(logs, "kafka does not answer")))
        run.step()
        assert run.unread == {(topic, 0): 1}  # nobody knows: nothing is complete
        broker.start_again()
        put(producer, topic, b"after")
        run.until(lambda: run.values == [b"before", b"after"])
        run.until(lambda: run.unread == {(topic, 0): 0})
    assert len(said(logs, "kafka does not answer")) == len(said(logs, "kafka answers again")) == 1
    assert said(logs, "kafka answers again")[0]["after_seconds"] > 0


def test_it_ends_soon_when_told_so_while_no_broker_is_there(broker, topic):
    with reading(source(broker.address, topic)) as run:
        run.step()
        broker.kill()
        try:
            began = time.monotonic()
            run.stop.set()
            run._batches.close()
            assert time.monotonic() - began < 15
        finally:
            broker.start_again()


def test_no_broker_at_the_start_is_waited_for(tmp_path, logs):
    with reading(source("127.0.0.1:9", "x")) as run:
        run.until(lambda: bool(said(logs, "kafka does not answer")))
    with pytest.raises(SourceError, match=r"no broker answers at 127\.0\.0\.1:9 .*refused"):
        describe(source("127.0.0.1:9", "x"), timeout=1)


def sasl(broker, topic, password, user="kmon"):
    settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": user}
    return source(broker.sasl_address, topic, settings={**settings, "sasl.password": password})


def test_a_password_lets_us_in(broker, producer, topic):
    put(producer, topic, b"{}")
    assert "1 partitions" in describe(sasl(broker, topic, "right"))
    with reading(sasl(broker, topic, "right")) as run:
        run.until(lambda: run.values == [b"{}"])


def test_a_wrong_password_ends_it_with_a_sentence_without_the_password(broker, topic, logs):
    with reading(sasl(broker, topic, "hunter2wrong")) as run, pytest.raises(SourceError) as caught:
        run.until(lambda: False)
    assert str(caught.value) == (
        "Kafka refuses the user or the password of the source: SASL authentication error: Authentication failed: "
        "Invalid username or password: correct source.settings"
    )
    with pytest.raises(SourceError, match="Kafka refuses the user or the password") as told:
        describe(sasl(broker, topic, "hunter2wrong"))
    assert "hunter2wrong" not in f"{caught.value} {told.value} {logs}"


def test_a_topic_that_we_may_not_read_ends_it_with_a_sentence(broker, topic):
    with (
        reading(sasl(broker, topic, "right", "stranger")) as run,
        pytest.raises(SourceError, match=r"does not let kmon read the topic .*: allow it"),
    ):
        run.until(lambda: False)


def test_aborted_transactions_and_their_markers_are_no_messages_and_nothing_unread(broker, topic):
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(30)
    for number, end in enumerate([producer.commit_transaction, producer.abort_transaction] * 3):
        producer.begin_transaction()
        producer.produce(topic, b"%d" % number)
        producer.flush(30)
        end(30)
    with reading(source(broker.address, topic)) as run:
        run.until(lambda: len(run.records) == 3)
        run.until(lambda: run.unread == {(topic, 0): 0})
    assert run.values == [b"0", b"2", b"4"]
    assert run.positions[topic, 0] == 12  # a marker follows each of six messages


def test_compacted_gaps_are_none(broker, topic):
    broker.create_topic(f"{topic}.c", settings={
        "cleanup.policy": "compact", "segment.ms": 100, "min.cleanable.dirty.ratio": 0.01, "max.compaction.lag.ms": 100,
    })  # fmt: skip
    producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
    config = source(broker.address, f"{topic}.c")
    put(producer, f"{topic}.c", *(b"%d" % n for n in range(50)), key=b"k")

    def kept():
        put(producer, f"{topic}.c", b"last", key=b"k")
        with reading(config) as run:
            run.until(lambda: run.unread.get((f"{topic}.c", 0)) == 0)
        return run

    deadline = time.monotonic() + 90
    while len((run := kept()).records) > 30:
        assert time.monotonic() < deadline
        time.sleep(1)
    positions = [position for *_, position, _ in run.records]
    assert max(b - a for a, b in zip([-1, *positions], positions, strict=False)) > 1
    assert run.positions[f"{topic}.c", 0] == positions[-1] + 1


def test_messages_of_many_megabytes_pass(broker, topic):
    large = f"{topic}.large"
    broker.create_topic(large, settings={"max.message.bytes": 15_000_000})
    producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": 15_000_000, "log_level": 0})
    put(producer, large, b"x" * 12_000_000, b"y" * 2_000_000, b"{}")
    with reading(source(broker.address, large)) as run:
        run.until(lambda: len(run.records) == 3)
    assert [len(value) for value in run.values] == [12_000_000, 2_000_000, 2]


def test_kafkas_own_tools_see_the_positions(broker, producer, topic):
    put(producer, topic, *[b"{}"] * 7)
    with reading(source(broker.address, topic, group="seen")) as run:
        run.until(lambda: len(run.records) == 7)
        for _ in range(2):  # the first asks for what follows, which is when all before the last batch is committed
            run.step()
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "seen", "log_level": 0})
    assert consumer.committed([TopicPartition(topic, 0)], timeout=20)[0].offset == 7
    assert not [tp for tp in consumer.committed([TopicPartition(topic, 1)], timeout=20) if tp.offset > 0]
    consumer.close()


def test_group_offsets_that_kafka_does_not_take_stop_nothing(broker, producer, topic, logs):
    member = Consumer({"bootstrap.servers": broker.address, "group.id": "taken", "log_level": 0})
    member.subscribe([topic])
    while not member.assignment():
        member.poll(0.1)
    put(producer, topic, b"{}")
    with reading(source(broker.address, topic, group="taken")) as run:
        run.until(lambda: len(run.records) == 1)
        for _ in range(2):
            run.step()
    member.close()
    assert [line["group"] for line in said(logs, "kafka does not keep our offsets")] == ["taken"]


def test_a_backlog_of_large_messages_does_not_fill_the_memory(broker, topic):
    many = f"{topic}.many"
    broker.create_topic(many, partitions=12)
    producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": 2_000_000, "log_level": 0})
    for number in range(1200):
        producer.produce(many, b"x" * 1_000_000, partition=number % 12)
        producer.poll(0.01)
    assert producer.flush(60) == 0
    script = f"""
import sys, psutil
from tests.sources.reading import reading, source
before = psutil.Process().memory_info().rss
peak, count, largest = before, 0, 0
with reading(source({broker.address!r}, {many!r})) as run:
    while count < 1200:
        size = run.step().size
        count, largest = count + size, max(largest, size)
        run.batches.clear(), run.records.clear()
        peak = max(peak, psutil.Process().memory_info().rss)
print((peak - before) >> 20, largest)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    grown, largest = map(int, done.stdout.split())
    assert largest <= 48  # of a million bytes each: the first batch is as large as what librdkafka holds
    assert grown < 400
