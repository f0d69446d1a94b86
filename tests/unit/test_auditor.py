"""The auditor of the guarantees finds what it is there to find: each kind of fault, planted into honest evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import (
    Accepted,
    Evidence,
    JobRecord,
    Life,
    Report,
    Run,
    Status,
    Topics,
    Trouble,
    load,
    save,
)
from tests.guarantees.storm import Kind, storm
from tests.guarantees.traffic import orders

pytestmark = pytest.mark.distributed

S = 1_000_000_000
#: Second 0 of the monotonic clock, on the wall.
WALL_MS = 1_800_000_000_000


def record(job_id: str, offset: int, **facts: object) -> JobRecord:
    plain = JobRecord(job_id, "jobs.low", 0, offset, 0, 0, 0, "k", "low", WALL_MS)
    return replace(plain, **facts)  # type: ignore[arg-type]


def ran(job_id: str, start_s: float, end_s: float | None, worker: str = "a.0", **facts: object) -> Run:
    end_ns = None if end_s is None else round(end_s * S)
    run = Run(
        job_id, "t", "low", "k", 1, 0, 0, worker, 10 if worker == "a.0" else 20, round(start_s * S),
        WALL_MS + round(start_s * 1000), end_ns, None if end_s is None else "ended",
    )  # fmt: skip
    return replace(run, **facts)  # type: ignore[arg-type]


def said(job_id: str, state: str, at_s: float, offset: int, worker: str = "a.0", **facts: object) -> Status:
    at_ms = WALL_MS + round(at_s * 1000)
    plain = Status(job_id, 0, offset, state, 0, 0, 1, worker, at_ms, at_ms, None, None, None)
    return replace(plain, **facts)  # type: ignore[arg-type]


def honest() -> Evidence:
    """Three jobs of one key run one after another at worker a, which is killed at second 10; the fourth runs at b."""
    names = ["one", "two", "three", "four"]
    return Evidence(
        topics=Topics(
            jobs=[record(name, offset) for offset, name in enumerate(names)],
            statuses={
                **{name: [said(name, "succeeded", n + 1.5, n)] for n, name in enumerate(names[:3])},
                "four": [said("four", "succeeded", 13.5, 3, "b.0")],
            },
            reports=[Report("a.0", WALL_MS + 9_000, (0,)), Report("b.0", WALL_MS + 9_000, ())],
        ),
        runs=[
            *(ran(name, n + 1, n + 1.5) for n, name in enumerate(names[:3])),
            ran("four", 9.5, None),
            ran("four", 13, 13.5, "b.0"),
        ],
        lives=[Life("a", 10, 0, 10 * S, "killed"), Life("b", 20, 0, 30 * S, "stays")],
        troubles=[],
        accepted=[Accepted(name, "t", "succeeded", "low", None) for name in names],
        traffic_ns=(0, 20 * S),
        faults={"worker_kill": 1},
    )


@pytest.mark.parametrize(
    ("end_of_last", "troubles", "condemned"),
    [
        pytest.param(None, [], 1, id="killed"),
        pytest.param(17.0, [Trouble("worker_freeze", 15 * S, 25 * S, 10)], 1, id="frozen"),
        pytest.param(17.0, [Trouble("worker_freeze", 15 * S, 25 * S, 20)], 0, id="another was frozen"),
        pytest.param(17.0, [], 0, id="nothing happened to it"),
    ],
)
def test_a_dead_letter_of_an_innocent_is_counted_apart_if_its_worker_died_while_it_ran_alone(
    end_of_last: float | None, troubles: list[Trouble], condemned: int
) -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=18 * S)
    evidence.troubles += troubles
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.topics.statuses["five"] = [said("five", "failed", 19, 4, "b.0", error_type="worker_lost")]
    evidence.runs += [
        ran("five", 11, 12, key=None, how="cancelled"),
        ran("five", 13, 14, key=None, how="cancelled"),
        ran("five", 16, end_of_last, key=None, how="cancelled" if end_of_last else None),
    ]
    verdict = judge(evidence)
    assert verdict.condemned.count == condemned
    assert (verdict.illegal.count == 0) == bool(condemned)


def test_honest_evidence_is_found_to_be_so_and_times_are_measured(tmp_path: Path) -> None:
    verdict = judge(honest())
    assert verdict.broken == {}
    assert (verdict.accepted, verdict.kills, verdict.kills_in_flight) == (4, 1, 1)
    assert (verdict.reexecuted, verdict.reasons) == (1, {"killed": 1})
    assert (verdict.takeover_s, verdict.standstill_s) == (3.0, 7.0)
    save(honest(), tmp_path / "evidence.json")
    assert judge(load(tmp_path / "evidence.json")) == verdict


def test_a_partition_that_moves_in_order_shows_how_long_it_stood_still() -> None:
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=9 * S)
    evidence.runs[3] = ran("four", 9.5, 9.6, how="cancelled")
    verdict = judge(evidence)
    assert (verdict.rebalance_s, verdict.leave_s, verdict.takeover_s) == (3.5, 3.0, 0.0)
    evidence.troubles.append(Trouble("broker_kill", 1 * S, 2 * S))
    assert judge(evidence).rebalance_s == 0.0, "what a broker's death leaves behind is another matter"


def test_jobs_in_processes_of_one_worker_are_no_rebalance() -> None:
    evidence = honest()
    evidence.runs[1] = ran("two", 4, 4.5, pid=11)
    assert judge(evidence).rebalance_s == 0.0


def lose(e: Evidence) -> None:
    del e.topics.statuses["two"]


def end_twice(e: Evidence) -> None:
    e.topics.statuses["two"].append(said("two", "failed", 3, 9, delivery=1))


def retry_twice(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "retrying", 2, 7),
        said("two", "retrying", 2.1, 8),
        said("two", "succeeded", 3, 9, delivery=1),
    ]


def bury_twice(e: Evidence) -> None:
    e.topics.jobs += [record("x", 5, topic="jobs.dlq"), record("x", 6, topic="jobs.dlq")]


def go_back(e: Evidence) -> None:
    e.topics.statuses["two"].append(said("two", "running", 3, 9))


def end_wrongly(e: Evidence) -> None:
    e.topics.statuses["two"] = [said("two", "failed", 2.5, 9)]


def start_before_the_producers_time(e: Evidence) -> None:
    e.accepted[0] = replace(e.accepted[0], due_ms=WALL_MS + 1_001)


def start_before_the_retrys_time(e: Evidence) -> None:
    e.topics.statuses["two"] = [
        said("two", "retrying", 2.5, 8, not_before_ms=WALL_MS + 4_000, started_ms=WALL_MS + 2_000),
        said("two", "succeeded", 4, 9, delivery=1, attempt=2, started_ms=WALL_MS + 3_900),
    ]
    e.runs.append(ran("two", 3.9, 3.95, attempt=2))


def overlap(e: Evidence) -> None:
    e.runs[1] = ran("two", 2, 3.1)


def swap(e: Evidence) -> None:
    e.runs[0], e.runs[1] = ran("one", 2, 2.5), ran("two", 1, 1.5)


def run_for_nothing(e: Evidence) -> None:
    e.runs.append(ran("one", 5, 5.1))


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lose, {"lost", "unexplained"}),
        (end_twice, {"forked", "illegal"}),
        (retry_twice, {"forked"}),
        (bury_twice, {"forked"}),
        (go_back, {"illegal"}),
        (end_wrongly, {"illegal"}),
        (start_before_the_producers_time, {"early"}),
        (start_before_the_retrys_time, {"early"}),
        (overlap, {"overlaps"}),
        (swap, {"order"}),
        (run_for_nothing, {"unexplained"}),
    ],
)
def test_what_must_not_be_is_found(plant: Callable[[Evidence], None], found: set[str]) -> None:
    evidence = honest()
    plant(evidence)
    evidence.runs.sort(key=lambda run: run.start_ns)
    assert set(judge(evidence).broken) == found


def test_what_a_frozen_process_does_when_it_wakes_is_counted_apart() -> None:
    """Worker a stands still from 9.6 to 20 with a job in its hands, which b runs meanwhile."""
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    evidence.troubles.append(Trouble("worker_freeze", round(9.6 * S), 20 * S, 10))
    evidence.runs[3] = ran("four", 9.5, 20.5, how="cancelled")
    verdict = judge(evidence)
    assert verdict.broken == {}
    assert verdict.fenced_remainders == 1
    evidence.runs[3] = ran("four", 9.5, 25)
    assert set(judge(evidence).broken) == {"overlaps"}, "it has to end soon after it wakes"


def test_a_record_that_stands_twice_and_was_passed_over_is_no_fork() -> None:
    evidence = honest()
    evidence.topics.jobs.append(record("two", 9))
    verdict = judge(evidence)
    assert (verdict.broken, verdict.copies.count) == ({}, 1)


def test_a_seed_means_the_same_jobs_and_faults() -> None:
    def first(seed: int) -> list[object]:
        return [one for _, one in zip(range(50), zip(orders(seed), storm(seed), strict=False), strict=False)]

    assert first(7) == first(7)
    assert first(7) != first(8)
    kinds = [fault.kind for _, fault in zip(range(9), storm(3), strict=False)]
    assert len(set(kinds)) == 9, "every kind once in a round"
    some = (Kind.WORKER_KILL, Kind.WORKER_LEAVE)
    assert {fault.kind for _, fault in zip(range(9), storm(3, only=some), strict=False)} == {*some}
