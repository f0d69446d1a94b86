"""Look at jobs: read the job, retry and status topics, and tell where each job stands.

In:  a ``JobFilter`` or an id. Out: ``JobInfo`` values, read from the topics at each call; nothing is kept.
A call reads to the ends taken at its start, so a client sees its own writes; what takes longer than the limit
is answered with what is there, marked stale.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, overload

import structlog
from confluent_kafka import Message

from schemas.codec import Codec, peek_id, peek_priority
from schemas.errors import JobTypeError, PipelineError, ReadIncomplete, UnknownSchema, WireError
from schemas.headers import parse, time_of_record
from schemas.job import declared_job_types
from schemas.jobtype import job_type
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange, decode_status
from schemas.topics import JobPriority, Topics
from schemas.wire import WireSchema
from streams.jobinfo import (
    JobEvent,
    JobFold,
    JobInfo,
    JobState,
    RecordPlace,
    Sighting,
    StatusSeen,
    Tombstone,
    created_ms,
    job_info,
    status_now,
)
from streams.raw_headers import raw_headers
from streams.registry import CONFLUENT_KEY_LENGTH, build_codec
from streams.scan import records_at, scan
from streams.schemas_topic import SchemaLookup, schema_lookup
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.reader")

#: A call answers after this long, complete or not.
TIME_LIMIT_S: Final = 3.0
#: Longer where half a picture would be a wrong answer: "not known", or a wait for what has happened already.
PATIENCE_S: Final = 30.0
#: How many unreadable records a listing names; all are counted.
_NAMED: Final = 100
_LOOKUP_S: Final = 2.0
#: Of a listing. 100,000 small records or so; what one entry takes beside its bytes.
_KEPT_BYTES: Final = 64 << 20
_ENTRY_BYTES: Final = 300
#: A status of so many bytes is not worth a copy without half of them.
_SMALL_STATUS: Final = 512

_T = TypeVar("_T")


class JobNotFound(PipelineError):
    """No topic holds anything of this job (any more)."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id} is not known: never scheduled here, or finished and cleaned up")


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list, newest first; None means any. A status or priority may be given by its name.

    Raises:
        ValueError: there is no such status or priority, or the limit is not a number from 0 up.
    """

    status: JobStatus | None = None
    job_type: str | None = None
    priority: JobPriority | None = None
    key: str | None = None
    limit: int | None = 100

    def __post_init__(self) -> None:
        # Members of a StrEnum look like their names, and are compared by identity: a name would match no job at all.
        for name, kind in (("status", JobStatus), ("priority", JobPriority)):
            value = getattr(self, name)
            if value is not None:
                try:
                    object.__setattr__(self, name, kind(value))
                except ValueError:
                    known = ", ".join(kind)
                    raise ValueError(f"{name} is {value!r}; it takes one of {known}, or None") from None
        limit: object = self.limit
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError(f"limit is {limit!r}; it takes a number from 0 up, or None")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be understood; a worker sends such a one to the dead letters."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(frozen=True)
class JobListing(Sequence[JobInfo]):
    """The jobs that a filter lets through, newest first."""

    jobs: tuple[JobInfo, ...]
    #: Jobs that the filter lets through, before the limit.
    total: int
    #: The time was up before the end was reached: newer facts may be missing, or fields, outputs and errors.
    stale: bool
    unreadable_count: int = 0
    unreadable: tuple[Unreadable, ...] = ()

    @overload
    def __getitem__(self, index: int) -> JobInfo: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[JobInfo, ...]: ...
    def __getitem__(self, index: int | slice) -> JobInfo | tuple[JobInfo, ...]:
        return self.jobs[index]

    def __len__(self) -> int:
        return len(self.jobs)


@dataclass(frozen=True, slots=True)
class JobStatistics:
    """How many jobs there are."""

    total: int
    by_status: Mapping[JobStatus, int]
    by_type: Mapping[str, int]
    by_priority: Mapping[JobPriority, int]
    stale: bool
    unreadable: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "total": self.total,
            "by_status": {status.value: count for status, count in self.by_status.items()},
            "by_type": dict(self.by_type),
            "by_priority": {priority.value: count for priority, count in self.by_priority.items()},
            "stale": self.stale,
            "unreadable": self.unreadable,
        }


@dataclass(slots=True)
class Seen:
    """What one reading of the topics found."""

    fold: JobFold
    unreadable: list[Unreadable]
    unreadable_count: int = 0
    complete: bool = True

    def state_of(self, job_id: str) -> JobState:
        """What was found of one job."""
        return self.fold.states.get(job_id) or JobState()

    def living(self) -> Iterator[tuple[str, JobState]]:
        """Every job of which something is left."""
        return ((job_id, state) for job_id, state in self.fold.states.items() if not state.gone)


class KeptRecords:
    """Bytes of the records that were read last, up to a limit.

    A listing shows a few of all jobs, mostly the newest, and knows which when it has read everything. What is here need not
    be read twice; and the payloads of a million jobs do not fit into memory.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        # A plain dict looks for its first entry among those that have gone.
        self._values: OrderedDict[RecordPlace, bytes] = OrderedDict()

    def keep(self, place: RecordPlace, value: bytes) -> None:
        """Keep this one, and let the oldest go if it is too much."""
        self._values[place] = value
        self._left -= len(value) + _ENTRY_BYTES
        while self._left < 0:
            _, oldest = self._values.popitem(last=False)
            self._left += len(oldest) + _ENTRY_BYTES

    def get(self, place: RecordPlace) -> bytes | None:
        """What stands there; None: it was not kept."""
        return self._values.get(place)


