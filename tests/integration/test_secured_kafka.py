"""A Kafka with passwords and TLS: jobs run on it, and whoever it does not let in is told why. Real processes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from schemas import JobStatus
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings, load_settings
from tests.support.commands import CommandLine
from tests.support.jobs import Note
from tests.support.memory_directory import memory_directory
from tests.support.secured_kafka import SecuredKafka, secured_kafka
from tests.support.workers import workers

pytestmark = [pytest.mark.job_processing, pytest.mark.integration]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with (
        memory_directory(tmp_path_factory.mktemp("secured")) as directory,
        secured_kafka(directory) as kafka,
    ):
        yield kafka


@pytest.fixture
def variables(kafka: SecuredKafka) -> dict[str, str]:
    return {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_USERNAME": kafka.user,
        "KAFKA_SASL_PASSWORD": kafka.password,
        "KAFKA_SSL_CA_LOCATION": str(kafka.authority),
    }


@pytest.fixture
def settings(kafka: SecuredKafka, variables: dict[str, str], tmp_path: Path) -> Settings:
    return load_settings(
        kafka_bootstrap_servers=kafka.address,
        topic_prefix="secured.",
        partitions=3,
        data_dir=tmp_path / "data",
        **{name.lower(): value for name, value in variables.items()},
    )


async def test_jobs_are_scheduled_run_and_waited_for(
    settings: Settings, variables: dict[str, str], tmp_path: Path
) -> None:
    """Producers, workers, admin clients and asyncio's consumer: each has its own spelling of the same settings."""
    provision(settings)
    with workers(settings, tmp_path) as start:
        worker = start("w", **variables)
        async with JobQueue.connect(settings) as queue:
            job_id = await queue.schedule_job(Note(text="over TLS"))
            found = await queue.wait(job_id, timedelta(seconds=60))
        assert found.status is JobStatus.SUCCEEDED
        assert worker.terminate() == 0
    listed = CommandLine.on(settings, tmp_path, **variables)("jobs", "list", "--json")
    assert listed.code == 0, listed.err
    assert listed.records()[0]["id"] == job_id
    assert "correct horse" not in worker.stderr_file.read_text() + listed.out + listed.err


@pytest.mark.parametrize(
    ("command", "name", "value", "said"),
    [
        pytest.param("topics check", "KAFKA_SASL_PASSWORD", "wrong battery", "Authentication failed", id="password"),
        pytest.param("worker", "KAFKA_SASL_PASSWORD", "wrong battery", "Authentication failed", id="worker"),
        pytest.param("jobs list", "KAFKA_SASL_MECHANISM", "SCRAM-SHA-256", "Unsupported SASL mechanism", id="mechanism"),
        pytest.param("topics check", "KAFKA_SSL_CA_LOCATION", "stranger.pem", "certificate verify failed", id="certificate"),
    ],
)  # fmt: skip
def test_whoever_is_not_let_in_is_told_why(
    settings: Settings,
    variables: dict[str, str],
    kafka: SecuredKafka,
    tmp_path: Path,
    command: str,
    name: str,
    value: str,
    said: str,
) -> None:
    if value == "stranger.pem":
        value = str(kafka.stranger)
    finished = CommandLine.on(settings, tmp_path, **{**variables, name: value})(*command.split())
    assert finished.code == 3, finished.err
    assert said in finished.err
    assert "config show" in finished.err, "where to look"
    assert "battery" not in finished.err
    assert "Traceback" not in finished.err
