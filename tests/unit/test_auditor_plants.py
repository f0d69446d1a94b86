"""What must not be, put into evidence in which nothing is wrong: each kind is found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import (
    Accepted,
    Doubt,
    Evidence,
    Life,
    Trouble,
)
from tests.support.honest_evidence import WALL_MS, S, bury, honest, ran, record, redrive, retried, retry, said

pytestmark = pytest.mark.distributed

CUT_OFF = "no answer from Kafka: everything is cancelled"


def lose(e: Evidence) -> None:
    del e.topics.statuses["two"]


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
    e.perhaps_written = ["x"]
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


def run_again_what_has_a_retry_and_die(e: Evidence) -> None:
    """A lost map, say; and the worker is killed before that run has an outcome of its own."""
    retry(e, due_s=9)
    e.topics.statuses["two"][0] = replace(e.topics.statuses["two"][0], not_before_ms=WALL_MS + 9_000)
    e.topics.statuses["two"][-1] = said("two", "succeeded", 12.5, 9, "b.0", delivery=2, attempt=2)
    e.runs[-1] = ran("two", 12.5, 12.6, "b.0", fence=1, attempt=2)
    e.runs.append(ran("two", 9.2, 9.4))


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
    e.doubts = [Doubt("a", WALL_MS + 13_990, "job cancelled", job_id="four")]
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
    e.perhaps_written = ["five"]
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


def condemn_one_that_ran_beside_another(e: Evidence) -> None:
    """At each death one job runs alone at the most."""
    e.lives += [Life("c", 30, 0, 13 * S, "killed"), Life("d", 40, 0, 15 * S, "killed")]
    e.lives[0] = replace(e.lives[0], end_ns=18 * S)
    e.runs[3:] = [ran("four", 3.6, 3.7)]
    e.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
    for number in range(2):
        name = f"five-{number}"
        e.accepted.append(Accepted(name, "t", "succeeded", "low", None))
        e.topics.statuses[name] = [said(name, "failed", 19, 4, "b.0", error_type="worker_lost")]
        e.topics.jobs.append(record(name, number, topic="jobs.dlq", key=None))
        e.runs += [
            ran(name, 11, None, "c.0", key=None, pid=30),
            ran(name, 13.5, None, "d.0", key=None, pid=40, fence=1),
            ran(name, 16, None, key=None, fence=2),
        ]


def cancel_while_something_is_wrong_elsewhere(e: Evidence) -> None:
    """Its own worker says nothing of it."""
    e.troubles.append(Trouble("broker_kill", 9 * S, 12 * S))
    e.doubts = [
        Doubt("b", WALL_MS + 9_600, CUT_OFF),
        Doubt("a", WALL_MS + 9_600, "job cancelled", job_id="another"),
        Doubt("a", WALL_MS + 12_900, CUT_OFF),
    ]
    e.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    e.runs[3:] = [ran("four", 9.5, 9.7, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def cancel_after_everything_was_cancelled(e: Evidence) -> None:
    """The line is of what ran before this one, at the same worker."""
    e.troubles = [Trouble("broker_kill", 5 * S, 6 * S)]
    e.doubts = [Doubt("a", WALL_MS + 7_400, CUT_OFF)]
    e.runs[3:] = [ran("four", 9.5, 9.7, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def cancel_after_a_worker_of_the_same_name_cancelled_everything(e: Evidence) -> None:
    e.troubles = [Trouble("broker_kill", 5 * S, 6 * S)]
    e.lives[0] = replace(e.lives[0], start_ns=round(9.2 * S))
    e.lives.insert(0, Life("a", 9, 0, 9 * S, "killed"))
    e.runs[:3] = [replace(run, pid=9) for run in e.runs[:3]]
    e.doubts = [Doubt("a", WALL_MS + 9_100, CUT_OFF)]
    e.runs[3:] = [ran("four", 9.5, 9.7, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def cancel_before_a_freeze(e: Evidence) -> None:
    e.troubles = [Trouble("worker_freeze", 12 * S, 20 * S, 10)]
    e.runs[3:] = [ran("four", 9.5, 9.7, how="cancelled"), ran("four", 13, 13.5, "b.0", fence=1)]


def stand_though_nobody_scheduled_it(e: Evidence) -> None:
    e.accepted = [one for one in e.accepted if one.job_id != "two"]
    e.perhaps_written = ["another"]


def stand_though_it_was_not_written(e: Evidence) -> None:
    e.accepted = [one for one in e.accepted if one.job_id != "two"]
    e.not_written = ["two"]


def cancel_where_nothing_has_happened(e: Evidence) -> None:
    """Partitions that go to and fro without a reason."""
    e.doubts = [Doubt("a", WALL_MS + 9_600, "job cancelled", job_id="four")]
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
    e.perhaps_written = ["two"]
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
        (condemn_one_that_ran_beside_another, {"illegal"}),
        (cancel_where_nothing_has_happened, {"unexplained"}),
        (cancel_after_everything_was_cancelled, {"unexplained"}),
        (cancel_after_a_worker_of_the_same_name_cancelled_everything, {"unexplained"}),
        (cancel_before_a_freeze, {"unexplained"}),
        (stand_though_nobody_scheduled_it, {"illegal"}),
        (stand_though_it_was_not_written, {"illegal"}),
        (cancel_while_something_is_wrong_elsewhere, {"unexplained"}),
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
