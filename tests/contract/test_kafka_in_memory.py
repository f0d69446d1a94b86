"""The same expectations of the Kafka in memory and of a real one: what is simulated must be what happens."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Protocol

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas.errors import PipelineError
from schemas.partitions import partition_of
from streams.clients import FENCED, producer_config, worker_consumer_config
from streams.committed import committed_offsets
from streams.settings import load_settings
from tests.support.waiting import eventually
from workers.testing import MemoryKafka

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]

PARTITIONS: Final = 4
_LIMIT_S: Final = 30.0
_ANSWER_S: Final = 5.0


class Kafka(Protocol):
    """A broker with the topics "one" and "two", and what is asked of it."""

    one: str
    two: str

    def producer(self, transactional_id: str | None = None) -> Any: ...

    def consumer(self, group: str) -> Any: ...

    def committed(self, group: str, place: tuple[str, int], *, stable: bool = True) -> tuple[int, str] | None:
        """None: nothing. Raises if a stable answer is not to be had."""
        ...


class InMemory:
    one, two = "one", "two"

    def __init__(self) -> None:
        self._kafka = MemoryKafka()
        for topic in (self.one, self.two):
            self._kafka.create_topic(topic, PARTITIONS)

    def producer(self, transactional_id: str | None = None) -> Any:
        return self._kafka.producer(transactional_id)

    def consumer(self, group: str) -> Any:
        return self._kafka.consumer(group)

    def committed(self, group: str, place: tuple[str, int], *, stable: bool = True) -> tuple[int, str] | None:
        return self._kafka.committed(group, [place], require_stable=stable).get(place)


class Real:
    def __init__(self, address: str, prefix: str) -> None:
        self.one, self.two = f"{prefix}one", f"{prefix}two"
        self._prefix = prefix
        self._settings = load_settings(kafka_bootstrap_servers=address, topic_prefix=prefix)
        admin = AdminClient({"bootstrap.servers": address})
        topics = [NewTopic(name, PARTITIONS, 1) for name in (self.one, self.two)]
        for made in admin.create_topics(topics).values():
            made.result(_LIMIT_S)

    def producer(self, transactional_id: str | None = None) -> Any:
        name = None if transactional_id is None else self._prefix + transactional_id
        return Producer(producer_config(self._settings, transactional_id=name, linger_ms=0))

    def consumer(self, group: str) -> Any:
        config = worker_consumer_config(self._settings, self._prefix + group)
        return Consumer({**config, "auto.offset.reset": "earliest"})

    def committed(self, group: str, place: tuple[str, int], *, stable: bool = True) -> tuple[int, str] | None:
        return committed_offsets(
            self._settings, self._prefix + group, [place], timeout_s=1.0, stable=stable
        ).get(place)


@pytest.fixture(params=["in memory", "real"])
def broker(request: pytest.FixtureRequest) -> Kafka:
    if request.param == "in memory":
        return InMemory()
    address: str = request.getfixturevalue("kafka")
    return Real(address, request.getfixturevalue("topic_prefix"))


class Member:
    """A consumer that is polled by the test: nothing happens between two polls that it has not asked for."""

    def __init__(self, broker: Kafka, group: str = "g", *topics: str) -> None:
        self.consumer = broker.consumer(group)
        self.owned: set[tuple[str, int]] = set()
        self.lost = False
        self.values: list[bytes | None] = []
        self.consumer.subscribe(
            list(topics or (broker.one, broker.two)),
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.owned |= {(tp.topic, tp.partition) for tp in partitions}
        consumer.incremental_assign([TopicPartition(tp.topic, tp.partition, 0) for tp in partitions])

    def _revoked(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.owned -= {(tp.topic, tp.partition) for tp in partitions}
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.lost = True
        self._revoked(consumer, partitions)

    def poll(self, timeout_s: float = 0.05) -> None:
        message = self.consumer.poll(timeout_s)
        if message is not None and message.error() is None:
            self.values.append(message.value())

    @property
    def metadata(self) -> Any:
        return self.consumer.consumer_group_metadata()


def settle(members: list[Member], is_true: Callable[[], bool], what: str) -> None:
    """Poll all of them in turn until it is so."""

    def turn() -> bool:
        for member in members:
            member.poll()
        return is_true()

    eventually(turn, _LIMIT_S, what)


@pytest.fixture
def member(broker: Kafka) -> Iterator[Member]:
    """The only one of its group; it has everything."""
    alone = Member(broker)
    settle([alone], lambda: len(alone.owned) == 2 * PARTITIONS, "it has all partitions")
    yield alone
    alone.consumer.close()


def ready(broker: Kafka, name: str = "t") -> Any:
    producer = broker.producer(name)
    producer.init_transactions(_LIMIT_S)
    return producer


def write(producer: Any, topic: str, *values: bytes, partition: int = 0) -> None:
    for value in values:
        producer.produce(topic, value, b"k", partition)
    if producer.flush(_LIMIT_S):
        raise AssertionError("not written")


def error_of(call: Callable[[], object]) -> KafkaError:
    with pytest.raises(KafkaException) as raised:
        call()
    error: KafkaError = raised.value.args[0]
    return error


def test_a_committed_read_ends_before_the_first_open_transaction(broker: Kafka, member: Member) -> None:
    producer, plain = ready(broker), broker.producer()
    producer.begin_transaction()
    write(producer, broker.one, b"open")
    write(plain, broker.one, b"later")
    write(plain, broker.two, b"elsewhere")
    settle(
        [member], lambda: member.values == [b"elsewhere"], "what stands behind nothing that is open is read"
    )
    for _ in range(10):
        member.poll()
    assert member.values == [b"elsewhere"]
    producer.commit_transaction(_LIMIT_S)
    settle([member], lambda: len(member.values) == 3, "the rest is read")
    assert member.values == [b"elsewhere", b"open", b"later"]


def test_what_was_aborted_is_never_read_and_its_marker_has_an_offset(broker: Kafka, member: Member) -> None:
    producer = ready(broker)
    producer.begin_transaction()
    write(producer, broker.one, b"a", b"b")
    producer.abort_transaction(_LIMIT_S)
    write(broker.producer(), broker.one, b"c")
    settle([member], lambda: bool(member.values), "what follows is read")
    assert member.values == [b"c"]
    (position,) = member.consumer.position([TopicPartition(broker.one, 0)])
    assert position.offset == 4, "two records, a marker, a record"


def test_who_takes_a_transactional_id_ends_what_is_open_and_fences_its_last_owner(
    broker: Kafka, member: Member
) -> None:
    first = ready(broker)
    first.begin_transaction()
    write(first, broker.one, b"of the first")
    second = ready(broker)
    second.begin_transaction()
    write(second, broker.one, b"of the second")
    second.commit_transaction(_LIMIT_S)
    error = error_of(lambda: first.commit_transaction(_LIMIT_S))
    assert (error.code() in FENCED, error.fatal()) == (True, True)
    told = error_of(lambda: first.poll(0))
    assert (told.code() in FENCED, told.fatal()) == (True, True), "whoever polls is told once more"
    assert first.poll(0) == 0
    settle([member], lambda: bool(member.values), "the second one's record is read")
    assert member.values == [b"of the second"]


def test_offsets_and_their_metadata_are_committed_with_the_transaction_alone(
    broker: Kafka, member: Member
) -> None:
    producer = ready(broker)
    for commits in (False, True):
        producer.begin_transaction()
        offsets = [TopicPartition(broker.one, 1, 7, "a map;of mine")]
        producer.send_offsets_to_transaction(offsets, member.metadata, _ANSWER_S)
        if commits:
            producer.commit_transaction(_LIMIT_S)
        else:
            producer.abort_transaction(_LIMIT_S)
            assert broker.committed("g", (broker.one, 1)) is None
    assert broker.committed("g", (broker.one, 1)) == (7, "a map;of mine")


def test_a_stable_read_waits_for_the_transaction_that_may_change_it(broker: Kafka, member: Member) -> None:
    producer = ready(broker)
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(broker.one, 0, 3)], member.metadata, _ANSWER_S)
    with pytest.raises((KafkaException, PipelineError)):
        broker.committed("g", (broker.one, 0))
    assert broker.committed("g", (broker.one, 0), stable=False) is None
    assert broker.committed("g", (broker.one, 1)) is None, "of a partition that it does not touch"
    producer.commit_transaction(_LIMIT_S)
    found = broker.committed("g", (broker.one, 0))
    assert found is not None
    assert found[0] == 3


def test_who_has_left_the_group_commits_nothing(broker: Kafka) -> None:
    gone = Member(broker)
    settle([gone], lambda: bool(gone.owned), "it has partitions")
    metadata = gone.metadata
    gone.consumer.close()
    producer = ready(broker)
    producer.begin_transaction()
    error = error_of(
        lambda: producer.send_offsets_to_transaction([TopicPartition(broker.one, 0, 1)], metadata, _ANSWER_S)
    )
    assert (error.code(), error.txn_requires_abort()) == (KafkaError.UNKNOWN_MEMBER_ID, True)
    producer.abort_transaction(_LIMIT_S)
    producer.begin_transaction()
    producer.commit_transaction(_LIMIT_S)
    assert broker.committed("g", (broker.one, 0)) is None


@contextlib.contextmanager
def two_members(broker: Kafka) -> Iterator[tuple[Member, Member, Any]]:
    """The second has joined, and has its share; and the first one's metadata from before."""
    first = Member(broker)
    settle([first], lambda: len(first.owned) == 2 * PARTITIONS, "the first one has everything")
    before = first.metadata
    second = Member(broker)
    settle(
        [first, second],
        lambda: len(first.owned) == len(second.owned) == PARTITIONS,
        "each has its half",
    )
    yield first, second, before
    for one in (first, second):
        one.consumer.close()


