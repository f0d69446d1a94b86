"""The auditor of the guarantees finds what it is there to find: each kind of fault, planted into honest evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import (
    Accepted,
    Doubt,
    Evidence,
    JobRecord,
    Life,
    Status,
    Trouble,
    load,
    save,
)
from tests.guarantees.pulse import Stalls
from tests.guarantees.storm import Kind
from tests.guarantees.verdict import Verdict
from tests.support.honest_evidence import WALL_MS, S, honest, ran, record, said

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("ends", "end_of_last", "troubles", "condemned"),
    [
        pytest.param("killed", None, [], 1, id="killed"),
        pytest.param("stood still", None, [], 1, id="after two that stood still"),
        pytest.param("left", None, [], 0, id="after two that had left"),
        pytest.param("killed", 17.0, [Trouble("worker_freeze", 15 * S, 25 * S, 10)], 1, id="frozen"),
        pytest.param(
            "killed", 17.0, [Trouble("worker_freeze", 15 * S, 25 * S, 20)], 0, id="another was frozen"
        ),
        pytest.param("killed", 17.0, [], 0, id="nothing happened to it"),
    ],
)
def test_a_dead_letter_of_an_innocent_is_counted_apart_if_three_workers_died_and_the_last_while_it_ran_alone(
    ends: str, end_of_last: float | None, troubles: list[Trouble], condemned: int
) -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=18 * S)
    evidence.lives += [
        Life("c", 30, 0, 13 * S, ends, told_ns=11 * S),
        Life("d", 40, 0, 15 * S, ends, told_ns=13 * S),
    ]
    evidence.troubles += troubles
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.topics.statuses["five"] = [said("five", "failed", 19, 4, "b.0", error_type="worker_lost")]
    evidence.topics.jobs.append(record("five", 0, topic="jobs.dlq", key=None))
    evidence.runs += [
        ran("five", 11, 12, "c.0", key=None, how="cancelled", pid=30),
        ran("five", 13, 14, "d.0", key=None, how="cancelled", fence=1, pid=40),
        ran("five", 16, end_of_last, key=None, how="cancelled" if end_of_last else None, fence=2),
    ]
    verdict = judge(evidence)
    assert verdict.condemned.count == condemned
    assert (verdict.illegal.count == 0) == bool(condemned)


def test_a_worker_that_was_only_frozen_condemns_nobody() -> None:
    """It wakes up and reports, and its job is acquitted."""
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    evidence.troubles.append(Trouble("worker_freeze", 15 * S, 25 * S, 10))
    evidence.runs[3] = ran("four", 9.5, 9.6, how="cancelled")
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.topics.statuses["five"] = [said("five", "failed", 19, 4, "b.0", error_type="worker_lost")]
    evidence.topics.jobs.append(record("five", 0, topic="jobs.dlq", key=None))
    evidence.runs += [
        ran("five", start, end, key=None, how="cancelled", fence=fence)
        for fence, (start, end) in enumerate([(11, 12), (13, 14), (16, 25.2)])
    ]
    verdict = judge(evidence)
    assert (set(verdict.broken), verdict.condemned.count) == ({"illegal"}, 0)


def test_honest_evidence_is_found_to_be_so_and_times_are_measured(tmp_path: Path) -> None:
    verdict = judge(honest())
    assert verdict.broken == {}
    assert (verdict.accepted, verdict.kills, verdict.kills_in_flight) == (4, 1, 1)
    assert (verdict.reexecuted, verdict.reasons) == (1, {"killed": 1})
    assert (verdict.takeover_s, verdict.takeovers, verdict.standstill_s) == (3.0, 1, 7.0)
    save(honest(), tmp_path / "evidence.json")
    assert judge(load(tmp_path / "evidence.json")) == verdict


def test_a_long_storm_that_has_shown_too_little_says_so() -> None:
    enough = {kind.value: 25 for kind in Kind}
    verdict = Verdict(
        minutes=30.0, accepted=150_000, faults=200, faults_by_kind=enough, kills=25, kills_in_flight=8, takeover_s=12.0,
        takeovers=3, leaves=3,
    )  # fmt: skip
    assert verdict.missed == []
    verdict.faults_by_kind = enough | {"kafka_restart": 19}
    del verdict.faults_by_kind["broker_kill"]
    verdict.leaves, verdict.leaves_in_trouble = 2, 20
    verdict.accepted, verdict.kills_in_flight, verdict.takeover_s, verdict.leave_s = 99_999, 7, 12.1, 3.1
    verdict.takeover_after_trouble_s, verdict.leave_after_trouble_s = 20.1, 11.1
    verdict.faults = 190
    assert verdict.missed == [
        "takeover took 12.1 s, and not 12",
        "after a leave it took 3.1 s, and not 3",
        "a takeover in trouble took 20.1 s in which nothing was wrong any more, and not 20",
        "a leave in trouble took 11.1 s in which nothing was wrong any more, and not 11",
        "190 faults were made, and not 200",
        "28% of the kills met a running job, and not 30%",
        "99,999 jobs were accepted, and not 100,000",
        "3,333 jobs a minute were accepted, and not 5,000",
        "broker_kill came up 0 times, and not 20",
        "kafka_restart came up 19 times, and not 20",
        "2 leaves were measured where nothing else was wrong, and not 3",
    ]
    verdict.minutes = 29.9
    assert len(verdict.missed) == 4, "a short one shows what it can"


def lose(e: Evidence) -> None:
    del e.topics.statuses["two"]


def bury(e: Evidence, name: str) -> None:
    e.topics.jobs.append(record(name, len(e.topics.jobs), topic="jobs.dlq"))


def end_twice(e: Evidence) -> None:
    bury(e, "two")
    e.topics.statuses["two"].append(said("two", "failed", 3, 9, delivery=1))


def retry_twice(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "retrying", 2, 7),
        said("two", "retrying", 2.6, 8),
        said("two", "succeeded", 2.8, 9, delivery=1, attempt=2),
    ]
    e.runs += [ran("two", 2.6, 2.65), ran("two", 2.8, 2.85, attempt=2)]
    e.topics.jobs.append(record("two", 9, delivery=1))


def retry_another(e: Evidence) -> None:
    """The retry has a value that its job never had."""
    retry(e)
    e.topics.jobs[-1] = replace(e.topics.jobs[-1], content=7)


def bury_twice(e: Evidence) -> None:
    e.topics.statuses["x"] = [said("x", "failed", 5, 9, error_type="worker_lost")]
    bury(e, "x")
    bury(e, "x")


def go_back(e: Evidence) -> None:
    e.topics.statuses["two"].append(said("two", "running", 3, 9))


def end_wrongly(e: Evidence) -> None:
    bury(e, "two")
    e.topics.statuses["two"] = [said("two", "failed", 2.5, 9)]


def start_before_the_producers_time(e: Evidence) -> None:
    e.accepted[0] = replace(e.accepted[0], due_ms=WALL_MS + 1_001)


def start_before_the_retrys_time(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "retrying", 2.5, 8, not_before_ms=WALL_MS + 4_000, started_ms=WALL_MS + 2_000),
        said("two", "succeeded", 4, 9, delivery=1, attempt=2, started_ms=WALL_MS + 3_900),
    ]
    e.runs.append(ran("two", 3.9, 3.95, attempt=2))
    e.topics.jobs.append(record("two", 9, delivery=1))


def overlap(e: Evidence) -> None:
    e.runs[1] = ran("two", 2, 3.1)


def swap(e: Evidence) -> None:
    e.runs[0], e.runs[1] = ran("one", 2, 2.5), ran("two", 1, 1.5)


def run_for_nothing(e: Evidence) -> None:
    e.runs.append(ran("one", 5, 5.1))


def succeed_without_a_run(e: Evidence) -> None:
    del e.runs[1]


def succeed_in_a_run_without_an_end(e: Evidence) -> None:
    e.runs[1] = replace(e.runs[1], end_ns=None, how=None)


def fail_without_a_letter(e: Evidence) -> None:
    e.topics.statuses["two"] = [said("two", "failed", 2.5, 9)]
    e.accepted[1] = replace(e.accepted[1], expected="failed")


def bury_who_succeeded(e: Evidence) -> None:
    bury(e, "two")


def retry(e: Evidence, *others: Status, due_s: float = 3.5, **facts: object) -> None:
    """Job two fails in its first run, at 2.5, and succeeds in its second, at 3.9."""
    e.topics.jobs += [retried(due_s), record("two", 9, delivery=2)]
    e.topics.statuses["two"] = [
        said("two", "retrying", 2.5, 7, not_before_ms=WALL_MS + 3_500, started_ms=WALL_MS + 2_000),
        *others,
        replace(said("two", "succeeded", 3.9, 9, delivery=2, attempt=2), **facts),  # type: ignore[arg-type]
    ]
    e.runs.append(ran("two", 3.9, 3.95, attempt=e.topics.statuses["two"][-1].attempt))


def run_again_what_has_a_retry_and_die(e: Evidence) -> None:
    """A lost map, say; and the worker is killed before that run has an outcome of its own."""
    retry(e, due_s=9)
    e.topics.statuses["two"][0] = replace(e.topics.statuses["two"][0], not_before_ms=WALL_MS + 9_000)
    e.topics.statuses["two"][-1] = said("two", "succeeded", 12.5, 9, "b.0", delivery=2, attempt=2)
    e.runs[-1] = ran("two", 12.5, 12.6, "b.0", fence=1, attempt=2)
    e.runs.append(ran("two", 9.2, 9.4))


def retried(not_before_s: float, offset: int = 0) -> JobRecord:
    due_ms = WALL_MS + round(not_before_s * 1000)
    return record(
        "two", offset, topic="jobs.retry.1s", delivery=1, not_before_ms=due_ms, written_ms=WALL_MS + 2_600
    )


def write_a_retry_twice(e: Evidence) -> None:
    retry(e)
    e.topics.jobs.append(retried(3.5, 1))


def start_before_the_time_on_the_record(e: Evidence) -> None:
    retry(e, due_s=5)


def tell_late_news(e: Evidence) -> None:
    retry(e, said("two", "running", 2.6, 8))


def skip_attempts(e: Evidence) -> None:
    retry(e, attempt=3)


def forget_what_came_before(e: Evidence) -> None:
    e.topics.statuses["two"] = [said("two", "succeeded", 2.5, 9, attempt=2)]
    e.runs[1] = replace(e.runs[1], attempt=2)


def cancel_for_nothing(e: Evidence) -> None:
    e.runs.append(ran("one", 0.2, 0.4, how="cancelled"))


def vanish(e: Evidence) -> None:
    """The handler of a process that lives on never ends, and the job runs again there."""
    e.topics.jobs[3] = replace(e.topics.jobs[3], key=None)
    e.runs[3] = replace(e.runs[3], key=None)
    e.runs[4] = ran("four", 15, 15.5, "b.0", fence=1, key=None)
    e.topics.statuses["four"] = [said("four", "succeeded", 15.5, 3, "b.0")]
    e.runs.append(ran("four", 11, None, "b.0", fence=1, key=None))


def run_one_without_a_key_at_two_owners(e: Evidence) -> None:
    """Both live, and nothing is wrong anywhere."""
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.topics.jobs[3] = replace(e.topics.jobs[3], key=None)
    e.runs[3:] = [
        ran("four", 12, 14, how="cancelled", key=None),
        ran("four", 13, 13.5, "b.0", fence=1, key=None),
    ]


def run_what_is_finished_while_a_broker_is_away(e: Evidence) -> None:
    e.runs.append(ran("one", 16, 16.5, "b.0", fence=1))
    e.troubles.append(Trouble("broker_kill", 14 * S, 15 * S))


def run_again_what_was_kept_while_a_broker_is_away(e: Evidence) -> None:
    e.runs.append(ran("one", 0.2, 0.4))
    e.troubles.append(Trouble("broker_kill", 0, 5 * S))


def break_the_order_at_the_heir(e: Evidence) -> None:
    """Worker a has run two and three when it is killed; its heir begins with three."""
    for name, at in (("two", 16), ("three", 15)):
        e.topics.statuses[name] = [said(name, "succeeded", at, 7, "b.0")]
        e.runs.append(ran(name, at, at + 0.5, "b.0", fence=1))
    e.runs[1], e.runs[2] = ran("two", 9.0, 9.1), ran("three", 9.2, 9.3)


def spread_a_key(e: Evidence) -> None:
    e.topics.jobs[1] = replace(e.topics.jobs[1], partition=1)


def overlap_in_a_process_that_was_frozen(e: Evidence) -> None:
    """It woke up, and its own lock let a second one in."""
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.troubles.append(Trouble("worker_freeze", round(9.7 * S), 20 * S, 10))
    e.runs[3:] = [ran("four", 9.5, 20.9), ran("five", 20.5, 20.6)]
    e.topics.statuses["four"] = [said("four", "succeeded", 9.5, 3)]
    e.topics.statuses["five"] = [said("five", "succeeded", 20.5, 4)]


def end_an_attempt_too_early(e: Evidence) -> None:
    e.accepted[1] = replace(e.accepted[1], attempts=2)


def schedule_a_child_and_never_tell(e: Evidence) -> None:
    e.topics.jobs.append(record("child", 9, parent="two", key=None))


def retry_in_another_partition(e: Evidence) -> None:
    """It has no key, so that nothing else says where it must lie."""
    retry(e)
    e.topics.jobs = [
        replace(one, key=None, partition=int(one.delivery > 0)) if one.job_id == "two" else one
        for one in e.topics.jobs
    ]
    e.runs = [replace(run, key=None) if run.job_id == "two" else run for run in e.runs]


def retry_keyed_in_another_partition(e: Evidence) -> None:
    retry(e)
    e.topics.jobs[-1] = replace(e.topics.jobs[-1], partition=1)


def retry_beside_its_key(e: Evidence) -> None:
    """Job three has the key when the second run of job two begins."""
    retry(e)
    e.runs[2] = ran("three", 3, 3.92)


def plan_for_before_what_was_asked(e: Evidence) -> None:
    retry(e)
    e.runs[1] = replace(e.runs[1], asked_ms=WALL_MS + 4_600)


def plan_for_a_little_before_what_was_asked(e: Evidence) -> None:
    """In its first seconds a worker may know its broker's clock that badly; not later."""
    retry(e)
    e.lives[0] = replace(e.lives[0], start_ns=-4 * S)
    e.runs[1] = replace(e.runs[1], asked_ms=WALL_MS + 3_700)


