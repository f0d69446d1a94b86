from __future__ import annotations

import contextlib
import gc
import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import MAX_VALUE_BYTES, SINGLE_OBJECT, Codec, SchemaStore, peek_id, peek_priority, split
from schemas.errors import BadFrame, BadRecord, BadSchema, InvalidJob, UnknownSchema, WireError
from schemas.job import Job
from schemas.jobtype import derive_schema, job_type
from schemas.records import REPORT, STATUS, decode_report, decode_status
from schemas.topics import JobPriority
from schemas.wire import WireSchema

pytestmark = pytest.mark.job_processing

RECORDS = Path(__file__).parent.parent / "golden" / "records" / "v1"
JOB_ID = "01970c4e-8c00-7abc-8def-0123456789ab"


@dataclass
class CodecJob(Job):
    job_type = "codec_sample"
    path: str
    tags: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    since: datetime = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    note: str | None = None


def envelope(**changes: Any) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "type": "codec_sample",
        "priority": "normal",
        "key": None,
        "created_at": 1_760_000_000_123,
        "max_retries": None,
        "timeout_ms": None,
        "source": "",
        "parent_id": None,
        **changes,
    }


def job_bytes(job: Job, **changes: Any) -> bytes:
    return Codec().encode_job(job_type(type(job)), job, envelope(**changes))


def record_schema(*fields: dict[str, Any], name: str = "Sample") -> dict[str, Any]:
    return {"type": "record", "name": name, "namespace": "test", "fields": list(fields)}


