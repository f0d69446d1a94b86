from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from schemas import JobPriority, JobStatus
from schemas.codec import Codec
from schemas.errors import SettingsError, UnknownSchema
from schemas.jobtype import job_type
from schemas.records import STATUS, StatusWriter, decode_status
from schemas.wire import WireSchema
from streams.clients import registry_client
from streams.outgoing import JobOptions, Rules, plan
from streams.producer import JobProducer
from streams.queue import JobQueue
from streams.registry import RegistryFailed, RegistrySchemas, build_codec, forget_subjects
from streams.settings import Settings, load_settings
from tests.support.deployments import Sample
from tests.support.statuses import status

pytestmark = pytest.mark.job_processing


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        kafka_bootstrap_servers="127.0.0.1:1", schema_registry_url="mock://test", topic_prefix="p."
    )


def test_with_a_registry_jobs_have_confluents_frame_and_subjects(settings: Settings) -> None:
    client = registry_client(settings)
    codec = build_codec(settings, client=client)
    outgoing = plan(Sample(path="x"), JobOptions(), 0, Rules(codec, settings.topics))
    assert outgoing.value[0] == 0
    number = int.from_bytes(outgoing.value[1:5], "big")
    assert client.get_schema(number).schema_str == job_type(Sample).wire.json
    name = job_type(Sample).wire.full_name
    # Its bytes are forwarded between priorities as they are.
    assert {f"p.jobs.{priority.value}-{name}" for priority in JobPriority} <= set(client.get_subjects())


def test_what_was_registered_for_one_run_is_forgotten_and_nothing_else(settings: Settings) -> None:
    client = registry_client(settings)
    for prefix in ("p.", "other."):
        mine = settings.model_copy(update={"topic_prefix": prefix})
        build_codec(mine, client=client).prefix(STATUS)
    forget_subjects(settings, client=client)
    assert client.get_subjects() == ["other.jobs.status-rustfs.status.StatusChange"]
    forget_subjects(settings.model_copy(update={"schema_registry_url": None}))
    silent = settings.model_copy(update={"schema_registry_url": "http://127.0.0.1:1"})
    with pytest.raises(RegistryFailed):
        forget_subjects(silent)


def test_statuses_are_registered_for_their_topic(settings: Settings) -> None:
    client = registry_client(settings)
    build_codec(settings, client=client).prefix(STATUS)
    assert client.get_subjects() == ["p.jobs.status-rustfs.status.StatusChange"]


def test_a_reader_learns_a_number_that_somebody_else_registered(settings: Settings) -> None:
    client = registry_client(settings)
    written = build_codec(settings, client=client).encode_job(
        job_type(Sample),
        Sample(path="y"),
        {
            "id": "01a20bd1-1946-743e-922d-c32f1fd9b001",
            "type": "test_sample",
            "priority": "low",
            "key": None,
            "created_at": 1,
            "max_retries": None,
            "timeout_ms": None,
            "source": "",
            "parent_id": None,
        },
    )
    reader = Codec()
    with pytest.raises(UnknownSchema) as unknown:
        reader.decode(job_type(Sample).wire, written)
    schemas = RegistrySchemas(client, reader.store)
    assert schemas.learn(unknown.value.schema_key)
    assert reader.decode(job_type(Sample).wire, written)["path"] == "y"


def test_both_frames_are_read_whatever_is_written(settings: Settings) -> None:
    """A deployment that gets a registry still has jobs without one in its topics, and the other way round."""
    change = status(JobStatus.FAILED)
    registry = build_codec(settings, client=registry_client(settings))
    plain = StatusWriter(Codec()).encode(change)
    framed = StatusWriter(registry).encode(change)
    assert plain[:2] == b"\xc3\x01"
    assert framed[:1] == b"\x00"
    assert decode_status(registry, plain) == decode_status(registry, framed) == change


def test_a_number_that_the_registry_does_not_know_is_not_there(settings: Settings) -> None:
    codec = Codec()
    assert not RegistrySchemas(registry_client(settings), codec.store).learn((999).to_bytes(5, "big"))


def test_a_schema_of_another_kind_is_not_ours(settings: Settings) -> None:
    client = registry_client(settings)
    number = client.register_schema("s", Schema('{"type":"object"}', "JSON"))
    codec = Codec()
    assert not RegistrySchemas(client, codec.store).learn(number.to_bytes(5, "big"))


def test_a_registry_that_does_not_answer_is_named() -> None:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", schema_registry_url="http://127.0.0.1:1")
    client = SchemaRegistryClient({"url": "http://127.0.0.1:1", "max.retries": 0})
    with pytest.raises(RegistryFailed, match="SCHEMA_REGISTRY_URL"):
        build_codec(settings, client=client).prefix(STATUS)
    with pytest.raises(RegistryFailed, match="SCHEMA_REGISTRY_URL"):
        RegistrySchemas(client, Codec().store).learn((1).to_bytes(5, "big"))


async def test_an_event_loop_never_waits_for_a_registry(settings: Settings) -> None:
    """Neither for a type that another queue has used, nor after a failure."""
    asked_in: list[threading.Thread] = []

    class Down:
        def prefix(self, schema: WireSchema) -> bytes:
            asked_in.append(threading.current_thread())
            raise RegistryFailed(f"{schema.full_name}: no answer")

    job_type(Sample)
    queue = JobQueue(JobProducer(settings, codec=Codec(Down())), timedelta(seconds=1))
    for _ in range(2):
        with pytest.raises(RegistryFailed):
            await queue.schedule_job(Sample())
    calls = [queue.schedule_job(Sample()) for _ in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {RegistryFailed}
    assert len(asked_in) == 3, "those who wait at the same time share one question"
    assert threading.current_thread() not in asked_in
    await queue.close()


def test_without_a_registry_nobody_is_asked() -> None:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    assert build_codec(settings).prefix(STATUS)[:2] == b"\xc3\x01"
    with pytest.raises(SettingsError, match="SCHEMA_REGISTRY_URL"):
        registry_client(settings)
