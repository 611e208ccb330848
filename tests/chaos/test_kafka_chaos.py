"""Kafka to rollups while owners are killed, the broker dies, partitions come and zombies replay: not one event is
lost or counted twice.

KMON_CHAOS=200 (or `make chaos`) does so many faults instead of 20.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from kmon.config import load_config
from kmon.errors import OffsetConflictError, StoreError
from kmon.ingest import Ingestion
from kmon.sources.kafka import KafkaTopics
from kmon.store import EmbeddedStore, RemoteStore, token_for
from kmon.testing import free_port
from tests.chaos.traffic import Traffic
from tests.conftest import TEMPLATE
from tests.integration.processes import Running, wait_until

FAULTS = int(os.environ.get("KMON_CHAOS", "20"))
TOPIC = "chaos"
SOON = 60.0
pytestmark = [pytest.mark.xdist_group("kafka"), pytest.mark.timeout(120 + 15 * FAULTS)]


class Owners:
    """Processes that want the store: the first owns it, the others stand by."""

    def __init__(self, config):
        self._config = config
        self._running: list[Running] = []

    def start(self):
        command = [sys.executable, "-m", "kmon", "ingest", "--standby"]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        one = Running(subprocess.Popen(command, cwd=self._config.path.parent, text=True, **pipes))
        self._running.append(one)
        if len(self._running) > 1:
            one.logged("standing by", SOON)
        else:
            wait_until(lambda: committed(self._config) is not None, SOON, "the owner answers")

    def kill(self, which=0):
        """kill -9; the standby takes over, and another one stands by."""
        self._end(self._running.pop(which), signal.SIGKILL)
        if which == 0:
            self._running[0].logged("took over", SOON)
        self.start()

    def pause(self, seconds):
        """SIGSTOP: the lock on the file stays with the owner, so nobody takes over, and it goes on where it was."""
        owner = self._running[0].process
        owner.send_signal(signal.SIGSTOP)
        threading.Event().wait(seconds)
        owner.send_signal(signal.SIGCONT)

    def end(self, sign=signal.SIGKILL):
        """End all, the standby first, so that it does not take over."""
        while self._running:
            self._end(self._running.pop(), sign)

    @staticmethod
    def _end(one, sign):
        one.process.send_signal(sign)
        code = one.process.wait(60)
        assert code == -sign if sign == signal.SIGKILL else code == 0, one.log
        for reader in one.readers:
            reader.join(10)
        one.process.stdout.close()
        one.process.stderr.close()
        assert not [line for line in one.log if "Traceback" in line], one.log


@pytest.fixture
def config(tmp_path, broker):
    text = TEMPLATE.read_text(encoding="utf-8").replace(
        "source:\n  kind: simulator", f"source:\n  kind: kafka\n  brokers: ['{broker.address}']\n  topics: [{TOPIC}]", 1
    )
    kept = [line for line in text.split("\n") if not line.startswith(("  partners: 2000", "  rate: 20", "  history: "))]
    path = tmp_path / "kmon.yaml"
    path.write_text("\n".join(kept) + f"\nserve: quack:localhost:{free_port()}\n", encoding="utf-8")
    return load_config(path)


@contextlib.contextmanager
def opened(config):
    with EmbeddedStore(config.resolve(config.store), config) as store:
        yield store


def committed(config):
    """How many messages are committed, asked of whoever owns the store at the moment."""
    path = str(config.resolve(config.store))
    with contextlib.suppress(StoreError), RemoteStore(config.serve, token_for(path), patience=0) as store:
        text = f"SELECT sum(position)::BIGINT FROM offsets WHERE source = '{TOPIC}' AND partition >= 0"
        return store.sql(text).item()
    return None


def first_batch(config):
    """The batch that a first owner reads: who replays it is a zombie once somebody has committed it."""
    batches = KafkaTopics(config.source).read({}, threading.Event())
    try:
        return next(batch for batch in batches if batch.size)
    finally:
        batches.close()


def replay(config, owners, batch):
    """A zombie commits an old batch once more: it is refused, and nothing changes."""
    owners.end()
    with opened(config) as store:
        before = store.positions(), store.sql("SELECT sum(events) FROM rollup").item()
        with pytest.raises(OffsetConflictError):
            Ingestion(config, store).emit(batch)
        assert (store.positions(), store.sql("SELECT sum(events) FROM rollup").item()) == before
    owners.start()
    owners.start()


def restart(broker, how):
    how(broker)
    broker.start_again()


def grow(broker, traffic):
    broker.add_partitions(TOPIC, traffic.partitions + 1)
    traffic.partitions += 1


def plan(rng, faults):
    """Most faults kill an owner; some of each other kind are always among them."""
    others = ["standby", "pause", "broker stop", "broker kill", "partition", "zombie"]
    rare = others * max(1, faults // 40)
    drawn = rare + ["owner"] * (faults - len(rare))
    rng.shuffle(drawn)
    return drawn


def counted(config, measures=("sessions", "orders")):
    """What the store has: totals as the producer keeps them, and dead letters."""
    with opened(config) as store:
        totals: Counter[tuple[str, str, str]] = Counter()
        for measure in measures:
            rows = store.sql(f"SELECT partner, country, sum({measure})::BIGINT FROM rollup GROUP BY ALL").rows()
            totals.update({(measure, partner, country): n for partner, country, n in rows if n})
        letters = store.sql("SELECT count(*) FROM dead_letters").item()
        positions = {key: at for key, at in store.positions().items() if key[0] == TOPIC and key[1] >= 0}
    return totals, letters, sum(positions.values())


def test_every_total_is_the_producers(config, broker):
    rng = random.Random(FAULTS)
    broker.create_topic(TOPIC, partitions=3)
    traffic, owners = Traffic(broker.address, TOPIC, 3), Owners(config)
    traffic.start()
    old = first_batch(config)
    faults = {
        "owner": owners.kill,
        "standby": lambda: owners.kill(1),
        "pause": lambda: owners.pause(rng.uniform(0.2, 1.5)),
        "broker stop": lambda: restart(broker, type(broker).stop),
        "broker kill": lambda: restart(broker, type(broker).kill),
        "partition": lambda: grow(broker, traffic),
        "zombie": lambda: replay(config, owners, old),
    }
    try:
        owners.start()
        owners.start()
        done = Counter()
        began = time.monotonic()
        for name in plan(rng, FAULTS):
            threading.Event().wait(rng.expovariate(2.5))  # at random: that is what the test is about
            faults[name]()
            done[name] += 1
        traffic.stop()
        wait_until(lambda: committed(config) == traffic.delivered, 2 * SOON, "all is committed")
        owners.end(signal.SIGINT)
        totals, letters, positions = counted(config)
    finally:
        traffic.stop()
        with contextlib.suppress(AssertionError):
            owners.end()
        broker.delete_topic(TOPIC)
    sys.stdout.write(f"chaos: {dict(done)} in {time.monotonic() - began:.0f} s, {sum(totals.values())} events\n")
    assert traffic.failed == []
    assert totals == traffic.totals
    assert letters == traffic.broken
    assert positions == traffic.delivered == sum(totals.values()) + letters
