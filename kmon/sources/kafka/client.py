"""The seam to librdkafka: its settings, its errors as sentences, its silence about secrets."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from kmon.config import KafkaSource
from kmon.errors import ConfigError, SourceError

log = structlog.get_logger("kmon.kafka")
_SECRET = re.compile(r"password|secret|token|jaas|oauthbearer|credential|\.pem$|private", re.IGNORECASE)
_ASKED = 5.0
"""Seconds that a question to Kafka may take."""
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)
_UNREACHABLE = (KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._SSL)
_FORBIDDEN = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
_DEFAULTS: Mapping[str, str | int | float | bool] = {
    "client.id": "kmon",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,  # says that a partition is read to its end, whatever lies behind the last message
    "auto.offset.reset": "error",  # an offset that Kafka does not have is ours to decide
    "isolation.level": "read_committed",
    # What waits in librdkafka is bounded over all partitions, and what one answer adds to it. It asks again
    # 10 ms after the queue was full; the default is a second, which would be most of the time.
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 32_768,
    "fetch.max.bytes": 16_777_216,
    "fetch.queue.backoff.ms": 10,
    # Kafka gathers what is little for a tenth of a second; else both sides would be busy with single messages.
    "fetch.min.bytes": 65_536,
    "fetch.wait.max.ms": 100,
    "topic.metadata.refresh.interval.ms": 5_000,
    "reconnect.backoff.max.ms": 2_000,
    "log_level": 6,
}


@dataclass(frozen=True)
class Topic:
    """What Kafka says of a topic."""

    partitions: frozenset[int]
    leaderless: frozenset[int]
    """Those that nobody can read at the moment."""


class Client:
    """A consumer of the source's cluster, which knows whether it is in touch with it."""

    def __init__(self, source: KafkaSource, *, telling: bool = True) -> None:
        """`telling`: into the log, what is waited for."""
        self._source, self._telling = source, telling
        self._secrets = [
            value.get_secret_value()
            for key, value in source.settings.items()
            if _SECRET.search(key) and value.get_secret_value()
        ]
        self._refused: str | None = None
        self.doubtful = False
        """librdkafka has lost its brokers, maybe long ago, as it tells that late: to be asked for."""
        self.why = ""
        """The last that was heard of a broker that is out of reach."""
        self._has_controller = False  # without one, a question about identities would only time out
        self._said: set[object] = set()
        self.away_since: float | None = None
        """By the monotonic clock: since when no broker answers; None while one does."""
        own = {key: value.get_secret_value() for key, value in source.settings.items()}
        brokers = ",".join(source.brokers)
        self._settings = {**_DEFAULTS, **own, "bootstrap.servers": brokers, "group.id": source.group}
        try:
            self.consumer = Consumer(
                {**self._settings, "error_cb": self._heard, "on_commit": self._committed}, logger=_quiet()
            )
            self._admin = AdminClient(self._settings, logger=_quiet())
        except KafkaException as error:
            said = error.args[0].str()
            for value in filter(None, own.values()):  # who knows what stands at the wrong key
                said = re.sub(rf"(?<![\w.]){re.escape(value)}(?![\w.])", "***", said)
            message = f"source.settings: {said}"
            raise ConfigError(message) from None

    def close(self) -> None:
        self.consumer.close()

    def check(self) -> None:
        """SourceError where Kafka has refused us since."""
        if self._refused is not None:
            raise SourceError(self._refused)

    def topics(self, names: list[str], *, every: bool, timeout: float = _ASKED) -> dict[str, Topic] | None:
        """Those of the topics `names` that are there, or all of the cluster; None where Kafka does not answer."""
        found: dict[str, Topic] = {}
        try:
            for name in [None] if every else names:
                cluster = self._metadata(name, timeout)
                self._has_controller = cluster.controller_id in cluster.brokers
                for topic in cluster.topics.values():
                    if topic.error is not None and topic.error.code() in _FORBIDDEN and not every:
                        message = f"Kafka does not let kmon read the topic {topic.topic}: allow it to read it"
                        raise SourceError(message)
                    if topic.error is None and topic.partitions:
                        leaderless = frozenset(p.id for p in topic.partitions.values() if p.leader < 0)
                        found[str(topic.topic)] = Topic(frozenset(topic.partitions), leaderless)
        except KafkaException as error:
            self.went_away(error.args[0].str())
            return None
        self.came_back()
        return found

    def _metadata(self, name: str | None, timeout: float) -> Any:
        """In short questions, as a refused password shows only between them, in a callback."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.consumer.list_topics(name, timeout=min(timeout, 1.0))
            except KafkaException:
                self.consumer.poll(0)
                self.check()
                if time.monotonic() > deadline:
                    raise

    def wanted(self, timeout: float = _ASKED) -> dict[str, Topic] | None:
        """The topics of the source that are there, by name; None where Kafka does not answer."""
        names = [topic for topic in self._source.topics if not topic.startswith("^")]
        patterns = [re.compile(topic) for topic in self._source.topics if topic.startswith("^")]
        found = self.topics(names, every=bool(patterns), timeout=timeout)
        return found and {
            name: topic
            for name, topic in found.items()
            if name in names
            or any(p.match(name) and (not name.startswith("__") or p.pattern.startswith("^__")) for p in patterns)
        }

    def bounds(self, partition: TopicPartition) -> tuple[int, int] | None:
        """The first offset that Kafka has of a partition, and the one after the last; None where it does not answer."""
        try:
            found: tuple[int, int] | None = self.consumer.get_watermark_offsets(partition, timeout=_ASKED)
        except KafkaException:
            return None
        return found

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Tell the consumer group, without waiting; what goes wrong is said once."""
        try:
            self.consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._committed(error.args[0], offsets)

    def sentence(self, error: KafkaException) -> str:
        """What is wrong when nothing can be done about it."""
        return f"Kafka cannot be read: {self._clean(error.args[0].str())}"

    def identities(self, names: list[str], timeout: float = _ASKED) -> dict[str, int]:
        """A number for each topic that another topic of the same name would not have, as far as Kafka tells."""
        found = {}
        if names and self._has_controller:
            try:
                answers = self._admin.describe_topics(TopicCollection(names), request_timeout=timeout)
            except KafkaException:
                return {}
            for name, answer in answers.items():
                try:
                    bits = answer.result(timeout).topic_id.get_most_significant_bits() & (2**63 - 1)
                except (KafkaException, TimeoutError):
                    continue
                if bits:  # brokers that know no identities say zero
                    found[name] = bits
        return found

    def went_away(self, why: str) -> None:
        """No broker answers; said once."""
        if self.away_since is None:
            self.away_since = time.monotonic()
            self.why = self._clean(self.why or why)
            if self._telling:
                log.warning("kafka does not answer; waiting for it", brokers=self._source.brokers, why=self.why)

    def came_back(self) -> None:
        """A broker answers."""
        if self.away_since is not None:
            seconds = round(time.monotonic() - self.away_since, 1)
            log.warning("kafka answers again", brokers=self._source.brokers, after_seconds=seconds)
            self.away_since = None

    def once(self, key: object, event: str, **values: object) -> None:
        """A warning that is not said again before `forget` of its key."""
        if key not in self._said:
            self._said.add(key)
            log.warning(event, **{k: self._clean(v) if isinstance(v, str) else v for k, v in values.items()})

    def forget(self, key: object) -> None:
        self._said.discard(key)

    def failed(self, error: KafkaError, topic: str) -> None:
        """An error about one topic that librdkafka tries again by itself; SourceError where it cannot help."""
        if error.code() in _FORBIDDEN:
            message = f"Kafka does not let kmon read the topic {topic}: allow it to read it"
            raise SourceError(message)
        self.once((topic, error.code()), "kafka cannot read a topic; trying again", topic=topic, why=error.str())

    def _heard(self, error: KafkaError) -> None:
        """librdkafka's own callback, from within poll and consume."""
        if error.code() in _REFUSED:
            why = self._clean(error.str())
            self._refused = f"Kafka refuses the user or the password of the source: {why}: correct source.settings"
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.doubtful = self.away_since is None
        elif error.code() in _UNREACHABLE:
            self.why = self._clean(error.str())
        elif error.fatal():
            self._refused = f"Kafka's client gave up: {self._clean(error.str())}"

    def _committed(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            told = "kafka does not keep our offsets, so that its tools show no lag; kmon itself has them"
            self.once("commit", told, group=self._source.group, why=error.str())

    def _clean(self, text: str) -> str:
        """`text` without a secret, and without librdkafka's own name and times of a connection."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"^[^\s:]+(://)?[^\s:]*(:\d+)?/\w+: | \(after \d+ms in state \w+\)", "", text)


class _Debug(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("librdkafka", said=record.getMessage())


def _quiet() -> logging.Logger:
    """Where librdkafka logs: each of its lines comes again with every attempt, so only for those who debug."""
    logger = logging.getLogger("kmon.kafka.client")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_Debug())
    return logger
