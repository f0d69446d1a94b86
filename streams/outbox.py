"""Records on their way to Kafka, and the news of what became of them.

In:  records from any thread. Out: one ``Ticket`` per call that learns which of its records were acknowledged.

One thread at a time serves the delivery reports and counts on the tickets, so counting needs no lock:
usually a thread of the outbox, which sleeps while nothing is in flight; during a bulk the one that produces
it, since two threads that both work in Python halve each other's speed.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.errors import DeliveryFailed, KafkaUnreachable
from schemas.headers import RawHeaders
from schemas.partitions import partition_of_id
from schemas.wire import WireSchema
from streams.clients import kafka_failed, producer_config
from streams.outgoing import OutgoingJob
from streams.partition_counts import equal_count
from streams.producer_end import let_go
from streams.schemas_topic import schema_record
from streams.settings import Settings
from streams.tickets import Ticket

log = structlog.get_logger("rustfs_workers.outbox")

#: How long the serving thread waits for a report while there are records in flight.
_POLL_S: Final = 0.05
#: A bulk that has not looked for reports for so long waits for its source: others must not wait with it.
_BULK_PAUSE_S: Final = 0.1
#: How often an idle producer is asked for news of its connections: unasked, it would keep them all.
_IDLE_LOOK_S: Final = 10.0
#: How long the counts of partitions are trusted.
_COUNTS_AGE_S: Final = 300.0


class Outbox:
    """One idempotent producer, shared by all threads of a process. Make it after a fork, not before."""

    def __init__(
        self,
        settings: Settings,
        *,
        unreachable_after_s: float = 10.0,
        delivery_timeout_s: float = 30.0,
    ) -> None:
        self._process = os.getpid()
        self._settings = settings
        self._topics = settings.topics
        self._unreachable_after_s = unreachable_after_s
        self._delivery_timeout_s = delivery_timeout_s
        self._lock = threading.RLock()
        self._wake = threading.Condition(threading.Lock())
        self._serving = threading.Lock()
        #: When a bulk last looked for reports.
        self._bulk_at = -math.inf
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._published: set[bytes] = set()
        self._count = 0
        self._counted_at = -math.inf
        #: Nobody may be there: find out before the next record.
        self._doubtful = False
        self._unreachable_at = -math.inf
        #: Of the producer; infinite if there is none.
        self._made_at = math.inf
        #: A producer made before has let a record time out, or found no broker: perhaps it is only this one.
        self._deaf_before = -math.inf
        #: The producer has met an error after which it sends nothing any more.
        self._broken = False
        self._give_up_at = math.inf
        #: Producers that met a fatal error and still have reports to give.
        self._failed: list[Producer] = []

    def ready_for(self, schema: WireSchema) -> bool:
        """Whether ``prepare`` has nothing to do; costs no time and talks to nobody."""
        self._check_process()
        self._look()
        return (
            self._producer is not None
            and not self._doubtful
            and (self._settings.schema_registry_url is not None or schema.fingerprint in self._published)
            and time.monotonic() - self._counted_at < _COUNTS_AGE_S
        )

    def prepare(self, schema: WireSchema | None = None, *, under_way: bool = False) -> None:
        """Connect, count partitions, publish the schema; whatever of it is still to do. Blocks.

        ``under_way``: records of the same call are on their way; a connection lost meanwhile has as long to
        come back as they have to be delivered.

        Raises:
            KafkaUnreachable: no broker answered in time.
            TopicsMismatch: a topic is missing, or the counts differ.
            DeliveryFailed: the schema was not acknowledged, or this was made before a fork.
        """
        self._check_process()
        asked_at = time.monotonic()
        self._look()
        with self._lock:
            if self._made_at <= self._deaf_before and not under_way:
                log.info("producer replaced", reason="it has heard nothing of Kafka for too long")
                self._replace()
            producer = self.producer()
            if (self._doubtful and not under_way) or time.monotonic() - self._counted_at >= _COUNTS_AGE_S:
                if self._unreachable_at >= asked_at:
                    # Another thread has just waited in vain: a hundred of them do not wait in turn.
                    raise KafkaUnreachable(self._settings.bootstrap_servers(), self._unreachable_after_s)
                self._count_partitions(producer)
            if schema is None or self._settings.schema_registry_url is not None:
                return
            if schema.fingerprint not in self._published:
                self._publish(schema)

    def _check_process(self) -> None:
        # A fork copies no threads: nobody would send what is handed over, and nobody tell that it was not sent.
        if os.getpid() != self._process:
            raise DeliveryFailed(
                "nothing was sent: this producer was made before a fork; make one in each process"
            )

    def doubt(self, ticket: Ticket) -> None:
        """Find out whether a broker is there before the next record is sent: those of this ticket were not all taken.

        If one of them timed out, with a new producer: now and then librdkafka (2.16) stays deaf after a broker's death, while
        every other client hears Kafka. Seen in two storms; what it does then is not known.
        """
        if ticket.timed_out:
            self._deaf_before = max(self._deaf_before, ticket.began)
        self._doubtful = True

    def producer(self) -> Producer:
        """The producer; a new one if there is none, or the last one met a fatal error."""
        with self._lock:
            if self._closed:
                raise DeliveryFailed("nothing was sent: this producer is closed")
            if self._broken:
                self._replace()
            if self._producer is None:
                self._made_at = time.monotonic()
                self._producer = Producer(
                    {
                        # Reports come back within a millisecond or two; a backlog still fills whole batches.
                        **producer_config(
                            self._settings, linger_ms=0, delivery_timeout_s=self._delivery_timeout_s
                        ),
                        "error_cb": self._on_error,
                    }
                )
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="rustfs-workers-deliveries", daemon=True
                )
                self._thread.start()
            return self._producer

    def send(self, job: OutgoingJob, ticket: Ticket) -> bool:
        """Hand one record over; False if the queue is full (wait a little, then try again). Never blocks.

        Its ordering key places it, else its id.

        Raises:
            DeliveryFailed: it cannot be sent at all.
        """
        by_key = job.ordered or not self._count
        partition = -1 if by_key else partition_of_id(job.job_id, self._count)
        return self.produce(
            job.topic,
            job.key,
            job.value,
            partition,
            ticket,
            headers=job.headers,
            timestamp_ms=job.timestamp_ms,
        )

    def produce(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        partition: int,
        ticket: Ticket,
        *,
        headers: RawHeaders | None = None,
        timestamp_ms: int = 0,
    ) -> bool:
        """As ``send``, for any record; partition -1 places the key."""
        producer = None if self._closed or self._broken else self._producer
        producer = producer or self.producer()
        try:
            producer.produce(
                topic,
                value,
                key,
                partition,
                on_delivery=ticket,
                timestamp=timestamp_ms,
                headers=headers or [],  # type: ignore[arg-type]  # list is invariant
            )
        except BufferError:
            return False
        except KafkaException as error:
            self._counted_at = -math.inf  # the partition may be gone: count again next time
            raise DeliveryFailed(f"nothing was sent to {topic}: {error.args[0].str()}") from error
        if self._closed:
            # Between two lines above; the thread that serves reports may have seen nothing in flight, and ended.
            threading.Thread(target=self._see_through, args=(producer,), daemon=True).start()
        return True

    def _see_through(self, producer: Producer) -> None:
        while len(producer):
            if time.monotonic() > self._give_up_at:
                producer.purge()
            with self._serving:
                self._take_reports(producer, _POLL_S)

    def serve(self) -> None:
        """See that delivery reports are served; call it after ``send``, once for many."""
        with self._wake:
            self._wake.notify()

    @contextmanager
    def bulk(self) -> Iterator[Callable[[float], None]]:
        """Serve reports in this thread for a while: gives a function to do so, which waits for the first one.

        The outbox's thread leaves them to it for as long as it is called often. The source of a bulk may wait for
        something itself, the report of another job for one.

        Raises:
            DeliveryFailed: this was made before a fork.
        """
        self._check_process()
        try:
            yield self._serve_bulk
        finally:
            self._bulk_at = -math.inf
            self.serve()

    def _serve_bulk(self, timeout_s: float) -> None:
        self._bulk_at = time.monotonic()
        if self._serving.acquire(timeout=timeout_s):
            try:
                self._poll(timeout_s)
            finally:
                self._serving.release()

    def _left_to_a_bulk(self) -> bool:
        return time.monotonic() - self._bulk_at < _BULK_PAUSE_S

    def _poll(self, timeout_s: float) -> None:
        producer = self._producer
        if producer is not None:
            self._take_reports(producer, timeout_s)

    def _take_reports(self, producer: Producer, timeout_s: float) -> None:
        """Serve what there is, whichever thread asks.

        An error after which the producer sends nothing any more is raised by its ``poll``; whom it hits goes on, for what
        is in flight still gets its reports.
        """
        try:
            producer.poll(timeout_s)
        except KafkaException as error:
            log.warning("producer failed", error=error.args[0].str())
            # Whoever publishes a schema holds the lock, and waits for a report that only the serving thread can bring.
            self._broken = self._broken or producer is self._producer

    def _look(self) -> None:
        """Take what news there is, without waiting; whoever serves at this moment does so anyway."""
        if not self._left_to_a_bulk() and self._serving.acquire(blocking=False):
            try:
                self._poll(0)
            finally:
                self._serving.release()

    @property
    def in_flight(self) -> int:
        """Records, of all callers, whose reports have not been served."""
        return sum(len(producer) for producer in (self._producer, *self._failed) if producer is not None)

    @property
    def partition_count(self) -> int:
        """Partitions of each job topic, as last counted."""
        return self._count

    def close(self, timeout_s: float) -> None:
        """Wait for what is in flight, ``timeout_s`` at most, then give the rest up and stop."""
        with self._lock:
            self._give_up_at = time.monotonic() + timeout_s
            self._closed = True
        if self._thread is not None:
            with self._wake:
                self._wake.notify()
            self._thread.join()
        self._producer = None

    def _serve_busy(self) -> bool:
        """Serve reports of all producers that have some to give. False: there is none."""
        busy = [
            producer for producer in (self._producer, *self._failed) if producer is not None and len(producer)
        ]
        for producer in busy:
            if self._closed and time.monotonic() > self._give_up_at:
                producer.purge()
            if producer is self._producer and self._left_to_a_bulk():
                time.sleep(_POLL_S)
                continue
            with self._serving:
                self._take_reports(producer, _POLL_S)
        return bool(busy)

    def _serve(self) -> None:
        while True:
            if self._serve_busy():
                continue
            if self._failed:
                self._let_failed_go()
            self._look()
            with self._wake:
                if self._closed:
                    return
                # Asked again under the lock: a record may have come in between.
                if self._producer is None or not len(self._producer):
                    self._wake.wait(_IDLE_LOOK_S)

    def _let_failed_go(self) -> None:
        # Whoever asks for brokers has the lock for seconds: reports are served meanwhile, and this waits for the next time.
        if not self._lock.acquire(blocking=False):
            return
        try:
            ended = [producer for producer in self._failed if not len(producer)]
            self._failed = [producer for producer in self._failed if len(producer)]
        finally:
            self._lock.release()
        let_go(ended)

    def _on_error(self, error: KafkaError) -> None:
        """Errors that belong to no record, and that a producer survives; called from ``poll``."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._doubtful = True

    def _replace(self) -> None:
        """Records in flight still get their reports from the old producer; new records need a new one."""
        with self._lock:
            if self._producer is not None:
                self._failed.append(self._producer)
            self._producer = None
            self._made_at = math.inf
            self._broken = False

    def _count_partitions(self, producer: Producer) -> None:
        names = (*self._topics.jobs.values(), *self._topics.retry.values())
        # Before asking: news of another loss, from here on, is newer than the answer.
        self._doubtful = False
        try:
            known = producer.list_topics(timeout=self._unreachable_after_s).topics
        except KafkaException as error:
            self._doubtful = True
            self._unreachable_at = self._deaf_before = time.monotonic()
            raise kafka_failed(self._settings, error, self._unreachable_after_s) from error
        # Before the first job goes its schema, unless a registry has it.
        schemas = () if self._settings.schema_registry_url is not None else (self._topics.schemas,)
        self._count = equal_count(known, names, schemas)
        self._counted_at = time.monotonic()

    def _publish(self, schema: WireSchema) -> None:
        key, value = schema_record(schema)
        finished = threading.Event()
        ticket = Ticket(finished.set)
        deadline = time.monotonic() + self._delivery_timeout_s
        while not self.produce(self._topics.schemas, key, value, 0, ticket):
            # The thread that serves reports makes room, and needs no lock of ours for it.
            if time.monotonic() > deadline:
                raise DeliveryFailed(
                    f"the schema of {schema.full_name} found no room in the queue within {self._delivery_timeout_s:g} s, "
                    "so no job was sent: Kafka takes less than is scheduled"
                )
            self.serve()
            time.sleep(_POLL_S)
        ticket.seal(1)
        self.serve()
        finished.wait()
        if ticket.unacknowledged:
            raise DeliveryFailed(
                f"the schema of {schema.full_name} was not acknowledged, so no job was sent: "
                f"{ticket.unacknowledged.reason}"
            )
        self._published.add(schema.fingerprint)