class JobReader:
    """Reads the topics anew at each call. Blocks: not for an event loop; safe from any thread. Close it."""

    def __init__(self, settings: Settings, codec: Codec | None = None) -> None:
        self._settings = settings
        self._topics = settings.topics
        self.codec = codec or build_codec(settings)
        self._schemas = Schemas(self.codec, schema_lookup(settings, self.codec.store))

    def list_jobs(self, which: JobFilter | None = None, *, timeout_s: float = TIME_LIMIT_S) -> JobListing:
        """Jobs, newest first; after ``timeout_s`` those that have been read by then, the oldest, marked stale.

        What is shown and was too much to keep is read once more, which may take as long again.

        Raises:
            KafkaUnreachable: no broker answered in time.
            TopicsMismatch: a topic does not exist.
        """
        which = which or JobFilter()
        # Without a limit all of them are shown, so all is needed.
        kept = None if which.limit is None else KeptRecords(_KEPT_BYTES)
        seen = self.read(timeout_s=timeout_s, kept=kept)
        chosen = [(job_id, state) for job_id, state in seen.living() if matches(which, state)]
        chosen.sort(key=lambda item: (created_ms(item[1]), item[0]), reverse=True)
        shown, complete = chosen[: which.limit], seen.complete
        schemas = self._schemas.of_one_reading()
        if kept is not None:
            complete = self._complete(shown, kept, schemas, timeout_s) and complete
        jobs = tuple(job_info(job_id, state, schemas.decode_job) for job_id, state in shown)
        return JobListing(jobs, len(chosen), not complete, seen.unreadable_count, tuple(seen.unreadable))

    def _complete(
        self, shown: list[tuple[str, JobState]], kept: KeptRecords, schemas: Schemas, timeout_s: float
    ) -> bool:
        """Give lean states what was left out, read once more if it was not kept. False: that took too long."""
        sightings = [one for _, state in shown for one in (state.event, state.last_status) if one is not None]
        missing = [one.place for one in sightings if kept.get(one.place) is None]
        again, in_time = records_at(self._settings, missing, timeout_s=timeout_s)
        for _, state in shown:
            # What has been removed meanwhile stays lean: a job whose record is gone is told from its status as well.
            if state.event is not None:
                value = kept.get(state.event.place) or again.get(state.event.place)
                state.event = replace(state.event, value=value or b"")
            if state.status is not None:
                value = kept.get(state.status.place) or again.get(state.status.place)
                if value is not None:
                    state.status = replace(state.status, change=_status(schemas, value))
        return in_time

    def get_job(self, job_id: str) -> JobInfo:
        """One job; ``stale`` says that it may have moved on.

        Raises:
            JobNotFound: there is nothing of it.
            ReadIncomplete: nothing of it was found, but there is more than could be read.
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
        """
        seen = self.read(job_id)
        state = seen.state_of(job_id)
        if state.gone and not seen.complete:
            return self.info(job_id, self.state_of(job_id))
        return self.info(job_id, state, stale=not seen.complete)

    def state_of(self, job_id: str) -> JobState:
        """All that is known of one job.

        Raises:
            ReadIncomplete: there may be more.
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
        """
        seen = self.read(job_id, timeout_s=PATIENCE_S)
        if not seen.complete:
            raise ReadIncomplete(PATIENCE_S)
        return seen.state_of(job_id)

    def info(self, job_id: str, state: JobState, *, stale: bool = False) -> JobInfo:
        """The story of one job.

        Raises:
            JobNotFound: there is nothing of it.
        """
        if state.gone:
            raise JobNotFound(job_id)
        return job_info(job_id, state, self._schemas.decode_job, stale=stale)

    def statistics(self) -> JobStatistics:
        """Counts of all jobs.

        Raises:
            KafkaUnreachable, TopicsMismatch: as ``list_jobs``.
        """
        seen = self.read(kept=KeptRecords(0))
        statuses: Counter[JobStatus] = Counter()
        types: Counter[str] = Counter()
        priorities: Counter[JobPriority] = Counter()
        for _, state in seen.living():
            statuses[status_now(state)] += 1
            types[_type_of(state)] += 1
            priorities[_priority_of(state)] += 1
        return JobStatistics(
            statuses.total(), statuses, types, priorities, not seen.complete, seen.unreadable_count
        )

    def read(
        self, job_id: str | None = None, *, timeout_s: float = TIME_LIMIT_S, kept: KeptRecords | None = None
    ) -> Seen:
        """Everything of all jobs, or of one. With ``kept`` its states are lean, and the bytes are there."""
        topics = (*self._topics.consumed, self._topics.status)
        seen = Seen(JobFold(), [])
        schemas = self._schemas.of_one_reading()
        # From a command line it may be anything; what UTF-8 cannot hold is nobody's id.
        wanted = None if job_id is None else {job_id.encode("utf-8", "replace")}

        def take(message: Message) -> None:
            try:
                sighting = sighting_of(message, self._topics, schemas, wanted, lean=kept is not None)
            except WireError as error:
                seen.unreadable_count += 1
                if len(seen.unreadable) < _NAMED:
                    seen.unreadable.append(Unreadable(*place_of(message), reason=str(error)))
            else:
                if sighting is not None:
                    seen.fold.see(sighting)
                    if kept is not None and (value := message.value()) is not None:
                        kept.keep(sighting.place, value)

        seen.complete = scan(self._settings, topics, take, timeout_s=timeout_s).complete
        return seen

    def read_status(self, value: bytes) -> StatusChange:
        """A status from its bytes; its schema is looked up if it is not known yet. Blocks then.

        Raises:
            WireError: it cannot be understood.
            KafkaUnreachable, RegistryFailed: nobody answered who may know the schema.
        """
        return self._schemas.with_lookup(lambda: decode_status(self.codec, value))

    def close(self) -> None:
        """Let the connections go."""
        self._schemas.close()


