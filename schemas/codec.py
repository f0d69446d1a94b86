"""Between records and framed bytes. Readers accept both frames always; writers use one.

Single-object (Avro specification):  C3 01 | fingerprint, 8 bytes little-endian | body
Confluent (schema registry):         00 | schema id, 4 bytes big-endian        | body

The codec does no I/O: which schema a fingerprint or an id stands for is asked of a ``SchemaStore``,
and a frame that nobody knows is an ``UnknownSchema``, which a worker answers by reading on.
"""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import Any, Final, Protocol

from schemas.envelope import check_envelope
from schemas.errors import BadFrame, BadRecord, BadSchema, UnknownSchema
from schemas.job import Job
from schemas.jobtype import ENVELOPE_NAMES, JobType
from schemas.topics import JobPriority
from schemas.wire import Record, Schema, WireSchema

SINGLE_OBJECT: Final = b"\xc3\x01"
CONFLUENT: Final = 0
_CONFLUENT_HEADER = 5
_SINGLE_HEADER = 10
_ID_LENGTH = 36
#: A frame and, after its length as an Avro string (0x48: 36), the id. It becomes a key, a log field and text
#: on terminals: nothing passes but what a UUID is made of.
_JOB_FRONT = re.compile(rb"(?:\xc3\x01.{8}|\x00.{4})\x48([0-9A-Fa-f-]{36})", re.DOTALL)

#: No value of ours is larger (a job's payload has at most 256 KiB). A compressed batch can hold one of
#: hundreds of megabytes, and each byte of it can become an object of a hundred.
MAX_VALUE_BYTES: Final = 1024 * 1024


class Framing(Protocol):
    """Writes the front of a value; may ask a registry the first time it sees a schema."""

    def prefix(self, schema: WireSchema) -> bytes:
        """The bytes before the body."""
        ...


class SingleObjectFraming:
    """The frame of the Avro specification: needs no registry."""

    def prefix(self, schema: WireSchema) -> bytes:
        """Marker and fingerprint."""
        return SINGLE_OBJECT + schema.fingerprint


