"""Schedule jobs from plain, synchronous code: a storage node, a script, a thread.

In:  job objects. Out: their ids, once Kafka has acknowledged them on all replicas.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from schemas.codec import Codec
from schemas.durations import seconds
from schemas.errors import DeliveryFailed, InvalidJob, PipelineError
from schemas.ids import next_turn
from schemas.job import Job
from schemas.topics import JobPriority
from streams.outbox import Outbox
from streams.outgoing import JobOptions, OutgoingJob, Rules, Settled, compose, declared_type, settle
from streams.registry import build_codec
from streams.settings import Settings, load_settings
from streams.tickets import Ticket, Unacknowledged, stayed_full

#: Jobs of a bulk between two looks at the clock.
_CHUNK: Final = 128
#: From so many jobs on, a bulk sends them in runs of this length to one partition.
_MANY: Final = 1024
_RUN: Final = 64
#: A bulk beside an event loop gives the interpreter up this often, for so long. By time, not by jobs: what a job
#: takes depends on its type and on who else wants the processor.
_YIELD_EVERY_S: Final = 1e-3
_YIELD_S: Final = 50e-6
#: How long to wait where the queue to Kafka is full.
_FULL_WAIT_S: Final = 0.002
_POLL_S: Final = 0.01
#: librdkafka counts milliseconds in 31 bits, and a longer time comes out as some other one.
_LONGEST_DELIVERY: Final = timedelta(days=24)


class JobProducer:
    """Schedules jobs; safe from any thread, one per process is enough. Blocks: asyncio code has ``JobQueue``.

    .. code-block:: python

        with JobProducer() as producer:
            job_id = producer.schedule_job(ThumbnailJob(source_path="bucket/a.jpg"), JobPriority.HIGH)

    Args:
        settings: default: ``load_settings()``.
        source: who produces, for people; default: host name and process id.
        unreachable_after: how long to look for a broker.
        delivery_timeout: how long Kafka may take to acknowledge a record.

    Make it after a fork, not before: its connection belongs to the process.

    Raises:
        SettingsError: a setting is wrong, or a duration is no ``timedelta`` above zero.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        source: str | None = None,
        unreachable_after: timedelta = timedelta(seconds=10),
        delivery_timeout: timedelta = timedelta(seconds=30),
        codec: Codec | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.codec = codec or build_codec(self.settings)
        self.rules = Rules.of(self.settings, self.codec, source or default_source())
        self.outbox = Outbox(
            self.settings,
            unreachable_after_s=seconds("unreachable_after", unreachable_after),
            delivery_timeout_s=seconds("delivery_timeout", delivery_timeout, most=_LONGEST_DELIVERY),
        )
        self._delivery_timeout_s = delivery_timeout.total_seconds()
        self._unwaited: set[_Unwaited] = set()
        self._unacknowledged = Unacknowledged()
        self._settled = threading.Condition()

    def schedule_job(
        self,
        job: Job,
        priority: JobPriority = JobPriority.NORMAL,
        delay: timedelta | None = None,
        *,
        at: datetime | None = None,
        key: str | None = None,
        job_id: str | None = None,
        max_retries: int | None = None,
        timeout: timedelta | None = None,
        parent_id: str | None = None,
        traceparent: str | None = None,
        wait: bool = True,
    ) -> str:
        """Schedule one job; its id, once Kafka has acknowledged it.

        Args:
            job: an instance of a declared job type.
            priority: which of the four.
            delay: not before this much time has passed; up to ``max_delay_days`` (400).
            at: not before this time (with a time zone), instead of ``delay``.
            key: ordering key, up to 1,088 bytes of UTF-8; default: the job's own ``ordering_key()``.
            job_id: a UUID to use; to repeat a call whose outcome is unknown: the job runs once, within the limits that
                docs/guarantees.md names. Without an ordering key it is the id that says which partition the job goes to.
            max_retries: runs after the first; default: the job's type decides.
            timeout: limit of one run; default: the job's type decides.
            parent_id: the job that schedules this one.
            traceparent: W3C trace context to go on with.
            wait: False returns at once; ``flush()`` waits, and raises what went wrong.

        Raises:
            UnknownJobType, InvalidJob, PayloadTooLarge: refused, nothing was sent.
            JobTypeError: its class is declared in a way that cannot work.
            RegistryFailed: the schema registry refused, or did not answer; nothing was sent.
            KafkaUnreachable: no broker answered; nothing was sent.
            TopicsMismatch: the topics are not there, or not as they must be; nothing was sent.
            DeliveryFailed: not acknowledged in time; the message says whether it may have been written.
        """
        options = JobOptions(priority, delay, at, key, job_id, max_retries, timeout, parent_id, traceparent)
        now_ms = time.time_ns() // 1_000_000
        outgoing = compose(job, settle(options, now_ms, self.rules), now_ms, self.rules)
        self.outbox.prepare(declared_type(job).wire)
        if not wait:
            self._send_unwaited(outgoing)
            return outgoing.job_id
        finished = threading.Event()
        ticket = Ticket(finished.set)
        self._send(outgoing, ticket, self._sleep)
        ticket.seal(1)
        self.outbox.serve()
        finished.wait()
        if (failure := ticket.unacknowledged.error()) is not None:
            self.outbox.doubt(ticket)
            raise failure
        return outgoing.job_id

    def schedule_jobs(
        self,
        jobs: Iterable[Job | tuple[Job, JobPriority]],
        priority: JobPriority = JobPriority.NORMAL,
        delay: timedelta | None = None,
        *,
        at: datetime | None = None,
        key: str | None = None,
        max_retries: int | None = None,
        timeout: timedelta | None = None,
        parent_id: str | None = None,
        traceparent: str | None = None,
        stop: threading.Event | None = None,
        yielding: bool = False,
    ) -> list[str]:
        """Schedule many jobs; their ids in order, once Kafka has acknowledged all of them.

        ``jobs`` is read as fast as Kafka takes it. Items are jobs, or pairs of a job and its priority; the
        options hold for all. ``stop`` ends the reading early (the ids so far come back). ``yielding`` lets
        other threads run once a millisecond, for an event loop beside it, which costs a tenth of the speed.

        Raises:
            UnknownJobType, InvalidJob, PayloadTooLarge: a job was refused. Those before it have been scheduled: ``sent`` of
                the exception has their ids, in order. If some of them were not acknowledged, its cause is a ``DeliveryFailed``.
            KafkaUnreachable, TopicsMismatch: as ``schedule_job``; ``sent`` as above.
            DeliveryFailed: some were not acknowledged; it has their ids, and in ``sent`` those of all, in order.
        """
        options = JobOptions(priority, delay, at, key, None, max_retries, timeout, parent_id, traceparent)
        with self.outbox.bulk() as serve:
            bulk = _Bulk(self, options, serve, yielding=yielding)
            try:
                for item in jobs:
                    bulk.add(item)
                    if stop is not None and stop.is_set():
                        break
            except BaseException as error:
                bulk.finish()
                sent, failed = len(bulk.ids), len(bulk.ticket.unacknowledged)
                error.add_note(f"{sent:,} job(s) before it were sent, {failed:,} of them without success")
                if isinstance(error, PipelineError):
                    error.sent = tuple(bulk.ids)
                failure = bulk.failure()
                if failure is not None and error.__cause__ is None:
                    raise error from failure
                raise
            bulk.finish()
        if (failure := bulk.failure()) is not None:
            raise failure
        return bulk.ids

    def flush(self, timeout: timedelta | None = None) -> None:
        """Wait until everything scheduled with ``wait=False`` is acknowledged.

        Raises:
            DeliveryFailed: something was not acknowledged since the last ``flush()``, or the time is up.
            SettingsError: ``timeout`` is no ``timedelta``, or negative.
        """
        limit_s = None if timeout is None else seconds("timeout", timeout, least=timedelta(0))
        with self._settled:
            in_time = self._settled.wait_for(lambda: not self._unwaited, limit_s)
            unacknowledged, self._unacknowledged = self._unacknowledged, Unacknowledged()
            left = len(self._unwaited)
        if (failure := unacknowledged.error()) is not None:
            raise failure
        if not in_time:
            raise DeliveryFailed(f"{left:,} job(s) are not acknowledged yet; flush() again")

    def close(self) -> None:
        """Wait for acknowledgements, then let the connection go.

        Raises:
            DeliveryFailed: as ``flush()``.
        """
        self.outbox.close(self._delivery_timeout_s)
        self.flush(timedelta(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, outgoing: OutgoingJob, ticket: Ticket, serve: Callable[[float], None]) -> None:
        """Hand over; a full queue is back-pressure, which ends when Kafka takes records again.

        Raises:
            DeliveryFailed: the queue stayed full for as long as a delivery may take.
        """
        if self.outbox.send(outgoing, ticket):
            return
        give_up_at = time.monotonic() + self._delivery_timeout_s
        while not self.outbox.send(outgoing, ticket):
            if time.monotonic() > give_up_at:
                raise stayed_full(self._delivery_timeout_s)
            serve(_FULL_WAIT_S)

    def _sleep(self, seconds: float) -> None:
        self.outbox.serve()
        time.sleep(seconds)

    def _send_unwaited(self, outgoing: OutgoingJob) -> None:
        unwaited = _Unwaited(self)
        with self._settled:
            self._unwaited.add(unwaited)
        try:
            self._send(outgoing, unwaited.ticket, self._sleep)
        except BaseException:
            with self._settled:
                self._unwaited.discard(unwaited)
                if not self._unwaited:
                    self._settled.notify_all()  # whoever flushes would wait for the next job's report
            raise
        unwaited.ticket.seal(1)
        self.outbox.serve()

    def _forget(self, unwaited: _Unwaited) -> None:
        with self._settled:
            if unwaited not in self._unwaited:
                return
            self._unwaited.remove(unwaited)
            if unwaited.ticket.unacknowledged:
                self.outbox.doubt(unwaited.ticket)
                self._unacknowledged.take_over(unwaited.ticket.unacknowledged)
            if not self._unwaited:
                self._settled.notify_all()


class _Unwaited:
    """A job that nobody waits for until ``flush()``."""

    __slots__ = ("_producer", "ticket")

    def __init__(self, producer: JobProducer) -> None:
        self._producer = producer
        self.ticket = Ticket(self._done)

    def _done(self) -> None:
        self._producer._forget(self)


class _Bulk:
    """One call of ``schedule_jobs``: what is the same for all its jobs, made once."""

    def __init__(
        self,
        producer: JobProducer,
        options: JobOptions,
        serve: Callable[[float], None],
        *,
        yielding: bool,
    ) -> None:
        self._producer = producer
        self._serve = serve
        self._yielding = yielding
        self._outbox = producer.outbox
        self._rules = producer.rules
        self._options = options
        self._settled: dict[JobPriority, Settled] = {}
        self._prepared: set[type] = set()
        self._now_ms = 0
        self._yield_at = 0.0
        self._run = 1
        self._turn: int | None = None
        self.ticket = Ticket(lambda: None)
        self.ids: list[str] = []

    def add(self, item: Job | tuple[Job, JobPriority]) -> None:
        job, priority = _pair(item) if isinstance(item, tuple) else (item, self._options.priority)
        now_ms = time.time_ns() // 1_000_000
        if now_ms != self._now_ms:
            # The source may be slow. What remains until a given time, and so the topic, is then another for each job.
            self._now_ms = now_ms
            if self._options.at is not None:
                self._settled.clear()
        if len(self.ids) % _CHUNK == 0:
            self._serve(0)
            self._prepared.clear()
            # A few jobs are spread evenly; many are sent in runs, which make fuller batches.
            self._run = _RUN if len(self.ids) >= _MANY else 1
        if self._yielding and time.perf_counter() >= self._yield_at:
            # Giving the interpreter up for a moment is not enough: this thread would have it back first.
            time.sleep(_YIELD_S)
            self._yield_at = time.perf_counter() + _YIELD_EVERY_S
        settled = self._settled.get(priority)
        if settled is None:
            settled = self._settle(priority)
        if self._run > 1 and not len(self.ids) % self._run:
            self._turn = next_turn()
        outgoing = compose(job, settled, self._now_ms, self._rules, turn=self._turn)
        if type(job) not in self._prepared:
            self._outbox.prepare(declared_type(job).wire, under_way=bool(self.ids))
            self._prepared.add(type(job))
        if not self._outbox.send(outgoing, self.ticket):
            self._producer._send(outgoing, self.ticket, self._serve)
        self.ids.append(outgoing.job_id)

    def finish(self) -> None:
        """Wait for the acknowledgements of all that was sent."""
        self.ticket.seal(len(self.ids))
        while not self.ticket.finished and self._outbox.in_flight:
            self._serve(_POLL_S)
        self.ticket.no_more()

    def failure(self) -> DeliveryFailed | None:
        """For those of its jobs that were not acknowledged."""
        failure = self.ticket.unacknowledged.error()
        if failure is not None:
            failure.sent = tuple(self.ids)
            self._outbox.doubt(self.ticket)
        return failure

    def _settle(self, priority: JobPriority) -> Settled:
        settled = settle(replace(self._options, priority=priority), self._now_ms, self._rules)
        self._settled[priority] = settled
        return settled


def _pair(item: tuple[Any, ...]) -> tuple[Job, JobPriority]:
    match item:
        case (job, JobPriority() as priority):
            return job, priority
    raise InvalidJob(f"{item!r:.80} is no job, nor a pair of a job and a JobPriority")


def default_source() -> str:
    """Host name and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