class Schemas:
    """Decodes what anyone may have written; asks for a schema it does not know, once each."""

    def __init__(self, codec: Codec, lookup: SchemaLookup) -> None:
        self.codec = codec
        self._lookup = lookup
        self._asked: set[bytes] = set()
        self._declared: dict[bytes, WireSchema] = {}
        #: Whether what was written before now is known to the end; None: there is no such moment.
        self._complete: bool | None = None

    def of_one_reading(self) -> Schemas:
        """For records that are there by now: one look at ``schemas`` says of all of them which ones nobody knows.

        Records with ten thousand made-up fingerprints would take a question each, and a listing all its time.
        """
        twin = copy.copy(self)
        twin._complete = False
        return twin

    def decode_job(self, value: bytes) -> Mapping[str, Any]:
        """A job's record, of any type, through the schema that wrote it.

        Raises:
            WireError: it cannot be understood.
        """
        if not self._declared:
            for name, cls in declared_job_types().items():
                try:
                    wire = job_type(cls).wire
                except JobTypeError as error:
                    # No job of it can have been scheduled; it must not hide those of other types.
                    log.warning("job type left out", type=name, error=str(error))
                else:
                    self._declared[wire.fingerprint] = wire
        return self.with_lookup(lambda: self.codec.decode_any(value, self._declared))

    def with_lookup(self, decode: Callable[[], _T]) -> _T:
        """``decode()``; once more if a schema was missing and is there now."""
        try:
            return decode()
        except UnknownSchema as error:
            has_number = len(error.schema_key) == CONFLUENT_KEY_LENGTH
            if error.schema_key in self._asked or (self._complete and not has_number):
                raise
            if not self._lookup.learn(error.schema_key, _LOOKUP_S):
                # Only now: who did not answer may answer the next time.
                self._asked.add(error.schema_key)
                if self._complete is False and not has_number:
                    self._complete = True
                raise
            return decode()

    def close(self) -> None:
        """Let the connections go."""
        self._lookup.close()


