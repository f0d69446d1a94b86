"""A job, records and schemas for tests of the codec."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.codec import Codec
from schemas.job import Job
from schemas.wire import WireSchema

RECORDS = Path(__file__).parent.parent / "golden" / "records" / "v1"


@dataclass
class CodecJob(Job):
    job_type = "codec_sample"
    path: str
    tags: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    since: datetime = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    note: str | None = None


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


def rewritten(writer: dict[str, Any], record: dict[str, Any], reader: WireSchema) -> dict[str, Any]:
    """A record written with one schema and read through another."""
    codec = Codec()
    written = WireSchema(writer)
    codec.store.add(written.fingerprint, writer)
    return codec.decode(reader, codec.encode(written, record))
