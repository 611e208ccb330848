"""The thread that reads: which partitions, from where, and what Kafka has of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np
import structlog
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from kmon.config import KafkaSource
from kmon.errors import SourceError
from kmon.sources import Move, Positions
from kmon.sources.kafka.client import Client, Topic
from kmon.sources.kafka.messages import Chunk, Handover, Jump, Partition, chunk

log = structlog.get_logger("kmon.kafka")
IDENTITY = -1
"""The partition under which the offsets keep which topic of a name they are of."""
_LOOK = 3.0
"""Seconds between two looks at which topics and partitions there are."""
_COMMIT = 5.0
"""Seconds between two commits to the consumer group."""
_AT_ONCE = 500
"""Messages that one call takes from librdkafka at most: so few are still in the processor's cache when they are put
together, which takes half the time then (docs/benchmarks.md)."""
_ENDS = 0.1
"""Seconds between two looks at where partitions end, while there is a backlog."""
_UNKNOWN = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    100,  # UNKNOWN_TOPIC_ID, which the client does not name
)


class Reader:
    """Reads all partitions of the source's topics into a `Handover`.

    Partitions are numbered as they are met, and keep their number (their lane). All but `unread`, `committed` and
    `stop` is for the reading thread alone.
    """

    def __init__(self, client: Client, source: KafkaSource, positions: Positions, handover: Handover) -> None:
        self.partitions: list[Partition] = []
        """By lane."""
        self._lanes: dict[Partition, int] = {}
        self._client, self._source, self._handover = client, source, handover
        self._stored = positions
        self._reached: dict[int, int] = {}  # by lane: where reading goes on; not there: at the beginning
        self._high: dict[int, int] = {}  # by lane: the end of the partition as far as known
        self._assigned: dict[int, TopicPartition] = {}  # by lane
        self._at_end: set[Partition] = set()  # partitions still to be placed at their end: `start: latest`
        self._leaderless: set[int] = set()
        self.looked = False
        """Whether Kafka has said what it has; from then on all that is there has a lane."""
        self._due = self._ends_due = 0.0
        self._average = 16_384.0  # bytes of a message
        self._part = source.batch_bytes / 4  # bytes to be handed over at once
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._to_commit: dict[Partition, int] = {}
        self._commit_due = time.monotonic() + _COMMIT

    # ---- for the pipeline ------------------------------------------------------------------------------------------

    def unread(self, lane: int, position: int) -> int:
        """How many messages of a partition follow `position`, as far as known; at least 1 where nobody can tell."""
        if lane not in self._assigned:
            return 0
        high = self._high.get(lane, -1)
        least = high < 0 or lane in self._leaderless or self._client.away_since is not None
        return max(high - position, int(least))

    def committed(self, moves: Iterable[Move]) -> None:
        """The store has these moves."""
        with self._lock:
            self._to_commit.update({(m.source, m.partition): m.next for m in moves if m.partition != IDENTITY})

    def stop(self) -> None:
        self._stopping.set()

    # ---- the thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read until `stop`; what it fails with is handed over."""
        try:
            while not self._stopping.is_set():
                if self._client.doubtful or time.monotonic() >= self._due:
                    self._look()
                asked = self._count()
                messages = self._gather(asked)
                if len(messages) < asked or time.monotonic() >= self._ends_due:
                    self._see_ends()
                self._take(messages)
                self._client.check()
                self._commit_group()
            self._commit_group(now=True)
        except KafkaException as error:
            self._handover.fail(SourceError(self._client.sentence(error)))
        except BaseException as error:
            self._handover.fail(error)
        finally:
            self._client.close()

    def _count(self) -> int:
        """How many messages to ask for, so that they are a part of a batch."""
        few = int(self._part / self._average)
        return max(1, min(few, _AT_ONCE, self._source.batch_records))

    def _gather(self, asked: int) -> list[Message]:
        """So many messages, or what came while it lingered.

        What librdkafka holds is bounded in bytes, but not what comes while a call of it waits for many messages: so it
        waits for one only, and what came with that one is taken without waiting.
        """
        consumer, deadline = self._client.consumer, time.monotonic() + self._source.linger.total_seconds()
        messages = consumer.consume(asked, 0)
        while len(messages) < asked and sum(map(len, messages)) < self._part:
            if (left := deadline - time.monotonic()) <= 0:
                break
            messages += consumer.consume(1, left)
            messages += consumer.consume(asked - len(messages), 0)
        return messages

    def _take(self, messages: Sequence[Message]) -> None:
        """Hand over what came, and see to what is wrong."""
        ends: dict[int, int] = {}
        lost: list[int] = []
        if any(map(Message.error, messages)):
            for message in messages:
                if (error := message.error()) is not None:
                    self._trouble(error, message, ends, lost)
            messages = [message for message in messages if message.error() is None]
        if messages or any(end > self._reached.get(lane, 0) for lane, end in ends.items()):
            self._hand_over(chunk(messages, self._lanes, ends))
        if lost:
            self._look()  # whether it is still the same topic
            for lane in lost:
                self._resume(lane)

    def _see_ends(self) -> None:
        self._ends_due = time.monotonic() + _ENDS
        for lane, partition in self._assigned.items():
            self._high[lane] = self._client.consumer.get_watermark_offsets(partition, cached=True)[1]

    def _hand_over(self, read: Chunk) -> None:
        after = np.full(len(self.partitions), -1, dtype=np.int64)
        after[read.lanes] = read.positions + 1
        self._reached |= {int(lane): int(after[lane]) for lane in np.flatnonzero(after >= 0)}
        for lane, end in read.ends.items():
            self._reached[lane] = max(end, self._reached.get(lane, 0))
        if len(read):
            average = len(read.data) / len(read)
            self._average = max(average, 0.8 * self._average + 0.2 * average, 1.0)
        self._handover.put(read)

    def _trouble(self, error: KafkaError, message: Message, ends: dict[int, int], lost: list[int]) -> None:
        topic, partition = str(message.topic()), message.partition()
        lane = self._lanes.get((topic, -2 if partition is None else partition))
        code = error.code()
        if code == KafkaError._PARTITION_EOF and lane is not None:
            ends[lane] = int(message.offset() or 0)
        elif code == KafkaError._AUTO_OFFSET_RESET and lane is not None:
            lost.append(lane)
        elif code in _UNKNOWN:
            self._due = min(self._due, time.monotonic() + 0.2)
        else:
            self._client.failed(error, topic)

    def _commit_group(self, *, now: bool = False) -> None:
        """Tell the consumer group, so that Kafka's tools show the lag."""
        if not now and time.monotonic() < self._commit_due:
            return
        self._commit_due = time.monotonic() + _COMMIT
        with self._lock:
            moved, self._to_commit = self._to_commit, {}
        if moved and self._client.away_since is None:
            self._client.commit([TopicPartition(*partition, position) for partition, position in moved.items()])

    # ---- which partitions, and from where ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Read what is there to be read."""
        self._client.doubtful = False
        found = self._client.wanted(2.0)
        self._due = time.monotonic() + (_LOOK if found is not None else 1.0)
        if found is None:
            return
        following = {self.partitions[lane][0] for lane in self._assigned}
        identities = self._client.identities(list(found), 0.5 if following >= found.keys() else 5.0)
        for name in {topic for topic in self._source.topics if not topic.startswith("^")} | {t for t, _ in self._lanes}:
            if name not in found:
                self._missing(name)
        for name, topic in found.items():
            self._found(name, topic, identities.get(name), following)
        self.looked = True

    def _missing(self, topic: str) -> None:
        lanes = [lane for lane in self._assigned if self.partitions[lane][0] == topic]
        if lanes:
            self._leave(lanes)
            self._client.once(("missing", topic), "kafka topic was deleted; the others go on", topic=topic)
        else:
            self._client.once(("missing", topic), "kafka has no such topic; waiting for it", topic=topic)

    def _found(self, name: str, topic: Topic, identity: int | None, following: set[str]) -> None:
        self._client.forget(("missing", name))
        known = self._meet(name)
        at = self._lane((name, IDENTITY))
        if identity is None and at in self._reached and name not in following:
            return  # it could be another topic than the one whose positions we have: asked again with the next look
        if identity is not None and identity != self._reached.get(at):
            if at in self._reached:
                self._recreated(name)
            self._reached[at] = identity
            self._handover.put(Jump({at: identity}))
        if not known and not self.looked and self._source.start == "latest":
            self._at_end |= {(name, number) for number in topic.partitions}
        self._follow_leaders(name, topic)
        lanes = {self._lane((name, number)) for number in sorted(topic.partitions)} - self._assigned.keys()
        self._assign(sorted(lanes))

    def _meet(self, name: str) -> bool:
        """Whether the store knows anything of a topic; of the first time on its positions have lanes."""
        known = [key for key in self._stored if key[0] == name]
        for key in known:
            if key not in self._lanes:
                self._reached[self._lane(key)] = self._stored[key]
        return bool(known)

    def _recreated(self, name: str) -> None:
        lanes = [lane for (topic, number), lane in self._lanes.items() if topic == name and number != IDENTITY]
        self._leave([lane for lane in lanes if lane in self._assigned])
        log.warning("kafka topic was re-created; reading the new one from its beginning", topic=name)
        for lane in lanes:
            self._reached.pop(lane, None)
            self._high.pop(lane, None)
        self._handover.put(Jump(dict.fromkeys(lanes, 0)))

    def _follow_leaders(self, name: str, topic: Topic) -> None:
        lanes = {self._lane((name, number)) for number in topic.leaderless}
        mine = {lane for (other, _), lane in self._lanes.items() if other == name}
        if lanes:
            told = "kafka partitions have no leader; waiting for them"
            self._client.once(("leader", name), told, topic=name, partitions=sorted(topic.leaderless))
        else:
            self._client.forget(("leader", name))
        self._leaderless = (self._leaderless - mine) | lanes

    def _lane(self, partition: Partition) -> int:
        if partition not in self._lanes:
            self._lanes[partition] = len(self.partitions)
            self.partitions.append(partition)
        return self._lanes[partition]

    def _assign(self, lanes: Iterable[int]) -> None:
        """Begin with partitions, each where it was left."""
        added = {}
        for lane in lanes:
            key = self.partitions[lane]
            if key in self._at_end:
                if (bounds := self._client.bounds(TopicPartition(*key))) is None:
                    continue  # asked again with the next look
                self._at_end.discard(key)
                self._reached[lane] = bounds[1]
                self._handover.put(Jump({lane: bounds[1]}))
            added[lane] = TopicPartition(*key, self._reached.get(lane, OFFSET_BEGINNING))
        if added:
            self._client.consumer.incremental_assign(list(added.values()))
            self._assigned |= added

    def _leave(self, lanes: Sequence[int]) -> None:
        if lanes:
            self._client.consumer.incremental_unassign([self._assigned.pop(lane) for lane in lanes])
            self._leaderless -= set(lanes)

    def _resume(self, lane: int) -> None:
        """Go on with a partition that does not have the offset we are at."""
        if lane not in self._assigned:  # the topic is gone
            return
        bounds = self._client.bounds(self._assigned[lane])
        self._leave([lane])
        if bounds is None:
            return  # the next look begins with it where it was left, and we come by here again
        (low, high), position = bounds, self._reached.get(lane)
        topic, partition = self.partitions[lane]
        where = {"topic": topic, "partition": partition, "offset": position}
        if position is not None and not low <= position <= high:
            if position < low:
                log.warning("kafka no longer has messages that were not read", **where, lost=low - position, next=low)
            else:
                log.warning("kafka partition ends before what was read; it was truncated", **where, next=high)
            self._reached[lane] = min(max(position, low), high)
            self._handover.put(Jump({lane: self._reached[lane]}))
        self._assign([lane])
