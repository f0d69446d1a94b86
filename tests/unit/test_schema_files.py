"""The contract on the wire: schema files, their versions, and frozen bytes of one record of every schema.

``tests/golden/schemas/v<n>`` holds every version that was ever released, ``tests/golden/records/v<n>`` a
record written with each. Neither is ever changed; a new version is a new folder.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import Schema, parse
from dataclasses_avroschema import AvroModel

from schemas.codec import SINGLE_OBJECT, Codec, SchemaStore
from schemas.headers import Attempt
from schemas.job import Job, declared_job_types
from schemas.jobtype import ENVELOPE_FIELDS, derive_schema, job_type
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
)
from schemas.topics import JobPriority
from schemas.wire import WireSchema, load_avsc
from workers.handlers.replication import ReplicationJob

pytestmark = pytest.mark.job_processing

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = ("envelope", "replication", "status_change", "worker_report")
VERSIONS = sorted(path.name for path in (GOLDEN / "schemas").iterdir())
NEWEST = VERSIONS[-1]


class Shade(enum.Enum):
    LIGHT = "light"
    DARK = "dark"


@dataclass
class Box(AvroModel):
    left: int
    label: str = ""


@dataclass
class GoldenJob(Job):
    job_type = "golden.sample-job"
    path: str
    shade: Shade
    boxes: list[Box]
    wait: timedelta
    since: datetime
    raw: bytes
    sizes: dict[str, int] = field(default_factory=dict)
    ratio: float = 0.5
    note: str | None = None
    loud: bool = False


ENVELOPE = {
    "id": "01970c4e-8c00-7abc-8def-0123456789ab",
    "type": "replication",
    "priority": "high",
    "key": "bücket/größe.bin",
    "created_at": 1_760_000_000_123,
    "max_retries": 3,
    "timeout_ms": None,
    "source": "node-1",
    "parent_id": "01970c4e-8c00-7abc-8def-0123456789aa",
}
STATUS_SAMPLE = StatusChange(
    job_id="01970c4e-8c00-7abc-8def-0123456789ab",
    key="bücket/größe.bin",
    at=1_760_000_000_456,
    created_at=1_760_000_000_123,
    started_at=1_760_000_000_400,
    state=JobStatus.RETRYING,
    type="replication",
    priority=JobPriority.HIGH,
    attempt=2,
    delivery=3,
    redrives=1,
    worker="worker-1.0",
    not_before=1_760_000_005_000,
    error_type="NodeUnreachable",
    error_message="node-3 did not answer",
    output='{"copied":1}',
    metrics={"bytes": 2048.0},
    progress_done=1,
    progress_total=2,
    children=4,
    attempts=(Attempt(1, "worker-2.0", 1_760_000_000_200, 1_760_000_000_300, "TimeoutError", "after 60 s"),),
)
REPORT_SAMPLE = WorkerReport(
    worker_id="worker-1.0",
    incarnation="5f3a",
    sequence=7,
    started_at=1_760_000_000_000,
    at=1_760_000_007_000,
    host="näher",
    state="running",
    job_types=("cleanup", "replication"),
    partitions=(0, 11),
    running=3,
    buffered=250,
    counters=(JobCounter("replication", JobPriority.LOW, "succeeded", 12_345),),
    events={"duplicates": 1},
    metrics=(JobMetric("replication", "bytes_copied", 2048.5),),
)
REPLICATION_SAMPLE = ReplicationJob(
    source_path="bücket/größe.bin",
    target_nodes=["node-2", "node-3"],
    replication_factor=1,
    source_node="node-1",
    expected_sha256="00ff",
    expected_size=123_456_789_012,
    overwrite="always",
    verify="sha256",
)
USER_SAMPLE = GoldenJob(
    path="a/b",
    shade=Shade.DARK,
    boxes=[Box(1, "x"), Box(-2)],
    wait=timedelta(minutes=1, milliseconds=1),
    since=datetime(2025, 10, 9, 8, 7, 6, 543_000, UTC),
    raw=b"\x00\xff",
    sizes={"k": 2**40},
    ratio=-0.25,
    note="n",
    loud=True,
)


def job_bytes(job: Job) -> bytes:
    kind = job_type(type(job))
    return Codec().encode_job(kind, job, {**ENVELOPE, "type": kind.name})


def encoded_samples() -> dict[str, bytes]:
    codec = Codec()
    return {
        "status_change": StatusWriter(codec).encode(STATUS_SAMPLE),
        "worker_report": encode_report(codec, REPORT_SAMPLE),
        "replication": job_bytes(REPLICATION_SAMPLE),
        "user_type": job_bytes(USER_SAMPLE),
    }


def stored(version: str, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((GOLDEN / "schemas" / version / f"{name}.avsc").read_text())
    return schema


def current(name: str) -> dict[str, Any]:
    return derive_schema(GoldenJob) if name == "user_type" else load_avsc(name)


def own_fields(schema: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names, types and defaults of a job's own fields: everything but what is said to people."""
    rows = [(f["name"], undocumented(f["type"]), f.get("default", "required")) for f in schema["fields"]]
    return rows[len(ENVELOPE_FIELDS) :]


def undocumented(schema: Any) -> Any:
    """Without docs, and without the names that the library gives to lists and maps: Avro has none there."""
    match schema:
        case {"type": "array" | "map"}:
            return {key: undocumented(value) for key, value in schema.items() if key not in ("doc", "name")}
        case dict():
            return {key: undocumented(value) for key, value in schema.items() if key != "doc"}
        case list():
            return [undocumented(item) for item in schema]
        case _:
            return schema


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


