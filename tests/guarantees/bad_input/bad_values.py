"""Records whose values, keys, places or times are wrong, or only look so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from schemas.codec import SINGLE_OBJECT
from schemas.headers import LATEST_MS
from schemas.jobtype import job_type
from schemas.partitions import partition_of
from schemas.topics import PRIORITIES
from tests.guarantees.bad_input.forge import Bad, Fate, Forge, own_headers
from tests.guarantees.bad_input.jobs import SAMPLES, Nobodys
from tests.support.events import envelope


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


def _with_type(forge: Forge, name: str) -> bytes:
    kind = job_type(type(SAMPLES[0]))
    record = envelope(name, id=forge.new_id()) | {n: getattr(SAMPLES[0], n) for n in kind.own_names}
    return forge.codec.encode(kind.wire, record)
