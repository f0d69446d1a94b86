"""A job that ends its process in its first millisecond, beside long ones that have nothing to do with it.

Long ones are there at each death, and at outages and lost sessions besides: nothing of that may be held against them.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas import JobStatus
from schemas.codec import Codec
from schemas.offsetmap import parse
from streams.clients import admin_config
from streams.committed import committed_offsets
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import Settings
from tests.support.audit import statuses
from tests.support.deployments import settings_for
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import Kills, Note, Waits
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually
from tests.support.workers import NO_SANDBOX, WorkerUnderTest, all_final, runs, workers
from workers.liveness.survivors import signs_of_life

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.timeout(240)]

CUT_OFF = "no answer from Kafka: everything is cancelled"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """It is frozen, and gives a silent worker up sooner than others do."""
    impatient = {
        "group.consumer.min.session.timeout.ms": "5000",
        "group.consumer.session.timeout.ms": "5000",
        "group.consumer.min.heartbeat.interval.ms": "500",
        "group.consumer.heartbeat.interval.ms": "500",
    }
    with (
        memory_directory(tmp_path / "kafka") as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512, extra=impatient)) as broker,
    ):
        yield broker


@pytest.fixture
def settings(broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    settings = settings_for(broker, "killers.", tmp_path)
    provision(settings)
    return settings


def starts(directory: Path) -> Counter[str]:
    """How often each job was started."""
    return Counter(run["id"] for run in runs(directory) if run["what"] in {"started", "run"})


def are_open(settings: Settings) -> bool:
    """Whether every partition of the job topics has an owner that has committed so."""
    places = [
        (topic, number) for topic in settings.topics.jobs.values() for number in range(settings.partitions)
    ]
    found = committed_offsets(settings, settings.topics.group, places, timeout_s=20, stable=True)
    return not any(parse(*found[place]).clean for place in places)


def have_reported_since(settings: Settings, worker: WorkerUnderTest, at: float) -> bool:
    """Whether two of its processes have made a report after this time."""
    started = [line["incarnation"] for line in worker.events() if line["event"] == "worker started"]
    heard = signs_of_life(settings, Codec(), dict.fromkeys(started, int(at * 1000))).heard
    return len(heard) == 2


def hear_of_kafka(worker: WorkerUnderTest) -> bool:
    """Whether none of its processes is cut off."""
    cut_off: set[str] = set()
    for line in worker.events():
        match line["event"]:
            case event if event == CUT_OFF:
                cut_off.add(line["worker"])
            case "Kafka answers again":
                cut_off.discard(line["worker"])
            case "worker process ended":
                cut_off.discard(f"w.{line['process']}")
    return not cut_off


def both_have_theirs(settings: Settings) -> bool:
    """Whether each of two processes has partitions, and none is to be given up: who has none has nothing to cancel."""
    group = settings.topics.group
    admin = AdminClient(admin_config(settings))  # it must outlive its answer
    try:
        described = admin.describe_consumer_groups([group])[group].result(20)
    except (KafkaException, TimeoutError):
        return False  # a coordinator that is not back yet
    given = [
        (set(member.assignment.topic_partitions), set(member.target_assignment.topic_partitions))
        for member in described.members
    ]
    return len(given) == 2 and all(has and has == target for has, target in given)


def said(worker: WorkerUnderTest, event: str) -> int:
    """How often, all its processes together."""
    return sum(line["event"] == event for line in worker.events())


def outage(broker: EmbeddedBroker, worker: WorkerUnderTest, *processes: str) -> None:
    """Long enough for these of its processes to give up what they run."""

    def cut_off() -> Counter[str]:
        return Counter(line["worker"] for line in worker.events() if line["event"] == CUT_OFF)

    before = cut_off()
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        eventually(
            lambda: all(cut_off()[name] > before[name] for name in processes),
            30,
            "they have cancelled what ran",
        )
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def freeze(process: int, directory: Path) -> None:
    """Until the other process runs what this one ran."""
    held = {run["id"] for run in runs(directory) if run["pid"] == process}
    before = starts(directory)
    psutil.Process(process).suspend()
    try:
        eventually(
            lambda: all(starts(directory)[job_id] > before[job_id] for job_id in held),
            40,
            "the heir runs them",
        )
    finally:
        psutil.Process(process).resume()


@pytest.mark.thorough
def test_a_death_before_a_job_existed_is_not_the_jobs(settings: Settings, tmp_path: Path) -> None:
    """An idle worker may start what comes next without a commit, so its map reaches beyond the end of the log."""
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        worker = start("w", "--processes", "2")
        eventually(lambda: are_open(settings), 60, "both processes have partitions, and may start what comes")
        assert worker.process is not None
        idle = psutil.Process(worker.process.pid).children()
        assert len(idle) == 2
        for process in idle:
            process.kill()

        def taken_over() -> set[int]:
            lines = (line for line in worker.events() if line["event"] == "partitions assigned")
            return {number for line in lines if line["left_unclean_by"] for number in line["partitions"]}

        eventually(lambda: taken_over() == set(range(settings.partitions)), 60, "others have all of them")
        (killer,) = producer.schedule_jobs([Kills()])
        assert all_final(settings, [killer], 100) == {killer: JobStatus.FAILED}
        assert starts(tmp_path)[killer] == 3
        assert worker.terminate() == 0
    assert_exactly_once(settings, [killer])


@pytest.mark.parametrize("sandbox", ["0", pytest.param("4", marks=pytest.mark.thorough)])
def test_the_one_that_kills_is_found_and_neither_outages_nor_lost_sessions_count(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path, sandbox: str
) -> None:
    """Without a sandbox it runs alone in its third worker; with one it ends a process of its own, and no third worker."""
    go = tmp_path / "go"
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        worker = start("w", "--processes", "2", RUSTFS_WORKERS_SANDBOX_SIZE=sandbox)
        eventually(lambda: said(worker, "partitions assigned") == 2, 60, "both processes have partitions")
        long = producer.schedule_jobs(Waits(until=str(go), limit_s=200) for _ in range(6))

        def run_for_the(time: int) -> bool:
            return all(starts(tmp_path)[job_id] >= time for job_id in long)

        eventually(lambda: run_for_the(1), 40, "all run")
        outage(broker, worker, "w.0", "w.1")
        eventually(lambda: run_for_the(2), 40, "all run again")
        freeze(runs(tmp_path)[-1]["pid"], tmp_path)
        killer, *innocent = producer.schedule_jobs([Kills(), *(Note(text=str(n)) for n in range(9))])
        eventually(lambda: starts(tmp_path)[killer] == 2, 90, "it has killed both processes")
        before = sum(starts(tmp_path)[job_id] for job_id in long)
        eventually(lambda: sum(starts(tmp_path)[job_id] for job_id in long) > before, 60, "one runs alone")
        # The one in which it runs: else it would survive the outage, and the killer run beside it.
        outage(broker, worker, runs(tmp_path)[-1]["worker"])
        # Else nobody could tell whether its third worker had given it up when it died.
        over = time.time() + 1.5  # those of the outage are written when it ends
        eventually(lambda: have_reported_since(settings, worker, over), 30, "Kafka hears of both again")
        go.touch()
        final = all_final(settings, [killer, *innocent, *long], 100)
        assert final.pop(killer) is JobStatus.FAILED
        assert set(final.values()) == {JobStatus.SUCCEEDED}
        assert statuses(settings)[killer][-1].error_type == "worker_lost"
        assert starts(tmp_path)[killer] == 3
        assert said(worker, "worker process ended") == (3 if sandbox == "0" else 2)
        assert worker.terminate() == 0
    assert_exactly_once(settings, [killer, *innocent, *long])


@pytest.mark.thorough
def test_one_that_ends_by_sigkill_is_found_at_its_fourth_death(settings: Settings, tmp_path: Path) -> None:
    """A system that is short of memory kills whom it likes: only what ran alone in a worker has no excuse."""
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        worker = start("w", "--processes", "2")
        eventually(lambda: said(worker, "partitions assigned") == 2, 60, "both processes have partitions")
        killer, *innocent = producer.schedule_jobs(
            [Kills(by_sigkill=True), *(Note(text=str(n)) for n in range(9))]
        )
        final = all_final(settings, [killer, *innocent], 150)
        assert final.pop(killer) is JobStatus.FAILED
        assert set(final.values()) == {JobStatus.SUCCEEDED}
        assert statuses(settings)[killer][-1].error_type == "worker_lost"
        assert starts(tmp_path)[killer] == 4
        assert said(worker, "worker process ended") == 3, "and once a process of its own"
        assert worker.terminate() == 0
    assert_exactly_once(settings, [killer, *innocent])


def kill_while_away(
    broker: EmbeddedBroker, worker: WorkerUnderTest, process: int, how: signal.Signals
) -> None:
    """The process has given up what it ran, and ends before it can say so. Kafka goes on, or has to be started anew."""
    before = said(worker, CUT_OFF)
    os.kill(broker.pid, how)
    try:
        eventually(lambda: said(worker, CUT_OFF) >= before + 2, 30, "both have cancelled what ran")
        psutil.Process(process).kill()
    finally:
        if how is signal.SIGSTOP:
            os.kill(broker.pid, signal.SIGCONT)
        else:
            eventually(lambda: not broker.alive, 10, "the broker is gone")
            broker.start()


@pytest.mark.thorough
def test_one_that_was_cancelled_before_its_worker_died_is_not_taken_for_one_that_kills(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path
) -> None:
    """It ran alone, Kafka went away, its worker cancelled it and was killed: nobody could say that it did not run any more."""
    go = tmp_path / "go"
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        worker = start("w", "--processes", "2", **NO_SANDBOX)
        eventually(lambda: said(worker, "partitions assigned") == 2, 60, "both processes have partitions")
        (long,) = producer.schedule_jobs([Waits(until=str(go), limit_s=200)])

        killed: set[int] = set()

        def runs_in() -> int:
            """The process that runs it, once the other one takes part as well and the partitions stay where they are."""

            def steady() -> int | None:
                # First of all: an owner that gave it up before that has written that it has cancelled it.
                if not (hear_of_kafka(worker) and both_have_theirs(settings)):
                    return None
                last = next(reversed(runs(tmp_path)), {"what": "nothing yet"})
                again = last["what"] == "started" and last["pid"] not in killed
                return int(last["pid"]) if again else None

            process = eventually(steady, 60, "it runs again, and both processes have partitions")
            assert isinstance(process, int)
            killed.add(process)
            return process

        for _ in range(2):
            psutil.Process(runs_in()).kill()
        kill_while_away(broker, worker, runs_in(), signal.SIGSTOP)
        kill_while_away(broker, worker, runs_in(), signal.SIGKILL)
        runs_in()
        go.touch()
        assert all_final(settings, [long], 100) == {long: JobStatus.SUCCEEDED}
        assert said(worker, "job runs alone once more: Kafka may have been away when its worker died") == 2
        assert worker.terminate() == 0
    assert_exactly_once(settings, [long])
