"""What happens to jobs when their worker dies, freezes or is told to stop. Real processes, really killed."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from schemas import JobStatus
from streams.producer import JobProducer
from streams.settings import Settings
from tests.support.audit import audit, statuses
from tests.support.jobs import Fails, Note, Waits
from tests.support.waiting import eventually
from tests.support.workers import NO_SANDBOX, Start, all_final, runs

pytestmark = [pytest.mark.distributed, pytest.mark.integration]


def test_kill_9_with_jobs_in_flight_loses_none_and_forks_none(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    victim = start("victim")
    long = producer.schedule_jobs(Waits(until=str(go)) for _ in range(20))
    eventually(lambda: len(runs(tmp_path)) == 20, 30, "twenty jobs run")
    others = producer.schedule_jobs(
        [*(Note(text=str(n)) for n in range(200)), *(Fails(times=1) for _ in range(20))]
    )
    victim.kill()
    start("heir")
    go.touch()
    final = all_final(provisioned, [*long, *others], 60)
    assert set(final.values()) == {JobStatus.SUCCEEDED}
    found = audit(provisioned, [*long, *others])
    assert (found.lost, found.forked) == ([], [])
    started = Counter(run["id"] for run in runs(tmp_path) if run["what"] == "started")
    assert all(started[job_id] == 2 for job_id in long), "each ran once at the victim and once at the heir"


def test_a_frozen_worker_that_wakes_after_losing_its_partitions_is_fenced(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the session: the heir runs the jobs, and the sleeper's outcomes do not count."""
    go = tmp_path / "go"
    sleeper = start("sleeper")
    ids = producer.schedule_jobs(Waits(until=str(go)) for _ in range(10))
    eventually(lambda: len(runs(tmp_path)) == 10, 30, "ten jobs run")
    sleeper.send(signal.SIGSTOP)
    heir = start("heir")
    eventually(lambda: heir.said("partitions assigned"), 40, "the heir has the partitions")
    eventually(
        lambda: sum(run["worker"] == "heir.0" and run["what"] == "started" for run in runs(tmp_path)) == 10,
        30,
        "the heir runs the ten jobs",
    )
    go.touch()
    sleeper.send(signal.SIGCONT)
    all_final(provisioned, ids, 60)
    eventually(
        lambda: sleeper.said("partitions lost") or sleeper.said("partitions released"),
        40,
        "the sleeper knows",
    )
    found = audit(provisioned, ids)
    assert (found.lost, found.forked) == ([], [])
    assert {
        change.worker for job_id in ids for change in statuses(provisioned)[job_id] if change.state.final
    } == {"heir.0"}
    assert sleeper.terminate() == 0


