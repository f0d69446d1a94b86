"""What a replication job says, checked and turned into a result without touching a node."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest

from schemas import Topics
from schemas.codec import Codec
from schemas.jobtype import job_type
from schemas.records import MAX_OUTPUT_BYTES
from schemas.wire import load_avsc
from streams.outgoing import JobOptions, Rules, plan
from workers.handlers.replication import Plan, ReplicationJob, output_of, plan_of, result_of
from workers.results import Failed, Success
from workers.storage import CopyReport, ObjectKey, TargetResult
from workers.storage.errors import InvalidKey, InvalidReplication

pytestmark = pytest.mark.job_processing

JOB = ReplicationJob(source_path="bucket/a/key", target_nodes=["n2", "n3"])
COMPLETED, ALREADY_OK = TargetResult("COMPLETED"), TargetResult("ALREADY_OK")


def failed(
    kind: str = "NodeUnreachable", *, retryable: bool = True, error: str = "no answer"
) -> TargetResult:
    return TargetResult("FAILED", error, kind, retryable)


def report(**targets: TargetResult) -> CopyReport:
    return CopyReport(1000, "ab" * 32, targets)


def test_the_ordering_key_is_the_normalised_object() -> None:
    assert replace(JOB, source_path="/bucket/a/key").ordering_key() == "bucket/a/key"
    assert JOB.ordering_key() == "bucket/a/key"


def test_the_longest_object_key_can_be_scheduled() -> None:
    path = "b" * 63 + "/" + "k" * 1024
    rules = Rules(Codec(), Topics(), "host:1")
    assert plan(replace(JOB, source_path=path), JobOptions(), 0, rules).key == path.encode()


@pytest.mark.parametrize("path", ["", "bucket", "bucket/../key", "bucket/\ud800", ".rfw/tmp/x"])
def test_a_path_that_names_no_object_has_no_ordering_key(path: str) -> None:
    """It is accepted when scheduled and refused by the worker, where everybody can see it."""
    job = replace(JOB, source_path=path)
    assert job.ordering_key() is None
    with pytest.raises(InvalidKey):
        plan_of(job)


def test_a_job_travels_as_its_schema_file_says() -> None:
    job = ReplicationJob("bucket/ü", ["n2"], 1, "n1", "ab" * 32, 5, "never", "sha256")
    kind = job_type(ReplicationJob)
    envelope = {
        "id": str(uuid.UUID(int=7)),
        "type": kind.name,
        "priority": "high",
        "key": None,
        "created_at": 0,
        "max_retries": None,
        "timeout_ms": None,
        "source": "",
        "parent_id": None,
    }
    record = kind.wire.decode(BytesIO(kind.wire.encode(kind.to_record(job, envelope))))
    assert kind.from_record(record) == job


def test_the_defaults_in_code_are_those_of_the_schema_file() -> None:
    """A producer in another language that leaves a field out means the same."""
    given = {"source_path": "bucket/key", "target_nodes": ["n2"]}
    fields = load_avsc("replication")["fields"]
    defaults = {field["name"]: field["default"] for field in fields if "default" in field}
    job = ReplicationJob(**given)  # type: ignore[arg-type]
    ours = {name: value for name, value in vars(job).items() if name not in given}
    assert ours == {name: defaults[name] for name in ours}
    assert len(ours) == 6


def test_a_plan_has_lower_case_names_and_a_number_of_copies() -> None:
    job = replace(
        JOB, target_nodes=["N2", "n3"], source_node="N1", expected_sha256="AB" * 32, expected_size=0
    )
    assert plan_of(job) == Plan(
        key=ObjectKey("bucket", "a/key"),
        targets=("n2", "n3"),
        wanted=2,
        source_node="n1",
        sha256="ab" * 32,
        size=0,
        overwrite="if_different",
        verify="readback",
    )
    assert plan_of(replace(JOB, replication_factor=1)).wanted == 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"target_nodes": []}, "target_nodes is empty"),
        ({"target_nodes": ["n2", "N2"]}, "twice"),
        ({"target_nodes": [f"n{n}" for n in range(65)]}, "at most 64"),
        ({"target_nodes": ["n2", "x" * 65]}, "longer than a node's name"),
        ({"target_nodes": ["n2", "€" * 22]}, "longer than a node's name"),
        ({"source_node": "N2"}, "no replica of itself"),
        ({"replication_factor": -1}, "replication_factor is -1 with 2"),
        ({"replication_factor": 3}, "replication_factor is 3 with 2"),
        ({"expected_sha256": "abc"}, "64 hexadecimal"),
        ({"expected_sha256": ""}, "64 hexadecimal"),
        ({"expected_size": -1}, "negative"),
        ({"overwrite": "perhaps"}, "if_different, never, always"),
        ({"verify": "no"}, "readback, sha256, size"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidReplication, match=why) as caught:
        plan_of(replace(JOB, **fields))
    assert not caught.value.retryable


def test_a_success_says_what_was_done_where() -> None:
    assert result_of(report(n2=COMPLETED, n3=ALREADY_OK), 2) == Success(
        {
            "copied": 1,
            "already_ok": 1,
            "bytes": 1000,
            "sha256": "ab" * 32,
            "targets": {
                "n2": {"state": "COMPLETED", "error": None},
                "n3": {"state": "ALREADY_OK", "error": None},
            },
        }
    )


def test_enough_copies_are_a_success_that_names_the_failed_target() -> None:
    result = result_of(report(n2=COMPLETED, n3=failed()), 1)
    assert isinstance(result, Success)
    assert result.output is not None
    assert result.output["targets"]["n3"] == {"state": "FAILED", "error": "no answer"}


def test_too_few_copies_are_a_failure_with_each_reason() -> None:
    result = result_of(report(n2=ALREADY_OK, n3=failed()), 2)
    assert result == Failed(
        "1 of 2 copies complete (n2); n3: NodeUnreachable: no answer",
        retryable=True,
        error_type="NodeUnreachable",
    )


@pytest.mark.parametrize(
    ("hopeful", "wanted", "retryable"), [(True, 2, False), (True, 1, True), (False, 1, False)]
)
def test_a_failure_is_retried_only_if_what_can_pass_is_enough(
    hopeful: bool,  # noqa: FBT001
    wanted: int,
    retryable: bool,  # noqa: FBT001
) -> None:
    result = result_of(
        report(n2=failed("NameRefused", retryable=False), n3=failed("NodeFull", retryable=hopeful)), wanted
    )
    assert isinstance(result, Failed)
    assert result.retryable is retryable
    assert result.error_type == "TargetsFailed"
    assert "n2: NameRefused" in result.reason
    assert "n3: NodeFull" in result.reason


def test_the_reason_stays_short_and_names_every_target() -> None:
    targets = {f"node-{n}": failed(error="x" * 500) for n in range(8)}
    result = result_of(report(**targets), 8)
    assert isinstance(result, Failed)
    assert len(result.reason) <= 512
    assert all(name in result.reason for name in targets)


def test_a_reason_for_many_targets_says_who_has_a_copy_and_who_failed_of_what() -> None:
    """Forty reasons of eleven characters would name nobody, and leave no reason."""
    targets = {f"node-{n}": failed("NodeFull" if n % 8 == 0 else "NodeUnreachable") for n in range(40)}
    result = result_of(report(**targets, spare=COMPLETED, other=ALREADY_OK), 42)
    assert isinstance(result, Failed)
    assert len(result.reason) <= 512
    assert result.reason.startswith("2 of 42 copies complete (spare, other); ")
    assert "NodeFull: node-0, node-8, node-16, node-24, node-32" in result.reason
    assert "NodeUnreachable: node-1, node-2, " in result.reason


def test_secrets_do_not_reach_the_reason() -> None:
    targets = {"n2": failed(error="PUT https://user:hunter2@host?X-Amz-Signature=abc123 failed")}
    result = result_of(report(**targets), 1)
    assert isinstance(result, Failed)
    assert "hunter2" not in result.reason
    assert "abc123" not in result.reason


def test_the_output_of_the_largest_job_fits() -> None:
    names = [f"{n:02}" + "n" * 62 for n in range(64)]
    targets = {name: failed(error="€" * 512) for name in names[1:]} | {names[0]: COMPLETED}
    output = json.dumps(output_of(report(**targets)), ensure_ascii=False, separators=(",", ":"))
    assert len(output.encode()) <= MAX_OUTPUT_BYTES
