"""From a message's bytes to a job object, its handler and the rules that apply to it.

In:  a message. Out: a ``Decoded``, or a ``WireError`` that says why not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

from schemas.backoff import DEFAULT_BACKOFF
from schemas.codec import Codec, split
from schemas.errors import BadRecord
from schemas.jobtype import ENVELOPE_NAMES
from schemas.topics import JobPriority
from schemas.wire import Record
from workers.message import Message
from workers.router import Rules

if TYPE_CHECKING:
    from workers.config import WorkerConfig
    from workers.worker import Handler, Handlers


class Decoded:
    """A job event, read."""

    __slots__ = ("handler", "job", "job_type", "record", "rules", "timeout_ms")

    def __init__(
        self, record: Record, job_type: str, job: Any, handler: Handler | None, rules: Rules, timeout_ms: int
    ) -> None:
        self.record = record
        self.job_type = job_type
        self.job = job
        self.handler = handler
        self.rules = rules
        self.timeout_ms = timeout_ms

    @property
    def priority(self) -> JobPriority:
        """The one that the job was scheduled with."""
        return JobPriority(self.record["priority"])


class Decoder:
    """Decodes with the schema that wrote the bytes, seen through the handler's own."""

    def __init__(
        self, codec: Codec, handlers: Handlers, config: WorkerConfig, learn: Callable[[], None] | None = None
    ) -> None:
        self._codec = codec
        self._handlers = handlers
        self._learn = learn
        self._learning: asyncio.Task[None] | None = None
        ms = timedelta(milliseconds=1)
        self._default = Rules(config.retry_limit, DEFAULT_BACKOFF, round(config.snooze_limit / ms))
        self._default_timeout_ms = round(config.job_timeout / ms)
        #: What never changes for a type: made once, not per job.
        self._rules = {
            handler.job_type.name: Rules(
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
        self._own = {codec.prefix(handler.job_type.wire): handler for handler in handlers}

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
            if job_type != handler.job_type.name:  # two types with the same fields
                handler = self._handlers.get(job_type)
        else:
            writer = self._codec.store.get(key)
            record = writer.decode(body)
            if any(name not in record for name in ENVELOPE_NAMES[:5]):
                raise BadRecord(f"a {writer.full_name} is not a job event")
            job_type = record["type"]
            handler = self._handlers.get(job_type)
            if handler is not None:
                body.seek(start)
                record = writer.decode(body, as_schema=handler.job_type.wire)
        if handler is None:
            return Decoded(
                record, job_type, None, None, self._rules_of(job_type, record), self._default_timeout_ms
            )
        job = handler.job_type.from_record(record)
        return Decoded(
            record, job_type, job, handler, self._rules_of(job_type, record), self._timeouts[job_type]
        )

    async def learn_and_decode(self, message: Message) -> Decoded:
        """Read the ``schemas`` topic to an end taken now, then decode.

        Raises:
            WireError: still unknown, or the bytes cannot be understood.
        """
        if self._learn is not None:
            # Somebody's reading that began earlier may have missed the schema; one that begins now cannot.
            if self._learning is not None:
                await asyncio.wait((self._learning,))
            if self._learning is None or self._learning.done():
                self._learning = asyncio.create_task(asyncio.to_thread(self._learn), name="learn schemas")
            await asyncio.wait((self._learning,))
            if (error := self._learning.exception()) is not None:
                raise error
        return self.decode(message)

    def _rules_of(self, job_type: str, record: Record) -> Rules:
        rules = self._rules.get(job_type, self._default)
        limit = record.get("max_retries")
        if limit is None or limit == rules.max_retries:
            return rules
        return Rules(max(limit, 0), rules.backoff, rules.snooze_limit_ms)
