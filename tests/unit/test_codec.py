"""Frames, reading without decoding, and what writing refuses."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import MAX_VALUE_BYTES, SINGLE_OBJECT, Codec, peek_id, peek_priority, split
from schemas.errors import BadFrame, BadRecord, InvalidJob, UnknownSchema
from schemas.jobtype import job_type
from schemas.records import REPORT, STATUS, decode_report, decode_status
from schemas.topics import JobPriority
from schemas.wire import WireSchema
from tests.support.codec_samples import RECORDS, CodecJob, field_of, record_schema
from tests.support.events import JOB_ID, envelope, job_value

pytestmark = pytest.mark.job_processing

# Frames


def test_the_single_object_frame_is_that_of_the_specification() -> None:
    value = job_value(CodecJob("a"))
    assert value[:2] == b"\xc3\x01"
    assert value[2:10] == job_type(CodecJob).wire.fingerprint
    assert split(value) == (value[2:10], 10)


#: Published with the Avro specification, as signed 64-bit numbers.
PUBLISHED = [
    ('{"fields":[], "type":"record", "name":"foo"}', -4824392279771201922),
    ('{"fields":[], "type":"record", "name":"foo", "namespace":"x.y"}', 5916914534497305771),
    ('{"fields":[], "type":"record", "name":"a.b.foo", "namespace":"x.y"}', -4616218487480524110),
    ('{"fields":[], "type":"record", "name":"foo", "doc":"Useful info"}', -4824392279771201922),
    ('{"fields":[], "type":"record", "name":"foo", "aliases":["foo","bar"]}', -4824392279771201922),
    (
        '{"fields":[{"type":{"type":"boolean"}, "name":"f1"}], "type":"record", "name":"foo"}',
        7843277075252814651,
    ),
    (
        '{"fields":[{"type":"boolean","name":"f1"},{"name":"f2","type":"int"}],"type":"record","name":"foo"}',
        -4860222112080293046,
    ),
]


@pytest.mark.parametrize(("schema", "number"), PUBLISHED)
def test_fingerprints_are_the_published_ones(schema: str, number: int) -> None:
    fingerprint = WireSchema(json.loads(schema)).fingerprint
    assert int.from_bytes(fingerprint, "little", signed=True) == number


def test_logical_types_and_docs_do_not_change_the_fingerprint() -> None:
    plain = record_schema(field_of("at", "long"))
    said = record_schema(field_of("at", {"type": "long", "logicalType": "timestamp-millis"}, doc="When."))
    assert WireSchema(plain).fingerprint == WireSchema(said).fingerprint


class Numbered:
    """A registry that gives every schema the number 258."""

    def prefix(self, schema: WireSchema) -> bytes:
        del schema
        return b"\0\0\0\1\2"


def test_both_frames_are_read_whatever_is_written() -> None:
    kind = job_type(CodecJob)
    job = CodecJob("a", ["x"], {"k": 1})
    registered = Codec(Numbered())
    framed = registered.encode_job(kind, job, envelope("codec_sample"))
    assert framed[:5] == b"\0\0\0\1\2"
    assert split(framed) == (b"\0\0\0\1\2", 5)
    with pytest.raises(UnknownSchema) as unknown:
        Codec().decode(kind.wire, framed)
    assert unknown.value.schema_key == b"\0\0\0\1\2"

    for codec in (registered, Codec()):
        codec.store.add(b"\0\0\0\1\2", kind.wire.schema)
        for value in (framed, job_value(job)):
            assert kind.from_record(codec.decode(kind.wire, value)) == job
            assert codec.decode(kind.wire, value) == codec.decode_any(
                value, {kind.wire.fingerprint: kind.wire}
            )
            assert peek_id(value) == JOB_ID.encode()
            assert peek_priority(value) is JobPriority.NORMAL


def test_a_registered_status_reads_like_any_other() -> None:
    """Ids stay text and times stay milliseconds under both frames."""
    for name, schema, decode in (
        ("status_change", STATUS, decode_status),
        ("worker_report", REPORT, decode_report),
    ):
        value = (RECORDS / f"{name}.bin").read_bytes()
        codec = Codec()
        read: Callable[[Codec, bytes], Any] = decode
        codec.store.add(b"\0\0\0\0\7", schema.schema)
        assert read(codec, b"\0\0\0\0\7" + value[10:]) == read(codec, value)


@pytest.mark.parametrize(
    "value", [None, b"", b"\xc3", b"\xc3\x01", b"\xc3\x01" + bytes(7), b"\0\0\0\1", b"\1\2\3\4\5\6", b"{}"]
)
def test_what_has_no_frame_is_refused(value: bytes | None) -> None:
    for read in (split, peek_id, peek_priority, lambda v: Codec().decode(STATUS, v)):
        with pytest.raises(BadFrame):
            read(value)


def test_a_value_larger_than_any_of_ours_is_not_even_looked_at() -> None:
    """A compressed batch of a megabyte can hold a record of hundreds, and each byte becomes an object."""
    value = SINGLE_OBJECT + STATUS.fingerprint + bytes(MAX_VALUE_BYTES)
    with pytest.raises(BadFrame, match="1,048,576"):
        Codec().decode(STATUS, value)
    with pytest.raises(BadFrame, match="1,048,576"):
        split(b"\0" + bytes(MAX_VALUE_BYTES))


def test_a_prefix_belongs_to_its_schema_and_not_to_its_address() -> None:
    codec = Codec()
    for number in range(300):
        schema = WireSchema(record_schema(name=f"Short{number}"))
        assert codec.prefix(schema) == SINGLE_OBJECT + schema.fingerprint
        del schema
        gc.collect(0)


# Reading without decoding


@given(st.sampled_from(JobPriority), st.text(max_size=200), st.text(max_size=20))
def test_peeking_finds_what_decoding_finds(priority: JobPriority, name: str, path: str) -> None:
    value = job_value(CodecJob(path), priority=priority.value, type=name)
    assert peek_id(value) == JOB_ID.encode()
    assert peek_priority(value) is priority


@pytest.mark.parametrize("frame", [SINGLE_OBJECT + bytes(8), b"\0\0\0\0\1"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x48",
        b"\x48" + JOB_ID.encode()[:35],
        b"\x46" + JOB_ID.encode(),
        b"\x48" + b"\xff" * 36,
        b"\x48" + b"\x1b[2J" * 9,
        b"\x48" + b"0" * 35 + b"\n",
    ],
)
def test_nothing_but_an_id_is_peeked(frame: bytes, body: bytes) -> None:
    """The id becomes a key, a log field and text on a terminal."""
    with pytest.raises(BadRecord):
        peek_id(frame + body)


# Writing


def test_what_does_not_fit_names_the_field() -> None:
    for job, name in (
        (CodecJob("\udcff"), "path"),
        (CodecJob("a", ["x", 5]), "tags"),  # type: ignore[list-item]
        (CodecJob("a", sizes={"k": 2**63}), "sizes"),
    ):
        with pytest.raises(InvalidJob, match=rf"codec_sample\.{name}"):
            job_value(job)
