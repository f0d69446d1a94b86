"""When a worker refuses to go on, what it says, and that nothing is lost by it. Real processes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # it has no __all__

from schemas import JobStatus
from schemas.errors import KafkaUnreachable, PipelineError
from schemas.topics import JobPriority
from streams.producer import JobProducer
from streams.settings import Settings
from tests.support.audit import statuses
from tests.support.commands import CommandLine
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import InProcess, Note, Waits
from tests.support.waiting import eventually
from tests.support.workers import Start, runs, workers
from workers.config import WorkerConfig
from workers.console import UNREACHABLE, exit_code
from workers.manager import WorkerManager

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]


def succeeded(settings: Settings, ids: list[str]) -> bool:
    known = statuses(settings)
    return all(job_id in known and known[job_id][-1].state is JobStatus.SUCCEEDED for job_id in ids)


def grow(settings: Settings, topic: str, count: int) -> None:
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers()})
    for answer in admin.create_partitions([NewPartitions(topic, count)]).values():
        answer.result(20)


def test_of_two_processes_with_one_worker_id_one_stops_and_names_the_other(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    older = start("twin")
    eventually(lambda: older.said("partitions assigned"), 40, "the older one works")
    with workers(provisioned, tmp_path / "1") as start_elsewhere:
        newer = start_elsewhere("twin", RFW_TEST_LOG=str(older.log_file))
        eventually(lambda: newer.said("partitions assigned"), 40, "the newer one works")
        ids: list[str] = []
        # Each commit of one fences the other, so both need work until one has had enough.
        deadline = time.monotonic() + 60
        while all(worker.process and worker.process.poll() is None for worker in (older, newer)):
            assert time.monotonic() < deadline, "both go on"
            ids += producer.schedule_jobs(Note(text=str(n)) for n in range(20))
        ended, left = sorted((older, newer), key=lambda worker: worker.process.poll() is None)  # type: ignore[union-attr]
        assert ended.wait(30) == 2, "it is not started again by whoever supervises it"
        assert ended is newer, "if each left to the other, nobody would be left"
        (incarnation,) = [e["incarnation"] for e in left.events() if e["event"] == "worker started"]
        said = ended.reason()
        assert f"incarnation {incarnation}" in said
        assert "--worker-id" in said
        ids += producer.schedule_jobs(Note(text=str(n)) for n in range(20))
        eventually(lambda: succeeded(provisioned, ids), 60, "the other one does all that is left")
        assert left.terminate() == 0
    assert len(assert_exactly_once(provisioned, ids)) == len(ids)


async def test_a_manager_that_cannot_start_leaves_nothing_running(
    provisioned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may try again later: its handler processes and threads must not add up."""

    def refuse(*_: object, **__: object) -> None:
        raise PipelineError("the registry says no")

    monkeypatch.setattr("workers.process.introduce", refuse)
    children, threads = psutil.Process().children(recursive=True), set(threading.enumerate())
    manager = WorkerManager(WorkerConfig(worker_id="w"), provisioned).register(InProcess)
    with pytest.raises(PipelineError, match="the registry says no"):
        await manager.start()
    assert psutil.Process().children(recursive=True) == children
    left = {thread.name for thread in threading.enumerate() if thread not in threads}
    shared = ("asyncio_", "rustfs-workers_")  # pools of the whole process, whose size is bounded
    assert {name for name in left if not name.startswith(shared)} == set()
    await manager.shutdown()


async def test_a_worker_whose_first_report_kafka_keeps_waiting_has_not_reached_it(
    provisioned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers may be away at that very moment: whoever supervises it is told to try again, by the exit code."""
    monkeypatch.setattr("workers.liveness.reporter.Reporter.first", lambda *_: False)
    manager = WorkerManager(WorkerConfig(worker_id="w"), provisioned).register(Note)
    with pytest.raises(
        KafkaUnreachable, match=r"acknowledged the worker's first report \(.*workers\.reports\)"
    ) as end:
        await manager.start()
    assert exit_code(end.value) == UNREACHABLE
    await manager.shutdown()


def test_a_worker_stops_in_order_when_a_topic_grows_and_does_not_start_again(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    worker = start("w")
    (job_id,) = producer.schedule_jobs([Waits(until=str(go))])
    eventually(lambda: runs(tmp_path), 40, "the job runs")
    grow(provisioned, provisioned.topics.jobs[JobPriority.HIGH], 4)
    eventually(lambda: worker.said("worker stops"), 40, "the worker has noticed")
    go.touch()
    assert worker.wait(40) == 1
    assert "have 4 partitions now, and had 3" in worker.reason()
    assert statuses(provisioned)[job_id][-1].state is JobStatus.SUCCEEDED, "what ran was let to its end"
    late = start("late")
    assert late.wait(40) == 1
    assert f"{provisioned.topics.jobs[JobPriority.HIGH]} has 4, the others 3" in late.reason()
    assert "topics check" in late.reason()


@pytest.mark.parametrize("metadata", ["somebody else's", "2;-;1;a;t;5;;0:0;x@" + "f" * 300])
def test_a_worker_refuses_a_partition_whose_map_was_damaged_by_name(
    start: Start, provisioned: Settings, tmp_path: Path, metadata: str
) -> None:
    """Going on without it would run finished jobs again, and with an owner that was lost after the end of all time nobody can."""
    place = TopicPartition(provisioned.topics.jobs[JobPriority.HIGH], 1, 0, metadata=metadata)
    somebody = Consumer(
        {"bootstrap.servers": provisioned.bootstrap_servers(), "group.id": provisioned.topics.group}
    )
    somebody.commit(offsets=[place], asynchronous=False)
    somebody.close()
    worker = start("w")
    assert worker.wait(60) == 1
    assert f"the offset of {place.topic}/1 is committed without a map" in worker.reason()
    assert "Traceback" not in worker.stderr_file.read_text()
    assert CommandLine.on(provisioned, tmp_path).here("topics", "check").code in (0, 1), "it answers"