def test_of_two_members_each_has_the_same_partitions_of_every_topic(broker: Kafka) -> None:
    with two_members(broker) as (first, second, _):
        for one in (first, second):
            assert not one.lost
            numbers = {number for _, number in one.owned}
            assert one.owned == {(topic, number) for topic in (broker.one, broker.two) for number in numbers}
        assert not first.owned & second.owned


def test_metadata_of_an_earlier_epoch_commits_what_was_kept_since_and_nothing_else(broker: Kafka) -> None:
    """KIP-1251: not the member's epoch is what counts then, but when it was given the partition."""
    with two_members(broker) as (first, second, before):
        producer = ready(broker)
        kept, given_away = next(iter(first.owned)), next(iter(second.owned))
        for places in ([given_away], [kept, given_away]):
            producer.begin_transaction()
            offsets = [TopicPartition(*place, 1) for place in places]
            error = error_of(partial(producer.send_offsets_to_transaction, offsets, before, _ANSWER_S))
            assert (error.code(), error.txn_requires_abort()) == (KafkaError.ILLEGAL_GENERATION, True)
            producer.abort_transaction(_LIMIT_S)
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(*kept, 2, "y")], before, _ANSWER_S)
        producer.commit_transaction(_LIMIT_S)
        assert broker.committed("g", kept) == (2, "y")
        assert broker.committed("g", given_away) is None


