"""A commit thread on a broker that does what a test says: every step that it asks for is written down."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.codec import Codec
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap, parse
from schemas.records import StatusChange, decode_status
from schemas.topics import JobPriority, Partition
from streams.visible import Written
from tests.support import statuses
from tests.support.messages import TOPICS, committed, message, partition
from workers.committing.commit import Committer
from workers.committing.holdings import Holdings
from workers.committing.router import Router
from workers.liveness.lease import Lease
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome, PlainSuccess

CODEC = Codec()


def kafka_error(
    code: int, *, fatal: bool = False, retriable: bool = False, abort: bool = False
) -> KafkaException:
    return KafkaException(
        KafkaError(code, "made up", fatal=fatal, retriable=retriable, txn_requires_abort=abort)
    )


class Sent(NamedTuple):
    """A record as the producer got it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Any


@dataclass
class Transaction:
    records: list[Sent] = field(default_factory=list)
    offsets: dict[tuple[str, int], OffsetMap] = field(default_factory=dict)
    #: The last ones sent, and all of them with their partitions.
    metadata: Any = None
    fences: dict[Any, set[int]] = field(default_factory=dict)


class FakeKafka:
    """A broker, its producers and the group: what is committed, every step that was asked for, and faults to come."""

    def __init__(self) -> None:
        self.committed: list[Transaction] = []
        self.stored: dict[tuple[str, int], OffsetMap] = {}
        self.steps: list[str] = []
        #: By step: what it does instead of succeeding, once each. An exception that is returned is raised.
        self.faults: dict[str, list[Callable[[FakeProducer], Exception | None]]] = {}
        self.refuse: Callable[[Transaction], Exception | None] = lambda _: None
        #: Newer metadata, one after another, when those of a partition are refused.
        self.offered: list[Any] = []
        #: What reading back raises, one after another.
        self.unreadable: list[Exception] = []
        #: The same of looking for records; and since when that was done.
        self.hidden: list[Exception] = []
        self.looked_since: list[int] = []
        self.generation = 1
        self.producers = 0
        #: The threads in which producers came to their ends.
        self.ended_in: list[str] = []
        self.logger: logging.Logger | None = None
        #: Of the producers' log; served by ``poll``.
        self.lines: list[str] = []

    # the group

    @property
    def metadata(self) -> Any:
        self.steps.append("metadata")
        return self.generation

    def refused(self, timeout_s: float) -> Any:
        self.steps.append("refused")
        return self.offered.pop(0) if self.offered else None

    def rejoin(self) -> None:
        self.steps.append("rejoin")

    def read_back(self, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        self.steps.append("read back")
        if self.unreadable:
            raise self.unreadable.pop(0)
        return {place: self.stored.get(place, committed()) for place in places}

    def read_visible(self, records: Collection[Written], since_ms: int) -> set[Written]:
        self.steps.append("look")
        self.looked_since.append(since_ms)
        if self.hidden:
            raise self.hidden.pop(0)
        return {Written.of(*sent) for one in self.committed for sent in one.records}.intersection(records)

    # the broker

    def producer(self, logger: logging.Logger) -> Any:
        self.producers += 1
        self.logger = logger
        return FakeProducer(self)

    def fault(self, step: str, what: Callable[[FakeProducer], Exception | None] | Exception) -> None:
        self.faults.setdefault(step, []).append(what if callable(what) else lambda _: what)

    def lose_connection(self, line: str = "FAIL [thrd:main]: Disconnected (after 3 ms)") -> None:
        """What librdkafka says of it."""
        self.lines.append(line)

    def land(self, transaction: Transaction) -> None:
        self.committed.append(transaction)
        self.stored |= transaction.offsets

    @property
    def statuses(self) -> list[StatusChange]:
        return [
            decode_status(CODEC, sent.value)
            for transaction in self.committed
            for sent in transaction.records
            if sent.topic == TOPICS.status and sent.value is not None
        ]


class FakeProducer:
    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka
        self.open = Transaction()

    def __del__(self) -> None:
        self.kafka.ended_in.append(threading.current_thread().name)

    def _step(self, name: str) -> None:
        self.kafka.steps.append(name)
        self._fail(name)

    def _fail(self, name: str) -> None:
        faults = self.kafka.faults.get(name)
        if faults and (error := faults.pop(0)(self)) is not None:
            raise error

    def init_transactions(self, timeout_s: float) -> None:
        self._step("init")

    def begin_transaction(self) -> None:
        self.open = Transaction()
        self._step("begin")

    def produce(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int = -1, headers: Any = None
    ) -> None:
        self._step("produce")
        self.open.records.append(Sent(topic, partition, key, value, headers))

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], metadata: Any, timeout_s: float
    ) -> None:
        self.open.metadata = metadata
        self.open.fences[metadata] = {tp.partition for tp in offsets}
        self.open.offsets |= {(tp.topic, tp.partition): parse(tp.offset, tp.metadata) for tp in offsets}
        self._step("offsets")

    def commit_transaction(self, timeout_s: float) -> None:
        self._step("commit")
        if (error := self.kafka.refuse(self.open)) is not None:
            raise error
        self.kafka.land(self.open)

    def abort_transaction(self, timeout_s: float) -> None:
        self._step("abort")

    def purge(self, *, in_flight: bool) -> None:
        """Nothing is ever under way."""

    def __len__(self) -> int:
        return 0

    def poll(self, timeout_s: float) -> int:
        self._fail("poll")
        while self.kafka.lines:
            assert self.kafka.logger is not None
            self.kafka.logger.log(logging.INFO, self.kafka.lines.pop(0))
        return 0