def succeed_in_a_cancelled_run(e: Evidence) -> None:
    e.runs[1] = replace(e.runs[1], how="cancelled")


def succeed_by_nobody(e: Evidence) -> None:
    e.topics.statuses["two"] = [said("two", "succeeded", 2.5, 1, "")]
    del e.runs[1]


def pend_after_running(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "running", 2, 6),
        said("two", "pending", 2.1, 7),
        said("two", "succeeded", 2.5, 8),
    ]


def lead_nowhere(e: Evidence) -> None:
    """It has succeeded, and waits to be tried again all the same."""
    e.topics.jobs.append(retried(3.5))


def lose_a_retry(e: Evidence) -> None:
    retry(e)
    del e.topics.jobs[-2:]


def bury_twice_in_one_life(e: Evidence) -> None:
    end_wrongly(e)
    e.accepted[1] = replace(e.accepted[1], expected="failed")
    e.topics.jobs.append(record("two", 9, topic="jobs.dlq", delivery=1))


def forget_a_key(e: Evidence) -> None:
    e.runs[1] = replace(e.runs[1], key=None)


def spread_a_key_over_priorities(e: Evidence) -> None:
    e.topics.jobs.append(record("five", 0, topic="jobs.high", priority="high", partition=1))
    e.topics.statuses["five"] = [said("five", "succeeded", 5.5, 4)]
    e.runs.append(ran("five", 5, 5.5))


