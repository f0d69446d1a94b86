"""From a message's bytes to a job object, its handler and the limits that apply to it.

In:  a message. Out: a ``Decoded``, or a ``WireError`` that says why not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from schemas.backoff import DEFAULT_BACKOFF
from schemas.codec import SINGLE_OBJECT, Codec, split
from schemas.envelope import check_envelope
from schemas.headers import LATEST_MS
from schemas.topics import JobPriority
from schemas.wire import Record
from streams.outgoing import MAX_RETRIES
from streams.registry import CONFLUENT_KEY_LENGTH
from workers.blocking import in_thread
from workers.committing.router import Limits
from workers.message import Message

if TYPE_CHECKING:
    from workers.config import WorkerConfig
    from workers.offsets import PartitionState
    from workers.worker import Handler, Handlers


class Decoded:
    """A job event, read."""

    __slots__ = ("handler", "job", "job_type", "limits", "record", "timeout_ms")

    def __init__(
        self,
        record: Record,
        job_type: str,
        job: Any,
        handler: Handler | None,
        limits: Limits,
        timeout_ms: int,
    ) -> None:
        self.record = record
        self.job_type = job_type
        self.job = job
        self.handler = handler
        self.limits = limits
        self.timeout_ms = timeout_ms

    @property
    def priority(self) -> JobPriority:
        """The one that the job was scheduled with."""
        return JobPriority(self.record["priority"])


#: Unknown schemas that are looked for at a time: where Kafka does not answer, all of them must not take all threads of the worker.
_LOOKS: Final = 4


class Decoder:
    """Decodes with the schema that wrote the bytes, seen through the handler's own."""

    def __init__(
        self,
        codec: Codec,
        handlers: Handlers,
        config: WorkerConfig,
        learn: Callable[[bytes], object] | None = None,
    ) -> None:
        self._codec = codec
        self._handlers = handlers
        self._learn = learn
        self._learning: dict[bytes, asyncio.Task[object]] = {}
        self._looks = asyncio.Semaphore(_LOOKS)
        #: Up to these offsets records were here before `schemas` was last read to its end: what was unknown then is nobody's.
        self._settled: dict[PartitionState, int] = {}
        ms = timedelta(milliseconds=1)
        self._default = Limits(config.retry_limit, DEFAULT_BACKOFF, round(config.snooze_limit / ms))
        self._default_timeout_ms = round(config.job_timeout / ms)
        #: What never changes for a type: made once, not per job.
        self._limits = {
            handler.job_type.name: Limits(
                config.retry_limit if handler.max_retries is None else handler.max_retries,
                handler.backoff,
                self._default.snooze_limit_ms,
            )
            for handler in handlers
        }
        self._timeouts = {
            handler.job_type.name: self._default_timeout_ms
            if handler.timeout is None
            else round(handler.timeout / ms)
            for handler in handlers
        }
        # Both frames: jobs from before a registry was set, or after it was given up, need no asking.
        self._own = {
            prefix: handler
            for handler in handlers
            for prefix in (
                codec.prefix(handler.job_type.wire),
                SINGLE_OBJECT + handler.job_type.wire.fingerprint,
            )
        }

    def is_one_of(self, types: Collection[str]) -> Callable[[Message], bool]:
        """Whether a message's job is of one of these types, as far as its frame can tell: with another writer's schema it cannot."""
        prefixes = tuple(prefix for prefix, handler in self._own.items() if handler.job_type.name in types)
        return lambda message: message.value is not None and message.value.startswith(prefixes)

    def decode(self, message: Message) -> Decoded:
        """Decode with what is known now.

        Raises:
            UnknownSchema: the schema is not known yet; ``learn_and_decode`` may find it.
            WireError: the bytes cannot be understood.
        """
        if message.problem is not None:
            raise message.problem
        value = message.value
        assert value is not None  # noqa: S101 - a message without a value has a problem
        key, start = split(value)
        body = BytesIO(value)
        body.seek(start)
        handler = self._own.get(value[:start])
        if handler is not None:
            record = handler.job_type.wire.decode(body)
            job_type = record["type"]
            other = job_type != handler.job_type.name  # two types with the same fields
            if other or record["timeout_ms"] is not None or not 0 <= record["created_at"] <= LATEST_MS:
                check_envelope(record, handler.job_type.wire.full_name, message.job_id)
            if other:
                handler = self._handlers.get(job_type)
        else:
            writer = self._codec.store.get(key)
            record = writer.decode(body)
            check_envelope(record, writer.full_name, message.job_id)
            job_type = record["type"]
            handler = self._handlers.get(job_type)
            if handler is not None:
                body.seek(start)
                record = writer.decode(body, as_schema=handler.job_type.wire)
        if handler is None:
            return Decoded(
                record, job_type, None, None, self._limits_of(job_type, record), self._default_timeout_ms
            )
        job = handler.job_type.from_record(record)
        return Decoded(
            record, job_type, job, handler, self._limits_of(job_type, record), self._timeouts[job_type]
        )

    async def learn_and_decode(self, message: Message) -> Decoded:
        """Look for the schema where it is written down, with an end taken now; then decode.

        Raises:
            WireError: still unknown, or the bytes cannot be understood.
            PipelineError: Kafka or the registry did not answer, so nobody knows.
        """
        key, _ = split(message.value)
        has_number = len(key) == CONFLUENT_KEY_LENGTH
        if self._learn is not None and (has_number or message.offset >= self._settled.get(message.part, 0)):
            await self._look_for(key, message.part, self._learn)
        return self.decode(message)

    async def _look_for(self, key: bytes, part: PartitionState, learn: Callable[[bytes], object]) -> None:
        """One look at a time for each key, however many messages wait for it."""
        # Somebody's look that began earlier may have missed the schema; one that begins now cannot.
        earlier = self._learning.get(key)
        if earlier is not None:
            await asyncio.wait((earlier,))
        looking = self._learning.get(key)
        if looking is None or looking.done():
            looking = asyncio.create_task(self._learn_one(key, part, learn), name="learn schema")
            self._learning[key] = looking
            looking.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait((looking,))
        if (error := looking.exception()) is not None:
            raise error

    async def _learn_one(self, key: bytes, part: PartitionState, learn: Callable[[bytes], object]) -> object:
        # A look takes as long as Kafka takes to answer. One that finds nothing answers for all that were here before it:
        # a producer that never publishes its schema, or thousands that make one up, would cost a look for every few jobs.
        async with self._looks:
            here = {known: known.top for known in (*self._settled, part) if known.owned}
            found = await in_thread(learn, key)
        if found is False and len(key) != CONFLUENT_KEY_LENGTH:
            newer = {known: max(top, self._settled.get(known, 0)) for known, top in here.items()}
            self._settled = {**self._settled, **newer}
            for known in [known for known in self._settled if not known.owned]:
                del self._settled[known]
        return found

    def _forget(self, key: bytes, looking: asyncio.Task[object]) -> None:
        # Keys come from messages: those that are done with must not pile up.
        if self._learning.get(key) is looking:
            del self._learning[key]
        if not looking.cancelled():
            looking.exception()  # whoever waits has it; after a drain nobody does

    def _limits_of(self, job_type: str, record: Record) -> Limits:
        limits = self._limits.get(job_type, self._default)
        limit = record.get("max_retries")
        if limit is None or limit == limits.max_retries:
            return limits
        return Limits(min(max(limit, 0), MAX_RETRIES), limits.backoff, limits.snooze_limit_ms)
