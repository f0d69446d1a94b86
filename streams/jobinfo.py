"""Where every job stands, from what was seen of it. Pure: no broker, no clock.

In:  sightings (a job's record on a job or retry topic, a ``StatusChange``, a tombstone), in any order: topics
have no order between them. Out: one ``JobInfo`` per job.

Each sighting has a rank; the newest one says the state. Everything kept is a maximum, so neither order nor
repetition can matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from schemas.errors import WireError
from schemas.headers import Attempt, Delivery
from schemas.jobtype import ENVELOPE_NAMES
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from schemas.topics import JobPriority

#: Topic, partition, offset.
RecordPlace = tuple[str, int, int]
#: (redrives, delivery, progress within the delivery, when, place): the larger, the newer.
Rank = tuple[int, int, int, int, RecordPlace]

#: An output that is nested deeper stays text: Python writes no JSON of it, where it is called from many functions.
_MOST_LEVELS: Final = 100
_EVENT: Final = 0
#: How far a job is within one delivery. A status is newer than the record that led to it.
_PROGRESS: Final[Mapping[JobStatus, int]] = {
    JobStatus.PENDING: 1,
    JobStatus.RUNNING: 2,
    JobStatus.SCHEDULED: 3,
    JobStatus.RETRYING: 3,
    JobStatus.SUCCEEDED: 4,
    JobStatus.FAILED: 4,
    JobStatus.CANCELLED: 4,
    JobStatus.SKIPPED: 4,
}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job's record on a job or retry topic. ``waiting``: it is a retry topic."""

    job_id: str
    delivery: Delivery
    priority: JobPriority
    waiting: bool
    #: What orders it, as it was written: another program's may be no UTF-8, and a new life keeps it. None: nothing does.
    key: bytes | None
    #: The job's record; nothing where only its place was kept.
    value: bytes
    timestamp_ms: int
    place: RecordPlace

    @property
    def key_text(self) -> str | None:
        """The key, to be shown."""
        return None if self.key is None else self.key.decode("utf-8", "replace")

    @property
    def rank(self) -> Rank:
        """How new this is."""
        return (self.delivery.redrives, self.delivery.delivery, _EVENT, self.timestamp_ms, self.place)


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A ``StatusChange`` and where it stands."""

    change: StatusChange
    place: RecordPlace

    @property
    def rank(self) -> Rank:
        """How new this is."""
        change = self.change
        return (change.redrives, change.delivery, _PROGRESS[change.state], change.at, self.place)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The end of a job's statuses: what stands before it in the partition is forgotten."""

    job_id: str
    place: RecordPlace


Sighting = JobEvent | StatusSeen | Tombstone


@dataclass(slots=True)
class JobState:
    """What is known of one job: the newest of each kind."""

    event: JobEvent | None = None
    status: StatusSeen | None = None
    tombstone: RecordPlace | None = None

    def see(self, sighting: Sighting) -> None:
        """Take one more sighting into account."""
        match sighting:
            case JobEvent():
                if self.event is None or sighting.rank > self.event.rank:
                    self.event = sighting
            case StatusSeen():
                if self.status is None or sighting.rank > self.status.rank:
                    self.status = sighting
            case Tombstone(place=place):
                if self.tombstone is None or place > self.tombstone:
                    self.tombstone = place

    @property
    def last_status(self) -> StatusSeen | None:
        """The newest status, unless a tombstone came after it."""
        if self.status is not None and self.tombstone is not None and self.status.place < self.tombstone:
            return None
        return self.status

    @property
    def gone(self) -> bool:
        """Nothing of it is left."""
        return self.event is None and self.last_status is None


class JobFold:
    """Job id to what is known of it."""

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}

    def see(self, sighting: Sighting) -> None:
        """Take one more sighting into account."""
        job_id = sighting.change.job_id if isinstance(sighting, StatusSeen) else sighting.job_id
        state = self.states.get(job_id)
        if state is None:
            state = self.states[job_id] = JobState()
        state.see(sighting)