def lose_a_life_of_which_only_a_status_tells(e: Evidence) -> None:
    """Kafka has torn the redrive, and its caller was told that it had failed."""
    e.topics.jobs.append(record("two", 4, topic="jobs.dlq"))
    e.accepted[1] = replace(e.accepted[1], expected="failed")
    e.topics.statuses["two"] = [
        said("two", "failed", 2.5, 7, started_ms=WALL_MS + 2_000),
        said("two", "pending", 4, 8, "", redrives=1, delivery=1),
    ]


def succeed_in_a_life_in_which_nothing_ran(e: Evidence) -> None:
    """A run of the life before had no outcome: it must not pass for one of this life."""
    e.topics.jobs = [replace(one, key=None) for one in e.topics.jobs]
    e.runs = [replace(run, key=None) for run in e.runs]
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.troubles.append(Trouble("worker_freeze", round(2.4 * S), 9 * S, 10))
    e.runs[3:] = [ran("four", 3.6, 3.7, key=None), ran("two", 10, 10.2, "b.0", key=None, fence=1)]
    e.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
    e.topics.jobs += [
        record("two", 4, topic="jobs.dlq", key=None),
        record("two", 9, redrives=1, delivery=1, key=None),
    ]
    e.topics.statuses["two"] = [
        said("two", "failed", 10.2, 7, "b.0", started_ms=WALL_MS + 10_000),
        said("two", "pending", 14, 8, "", redrives=1, delivery=1),
        said("two", "succeeded", 20, 9, "a.0", redrives=1, delivery=1, started_ms=WALL_MS + 20_000),
    ]
    e.redriven = ["two"]


