"""The clients of a Kafka in memory, with the methods of confluent-kafka's that rustfs-workers calls.

Each is for one thread, as theirs are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.headers import RawHeaders
from schemas.topics import Partition
from workers.testing.memory_log import CommittedOffset, StoredRecord

if TYPE_CHECKING:
    from workers.testing.memory_kafka import MemoryKafka

_CREATE_TIME = 1


class MemoryMessage:
    """A record, with confluent-kafka's way to ask for its parts."""

    __slots__ = ("_record",)

    def __init__(self, record: StoredRecord) -> None:
        self._record = record

    def topic(self) -> str:
        """Its topic."""
        return self._record.topic

    def partition(self) -> int:
        """Its partition."""
        return self._record.partition

    def offset(self) -> int:
        """Its offset."""
        return self._record.offset

    def key(self) -> bytes | None:
        """Its key."""
        return self._record.key

    def value(self) -> bytes | None:
        """Its value."""
        return self._record.value

    def headers(self) -> RawHeaders | None:
        """Its headers."""
        return self._record.headers

    def timestamp(self) -> tuple[int, int]:
        """Kind and milliseconds since the epoch."""
        return _CREATE_TIME, self._record.timestamp_ms

    def error(self) -> KafkaError | None:
        """Always None: this broker has nothing to say between records."""
        return None


class GroupMetadata(NamedTuple):
    """Who commits, as of which epoch."""

    group: str
    member_id: str
    epoch: int


class MemoryProducer:
    """Without a transactional id each record is there at once."""

    def __init__(self, kafka: MemoryKafka, transactional_id: str | None, timeout_ms: int) -> None:
        self.kafka = kafka
        self.transactional_id = transactional_id
        self.producer_id, self.epoch = -1, -1
        self._timeout_ms = timeout_ms
        self._in_transaction = False
        #: What went wrong with a record: the commit says so, as librdkafka's does.
        self._failure: KafkaException | None = None
        #: What has ended this producer, until ``poll`` has raised it too, as librdkafka's does.
        self._fatal: KafkaException | None = None
        self._ended = False
        self._reports: deque[Callable[[], None]] = deque()

    def init_transactions(self, timeout: float = -1) -> None:
        """Take the transactional id. What its last producer left open is aborted."""
        self.kafka.on_step("init", self)
        self.producer_id, self.epoch = self.kafka.init_producer(self._id())

    def begin_transaction(self) -> None:
        """Raises KafkaException if one has begun, or before ``init_transactions``."""
        self.kafka.on_step("begin", self)
        if self.epoch < 0 or self._in_transaction:
            raise KafkaException(
                KafkaError(KafkaError._STATE, "a transaction has begun, or init_transactions() is missing")
            )
        self._in_transaction, self._failure = True, None

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        on_delivery: Callable[[KafkaError | None, MemoryMessage | None], None] | None = None,
        headers: RawHeaders | None = None,
    ) -> None:
        """Write a record. In a transaction a failure shows when it is committed."""
        self.kafka.on_step("produce", self)
        if self.transactional_id is None:
            record = self.kafka.append(topic, partition, key, value, headers)
            if on_delivery is not None:
                self._reports.append(lambda: on_delivery(None, MemoryMessage(record)))
            return
        if not self._in_transaction:
            raise KafkaException(KafkaError(KafkaError._STATE, "no transaction has begun"))
        try:
            transaction = self.kafka.open_transaction(
                self._id(), self.producer_id, self.epoch, self._timeout_ms
            )
            self.kafka.append(topic, partition, key, value, headers, transaction)
        except KafkaException as error:
            self._failure = self._failure or error
            self._remember(error)

    def poll(self, timeout: float = 0) -> int:
        """Serve delivery reports; how many. Raises KafkaException once, if an error has ended this producer."""
        fatal, self._fatal = self._fatal, None
        if fatal is not None:
            raise fatal
        served = len(self._reports)
        while self._reports:
            self._reports.popleft()()
        return served

    def flush(self, timeout: float = -1) -> int:
        """Nothing is ever left."""
        self.poll()
        return 0

    def purge(self, *, in_queue: bool = True, in_flight: bool = True, blocking: bool = True) -> None:
        """Nothing is ever under way."""

    def __len__(self) -> int:
        return len(self._reports)

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], group_metadata: GroupMetadata, timeout: float = -1
    ) -> None:
        """Raises KafkaException if this producer is fenced, or the member is not what its metadata says any more."""
        self.kafka.on_step("offsets", self)
        with self.kafka.lock, self._remembering():
            transaction = self.kafka.open_transaction(
                self._id(), self.producer_id, self.epoch, self._timeout_ms
            )
            self.kafka.group(group_metadata.group).check_member(
                group_metadata.member_id, group_metadata.epoch, [(tp.topic, tp.partition) for tp in offsets]
            )
            self.kafka.add_offsets(
                transaction,
                group_metadata.group,
                {(tp.topic, tp.partition): CommittedOffset(tp.offset, tp.metadata or "") for tp in offsets},
            )

    def commit_transaction(self, timeout: float = -1) -> None:
        """Raises KafkaException if this producer is fenced, or one of the records could not be written."""
        self.kafka.on_step("commit", self)
        if self._failure is not None:
            error = self._failure.args[0]
            raise KafkaException(
                KafkaError(
                    error.code(), error.str(), fatal=error.fatal(), txn_requires_abort=not error.fatal()
                )
            )
        self._end(commit=True)
        self.kafka.on_step("committed", self)

    def abort_transaction(self, timeout: float = -1) -> None:
        """Raises KafkaException if this producer is fenced."""
        self.kafka.on_step("abort", self)
        self._end(commit=False)
        self.kafka.on_step("aborted", self)

    def _end(self, *, commit: bool) -> None:
        if not self._in_transaction:
            raise KafkaException(KafkaError(KafkaError._STATE, "no transaction has begun"))
        with self._remembering():
            self.kafka.end_transaction(self._id(), self.producer_id, self.epoch, commit=commit)
        self._in_transaction = False

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            self._remember(error)
            raise

    def _remember(self, error: KafkaException) -> None:
        if error.args[0].fatal() and not self._ended:
            self._fatal, self._ended = error, True

    def _id(self) -> str:
        if self.transactional_id is None:
            raise KafkaException(KafkaError(KafkaError._NOT_CONFIGURED, "there is no transactional id"))
        return self.transactional_id