def test_kafka_does_not_ask_whose_partition_it_is(broker: Kafka) -> None:
    """So the order of our own steps is the fence: metadata first, then the look at what is ours."""
    with two_members(broker) as (first, second, _):
        producer = ready(broker)
        producer.begin_transaction()
        place = next(iter(second.owned))
        producer.send_offsets_to_transaction([TopicPartition(*place, 5, "x")], first.metadata, _ANSWER_S)
        producer.commit_transaction(_LIMIT_S)
        assert broker.committed("g", place) == (5, "x")


def test_keys_are_placed_as_java_does(broker: Kafka) -> None:
    producer, found = broker.producer(), {}

    def report(error: KafkaError | None, message: Any) -> None:
        assert error is None
        found[message.key()] = message.partition()

    keys = [uuid.uuid4().bytes for _ in range(50)]
    for key in keys:
        producer.produce(broker.one, b"v", key, on_delivery=report)
    producer.flush(_LIMIT_S)
    assert found == {key: partition_of(key, PARTITIONS) for key in keys}


def test_a_transaction_without_anything_in_it_can_be_committed(broker: Kafka) -> None:
    producer = ready(broker)
    started = time.monotonic()
    for _ in range(3):
        producer.begin_transaction()
        producer.commit_transaction(_LIMIT_S)
    assert time.monotonic() - started < _LIMIT_S