def sighting_of(
    message: Message,
    topics: Topics,
    schemas: Schemas,
    wanted: Container[bytes | None] | None = None,
    *,
    lean: bool = False,
) -> Sighting | None:
    """What a record says of a job; None if it is about none of ``wanted``.

    ``lean``: only what says who a job is, where it stands and when it was; a million jobs are kept at a time. Its payload is left
    out, and what a large status tells beyond that: ``place`` says where they are.

    Raises:
        WireError: it cannot be understood.
    """
    place = place_of(message)
    key, value = message.key(), message.value()
    if place[0] == topics.status:
        if wanted is not None and key not in wanted:
            return None
        if value is None:
            return Tombstone((key or b"").decode("utf-8", "replace"), place)
        change = _status(schemas, value)
        if lean and len(value) > _SMALL_STATUS:
            change = replace(change, output=None, error_message=None, metrics={}, attempts=())
        return StatusSeen(change, place)
    job_id = peek_id(value)
    if wanted is not None and job_id not in wanted:
        return None
    assert value is not None  # noqa: S101 - peek_id() refuses None
    priority = topics.priority_of.get(place[0])
    return JobEvent(
        job_id=job_id.decode(),
        delivery=parse(raw_headers(message)),
        priority=peek_priority(value) if priority is None else priority,
        waiting=priority is None,
        key=None if key == job_id else key,
        value=b"" if lean else value,
        timestamp_ms=time_of_record(message.timestamp()[1]),
        place=place,
    )


def _status(schemas: Schemas, value: bytes) -> StatusChange:
    return schemas.with_lookup(lambda: decode_status(schemas.codec, value))


def place_of(message: Message) -> tuple[str, int, int]:
    """Topic, partition and offset of a record that was read."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: S101, PT018
    return topic, partition, offset


def matches(which: JobFilter, state: JobState) -> bool:
    """Whether the filter lets a job through."""
    return (
        (which.status is None or status_now(state) is which.status)
        and (which.job_type is None or _type_of(state) == which.job_type)
        and (which.priority is None or _priority_of(state) is which.priority)
        and (which.key is None or _key_of(state) == which.key)
    )


def _type_of(state: JobState) -> str:
    if state.event is not None and state.event.delivery.job_type:
        return state.event.delivery.job_type
    return state.status.change.type if state.status is not None else ""


def _priority_of(state: JobState) -> JobPriority:
    if state.event is not None:
        return state.event.priority
    assert state.status is not None  # noqa: S101 - ``gone`` states have been left out
    return state.status.change.priority


def _key_of(state: JobState) -> str | None:
    if state.event is not None:
        return state.event.key_text
    return state.status.change.key if state.status is not None else None
