"""What there is to judge by: raw records of Kafka, the handlers' own lines, and the faults that were made.

Decoded with fastavro and the schemas on the topic ``schemas``; none of the workers' code takes part. Times named ``_ns`` are
the machine's monotonic clock, times named ``_ms`` the clock on the wall, which is the brokers' as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import fastavro
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

FINAL: Final = frozenset({"succeeded", "failed", "cancelled", "skipped"})
_SINGLE_OBJECT: Final = b"\xc3\x01"
_READ_S: Final = 60.0
#: What a worker logs when outcomes of its may not reach Kafka, and why each may be the reason that a run came to nothing. What it
#: starts nothing for, cancels, or writes again by itself is no such line: "group metadata was stale", "no answer from Kafka",
#: "partitions taken too late".
DOUBTS: Final = frozenset(
    {
        # The transaction may have been aborted, and until Kafka has said what stands nothing else is written: if the partition
        # goes meanwhile, all that waits for it is dropped.
        "commit without a clear answer",
        # It is asked, and there is no answer yet: nothing else is written for as long as that lasts, which may be minutes.
        "what is committed cannot be read yet",
        "what is visible of a transaction cannot be read yet",
        # Nothing can be written at all, for fifteen seconds or more before it says so.
        "no transactional producer yet",
        # Outcomes of them that are not committed yet are dropped.
        "others have committed for partitions of ours: joining the group again",
        "partitions lost",
        # The same: the last commit took longer than a release waits for it.
        "partitions released without a last commit",
    }
)
#: What a worker logs when it cancels what runs: one job of a partition that goes, which it names, or all.
CANCELS: Final = frozenset({"job cancelled", "no answer from Kafka: everything is cancelled"})


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job's record on a job, retry or dead letter topic."""

    job_id: str
    topic: str
    partition: int
    offset: int
    delivery: int
    redrives: int
    not_before_ms: int
    key: str | None
    priority: str
    written_ms: int
    #: Who scheduled it; empty if no job did.
    parent: str = ""
    #: A checksum of its value.
    content: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A record of ``jobs.status``."""

    job_id: str
    partition: int
    offset: int
    state: str
    delivery: int
    redrives: int
    attempt: int
    worker: str
    at_ms: int
    started_ms: int | None
    not_before_ms: int | None
    output: str | None
    error_type: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """A record of ``workers.reports``."""

    worker: str
    written_ms: int
    partitions: tuple[int, ...]
    #: By its worker: what waits for a broker that is away is written much later.
    made_ms: int = 0


@dataclass(slots=True)
class Topics:
    """Everything that stands in Kafka, in the order of each partition."""

    jobs: list[JobRecord] = field(default_factory=list)
    statuses: dict[str, list[Status]] = field(default_factory=lambda: defaultdict(list))
    reports: list[Report] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """One call of a handler, as the handler wrote it down."""

    job_id: str
    type: str
    priority: str
    key: str | None
    attempt: int
    redrives: int
    fence: int
    worker: str
    pid: int
    start_ns: int
    start_ms: int
    #: None: it never came to an end.
    end_ns: int | None = None
    #: ended or cancelled
    how: str | None = None
    #: Its job is not to be run again before.
    asked_ms: int | None = None
    #: In a process of its own, which may outlive its worker for a moment.
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Life:
    """One worker process, from its start to its end. ``end``: killed, left, stays, failed or stood still."""

    worker: str
    pid: int
    start_ns: int
    end_ns: int
    end: str
    #: Graceful: when it was told to leave.
    told_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault that lasts: a worker that stands still, a broker that is away."""

    kind: str
    start_ns: int
    end_ns: int
    #: The worker process, if it is one.
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """A line of a worker's log: it does not know what became of a commit, has none for what it gave up, or cancels."""

    worker: str
    at_ms: int
    event: str
    #: Those that it speaks of; empty: of all that it has.
    partitions: tuple[int, ...] = ()
    #: The one that it cancels; empty: all.
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job whose id the producer got."""

    job_id: str
    type: str
    expected: str
    priority: str
    due_ms: int | None
    #: How many it is made to take; 0: any number.
    attempts: int = 0


@dataclass(slots=True)
class Evidence:
    """All of it."""

    topics: Topics
    runs: list[Run]
    lives: list[Life]
    troubles: list[Trouble]
    accepted: list[Accepted]
    #: From when to when jobs were scheduled, in order: only then can a standstill be told from having nothing to do.
    traffic_ns: Sequence[tuple[int, int]]
    #: Kind to number of faults.
    faults: Mapping[str, int]
    doubts: Sequence[Doubt] = ()
    seed: int = 0
    minutes: float = 0.0
    #: Workers that ended though nobody had told them to, and how.
    ended_by_themselves: Sequence[str] = ()
    #: Workers that their watchdogs have ended.
    stood_still: Sequence[str] = ()
    #: Jobs whose producer was told that they were not accepted, or that nobody knows.
    refused: int = 0
    doubtful: int = 0
    #: Their ids, where there are any; None: evidence of an older campaign, which did not keep them.
    not_written: Sequence[str] | None = None
    perhaps_written: Sequence[str] | None = None
    #: Jobs of which somebody was told that they have a new life; how often that was asked for, and how often in vain.
    redriven: Sequence[str] = ()
    redrive_calls: int = 0
    redrive_calls_failed: int = 0


def save(evidence: Evidence, file: Path) -> None:
    """Everything as one JSON document, to be judged again."""
    file.write_text(json.dumps(dataclasses.asdict(evidence)))


def load(file: Path) -> Evidence:
    """What ``save`` wrote."""
    given = json.loads(file.read_text())
    topics = Topics(
        [JobRecord(**record) for record in given["topics"]["jobs"]],
        {job_id: [Status(**one) for one in all_] for job_id, all_ in given["topics"]["statuses"].items()},
        [Report(**{**one, "partitions": tuple(one["partitions"])}) for one in given["topics"]["reports"]],
    )
    return Evidence(
        topics=topics,
        runs=[Run(**one) for one in given["runs"]],
        lives=[Life(**one) for one in given["lives"]],
        troubles=[Trouble(**one) for one in given["troubles"]],
        accepted=[Accepted(**one) for one in given["accepted"]],
        traffic_ns=_spans(given["traffic_ns"]),
        faults=given["faults"],
        doubts=[
            Doubt(**{**one, "partitions": tuple(one.get("partitions", ()))})
            for one in given.get("doubts", ())
        ],
        seed=given["seed"],
        minutes=given["minutes"],
        ended_by_themselves=given["ended_by_themselves"],
        stood_still=given.get("stood_still", ()),
        refused=given.get("refused", 0),
        doubtful=given.get("doubtful", 0),
        not_written=given.get("not_written"),
        perhaps_written=given.get("perhaps_written"),
        redriven=given.get("redriven", ()),
        redrive_calls=given.get("redrive_calls", 0),
        redrive_calls_failed=given.get("redrive_calls_failed", 0),
    )


def _spans(given: list[Any]) -> list[tuple[int, int]]:
    """Evidence of older campaigns has one, as it is."""
    begin_and_end = [given] if given and isinstance(given[0], int) else given
    return [(began, stopped) for began, stopped in begin_and_end]


def read_topics(bootstrap_servers: str, prefix: str) -> Topics:
    """Everything that is committed, from offset 0."""
    schemas = read_schemas(bootstrap_servers, prefix)
    consumer = _consumer(bootstrap_servers)
    names = sorted(name for name in consumer.list_topics(timeout=20).topics if name.startswith(prefix))
    consumer.close()
    found = Topics()
    jobs = [name for name in names if name.startswith(f"{prefix}jobs.") and name != f"{prefix}jobs.commands"]
    for message in read_raw(bootstrap_servers, [*jobs, f"{prefix}workers.reports"]):
        topic = str(message.topic()).removeprefix(prefix)
        record = decode(schemas, message.value())
        if topic == "workers.reports":
            found.reports.append(
                Report(
                    record["worker_id"],
                    message.timestamp()[1],
                    tuple(record["partitions"]),
                    _ms(record["at"]) or 0,
                )
            )
        elif topic == "jobs.status":
            status = _status(message, record)
            found.statuses[status.job_id].append(status)
        else:
            found.jobs.append(_job(message, topic, record))
    found.statuses = dict(found.statuses)
    return found


def read_schemas(bootstrap_servers: str, prefix: str) -> dict[str, Any]:
    """Fingerprint to schema, as published on the topic ``schemas``."""
    return {
        (record.key() or b"").decode(): fastavro.parse_schema(json.loads(record.value() or b""))
        for record in read_raw(bootstrap_servers, [f"{prefix}schemas"])
    }


def read_raw(bootstrap_servers: str, topics: Iterable[str]) -> Iterator[Message]:
    """Committed records of these topics up to their ends of now.

    Raises:
        AssertionError: an end is not reached within a minute: an open transaction hides it.
    """
    consumer = _consumer(bootstrap_servers)
    try:
        known = consumer.list_topics(timeout=20).topics
        places = {(topic, number) for topic in topics for number in known[topic].partitions}
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in places])
        quiet_s = 0.0
        while places:
            messages = consumer.consume(1000, 0.5)
            quiet_s = 0.0 if messages else quiet_s + 0.5
            assert quiet_s < _READ_S, f"not readable to the end: {sorted(places)}"
            for message in messages:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    places.discard((str(message.topic()), int(message.partition() or 0)))
    finally:
        consumer.close()


def read_runs(directory: Path) -> list[Run]:
    """What the handlers wrote down, by start."""
    runs: dict[str, Run] = {}
    ends: list[dict[str, Any]] = []
    for file in sorted(directory.glob("runs-*.jsonl")):
        for line in file.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # cut off by a kill
            said = json.loads(line)
            if said["say"] == "end":
                ends.append(said)
                continue
            runs[said["run"]] = Run(
                job_id=said["id"],
                type=said["type"],
                priority=said["priority"],
                key=said["key"],
                attempt=said["attempt"],
                redrives=said["redrives"],
                fence=said["fence"],
                worker=said["worker"],
                pid=said["pid"],
                start_ns=said["ns"],
                start_ms=said["wall_ms"],
                apart=file.name.split("-")[1] != str(said["pid"]),
            )
    for said in ends:
        runs[said["run"]].end_ns = said["ns"]
        runs[said["run"]].how = said["how"]
        runs[said["run"]].asked_ms = said.get("asked_ms")
    return sorted(runs.values(), key=lambda run: run.start_ns)


def read_doubts(directory: Path) -> list[Doubt]:
    """What workers said of their commits, and of what they cancelled; each file has the name of its worker, whatever its processes."""
    found: list[Doubt] = []
    for file in sorted(directory.glob("*.stderr")):
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # Java, Python's traces, and lines that were cut off
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") in DOUBTS | CANCELS:
                    at = datetime.fromisoformat(said["timestamp"])
                    numbers = tuple(said.get("partitions", ()))
                    at_ms = round(at.timestamp() * 1000)
                    found.append(Doubt(file.stem, at_ms, said["event"], numbers, said.get("job_id", "")))
    return found


def _consumer(bootstrap_servers: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "auditor",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )


def decode(schemas: Mapping[str, Any], value: bytes | None) -> dict[str, Any]:
    """A record in the single-object frame."""
    assert value is not None and value[:2] == _SINGLE_OBJECT, value  # noqa: PT018 - the campaign writes no other frame
    schema = schemas[value[2:10].hex()]
    record: Any = fastavro.schemaless_reader(io.BytesIO(value[10:]), schema, None)
    return dict(record)


def _job(message: Message, topic: str, record: Mapping[str, Any]) -> JobRecord:
    pairs: Any = message.headers() or []
    headers = {name: value for name, value in pairs if isinstance(value, bytes)}

    def number(name: str) -> int:
        return int(headers.get(name, b"0"))

    return JobRecord(
        job_id=str(record["id"]),
        topic=topic,
        partition=int(message.partition() or 0),
        offset=int(message.offset() or 0),
        delivery=number("rfw-delivery"),
        redrives=number("rfw-redrives"),
        not_before_ms=number("rfw-not-before"),
        key=record["key"],
        priority=str(record["priority"]),
        written_ms=message.timestamp()[1],
        parent=str(record["parent_id"] or ""),
        content=zlib.crc32(message.value() or b""),
    )


def _status(message: Message, record: Mapping[str, Any]) -> Status:
    return Status(
        job_id=str(record["job_id"]),
        partition=int(message.partition() or 0),
        offset=int(message.offset() or 0),
        state=record["state"],
        delivery=record["delivery"],
        redrives=record["redrives"],
        attempt=record["attempt"],
        worker=record["worker"],
        at_ms=_ms(record["at"]) or 0,
        started_ms=_ms(record["started_at"]),
        not_before_ms=_ms(record["not_before"]),
        output=record["output"],
        error_type=record["error_type"],
    )


def _ms(moment: Any) -> int | None:
    """fastavro turns logical types into Python's."""
    return None if moment is None else round(moment.timestamp() * 1000)