def varint(number: int) -> bytes:
    """An Avro long, written here once more on purpose: the attacker has no use for our encoder."""
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def field_of(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


# Frames


def test_the_single_object_frame_is_that_of_the_specification() -> None:
    value = job_bytes(CodecJob("a"))
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
    framed = registered.encode_job(kind, job, envelope())
    assert framed[:5] == b"\0\0\0\1\2"
    assert split(framed) == (b"\0\0\0\1\2", 5)
    with pytest.raises(UnknownSchema) as unknown:
        Codec().decode(kind.wire, framed)
    assert unknown.value.schema_key == b"\0\0\0\1\2"

    for codec in (registered, Codec()):
        codec.store.add(b"\0\0\0\1\2", kind.wire.schema)
        for value in (framed, job_bytes(job)):
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
    value = job_bytes(CodecJob(path), priority=priority.value, type=name)
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


# Damaged, truncated, random


def known_codec() -> Codec:
    codec = Codec()
    codec.store.add(b"\0\0\0\0\1", STATUS.schema)
    codec.store.add(b"\0\0\0\0\2", job_type(CodecJob).wire.schema)
    return codec


def readers() -> list[tuple[bytes, Callable[[bytes], Any]]]:
    codec, kind = known_codec(), job_type(CodecJob)
    job = job_bytes(CodecJob("bucket/object", ["a", "b"], {"k": 5}, note="n"))
    status = (RECORDS / "status_change.bin").read_bytes()
    report = (RECORDS / "worker_report.bin").read_bytes()
    return [
        (status, lambda value: decode_status(codec, value)),
        (b"\0\0\0\0\1" + status[10:], lambda value: decode_status(codec, value)),
        (report, lambda value: decode_report(codec, value)),
        (job, lambda value: kind.from_record(codec.decode(kind.wire, value))),
        (b"\0\0\0\0\2" + job[10:], lambda value: kind.from_record(codec.decode(kind.wire, value))),
        (job, lambda value: codec.decode_any(value, {kind.wire.fingerprint: kind.wire})),
        (job, peek_id),
        (job, peek_priority),
    ]


def damaged(value: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat; mostly behind the frame, so that the body is what is tried."""
    start = 0 if rng.random() < 0.05 else 5 if value[0] == 0 else 10
    out = bytearray(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(start, len(out)) if len(out) > start else start
        match rng.randrange(5):
            case 0:
                out[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                out[place:place] = rng.randbytes(rng.randint(1, 9))
            case 2:
                del out[place : place + rng.randint(1, 9)]
            case 3:
                out[place:place] = varint(rng.choice((2**31, 2**40, 2**62, -1, -(2**31), -(2**63))))
            case _:
                out[place:place] = out[start:place]
    return bytes(out)


@pytest.mark.parametrize("number", range(8))
def test_damaged_bytes_raise_wire_errors_and_nothing_else(number: int) -> None:
    """15,000 damaged copies for each reader."""
    value, read = readers()[number]
    rng = random.Random(number)
    refused = 0
    for _ in range(15_000):
        copy = damaged(value, rng)
        try:
            read(copy)
        except WireError:
            refused += 1
        except Exception as error:  # noqa: BLE001 - that is what must not happen
            pytest.fail(f"{type(error).__name__}: {error} from {copy.hex()}")
    assert refused > 100


@pytest.mark.parametrize("number", range(6))
def test_no_prefix_of_a_record_is_a_record(number: int) -> None:
    value, read = readers()[number]
    for length in range(len(value)):
        with pytest.raises(WireError):
            read(value[:length])


@pytest.mark.parametrize("number", range(6))
def test_a_record_ends_where_its_value_ends(number: int) -> None:
    """Left-over bytes mean that something else was written than what is read."""
    value, read = readers()[number]
    with pytest.raises(BadRecord, match="ends before"):
        read(value + b"\0")


@given(st.binary(max_size=120), st.sampled_from([b"", *(value[:10] for value, _ in readers())]))
@settings(max_examples=1_000)
def test_random_bytes_raise_wire_errors_and_nothing_else(body: bytes, front: bytes) -> None:
    for _, read in readers():
        try:
            read(front + body)
        except WireError:
            continue


# Bombs

CLAIMS = [2**31, 2**40, 2**62, -1, -(2**31), -(2**40), -(2**62), -(2**63)]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(
    "kind",
    [
        "string",
        "bytes",
        {"type": "array", "items": "string"},
        {"type": "array", "items": "long"},
        {"type": "array", "items": {"type": "array", "items": "boolean"}},
        {"type": "map", "values": "long"},
        {"type": "map", "values": "null"},
        {"type": "enum", "name": "E", "symbols": ["a", "b"]},
        ["null", "string"],
    ],
    ids=lambda kind: str(kind)[:40],
)
def test_a_claimed_length_costs_nothing(kind: Any, claim: int) -> None:
    """A few bytes that claim 2**62 items are found out after those few bytes."""
    schema = WireSchema(record_schema(field_of("a", kind)))
    tracemalloc.start()
    try:
        for tail in (b"", bytes(50)):
            with pytest.raises(BadRecord):
                Codec().decode(schema, SINGLE_OBJECT + schema.fingerprint + varint(claim) + b"\x02" + tail)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


EMPTY = {"type": "record", "name": "Empty", "fields": [field_of("nothing", "null")]}


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "array", "items": "null"},
        {"type": "array", "items": EMPTY},
        {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}},
        {"type": "map", "values": {"type": "array", "items": "null"}},
        ["null", {"type": "array", "items": {"type": "null"}}],
    ],
    ids=lambda kind: str(kind)[:60],
)
def test_lists_of_nothing_are_refused_before_they_are_read(kind: Any) -> None:
    """Nothing takes no bytes: such a list can claim any length, and fastavro would make all of it."""
    with pytest.raises(BadSchema, match="take no bytes"):
        SchemaStore().add(b"\0\0\0\0\1", record_schema(field_of("a", kind)))


def test_an_earlier_empty_record_is_remembered_where_it_is_named_again() -> None:
    schema = record_schema(field_of("one", EMPTY), field_of("many", {"type": "array", "items": "Empty"}))
    with pytest.raises(BadSchema, match="take no bytes"):
        WireSchema(schema)


@pytest.mark.parametrize(
    "kind",
    [
        "Sample",
        ["null", "Sample"],
        {"type": "array", "items": "test.Sample"},
        {"type": "map", "values": "Sample"},
    ],
    ids=str,
)
def test_schemas_that_contain_themselves_are_refused(kind: Any) -> None:
    """10,000 levels of nesting, one byte each, end the C stack and with it the process."""
    with pytest.raises(BadSchema, match="contains itself"):
        SchemaStore().add(b"\0\0\0\0\1", record_schema(field_of("a", kind)))


@pytest.mark.parametrize(
    "schema",
    [
        "string",
        None,
        5,
        [],
        {},
        ["null"],
        {"type": "record"},
        {"type": "record", "name": "R", "fields": 5},
        {"type": "record", "name": "R", "fields": [5]},
        {"type": "record", "name": "R", "fields": [{"name": "a"}]},
        {"type": "record", "name": "R", "fields": [{"name": ["a"], "type": "int"}]},
        {"type": "record", "name": "R", "fields": [field_of("a", "nonsense")]},
        {"type": "record", "name": "R", "fields": [field_of("a", "int", default="x")]},
        {"type": "array", "items": "long", "fields": []},
        {"type": "enum", "name": "E", "symbols": ["a"]},
        {"__fastavro_parsed": True, "__named_schemas": {}, "fields": [field_of("a", "nonsense")]},
    ],
    ids=lambda schema: str(schema)[:50],
)
def test_what_is_no_record_schema_is_a_named_error(schema: Any) -> None:
    with pytest.raises(BadSchema):
        SchemaStore().add(b"\0\0\0\0\1", schema)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b'"' + b"x" * 1_100_000 + b'"'],
    ids=lambda text: str(text)[:12],
)
def test_what_is_no_json_is_a_bad_schema(text: bytes) -> None:
    """From a registry as well: a worker that takes it for an outage tries again for ever."""
    with pytest.raises(BadSchema):
        SchemaStore().add_json(b"\0\0\0\0\1", text)


@pytest.mark.parametrize("where", ["name", "doc", "namespace"])
def test_a_schema_with_text_that_utf8_cannot_hold_is_a_bad_schema_at_most(where: str) -> None:
    text = json.dumps({"type": "record", "name": "R", "fields": [], where: "\ud800"})
    with contextlib.suppress(BadSchema):
        SchemaStore().add_json(b"\0\0\0\0\1", text)


schema_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        ["null", "int", "long", "string", "bytes", "record", "array", "map", "enum", "fixed", "R", "\ud800"]
    )
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "name",
                    "namespace",
                    "fields",
                    "items",
                    "values",
                    "symbols",
                    "size",
                    "default",
                    "aliases",
                    "logicalType",
                    "precision",
                    "scale",
                    "doc",
                    "order",
                    "__fastavro_parsed",
                    "__named_schemas",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(schema_json, schema_json)
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_a_schema_or_a_bad_schema(kind: Any, whole: Any) -> None:
    """And with whatever is a schema any bytes can be read, or are a bad record."""
    field = {"type": "record", "name": "R", "fields": [{"name": "a", "type": kind}]}
    for number, schema in enumerate((whole, field)):
        store, key = SchemaStore(), bytes((0, 0, 0, 0, number))
        try:
            store.add_json(key, json.dumps(schema))
        except BadSchema:
            continue
        for body in (b"", bytes(40), b"\x02" * 40, b"\xff" * 40):
            with contextlib.suppress(WireError):
                Codec(store=store).decode_any(key + b"\x48" + b"0" * 36 + body, {})


@pytest.mark.parametrize("levels", [1_000, 5_000])
def test_a_schema_of_many_levels_is_a_named_error(levels: int) -> None:
    kind: Any = "long"
    for _ in range(levels):
        kind = {"type": "array", "items": kind}
    with pytest.raises(BadSchema):
        WireSchema(record_schema(field_of("a", kind)))


def test_a_schema_under_another_ones_fingerprint_is_refused() -> None:
    """Else whoever can write to the topic of schemas could make every later record mean something else."""
    store = SchemaStore()
    with pytest.raises(BadSchema, match="filed under"):
        store.add(STATUS.fingerprint, record_schema(field_of("a", "long")))
    with pytest.raises(UnknownSchema):
        store.get(STATUS.fingerprint)
    store.add(STATUS.fingerprint, STATUS.schema)
    assert store.get(STATUS.fingerprint).full_name == "rustfs.status.StatusChange"


# Other versions


def rewritten(writer: dict[str, Any], record: dict[str, Any], reader: WireSchema) -> dict[str, Any]:
    """A record written with one schema and read through another."""
    codec = Codec()
    written = WireSchema(writer)
    codec.store.add(written.fingerprint, writer)
    return codec.decode(reader, codec.encode(written, record))


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
    written = {**envelope(), "path": "p", "sizes": {"k": 1}}
    first = kind.from_record(rewritten(older_schema(), written, kind.wire))
    assert first == CodecJob("p", sizes={"k": 1})
    assert isinstance(first, CodecJob)
    first.tags.append("mine")
    assert kind.from_record(rewritten(older_schema(), written, kind.wire)) == CodecJob("p", sizes={"k": 1})


def test_an_older_envelope_is_filled_up() -> None:
    schema = derive_schema(CodecJob)
    older = {**schema, "fields": [f for f in schema["fields"] if f["name"] not in ("source", "parent_id")]}
    written = envelope(path="p", tags=[], sizes={}, since=datetime(2025, 1, 1, tzinfo=UTC), note=None)
    record = rewritten(
        older, {k: v for k, v in written.items() if k not in ("source", "parent_id")}, job_type(CodecJob).wire
    )
    assert (record["source"], record["parent_id"], record["id"]) == ("", None, JOB_ID)
    assert record["created_at"] == 1_760_000_000_123


# Writing


def test_what_does_not_fit_names_the_field() -> None:
    for job, name in (
        (CodecJob("\udcff"), "path"),
        (CodecJob("a", ["x", 5]), "tags"),  # type: ignore[list-item]
        (CodecJob("a", sizes={"k": 2**63}), "sizes"),
    ):
        with pytest.raises(InvalidJob, match=rf"codec_sample\.{name}"):
            job_bytes(job)