def tell_of_a_run_that_began_at_another_time(e: Evidence) -> None:
    e.topics.statuses["one"] = [said("one", "succeeded", 13, 0, started_ms=WALL_MS + 12_500)]


def condemn_more_than_there_are_deaths(e: Evidence) -> None:
    e.lives += [Life("c", 30, 0, 13 * S, "killed"), Life("d", 40, 0, 15 * S, "killed")]
    e.lives[0] = replace(e.lives[0], end_ns=18 * S)
    e.runs[3:] = [ran("four", 3.6, 3.7)]
    e.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
    for number in range(4):
        name = f"five-{number}"
        e.accepted.append(Accepted(name, "t", "succeeded", "low", None))
        e.topics.statuses[name] = [said(name, "failed", 19, 4, "b.0", error_type="worker_lost")]
        e.topics.jobs.append(record(name, number, topic="jobs.dlq", key=None))
        e.runs += [
            ran(name, 11, None, "c.0", key=None, pid=30),
            ran(name, 13.5, None, "d.0", key=None, pid=40, fence=1),
            ran(name, 16, None, key=None, fence=2),
        ]


def cancel_where_nothing_has_happened(e: Evidence) -> None:
    """Partitions that go to and fro without a reason."""
    e.lives = [Life("a", 10, -200 * S, 300 * S, "stays"), Life("b", 20, -200 * S, 300 * S, "stays")]
    e.runs[3:] = [ran("four", 9.5, 9.6, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def leave_with_a_handler_that_runs(e: Evidence) -> None:
    e.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=9 * S)


def run_again_with_a_lower_fence(e: Evidence) -> None:
    e.runs[3:] = [ran("four", 9.5, None, fence=4), ran("four", 13, 13.5, "b.0", fence=3)]


def overlap_with_a_lower_fence(e: Evidence) -> None:
    """Storage that compares them would let the frozen one write."""
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.troubles.append(Trouble("worker_freeze", round(9.6 * S), 20 * S, 10))
    e.topics.jobs.append(record("five", 9))
    e.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    e.runs[3:] = [ran("four", 9.5, 20.5, fence=7), ran("five", 15, 15.5, "b.0", fence=3)]
    e.topics.statuses["four"] = [said("four", "succeeded", 20.5, 3, started_ms=WALL_MS + 9_500)]
    e.topics.statuses["five"] = [said("five", "succeeded", 15.5, 4, "b.0", started_ms=WALL_MS + 15_000)]


def write_a_child_twice(e: Evidence) -> None:
    """A producer may have done that with a job; a worker never."""
    e.topics.statuses["two"] = [
        said("two", "succeeded", 2.5, 1, started_ms=WALL_MS + 2_000, output='{"children":["c"]}')
    ]
    e.topics.jobs += [record("c", offset, parent="two", key=None) for offset in (4, 5)]
    e.runs.append(ran("c", 5, 5.2, key=None))
    e.topics.statuses["c"] = [said("c", "succeeded", 5.2, 4, started_ms=WALL_MS + 5_000)]


def tell_in_two_places(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "running", 2.2, 1),
        replace(said("two", "succeeded", 2.5, 1, started_ms=WALL_MS + 2_000), partition=5),
    ]


