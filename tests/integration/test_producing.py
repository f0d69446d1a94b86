from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas import Job, JobPriority, JobStatus
from schemas import ids as job_ids
from schemas.codec import Codec
from schemas.errors import (
    DeliveryFailed,
    InvalidJob,
    KafkaUnreachable,
    PayloadTooLarge,
    ReadIncomplete,
    TopicsMismatch,
    UnknownJobType,
    UnknownSchema,
)
from schemas.headers import Delivery
from schemas.ids import new_job_id
from schemas.jobtype import job_type
from schemas.partitions import partition_of
from streams import outbox as outbox_module
from streams.clients import admin_config, producer_config
from streams.jobinfo import JobState
from streams.producer import JobProducer
from streams.provision import provision
from streams.queue import JobQueue
from streams.reader import JobFilter, JobNotFound, JobReader
from streams.scan import ScanResult, scan
from streams.schemas_topic import SchemaTopicReader, publish_schemas
from streams.settings import Settings, load_settings
from tests.support.deployments import Sample, Writer, count_all, read_all, settings_for
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]


@pytest.fixture
def settings(kafka: Any, topic_prefix: str, tmp_path: Path) -> Settings:
    settings = settings_for(kafka, topic_prefix, tmp_path)
    provision(settings)
    return settings


@pytest.fixture
def producer(settings: Settings) -> Iterator[JobProducer]:
    with JobProducer(settings, source="test") as producer:
        yield producer


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[JobQueue]:
    async with JobQueue.connect(settings) as queue:
        yield queue


def test_the_id_comes_back_when_the_job_is_in_kafka(settings: Settings, producer: JobProducer) -> None:
    job_id = producer.schedule_job(Sample(path="b/x"), JobPriority.CRITICAL)
    (message,) = read_all(settings, settings.topics.jobs[JobPriority.CRITICAL])
    assert message.key() == job_id.encode()
    assert message.headers() == [("rfw-type", b"test_sample")]
    record = producer.codec.decode(job_type(Sample).wire, message.value())
    assert (record["id"], record["path"], record["source"]) == (job_id, "b/x", "test")
    assert message.timestamp()[1] == record["created_at"]


def test_the_schema_is_there_before_the_first_job(settings: Settings, producer: JobProducer) -> None:
    producer.schedule_job(Sample())
    producer.schedule_job(Sample())
    (schema,) = read_all(settings, settings.topics.schemas)
    assert schema.key() == job_type(Sample).wire.fingerprint.hex().encode()
    stranger = Codec()
    (job, _) = read_all(settings, settings.topics.jobs[JobPriority.NORMAL])
    with pytest.raises(UnknownSchema):
        stranger.decode_any(job.value(), {})
    reader = SchemaTopicReader(settings, stranger.store)
    assert reader.catch_up(10)
    reader.close()
    assert stranger.decode_any(job.value(), {})["path"] == "bucket/a"


def test_a_delayed_job_goes_to_its_tier(settings: Settings, producer: JobProducer) -> None:
    before = time.time_ns() // 1_000_000
    producer.schedule_job(Sample(), delay=timedelta(seconds=45))
    tier = next(name for tier, name in settings.topics.retry.items() if tier.name == "30s")
    (message,) = read_all(settings, tier)
    headers: dict[str, bytes] = dict(message.headers() or [])  # type: ignore[arg-type]
    assert int(headers["rfw-not-before"]) >= before + 45_000


def test_keys_decide_the_partition_on_every_topic(settings: Settings, producer: JobProducer) -> None:
    for priority in JobPriority:
        producer.schedule_job(Sample(order_key="bucket/key-5"), priority)
    producer.schedule_job(Sample(), delay=timedelta(seconds=5), key="bucket/key-5")
    messages = read_all(settings, *settings.topics.consumed)
    assert len(messages) == 5
    assert {message.partition() for message in messages} == {partition_of(b"bucket/key-5", 3)}


def test_jobs_without_a_key_are_spread_evenly(
    settings: Settings, producer: JobProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_ids, "_turn", 7)  # where the turns begin anew, the counts may differ by one
    for _ in range(6):
        producer.schedule_job(Sample())
    producer.schedule_jobs(Sample() for _ in range(9))
    spread = Counter(message.partition() for message in read_all(settings, *settings.topics.consumed))
    assert set(spread.values()) == {5}


