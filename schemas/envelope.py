"""Whether the fields that every job has are what they must be, in a record that anybody may have written.

In:  a decoded record whose schema is somebody else's. Out: nothing, or a ``BadRecord`` that names the field.

A schema of ours, or reading through one, settles types; it cannot settle ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from schemas.errors import BadRecord
from schemas.headers import LATEST_MS, MAX_TYPE_NAME
from schemas.topics import JobPriority
from schemas.wire import Record

_PRIORITIES: Final = frozenset(priority.value for priority in JobPriority)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TYPE_NAME


def _is_priority(value: Any) -> bool:
    return isinstance(value, str) and value in _PRIORITIES


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LATEST_MS


def _is_number_or_none(value: Any) -> bool:
    return value is None or type(value) is int


def _is_duration_or_none(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


_REQUIRED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (_is_text, "text"),
    "type": (_is_type, f"text of 1 to {MAX_TYPE_NAME} characters"),
    "priority": (_is_priority, "critical, high, normal or low"),
    "key": (_is_text_or_none, "text or null"),
    "created_at": (_is_time, "milliseconds since 1970, before the year 10000"),
}
_OPTIONAL: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "max_retries": (_is_number_or_none, "a number or null"),
    "timeout_ms": (_is_duration_or_none, "a number from 1 on, or null"),
    "source": (_is_text, "text"),
    "parent_id": (_is_text_or_none, "text or null"),
}


def check_envelope(record: Record, schema_name: str, job_id: bytes) -> None:
    """See that a record is a job event whose envelope can be used.

    Args:
        record: as its writer's schema gives it.
        schema_name: that schema's full name, for the error.
        job_id: what its bytes begin with, which is what everybody calls the job who does not decode it.

    Raises:
        BadRecord: a field is missing, of another type or out of range.
    """
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise BadRecord(f"a {schema_name} is not a job event: it has no {', '.join(missing)}")
    for name, (fits, wanted) in (_REQUIRED | _OPTIONAL).items():
        if name in record and not fits(record[name]):
            raise BadRecord(f"{schema_name}.{name}: {record[name]!r:.100} is not {wanted}")
    if record["id"].encode("utf-8", "replace") != job_id:
        raise BadRecord(
            f"{schema_name}.id: {record['id']!r:.100} is not the id that the value begins with; "
            "id is the first field of a job event"
        )