class Bench:
    """A commit thread without its thread: each tick is called for."""

    def __init__(self, *, records: int = 10) -> None:
        self.kafka = FakeKafka()
        self.committed = threading.Event()
        #: What waits in the scheduler, in its order.
        self.waiting: list[Message] = []
        #: By a clock that stands still, unless a test moves it.
        self.now_s = 0.0
        #: By the one that stamps records.
        self.stamped_ms = 1_000
        self.lease = Lease(5.0, lambda: self.now_s)
        self.holdings = Holdings(threading.Lock())
        self.committer = Committer(
            make_producer=self.kafka.producer,
            membership=self.kafka,
            read_back=self.kafka.read_back,
            read_visible=self.kafka.read_visible,
            codec=CODEC,
            router=Router(TOPICS),
            worker_name="w.0",
            holdings=self.holdings,
            tick_ms=1,
            on_committed=self.committed.set,
            on_failure=self._fail,
            end_forgotten=lambda: self.kafka.steps.append("end forgotten"),
            on_fenced=lambda: self.kafka.steps.append("fenced"),
            upcoming=self._upcoming,
            lease=self.lease,
            now_ms=lambda: self.stamped_ms,
        )
        self.committer._transactions.renew()
        self.part = self.assign(records)
        self.kafka.steps.clear()
        self.kafka.committed.clear()

    def _fail(self, error: BaseException) -> None:
        raise error

    def _upcoming(self, count: int) -> list[Message]:
        return self.waiting[:count]

    def assign(self, records: int, number: int = 0) -> PartitionState:
        part = partition(number=number)
        part.metadata = self.kafka.generation
        for offset in range(records):
            part.note_delivered(offset)
        self.holdings.parts.add(part)
        self.tick()
        return part

    def tick(self) -> bool:
        return self.committer._tick()

    def success(self, offset: int, part: PartitionState | None = None) -> Outcome:
        """A job that has ended well."""
        outcome = succeeded(message(part or self.part, offset))
        self.committer.emit(outcome)
        return outcome

    def emit(self, outcome: Outcome) -> Outcome:
        self.committer.emit(outcome)
        return outcome

    @property
    def stored(self) -> OffsetMap:
        return self.kafka.stored[self.part.topic, self.part.partition]

    @property
    def events(self) -> dict[str, int]:
        return self.committer.counters.events

    @property
    def counted(self) -> int:
        return sum(self.committer.counters.jobs.values())


def succeeded(one: Message) -> Outcome:
    return Outcome(
        one,
        PlainSuccess(None, 2_000, 1_000, 1_500, "test", JobPriority.NORMAL),
        counts_as=("test", JobPriority.NORMAL, "succeeded"),
    )


def told(one: Message, **facts: Any) -> Outcome:
    """An outcome with a status that says more than success."""
    return Outcome(one, status(one, JobStatus.SUCCEEDED, **facts))


def status(one: Message, state: JobStatus, **facts: Any) -> StatusChange:
    """The status of this message's job."""
    return statuses.status(state, job_id=one.job_id.decode(), **facts)
