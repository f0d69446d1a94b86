"""The records that are not jobs: state changes and worker reports, as frozen dataclasses and as bytes.

A worker writes one ``StatusChange`` per job, so that path is built for speed: a status is a head that
differs each time (ids and times, written by hand) and a tail that repeats (type, priority, state,
worker, …; written once by fastavro and remembered). The bytes are those that fastavro would write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from schemas.codec import Codec
from schemas.errors import BadRecord
from schemas.headers import LATEST_MS, MAX_COUNT, Attempt
from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority
from schemas.wire import Record, WireSchema, load_avsc

MAX_OUTPUT_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A job went into a new state. Times are milliseconds since the epoch."""

    job_id: str
    key: str | None
    at: int
    created_at: int
    started_at: int | None
    state: JobStatus
    type: str
    priority: JobPriority
    attempt: int
    delivery: int
    redrives: int = 0
    worker: str = ""
    not_before: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    output: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    progress_done: int | None = None
    progress_total: int | None = None
    children: int = 0
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class JobCounter:
    """How many jobs of one type and priority reached a state since the process started."""

    type: str
    priority: JobPriority
    state: str
    count: int


@dataclass(frozen=True, slots=True)
class JobMetric:
    """What runs of one type have added to a number with ``update_metrics`` since the process started."""

    type: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one worker process says of itself each second. Counters are cumulative."""

    worker_id: str
    incarnation: str
    sequence: int
    started_at: int
    at: int
    host: str
    state: str
    job_types: tuple[str, ...]
    partitions: tuple[int, ...]
    running: int
    buffered: int
    counters: tuple[JobCounter, ...]
    events: Mapping[str, int]
    metrics: tuple[JobMetric, ...] = ()


_STATUS_SCHEMA: Final = load_avsc("status_change")
_REPORT_SCHEMA: Final = load_avsc("worker_report")
_STATUS_NAMES: Final = frozenset(field["name"] for field in _STATUS_SCHEMA["fields"])
_REPORT_NAMES: Final = frozenset(field["name"] for field in _REPORT_SCHEMA["fields"])

STATUS: Final = WireSchema(_STATUS_SCHEMA, primitive=_STATUS_NAMES)
REPORT: Final = WireSchema(_REPORT_SCHEMA, primitive=_REPORT_NAMES)

#: The fields after ``started_at``, as a record of their own: an Avro record is its fields, one after another.
_HEAD_FIELDS: Final = 5
_TAIL: Final = WireSchema(
    {**_STATUS_SCHEMA, "name": "StatusTail", "fields": _STATUS_SCHEMA["fields"][_HEAD_FIELDS:]},
    primitive=_STATUS_NAMES,
)


class StatusWriter:
    """Encodes ``StatusChange`` records. Safe from any thread."""

    def __init__(self, codec: Codec) -> None:
        self._prefix = codec.prefix(STATUS)
        self._front = self._prefix + b"\x48"  # 0x48: an id has 36 characters

    def succeeded(
        self,
        job_id: bytes,
        key: str | None,
        at: int,
        created_at: int,
        started_at: int,
        tail: bytes,
    ) -> bytes:
        """The status of a run whose tail is known (``tail_of``): the fast path. An id has 36 bytes."""
        return b"".join(
            (
                self._front,
                job_id,
                b"\x00" if key is None else b"\x02" + _text(key),
                zigzag(at),
                zigzag(created_at),
                b"\x02",
                zigzag(started_at),
                tail,
            )
        )

    def encode(self, change: StatusChange) -> bytes:
        """Any status. What UTF-8 cannot hold (lone surrogates, as in undecodable file names) becomes "?".

        Raises:
            OverflowError, ValueError: a number that does not fit into 64 bits, or a value of another type.
        """
        record = _status_record(change)
        try:
            tail = _TAIL.encode(record)
        except UnicodeEncodeError:
            tail = _TAIL.encode(_encodable(record))
        return b"".join(
            (
                self._prefix,
                _text(change.job_id),
                b"\x00" if change.key is None else b"\x02" + _text(change.key),
                zigzag(change.at),
                zigzag(change.created_at),
                b"\x00" if change.started_at is None else b"\x02" + zigzag(change.started_at),
                tail,
            )
        )


@lru_cache(maxsize=4096)
def tail_of(
    state: JobStatus,
    job_type: str,
    priority: JobPriority,
    attempt: int,
    delivery: int,
    redrives: int,
    worker: str,
) -> bytes:
    """The tail of a status that has nothing to tell beyond these."""
    return _TAIL.encode(
        _status_record(
            StatusChange(
                job_id="",
                key=None,
                at=0,
                created_at=0,
                started_at=None,
                state=state,
                type=job_type,
                priority=priority,
                attempt=attempt,
                delivery=delivery,
                redrives=redrives,
                worker=worker,
            )
        )
    )


@lru_cache(maxsize=16_384)
def zigzag(number: int) -> bytes:
    """An Avro long. Remembered, since many jobs share a millisecond.

    Raises:
        OverflowError: more than 64 bits.
    """
    if not -(2**63) <= number < 2**63:
        raise OverflowError(f"{number} does not fit into 64 bits")
    n = (number << 1) ^ (number >> 63)
    out = bytearray()
    while n > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append((n & 0x7F) | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def decode_status(codec: Codec, value: bytes) -> StatusChange:
    """A status from its bytes.

    Raises:
        WireError: the bytes cannot be understood.
    """
    record = codec.decode(STATUS, value)
    _check_ranges(record, _STATUS_RANGES, STATUS)
    for attempt in record["attempts"]:
        _check_ranges(attempt, _ATTEMPT_RANGES, STATUS)
    record["state"] = JobStatus(record["state"])
    record["priority"] = JobPriority(record["priority"])
    record["attempts"] = tuple(
        Attempt(
            attempt=a["attempt"],
            worker=a["worker"],
            started_at_ms=a["started_at"],
            finished_at_ms=a["finished_at"],
            error_type=a["error_type"],
            error_message=a["error_message"],
        )
        for a in record["attempts"]
    )
    return StatusChange(**record)


_TIME: Final = (0, LATEST_MS)
_COUNT: Final = (0, MAX_COUNT + 1)
_STATUS_RANGES: Final = {
    **dict.fromkeys(("at", "created_at", "started_at", "not_before"), _TIME),
    **dict.fromkeys(("attempt", "delivery", "redrives"), _COUNT),
}
_ATTEMPT_RANGES: Final = {"attempt": _COUNT, "started_at": _TIME, "finished_at": _TIME}
_REPORT_RANGES: Final = {"started_at": _TIME, "at": _TIME}


def _check_ranges(record: Record, ranges: Mapping[str, tuple[int, int]], schema: WireSchema) -> None:
    """Times beyond the calendar and counts that nothing can follow: a reader would fail over them later."""
    for name, (low, high) in ranges.items():
        number = record[name]
        if number is not None and not low <= number <= high:
            raise BadRecord(f"{schema.full_name}: {name} is {number}, not a number from {low} to {high}")


def encode_report(codec: Codec, report: WorkerReport) -> bytes:
    """A worker report as bytes."""
    record = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    record["counters"] = [dataclasses.asdict(c) | {"priority": c.priority.value} for c in report.counters]
    record["metrics"] = [dataclasses.asdict(metric) for metric in report.metrics]
    return codec.encode(REPORT, record)


def decode_report(codec: Codec, value: bytes) -> WorkerReport:
    """A worker report from its bytes.

    Raises:
        WireError: the bytes cannot be understood.
    """
    record = codec.decode(REPORT, value)
    _check_ranges(record, _REPORT_RANGES, REPORT)
    record["counters"] = tuple(
        JobCounter(c["type"], JobPriority(c["priority"]), c["state"], c["count"]) for c in record["counters"]
    )
    record["metrics"] = tuple(JobMetric(**metric) for metric in record["metrics"])
    for name in ("job_types", "partitions"):
        record[name] = tuple(record[name])
    return WorkerReport(**record)


def _status_record(change: StatusChange) -> Record:
    return {
        "state": change.state.value,
        "type": change.type,
        "priority": change.priority.value,
        "attempt": change.attempt,
        "delivery": change.delivery,
        "redrives": change.redrives,
        "worker": change.worker,
        "not_before": change.not_before,
        "error_type": change.error_type,
        "error_message": change.error_message,
        "output": change.output,
        "metrics": change.metrics,
        "progress_done": change.progress_done,
        "progress_total": change.progress_total,
        "children": change.children,
        "attempts": [
            {
                "attempt": a.attempt,
                "worker": a.worker,
                "started_at": a.started_at_ms,
                "finished_at": a.finished_at_ms,
                "error_type": a.error_type,
                "error_message": a.error_message,
            }
            for a in change.attempts
        ],
    }


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return zigzag(len(raw)) + raw


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case Mapping():
            return {_encodable(name): _encodable(item) for name, item in value.items()}
        case list():
            return [_encodable(item) for item in value]
        case _:
            return value
