"""Damaged records for the topics that nobody moves records away from: readers pass over them. Pure.

Statuses, dead letters, schemas, reports, commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas import headers as h
from schemas.codec import SINGLE_OBJECT
from schemas.headers import LATEST_MS, Delivery, Origin, dead_letter
from schemas.lifecycle import JobStatus
from schemas.records import STATUS, StatusWriter, WorkerReport, encode_report
from schemas.topics import JobPriority, Topics
from tests.guarantees.bad_input.forge import Forge, Headers
from tests.guarantees.bad_input.kinds import any_kind, make
from tests.support.statuses import status

_DEEP: Final = 100_000


@dataclass(frozen=True, slots=True)
class Passed:
    """One record that readers must get past."""

    kind: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    #: Whether it can be understood at all; None where the damage is random.
    readable: bool | None = False


# Statuses; a compacted topic takes nothing without a key


def status_garbage(forge: Forge) -> Passed:
    return Passed("", forge.dice.randbytes(8), forge.dice.randbytes(forge.some_size()), [])


def status_truncated(forge: Forge) -> Passed:
    value = forge.status_value()
    return Passed("", forge.new_id().encode(), value[: forge.dice.randrange(len(value))], [])


def status_damaged(forge: Forge) -> Passed:
    return Passed("", forge.new_id().encode(), forge.damaged(forge.status_value()), [], None)


def status_of_unknown_schema(forge: Forge) -> Passed:
    front = forge.dice.choice(
        (SINGLE_OBJECT + b"unknown1", SINGLE_OBJECT + forge.dice.randbytes(8), b"\0\0\0\0\1")
    )
    return Passed("", b"\xff\xfe", front + forge.body_of(forge.status_value()), [])


def status_out_of_range(forge: Forge) -> Passed:
    wrong: dict[str, Any] = forge.dice.choice(
        (
            {"at": -1},
            {"at": 2**63 - 1},
            {"created_at": -(2**63)},
            {"started_at": LATEST_MS + 1},
            {"not_before": -5},
            {"attempt": -1},
            {"delivery": 2**31 - 1},
            {"redrives": -(2**31)},
        )
    )
    return Passed("", b"k", _status(forge, **wrong), [])


def status_that_is_strange(forge: Forge) -> Passed:
    """It can be read, and has to be shown."""
    given: dict[str, Any] = forge.dice.choice(
        (
            {"output": "[" * _DEEP},
            {"output": "[" * 500 + "]" * 500},
            {"output": '{"a":' * 150 + "1" + "}" * 150},
            {"output": "1e999"},
            {"output": "9" * 5_000},
            {"output": "no JSON"},
            {"metrics": {"x": float("nan"), "y": float("-inf"), "": 1e308}},
            {"progress_done": -(2**63), "progress_total": 2**63 - 1},
            {"children": -1},
            {"error_message": "\x1b[31m[/red]\u202e\0" * 100, "error_type": ""},
            {"type": "", "worker": "w" * 5_000, "key": "\n\r\t"},
            {"at": LATEST_MS, "created_at": LATEST_MS, "started_at": 0, "not_before": LATEST_MS},
        )
    )
    return Passed("", forge.new_id().encode(), _status(forge, **given), [], True)


def status_of_wrong_types(forge: Forge) -> Passed:
    """The fields of another record behind the fingerprint of a status."""
    schema, record = forge.dice.choice(forge.strangers)
    body = forge.codec.encode(schema, {**record, "id": forge.new_id()})[len(SINGLE_OBJECT) + 8 :]
    return Passed("", b"k", SINGLE_OBJECT + STATUS.fingerprint + body, [], None)


def status_tombstone(forge: Forge) -> Passed:
    return Passed("", forge.dice.choice((forge.new_id().encode(), b"\xff", b"")), None, [], True)


def job_among_statuses(forge: Forge) -> Passed:
    return Passed("", b"k", forge.good()[1], [])


# Dead letters


def letter_of_any_kind(forge: Forge) -> Passed:
    bad = make(forge, any_kind(forge))
    return Passed("", bad.key, bad.value, bad.headers, None)


def letter_with_strange_numbers(forge: Forge) -> Passed:
    """Spring's headers are numbers of a fixed length, and the time of death is text."""
    key, value = forge.good()
    headers: Headers = [
        ("kafka_dlt-original-offset", forge.dice.choice((b"", b"\xff" * 8, b"\xff" * 3_000))),
        ("kafka_dlt-original-partition", forge.dice.randbytes(forge.dice.randrange(20))),
        ("kafka_dlt-original-timestamp", None),
        (h.FAILED_AT, forge.dice.choice((b"9" * 40, b"-1", b"", b"now", str(LATEST_MS).encode()))),
        ("rfw-error-type", b"Strange"),
    ]
    return Passed("", key, value, headers, None)