def come_back_with_another_priority(e: Evidence) -> None:
    e.topics.jobs[3] = replace(e.topics.jobs[3], topic="jobs.critical")


def drop_an_outcome_long_before_anything_was_wrong(e: Evidence) -> None:
    """Its worker had no producer much later: by then it had had all the time to commit."""
    e.lives[0] = replace(e.lives[0], end_ns=90 * S)
    e.topics.jobs = [replace(one, key=None) for one in e.topics.jobs]
    e.runs = [replace(run, key=None) for run in e.runs]
    e.runs[3:] = [ran("four", 3.6, 3.7, key=None), ran("one", 20, 20.2, "b.0", key=None, fence=1)]
    e.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
    e.topics.statuses["one"] = [said("one", "succeeded", 20.2, 0, "b.0", started_ms=WALL_MS + 20_000)]
    e.troubles.append(Trouble("broker_kill", round(5.4 * S), 6 * S))
    e.doubts = [Doubt("a", WALL_MS + 46_000, "no transactional producer yet")]


def overlap_when_a_process_has_just_been_frozen(e: Evidence) -> None:
    """Nobody can have been given its partitions yet."""
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.troubles.append(Trouble("worker_freeze", round(9.6 * S), 20 * S, 10))
    e.runs[3:] = [ran("four", 9.5, 20.5, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def redrive(e: Evidence, *others: Status) -> None:
    """Job two has failed, is given a new life at 4, and succeeds in it at 5.5."""
    bury(e, "two")
    e.topics.statuses["two"] = [
        said("two", "failed", 2.5, 7, started_ms=WALL_MS + 2_000),
        said("two", "pending", 4, 8, "", redrives=1, delivery=1),
        said("two", "succeeded", 5.5, 9, redrives=1, delivery=1, started_ms=WALL_MS + 5_000),
        *others,
    ]
    e.topics.jobs.append(record("two", 9, redrives=1, delivery=1))
    e.runs.append(ran("two", 5, 5.5, redrives=1))
    e.redriven = ["two"]


def lose_a_new_life(e: Evidence) -> None:
    redrive(e)
    e.topics.statuses["two"].pop()
    e.runs.pop()


def lose_the_letter_of_a_new_life(e: Evidence) -> None:
    redrive(e)
    e.topics.statuses["two"][-1] = replace(e.topics.statuses["two"][-1], state="failed")
    e.accepted[1] = replace(e.accepted[1], expected="failed")


def begin_a_new_life_in_a_later_attempt(e: Evidence) -> None:
    redrive(e)
    e.topics.statuses["two"][1:] = [replace(one, attempt=2) for one in e.topics.statuses["two"][1:]]
    e.runs[-1] = replace(e.runs[-1], attempt=2)


def redrive_for_nothing(e: Evidence) -> None:
    e.redriven = ["two"]


def redrive_twice(e: Evidence) -> None:
    redrive(e)
    e.topics.jobs.append(record("two", 10, redrives=1, delivery=1))


def end_a_new_life_twice(e: Evidence) -> None:
    redrive(e, said("two", "failed", 5.8, 10, redrives=1, delivery=2))
    e.topics.jobs.append(record("two", 10, topic="jobs.dlq", redrives=1, delivery=2))
    e.runs.append(ran("two", 5.7, 5.8, redrives=1))


def go_back_to_the_old_life(e: Evidence) -> None:
    redrive(e, said("two", "running", 5.6, 10))


def lose_who_was_perhaps_accepted(e: Evidence) -> None:
    e.accepted = [one for one in e.accepted if one.job_id != "two"]
    lose(e)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lose_a_new_life, {"lost"}),
        (redrive_for_nothing, {"lost"}),
        (redrive_twice, {"forked"}),
        (end_a_new_life_twice, {"forked", "illegal"}),
        (go_back_to_the_old_life, {"illegal"}),
        (lose_who_was_perhaps_accepted, {"lost", "unexplained"}),
        (lose, {"lost", "unexplained"}),
        (end_twice, {"forked", "illegal"}),
        (retry_twice, {"forked"}),
        (bury_twice, {"forked"}),
        (retry_another, {"altered"}),
        (go_back, {"illegal"}),
        (end_wrongly, {"illegal"}),
        (start_before_the_producers_time, {"early"}),
        (start_before_the_retrys_time, {"early"}),
        (overlap, {"overlaps"}),
        (swap, {"order"}),
        (run_for_nothing, {"unexplained"}),
        (succeed_without_a_run, {"illegal"}),
        (succeed_in_a_run_without_an_end, {"illegal", "overlaps"}),
        (fail_without_a_letter, {"lost"}),
        (bury_who_succeeded, {"illegal"}),
        (write_a_retry_twice, {"forked"}),
        (start_before_the_time_on_the_record, {"early"}),
        (tell_late_news, {"illegal"}),
        (skip_attempts, {"illegal"}),
        (forget_what_came_before, {"illegal"}),
        (run_again_what_has_a_retry_and_die, {"unexplained"}),
        (cancel_for_nothing, {"unexplained"}),
        (vanish, {"unexplained", "overlaps"}),
        (run_one_without_a_key_at_two_owners, {"overlaps"}),
        (run_what_is_finished_while_a_broker_is_away, {"unexplained"}),
        (run_again_what_was_kept_while_a_broker_is_away, {"unexplained"}),
        (break_the_order_at_the_heir, {"order"}),
        (spread_a_key, {"order"}),
        (overlap_in_a_process_that_was_frozen, {"overlaps"}),
        (end_an_attempt_too_early, {"illegal"}),
        (retry_in_another_partition, {"illegal"}),
        (retry_keyed_in_another_partition, {"order"}),
        (retry_beside_its_key, {"overlaps"}),
        (schedule_a_child_and_never_tell, {"illegal"}),
        (plan_for_before_what_was_asked, {"early"}),
        (plan_for_a_little_before_what_was_asked, {"early"}),
        (succeed_in_a_cancelled_run, {"illegal"}),
        (succeed_by_nobody, {"illegal"}),
        (pend_after_running, {"illegal"}),
        (lead_nowhere, {"forked"}),
        (lose_a_retry, {"lost"}),
        (bury_twice_in_one_life, {"forked"}),
        (forget_a_key, {"illegal"}),
        (spread_a_key_over_priorities, {"order"}),
        (lose_a_life_of_which_only_a_status_tells, {"lost"}),
        (succeed_in_a_life_in_which_nothing_ran, {"illegal"}),
        (tell_of_a_run_that_began_at_another_time, {"illegal", "unexplained"}),
        (condemn_more_than_there_are_deaths, {"illegal"}),
        (cancel_where_nothing_has_happened, {"unexplained"}),
        (leave_with_a_handler_that_runs, {"unexplained"}),
        (run_again_with_a_lower_fence, {"illegal", "unexplained"}),
        (overlap_with_a_lower_fence, {"overlaps"}),
        (write_a_child_twice, {"forked"}),
        (tell_in_two_places, {"illegal"}),
        (come_back_with_another_priority, {"illegal"}),
        (drop_an_outcome_long_before_anything_was_wrong, {"unexplained"}),
        (overlap_when_a_process_has_just_been_frozen, {"overlaps"}),
        (lose_the_letter_of_a_new_life, {"lost"}),
        (begin_a_new_life_in_a_later_attempt, {"illegal"}),
    ],
)
def test_what_must_not_be_is_found(plant: Callable[[Evidence], None], found: set[str]) -> None:
    evidence = honest()
    plant(evidence)
    evidence.runs.sort(key=lambda run: run.start_ns)
    assert set(judge(evidence).broken) == found