def fold(sightings: Iterable[Sighting]) -> dict[str, JobState]:
    """What is known of every job that was seen."""
    jobs = JobFold()
    for sighting in sightings:
        jobs.see(sighting)
    return jobs.states


@dataclass(frozen=True, slots=True)
class JobInfo:
    """Where a job stands. Times have a time zone; ``attempt`` names the run that it is at, or waits for."""

    id: str
    type: str
    priority: JobPriority
    status: JobStatus
    attempt: int
    key: str | None
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    #: How often it was published again, and how many lives it had before.
    delivery: int = 0
    redrives: int = 0
    not_before: datetime | None = None
    error_type: str | None = None
    #: What the handler returned.
    output: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    #: Done and total (None: not known), where the handler tells.
    progress: tuple[int, int | None] | None = None
    children: int = 0
    #: Earlier runs.
    attempts: tuple[Attempt, ...] = ()
    #: Envelope fields that are not above, and the job's own; None if its record is gone or cannot be decoded.
    max_retries: int | None = None
    timeout_ms: int | None = None
    source: str | None = None
    parent_id: str | None = None
    fields: Mapping[str, Any] | None = None
    #: The topics were not read to their end: it may have moved on.
    stale: bool = False

    def to_json(self) -> dict[str, Any]:
        """What ``jobs list --json`` prints of it."""
        return {
            "id": self.id,
            "type": self.type,
            "priority": self.priority.value,
            "status": self.status.value,
            "attempt": self.attempt,
            "key": self.key,
            "worker": self.worker,
            "created_at": iso(self.created_at),
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at),
            "error": self.error,
        }

    def to_full_json(self) -> dict[str, Any]:
        """What ``jobs show --json`` prints of it."""
        return {
            **self.to_json(),
            "delivery": self.delivery,
            "redrives": self.redrives,
            "not_before": iso(self.not_before),
            "error_type": self.error_type,
            "output": self.output,
            "metrics": dict(self.metrics),
            "progress": list(self.progress) if self.progress else None,
            "children": self.children,
            "attempts": [
                {
                    "attempt": attempt.attempt,
                    "worker": attempt.worker,
                    "started_at": iso(moment(attempt.started_at_ms)),
                    "finished_at": iso(moment(attempt.finished_at_ms)),
                    "error_type": attempt.error_type,
                    "error_message": attempt.error_message,
                }
                for attempt in self.attempts
            ],
            "max_retries": self.max_retries,
            "timeout_ms": self.timeout_ms,
            "source": self.source,
            "parent_id": self.parent_id,
            "fields": jsonable(self.fields),
            "stale": self.stale,
        }


def status_now(state: JobState) -> JobStatus:
    """The state that the newest sighting stands for."""
    event, seen = state.event, state.last_status
    if event is None or (seen is not None and seen.rank > event.rank):
        assert seen is not None  # noqa: S101 - ``gone`` states have been left out
        return seen.change.state
    if not event.waiting:
        return JobStatus.PENDING
    # A record on a retry topic: why it waits was said by the status that was written with it.
    if (
        seen is not None
        and seen.change.redrives == event.delivery.redrives
        and seen.change.state in (JobStatus.RETRYING, JobStatus.SCHEDULED)
    ):
        return seen.change.state
    return JobStatus.RETRYING if event.delivery.attempt > 1 else JobStatus.SCHEDULED


def created_ms(state: JobState) -> int:
    """When it was scheduled, without decoding its record."""
    event, seen = state.event, state.last_status
    if seen is not None:
        return seen.change.created_at
    assert event is not None  # noqa: S101 - ``gone`` states have been left out
    return event.delivery.first_seen_ms or event.timestamp_ms


