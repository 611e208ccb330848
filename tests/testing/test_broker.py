"""The test kit's broker is a real one: it keeps what it was told, through a restart and a kill."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from kmon.testing import Broker, BrokerUnavailableError

pytestmark = pytest.mark.xdist_group("kafka")


def put(address, topic, value):
    producer = Producer({"bootstrap.servers": address})
    producer.produce(topic, value)
    assert producer.flush(20) == 0


def values(address, topic, count, **settings):
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test", **settings})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = consumer.consume(count, 20)
    consumer.close()
    return [message.value() for message in found]


@pytest.mark.parametrize("end", [Broker.stop, Broker.kill])
def test_it_keeps_its_messages(broker, end):
    topic = f"kept.{end.__name__}"
    broker.create_topic(topic)
    put(broker.address, topic, b"before")
    end(broker)
    assert broker.pid is None
    broker.start_again()
    put(broker.address, topic, b"after")
    assert values(broker.address, topic, 2) == [b"before", b"after"]
    broker.delete_topic(topic)


def test_it_lets_in_who_knows_the_password(broker):
    broker.create_topic("sasl", partitions=2)
    broker.add_partitions("sasl", 3)
    put(broker.address, "sasl", b"x")
    sasl = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "kmon",
        "sasl.password": "right",
    }
    producer = Producer({"bootstrap.servers": broker.sasl_address, **sasl})
    assert len(producer.list_topics("sasl", timeout=10).topics["sasl"].partitions) == 3


@pytest.mark.parametrize(("missing", "told"), [("java", "default-jre-headless"), ("mvn", "apt install maven")])
def test_it_says_what_to_install(tmp_path, monkeypatch, missing, told):
    if missing == "mvn":
        (tmp_path / "java").write_text("#!/bin/sh\n")
        (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnavailableError, match=told), Broker.start(tmp_path / "x", cache=tmp_path / "empty"):
        pass


def test_it_says_why_it_did_not_start(tmp_path):
    with (
        pytest.raises(BrokerUnavailableError, match=r"formatted: .*Invalid value none"),
        Broker.start(tmp_path, settings={"node.id": "none"}),
    ):
        pass