def test_a_job_that_is_given_a_new_life_has_two_ends() -> None:
    evidence = honest()
    redrive(evidence)
    evidence.runs.sort(key=lambda run: run.start_ns)
    verdict = judge(evidence)
    assert (verdict.broken, verdict.redriven, verdict.reexecuted) == ({}, 1, 1)


def test_a_retry_that_begins_behind_later_ones_of_its_key_is_in_order() -> None:
    """Its first run was: those behind it go on while it waits, and one of them may be retried before it."""
    evidence = honest()
    retry(evidence)
    evidence.topics.statuses["three"] = [
        said("three", "retrying", 3.5, 7, not_before_ms=WALL_MS + 3_600, started_ms=WALL_MS + 3_000),
        said("three", "succeeded", 3.8, 9, delivery=1, attempt=2),
    ]
    evidence.topics.jobs.append(record("three", 10, delivery=1))
    evidence.runs.append(ran("three", 3.8, 3.85, attempt=2))
    evidence.runs.sort(key=lambda run: run.start_ns)
    assert judge(evidence).broken == {}


def test_what_waited_for_its_time_has_no_place_in_the_order_of_its_key() -> None:
    evidence = honest()
    evidence.topics.jobs[1] = replace(evidence.topics.jobs[1], not_before_ms=WALL_MS + 5_000)
    evidence.runs[1] = ran("two", 5, 5.5)
    evidence.topics.statuses["two"] = [said("two", "succeeded", 5.5, 1)]
    evidence.runs.sort(key=lambda run: run.start_ns)
    assert judge(evidence).broken == {}


