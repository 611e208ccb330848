"""The Kafka source on librdkafka's mock cluster, which speaks the real protocol inside this process."""

from __future__ import annotations

import threading
import time

import pytest
from confluent_kafka import Producer
from structlog.testing import capture_logs

from kmon.config.models import KafkaSource
from kmon.errors import ConfigError
from kmon.ingest import Ingestion
from kmon.sources.kafka import KafkaTopics, describe
from kmon.sources.kafka.messages import TOMBSTONE
from tests.sources.reading import put, reading, source

TOPIC = "events"


class Mock(Producer):
    """A producer with a cluster in it, which lives as long; topics have four partitions."""

    def __init__(self):
        super().__init__(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "message.max.bytes": 2_000_000, "log_level": 0}
        )
        broker = next(iter(self.list_topics(timeout=10).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"


@pytest.fixture(scope="module")
def mock():
    return Mock()


@pytest.fixture
def topic(mock, request):
    name = request.node.name.replace("[", ".").replace("]", "")[:200]
    mock.list_topics(name, timeout=10)  # the mock cluster makes what is asked for
    return name


def test_everything_is_read_once_and_in_order(mock, topic):
    for partition in range(4):
        put(mock, topic, *(b'{"n": %d}' % n for n in range(500)), partition=partition)
    with reading(source(mock.address, topic)) as run:
        run.until(lambda: len(run.records) == 2000)
        assert sorted(run.records) == [(topic, p, n, b'{"n": %d}' % n) for p in range(4) for n in range(500)]
        run.until(lambda: set(run.unread.values()) == {0})
    assert {key: at for key, at in run.positions.items() if key[1] >= 0} == {(topic, p): 500 for p in range(4)}


def test_it_begins_where_the_store_is(mock, topic):
    put(mock, topic, b"0", b"1", b"2")
    put(mock, topic, b"other", partition=1)
    with reading(source(mock.address, topic), {(topic, 0): 2}) as run:
        run.until(lambda: len(run.records) == 2)
    assert sorted(run.records) == [(topic, 0, 2, b"2"), (topic, 1, 0, b"other")]


def test_latest_begins_at_the_end_and_remembers_that(mock, topic):
    put(mock, topic, b"old")
    with reading(source(mock.address, topic, start="latest")) as run:
        run.until(lambda: all((topic, p) in run.positions for p in range(4)))
        assert run.positions[topic, 0] == 1
    put(mock, topic, b"while nobody read")
    put(mock, topic, b"in an empty one", partition=1)
    with reading(source(mock.address, topic, start="latest"), run.positions) as again:
        again.until(lambda: len(again.records) == 2)
    assert sorted(again.values) == [b"in an empty one", b"while nobody read"]


def test_batches_grow_with_the_backlog_and_are_small_without(mock, topic):
    put(mock, topic, *[b'{"n": 1}'] * 30_000)
    with reading(source(mock.address, topic, batch_records=20_000)) as run:
        run.until(lambda: bool(run.records))
        time.sleep(1)  # as when the pipeline is busy
        run.until(lambda: len(run.records) == 30_000)
        assert 1_000 < max(batch.size for batch in run.batches) <= 20_000
        run.until(lambda: run.unread[topic, 0] == 0)
        put(mock, topic, b"one")
        run.until(lambda: run.values[-1] == b"one")
        assert run.batches[-1].size == 1


def test_a_batch_is_no_larger_than_its_bytes(mock, topic):
    put(mock, topic, *[b"x" * 50_000] * 80)
    with reading(source(mock.address, topic, batch_bytes=1_000_000)) as run:
        run.until(lambda: len(run.records) == 80)
    assert max(len(batch.data) for batch in run.batches) <= 1_250_000


def test_tombstones_and_line_ends(mock, topic):
    put(mock, topic, b'{\n"n": 1}', None, b"not json")
    with reading(source(mock.address, topic)) as run:
        run.until(lambda: len(run.records) == 3)
    assert run.values == [b'{ "n": 1}', b"", b"not json"]
    assert [why for batch in run.batches for why in batch.damaged.values()] == [TOMBSTONE]
    assert all((batch.written > 1.6e15).all() for batch in run.batches if batch.size)


def test_what_is_no_event_is_a_dead_letter_with_its_place(mock, topic, config, store):
    event = b'{"ts": "2026-03-02T12:00:00Z", "operation": "order",\n "status": "ok", "partner": "p1"}'
    put(mock, topic, event, None, b"not json", b"", b" \n", partition=1)
    put(mock, topic, b'{"x": "' + b"x" * 1_100_000 + b'"}', event, partition=2)
    stop = threading.Event()
    ingestion = Ingestion(config, store, on_batch=lambda done: stop.set() if done.dead_letters == 5 else None)
    with capture_logs() as lines:
        ingestion.run(KafkaTopics(source(mock.address, topic)), stop)
    assert store.sql("SELECT sum(orders)::INT FROM rollup").item() == 2
    letters = store.sql("SELECT partition, position, reason FROM dead_letters ORDER BY ALL").rows()
    assert [letter[:2] for letter in letters] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]
    assert letters[0][2] == TOMBSTONE
    told = {line["reason"] for line in lines if line["event"] == "records rejected"}
    assert told == {"tombstone", "empty", "blank", "not JSON", "too long"}
    assert set(store.clocks()) == {f"{topic}/1", f"{topic}/2"}


def test_several_topics_and_patterns(mock, topic):
    for name in (f"{topic}.a", f"{topic}.b", "else"):
        mock.list_topics(name, timeout=10)
        put(mock, name, name.encode())
    with reading(source(mock.address, f"^{topic}\\..*", "else")) as run:
        run.until(lambda: len(run.records) == 3)
        put(mock, f"{topic}.c", b"a new topic", partition=3)
        run.until(lambda: len(run.records) == 4)
    assert {topic for topic, *_ in run.records} == {f"{topic}.a", f"{topic}.b", f"{topic}.c", "else"}


def test_a_partition_with_unread_messages_says_how_many(mock, topic):
    put(mock, topic, *[b"x" * 1000] * 100)
    with reading(source(mock.address, topic, batch_records=10)) as run:
        run.until(lambda: bool(run.records))
        assert run.unread[topic, 0] == 100 - len(run.records)
        run.until(lambda: len(run.records) == 100)
        assert run.unread[topic, 0] == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"no.such.setting": "hunter2"}, "no.such.setting"),
        ({"sasl.mechanism": "PLAIN", "security.protocol": "hunter2"}, "security.protocol"),
        ({"ssl.key.pem": "hunter2", "security.protocol": "ssl"}, "ssl.key.pem"),
    ],
)
def test_a_bad_setting_is_told_without_a_secret(mock, settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        describe(source(mock.address, TOPIC, settings=settings))
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_not_in_the_configuration_as_text():
    config = source("localhost:9", TOPIC, settings={"sasl.password": "hunter2", "socket.keepalive.enable": True})
    assert "hunter2" not in repr(config) + str(config) + config.model_dump_json()
    assert config.settings["socket.keepalive.enable"].get_secret_value() == "true"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"topics": ["^("]}, "not a pattern"),
        ({"topics": ["two words"]}, "not the name of a topic"),
        ({"settings": {"group.id": "x"}}, "is set by group"),
    ],
)
def test_what_the_configuration_refuses(values, told):
    with pytest.raises(ValueError, match=told):
        KafkaSource.model_validate({"kind": "kafka", "brokers": ["localhost:9092"], "topics": ["x"], **values})


def test_doctor_says_what_is_there(mock, topic):
    assert describe(source(mock.address, topic)) == f"{mock.address} has {topic}: 4 partitions"


def test_nothing_is_logged_when_all_is_well(mock, topic):
    put(mock, topic, b"{}")
    with capture_logs() as logs, reading(source(mock.address, topic)) as run:
        run.until(lambda: len(run.records) == 1)
    assert [line for line in logs if line["log_level"] != "debug"] == []