def test_many_jobs_come_back_in_order_and_all_arrive(settings: Settings, producer: JobProducer) -> None:
    jobs: list[Job | tuple[Job, JobPriority]] = [Sample(size=n) for n in range(5000)]
    jobs[7] = (Sample(size=7), JobPriority.HIGH)
    ids = producer.schedule_jobs(jobs, JobPriority.LOW)
    arrived = {}
    for message in read_all(settings, *settings.topics.jobs.values()):
        record = producer.codec.decode(job_type(Sample).wire, message.value())
        arrived[record["id"]] = (record["size"], record["priority"])
    assert len(ids) == len(arrived) == 5000
    assert [arrived[job_id][0] for job_id in ids] == list(range(5000))
    assert arrived[ids[7]] == (7, "high")
    assert arrived[ids[8]] == (8, "low")


def test_jobs_of_one_key_keep_their_order(settings: Settings, producer: JobProducer) -> None:
    producer.schedule_jobs((Sample(size=n) for n in range(3000)), key="one")
    messages = read_all(settings, settings.topics.jobs[JobPriority.NORMAL])
    sizes = [producer.codec.decode(job_type(Sample).wire, message.value())["size"] for message in messages]
    assert sizes == list(range(3000))


def test_nothing_is_sent_of_what_is_refused(settings: Settings, producer: JobProducer) -> None:
    @dataclass
    class Undeclared(Job):
        x: int = 0

    refused: list[tuple[type[Exception], Callable[[], str]]] = [
        (UnknownJobType, lambda: producer.schedule_job(Undeclared())),
        (InvalidJob, lambda: producer.schedule_job(Sample(), delay=timedelta(seconds=-1))),
        (InvalidJob, lambda: producer.schedule_job(Sample(), delay=timedelta(days=401))),
        (InvalidJob, lambda: producer.schedule_job(Sample(size="x"))),  # type: ignore[arg-type]
        (PayloadTooLarge, lambda: producer.schedule_job(Sample(path="x" * 300_000))),
    ]
    for error, call in refused:
        with pytest.raises(error):
            call()
    assert count_all(settings) == 0
    assert read_all(settings, settings.topics.schemas) == []


def test_a_refused_job_in_a_bulk_says_how_many_went_before_it(
    settings: Settings, producer: JobProducer
) -> None:
    with pytest.raises(InvalidJob) as refused:
        producer.schedule_jobs([Sample(), Sample(), Sample(path=5), Sample()])  # type: ignore[arg-type]
    assert refused.value.__notes__ == ["2 job(s) before it were sent, 0 of them without success"]
    assert sorted(refused.value.sent) == sorted(
        (one.key() or b"").decode() for one in read_all(settings, *settings.topics.consumed)
    )
    assert len(refused.value.sent) == 2


def test_unwaited_jobs_are_there_after_flush(settings: Settings, producer: JobProducer) -> None:
    for _ in range(50):
        producer.schedule_job(Sample(), wait=False)
    producer.flush()
    assert count_all(settings) == 50


def test_a_full_queue_is_back_pressure_and_loses_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    full: list[bool] = []

    def small(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**producer_config(*args, **kwargs), "queue.buffering.max.messages": 100}

    monkeypatch.setattr(outbox_module, "producer_config", small)
    with JobProducer(settings) as producer:
        send = producer.outbox.send

        def watched(*args: Any) -> bool:
            taken = send(*args)
            full.append(not taken)
            return taken

        monkeypatch.setattr(producer.outbox, "send", watched)
        assert len(set(producer.schedule_jobs(Sample() for _ in range(3000)))) == 3000
    assert any(full), "the queue was never full: the test shows nothing"
    assert count_all(settings) == 3000


def test_threads_share_a_producer(settings: Settings, producer: JobProducer) -> None:
    ids: list[str] = []

    def one_by_one() -> None:
        ids.extend(producer.schedule_job(Sample()) for _ in range(50))

    def in_bulk() -> None:
        ids.extend(producer.schedule_jobs(Sample() for _ in range(500)))

    threads = [threading.Thread(target=run) for run in (one_by_one, one_by_one, in_bulk, in_bulk)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(ids)) == 1100
    assert count_all(settings) == 1100


