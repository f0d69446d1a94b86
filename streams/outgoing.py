"""Decide what a new job looks like on Kafka. Sends nothing; a type's first job may wait for the schema registry.

In:  a job object, how it is to be scheduled, the time. Out: one record (topic, key, value, headers), or a
``JobRefused`` that says what is wrong, before anything is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from zlib import crc32

from schemas import headers
from schemas.codec import Codec
from schemas.errors import InvalidJob, PayloadTooLarge, UnknownJobType
from schemas.ids import new_job_id
from schemas.job import Job, declared_job_types, job_class
from schemas.jobtype import JobType, job_type
from schemas.topics import JobPriority, Topics, tier_for
from streams.settings import Settings

#: An object by its full name: a bucket of 63 bytes, a slash, a key of 1,024.
MAX_KEY_BYTES: Final = 1088
MAX_RETRIES: Final = 1_000_000
_MILLISECOND: Final = timedelta(milliseconds=1)
_DAY_MS: Final = 86_400_000
_LONGEST_RUN_MS: Final = 365 * _DAY_MS

_JOB_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?")


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is to be scheduled."""

    priority: JobPriority = JobPriority.NORMAL
    #: Not before this much time has passed.
    delay: timedelta | None = None
    #: Not before this time (with a time zone); one that has passed means "now".
    at: datetime | None = None
    #: Ordering key; None asks the job's own ``ordering_key()``.
    key: str | None = None
    #: A UUID to use instead of a new one.
    job_id: str | None = None
    #: Runs after the first; None leaves it to the job's type and the worker.
    max_retries: int | None = None
    #: Limit of one run; None leaves it to the job's type and the worker.
    timeout: timedelta | None = None
    #: The job that schedules this one.
    parent_id: str | None = None
    #: W3C trace context to go on with.
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What planning needs to know about the deployment."""

    codec: Codec
    topics: Topics
    #: Who produces, for people.
    source: str = ""
    max_payload_bytes: int = 262_144
    max_delay_days: int = 400

    @classmethod
    def of(cls, settings: Settings, codec: Codec, source: str) -> Rules:
        """The rules that the settings make."""
        return cls(codec, settings.topics, source, settings.max_payload_bytes, settings.max_delay_days)


class OutgoingJob(NamedTuple):
    """One record to produce."""

    job_id: str
    topic: str
    #: The ordering key, else the job id.
    key: bytes
    value: bytes
    headers: headers.RawHeaders
    timestamp_ms: int
    #: It has an ordering key, which says where it goes; else its id does (``schemas.partitions``).
    ordered: bool


class Settled(NamedTuple):
    """Options that have been checked, in the units of the wire."""

    topic: str
    priority: str
    delay_ms: int
    #: The time itself, where that was asked for: what is past by our clock may not be by the broker's.
    at_ms: int | None
    #: The delay counts by the broker's clock, from when the record is written: ours may be wrong.
    by_broker: bool
    key: str | None
    job_id: str | None
    max_retries: int | None
    timeout_ms: int | None
    parent_id: str | None
    traceparent: str | None


def plan(
    job: Job,
    options: JobOptions,
    now_ms: int,
    rules: Rules,
    *,
    by_broker: bool = True,
) -> OutgoingJob:
    """The record of one job. ``by_broker``: see ``settle``.

    With a schema registry set, the first job of a type waits for the registry.

    Raises:
        UnknownJobType: its class is not declared.
        InvalidJob: a field, the delay, the key, … is wrong.
        PayloadTooLarge: its bytes are over the limit.
    """
    settled = settle(options, now_ms, rules, by_broker=by_broker)
    return compose(job, settled, now_ms, rules)


def settle(options: JobOptions, now_ms: int, rules: Rules, *, by_broker: bool = True) -> Settled:
    """Check the options, once for many jobs.

    ``by_broker``: ``now_ms`` is this machine's clock, which may be wrong; False: it is broker time.

    Raises:
        InvalidJob: one of them is wrong.
    """
    priority = options.priority
    if not _is(priority, JobPriority):
        raise InvalidJob(f"the priority is {priority!r:.80}; use a JobPriority, such as JobPriority.HIGH")
    at_ms = _at_ms(options)
    delay_ms = _delay_ms(options, at_ms, now_ms, rules.max_delay_days)
    tier = tier_for(delay_ms)
    if options.job_id is not None:
        _check_id("job_id", options.job_id)
    if options.parent_id is not None:
        _check_id("parent_id", options.parent_id)
    if options.traceparent is not None and not (
        _is(options.traceparent, str) and _TRACEPARENT.fullmatch(options.traceparent)
    ):
        raise InvalidJob(f"traceparent is {options.traceparent!r:.80}; it takes W3C's form, 00-<32>-<16>-<2>")
    retries = options.max_retries
    if retries is not None and (
        not _is(retries, int) or _is(retries, bool) or not 0 <= retries <= MAX_RETRIES
    ):
        raise InvalidJob(f"max_retries is {retries!r:.80}; it takes a number from 0 to {MAX_RETRIES:,}")
    return Settled(
        topic=rules.topics.jobs[priority] if tier is None else rules.topics.retry[tier],
        priority=priority.value,
        delay_ms=delay_ms,
        at_ms=at_ms,
        by_broker=by_broker and at_ms is None,
        key=options.key,
        job_id=options.job_id,
        max_retries=retries,
        timeout_ms=_timeout_ms(options.timeout),
        parent_id=options.parent_id,
        traceparent=options.traceparent,
    )


def compose(job: Job, settled: Settled, now_ms: int, rules: Rules, *, turn: int | None = None) -> OutgoingJob:
    """The record of one job whose options are checked. See ``plan``.

    ``turn``: of a new id without an ordering key, see ``new_job_id``; jobs whose ids share one go to one partition.
    """
    kind = declared_type(job)
    key = settled.key
    if key is None:
        key = _own_key(job)
    ordering_key = None if key is None else _key_bytes(key)
    if ordering_key is not None:
        # It takes no turn from those that go by it: where every other job has a key, they would miss every other partition.
        turn = crc32(ordering_key) & 0xFFFF
    job_id = settled.job_id or new_job_id(turn)
    value = rules.codec.encode_job(
        kind,
        job,
        {
            "id": job_id,
            "type": kind.name,
            "priority": settled.priority,
            "key": key,
            "created_at": now_ms,
            "max_retries": settled.max_retries,
            "timeout_ms": settled.timeout_ms,
            "source": rules.source,
            "parent_id": settled.parent_id,
        },
    )
    if len(value) > rules.max_payload_bytes:
        raise PayloadTooLarge(len(value), rules.max_payload_bytes)
    raw = [(headers.TYPE, kind.name.encode())]
    if settled.at_ms is not None:
        if settled.at_ms > 0:
            raw.append((headers.NOT_BEFORE, str(settled.at_ms).encode()))
    elif settled.delay_ms:
        raw.append((headers.NOT_BEFORE, str(now_ms + settled.delay_ms).encode()))
        if settled.by_broker:
            raw.append((headers.DELAY, str(settled.delay_ms).encode()))
    if settled.traceparent is not None:
        raw.append((headers.TRACEPARENT, settled.traceparent.encode()))
    ordered = ordering_key is not None
    record_key = job_id.encode() if ordering_key is None else ordering_key
    return OutgoingJob(job_id, settled.topic, record_key, value, raw, now_ms, ordered)


#: Job classes whose schema has been derived.
_compiled_types: dict[type, JobType] = {}


def declared_type(job: Job) -> JobType:
    """The compiled type of a job, if its class is declared.

    Raises:
        UnknownJobType: the class has no ``job_type`` of its own, or another class took its name.
        InvalidJob: it is not a Job at all.
        JobTypeError: the class is declared in a way that cannot work.
    """
    cls = type(job)
    known = _compiled_types.get(cls)
    if known is not None:
        return known
    if not _is(job, Job):
        raise InvalidJob(f"{job!r:.80} is not a Job; jobs are instances of dataclasses that derive from it")
    if not cls.job_type:
        raise UnknownJobType(cls.__qualname__, list(declared_job_types()))
    declared = job_class(cls.job_type)
    # A reloaded module, and @dataclass(slots=True), leave two classes of one name: either will do.
    if (declared.__module__, declared.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UnknownJobType(cls.__qualname__, list(declared_job_types()))
    _compiled_types[cls] = known = job_type(cls)
    return known


def is_prepared(job: Job, rules: Rules) -> bool:
    """Whether the job's type has been used before, so that making a record takes microseconds and asks nobody."""
    known = _compiled_types.get(type(job))
    return known is not None and rules.codec.has_prefix(known.wire)