def job_info(
    job_id: str,
    state: JobState,
    decode: Callable[[bytes], Mapping[str, Any]] | None = None,
    *,
    stale: bool = False,
) -> JobInfo:
    """The whole story. ``decode`` makes a job's bytes its record; its ``WireError`` means "no fields"."""
    event, seen = state.event, state.last_status
    status = status_now(state)
    redrives = max(
        event.delivery.redrives if event else 0,
        seen.change.redrives if seen else 0,
    )
    # What an earlier life did is told by ``attempts``; worker, times and errors are those of this one.
    change = seen.change if seen is not None and seen.change.redrives == redrives else None
    newest = event if event is not None and (seen is None or event.rank > seen.rank) else None
    record = _decoded(event, decode)
    facts = _facts_of_status(change, final=status.final)
    if newest is not None:
        facts |= _facts_of_event(newest)
    # Envelope fields have no logical types: times are milliseconds.
    created: int = record["created_at"] if record else created_ms(state)
    return JobInfo(
        id=job_id,
        type=(event.delivery.job_type if event else "") or (seen.change.type if seen else ""),
        priority=event.priority if event else seen.change.priority if seen else JobPriority.NORMAL,
        status=status,
        key=event.key_text if event else seen.change.key if seen else None,
        created_at=datetime.fromtimestamp(created / 1000, UTC),
        redrives=redrives,
        attempts=(seen.change.attempts if seen else ()) or (event.delivery.history if event else ()),
        max_retries=record.get("max_retries") if record else None,
        timeout_ms=record.get("timeout_ms") if record else None,
        source=record.get("source") if record else None,
        parent_id=record.get("parent_id") if record else None,
        fields={name: value for name, value in record.items() if name not in ENVELOPE_NAMES}
        if record
        else None,
        stale=stale,
        **facts,
    )


def _facts_of_status(change: StatusChange | None, *, final: bool) -> dict[str, Any]:
    if change is None:
        nothing = dict.fromkeys(("worker", "started_at", "finished_at", "error"))
        return {**nothing, "attempt": 1}
    return {
        "worker": change.worker or None,
        "started_at": moment(change.started_at),
        "finished_at": moment(change.at) if final else None,
        "error": change.error_message or change.error_type,
        "error_type": change.error_type,
        "attempt": change.attempt,
        "delivery": change.delivery,
        "not_before": moment(change.not_before),
        "output": _parsed(change.output),
        "metrics": change.metrics,
        "progress": None if change.progress_done is None else (change.progress_done, change.progress_total),
        "children": change.children,
    }


def _facts_of_event(event: JobEvent) -> dict[str, Any]:
    delivery = event.delivery
    return {
        "attempt": delivery.attempt,
        "delivery": delivery.delivery,
        "not_before": moment(delivery.not_before_ms or None),
        "error": delivery.error_message or delivery.error_type or None,
        "error_type": delivery.error_type or None,
        "output": None,
        "progress": None,
    }


def _decoded(
    event: JobEvent | None, decode: Callable[[bytes], Mapping[str, Any]] | None
) -> Mapping[str, Any] | None:
    if event is None or decode is None:
        return None
    try:
        return decode(event.value)
    except WireError:
        return None


def _parsed(output: str | None) -> Any:
    if output is None:
        return None
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return output
    return output if _is_deeper(value, _MOST_LEVELS) else value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested in it more often than this."""
    here = [value]
    for _ in range(levels):
        here = [
            item
            for outer in here
            for item in (
                outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
            )
        ]
        if not here:
            return False
    return True


def moment(milliseconds: int | None) -> datetime | None:
    """A time from milliseconds since the epoch."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def iso(time: datetime | None) -> str | None:
    """ISO 8601 in UTC, with milliseconds."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def jsonable(value: Any) -> Any:
    """``value`` as JSON can hold it: bytes in hexadecimal, times as ISO 8601, what else there is as text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes() | bytearray():
            return value.hex()
        case datetime():
            return iso(value)
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
        case _:
            return str(value)