def test_a_bulk_that_waits_for_its_source_holds_up_nobody(settings: Settings, producer: JobProducer) -> None:
    """Its source may wait for another thread's job, and schedule one itself."""
    ids: list[str] = []
    other = threading.Thread(target=lambda: ids.append(producer.schedule_job(Sample())))

    def source() -> Iterator[Sample]:
        yield Sample()
        other.start()
        other.join(10)
        assert ids, "nobody is told that the other job is in Kafka"
        ids.append(producer.schedule_job(Sample()))
        yield Sample()

    assert len(producer.schedule_jobs(source())) == len(ids) == 2
    assert count_all(settings) == 4


def test_what_kafka_refuses_is_named_as_not_written(settings: Settings, producer: JobProducer) -> None:
    entry = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    topic = settings.topics.jobs[JobPriority.LOW]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(admin_config(settings))
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result()
    import random

    noise = random.Random(7).randbytes(9000).hex()
    with pytest.raises(DeliveryFailed, match="certainly not written"):
        producer.schedule_job(Sample(path=noise), JobPriority.LOW)
    producer.schedule_job(Sample(path=noise), JobPriority.LOW, wait=False)
    with pytest.raises(DeliveryFailed, match="1 job"):
        producer.flush()
    producer.flush()
    producer.schedule_job(Sample(), JobPriority.LOW)
    assert count_all(settings) == 1


def test_an_absent_broker_is_said_in_time(tmp_path: Path) -> None:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", data_dir=tmp_path)
    began = time.monotonic()
    with JobProducer(settings, unreachable_after=timedelta(seconds=1)) as producer:
        with pytest.raises(KafkaUnreachable):
            producer.schedule_job(Sample())
        with pytest.raises(KafkaUnreachable):
            producer.schedule_jobs([Sample()])
    assert time.monotonic() - began < 10


def test_missing_topics_name_the_command_that_makes_them(
    kafka: Any, topic_prefix: str, tmp_path: Path
) -> None:
    with (
        JobProducer(settings_for(kafka, topic_prefix, tmp_path)) as producer,
        pytest.raises(TopicsMismatch, match="topics create"),
    ):
        producer.schedule_job(Sample())


def test_a_missing_schemas_topic_is_told_at_once(settings: Settings) -> None:
    """Waiting for its acknowledgement would end in a time-out that says nothing of the cause."""
    admin = AdminClient(admin_config(settings))
    for deleted in admin.delete_topics([settings.topics.schemas]).values():
        deleted.result()
    with JobProducer(settings) as producer, pytest.raises(TopicsMismatch, match=r"schemas; .*topics create"):
        producer.schedule_job(Sample())


def test_unequal_counts_are_refused(settings: Settings) -> None:
    from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

    admin = AdminClient(admin_config(settings))
    topic = settings.topics.jobs[JobPriority.HIGH]
    for grown in admin.create_partitions([NewPartitions(topic, 6)]).values():
        grown.result()
    eventually(
        lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 6,
        20,
        "it has six partitions",
    )
    with JobProducer(settings) as producer, pytest.raises(TopicsMismatch, match=f"{topic} has 6"):
        producer.schedule_job(Sample())


def test_a_closed_producer_says_so(settings: Settings) -> None:
    producer = JobProducer(settings)
    producer.schedule_job(Sample())
    producer.close()
    with pytest.raises(DeliveryFailed, match="closed"):
        producer.schedule_job(Sample())
    assert not [t for t in threading.enumerate() if t.name == "rustfs-workers-deliveries"]


async def test_awaited_and_entered_queues_are_the_same(settings: Settings) -> None:
    queue = await JobQueue.connect(settings)
    job_id = await queue.schedule_job(Sample(), JobPriority.HIGH)
    await queue.close()
    async with JobQueue.connect(settings) as again:
        assert (await again.get_job(uuid.UUID(job_id))).priority is JobPriority.HIGH