def compatibility(reader: Schema, writer: Schema) -> SchemaCompatibilityType:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    return checker.get_compatibility(reader, writer).compatibility


# Frozen bytes


@pytest.mark.parametrize("name", ["status_change", "worker_report", "replication", "user_type"])
def test_todays_encoder_writes_the_frozen_bytes(name: str) -> None:
    """A change here means that other programs see other bytes: a new version, not a new golden file."""
    frozen = (GOLDEN / "records" / NEWEST / f"{name}.bin").read_bytes()
    assert encoded_samples()[name].hex() == frozen.hex()


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_every_version_decode_for_ever(version: str) -> None:
    store = SchemaStore()
    for name in ("status_change", "worker_report", "replication", "user_type"):
        schema = stored(version, name)
        store.add(WireSchema(schema).fingerprint, schema)
    codec = Codec(store=store)
    value = {path.stem: path.read_bytes() for path in (GOLDEN / "records" / version).iterdir()}

    assert decode_status(codec, value["status_change"]) == STATUS_SAMPLE
    assert decode_report(codec, value["worker_report"]) == REPORT_SAMPLE
    for name, sample in (("replication", REPLICATION_SAMPLE), ("user_type", USER_SAMPLE)):
        kind = job_type(type(sample))
        record = codec.decode(kind.wire, value[name])
        assert kind.from_record(record) == sample
        assert {field_name: record[field_name] for field_name in ENVELOPE} == {**ENVELOPE, "type": kind.name}


@pytest.mark.parametrize("name", ["status_change", "worker_report", "replication", "user_type"])
def test_frozen_bytes_say_the_same_to_a_reader_of_another_make(name: str) -> None:
    """Any Avro library, given the frozen schema and the body behind the frame, reads all of it."""
    body = BytesIO((GOLDEN / "records" / NEWEST / f"{name}.bin").read_bytes())
    assert body.read(2) == SINGLE_OBJECT
    body.seek(10)
    record = fastavro.schemaless_reader(body, stored(NEWEST, name), None)
    assert isinstance(record, dict)
    assert list(record) == [f["name"] for f in stored(NEWEST, name)["fields"]]
    assert body.read() == b""


# Versions


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*FILES, "user_type"])
def test_every_schema_reads_what_every_version_wrote(name: str, version: str) -> None:
    # The library warns of logical types that are not Avro's, such as a timedelta's.
    reader = parse(json.dumps(without_logical_types(current(name))))
    writer = parse(json.dumps(without_logical_types(stored(version, name))))
    assert compatibility(reader, writer) is SchemaCompatibilityType.compatible


@pytest.mark.parametrize("name", [*FILES, "user_type"])
def test_the_newest_stored_version_is_the_file(name: str) -> None:
    """A schema that changes gets a stored version before its release: the next change is compared to it."""
    assert WireSchema(current(name)).fingerprint == WireSchema(stored(NEWEST, name)).fingerprint


def test_the_checker_notices_a_field_that_old_records_do_not_have() -> None:
    """The test above could not fail if it took anything."""
    changed = load_avsc("status_change")
    changed["fields"].append({"name": "new", "type": "string"})
    old = parse(json.dumps(stored("v1", "status_change")))
    assert compatibility(parse(json.dumps(changed)), old) is SchemaCompatibilityType.incompatible


# Files and classes


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_avro_by_two_libraries(name: str) -> None:
    assert (
        getattr(parse(json.dumps(load_avsc(name))), "fullname", "") == WireSchema(load_avsc(name)).full_name
    )


@pytest.mark.parametrize("name", [*FILES, "user_type"])
def test_two_libraries_agree_on_the_fingerprint(name: str) -> None:
    # The avro package leaves {"type": "long"} where a logical type stood; the specification wants "long".
    bare = without_logical_types(current(name))
    assert parse(json.dumps(bare)).fingerprint() == WireSchema(current(name)).fingerprint


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (Path(__file__).parents[2] / "schemas" / "avro").glob("*.avsc"))
)
def test_job_files_begin_with_exactly_the_envelope(name: str) -> None:
    schema = load_avsc(name)
    assert name in FILES, "a new schema file needs a golden record and a stored version"
    if schema["namespace"] == "rustfs.jobs":
        assert schema["fields"][: len(ENVELOPE_FIELDS)] == ENVELOPE_FIELDS


def with_files() -> list[type[Job]]:
    return [cls for cls in declared_job_types().values() if cls.schema_file]


def test_the_built_in_job_has_a_file() -> None:
    assert ReplicationJob in with_files()


@pytest.mark.parametrize("cls", with_files(), ids=lambda cls: cls.job_type)
def test_a_class_and_its_file_agree(cls: type[Job]) -> None:
    assert cls.schema_file is not None
    file = load_avsc(cls.schema_file)
    assert own_fields(file) == own_fields(derive_schema(cls))
    assert file["name"] == derive_schema(cls)["name"]
    assert file["namespace"] == "rustfs.jobs"


def test_states_and_priorities_in_the_files_are_those_of_the_code() -> None:
    def symbols(schema: dict[str, Any], name: str) -> list[str]:
        found: list[str] = next(f["type"]["symbols"] for f in schema["fields"] if f["name"] == name)
        return found

    assert symbols(STATUS.schema, "state") == [state.value for state in JobStatus]
    assert symbols(STATUS.schema, "priority") == [priority.value for priority in JobPriority]
    assert symbols(load_avsc("envelope"), "priority") == [priority.value for priority in JobPriority]
    counter = next(f for f in REPORT.schema["fields"] if f["name"] == "counters")["type"]["items"]
    assert symbols(counter, "priority") == [priority.value for priority in JobPriority]
