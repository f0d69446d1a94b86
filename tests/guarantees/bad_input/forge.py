"""Damaged records for job and retry topics, each with the end that it must come to. Pure: the same for the same seed.

``Forge`` makes what is common: ids, job events, damage. Each function of ``KINDS`` makes one kind of record; its name is the
label that an audit reports.
"""

from __future__ import annotations

import enum
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, Final

import fastavro

from schemas import Job
from schemas import headers as h
from schemas.codec import SINGLE_OBJECT, Codec
from schemas.headers import LATEST_MS, MAX_COUNT
from schemas.jobtype import ENVELOPE_FIELDS, ENVELOPE_NAMES, job_type
from schemas.lifecycle import JobStatus
from schemas.partitions import partition_of
from schemas.records import StatusWriter
from schemas.topics import PRIORITIES
from schemas.wire import WireSchema
from tests.guarantees.bad_input.jobs import SAMPLES, Nobodys, Processed
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


# Values


def no_value(forge: Forge) -> Bad:
    return Bad(
        "", Fate.DEAD, forge.new_id().encode(), None, own_headers(type=b"bad_plain"), frozenset({"BadFrame"})
    )


def empty_value(forge: Forge) -> Bad:
    return Bad("", Fate.DEAD, None, b"", [], frozenset({"BadFrame"}))


def garbage(forge: Forge) -> Bad:
    front = forge.dice.choice((b"", b"\0", b"\0\0\0\0\1", SINGLE_OBJECT, b"{", b"Obj\1"))
    value = front + forge.dice.randbytes(forge.some_size())
    return Bad("", Fate.DEAD, forge.dice.randbytes(8), value, [], frozenset({"BadFrame", "BadRecord"}))


def large_garbage(forge: Forge) -> Bad:
    return Bad("", Fate.DEAD, b"large", forge.dice.randbytes(forge.dice.randint(10_000, 300_000)))


def truncated(forge: Forge) -> Bad:
    key, value = forge.good(forge.sample())
    return Bad("", Fate.DEAD, key, value[: forge.dice.randrange(len(value))], own_headers(type=b"bad_plain"))


def more_behind_it(forge: Forge) -> Bad:
    key, value = forge.good(forge.sample())
    errors = frozenset({"BadRecord"})
    return Bad("", Fate.DEAD, key, value + forge.dice.randbytes(forge.dice.randint(1, 9)), [], errors)


def damaged_value(forge: Forge) -> Bad:
    key, value = forge.good(forge.sample())
    return Bad("", Fate.ENDS, key, forge.damaged(value), own_headers(type=b"bad_plain"))


def unknown_fingerprint(forge: Forge) -> Bad:
    key, value = forge.good(forge.sample())
    few = (b"unknown1", b"unknown2", forge.dice.randbytes(8))
    front = SINGLE_OBJECT + forge.dice.choice(few)
    return Bad("", Fate.DEAD, key, front + forge.body_of(value), [], frozenset({"UnknownSchema"}))


def unknown_number(forge: Forge) -> Bad:
    """The frame of a registry that nobody has set."""
    key, value = forge.good(forge.sample())
    front = b"\0" + forge.dice.choice((b"\0\0\0\1", b"\xff\xff\xff\xff", forge.dice.randbytes(4)))
    return Bad("", Fate.DEAD, key, front + forge.body_of(value), [], frozenset({"UnknownSchema"}))


def anothers_fingerprint(forge: Forge) -> Bad:
    """A body under the schema of another type."""
    key, value = forge.good(forge.dice.choice(SAMPLES))
    other = job_type(Nobodys if forge.dice.randrange(2) else type(forge.dice.choice(SAMPLES))).wire
    return Bad("", Fate.ENDS, key, SINGLE_OBJECT + other.fingerprint + forge.body_of(value))


def wrong_type(forge: Forge) -> Bad:
    """An envelope whose fields have other types or impossible values, in a schema that is known."""
    schema, record = forge.dice.choice(forge.strangers)
    job_id = forge.new_id()
    value = forge.codec.encode(schema, {**record, "id": job_id})
    return Bad("", Fate.DEAD, job_id.encode(), value, [], frozenset({"BadRecord"}))


