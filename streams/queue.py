"""Schedule and look at jobs from asyncio code.

In:  job objects. Out: ids, once Kafka has acknowledged them; and where each job stands.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final
from uuid import UUID

from schemas.durations import seconds
from schemas.errors import DeliveryFailed, PipelineError
from schemas.job import Job
from schemas.topics import JobPriority
from streams.jobinfo import JobInfo, StatusSeen, status_now
from streams.outgoing import JobOptions, compose, declared_type, is_prepared, prepare, settle
from streams.producer import JobProducer
from streams.reader import JobFilter, JobListing, JobReader, JobStatistics
from streams.settings import Settings, load_settings
from streams.tickets import Ticket, stayed_full
from streams.watch import StatusWatch

_FULL_WAIT_S: Final = 0.005


class WrongEventLoop(PipelineError):
    """A queue is used in another event loop than its own."""

    def __init__(self) -> None:
        super().__init__(
            "this JobQueue belongs to the event loop that it was connected in, and this is another one, so nothing was "
            "done; connect a queue in each event loop, or use a JobProducer, which any thread may call"
        )


class JobQueue:
    """The queue, as asyncio code sees it. Belongs to the event loop that it was connected in.

    In another one each call raises ``WrongEventLoop``, before anything is sent; only ``close`` may be called there, once its own
    loop has ended.

    .. code-block:: python

        async with JobQueue.connect() as queue:
            job_id = await queue.schedule_job(ThumbnailJob(source_path="bucket/a.jpg"), JobPriority.HIGH)
            info = await queue.wait(job_id, timedelta(minutes=1))

    ``queue = await JobQueue.connect()`` works too; then ``await queue.close()`` in the end.
    """

    def __init__(self, producer: JobProducer, delivery_timeout: timedelta) -> None:
        self._producer = producer
        self._outbox = producer.outbox
        self._delivery_timeout_s = delivery_timeout.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._reports = _Reports(self._loop)
        self._reader = JobReader(producer.settings, producer.codec)
        self._watch = StatusWatch(producer.settings, producer.codec, self._reader.read_status)
        self._preparing: dict[Hashable, asyncio.Task[object]] = {}

    @classmethod
    def connect(
        cls,
        settings: Settings | None = None,
        *,
        source: str | None = None,
        unreachable_after: timedelta = timedelta(seconds=10),
        delivery_timeout: timedelta = timedelta(seconds=30),
    ) -> Connecting:
        """Connect; ``async with`` or ``await`` the result. The arguments are those of ``JobProducer``.

        Raises (when entered or awaited):
            SettingsError: a setting is wrong.
            KafkaUnreachable: no broker answered in time.
            TopicsMismatch: the topics are not there, or not as they must be.
        """
        return Connecting(cls, settings, source, unreachable_after, delivery_timeout)

    @property
    def settings(self) -> Settings:
        """What it was connected with."""
        return self._producer.settings

    async def schedule_job(
        self,
        job: Job,
        priority: JobPriority = JobPriority.NORMAL,
        delay: timedelta | None = None,
        *,
        at: datetime | None = None,
        key: str | None = None,
        job_id: str | None = None,
        max_retries: int | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - of the job's runs
        parent_id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Schedule one job; its id, once Kafka has acknowledged it.

        The arguments are those of ``JobProducer.schedule_job``. If the call is cancelled, the job may be
        scheduled all the same.

        Raises:
            UnknownJobType, InvalidJob, PayloadTooLarge: refused, nothing was sent.
            JobTypeError: its class is declared in a way that cannot work.
            RegistryFailed: the schema registry refused, or did not answer; nothing was sent.
            KafkaUnreachable: no broker answered; nothing was sent.
            TopicsMismatch: the topics are not there, or not as they must be; nothing was sent.
            DeliveryFailed: not acknowledged in time; the message says whether it may have been written.
        """
        self._check_loop()
        options = JobOptions(priority, delay, at, key, job_id, max_retries, timeout, parent_id, traceparent)
        rules = self._producer.rules
        now_ms = time.time_ns() // 1_000_000
        settled = settle(options, now_ms, rules)
        if not is_prepared(job, rules):
            await self._once(repr(type(job)), lambda: prepare(job, rules))
        outgoing = compose(job, settled, now_ms, rules)
        schema = declared_type(job).wire
        if not self._outbox.ready_for(schema):
            await self._once(schema, lambda: self._outbox.prepare(schema))
        future: asyncio.Future[None] = self._loop.create_future()
        ticket = Ticket(lambda: self._reports.put(future, ticket))
        if not self._outbox.send(outgoing, ticket):
            give_up_at = time.monotonic() + self._delivery_timeout_s
            self._outbox.serve()
            while not self._outbox.send(outgoing, ticket):
                if time.monotonic() > give_up_at:
                    raise stayed_full(self._delivery_timeout_s)
                await asyncio.sleep(_FULL_WAIT_S)
        ticket.seal(1)
        self._outbox.serve()
        try:
            await future
        except DeliveryFailed:
            self._outbox.doubt(ticket)
            raise
        return outgoing.job_id

    async def schedule_jobs(
        self,
        jobs: Iterable[Job | tuple[Job, JobPriority]],
        priority: JobPriority = JobPriority.NORMAL,
        delay: timedelta | None = None,
        *,
        at: datetime | None = None,
        key: str | None = None,
        max_retries: int | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - of the job's runs
        parent_id: str | None = None,
        traceparent: str | None = None,
    ) -> list[str]:
        """Schedule many jobs; the arguments are those of ``JobProducer.schedule_jobs``.

        ``jobs`` is iterated in a thread. If the call is cancelled, the jobs read so far are scheduled.

        Raises:
            As ``JobProducer.schedule_jobs``.
        """
        self._check_loop()
        stop = threading.Event()
        try:
            return await asyncio.to_thread(
                self._producer.schedule_jobs,
                jobs,
                priority,
                delay,
                at=at,
                key=key,
                max_retries=max_retries,
                timeout=timeout,
                parent_id=parent_id,
                traceparent=traceparent,
                stop=stop,
                yielding=True,
            )
        finally:
            stop.set()

    async def list_jobs(self, which: JobFilter | None = None) -> JobListing:
        """Jobs, newest first; ``stale`` says that the answer may miss what is newest.

        Raises:
            KafkaUnreachable: no broker answered in time.
            TopicsMismatch: a topic does not exist.
        """
        self._check_loop()
        return await asyncio.to_thread(self._reader.list_jobs, which)

    async def get_job(self, job_id: str | UUID) -> JobInfo:
        """One job; ``stale`` says that it may have moved on.

        Raises:
            JobNotFound: there is nothing of it.
            ReadIncomplete: nothing of it was found, but there is more than could be read.
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
        """
        self._check_loop()
        return await asyncio.to_thread(self._reader.get_job, str(job_id))

    async def get_statistics(self) -> JobStatistics:
        """Counts of all jobs, by state, type and priority.

        Raises:
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
        """
        self._check_loop()
        return await asyncio.to_thread(self._reader.statistics)

    async def wait(self, job_id: str | UUID, timeout: timedelta | None = None) -> JobInfo:  # noqa: ASYNC109 - public name
        """The job, once it is in a final state. A redriven job is waited for again.

        The topics are read once, however short ``timeout`` is: a job that is final by then is returned.

        Raises:
            TimeoutError: the job was not final in time; it goes on all the same.
            JobNotFound: there is nothing of it.
            ReadIncomplete: the topics could not be read to their end in time.
            QueueClosed: the queue was closed meanwhile.
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
            SettingsError: ``timeout`` is no ``timedelta``, or negative.
        """
        self._check_loop()
        limit_s = None if timeout is None else seconds("timeout", timeout, least=timedelta(0))
        job_id = str(job_id)
        give_up_at = None if limit_s is None else self._loop.time() + limit_s
        async with asyncio.timeout(None) as limit:
            changes: asyncio.Queue[StatusSeen | Exception] = asyncio.Queue()
            async with self._watch.listening(job_id, changes.put_nowait):
                # Listening began first: nothing can happen between this reading and what is heard.
                state = await asyncio.to_thread(self._reader.state_of, job_id)
                while state.gone or not status_now(state).final:
                    if state.gone:
                        self._reader.info(job_id, state)
                    # Only waiting has an end: what has been read, or heard, is final whatever the time is.
                    limit.reschedule(give_up_at)
                    change = await changes.get()
                    limit.reschedule(None)
                    if isinstance(change, Exception):
                        raise change
                    state.see(change)
                return await asyncio.to_thread(self._reader.info, job_id, state)

    async def retry_job(self, job_id: str | UUID) -> None:
        """Start a new life of a finished job: the same id and bytes, ``redrives`` one higher.

        Raises:
            JobNotFound: its record is gone.
            IllegalTransition: it is not finished.
            ReadIncomplete: the topics could not be read to their end in time; nothing has changed.
            RedriveTakenOver: a redrive began meanwhile; nothing has changed.
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
            DeliveryFailed: Kafka did not take it, or its answer was lost: if ``perhaps_written`` names the job, it may be pending
                now, and ``get_job`` tells; else nothing has changed.
        """
        from streams.redrive import retry_job

        self._check_loop()
        await asyncio.to_thread(retry_job, self.settings, str(job_id), codec=self._producer.codec)

    async def close(self) -> None:
        """Wait for what is in flight, then let the connections go. Who is in ``wait()`` gets ``QueueClosed``.

        Once its event loop has ended, any other one may close it.

        Raises:
            DeliveryFailed: something was not acknowledged.
        """
        if not self._loop.is_closed():  # the watch's task has ended with it
            self._check_loop()
            await self._watch.close()
        await asyncio.to_thread(self._reader.close)
        await asyncio.to_thread(self._producer.close)

    def _check_loop(self) -> None:
        # What is handed over here is reported there: the caller would hear of an error, and the job be scheduled.
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoop

    async def _once(self, what: Hashable, call: Callable[[], object]) -> None:
        """One attempt for all who wait: a thread for each would leave the loop none for anything else."""
        task = self._preparing.get(what)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(call))
            self._preparing[what] = task

            def done(task: asyncio.Task[object]) -> None:
                del self._preparing[what]
                if not task.cancelled():
                    task.exception()  # who waited has it; if all of them were cancelled, nobody asks

            task.add_done_callback(done)
        await asyncio.shield(task)