async def test_a_connect_that_is_cancelled_leaves_nothing_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, made, go_on = outbox_module.Outbox.prepare, threading.Event(), threading.Event()

    def held_up(outbox: outbox_module.Outbox, *args: Any, **kwargs: Any) -> None:
        prepare(outbox, *args, **kwargs)
        made.set()
        go_on.wait(20)

    monkeypatch.setattr(outbox_module.Outbox, "prepare", held_up)
    connecting = asyncio.ensure_future(JobQueue.connect(settings))
    assert await asyncio.to_thread(made.wait, 20)
    (thread,) = (t for t in threading.enumerate() if t.name == "rustfs-workers-deliveries")
    connecting.cancel()
    await asyncio.wait([connecting])
    go_on.set()
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive(), "its connection stays open"


async def test_a_client_sees_its_own_write_behind_an_open_transaction(
    settings: Settings, queue: JobQueue
) -> None:
    """An open transaction hides what stands behind it; the end is not reached, and that is said."""
    rival = Producer(producer_config(settings, transactional_id=f"{settings.topic_prefix}rival"))
    rival.init_transactions(20)
    rival.begin_transaction()
    for partition in range(3):
        rival.produce(settings.topics.jobs[JobPriority.NORMAL], b"x", b"x", partition)
    rival.flush(20)
    job_id = await queue.schedule_job(Sample())
    hidden = await queue.list_jobs()
    assert hidden.stale
    asked = asyncio.create_task(queue.get_job(job_id))
    rival.abort_transaction(20)
    shown = await queue.list_jobs()
    assert not shown.stale
    assert [job.id for job in shown] == [job_id]
    assert (await asked).id == job_id