def impossible_envelope(forge: Forge) -> Bad:
    """Our own schema does not settle ranges."""
    wrong: dict[str, Any] = forge.dice.choice(
        (
            {"created_at": -1},
            {"created_at": LATEST_MS + 1},
            {"created_at": 2**63 - 1},
            {"timeout_ms": 0},
            {"timeout_ms": -(2**63)},
            {"type": ""},
            {"type": "x" * 65},
            {"id": "no id"},
            {"id": "z" * 36},
            {"id": ""},
        )
    )
    key, value = forge.good(forge.dice.choice(SAMPLES), **wrong)
    if "type" in wrong:
        # The codec gives a job the name of its type.
        return Bad("", Fate.DEAD, key, _with_type(forge, wrong["type"]), [], frozenset({"BadRecord"}))
    return Bad("", Fate.DEAD, key, value, [], frozenset({"BadRecord"}))


def possible_envelope(forge: Forge) -> Bad:
    """Strange, and allowed."""
    given: dict[str, Any] = forge.dice.choice(
        (
            {"created_at": 0},
            {"created_at": LATEST_MS},
            {"max_retries": -(2**31)},
            {"max_retries": 2**31 - 1},
            {"timeout_ms": 2**63 - 1},
            {"source": "ü" * 5_000},
            {"key": "k" * 20_000},
            {"key": "\x1b[31m\u202e[/red]"},
            {"id": forge.new_id().upper()},
        )
    )
    key, value = forge.good(**given)
    return Bad("", Fate.RUNS, key, value, own_headers(type=b"bad_plain"))


def not_a_job(forge: Forge) -> Bad:
    """A status, which begins with an id as a job does."""
    return Bad("", Fate.DEAD, b"k", forge.status_value(), [], frozenset({"BadRecord"}))


def nobodys_type(forge: Forge) -> Bad:
    """No worker has a handler, and it has waited for one for ever."""
    key, value = forge.good(Nobodys("a"))
    headers = own_headers(type=b"bad_nobodys", unknown_since=b"1")
    return Bad("", Fate.DEAD, key, value, headers, frozenset({"HandlerNotFound"}))


def of_another_priority(forge: Forge) -> Bad:
    key, value = forge.good(priority=forge.dice.choice(PRIORITIES).value)
    return Bad("", Fate.RUNS, key, value, own_headers(type=b"bad_plain"))


def written_twice(forge: Forge) -> Bad:
    key, value = forge.good()
    headers = own_headers(type=b"bad_plain", delivery=str(forge.dice.randrange(3)).encode())
    return Bad("", Fate.RUNS, key, value, headers, twice=True)


def too_large_to_keep(forge: Forge) -> Bad:
    """Kafka counts compressed bytes."""
    key, value = forge.good(SAMPLES[0], source="x" * forge.dice.randint(3_000_000, 5_000_000))
    return Bad("", Fate.BARE, key, value, own_headers(type=b"bad_plain"), frozenset({"TooLargeToKeep"}))


# Keys, places and times


def no_key(forge: Forge) -> Bad:
    return Bad("", Fate.RUNS, None, forge.good()[1], own_headers(type=b"bad_plain"))


def strange_key(forge: Forge) -> Bad:
    dice = forge.dice
    key = dice.choice((b"", b"\xff\xfe", b"\0", dice.randbytes(40), dice.randbytes(40_000), b"\x1b[31m"))
    return Bad("", Fate.RUNS, key, forge.good()[1], own_headers(type=b"bad_plain"))


def wrong_partition(forge: Forge) -> Bad:
    key = b"bucket/%d" % forge.dice.randrange(1_000)
    elsewhere = (partition_of(key, forge.partitions) + 1) % forge.partitions
    value = forge.good(key=key.decode())[1]
    return Bad("", Fate.RUNS, key, value, own_headers(type=b"bad_plain"), partition=elsewhere)


def strange_timestamp(forge: Forge) -> Bad:
    key, value = forge.good()
    at = forge.dice.choice((1, 1_000, LATEST_MS))
    return Bad("", Fate.RUNS, key, value, own_headers(type=b"bad_plain"), timestamp_ms=at)


def strange_timestamp_of_garbage(forge: Forge) -> Bad:
    return replace(garbage(forge), timestamp_ms=forge.dice.choice((1, 1_000, LATEST_MS)))


# Headers

