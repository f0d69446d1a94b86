"""The auditor of the guarantees finds what it is there to find: each kind of fault, planted into honest evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import (
    Accepted,
    Doubt,
    Life,
    Trouble,
    load,
    save,
)
from tests.guarantees.pulse import Stalls
from tests.guarantees.storm import Kind
from tests.guarantees.verdict import Verdict
from tests.support.honest_evidence import WALL_MS, S, honest, ran, record, redrive, retry, said

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
    evidence.runs[3] = ran("four", 3.6, 3.7)
    evidence.runs[4:] = []
    evidence.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
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
    cancels = "no answer from Kafka: everything is cancelled"
    evidence.doubts = [Doubt("a", WALL_MS + at_ms, cancels) for at_ms in (9_590, 11_990, 13_990)]
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
        takeovers=3, leaves=3, children=1_000, redriven=100,
    )  # fmt: skip
    assert verdict.missed == []
    verdict.faults_by_kind = enough | {"kafka_restart": 19}
    del verdict.faults_by_kind["broker_kill"]
    verdict.leaves, verdict.leaves_in_trouble = 2, 20
    verdict.accepted, verdict.kills_in_flight, verdict.takeover_s, verdict.leave_s = 99_999, 7, 12.1, 3.1
    verdict.takeover_after_trouble_s, verdict.leave_after_trouble_s = 20.1, 11.1
    verdict.faults, verdict.children, verdict.redriven = 190, 999, 99
    assert verdict.missed == [
        "takeover took 12.1 s, and not 12",
        "after a leave it took 3.1 s, and not 3",
        "a takeover in trouble took 20.1 s in which nothing was wrong any more, and not 20",
        "a leave in trouble took 11.1 s in which nothing was wrong any more, and not 11",
        "190 faults were made, and not 200",
        "28% of the kills met a running job, and not 30%",
        "99,999 jobs were accepted, and not 100,000",
        "999 children were scheduled, and not 1,000",
        "99 jobs were redriven, and not 100",
        "3,333 jobs a minute were accepted, and not 5,000",
        "broker_kill came up 0 times, and not 20",
        "kafka_restart came up 19 times, and not 20",
        "2 leaves were measured where nothing else was wrong, and not 3",
    ]
    verdict.minutes = 29.9
    assert len(verdict.missed) == 4, "a short one shows what it can"


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
    evidence.perhaps_written = ["another", "two"]
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
