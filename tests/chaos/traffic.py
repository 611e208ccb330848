"""A producer that knows what it produced: whatever happens, each of its messages is in Kafka exactly once."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter

from confluent_kafka import KafkaError, KafkaException, Producer

BATCH = 100
"""Messages at a time; one of them is broken."""
PAUSE = 0.05


class Traffic(threading.Thread):
    """Events of now on all partitions of a topic until `stop`, counted where Kafka has confirmed them."""

    def __init__(self, address: str, topic: str, partitions: int) -> None:
        super().__init__(daemon=True)
        # idempotent, and patient: through a killed broker a message comes neither twice nor never
        self._producer = Producer({
            "bootstrap.servers": address, "enable.idempotence": True, "message.timeout.ms": 600_000, "log_level": 0,
            "linger.ms": 5, "reconnect.backoff.max.ms": 500, "topic.metadata.refresh.interval.ms": 500,
        })  # fmt: skip
        self._topic, self.partitions = topic, partitions
        self._ending = threading.Event()
        self._random = random.Random(7)
        self.totals: Counter[tuple[str, str, str]] = Counter()
        """Events by measure, partner and country."""
        self.broken = 0
        self.delivered = 0
        self.failed: list[str] = []

    def run(self) -> None:
        while not self._ending.wait(PAUSE):
            for number in range(BATCH):
                self._produce(broken=number == 0)
            self._producer.poll(0)

    def stop(self) -> None:
        """No more; returns when Kafka has all."""
        self._ending.set()
        self.join(30)
        assert not self.is_alive()
        assert self._producer.flush(120) == 0

    def _produce(self, *, broken: bool) -> None:
        kind = self._random.choice(("session", "order"))
        partner, country = f"p{self._random.randrange(20)}", self._random.choice(("SE", "DE", "NO"))
        event = {"ts": int(time.time() * 1000), "operation": kind, "status": "ok", "partner": partner}
        value = b'{"ts": ' if broken else json.dumps({**event, "country": country}).encode()

        def confirmed(error, _):
            if error is not None:
                self.failed.append(error.str())
                return
            self.delivered += 1
            self.broken += broken
            if not broken:
                self.totals[f"{kind}s", partner, country] += 1

        partition = self._random.randrange(self.partitions)
        while True:
            try:
                self._producer.produce(self._topic, value, partition=partition, on_delivery=confirmed)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                self._producer.poll(PAUSE)  # a new one, which it has not heard of yet
            else:
                return