async def test_half_a_picture_is_no_answer(
    settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that takes longer to read than the limit: what was found is stale, what was not is not "unknown"."""
    job_id = await queue.schedule_job(Sample())
    limits: list[float] = []

    def cut_short(*arguments: Any, timeout_s: float, **options: Any) -> ScanResult:
        limits.append(timeout_s)
        scan(*arguments, timeout_s=20, **options)
        return ScanResult(complete=False, behind=((settings.topics.status, 0),))

    monkeypatch.setattr("streams.reader.scan", cut_short)
    assert (await queue.get_job(job_id)).stale
    with pytest.raises(ReadIncomplete, match="within 30 s"):
        await queue.get_job(new_job_id())
    with pytest.raises(ReadIncomplete):
        await queue.wait(job_id, timedelta(seconds=20))
    assert limits == [3, 3, 30, 30]


async def test_many_at_once_each_get_their_id(settings: Settings, queue: JobQueue) -> None:
    ids = await asyncio.gather(*(queue.schedule_job(Sample(size=n)) for n in range(500)))
    assert len(set(ids)) == 500
    assert count_all(settings) == 500


async def test_bulk_from_asyncio(settings: Settings, queue: JobQueue) -> None:
    ids = await queue.schedule_jobs(
        ((Sample(), JobPriority.LOW) for _ in range(2000)), delay=timedelta(seconds=5)
    )
    assert len(set(ids)) == 2000
    listing = await queue.list_jobs(JobFilter(status=JobStatus.SCHEDULED, priority=JobPriority.LOW, limit=10))
    assert listing.total == 2000
    assert len(listing) == 10


async def test_refused_before_anything_is_sent(settings: Settings, queue: JobQueue) -> None:
    with pytest.raises(InvalidJob):
        await queue.schedule_job(Sample(), delay=timedelta(days=401))
    with pytest.raises(PayloadTooLarge):
        await queue.schedule_job(Sample(path="x" * 300_000))
    assert count_all(settings) == 0


async def test_no_broker_from_asyncio(tmp_path: Path) -> None:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", data_dir=tmp_path)
    with pytest.raises(KafkaUnreachable):
        await JobQueue.connect(settings, unreachable_after=timedelta(seconds=1))


async def test_waiting_ends_with_the_final_state(
    settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, looked = asyncio.get_running_loop(), asyncio.Event()
    state_of = queue._reader.state_of

    def watched(job_id: str) -> JobState:
        state = state_of(job_id)
        loop.call_soon_threadsafe(looked.set)
        return state

    monkeypatch.setattr(queue._reader, "state_of", watched)
    job_id = await queue.schedule_job(Sample(path="b/w"))
    writer = Writer(settings)
    writer.status(job_id, JobStatus.RUNNING, Delivery(job_type="test_sample"))
    writer.flush()
    waiting = asyncio.create_task(queue.wait(job_id, timedelta(seconds=30)))
    other = asyncio.create_task(queue.wait(job_id, timedelta(seconds=30)))
    # It is not final yet: from here on only what is heard can end the waiting.
    await looked.wait()
    writer.status(job_id, JobStatus.SUCCEEDED, Delivery(job_type="test_sample"), output='{"n":3}')
    await asyncio.to_thread(writer.flush)
    info = await waiting
    assert info == await other
    assert (info.status, info.output, info.worker) == (JobStatus.SUCCEEDED, {"n": 3}, "w.0")
    assert info.fields == {"path": "b/w", "size": 0, "tags": None, "order_key": None}
    assert (await queue.wait(job_id)).status is JobStatus.SUCCEEDED, "a finished job is not waited for"


async def test_waiting_for_nothing_and_for_too_long(queue: JobQueue) -> None:
    with pytest.raises(JobNotFound):
        await queue.get_job("\udcff")  # as undecodable bytes come from a command line
    with pytest.raises(JobNotFound):
        await queue.wait("01a20bd1-1946-743e-922d-c32f1fd9b001", timedelta(seconds=30))
    job_id = await queue.schedule_job(Sample())
    with pytest.raises(TimeoutError):
        await queue.wait(job_id, timedelta(seconds=0.5))


async def test_statistics_count_by_state_type_and_priority(settings: Settings, queue: JobQueue) -> None:
    await queue.schedule_job(Sample(), JobPriority.HIGH)
    await queue.schedule_job(Sample(), delay=timedelta(hours=2))
    done = await queue.schedule_job(Sample())
    writer = Writer(settings)
    writer.status(done, JobStatus.SUCCEEDED, Delivery(job_type="test_sample"))
    writer.flush()
    assert (await queue.get_statistics()).to_json() == {
        "total": 3,
        "by_status": {"pending": 1, "scheduled": 1, "succeeded": 1},
        "by_type": {"test_sample": 3},
        "by_priority": {"high": 1, "normal": 2},
        "stale": False,
        "unreadable": 0,
    }


async def test_jobs_of_unknown_types_and_unreadable_records_are_shown(
    settings: Settings, queue: JobQueue
) -> None:
    """A type that this process never declared is read with the schema that its producer published."""
    from schemas.jobtype import ENVELOPE_FIELDS
    from schemas.wire import WireSchema

    foreign = WireSchema(
        {
            "type": "record",
            "name": "Foreign",
            "namespace": "rustfs.jobs",
            "fields": [*ENVELOPE_FIELDS, {"name": "colour", "type": "string"}],
        },
        primitive=frozenset(field["name"] for field in ENVELOPE_FIELDS),
    )
    publish_schemas(settings, [foreign], timeout_s=20)
    job_id = "01a20bd1-1946-743e-922d-c32f1fd9b001"
    record = {
        "id": job_id,
        "type": "foreign",
        "priority": "low",
        "created_at": 1_700_000_000_000,
        "source": "rust",
        "colour": "red",
    }
    value = Codec().encode(foreign, record)
    producer = Producer(producer_config(settings))
    topic = settings.topics.jobs[JobPriority.LOW]
    producer.produce(topic, value, job_id.encode(), 0, headers=[("rfw-type", b"foreign")])
    producer.produce(topic, b"\x17garbage", b"?", 1)
    assert producer.flush(20) == 0
    listing = await queue.list_jobs()
    (job,) = listing
    assert (job.type, job.fields, job.source) == ("foreign", {"colour": "red"}, "rust")
    assert listing.unreadable_count == 1
    assert (listing.unreadable[0].topic, listing.unreadable[0].partition) == (topic, 1)


def test_a_reader_without_topics_says_what_to_do(kafka: Any, topic_prefix: str, tmp_path: Path) -> None:
    reader = JobReader(settings_for(kafka, topic_prefix, tmp_path))
    with pytest.raises(TopicsMismatch, match="topics create"):
        reader.list_jobs()
    reader.close()