_NOT_UTF8: Final = b"\xff\xfe\xc3\x28"
_NO_NUMBERS: Final = (
    b"-1",
    b"",
    b" 1",
    b"1_0",
    b"+1",
    b"1.5",
    b"0x10",
    b"three",
    "\u0663".encode(),
    _NOT_UTF8,
    b"9" * 19,
    b"9" * 5_000,
    b"null",
    b"\0\0\0\1",
)
_NUMBERS: Final = (
    h.ATTEMPT,
    h.DELIVERY,
    h.NOT_BEFORE,
    h.DELAY,
    h.FIRST_SEEN,
    h.REDRIVES,
    h.UNKNOWN_SINCE,
    h.SNOOZED_SINCE,
)
_NO_HISTORIES: Final = (
    b"",
    b"null",
    b"{}",
    b"[[]]",
    b"[1]",
    b"[" * 50_000,
    b'[[1,"w",1,1,"e"]]',
    b'[[0,"w",1,1,"e","m"]]',
    b'[[1,"w",-1,1,"e","m"]]',
    b'[[1,"w",1e999,1,"e","m"]]',
    b'[["1","w",1,1,"e","m"]]',
    b'[[1,2,1,1,"e","m"]]',
    b"[" + b"9" * 5_000 + b"]",
    _NOT_UTF8,
)
_BAD_TEXTS: Final = (
    (h.TYPE, _NOT_UTF8),
    (h.TYPE, b"t" * 257),
    (h.TYPE, b"t" * 500_000),
    (h.ORIGIN_TOPIC, _NOT_UTF8),
    (h.ORIGIN_TOPIC, b"t" * 257),
    (h.ERROR_TYPE, _NOT_UTF8),
    (h.ERROR_MESSAGE, _NOT_UTF8),
    (h.TRACEPARENT, _NOT_UTF8),
)
_BAD_ORIGINS: Final = (
    (h.ORIGIN_PARTITION, b"-1"),
    (h.ORIGIN_PARTITION, b"2147483648"),
    (h.ORIGIN_OFFSET, b"-1"),
    (h.ORIGIN_OFFSET, b"9223372036854775808"),
    (h.ORIGIN_OFFSET, _NOT_UTF8),
)


def bad_number(forge: Forge) -> Bad:
    name = forge.dice.choice(_NUMBERS)
    values = [
        *_NO_NUMBERS,
        str(MAX_COUNT + 1).encode() if name in (h.ATTEMPT, h.DELIVERY, h.REDRIVES) else b"-5",
    ]
    return _with_bad_header(forge, [(name, forge.dice.choice(values))])


def bad_history(forge: Forge) -> Bad:
    return _with_bad_header(forge, [(h.HISTORY, forge.dice.choice(_NO_HISTORIES))])


def bad_text(forge: Forge) -> Bad:
    return _with_bad_header(forge, [forge.dice.choice(_BAD_TEXTS)])


def bad_origin(forge: Forge) -> Bad:
    return _with_bad_header(forge, [(h.ORIGIN_TOPIC, b"t"), forge.dice.choice(_BAD_ORIGINS)])


def the_last_of_two_headers_is_bad(forge: Forge) -> Bad:
    name = forge.dice.choice(_NUMBERS)
    return _with_bad_header(forge, [(name, b"1"), (name, forge.dice.choice(_NO_NUMBERS))])


def bad_header_of_garbage(forge: Forge) -> Bad:
    letter = garbage(forge)
    headers: Headers = [(forge.dice.choice(_NUMBERS), forge.dice.choice(_NO_NUMBERS))]
    return replace(letter, headers=headers, errors=WIRE_ERRORS)


def extreme_headers(forge: Forge) -> Bad:
    """As far as they may go."""
    most, latest = str(MAX_COUNT).encode(), str(LATEST_MS).encode()
    headers = forge.dice.choice(
        (
            own_headers(attempt=most),
            own_headers(redrives=most),
            own_headers(first_seen=latest),
            own_headers(unknown_since=latest),
            own_headers(snoozed_since=latest),
            own_headers(history=_long_history()),
            own_headers(error_message=b"m" * 300_000, error_type=b"e" * 10_000),
            own_headers(traceparent=b"t" * 100_000),
            own_headers(type=b"\0" * 256),
        )
    )
    key, value = forge.good()
    return Bad("", Fate.RUNS, key, value, headers)


def most_deliveries(forge: Forge) -> Bad:
    """Nothing can follow it: one that is forwarded has a number too many."""
    key, value = forge.good()
    headers = own_headers(type=b"bad_plain", delivery=str(MAX_COUNT).encode())
    errors = frozenset({"BadHeaders"})
    return Bad("", Fate.RUNS, key, value, headers, errors, behind_a_tier=Fate.DEAD)


def headers_without_values(forge: Forge) -> Bad:
    key, value = forge.good()
    return Bad("", Fate.RUNS, key, value, [(name, None) for name in (*_NUMBERS, h.TYPE, h.HISTORY, "x")])


def many_headers(forge: Forge) -> Bad:
    key, value = forge.good()
    headers: Headers = [(f"x-{n}", forge.dice.randbytes(9)) for n in range(forge.dice.randint(100, 400))]
    return Bad("", Fate.RUNS, key, value, headers)


