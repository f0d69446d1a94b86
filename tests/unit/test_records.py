from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codec import SINGLE_OBJECT, Codec
from schemas.errors import BadFrame, BadRecord, WireError
from schemas.headers import LATEST_MS, MAX_COUNT, Attempt
from schemas.lifecycle import JobStatus
from schemas.records import (
    REPORT,
    STATUS,
    JobCounter,
    JobMetric,
    StatusChange,
    StatusWriter,
    WorkerReport,
    decode_report,
    decode_status,
    encode_report,
    tail_of,
    zigzag,
)
from schemas.topics import JobPriority
from schemas.wire import WireSchema

pytestmark = pytest.mark.job_processing

texts = st.text(max_size=30)
longs = st.integers(-(2**63), 2**63 - 1)
ints = st.integers(-(2**31), 2**31 - 1)
times = st.integers(0, LATEST_MS)
counts = st.integers(0, MAX_COUNT)
attempts = st.builds(Attempt, counts, texts, times, times, texts, texts)
changes = st.builds(
    StatusChange,
    job_id=st.uuids().map(str) | texts,
    key=st.none() | st.text(max_size=200),
    at=times,
    created_at=times,
    started_at=st.none() | times,
    state=st.sampled_from(JobStatus),
    type=texts,
    priority=st.sampled_from(JobPriority),
    attempt=counts,
    delivery=counts,
    redrives=counts,
    worker=texts,
    not_before=st.none() | times,
    error_type=st.none() | texts,
    error_message=st.none() | texts,
    output=st.none() | texts,
    metrics=st.dictionaries(texts, st.floats(allow_nan=False), max_size=4),
    progress_done=st.none() | longs,
    progress_total=st.none() | longs,
    children=ints,
    attempts=st.lists(attempts, max_size=3).map(tuple),
)
reports = st.builds(
    WorkerReport,
    worker_id=texts,
    incarnation=texts,
    sequence=longs,
    started_at=times,
    at=times,
    host=texts,
    state=texts,
    job_types=st.lists(texts, max_size=3).map(tuple),
    partitions=st.lists(ints, max_size=3).map(tuple),
    running=longs,
    buffered=longs,
    counters=st.lists(
        st.builds(JobCounter, texts, st.sampled_from(JobPriority), texts, longs), max_size=3
    ).map(tuple),
    events=st.dictionaries(texts, longs, max_size=3),
    metrics=st.lists(st.builds(JobMetric, texts, texts, st.floats(allow_nan=False)), max_size=3).map(tuple),
)
PLAIN = StatusChange(
    job_id="01970c4e-8c00-7abc-8def-0123456789ab",
    key=None,
    at=2,
    created_at=1,
    started_at=None,
    state=JobStatus.SUCCEEDED,
    type="t",
    priority=JobPriority.LOW,
    attempt=1,
    delivery=0,
)


def without_logical_types(schema: Any) -> Any:
    match schema:
        case {"logicalType": _}:
            return schema["type"]
        case dict():
            return {name: without_logical_types(value) for name, value in schema.items()}
        case list():
            return [without_logical_types(item) for item in schema]
        case _:
            return schema


PLAIN_SCHEMA = fastavro.parse_schema(without_logical_types(STATUS.schema))


def fastavros_bytes(change: StatusChange) -> bytes:
    """The record as fastavro alone would write it, from the file."""
    record = dataclasses.asdict(change)
    record["state"], record["priority"] = change.state.value, change.priority.value
    record["attempts"] = [
        {
            "attempt": run.attempt,
            "worker": run.worker,
            "started_at": run.started_at_ms,
            "finished_at": run.finished_at_ms,
            "error_type": run.error_type,
            "error_message": run.error_message,
        }
        for run in change.attempts
    ]
    out = BytesIO()
    fastavro.schemaless_writer(out, PLAIN_SCHEMA, record)
    return SINGLE_OBJECT + STATUS.fingerprint + out.getvalue()


# Status changes


@given(changes)
@settings(max_examples=400)
def test_a_status_is_written_as_fastavro_would_and_read_back(change: StatusChange) -> None:
    codec = Codec()
    value = StatusWriter(codec).encode(change)
    assert value == fastavros_bytes(change)
    assert decode_status(codec, value) == change


plain_changes = st.builds(
    StatusChange,
    job_id=st.uuids().map(str),
    key=st.none() | st.text(max_size=2_000),
    at=longs,
    created_at=longs,
    started_at=longs,
    state=st.sampled_from(JobStatus),
    type=texts,
    priority=st.sampled_from(JobPriority),
    attempt=ints,
    delivery=ints,
    redrives=ints,
    worker=texts,
)


@given(plain_changes)
def test_the_fast_path_writes_the_same_bytes(change: StatusChange) -> None:
    writer = StatusWriter(Codec())
    tail = tail_of(
        change.state,
        change.type,
        change.priority,
        change.attempt,
        change.delivery,
        change.redrives,
        change.worker,
    )
    assert change.started_at is not None
    fast = writer.succeeded(
        change.job_id.encode(), change.key, change.at, change.created_at, change.started_at, tail
    )
    assert fast == writer.encode(change)


