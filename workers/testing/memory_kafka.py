"""A Kafka in memory, by Kafka's own rules: for tests without a broker.

    kafka = MemoryKafka()
    kafka.create_topic("jobs", partitions=3)
    producer, consumer = kafka.producer("an-id"), kafka.consumer("a-group")

Transactions are all or nothing and fenced by epoch, committed reads stop at open ones, offsets sent with them are fenced
by the member's epoch, and groups rebalance as KIP-848 says. Its clients have the methods of confluent-kafka that
rustfs-workers calls. What it does not have: replicas, quotas, retention, compaction, timestamps by producers.

``tests/contract`` holds the same expectations against it and against a real broker.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Condition, RLock
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException

from schemas.headers import RawHeaders
from schemas.partitions import partition_of
from schemas.topics import Partition
from workers.testing.memory_group import ConsumerGroup
from workers.testing.memory_log import CommittedOffset, PartitionLog, StoredRecord, Transaction

if TYPE_CHECKING:
    from workers.testing.memory_clients import MemoryConsumer, MemoryProducer

#: What a transaction may last if its producer does not say so.
DEFAULT_TRANSACTION_TIMEOUT_MS: Final = 60_000


@dataclass(slots=True)
class _Author:
    """What the coordinator knows of one transactional id."""

    producer_id: int
    epoch: int = 0
    open: Transaction | None = None
    #: Decided, and not all partitions have been told; the coordinator knows nothing of them any more.
    forgotten: list[Transaction] = field(default_factory=list)


class MemoryKafka:
    """The broker. Safe for several threads.

    Args:
        now_ms: its clock, in milliseconds since the epoch.
        on_step: called before each step of a client with its name and the client: ``init``, ``begin``, ``produce``,
            ``offsets``, ``commit``, ``abort``, ``poll``; and ``committed`` or ``aborted`` when that is done and the client
            does not know it yet. What it raises, the client's call raises: so a test makes faults.
        polls_wait: whether a consumer's ``poll`` waits for a record; no, where the test moves the clock itself.
    """

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_step: Callable[[str, object], None] = lambda _step, _client: None,
        polls_wait: bool = True,
    ) -> None:
        self.now_ms = now_ms
        self.polls_wait = polls_wait
        self.on_step = on_step
        self.lock = RLock()
        #: Notified when there may be something new to read.
        self.news = Condition(self.lock)
        self._logs: dict[str, list[PartitionLog]] = {}
        self._groups: dict[str, ConsumerGroup] = {}
        self._authors: dict[str, _Author] = {}
        self._numbers = itertools.count(1)

    # --- topics ---------------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Raises ValueError if it is there."""
        if name in self._logs:
            raise ValueError(f"topic {name} exists")
        self._logs[name] = [PartitionLog(name, number) for number in range(partitions)]

    @property
    def partition_counts(self) -> dict[str, int]:
        """By topic."""
        return {name: len(logs) for name, logs in self._logs.items()}

    def log(self, place: Partition) -> PartitionLog:
        """One partition.

        Raises:
            KafkaException: there is none.
        """
        topic, number = place
        logs = self._logs.get(topic, ())
        if not 0 <= number < len(logs):
            raise KafkaException(
                KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"no partition {topic}/{number}")
            )
        return logs[number]

    def records(self, topic: str) -> Iterator[StoredRecord]:
        """Everything of a topic that a committed read returns now, partition by partition."""
        with self.lock:
            found = [record for log in self._logs[topic] for record in log]
        return iter(found)

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: RawHeaders | None,
        transaction: Transaction | None = None,
    ) -> StoredRecord:
        """Write a record; it comes back with its place. Partition -1: the key decides, by murmur2; without a key it is any.

        Raises:
            KafkaException: there is no such partition.
        """
        with self.lock:
            if partition < 0:
                count = max(len(self._logs.get(topic, [])), 1)
                partition = next(self._numbers) % count if key is None else partition_of(key, count)
            record = self.log((topic, partition)).append(key, value, headers, self.now_ms(), transaction)
            self.news.notify_all()
            return record

    # --- clients --------------------------------------------------------------------------------------------

    def producer(
        self, transactional_id: str | None = None, *, timeout_ms: int = DEFAULT_TRANSACTION_TIMEOUT_MS
    ) -> MemoryProducer:
        """A new one; ``timeout_ms`` is how long its transactions may last."""
        from workers.testing.memory_clients import MemoryProducer

        return MemoryProducer(self, transactional_id, timeout_ms)

    def consumer(self, group: str) -> MemoryConsumer:
        """A new one, which reads what is committed."""
        from workers.testing.memory_clients import MemoryConsumer

        return MemoryConsumer(self, group, f"member-{next(self._numbers)}")

    # --- groups ---------------------------------------------------------------------------------------------

    def group(self, name: str) -> ConsumerGroup:
        """The group; it is made when it is first asked for."""
        return self._groups.setdefault(name, ConsumerGroup(name))

    def commit(self, group: str, offsets: Mapping[Partition, CommittedOffset]) -> None:
        """As an administrator does, with no member in the group and outside of any transaction."""
        with self.lock:
            self.group(group).committed.update(offsets)

    def committed(
        self, group: str, places: Iterable[Partition], *, require_stable: bool = True
    ) -> dict[Partition, CommittedOffset]:
        """What the group has committed of these; those without anything are missing.

        Raises:
            KafkaException: an open transaction may change it, and a stable answer was asked for.
        """
        with self.lock:
            known = self.group(group)
            wanted = list(places)
            if require_stable and any(known.pending.get(place) for place in wanted):
                raise KafkaException(
                    KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT, "a transaction is open", retriable=True)
                )
            return {place: known.committed[place] for place in wanted if place in known.committed}

    def expire_session(self, group: str, member_id: str) -> None:
        """The coordinator has not heard of a member for too long: it is out, and does not know."""
        with self.lock:
            self.group(group).leave(member_id, self.partition_counts)
            self.news.notify_all()

    def fence(self, group: str, member_id: str) -> None:
        """The answer that told a member of its epoch is lost: it joins anew, and loses what it has before it gets it back."""
        with self.lock:
            member = self.group(group).members.get(member_id)
            if member is not None:
                member.fenced = True

    def forget_assignment(self, group: str, member_id: str) -> None:
        """The coordinator was killed before anybody had a copy of what it gave this member last: others may get that now."""
        with self.lock:
            known = self.group(group)
            member = known.members.get(member_id)
            if member is not None:
                known.forget(member, self.partition_counts)
                self.news.notify_all()

    # --- transactions ---------------------------------------------------------------------------------------

    def init_producer(self, transactional_id: str) -> tuple[int, int]:
        """A producer id and its next epoch: what the one before left open is aborted, and whatever it still sends refused."""
        with self.lock:
            author = self._authors.get(transactional_id)
            if author is None:
                author = self._authors[transactional_id] = _Author(next(self._numbers))
                return author.producer_id, author.epoch
            author.epoch += 1
            if author.open is not None:
                self._end(author, commit=False)
            return author.producer_id, author.epoch

    def open_transaction(
        self, transactional_id: str, producer_id: int, epoch: int, timeout_ms: int
    ) -> Transaction:
        """The one that is open under this id; it begins with its first record or offset.

        Raises:
            KafkaException: the epoch is not the newest one.
        """
        with self.lock:
            author = self._author(transactional_id, producer_id, epoch)
            if author.open is None:
                author.open = Transaction(transactional_id, producer_id, epoch, self.now_ms(), timeout_ms)
            return author.open

    def add_offsets(
        self, transaction: Transaction, group: str, offsets: Mapping[Partition, CommittedOffset]
    ) -> None:
        """To be committed with it."""
        with self.lock:
            pending = self.group(group).pending
            transaction.offsets.setdefault(group, {}).update(offsets)
            for place in offsets:
                pending.setdefault(place, set()).add(transaction)

    def end_transaction(self, transactional_id: str, producer_id: int, epoch: int, *, commit: bool) -> None:
        """The request EndTxn. If nothing is open, nothing happens: the end of an empty transaction, or a repeated request.

        Raises:
            KafkaException: the epoch is not the newest one.
        """
        with self.lock:
            author = self._author(transactional_id, producer_id, epoch)
            if author.open is not None:
                self._end(author, commit=commit)

    def expire_transactions(self) -> None:
        """Abort those that have lasted too long, and fence their authors."""
        with self.lock:
            now_ms = self.now_ms()
            for author in self._authors.values():
                if author.open is not None and now_ms - author.open.started_ms >= author.open.timeout_ms:
                    author.epoch += 1
                    self._end(author, commit=False)

    def tear(
        self,
        transactional_id: str,
        producer_id: int,
        epoch: int,
        is_committed: Callable[[Partition | str], bool],
    ) -> None:
        """Commit a part of the open transaction, now: of each partition and each group's offsets ``is_committed`` says.

        So does a broker that was killed while it ended the transaction, and is back before the others have missed it: it
        has the end in its log alone, and takes itself for the coordinator. Its successor aborts the rest.

        Raises:
            KafkaException: the epoch is not the newest one.
        """
        with self.lock:
            whole = self._author(transactional_id, producer_id, epoch).open
            if whole is not None:
                self._mark(self._part_of(whole, is_committed), commit=True)

    def forget(
        self, transactional_id: str, producer_id: int, epoch: int, is_told: Callable[[Partition | str], bool]
    ) -> None:
        """Commit the open transaction, tell these of it, and never tell the others.

        So does a broker that is killed right after the decision, and finds partitions without a leader when it is back
        (KAFKA-20734). The next transaction of the same producer id ends it where it writes as well, in its own way.

        Raises:
            KafkaException: the epoch is not the newest one.
        """
        with self.lock:
            author = self._author(transactional_id, producer_id, epoch)
            whole, author.open = author.open, None
            if whole is not None:
                self._mark(self._part_of(whole, is_told), commit=True)
                if whole.first or whole.offsets:
                    author.forgotten.append(whole)

    def has_forgotten(self, transactional_id: str) -> bool:
        """Whether something of it has been decided, and is open."""
        author = self._authors.get(transactional_id)
        return author is not None and bool(author.forgotten)

    def forgotten(self, transactional_id: str) -> list[StoredRecord]:
        """The records of it that are behind what is open."""
        with self.lock:
            return [
                record
                for transaction in self._authors[transactional_id].forgotten
                for place in transaction.first
                for record in self.log(place).records
                if record.transaction is transaction
            ]

    def end_forgotten(self, transactional_id: str) -> None:
        """As somebody does who has read the coordinator's log: commit it."""
        with self.lock:
            author = self._authors[transactional_id]
            forgotten, author.forgotten = author.forgotten, []
            for transaction in forgotten:
                self._mark(transaction, commit=True)

    def _part_of(self, whole: Transaction, belongs: Callable[[Partition | str], bool]) -> Transaction:
        """Of each partition and each group's offsets ``belongs`` says whether it becomes a transaction of its own."""
        part = Transaction(
            whole.transactional_id, whole.producer_id, whole.epoch, whole.started_ms, whole.timeout_ms
        )
        for place in [place for place in whole.first if belongs(place)]:
            self.log(place).give_up(whole, part)
        for name in [name for name in whole.offsets if belongs(name)]:
            offsets = part.offsets[name] = whole.offsets.pop(name)
            for place in offsets:
                self.group(name).pending[place].discard(whole)
        return part

    def _author(self, transactional_id: str, producer_id: int, epoch: int) -> _Author:
        author = self._authors.get(transactional_id)
        if author is None or author.producer_id != producer_id or author.epoch != epoch:
            raise KafkaException(
                KafkaError(
                    KafkaError._FENCED, f"{transactional_id}: a newer producer has this id", fatal=True
                )
            )
        return author

    def _end(self, author: _Author, *, commit: bool) -> None:
        transaction, author.open = author.open, None
        assert transaction is not None  # noqa: S101 - whoever calls has looked
        touched = {*transaction.first, *transaction.offsets}
        for forgotten in author.forgotten:
            self._mark(self._part_of(forgotten, touched.__contains__), commit=commit)
        author.forgotten = [one for one in author.forgotten if one.first or one.offsets]
        self._mark(transaction, commit=commit)

    def _mark(self, transaction: Transaction, *, commit: bool) -> None:
        transaction.committed = commit
        for place in transaction.first:
            self.log(place).mark_end(transaction, self.now_ms())
        for name, offsets in transaction.offsets.items():
            group = self.group(name)
            for place in offsets:
                group.pending.get(place, set()).discard(transaction)
            if commit:
                group.committed.update(offsets)
        self.news.notify_all()
