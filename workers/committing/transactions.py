"""One Kafka transaction: write, send the offsets, commit; or say in which of five ways it did not happen.

In:  outcomes, the offsets to commit and the group metadata that fence them. Out: nothing, or ``Ambiguous``, ``LostBetween``,
``Stale``, ``GivenAway`` or ``Refused``.

What to do about each of them is the commit thread's decision (``workers.committing.commit``). This is for its thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Final, NoReturn

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from schemas.codec import Codec
from schemas.lifecycle import JobStatus, by_worker
from schemas.records import StatusChange, StatusWriter, tail_of
from schemas.topics import Topics
from schemas.wire import WireSchema
from streams.client_log import ConnectionWatch
from streams.clients import FENCED, TRANSACTION_TIMEOUT_MS
from streams.offset_sender import OffsetSender
from streams.producer_end import let_go
from streams.schemas_topic import schema_record
from streams.visible import Written
from workers.committing.torn import WrittenOutcome
from workers.liveness.lease import Lease
from workers.outcome import Outcome, PlainSuccess

log = structlog.get_logger("rustfs_workers.commit")

COMMIT_TIMEOUT_S: Final = 10.0
#: Later than this Kafka has ended the transaction.
_OFFSETS_TIMEOUT_S: Final = TRANSACTION_TIMEOUT_MS / 1000
_INIT_TIMEOUT_S: Final = 15.0
_ROOM_S: Final = 0.1

#: Of a plain success, whose status has no record of its own until it is written.
_SUCCEEDED: Final = by_worker(JobStatus.RUNNING, JobStatus.SUCCEEDED)
#: librdkafka tells of a connection to a broker that is lost in the same way twice, and then no more for half a minute
#: (``rd_kafka_broker_set_error``). A producer that has told of one will tell of the next one, and of that only.
_TOLD_ONCE: Final = 1
#: The group has moved on since the metadata was taken. Ordinary: the commit thread waits for a change, and plans anew.
_STALE: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        getattr(KafkaError, "STALE_MEMBER_EPOCH", -9999),
        getattr(KafkaError, "FENCED_MEMBER_EPOCH", -9998),
    }
)


#: Says nothing of what the transaction contains: the same one will be taken when the broker concerned is back.
_AWAY: Final = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        # Records that were not delivered in time are reported so by the commit. A refused one has its own code.
        KafkaError._MSG_TIMED_OUT,
        KafkaError._INCONSISTENT,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.REQUEST_TIMED_OUT,
        # A record that was refused before: librdkafka has counted it, the broker has not.
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    }
)

#: What encoding raises at values that cannot be written. Metrics and progress are the handler's own: they must fail its job,
#: not end the worker.
_NOT_WRITABLE: Final = (ValueError, TypeError, ArithmeticError, AttributeError, LookupError)


class NotCommitted(Exception):
    """The transaction did not end with a clear success."""


class NobodyWaits(Exception):
    """Kafka gives no answer, and the worker stops: nobody waits for it any more. That is no failure of the worker."""


class Ambiguous(NotCommitted):
    """Whether the transaction was committed is unknown. ``fenced``: another producer has our transactional id."""

    def __init__(self, text: str, *, fenced: bool = False) -> None:
        super().__init__(text)
        self.fenced = fenced


class LostBetween(NotCommitted):
    """A connection was lost since the last transaction. Nothing of this one was sent; whether that one stands has to be looked at."""


class Stale(NotCommitted):
    """Refused because the group has moved on."""


class Refused(NotCommitted):
    """Refused because of what it contains."""


class GivenAway(NotCommitted):
    """A partition whose offsets were about to be sent is ours no longer."""


class Transactions:
    """Owns the transactional producer.

    Args:
        make_producer: makes one whose log goes to the given logger; ``renew`` initialises it.
        codec: writes statuses.
        topics: names of those for statuses and schemas.
        worker_name: stands in each status.
        lease: renewed by each committed transaction with offsets.
        given_up: whether nobody waits for a producer any more.
        may_send: asked right before offsets are sent; from then on what they belong to is not given away.
        may_commit: the same, right before the commit is asked for.
    """

    def __init__(
        self,
        *,
        make_producer: Callable[[logging.Logger], Producer],
        codec: Codec,
        topics: Topics,
        worker_name: str,
        lease: Lease,
        given_up: Callable[[], bool],
        may_send: Callable[[], bool] = lambda: True,
        may_commit: Callable[[], bool] = lambda: True,
    ) -> None:
        self._make_producer = make_producer
        self._status = StatusWriter(codec)
        self._status_topic = topics.status
        self._schemas_topic = topics.schemas
        self._worker = worker_name
        self._lease = lease
        self._given_up = given_up
        self._may_send = may_send
        self._may_commit = may_commit
        #: Fingerprints of schemas that a committed transaction of ours carried; those in the open one; and those of one that
        #: may have been committed without them.
        self._introduced: set[bytes] = set()
        self._introducing: dict[bytes, WireSchema] = {}
        self._doubtful: dict[bytes, WireSchema] = {}
        self._watch = ConnectionWatch()
        self._offsets = OffsetSender()
        self._producer: Producer | None = None

    @property
    def producer(self) -> Producer:
        """The one that ``renew`` made last."""
        assert self._producer is not None  # noqa: S101 - made before the first tick
        return self._producer

    def renew(self) -> None:
        """A producer with a new epoch: whatever the old one left open ends, and its stragglers are refused. Blocks.

        Raises:
            KafkaException: the transactional id is not ours to use.
            NobodyWaits: Kafka is away, and the worker stops.
        """
        self._end_producer()
        waited = 0.05
        while True:
            # Its own: what happens to an earlier one while it comes to its end is no news of this one.
            watch = ConnectionWatch()
            producer = self._make_producer(watch.logger)
            try:
                producer.init_transactions(_INIT_TIMEOUT_S)
                producer.poll(0)
            except KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.code() in (
                    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
                    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                    KafkaError.INVALID_TRANSACTION_TIMEOUT,
                ):
                    raise
                log.warning("no transactional producer yet", error=str(kafka_error))
                if self._given_up():
                    raise NobodyWaits(str(kafka_error)) from error
                forget_frames(error)
            else:
                if watch.times <= _TOLD_ONCE or self._given_up():
                    watch.lost = False  # while it began, nothing of a transaction was on its way
                    self._producer, self._watch = producer, watch
                    return
                log.warning(
                    "connections were lost while a producer began: another one is made", times=watch.times
                )
            useless = [producer]
            del producer
            let_go(useless)
            time.sleep(waited)
            waited = min(waited * 2, 2.0)

    def close(self) -> None:
        """End the producer and the thread that sends offsets. Nothing can be written any more."""
        self._offsets.close()
        self._end_producer()

    def _end_producer(self) -> None:
        if self._producer is not None:
            ended, self._producer = [self._producer], None
            let_go(ended)

    def write(self, outcomes: list[Outcome], offsets: Collection[tuple[Any, list[TopicPartition]]]) -> None:
        """Everything of ``outcomes`` and the offsets, each with their group metadata, or nothing. Blocks.

        After ``LostBetween`` a new producer is needed: this one may not hear of the next loss, see ``_TOLD_ONCE``.

        Raises:
            Ambiguous, LostBetween, Stale, GivenAway, Refused: it is not surely committed.
        """
        _take_news(self.producer)
        if self._watch.lost:
            raise LostBetween("a connection was lost since the last transaction")
        producer = self.producer
        proof = self._lease.begin()
        self._doubtful |= self._introducing
        self._introducing.clear()
        try:
            producer.begin_transaction()
            self._produce(producer, outcomes)
            if offsets and not self._may_send():
                raise GivenAway("a partition was given away while records were written")
            for metadata, those in offsets:
                self._offsets.send(producer, those, metadata, _OFFSETS_TIMEOUT_S)
            if offsets and not self._may_commit():
                raise GivenAway("a partition was given away while its offsets were sent")
        except (KafkaException, BufferError, GivenAway, *_NOT_WRITABLE) as error:
            self._abort(producer, error)
        try:
            producer.commit_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                self._abort(producer, error)
            raise Ambiguous(str(error), fenced=_says_fenced(error)) from error
        _take_news(producer)
        if self._watch.lost:
            raise Ambiguous(
                "a connection was lost during the transaction, though it was reported as committed"
            )
        if offsets:
            self._lease.committed(proof)
        self._introduced |= self._introducing.keys()
        self._introducing.clear()
        self._doubtful.clear()

    def records_of(self, outcome: Outcome) -> WrittenOutcome:
        """What ``outcome`` writes, as readers would find it; nothing if it cannot be written, or only repeats itself."""
        if outcome.message is None and not outcome.late:
            return None, ()
        status = None
        try:
            if outcome.status is not None:
                key, value = self._status_record(outcome, outcome.status)
                status = Written.of(self._status_topic, -1, key, value, None)
        except _NOT_WRITABLE:
            return None, ()
        return status, tuple(
            Written.of(record.topic, record.partition, record.key, record.value, record.headers)
            for record in outcome.records
        )

    def _produce(self, producer: Producer, outcomes: list[Outcome]) -> None:
        produce, status_topic = producer.produce, self._status_topic
        # The transaction that carried them was not committed for sure, and its other records may be seen all the same.
        for schema in self._doubtful.values():
            self._introduce(producer, schema)
        for outcome in outcomes:
            status = outcome.status
            if status is not None:
                key, value = self._status_record(outcome, status)
                try:
                    produce(status_topic, value, key)
                except BufferError:
                    _produce_when_there_is_room(producer, status_topic, value, key)
            for record in outcome.records:
                if record.schema is not None and not self._knows(record.schema):
                    self._introduce(producer, record.schema)
                headers: Any = record.headers  # a list of another element type to the checker
                _produce_when_there_is_room(
                    producer, record.topic, record.value, record.key, record.partition, headers=headers
                )

    def _status_record(self, outcome: Outcome, status: StatusChange | PlainSuccess) -> tuple[bytes, bytes]:
        """Key and value. The same outcome always gives the same bytes."""
        if isinstance(status, StatusChange):
            return status.job_id.encode(), self._status.encode(status)
        message = outcome.message or outcome.owner
        assert message is not None  # noqa: S101
        delivery = message.delivery
        tail = tail_of(
            _SUCCEEDED,
            status.job_type,
            status.priority,
            delivery.attempt,
            delivery.delivery,
            delivery.redrives,
            self._worker,
        )
        key = message.job_id
        return key, self._status.succeeded(
            key, status.key, status.at, status.created_at, status.started_at, tail
        )

    def _knows(self, schema: WireSchema) -> bool:
        return schema.fingerprint in self._introduced or schema.fingerprint in self._introducing

    def _introduce(self, producer: Producer, schema: WireSchema) -> None:
        """Once per process; again if the transaction that carried it was not committed for sure."""
        key, value = schema_record(schema)
        _produce_when_there_is_room(producer, self._schemas_topic, value, key, 0)
        self._introducing[schema.fingerprint] = schema

    def _abort(self, producer: Producer, error: Exception) -> NoReturn:
        """End the transaction and say what kind of failure it was. Always raises."""
        kafka_error = error.args[0] if isinstance(error, KafkaException) else None
        try:
            producer.abort_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as abort_error:
            # Nothing of it can become visible: the next producer ends it, but let Kafka say what stands.
            fenced = _says_fenced(error) or _says_fenced(abort_error)
            raise Ambiguous(f"{error}; and the abort failed: {abort_error}", fenced=fenced) from error
        _take_news(producer)
        if self._watch.lost:
            # librdkafka gives the sequence number of a record whose answer was lost to another one. A broker that has the
            # first one takes the second for its copy, and drops it; the transaction is committed without it all the same.
            raise Ambiguous(
                f"{error}; aborted, and a connection was lost before that", fenced=_says_fenced(error)
            )
        if isinstance(error, GivenAway):
            self._introducing.clear()
            raise error
        if kafka_error is None:
            self._introducing.clear()
            raise Refused(f"{type(error).__name__}: {error}") from error
        if kafka_error.code() in _STALE:
            self._introducing.clear()
            raise Stale(str(kafka_error)) from error
        if kafka_error.fatal() or kafka_error.code() in (
            KafkaError.INVALID_PRODUCER_ID_MAPPING,
            KafkaError._FENCED,
        ):
            raise Ambiguous(str(kafka_error), fenced=_says_fenced(error)) from error
        if kafka_error.retriable() or kafka_error.code() in _AWAY:
            raise Ambiguous(str(kafka_error)) from error
        # If it is a schema that Kafka refuses, it must not spoil what others write next.
        self._introducing.clear()
        self._doubtful.clear()
        raise Refused(str(kafka_error)) from error


def forget_frames(error: BaseException | None) -> None:
    """Whoever keeps this error, or goes round in a circle with it, keeps no producer alive."""
    while error is not None:
        error.__traceback__ = None
        if error.__cause__ is not error.__context__:
            forget_frames(error.__cause__)
        error = error.__context__


def _take_news(producer: Producer) -> None:
    """What librdkafka has to log, lost connections among it.

    Raises:
        Ambiguous: it has met an error after which it sends nothing any more. ``poll`` raises those.
    """
    try:
        producer.poll(0)
    except KafkaException as error:
        raise Ambiguous(str(error), fenced=_says_fenced(error)) from error


def _says_fenced(error: Exception) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() in FENCED


def _produce_when_there_is_room(producer: Producer, *record: Any, **more: Any) -> None:
    while True:
        try:
            producer.produce(*record, **more)
        except BufferError:
            producer.poll(_ROOM_S)
        else:
            return