class SchemaStore:
    """Schemas by frame key: the 8 bytes of a fingerprint, or the 5 bytes of a Confluent header.

    Filled by whoever reads the ``schemas`` topic or asks a registry. Safe from any thread: entries are only
    ever added.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, WireSchema] = {}

    def add(self, key: bytes, schema: Schema) -> None:
        """Remember what a frame key stands for.

        Raises:
            BadSchema: it is no Avro record, is not safe to read, or has another fingerprint than ``key``.
        """
        if key in self._by_key:
            return
        known = WireSchema(schema, primitive=_primitive_fields(schema))
        if len(key) == len(known.fingerprint) and key != known.fingerprint:
            raise BadSchema(f"{known.full_name} is filed under {key.hex()}, not {known.fingerprint.hex()}")
        self._by_key[key] = known

    def add_json(self, key: bytes, text: bytes | str) -> None:
        """The same from text, which may come from anyone.

        Raises:
            BadSchema: also if it is no JSON, or too much of it to be looked at.
        """
        if len(text) > MAX_VALUE_BYTES:
            raise BadSchema(f"a schema has {len(text):,} bytes; none of ours has over {MAX_VALUE_BYTES:,}")
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSchema(f"a schema is no JSON: {type(error).__name__}: {error}"[:300]) from error
        self.add(key, schema)

    def get(self, key: bytes) -> WireSchema:
        """The schema of a frame key.

        Raises:
            UnknownSchema: nobody has added it.
        """
        try:
            return self._by_key[key]
        except KeyError:
            raise UnknownSchema(key) from None


class Codec:
    """Encodes with one framing, decodes both. Safe from any thread."""

    def __init__(self, framing: Framing | None = None, store: SchemaStore | None = None) -> None:
        self.framing = framing or SingleObjectFraming()
        self.store = store or SchemaStore()
        self._prefixes: dict[WireSchema, bytes] = {}

    def prefix(self, schema: WireSchema) -> bytes:
        """The frame of a schema, made once."""
        prefix = self._prefixes.get(schema)
        if prefix is None:
            prefix = self._prefixes[schema] = self.framing.prefix(schema)
        return prefix

    def has_prefix(self, schema: WireSchema) -> bool:
        """Whether ``prefix`` asks nobody."""
        return schema in self._prefixes

    def encode(self, schema: WireSchema, record: Record) -> bytes:
        """Frame and body."""
        return self.prefix(schema) + schema.encode(record)

    def decode(self, schema: WireSchema, value: bytes | None) -> Record:
        """A framed record of ``schema`` or of any other version of it.

        Raises:
            BadFrame, UnknownSchema, BadRecord.
        """
        key, start = split(value)
        assert value is not None  # noqa: S101 - split() refuses None
        body = BytesIO(value)
        body.seek(start)
        if key == schema.fingerprint:
            return schema.decode(body)
        written = self.store.get(key)
        if written.fingerprint == schema.fingerprint:  # the same schema under a registry's number
            return schema.decode(body)
        return written.decode(body, as_schema=schema)

    def encode_job(self, job_type: JobType, job: Job, envelope: Record) -> bytes:
        """A job event. Fills ``envelope``, which then is the whole record.

        Raises:
            InvalidJob: a field has a value that it cannot have.
        """
        record = job_type.to_record(job, envelope)
        try:
            body = job_type.wire.encode(record)
        except Exception as error:  # fastavro and the methods of the user's values raise nearly anything
            raise job_type.refusal(record, error) from error
        return self.prefix(job_type.wire) + body

    def decode_any(self, value: bytes | None, known: dict[bytes, WireSchema]) -> Record:
        """A job event seen through the schema that wrote it: for people who look at jobs of any type.

        Raises:
            BadFrame, UnknownSchema, BadRecord: also if the envelope is not what it must be.
        """
        key, start = split(value)
        assert value is not None  # noqa: S101
        body = BytesIO(value)
        body.seek(start)
        schema = known.get(key) or self.store.get(key)
        record = schema.decode(body)
        check_envelope(record, schema.full_name, peek_id(value))
        return record


def split(value: bytes | None) -> tuple[bytes, int]:
    """Frame key and where the body starts.

    Raises:
        BadFrame: not a frame of ours.
    """
    if value is None:
        raise BadFrame("the record has no value")
    if value[:2] == SINGLE_OBJECT and _SINGLE_HEADER <= len(value) <= MAX_VALUE_BYTES:
        return value[2:_SINGLE_HEADER], _SINGLE_HEADER
    if _CONFLUENT_HEADER <= len(value) <= MAX_VALUE_BYTES and value[0] == CONFLUENT:
        return value[:_CONFLUENT_HEADER], _CONFLUENT_HEADER
    if len(value) > MAX_VALUE_BYTES:
        raise BadFrame(f"the value has {len(value):,} bytes; no value of ours has over {MAX_VALUE_BYTES:,}")
    raise BadFrame(
        f"the value begins with {value[:10].hex(' ') or 'nothing'} and has {len(value)} bytes; "
        "expected c3 01 (single-object) or 00 (registry) and what belongs to it"
    )


def peek_id(value: bytes | None) -> bytes:
    """The job id in a job event, read without decoding: it is the first field.

    Raises:
        BadFrame, BadRecord: the bytes cannot be a job event.
    """
    front = _JOB_FRONT.match(value or b"")
    if front is None:
        split(value)
        raise BadRecord("the value does not begin with a job id")
    return front[1]


def _primitive_fields(schema: Any) -> frozenset[str]:
    """What ``jobtype`` and ``records`` leave without logical types in their own schemas."""
    match schema:
        case {"fields": [{"name": "id"}, *_]}:
            return frozenset(ENVELOPE_NAMES)
        case {"fields": list(fields)}:
            names = (field.get("name") for field in fields if isinstance(field, dict))
            return frozenset(name for name in names if isinstance(name, str))
        case _:
            return frozenset()  # WireSchema says what is wrong with it


_PRIORITIES: Final = tuple(JobPriority)


def peek_priority(value: bytes | None) -> JobPriority:
    """The priority in a job event, read without decoding: it follows id and type.

    Raises:
        BadFrame, BadRecord: the bytes cannot be a job event.
    """
    peek_id(value)
    assert value is not None  # noqa: S101
    position = split(value)[1] + 1 + _ID_LENGTH
    length = shift = 0
    try:
        while True:
            byte = value[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 28:  # noqa: PLR2004 - the end of a varint, or of our patience
                break
        position += length >> 1
        return _PRIORITIES[value[position] >> 1]
    except IndexError:
        raise BadRecord("the value does not go on with a job type and a priority") from None
