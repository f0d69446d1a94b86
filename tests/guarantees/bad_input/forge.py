"""Damaged records for job and retry topics, each with the end that it must come to. Pure: the same for the same seed.

``Forge`` makes what is common: ids, job events, damage. ``bad_values`` and ``bad_headers`` make one kind of record with each
function, ``kinds`` says how often each is wanted.
"""

from __future__ import annotations

import enum
import random
import uuid
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import fastavro

from schemas import Job
from schemas import headers as h
from schemas.codec import SINGLE_OBJECT, Codec
from schemas.headers import LATEST_MS
from schemas.jobtype import ENVELOPE_FIELDS, ENVELOPE_NAMES, job_type
from schemas.lifecycle import JobStatus
from schemas.records import StatusWriter
from schemas.topics import PRIORITIES
from schemas.wire import WireSchema
from tests.guarantees.bad_input.jobs import SAMPLES, Processed
from tests.support.events import envelope
from tests.support.statuses import status
from workers.handlers.replication import ReplicationJob

Headers = list[tuple[str, bytes | None]]

#: Header, body and frame: what an undecodable record can be called.
WIRE_ERRORS: Final = frozenset({"BadFrame", "BadRecord", "BadHeaders", "UnknownSchema"})


class Fate(enum.StrEnum):
    """How a record must end."""

    #: One dead letter, with the same bytes and a reason; ``failed``, if a job id can be read.
    DEAD = "dead"
    #: As DEAD, but too large to be kept: the letter says where the bytes are.
    BARE = "bare"
    #: It is damaged where it does not matter, or not at all: it runs and succeeds.
    RUNS = "runs"
    #: A second record of the same delivery: skipped and counted.
    COPY = "copy"
    #: Its time is far away: it stands on a retry topic, with the same bytes.
    WAITS = "waits"
    #: Damage at random: one dead letter, or one end of a run, or a run that waits for its retry.
    ENDS = "ends"


@dataclass(frozen=True, slots=True)
class Bad:
    """One record, and what must become of it."""

    kind: str
    fate: Fate
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    #: What the reason may be called.
    errors: frozenset[str] = WIRE_ERRORS
    #: -1: the forge decides.
    partition: int = -1
    #: 0: now.
    timestamp_ms: int = 0
    #: Written twice, in a row: the second one is a copy.
    twice: bool = False
    #: For retry topics: what is forwarded from there can have another fate.
    behind_a_tier: Fate | None = None


class Forge:
    """Dice, and what is made with them."""

    def __init__(self, seed: int, partitions: int) -> None:
        self.dice = random.Random(f"bad input {seed}")
        self.partitions = partitions
        self.codec = Codec()
        self._statuses = StatusWriter(self.codec)
        self._replication = ReplicationJob("bucket/key", ["nowhere"])
        self.strangers = [_stranger(*wrong) for wrong in _WRONG_FIELDS]

    def new_id(self) -> str:
        """A job id that nobody else has."""
        return str(uuid.UUID(int=self.dice.getrandbits(128), version=4))

    def sample(self) -> Job:
        """A job of any type; those for processes are few, since each is sent through a pipe."""
        match self.dice.randrange(20):
            case 0:
                return Processed("text", ["a", "b"])
            case 1 | 2:
                return self._replication
            case _:
                return self.dice.choice(SAMPLES)

    def good(self, job: Job | None = None, **given: Any) -> tuple[bytes, bytes]:
        """Key and value of a job that runs."""
        job = job or self.dice.choice(SAMPLES)
        kind = job_type(type(job))
        job_id = self.new_id()
        record = envelope(
            kind.name,
            **{"id": job_id, "priority": self.dice.choice(PRIORITIES).value, "max_retries": 0, **given},
        )
        return record["id"].encode(), self.codec.encode_job(kind, job, record)

    def body_of(self, value: bytes) -> bytes:
        """Without its frame."""
        return value[len(SINGLE_OBJECT) + 8 :]

    def status_value(self) -> bytes:
        """A status of a job that nobody knows."""
        state = self.dice.choice(tuple(JobStatus))
        return self._statuses.encode(status(state, job_id=self.new_id(), at=self.dice.randrange(LATEST_MS)))

    def damaged(self, value: bytes) -> bytes:
        """Changed at one to four places: bits, bytes, pieces left out, said twice or put in."""
        dice, raw = self.dice, bytearray(value)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(raw) + 1)
            match dice.randrange(6):
                case 0 if at < len(raw):
                    raw[at] ^= 1 << dice.randrange(8)
                case 1 if at < len(raw):
                    raw[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
                case 2:
                    del raw[at : at + dice.randint(1, 8)]
                case 3:
                    raw[at:at] = raw[at : at + dice.randint(1, 16)]
                case 4:
                    raw[at:at] = dice.randbytes(dice.randint(1, 8))
                case _:
                    raw[at : at + 9] = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  # a length of 2**62, say
        return bytes(raw)

    def some_size(self) -> int:
        """Mostly small; now and then tens of kilobytes."""
        return self.dice.choice(
            (1, 2, 9, 10, 11, 47, 48, 60, self.dice.randrange(300), self.dice.randrange(3_000))
        )


def own_headers(**given: bytes | None) -> Headers:
    """``attempt=b"3"`` is ``rfw-attempt``."""
    return [
        (name if name == h.TRACEPARENT else f"rfw-{name.replace('_', '-')}", value)
        for name, value in given.items()
    ]


_WRONG_FIELDS: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("type", {"type": "map", "values": "string"}, {"a": "b"}),
    ("type", "string", ""),
    ("type", "bytes", b"bad_plain"),
    ("priority", "string", "urgent"),
    ("priority", "int", 2),
    ("key", "bytes", b"k"),
    ("created_at", "string", "yesterday"),
    ("created_at", "double", float("nan")),
    ("created_at", "long", -1),
    ("max_retries", "double", 3.0),
    ("max_retries", "boolean", True),
    ("timeout_ms", {"type": "array", "items": "long"}, [1]),
    ("timeout_ms", "long", 0),
    ("source", "null", None),
    ("parent_id", "long", 7),
)


def _stranger(name: str, kind: Any, value: Any) -> tuple[WireSchema, dict[str, Any]]:
    """A schema with the envelope's names, one of them with another type; and a record of it, which lacks its id."""
    fields = [{"name": f["name"], "type": kind if f["name"] == name else f["type"]} for f in ENVELOPE_FIELDS]
    full_name = f"Stranger{name.title().replace('_', '')}{type(value).__name__.title()}"
    schema = {"type": "record", "name": full_name, "namespace": "rustfs.jobs", "fields": fields}
    record = {**envelope("bad_plain"), name: value}
    wire = WireSchema(schema, primitive=frozenset(ENVELOPE_NAMES))
    fastavro.schemaless_writer(
        BytesIO(), wire._parsed, record
    )  # it can be written: what is wrong is the envelope
    return wire, record