class Numbered:
    def prefix(self, schema: WireSchema) -> bytes:
        del schema
        return b"\0\0\0\0\x09"


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": LATEST_MS + 1},
        {"created_at": -1},
        {"started_at": 2**62},
        {"not_before": -(2**62)},
        {"attempt": -1},
        {"delivery": 2**31 - 1},
        {"redrives": 2**31 - 1},
        {"attempts": (Attempt(1, "w", 0, 2**62, "E", ""),)},
    ],
)
def test_a_status_with_what_nobody_can_show_or_follow_is_refused(wrong: dict[str, Any]) -> None:
    """Anybody can write one, and it must not hide all other jobs from those who list them."""
    value = StatusWriter(Codec()).encode(dataclasses.replace(PLAIN, **wrong))
    with pytest.raises(BadRecord, match="not a number from 0"):
        decode_status(Codec(), value)


def test_a_status_carries_the_frame_of_its_codec() -> None:
    codec = Codec(Numbered())
    value = StatusWriter(codec).encode(PLAIN)
    assert value[:5] == b"\0\0\0\0\x09"
    codec.store.add(b"\0\0\0\0\x09", STATUS.schema)
    assert decode_status(codec, value) == PLAIN


def test_lone_surrogates_become_question_marks() -> None:
    """A file name that is not UTF-8, in whatever a handler tells, must not make its outcome unwritable."""
    bad = "caf\udce9"
    change = dataclasses.replace(
        PLAIN,
        key=bad,
        error_message=bad,
        metrics={bad: 1.0},
        attempts=(Attempt(1, bad, 1, 2, bad, bad),),
    )
    read = decode_status(Codec(), StatusWriter(Codec()).encode(change))
    assert read == dataclasses.replace(
        change,
        key="caf?",
        error_message="caf?",
        metrics={"caf?": 1.0},
        attempts=(Attempt(1, "caf?", 1, 2, "caf?", "caf?"),),
    )


@given(longs)
@example(0)
@example(-1)
@example(2**63 - 1)
@example(-(2**63))
def test_zigzag_is_an_avro_long(number: int) -> None:
    out = BytesIO()
    fastavro.schemaless_writer(out, "long", number)
    assert zigzag(number) == out.getvalue()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**200])
def test_a_number_over_64_bits_is_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        zigzag(number)
    for change in (dataclasses.replace(PLAIN, at=number), dataclasses.replace(PLAIN, progress_done=number)):
        with pytest.raises((OverflowError, ValueError)):
            StatusWriter(Codec()).encode(change)


def test_the_dataclasses_have_the_fields_of_the_files() -> None:
    for cls, schema in ((StatusChange, STATUS), (WorkerReport, REPORT)):
        assert [field.name for field in dataclasses.fields(cls)] == [
            f["name"] for f in schema.schema["fields"]
        ]


def test_a_status_of_an_older_version_is_filled_up() -> None:
    older = json.loads(STATUS.json)
    younger = {"children", "attempts", "metrics", "output"}
    older["fields"] = [f for f in older["fields"] if f["name"] not in younger]
    written = WireSchema(older)
    codec = Codec()
    codec.store.add(written.fingerprint, older)
    record = {k: v for k, v in dataclasses.asdict(PLAIN).items() if k not in younger}
    value = codec.encode(written, {**record, "state": "succeeded", "priority": "low"})
    first, second = decode_status(codec, value), decode_status(codec, value)
    assert first == second == PLAIN
    assert first.metrics is not second.metrics


# Worker reports


@given(reports)
def test_a_report_is_read_back(report: WorkerReport) -> None:
    codec = Codec()
    value = encode_report(codec, report)
    assert value[:10] == SINGLE_OBJECT + REPORT.fingerprint
    assert decode_report(codec, value) == report


@pytest.mark.parametrize("wrong", [{"started_at": 2**63 - 1}, {"started_at": -1}, {"at": LATEST_MS + 1}])
def test_a_report_with_a_time_that_no_calendar_has_is_refused(wrong: dict[str, Any]) -> None:
    """Whoever finds that it has a rival says since when that one runs, and died of it."""
    report = WorkerReport("w.0", "i", 1, 1, 1, "h", "running", (), (), 0, 0, (), {})
    with pytest.raises(BadRecord, match=r"WorkerReport: \w+ is -?\d+, not a number from 0"):
        decode_report(Codec(), encode_report(Codec(), replace(report, **wrong)))


def test_a_status_is_no_report() -> None:
    codec = Codec()
    with pytest.raises(WireError):
        decode_report(codec, StatusWriter(codec).encode(PLAIN))
    with pytest.raises(BadFrame):
        decode_status(codec, b"")