class Connecting:
    """A queue that is about to be connected: ``async with`` it, or ``await`` it."""

    def __init__(
        self,
        cls: type[JobQueue],
        settings: Settings | None,
        source: str | None,
        unreachable_after: timedelta,
        delivery_timeout: timedelta,
    ) -> None:
        self._cls = cls
        self._settings = settings
        self._source = source
        self._unreachable_after = unreachable_after
        self._delivery_timeout = delivery_timeout
        self._queue: JobQueue | None = None
        self._made: JobProducer | None = None
        self._given_up = False

    def __await__(self) -> Generator[object, None, JobQueue]:
        return self._connect().__await__()

    async def __aenter__(self) -> JobQueue:
        self._queue = await self._connect()
        return self._queue

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._queue is not None  # noqa: S101 - set on entry
        await self._queue.close()

    async def _connect(self) -> JobQueue:
        try:
            producer = await asyncio.to_thread(self._make)
        except asyncio.CancelledError:
            # The thread goes on; it closes what it makes unless it has just looked.
            self._given_up = True
            if self._made is not None:
                self._made.close()
            raise
        return self._cls(producer, self._delivery_timeout)

    def _make(self) -> JobProducer:
        producer = JobProducer(
            self._settings or load_settings(),
            source=self._source,
            unreachable_after=self._unreachable_after,
            delivery_timeout=self._delivery_timeout,
        )
        try:
            producer.outbox.prepare()
        except BaseException:
            producer.close()
            raise
        self._made = producer
        if self._given_up:
            producer.close()
        return producer


class _Reports:
    """Brings news from the serving thread to the event loop: many at a time, with one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: deque[tuple[asyncio.Future[None], Ticket]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[None], ticket: Ticket) -> None:
        """Called in the serving thread (or, at the latest, by ``seal`` in the loop's own)."""
        self._news.append((future, ticket))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._hand_out)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                self._news.clear()

    def _hand_out(self) -> None:
        # Before looking: news that comes in now wakes the loop again.
        self._woken = False
        while self._news:
            future, ticket = self._news.popleft()
            if future.done():
                continue
            failure = ticket.unacknowledged.error()
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