def prepare(job: Job, rules: Rules) -> None:
    """Derive the schema of its type, which takes tens of milliseconds, and register it, if there is a registry.

    Once for each type. Blocks: an event loop does it in a thread.

    Raises:
        UnknownJobType, InvalidJob, JobTypeError: as ``declared_type``.
        RegistryFailed: the schema registry refused, or did not answer.
    """
    rules.codec.prefix(declared_type(job).wire)


def _at_ms(options: JobOptions) -> int | None:
    at = options.at
    if at is None:
        return None
    if options.delay is not None:
        raise InvalidJob("delay and at are both given; give one of them")
    if not _is(at, datetime) or at.utcoffset() is None:
        raise InvalidJob(f"at is {at!r:.80}; it takes a datetime with a time zone")
    # Rounded up: a job never starts early.
    return -(-round(at.timestamp() * 1_000_000) // 1000)


def _delay_ms(options: JobOptions, at_ms: int | None, now_ms: int, max_days: int) -> int:
    delay, at = options.delay, options.at
    if at_ms is not None:
        delay_ms = max(at_ms - now_ms, 0)
    elif delay is None:
        return 0
    elif not _is(delay, timedelta):
        raise InvalidJob(f"the delay is {delay!r:.80}; it takes a timedelta")
    elif delay < timedelta(0):
        raise InvalidJob(f"the delay is negative: {delay}")
    else:
        # Cut first: the longest one there is cannot be rounded up.
        delay_ms = -(-min(delay, timedelta(days=max_days + 1)) // _MILLISECOND)
    if delay_ms > max_days * _DAY_MS:
        raise InvalidJob(f"the delay is over {max_days} days ({at or delay}); max_delay_days sets the limit")
    return delay_ms


def _timeout_ms(timeout: timedelta | None) -> int | None:
    if timeout is None:
        return None
    if not _is(timeout, timedelta):
        raise InvalidJob(f"the timeout is {timeout!r:.80}; it takes a timedelta")
    milliseconds = timeout // _MILLISECOND
    if not 1 <= milliseconds <= _LONGEST_RUN_MS:
        raise InvalidJob(f"the timeout is {timeout}; it takes 1 ms to 365 days")
    return milliseconds


def _is(value: object, kind: type) -> bool:
    """Whether a caller kept to the annotations; nothing else does at run time."""
    return isinstance(value, kind)


def _check_id(name: str, value: str) -> None:
    if not _is(value, str) or not _JOB_ID.fullmatch(value):
        raise InvalidJob(f"{name} is {value!r:.80}; it takes a UUID in its usual form, in lower case")


def _own_key(job: Job) -> str | None:
    try:
        return job.ordering_key()
    except Exception as error:  # the user's code: it may raise anything
        raise InvalidJob(f"{job.job_type}.ordering_key() raised {type(error).__name__}: {error}") from error


def _key_bytes(key: str) -> bytes:
    if not _is(key, str) or not key:
        raise InvalidJob(f"the key is {key!r:.80}; it takes text that is not empty")
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidJob(f"the key {key!r:.80} cannot be written as UTF-8") from error
    if len(raw) > MAX_KEY_BYTES:
        raise InvalidJob(f"the key has {len(raw):,} bytes of UTF-8, the limit is {MAX_KEY_BYTES:,}")
    return raw