def huge_headers(forge: Forge) -> Bad:
    key, value = forge.good()
    size = forge.dice.choice((10_000, 100_000, 600_000))
    return Bad("", Fate.RUNS, key, value, [("x", b"h" * size), ("n" * 20_000, None)])


def huge_headers_of_garbage(forge: Forge) -> Bad:
    size = forge.dice.choice((10_000, 100_000, 600_000))
    return replace(garbage(forge), headers=[("x", b"h" * size), ("y", _NOT_UTF8), ("", b"no name")])


def damaged_headers(forge: Forge) -> Bad:
    """All of ours, as after two failures, and one of them changed at random."""
    key, value = forge.good()
    headers = own_headers(
        type=b"bad_plain",
        attempt=b"3",
        delivery=b"5",
        not_before=b"1760000000000",
        first_seen=b"1760000000000",
        redrives=b"1",
        snoozed_since=b"1760000000000",
        error_type=b"ValueError",
        error_message="größer".encode(),
        history=b'[[1,"w.0",1760000000000,1760000000001,"ValueError","no"]]',
        traceparent=b"00-a-b-01",
    )
    at = forge.dice.randrange(len(headers))
    headers[at] = (headers[at][0], forge.damaged(headers[at][1] or b""))
    return Bad("", Fate.ENDS, key, value, headers)


def far_away(forge: Forge) -> Bad:
    """Not before the year 9999."""
    key, value = forge.good()
    name = forge.dice.choice((h.NOT_BEFORE, h.DELAY))
    return Bad("", Fate.WAITS, key, value, [(h.TYPE, b"bad_plain"), (name, str(LATEST_MS).encode())])


def far_away_and_unreadable(forge: Forge) -> Bad:
    return replace(garbage(forge), headers=own_headers(not_before=str(LATEST_MS).encode()))


Kind = Callable[[Forge], Bad]

#: What may stand on a job or retry topic, and how often.
KINDS: Final[dict[Kind, int]] = {
    no_value: 30,
    empty_value: 10,
    garbage: 90,
    large_garbage: 2,
    truncated: 100,
    more_behind_it: 30,
    damaged_value: 200,
    unknown_fingerprint: 20,
    unknown_number: 20,
    anothers_fingerprint: 20,
    wrong_type: 50,
    impossible_envelope: 40,
    possible_envelope: 20,
    not_a_job: 20,
    nobodys_type: 10,
    of_another_priority: 10,
    written_twice: 20,
    no_key: 10,
    strange_key: 20,
    wrong_partition: 20,
    strange_timestamp: 2,
    strange_timestamp_of_garbage: 2,
    bad_number: 100,
    bad_history: 30,
    bad_text: 20,
    bad_origin: 20,
    the_last_of_two_headers_is_bad: 10,
    bad_header_of_garbage: 20,
    extreme_headers: 10,
    most_deliveries: 5,
    headers_without_values: 10,
    many_headers: 5,
    huge_headers: 2,
    huge_headers_of_garbage: 2,
    damaged_headers: 60,
    far_away: 10,
    far_away_and_unreadable: 10,
}
#: Megabytes each: a fixed number of them, whatever the seed.
RARE: Final[tuple[Kind, ...]] = (too_large_to_keep,)


def make(forge: Forge, kind: Kind) -> Bad:
    """One record of this kind, with its label and its partition."""
    bad = kind(forge)
    partition = forge.dice.randrange(forge.partitions) if bad.partition < 0 else bad.partition
    return replace(bad, kind=kind.__name__, partition=partition)


def any_kind(forge: Forge) -> Kind:
    """As often as each is wanted."""
    return forge.dice.choices(tuple(KINDS), tuple(KINDS.values()))[0]


def _with_bad_header(forge: Forge, headers: Headers) -> Bad:
    key, value = forge.good(forge.sample())
    named: Headers = [] if any(name == h.TYPE for name, _ in headers) else own_headers(type=b"bad_plain")
    foreign: Headers = [("x-of-others", _NOT_UTF8)]
    return Bad("", Fate.DEAD, key, value, [*named, *foreign, *headers], frozenset({"BadHeaders"}))


def _with_type(forge: Forge, name: str) -> bytes:
    kind = job_type(type(SAMPLES[0]))
    record = envelope(name, id=forge.new_id()) | {n: getattr(SAMPLES[0], n) for n in kind.own_names}
    return forge.codec.encode(kind.wire, record)


def _long_history() -> bytes:
    row = [1, "w" * 300, 1_760_000_000_000, 1_760_000_000_001, "e" * 300, "m" * 300]
    return json.dumps([row] * 300).encode()


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