def letter_with_damaged_headers(forge: Forge) -> Passed:
    key, value = forge.good()
    delivery = Delivery("bad_plain", attempt=2, delivery=3, error_type="ValueError", error_message="no")
    raw = dead_letter(
        delivery,
        at=Origin("t", 0, 7),
        timestamp_ms=1,
        failed_at_ms=forge.dice.randrange(LATEST_MS),
        stacktrace="at",
    )
    headers: Headers = [*raw]
    at = forge.dice.randrange(len(headers))
    headers[at] = (headers[at][0], forge.damaged(headers[at][1] or b""))
    return Passed("", key, value, headers, None)


# Schemas


def schema_garbage(forge: Forge) -> Passed:
    return Passed("", forge.dice.randbytes(8).hex().encode(), forge.dice.randbytes(forge.some_size()), [])


def schema_that_is_none(forge: Forge) -> Passed:
    """JSON, and no schema of a record, or one that nobody may use."""
    item = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "null"}]}
    text = forge.dice.choice(
        (
            "null",
            "[]",
            "5",
            '"string"',
            "{}",
            '{"type":"record"}',
            '{"type":"record","name":"R","fields":{}}',
            '{"type":"record","name":"R","fields":[{"name":"a","type":"R"}]}',
            '{"type":"record","name":"\\ud800","fields":[]}',
            '{"type":"record","name":"R","fields":[],"__fastavro_parsed":true}',
            '{"type":"record","name":"R","fields":[{"name":"a","type":"string","aliases":5}]}',
            json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": _array_of(item)}]}),
            '{"type":"record","name":"R","fields":[{"name":"a","type":'
            + '{"type":"array","items":' * 300
            + '"int"'
            + "}" * 302,
            "[" * _DEEP,
            '{"a":' * 50_000,
            "9" * 5_000,
            json.dumps({**STATUS.schema, "doc": "another place"}),
        )
    )
    return Passed("", forge.dice.choice((b"00" * 8, b"\xff", b"zz", b"")), text.encode(), [])


def schema_truncated(forge: Forge) -> Passed:
    wire = forge.dice.choice(forge.strangers)[0]
    text = wire.json.encode()
    return Passed("", wire.fingerprint.hex().encode(), text[: forge.dice.randrange(len(text))], [])


def schema_damaged(forge: Forge) -> Passed:
    """A schema of ours, changed, under its own fingerprint or another one."""
    wire = forge.dice.choice(forge.strangers)[0]
    return Passed(
        "",
        forge.dice.choice((wire.fingerprint, forge.dice.randbytes(8))).hex().encode(),
        forge.damaged(wire.json.encode()),
        [],
        None,
    )


def schema_tombstone(forge: Forge) -> Passed:
    return Passed("", forge.dice.randbytes(8).hex().encode(), None, [])


# Reports


def report_garbage(forge: Forge) -> Passed:
    key = forge.dice.choice((None, b"", b"w.0", b"\xff"))
    return Passed(
        "", key, forge.dice.choice((None, b"", forge.dice.randbytes(forge.some_size()))), [("x", b"\xff")]
    )


def report_damaged(forge: Forge) -> Passed:
    return Passed("", b"w.0", forge.damaged(encode_report(forge.codec, a_report(forge))), [], None)


def report_truncated(forge: Forge) -> Passed:
    value = encode_report(forge.codec, a_report(forge))
    return Passed("", b"w.0", value[: forge.dice.randrange(len(value))], [])


