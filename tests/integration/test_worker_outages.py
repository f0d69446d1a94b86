"""Kafka dies, freezes or has no room left while workers run: they outlive it, and no job is lost or forked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from schemas import JobStatus
from schemas.errors import DeliveryFailed, KafkaUnreachable
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import Settings
from tests.support.audit import audit, statuses
from tests.support.deployments import settings_for
from tests.support.jobs import Fails, Note, Waits
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually
from tests.support.workers import runs, workers

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.integration,
    pytest.mark.timeout(240),
    pytest.mark.thorough,
]

CANCELLED = "no answer from Kafka: everything is cancelled"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One for this module: it is killed and frozen."""
    with (
        memory_directory(tmp_path_factory.mktemp("outages")) as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512)) as broker,
    ):
        yield broker


def deployment(broker: EmbeddedBroker, directory: Path) -> Settings:
    settings = settings_for(broker, f"o-{uuid4().hex[:8]}.", directory)
    provision(settings)
    return settings


def all_final(settings: Settings, ids: list[str]) -> Counter[JobStatus]:
    def look() -> Counter[JobStatus] | None:
        known = statuses(settings)
        states = Counter(known[job_id][-1].state for job_id in ids if job_id in known)
        return states if sum(n for state, n in states.items() if state.final) == len(ids) else None

    found: Counter[JobStatus] = eventually(look, 120, f"{len(ids)} jobs final")
    return found


def kill_and_bring_back(broker: EmbeddedBroker, meanwhile: Callable[[], object]) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    eventually(lambda: not broker.alive, 20, "the broker is dead")
    meanwhile()
    broker.stop()  # it holds its directory until it is told
    broker.start()


def freeze_and_thaw(broker: EmbeddedBroker, meanwhile: Callable[[], object]) -> None:
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        meanwhile()
    finally:
        os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.parametrize("outage", [kill_and_bring_back, freeze_and_thaw])
def test_workers_outlive_an_outage_cancel_what_runs_and_finish_everything_once(
    broker: EmbeddedBroker,
    tmp_path: Path,
    outage: Callable[[EmbeddedBroker, Callable[[], object]], None],
) -> None:
    """After the lease others might run the jobs, so the handlers are cancelled, well before Kafka is back."""
    settings, go = deployment(broker, tmp_path), tmp_path / "go"
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        both = [start(name, "--max-concurrent-jobs", "20") for name in ("a", "b")]
        eventually(lambda: all(worker.said("partitions assigned") for worker in both), 60, "both have joined")
        long = producer.schedule_jobs(Waits(until=str(go)) for _ in range(10))
        eventually(lambda: len(runs(tmp_path)) == 10, 60, "ten jobs run")
        waiting = producer.schedule_jobs(
            [*(Note(text=str(n)) for n in range(100)), *(Fails(times=1) for _ in range(10))]
        )
        outage(
            broker,
            lambda: eventually(
                lambda: all(worker.said(CANCELLED) for worker in both), 60, "both cancelled what ran"
            ),
        )
        eventually(lambda: all(worker.said("Kafka answers again") for worker in both), 90, "both work again")
        go.touch()
        assert all_final(settings, [*long, *waiting]) == {JobStatus.SUCCEEDED: 120}
        found = audit(settings, [*long, *waiting])
        assert (found.lost, found.forked) == ([], [])
        ended = Counter(run["id"] for run in runs(tmp_path) if run["what"] == "ended")
        assert ended == dict.fromkeys(long, 1), (
            "what was cancelled did not come to an end beside its second run"
        )
        assert [worker.terminate() for worker in both] == [0, 0]


def test_a_worker_that_finds_no_kafka_says_so_and_exits_with_3(tmp_path: Path) -> None:
    # Nobody listens on port 1.
    settings = settings_for("127.0.0.1:1", "none.", tmp_path)
    with workers(settings, tmp_path) as start:
        worker = start("w")
        assert worker.wait(60) == 3
        assert "no Kafka broker answered at 127.0.0.1:1" in worker.reason()
        assert "rustfs-workers up" in worker.reason()


def _not_here(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room; only root may make one."""
    if os.geteuid() != 0:
        _not_here("mounting a small file system takes root")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        _not_here(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_refuses_jobs_by_name_and_loses_none_that_were_accepted(
    small_disk: Path, tmp_path: Path
) -> None:
    with EmbeddedBroker(BrokerConfig(small_disk, heap_mb=512)) as broker:
        settings = deployment(broker, tmp_path)
        impatient = JobProducer(settings, delivery_timeout=timedelta(seconds=5))
        with workers(settings, tmp_path) as start, impatient as producer:
            worker = start("w")
            eventually(lambda: worker.said("partitions assigned"), 60, "the worker has joined")
            accepted: list[str] = []

            def fill() -> None:
                while True:
                    text = os.urandom(2048).hex()
                    accepted.extend(producer.schedule_jobs(Note(text=text) for _ in range(100)))

            with pytest.raises((DeliveryFailed, KafkaUnreachable)) as refusal:
                fill()
            assert "schedule them again" in str(refusal.value) or "no Kafka broker" in str(refusal.value)
            eventually(lambda: not broker.alive, 60, "a broker without room ends")
            eventually(lambda: worker.said(CANCELLED), 60, "the worker has noticed")
            subprocess.run(["mount", "-o", "remount,size=512m", str(small_disk)], check=True)
            broker.stop()
            broker.start()
            assert all_final(settings, accepted) == {JobStatus.SUCCEEDED: len(accepted)}
            assert audit(settings, accepted).forked == []
            assert worker.terminate() == 0
