"""A real Apache Kafka in one process on loopback (KRaft: broker and controller in one), made of its published jars.

The jars are fetched once with Maven into a cache folder; a broker's data lie in the folder that it is started in::

    with Broker.start(tmp_path) as broker:
        broker.create_topic("events", partitions=3)
        producer = confluent_kafka.Producer({"bootstrap.servers": broker.address})
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from kmon import environment
from kmon.errors import KmonError
from kmon.testing.ports import free_ports

VERSION = "4.1.2"
"""Of Apache Kafka; it needs Java 17."""
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>kmon</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.3</version>
    </dependency>
  </dependencies>
</project>
"""
_CLUSTER = "Kmon0000000000000000Aw"
_SETTINGS: dict[str, object] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 1,
    "group.initial.rebalance.delay.ms": 0,
    "broker.heartbeat.interval.ms": 200,
    "broker.session.timeout.ms": 3000,  # a killed one registers again when its former self has timed out
    "log.cleaner.dedupe.buffer.size": 4 << 20,  # the default is a quarter of our heap
    "message.max.bytes": 16 << 20,
    "num.network.threads": 2,
    "num.io.threads": 2,
}


class BrokerUnavailableError(KmonError):
    """No broker can run here; the text says what to install."""


class Broker:
    """One running broker. Its data and its address outlive `stop` and `kill`, until `start_again`."""

    def __init__(self, folder: Path, jars: Path, *, heap: str, users: Mapping[str, str]) -> None:
        self.folder = folder
        self._jars, self._heap, self._users = jars, heap, dict(users)
        port, controller, sasl = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        """For ``bootstrap.servers``."""
        self.sasl_address = f"127.0.0.1:{sasl}"
        """The same broker for those of its `users` who tell their password (SASL_PLAINTEXT, PLAIN)."""
        self._controller = f"127.0.0.1:{controller}"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        folder: str | Path,
        *,
        cache: str | Path | None = None,
        heap: str = "512m",
        users: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> Iterator[Broker]:
        """A new broker with its data in `folder`, until the end of the block.

        `settings` are broker properties; `cache` is where the jars lie. BrokerUnavailableError says what to install.
        """
        jars = fetch(cache)
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        broker = cls(folder, jars, heap=heap, users=users or {})
        broker._format(settings or {})
        try:
            broker.start_again()
            yield broker
        finally:
            broker.kill()

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start_again(self, patience: float = 60.0) -> None:
        """Start it on the data and the address that it had, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "-Dorg.apache.logging.log4j.level=WARN", "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # a Ctrl-C in the terminal is for the one who started us
            )
        deadline = time.monotonic() + patience
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                message = f"the Kafka broker did not start: {_last_line(self._log)}; see {self._log}"
                raise BrokerUnavailableError(message)
            time.sleep(0.05)

    def stop(self, patience: float = 30.0) -> None:
        """Shut down in good order."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT after `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    # ---- topics ----------------------------------------------------------------------------------------------------

    @property
    def admin(self) -> AdminClient:
        """A client of its own for what the verbs below do not do."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def create_topic(self, name: str, partitions: int = 1, settings: Mapping[str, object] | None = None) -> None:
        """Make a topic; `settings` are topic properties. Returns when producers can find it."""
        config = {key: str(value) for key, value in (settings or {}).items()}
        admin = self.admin
        admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(30)
        _wait_until(lambda: len(admin.list_topics(name, timeout=5).topics[name].partitions) == partitions)

    def add_partitions(self, name: str, total: int) -> None:
        """Let a topic have `total` partitions."""
        admin = self.admin
        admin.create_partitions([NewPartitions(name, total)])[name].result(30)
        _wait_until(lambda: len(admin.list_topics(name, timeout=5).topics[name].partitions) == total)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with all its messages."""
        admin = self.admin
        admin.delete_topics([name])[name].result(30)
        _wait_until(lambda: name not in admin.list_topics(timeout=5).topics)

    # ---- how it is run ---------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self.folder / "broker.log"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _java(self) -> list[str]:
        return ["java", "-XX:+UseSerialGC", f"-Xmx{self._heap}", "-cp", f"{self._jars}/*"]

    def _format(self, settings: Mapping[str, object]) -> None:
        users = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        listeners = f"PLAINTEXT://{self.address},SASL://{self.sasl_address}"
        properties = {
            **_SETTINGS,
            "listeners": f"{listeners},CONTROLLER://{self._controller}",
            "advertised.listeners": listeners,
            "controller.quorum.voters": f"1@{self._controller}",
            "log.dirs": self.folder / "data",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            ),
            **settings,
        }
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
        command = [*self._java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._properties)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().split("\n")[0]
            message = f"the Kafka broker's folder cannot be formatted: {said}"
            raise BrokerUnavailableError(message)

    def _answers(self) -> bool:
        try:
            # a client of its own each time: one that was refused waits longer and longer before it tries again
            return bool(self.admin.list_topics(timeout=2).brokers) if _listens(self.address) else False
        except KafkaException:
            return False


def fetch(cache: str | Path | None = None) -> Path:
    """The folder with Kafka's jars, fetched with Maven where it is not there yet."""
    if shutil.which("java") is None:
        message = "no Java to run Kafka with: install Java 17 or later (Debian: apt install default-jre-headless)"
        raise BrokerUnavailableError(message)
    root = Path(cache or environment.kafka_cache() or _default_cache()).absolute()
    jars = root / VERSION
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        message = "no Maven to fetch Kafka with: install it (Debian: apt install maven)"
        raise BrokerUnavailableError(message)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several that start at once, one fetches
        if not jars.is_dir():
            _download(maven, root, jars)
    return jars


def _download(maven: str, root: Path, jars: Path) -> None:
    partial = root / f".{VERSION}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    pom = root / "pom.xml"
    pom.write_text(_POM, encoding="utf-8")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={partial}"]
    command = [maven, "-B", "-q", "-f", str(pom), *goal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not list(partial.glob("kafka_*.jar")):
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
        said = errors[0] if errors else f"mvn ended with {done.returncode}"
        message = f"Maven cannot fetch Kafka {VERSION}: {said}: see whether it reaches its repository (mvn -f {pom})"
        raise BrokerUnavailableError(message)
    partial.rename(jars)


def _default_cache() -> Path:
    """In a checkout its own cache folder, in an installation the user's."""
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.home()) / ".cache" / "kafka"


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


def _wait_until(condition: Callable[[], bool], patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            message = "the Kafka broker did not do in time what it was asked for"
            raise BrokerUnavailableError(message)
        time.sleep(0.02)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no log")
