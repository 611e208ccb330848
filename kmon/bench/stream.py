"""A topic of a real Kafka for the benchmarks: filled beforehand, or at a given rate by a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kmon.errors import KmonError

if TYPE_CHECKING:
    from confluent_kafka import Producer

TOPIC = "events"
PARTITIONS = 4
MARKER = "marker:"
"""What the partner of an event begins with that is produced only to be looked for."""
_PATIENCE = 60.0


def fill(
    address: str,
    topic: str,
    lines: Sequence[bytes],
    keys: Sequence[str] | None = None,
    times: Sequence[int] | None = None,
) -> None:
    """Produce all `lines` as fast as the broker takes them, and wait until it has them; `times` are epoch ms."""
    client = producer(address)
    for number, line in enumerate(lines):
        send(client, topic, line, key=keys[number] if keys else None, time=times[number] if times else 0)
    flush(client)


@dataclass
class Paced:
    """What a producer has done: when each marker was produced, by the machine's monotonic clock."""

    rate: float
    markers: dict[int, float] = field(default_factory=dict)
    produced: int = 0
    """Events, without the markers."""
    slowest: float = 0.0
    """The most seconds that the producer was behind its schedule."""
    done: bool = False
    """Whether it has ended."""


@contextlib.contextmanager
def producing(address: str, rate: float, seconds: float) -> Iterator[Paced]:
    """Produce events at a rate for `seconds` from a process of its own, `kmon.bench.producer`.

    The block sees what was produced as it goes on; its end ends the producer.
    """
    command = [sys.executable, "-m", "kmon.bench.producer", address, str(rate), str(seconds)]
    paced = Paced(rate)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        listening = threading.Thread(target=_listen, args=(process, paced), daemon=True)
        listening.start()
        try:
            yield paced
        finally:
            process.terminate()
            listening.join(10)


def _listen(process: subprocess.Popen[str], paced: Paced) -> None:
    for line in process.stdout or ():
        marker, when, produced, behind = line.split()
        paced.markers[int(marker)] = float(when)
        paced.produced = int(produced)
        paced.slowest = max(paced.slowest, float(behind))
    paced.done = True


def producer(address: str, linger: int = 50) -> Producer:
    """A client that produces; `linger` is how many milliseconds it gathers messages."""
    from confluent_kafka import Producer

    settings = {
        "bootstrap.servers": address,
        "linger.ms": linger,
        "batch.size": 1 << 20,
        "queue.buffering.max.messages": 500_000,
        "enable.idempotence": True,
        "log_level": 3,
    }
    return Producer(settings)


def send(client: Producer, topic: str, line: bytes, key: str | None = None, time: int = 0) -> None:
    """Produce a message, when there is room for it."""
    while True:
        try:
            client.produce(topic, line, key, timestamp=time)
        except BufferError:
            client.poll(0.1)
        else:
            return


def flush(client: Producer) -> None:
    """Wait until the broker has everything; KmonError where it does not take it."""
    if client.flush(_PATIENCE):
        message = f"the broker did not take all events within {_PATIENCE:.0f} seconds"
        raise KmonError(message)
