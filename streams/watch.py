"""Follow ``jobs.status`` from asyncio code while somebody waits for a job.

In:  state changes as they are committed. Out: each handed to those who wait for that job.

The reading starts with the first one who waits and ends a little after the last one has gone: idle costs
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, RequestTimedOutError
from confluent_kafka import IsolationLevel, Message
from confluent_kafka.admin import AdminClient

from schemas.codec import Codec
from schemas.errors import KafkaUnreachable, QueueClosed, UnknownSchema, WireError
from schemas.records import StatusChange, decode_status
from schemas.topics import Partition
from streams.clients import admin_config, aiokafka_config
from streams.jobinfo import RecordPlace, StatusSeen
from streams.scan import LATEST, informed_admin, offsets, partitions_of, scan_on
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.watch")

Listener = Callable[[StatusSeen | Exception], None]

_ANSWER_S = 10.0


class StatusWatch:
    """Hands state changes to listeners. Belongs to one event loop.

    Args:
        settings: where Kafka is.
        codec: reads statuses whose schema is known.
        look_up: reads a status whose schema is not known yet, and may block for that; called in a thread.
        linger_s: seconds that the reading goes on after the last listener has gone.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        look_up: Callable[[bytes], StatusChange],
        *,
        linger_s: float = 5.0,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._look_up = look_up
        self._linger_s = linger_s
        self._listeners: dict[str, list[Listener]] = {}
        self._task: asyncio.Task[None] | None = None
        #: Readings that have failed, and still let go of their connections.
        self._ending: set[asyncio.Task[None]] = set()
        self._started: asyncio.Future[None] | None = None
        self._stop_later: asyncio.TimerHandle | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def listening(self, job_id: str, listener: Listener) -> AsyncIterator[None]:
        """Call ``listener`` with every change of ``job_id`` committed from now on, until the block ends.

        If the reading fails, each listener gets the error, once.

        Raises:
            KafkaUnreachable: no broker answered.
            TopicsMismatch: the topic does not exist.
            QueueClosed: it is closed.
        """
        self._listeners.setdefault(job_id, []).append(listener)
        try:
            await self._ensure_running()
            yield
        finally:
            listeners = self._listeners[job_id]
            listeners.remove(listener)
            if not listeners:
                del self._listeners[job_id]
            if not self._listeners and self._task is not None:
                loop = asyncio.get_running_loop()
                self._stop_later = loop.call_later(self._linger_s, self._task.cancel)

    async def close(self) -> None:
        """Stop reading; who still waits is told."""
        self._closed = True
        if self._stop_later is not None:
            self._stop_later.cancel()
        task = self._task
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # Else the event loop may close under them.
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._started is not None and not self._started.done():
            self._started.set_exception(QueueClosed())
            self._started.exception()  # perhaps nobody waits
        self._tell(QueueClosed())

    async def _ensure_running(self) -> None:
        if self._closed:
            raise QueueClosed
        if self._stop_later is not None:
            self._stop_later.cancel()
            self._stop_later = None
        if self._task is None or self._task.done() or self._task.cancelling():
            self._started = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._started), name="rustfs-workers-status-watch")
        assert self._started is not None  # noqa: S101 - made with the task
        await asyncio.shield(self._started)

    async def _run(self, started: asyncio.Future[None]) -> None:
        consumer = None
        try:
            starts = await asyncio.to_thread(self._stable_ends)
            consumer = AIOKafkaConsumer(
                **aiokafka_config(self._settings),
                enable_auto_commit=False,
                isolation_level="read_committed",
                fetch_max_wait_ms=500,
                auto_offset_reset="earliest",
            )
            await consumer.start()
            consumer.assign([TopicPartition(topic, number) for topic, number in starts])
            for (topic, number), offset in starts.items():
                consumer.seek(TopicPartition(topic, number), offset)
            if not started.done():
                started.set_result(None)
            reached = dict(starts)
            while True:
                try:
                    batches = await consumer.getmany(timeout_ms=60_000)
                except UnicodeDecodeError:
                    # It makes text of the names of headers, and stands for ever before one that is none.
                    reached = await self._read_past(reached)
                    for (topic, number), offset in reached.items():
                        consumer.seek(TopicPartition(topic, number), offset)
                    continue
                for batch in batches.values():
                    for record in batch:
                        await self._hand_out(
                            record.key, record.value, (record.topic, record.partition, record.offset)
                        )
                        reached[record.topic, record.partition] = record.offset + 1
        except Exception as error:  # noqa: BLE001 - handed to all who wait
            # Whoever tries again at once, while this one comes to its end, gets another.
            task = asyncio.current_task()
            if task is not None and self._task is task:
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
                self._task = None
            self._fail(started, error)
        finally:
            if not started.done() and not self._closed:
                started.cancel()
            if consumer is not None:
                await consumer.stop()

    def _fail(self, started: asyncio.Future[None], error: Exception) -> None:
        if isinstance(error, KafkaConnectionError | KafkaTimeoutError | RequestTimedOutError):
            unreachable = KafkaUnreachable(self._settings.bootstrap_servers(), _ANSWER_S)
            unreachable.__cause__ = error
            error = unreachable
        if not started.done():
            started.set_exception(error)
            return
        log.warning("status watch failed", error=f"{type(error).__name__}: {error}")
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener(error)

    def _stable_ends(self) -> dict[tuple[str, int], int]:
        """Where the first open transaction begins: a scan made after this sees all that lies before."""
        admin = AdminClient(admin_config(self._settings))
        partitions = partitions_of(self._settings, admin, [self._settings.topics.status], _ANSWER_S)
        return offsets(
            self._settings,
            admin,
            partitions,
            LATEST,
            timeout_s=_ANSWER_S,
            isolation=IsolationLevel.READ_COMMITTED,
        )

    async def _read_past(self, starts: Mapping[Partition, int]) -> dict[Partition, int]:
        """Hand out what stands from these offsets on, read with the other library; where to go on."""
        messages: list[Message] = []

        def read() -> dict[Partition, int]:
            admin = informed_admin(self._settings, _ANSWER_S)
            return scan_on(self._settings, admin, starts, messages.append, timeout_s=_ANSWER_S)

        reached = await asyncio.to_thread(read)
        log.info("a status with a header whose name is no text was read past")
        for message in messages:
            topic, number, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and number is not None and offset is not None  # noqa: S101, PT018 - it was consumed
            await self._hand_out(message.key(), message.value(), (topic, number, offset))
        return reached

    async def _hand_out(self, key: bytes | None, value: bytes | None, place: RecordPlace) -> None:
        if value is None or key is None:
            return
        listeners = self._listeners.get(key.decode("utf-8", "replace"))
        if not listeners:
            return
        try:
            try:
                change = decode_status(self._codec, value)
            except UnknownSchema:
                # The worker that wrote it has another release, or a registry gave it a number that is new here.
                change = await asyncio.to_thread(self._look_up, value)
        except WireError as error:
            log.warning("status not readable", job_id=repr(key)[:60], error=str(error))
            return
        seen = StatusSeen(change, place)
        for listener in list(listeners):
            listener(seen)