@pytest.mark.thorough
def test_a_job_whose_workers_freeze_again_and_again_is_not_taken_for_a_killer(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    """Each loss looks like a death, until the frozen one is heard of: before the second one has a consequence."""
    go = tmp_path / "go"
    frozen = start("w0")
    (job_id,) = producer.schedule_jobs([Waits(until=str(go), limit_s=300)])

    def runs_at(worker: str) -> bool:
        return any((run["what"], run["worker"]) == ("started", worker) for run in runs(tmp_path))

    for number in range(3):
        eventually(lambda: runs_at(f"w{number}.0"), 60, "the job runs")  # noqa: B023 - called in its round
        frozen.send(signal.SIGSTOP)
        heir = start(f"w{number + 1}")
        eventually(lambda: heir.said("partitions assigned"), 60, "the heir has the job")  # noqa: B023 - called in its round
        frozen.send(signal.SIGCONT)
        eventually(lambda: frozen.said("partitions lost"), 40, "the sleeper knows")  # noqa: B023 - called in its round
        assert frozen.terminate() == 0
        frozen = heir
    eventually(lambda: runs_at("w3.0"), 60, "the job runs")
    go.touch()
    assert all_final(provisioned, [job_id], 60) == {job_id: JobStatus.SUCCEEDED}
    assert audit(provisioned, [job_id]).forked == []


@pytest.mark.thorough
def test_a_job_that_ran_alone_in_a_worker_that_froze_waits_until_it_is_heard_of(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    """Two real deaths, so that it runs alone; then a loss that is none, though the heir cannot know it yet."""
    go = tmp_path / "go"
    (job_id,) = producer.schedule_jobs([Waits(until=str(go), limit_s=300)])

    def runs_at(worker: str) -> bool:
        return any((run["what"], run["worker"]) == ("started", worker) for run in runs(tmp_path))

    for name in ("first", "second"):
        victim = start(name, **NO_SANDBOX)
        eventually(lambda: runs_at(f"{name}.0"), 60, "the job runs")  # noqa: B023 - called in its round
        victim.kill()
    sleeper = start("sleeper", **NO_SANDBOX)
    eventually(lambda: runs_at("sleeper.0"), 60, "the job runs alone")
    sleeper.send(signal.SIGSTOP)
    heir = start("heir", **NO_SANDBOX)
    eventually(lambda: heir.said("lost owners looked for"), 60, "the heir looks for the sleeper")
    eventually(lambda: any("job waits" in event["event"] for event in heir.events()), 20, "the job waits")
    sleeper.send(signal.SIGCONT)
    eventually(lambda: runs_at("heir.0"), 60, "the job runs again")
    go.touch()
    assert all_final(provisioned, [job_id], 60) == {job_id: JobStatus.SUCCEEDED}
    assert audit(provisioned, [job_id]).forked == []


def test_a_partition_that_was_paused_when_it_went_is_read_when_it_comes_back(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    """A backlog pauses its partitions; another worker comes and goes meanwhile."""
    go = tmp_path / "go"
    narrow = {"RUSTFS_WORKERS_BUFFER_HIGH": "20", "RUSTFS_WORKERS_BUFFER_LOW": "10"}
    stays = start("stays", "--max-concurrent-jobs", "1", **narrow)
    (blocker,) = producer.schedule_jobs([Waits(until=str(go))])
    eventually(lambda: runs(tmp_path), 40, "the only place is taken")
    ids = producer.schedule_jobs(Note(text=str(n)) for n in range(3_000))
    for name in ("guest", "another"):
        guest = start(name, "--max-concurrent-jobs", "1", **narrow)
        eventually(lambda: guest.said("partitions assigned"), 40, "it takes some over")  # noqa: B023 - called in its round
        assert guest.terminate() == 0
    go.touch()
    final = all_final(provisioned, [blocker, *ids], 90)
    assert set(final.values()) == {JobStatus.SUCCEEDED}
    assert stays.terminate() == 0


def test_sigterm_lets_running_jobs_end_and_starts_no_others(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    worker = start("w", "--max-concurrent-jobs", "5")
    ids = producer.schedule_jobs(Waits(until=str(go)) for _ in range(8))
    eventually(lambda: len(runs(tmp_path)) == 5, 30, "five of eight jobs run")
    worker.send(signal.SIGTERM)
    eventually(lambda: worker.said("draining; once more to stop at once"), 10, "the worker drains")
    go.touch()
    assert worker.wait(30) == 0
    ended = {run["id"] for run in runs(tmp_path) if run["what"] == "ended"}
    assert len(ended) == 5
    heir = start("heir")
    all_final(provisioned, ids, 40)
    assert audit(provisioned, ids).forked == []
    started = Counter(run["id"] for run in runs(tmp_path) if run["what"] == "started")
    assert set(started.values()) == {1}, "a drain runs nothing twice"
    assigned = [event for event in heir.events() if event["event"] == "partitions assigned"]
    assert all(event["left_unclean_by"] is None for event in assigned)


def test_a_member_that_joins_takes_partitions_over_without_running_a_job_twice(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    one = start("one")
    # Else the second could be the first to join, and there would be nothing to take over.
    eventually(lambda: one.said("partitions assigned"), 40, "the first member works")
    ids = producer.schedule_jobs(Note(text=str(n)) for n in range(500))
    two = start("two")
    eventually(lambda: two.said("partitions assigned"), 40, "the second member works")
    ids += producer.schedule_jobs(Note(text=str(n)) for n in range(500))
    all_final(provisioned, ids, 60)
    found = audit(provisioned, ids)
    assert (found.lost, found.forked) == ([], [])
    assert set(Counter(run["id"] for run in runs(tmp_path)).values()) == {1}
    assert {run["worker"] for run in runs(tmp_path)} == {"one.0", "two.0"}