Callback = Callable[["MemoryConsumer", list[TopicPartition]], None]


class MemoryConsumer:
    """A member of a group from its first ``poll`` on. Its heartbeat is its ``poll``: callbacks are called there."""

    def __init__(self, kafka: MemoryKafka, group: str, member_id: str) -> None:
        self.kafka = kafka
        self._group = kafka.group(group)
        self._id = member_id
        self._topics: tuple[str, ...] = ()
        self._callbacks: dict[str, Callback | None] = {}
        self._joined = False
        #: As this client knows it; the coordinator may have raised it, or forgotten this member.
        self._epoch = 0
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._owned: set[Partition] = set()
        self._next = 0

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        """What to read; the group is joined with the next ``poll``."""
        self._topics = tuple(topics)
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}

    def unsubscribe(self) -> None:
        """Leave the group in order."""
        if self._joined:
            self._let_go("revoke", set(self._owned))
            with self.kafka.lock:
                self._group.leave(self._id, self.kafka.partition_counts)
            self._joined = False
        self._topics = ()

    def close(self) -> None:
        """The same, for good."""
        self.unsubscribe()

    def poll(self, timeout: float = 0) -> MemoryMessage | None:
        """The next record, after whatever the group has to say. Waits for one for ``timeout`` seconds at the most."""
        self.kafka.on_step("poll", self)
        self._heartbeat()
        message = self._read()
        if message is None and timeout > 0 and self.kafka.polls_wait:
            with self.kafka.news:
                self.kafka.news.wait(timeout)
            message = self._read()
        return message

    def consume(self, num_messages: int = 1, timeout: float = 0) -> list[MemoryMessage]:
        """So many records, or as many as there are."""
        messages: list[MemoryMessage] = []
        while len(messages) < num_messages and (message := self._read()) is not None:
            messages.append(message)
        return messages

    def memberid(self) -> str:
        """Its name in the group."""
        return self._id

    def consumer_group_metadata(self) -> GroupMetadata:
        """For the producer that commits this consumer's offsets."""
        return GroupMetadata(self._group.name, self._id, self._epoch)

    def assignment(self) -> list[TopicPartition]:
        """What it reads now."""
        return [TopicPartition(*place) for place in sorted(self._positions)]

    def incremental_assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these as well, from their offsets on."""
        for tp in partitions:
            self._positions[tp.topic, tp.partition] = max(tp.offset, 0)

    def incremental_unassign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these no longer."""
        for tp in partitions:
            self._positions.pop((tp.topic, tp.partition), None)
            self._paused.discard((tp.topic, tp.partition))

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Return nothing of these for now."""
        self._paused |= {(tp.topic, tp.partition) for tp in partitions}

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Return records of these again."""
        self._paused -= {(tp.topic, tp.partition) for tp in partitions}

    def position(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Where it will read next: behind markers, too."""
        return [
            TopicPartition(tp.topic, tp.partition, self._positions.get((tp.topic, tp.partition), -1001))
            for tp in partitions
        ]

    def _heartbeat(self) -> None:
        if not self._topics:
            return
        with self.kafka.lock:
            member = self._group.members.get(self._id) if self._joined else None
        if member is None:
            if self._joined:
                self._joined = False
                self._let_go("lost", set(self._owned))
            with self.kafka.lock:
                member = self._group.join(self._id, self._topics, self.kafka.partition_counts)
            self._joined = True
        elif member.fenced:
            self._let_go("lost", set(self._owned))
            with self.kafka.lock:
                if self._group.members.get(self._id) is not member:
                    return
                kept = self._group.come_back(member)
                self._epoch = member.epoch
            self._owned |= kept
            self._call("assign", kept)
            return
        with self.kafka.lock:
            if self._owned - member.owned.keys() and self._epoch != member.epoch:
                # The answer raises the epoch at once; what it takes away is said in the next call.
                self._epoch = member.epoch
                return
            revoked = self._group.to_revoke(member, self._owned)
        if revoked:
            self._let_go("revoke", revoked)
        with self.kafka.lock:
            # The callback took its time: the group may have given this member up meanwhile.
            if self._group.members.get(self._id) is not member:
                return
            self._group.give_up(member, revoked)
            if revoked and self._group.to_revoke(member, self._owned):
                return  # it is asked for more before anything else, and keeps its epoch
            taken = self._group.take(member)
            self._epoch = member.epoch
        taken -= self._owned
        if taken:
            self._owned |= taken
            self._call("assign", taken)

    def _let_go(self, how: str, places: set[Partition]) -> None:
        self._call(how, places)
        self._owned -= places
        self.incremental_unassign([TopicPartition(*place) for place in places])

    def _call(self, name: str, places: set[Partition]) -> None:
        callback = self._callbacks.get(name) or (self._callbacks.get("revoke") if name == "lost" else None)
        tps = [TopicPartition(*place) for place in sorted(places)]
        if callback is not None:
            callback(self, tps)
        elif name == "assign":
            committed = self.kafka.committed(self._group.name, places)
            self.incremental_assign(
                TopicPartition(*place, committed[place].offset if place in committed else 0)
                for place in sorted(places)
            )

    def _read(self) -> MemoryMessage | None:
        """One record, of each partition in turn."""
        with self.kafka.lock:
            positions, paused, log = self._positions, self._paused, self.kafka.log
            places = list(positions)
            begin = self._next % len(places) if places else 0
            for step, place in enumerate(places[begin:] + places[:begin], begin + 1):
                if place in paused:
                    continue
                record, positions[place] = log(place).read(positions[place])
                if record is not None:
                    self._next = step % len(places)
                    return MemoryMessage(record)
        return None