def report_of_unknown_schema(forge: Forge) -> Passed:
    value = encode_report(forge.codec, a_report(forge))
    return Passed("", b"w.0", SINGLE_OBJECT + forge.dice.randbytes(8) + forge.body_of(value), [])


def job_among_reports(forge: Forge) -> Passed:
    return Passed("", b"w.0", forge.good()[1], [])


def report_that_is_strange(forge: Forge) -> Passed:
    most = 2**63 - 1
    strange = replace(
        a_report(forge),
        started_at=forge.dice.choice((-most, most, LATEST_MS)),
        at=forge.dice.choice((-1, most)),
        sequence=-most,
        running=-1,
        partitions=(-1, 2**31 - 1),
        state=forge.dice.choice(("", "running", "\x1b[31m")),
    )
    return Passed(
        "", forge.dice.choice((b"w.0", b"elsewhere")), encode_report(forge.codec, strange), [], None
    )


def a_report(forge: Forge) -> WorkerReport:
    return WorkerReport(
        worker_id="w.0",
        incarnation=f"{forge.dice.getrandbits(48):012x}",
        sequence=1,
        started_at=1_760_000_000_000,
        at=1_760_000_000_000,
        host="h",
        state="running",
        job_types=("bad_plain",),
        partitions=(0,),
        running=0,
        buffered=0,
        counters=(),
        events={"undecodable": 1},
    )


# Commands


def command_garbage(forge: Forge) -> Passed:
    key = forge.dice.choice((b"", b"\xff", b"group/", b"group/other", forge.new_id().encode()))
    return Passed("", key, forge.dice.choice((None, b"", b"{", forge.dice.randbytes(forge.some_size()))), [])


def job_among_commands(forge: Forge) -> Passed:
    key, value = forge.good()
    return Passed("", key, value, [])


Kind = Callable[[Forge], Passed]

#: What is done to the headers of a record of any kind.
HEADERS: Final[dict[str, Callable[[Forge], Headers]]] = {
    "bad_headers": lambda forge: [
        ("x", b"\xff\xfe"),
        ("", None),
        (h.TYPE, forge.dice.randbytes(9)),
        (h.ATTEMPT, b"-1"),
    ],
    "huge_headers": lambda forge: [
        ("x", b"h" * forge.dice.choice((10_000, 100_000, 600_000))),
        ("n" * 20_000, None),
    ],
}


def kinds_by_topic(topics: Topics) -> dict[str, tuple[Kind, ...]]:
    """What may stand on each of these topics."""
    return {
        topics.status: (
            status_garbage,
            status_truncated,
            status_damaged,
            status_of_unknown_schema,
            status_of_wrong_types,
            status_out_of_range,
            status_that_is_strange,
            status_tombstone,
            job_among_statuses,
        ),
        topics.dlq: (letter_of_any_kind, letter_with_strange_numbers, letter_with_damaged_headers),
        topics.schemas: (
            schema_garbage,
            schema_that_is_none,
            schema_truncated,
            schema_damaged,
            schema_tombstone,
        ),
        topics.reports: (
            report_garbage,
            report_truncated,
            report_damaged,
            report_of_unknown_schema,
            job_among_reports,
            report_that_is_strange,
        ),
        topics.commands: (command_garbage, job_among_commands),
    }


def make_other(forge: Forge, kind: Kind, headers: str = "") -> Passed:
    """One record of this kind, with its label.

    Args:
        forge: what it is made with.
        kind: what it is.
        headers: a name of ``HEADERS``: these instead of its own.
    """
    made = kind(forge)
    if headers:
        return replace(made, kind=f"{kind.__name__} with {headers}", headers=HEADERS[headers](forge))
    return replace(made, kind=kind.__name__)


def _status(forge: Forge, **given: Any) -> bytes:
    state = forge.dice.choice(tuple(JobStatus))
    change = status(state, **{"job_id": forge.new_id(), "priority": JobPriority.LOW, **given})
    return StatusWriter(forge.codec).encode(change)


def _array_of(item: Any) -> Any:
    return {"type": "array", "items": item}