def test_a_run_of_a_new_life_that_has_not_ended_yet_is_explained_like_any_other() -> None:
    """The campaign was over before it: the end of the life before is not its own."""
    evidence = honest()
    redrive(evidence)
    evidence.topics.statuses["two"].pop()
    evidence.runs[-1] = ran("two", 8.5, 8.7, redrives=1)
    evidence.runs.sort(key=lambda run: run.start_ns)
    verdict = judge(evidence)
    assert set(verdict.broken) == {"lost"}
    assert verdict.reasons == {"killed": 1, "killed before its commit": 1}


def test_who_was_perhaps_accepted_and_stands_there_counts_apart() -> None:
    evidence = honest()
    evidence.accepted = [one for one in evidence.accepted if one.job_id != "two"]
    verdict = judge(evidence)
    assert (verdict.broken, verdict.accepted, verdict.doubtful_standing) == ({}, 3, 1)


def test_a_record_that_stands_twice_and_was_passed_over_is_no_fork() -> None:
    evidence = honest()
    evidence.topics.jobs.append(record("two", 9))
    verdict = judge(evidence)
    assert (verdict.broken, verdict.copies.count) == ({}, 1)


def test_records_that_waited_at_the_same_time_are_one_stall() -> None:
    stalls = Stalls()
    for sent_s, acknowledged_s in [(1, 1.1), (2, 4.5), (2.2, 4.2), (3, 6), (9, 12), (12.1, 12.2)]:
        stalls.note(round(sent_s * S), round(acknowledged_s * S))
    assert [(one.kind, one.start_ns / S, one.end_ns / S) for one in stalls.found] == [
        ("kafka_stall", 2.0, 6.0),
        ("kafka_stall", 9.0, 12.0),
    ]


def test_a_worker_that_ends_by_itself_is_reported_and_not_raised() -> None:
    """An error would throw away the evidence of an hour."""
    verdict = judge(replace(honest(), seed=7, minutes=3.0, ended_by_themselves=["a: exit code 1"]))
    assert verdict.broken == {"ended": ["a: exit code 1"]}
    assert (verdict.to_json()["seed"], verdict.to_json()["minutes"]) == (7, 3.0)
