"""Records of an earlier or a later release."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.codec import Codec
from schemas.errors import BadRecord
from schemas.jobtype import derive_schema, job_type
from schemas.records import STATUS
from schemas.wire import WireSchema
from tests.support.codec_samples import RECORDS, CodecJob, field_of, record_schema, rewritten
from tests.support.events import JOB_ID, envelope

pytestmark = pytest.mark.job_processing


def test_an_added_field_has_its_default() -> None:
    old = record_schema(field_of("a", "string"))
    new = record_schema(
        field_of("a", "string"),
        field_of("b", ["null", "long"], default=None),
        field_of("c", "long", default=7),
    )
    assert rewritten(old, {"a": "x"}, WireSchema(new)) == {"a": "x", "b": None, "c": 7}


def test_defaults_are_not_shared_between_records() -> None:
    old = record_schema(field_of("a", "string"))
    new = WireSchema(
        record_schema(field_of("a", "string"), field_of("b", {"type": "array", "items": "long"}, default=[]))
    )
    rewritten(old, {"a": "x"}, new)["b"].append(1)
    assert rewritten(old, {"a": "x"}, new) == {"a": "x", "b": []}


def test_a_field_that_is_gone_is_skipped() -> None:
    old = record_schema(
        field_of("a", "string"), field_of("gone", {"type": "array", "items": "string"}), field_of("b", "long")
    )
    new = record_schema(field_of("b", "long"), field_of("a", "string"))
    assert rewritten(old, {"a": "x", "gone": ["y"], "b": 3}, WireSchema(new)) == {"b": 3, "a": "x"}


def test_a_renamed_field_is_found_by_its_alias() -> None:
    old = record_schema(field_of("path", "string"))
    new = record_schema(field_of("source", "string", aliases=["path"], default="?"))
    assert rewritten(old, {"path": "x"}, WireSchema(new)) == {"source": "x"}
    own = WireSchema(new, own_defaults=frozenset({"source"}))
    assert rewritten(old, {"path": "x"}, own) == {"source": "x"}


def test_a_number_may_grow() -> None:
    old, new = record_schema(field_of("a", "int")), record_schema(field_of("a", "double"))
    assert rewritten(old, {"a": 3}, WireSchema(new)) == {"a": 3.0}


@pytest.mark.parametrize(
    "new",
    [
        record_schema(field_of("a", "long")),
        record_schema(field_of("other", "string")),
        record_schema(field_of("a", "string"), name="Another"),
    ],
    ids=["another type", "a field without default", "another record"],
)
def test_what_does_not_fit_together_is_a_bad_record(new: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        rewritten(record_schema(field_of("a", "string")), {"a": "x"}, WireSchema(new))


def test_a_state_that_this_version_does_not_know_is_a_bad_record() -> None:
    """A newer writer is not misread; the record waits as a dead letter."""
    newer = json.loads(STATUS.json)
    state = next(f for f in newer["fields"] if f["name"] == "state")
    state["type"]["symbols"].append("paused")
    record = Codec().decode(STATUS, (RECORDS / "status_change.bin").read_bytes())
    assert rewritten(newer, record, STATUS) == record
    record["state"] = "paused"
    with pytest.raises(BadRecord, match="paused"):
        rewritten(newer, record, STATUS)


def older_schema() -> dict[str, Any]:
    """The job as it was before three of its fields were thought of."""
    schema = derive_schema(CodecJob)
    return {**schema, "fields": [f for f in schema["fields"] if f["name"] not in ("tags", "since", "note")]}


def test_a_job_written_before_a_field_existed_gets_the_classs_own_default() -> None:
    """Of the right type (a date, not a number), and its own (a list that nobody else has)."""
    kind = job_type(CodecJob)
    written = {**envelope("codec_sample"), "path": "p", "sizes": {"k": 1}}
    first = kind.from_record(rewritten(older_schema(), written, kind.wire))
    assert first == CodecJob("p", sizes={"k": 1})
    assert isinstance(first, CodecJob)
    first.tags.append("mine")
    assert kind.from_record(rewritten(older_schema(), written, kind.wire)) == CodecJob("p", sizes={"k": 1})


def test_an_older_envelope_is_filled_up() -> None:
    schema = derive_schema(CodecJob)
    older = {**schema, "fields": [f for f in schema["fields"] if f["name"] not in ("source", "parent_id")]}
    written = envelope(
        "codec_sample", path="p", tags=[], sizes={}, since=datetime(2025, 1, 1, tzinfo=UTC), note=None
    )
    record = rewritten(
        older, {k: v for k, v in written.items() if k not in ("source", "parent_id")}, job_type(CodecJob).wire
    )
    assert (record["source"], record["parent_id"], record["id"]) == ("", None, JOB_ID)
    assert record["created_at"] == 1_760_000_000_000
