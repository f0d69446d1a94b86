"""What a worker writes can be read by anybody, and what anybody writes is read by a worker, in both frames.

The worker runs in this process, since the registry of ``mock://`` lives in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient

from schemas import Job, JobPriority, JobStatus
from schemas.codec import CONFLUENT, Codec, peek_id, split
from schemas.headers import Delivery, build, parse
from schemas.jobtype import ENVELOPE_FIELDS, job_type
from schemas.partitions import partition_of
from schemas.records import JobMetric, decode_report, decode_status
from schemas.wire import WireSchema
from streams import registry, schemas_topic
from streams.clients import producer_config, registry_client
from streams.jobinfo import JobInfo, StatusSeen
from streams.queue import JobQueue
from streams.registry import RegistrySchemas
from streams.schemas_topic import SchemaTopicReader, publish_schemas
from streams.settings import Settings
from streams.watch import StatusWatch
from tests.support.audit import raw_headers, read_all
from tests.support.deployments import Writer
from tests.support.events import JOB_ID, envelope
from tests.support.raw_batches import produce_with_a_bad_header_name
from workers import WorkerConfig, WorkerContext, WorkerManager
from workers.results import Success

pytestmark = [pytest.mark.job_processing, pytest.mark.integration]

LIMIT = timedelta(seconds=60)


@dataclass
class WireChild(Job):
    """Declared, as every job type that is scheduled; no worker here runs it."""

    job_type = "wire_child"
    text: str = ""


@dataclass
class WireJob(Job):
    """Says what it was given, and schedules a child if told so."""

    job_type = "wire_job"
    text: str = ""
    with_child: bool = False

    async def execute(self, context: WorkerContext) -> Success:
        if self.with_child:
            await context.schedule(WireChild(text="of " + self.text))
        context.update_metrics("letters", len(self.text) / 2)
        return Success({"text": self.text})


@asynccontextmanager
async def worker_on(settings: Settings) -> AsyncIterator[WorkerManager]:
    manager = WorkerManager(WorkerConfig(worker_id="w1"), settings)
    manager.register(WireJob)
    async with manager:
        yield manager


def foreign_schema() -> dict[str, Any]:
    """The job type as another version of its producer has it."""
    own: list[dict[str, Any]] = job_type(WireJob).wire.schema["fields"]
    return {**job_type(WireJob).wire.schema, "fields": [*own, {"name": "colour", "type": "string"}]}


def produce(settings: Settings, value: bytes, partition: int, key: bytes, **more: bytes) -> None:
    producer = Producer(producer_config(settings))
    headers: Any = [*build(Delivery("wire_job")), *more.items()]
    producer.produce(settings.topics.jobs[JobPriority.LOW], value, key, partition, headers=headers)
    assert producer.flush(20) == 0


def number(of: int) -> str:
    return f"{JOB_ID[:-4]}{of:04x}"


async def test_an_ordinary_reader_knows_the_schemas_of_everything_a_worker_writes(
    provisioned: Settings,
) -> None:
    """Statuses, reports and a child whose type the worker has not registered."""
    async with worker_on(provisioned), JobQueue.connect(provisioned) as queue:
        job_id = await queue.schedule_job(WireJob("a", with_child=True))
        info = await queue.wait(job_id, LIMIT)
    assert (info.status, info.children) == (JobStatus.SUCCEEDED, 1)
    stranger = Codec()
    reader = SchemaTopicReader(provisioned, stranger.store)
    assert reader.catch_up(20)
    reader.close()
    topics = provisioned.topics
    written = read_all(provisioned, topics.status, topics.reports, *topics.jobs.values())
    names = {stranger.store.get(split(message.value())[0]).full_name for message in written}
    assert names == {
        "rustfs.status.StatusChange",
        "rustfs.workers.WorkerReport",
        "rustfs.jobs.WireJob",
        "rustfs.jobs.WireChild",
    }
    children = [stranger.decode_any(m.value(), {}) for m in read_all(provisioned, *topics.jobs.values())]
    assert [child["text"] for child in children if child["parent_id"] == job_id] == ["of a"]


async def test_records_that_others_wrote_wrongly_are_failed_or_counted_and_hold_up_nobody(
    provisioned: Settings,
) -> None:
    """Fields and headers that are not what they must be, a key on another partition, a far time on a job topic; good jobs behind."""
    strange = WireSchema(
        {
            "type": "record",
            "name": "Strange",
            "namespace": "rustfs.jobs",
            "fields": [
                {**field, "type": {"type": "map", "values": "string"}} if field["name"] == "type" else field
                for field in ENVELOPE_FIELDS
            ],
        },
        primitive=frozenset(field["name"] for field in ENVELOPE_FIELDS),
    )
    publish_schemas(provisioned, [strange], timeout_s=20)
    record = envelope("wire_job", id=number(1), priority="low") | {"type": {"a": "map"}}
    produce(provisioned, Codec().encode(strange, record), 0, number(1).encode())
    key = b"bucket/key-5"
    elsewhere = (partition_of(key, 3) + 1) % 3
    kind = job_type(WireJob)
    keyed = envelope("wire_job", id=number(2), priority="low", key=key.decode())
    produce(provisioned, Codec().encode_job(kind, WireJob("b"), keyed), elsewhere, key)
    damaged = Codec().encode_job(kind, WireJob("c"), envelope("wire_job", id=number(3)))
    produce(provisioned, damaged, 0, number(3).encode(), **{"rfw-delivery": b"2147483647"})
    later = Codec().encode_job(kind, WireJob("d"), envelope("wire_job", id=number(4), priority="low"))
    in_an_hour = str(time.time_ns() // 1_000_000 + 3_600_000).encode()
    produce(provisioned, later, 0, number(4).encode(), **{"rfw-not-before": in_an_hour})
    topic = provisioned.topics.jobs[JobPriority.LOW]
    nameless = Codec().encode_job(kind, WireJob("e"), envelope("wire_job", id=number(5), priority="low"))
    second_run = build(Delivery("wire_job", attempt=2))
    await produce_with_a_bad_header_name(provisioned, topic, nameless, number(5).encode(), second_run)
    async with JobQueue.connect(provisioned) as queue, worker_on(provisioned) as manager:
        failed = await queue.wait(number(1), LIMIT)
        misplaced = await queue.wait(number(2), LIMIT)
        behind = [await queue.schedule_job(WireJob(str(n)), JobPriority.LOW) for n in range(6)]
        for job_id in behind:
            assert (await queue.wait(job_id, LIMIT)).status is JobStatus.SUCCEEDED
        refused = await queue.wait(number(3), LIMIT)
        ran = await queue.wait(number(5), LIMIT)
        assert (await queue.list_jobs()).total == 11
        assert manager.process.events["misplaced_keys"] == 1
        assert manager.process.events["undecodable"] == 2
        waits = await queue.get_job(number(4))
        assert waits is not None
        assert waits.status is JobStatus.SCHEDULED
    assert (failed.status, failed.type) == (JobStatus.FAILED, "wire_job")
    assert failed.error is not None
    assert failed.error.startswith("rustfs.jobs.Strange.type: {'a': 'map'}")
    assert (misplaced.status, misplaced.output) == (JobStatus.SUCCEEDED, {"text": "b"})
    assert (refused.status, refused.error_type) == (JobStatus.FAILED, "BadHeaders")
    (forwarded,) = read_all(provisioned, *provisioned.topics.retry.values())
    assert (peek_id(forwarded.value()), forwarded.value()) == (number(4).encode(), later)
    assert (ran.status, ran.output, ran.attempt) == (JobStatus.SUCCEEDED, {"text": "e"}, 2)
    letters = read_all(provisioned, provisioned.topics.dlq)
    assert {parse(raw_headers(letter)).error_type for letter in letters} == {"BadRecord", "BadHeaders"}
    reports = read_all(provisioned, provisioned.topics.reports)
    said = [decode_report(Codec(), report.value() or b"") for report in reports]
    assert [one.sequence for one in said] == list(range(1, len(said) + 1))
    assert len({one.incarnation for one in said}) == 1
    last = said[-1]
    assert (last.state, last.events["misplaced_keys"]) == ("left", 1)
    counts = {(count.type, count.state): count.count for count in last.counters}
    assert counts == {("wire_job", "succeeded"): 8, ("wire_job", "failed"): 2}
    # Eight of one letter each.
    assert last.metrics == (JobMetric("wire_job", "letters", 4.0),)
    totals = [sum(count.count for count in one.counters) for one in said]
    assert totals == sorted(totals), "cumulative"


async def test_who_waits_for_a_job_is_told_past_a_header_whose_name_is_no_text(provisioned: Settings) -> None:
    """aiokafka raises each time it reads such a record: everybody who waited got a UnicodeDecodeError."""
    told: asyncio.Queue[StatusSeen | Exception] = asyncio.Queue()
    codec, writer = Codec(), Writer(provisioned)
    watch = StatusWatch(provisioned, codec, partial(decode_status, codec))
    seen = []
    async with watch.listening(JOB_ID, told.put_nowait):
        for delivery in range(3):
            await produce_with_a_bad_header_name(provisioned, provisioned.topics.status, b"?", b"k", [])
            writer.status(JOB_ID, JobStatus.RETRYING, Delivery("t", delivery=delivery))
            writer.flush()
            seen.append(await asyncio.wait_for(told.get(), 30))
    await watch.close()
    assert [one.change.delivery for one in seen if isinstance(one, StatusSeen)] == [0, 1, 2]


async def test_records_that_are_too_large_for_a_dead_letter_stop_nobody(provisioned: Settings) -> None:
    """As large as a producer may write; and larger, since Kafka counts compressed bytes."""
    topics = provisioned.topics
    large = Producer({"bootstrap.servers": provisioned.bootstrap_servers()})
    large.produce(topics.jobs[JobPriority.LOW], bytes(999_900), b"k", 0)
    assert large.flush(20) == 0, "the huge one comes after it"
    huge = Producer(
        {
            "bootstrap.servers": provisioned.bootstrap_servers(),
            "message.max.bytes": 20_000_000,
            "compression.type": "lz4",
        }
    )
    front = Codec().encode_job(
        job_type(WireJob), WireJob("x" * 5_000_000), envelope("wire_job", id=number(1))
    )
    huge.produce(topics.jobs[JobPriority.LOW], front, number(1).encode(), 0)
    assert huge.flush(20) == 0
    async with JobQueue.connect(provisioned) as queue, worker_on(provisioned):
        failed = await queue.wait(number(1), LIMIT)
        behind = await queue.schedule_job(WireJob("behind"), JobPriority.LOW)
        assert (await queue.wait(behind, LIMIT)).status is JobStatus.SUCCEEDED
    assert (failed.status, failed.error_type) == (JobStatus.FAILED, "TooLargeToKeep")
    letters = sorted(read_all(provisioned, topics.dlq), key=lambda letter: letter.offset() or 0)
    assert sorted(len(letter.value() or b"") for letter in letters) == [0, 999_900]
    (bare,) = (letter for letter in letters if not letter.value())
    delivery = parse(raw_headers(bare))
    assert delivery.error_type == "TooLargeToKeep"
    assert delivery.error_message.startswith(
        f"its {len(front):,} bytes were refused, and stand at {topics.jobs[JobPriority.LOW]}/0/1"
    )


@pytest.fixture
def registry_of_all(provisioned: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Any]:
    """Settings with a registry, and the one client that everybody here gets."""
    settings = provisioned.model_copy(update={"schema_registry_url": "mock://wire"})
    client = registry_client(settings)
    for module in (registry, schemas_topic):
        monkeypatch.setattr(module, "registry_client", lambda _: client)
    return settings, client


async def test_with_a_registry_jobs_and_statuses_have_its_frame_and_a_worker_learns_its_numbers(
    registry_of_all: tuple[Settings, SchemaRegistryClient],
) -> None:
    settings, client = registry_of_all
    # Registered by a producer that this process knows nothing of.
    schema = WireSchema(foreign_schema(), primitive=frozenset(field["name"] for field in ENVELOPE_FIELDS))
    numbered = client.register_schema("of another producer", RegistrySchema(schema.json, "AVRO"))
    front = bytes([CONFLUENT]) + numbered.to_bytes(4, "big")
    record = envelope("wire_job", id=number(1)) | {"text": "new", "with_child": True, "colour": "red"}
    produce(settings, front + schema.encode(record), 0, number(1).encode())
    nobody = bytes([CONFLUENT]) + (9_999).to_bytes(4, "big")
    record = envelope("wire_job", id=number(2)) | {"text": "", "with_child": False, "colour": "red"}
    produce(settings, nobody + schema.encode(record), 1, number(2).encode())
    # Written before there was a registry.
    plain = Codec().encode_job(job_type(WireJob), WireJob("old"), envelope("wire_job", id=number(3)))
    produce(settings, plain, 2, number(3).encode())
    async with worker_on(settings), JobQueue.connect(settings) as queue:
        mine = await queue.schedule_job(WireJob("mine"))
        wait: Callable[[str], Awaitable[JobInfo]] = lambda job_id: queue.wait(job_id, LIMIT)  # noqa: E731
        infos = [await wait(job_id) for job_id in (mine, number(1), number(2), number(3))]
    assert [(info.status, info.output) for info in infos] == [
        (JobStatus.SUCCEEDED, {"text": "mine"}),
        (JobStatus.SUCCEEDED, {"text": "new"}),
        (JobStatus.FAILED, None),
        (JobStatus.SUCCEEDED, {"text": "old"}),
    ]
    assert infos[2].error == "schema 000000270f is not known; its producer has not published it"
    stranger = Codec()
    schemas = RegistrySchemas(client, stranger.store)
    statuses = read_all(settings, settings.topics.status)
    states = {}
    for message in statuses:
        value = message.value() or b""
        assert value[0] == CONFLUENT
        schemas.learn(split(value)[0])
        states[message.key()] = decode_status(stranger, value).state
    assert states[mine.encode()] is JobStatus.SUCCEEDED
    assert read_all(settings, settings.topics.schemas) == [], "the registry has them"
    subjects = set(client.get_subjects())
    assert f"{settings.topics.status}-rustfs.status.StatusChange" in subjects
    assert f"{settings.topics.reports}-rustfs.workers.WorkerReport" in subjects
    assert f"{settings.topics.jobs[JobPriority.LOW]}-rustfs.jobs.WireChild" in subjects
