"""Bytes and schemas that are damaged, random, or made to do harm: named errors, in little time and memory."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import SINGLE_OBJECT, Codec, SchemaStore, peek_id, peek_priority
from schemas.errors import BadRecord, BadSchema, UnknownSchema, WireError
from schemas.jobtype import job_type
from schemas.records import STATUS, decode_report, decode_status
from schemas.wire import WireSchema
from tests.support.codec_samples import RECORDS, CodecJob, field_of, record_schema, varint
from tests.support.events import job_value

pytestmark = pytest.mark.job_processing


def known_codec() -> Codec:
    codec = Codec()
    codec.store.add(b"\0\0\0\0\1", STATUS.schema)
    codec.store.add(b"\0\0\0\0\2", job_type(CodecJob).wire.schema)
    return codec


def readers() -> list[tuple[bytes, Callable[[bytes], Any]]]:
    codec, kind = known_codec(), job_type(CodecJob)
    job = job_value(CodecJob("bucket/object", ["a", "b"], {"k": 5}, note="n"))
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
        {"type": "map", "values": {"type": "array", "items": "null"}},
        ["null", {"type": "array", "items": {"type": "null"}}],
    ],
    ids=lambda kind: str(kind)[:60],
)
def test_lists_of_nothing_are_refused_before_they_are_read(kind: Any) -> None:
    """Nothing takes no bytes: such a list can claim any length, and fastavro would make all of it."""
    with pytest.raises(BadSchema, match="take no bytes"):
        SchemaStore().add(b"\0\0\0\0\1", record_schema(field_of("a", kind)))


def doubling(levels: int) -> Any:
    """A record of two records of two records … of nothing."""
    kind: Any = {"type": "record", "name": "R0", "fields": [field_of("nothing", "null")]}
    for level in range(1, levels):
        fields = [field_of("left", kind), field_of("right", f"R{level - 1}")]
        kind = {"type": "record", "name": f"R{level}", "fields": fields}
    return kind


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(doubling(40), id="2**40 values of no bytes"),
        pytest.param(
            {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Wide",
                    "fields": [
                        field_of("flag", "boolean"),
                        *(field_of(f"n{number}", "null") for number in range(1_000)),
                    ],
                },
            },
            id="a thousand values for each byte",
        ),
    ],
)
def test_schemas_that_make_much_of_nothing_are_refused_before_anything_is_read(kind: Any) -> None:
    with pytest.raises(BadSchema, match=r"makes .* values of"):
        WireSchema(record_schema(field_of("a", kind)))


def test_a_record_that_may_be_left_out_is_as_good_as_one_that_may_not() -> None:
    """Left out it is a byte and no more than a value, there it is as many bytes as values: no mixture of both."""
    texts = [field_of(f"text{number}", "string") for number in range(100)]
    detail = {"type": "record", "name": "Detail", "fields": texts}
    WireSchema(record_schema(field_of("a", {"type": "array", "items": ["null", detail]})))
    item = {"type": "record", "name": "Item", "fields": [field_of("detail", ["null", detail])]}
    WireSchema(record_schema(field_of("a", {"type": "array", "items": item})))


@pytest.mark.parametrize("size", [-1, 0, True, 1.5, "2"])
def test_a_fixed_size_that_is_none_is_refused(size: Any) -> None:
    """fastavro reads nothing for minus one byte, as often as a list claims."""
    kind = {"type": "array", "items": {"type": "fixed", "name": "F", "size": size}}
    with pytest.raises(BadSchema):
        WireSchema(record_schema(field_of("a", kind)))


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
