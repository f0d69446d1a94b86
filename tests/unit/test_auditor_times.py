"""What the auditor measures: takeovers, leaves, and how long a partition stood still."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import Accepted, Evidence, Life, Trouble, load, save
from tests.support.honest_evidence import WALL_MS, S, honest, ran, record, said

pytestmark = pytest.mark.distributed


def test_a_partition_that_moves_in_order_shows_how_long_it_stood_still() -> None:
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=9 * S)
    evidence.runs[3] = ran("four", 9.5, 9.6, how="cancelled")
    verdict = judge(evidence)
    assert (verdict.rebalance_s, verdict.leave_s, verdict.takeover_s) == (3.5, 3.0, 0.0)
    evidence.troubles.append(Trouble("broker_kill", 1 * S, 2 * S))
    assert judge(evidence).rebalance_s == 0.0, "what a broker's death leaves behind is another matter"


def test_a_takeover_while_a_broker_is_away_is_counted_apart() -> None:
    evidence = honest()
    evidence.troubles.append(Trouble("broker_kill", 9 * S, 11 * S))
    verdict = judge(evidence)
    assert (verdict.takeovers, verdict.takeover_s) == (0, 0.0)
    assert (verdict.takeovers_in_trouble, verdict.takeover_in_trouble_s) == (1, 3.0)


@pytest.mark.parametrize(
    ("killed_at", "frozen_at", "counts"),
    [
        pytest.param(None, None, True, id="nothing else happened"),
        pytest.param(3, None, False, id="one was killed, and is not missed yet"),
        pytest.param(12, None, False, id="one is killed before they begin"),
        pytest.param(1, None, True, id="one was killed long before"),
        pytest.param(14, None, True, id="one is killed later"),
        pytest.param(None, 3, False, id="one is frozen"),
        pytest.param(None, 14, True, id="one is frozen later"),
    ],
)
def test_a_leave_while_others_are_dead_or_frozen_is_counted_apart(
    killed_at: int | None, frozen_at: int | None, *, counts: bool
) -> None:
    """They may have been given what was left, and nobody has missed them yet."""
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=9 * S)
    evidence.runs[3] = ran("four", 9.5, 9.6, how="cancelled")
    if killed_at is not None:
        evidence.lives.append(Life("c", 30, 0, killed_at * S, "killed"))
    if frozen_at is not None:
        evidence.troubles.append(Trouble("worker_freeze", frozen_at * S, (frozen_at + 2) * S, 20))
    verdict = judge(evidence)
    assert (verdict.leave_s, verdict.leave_in_trouble_s) == ((3.0, 0.0) if counts else (0.0, 3.0))


def take_over_at(second: float, *troubles: Trouble) -> Evidence:
    """Worker a is killed at 10, and b goes on with its job at this second."""
    evidence = honest()
    evidence.traffic_ns = [(0, 200 * S)]
    evidence.lives[1] = Life("b", 20, 0, 210 * S, "stays")
    evidence.runs[4] = ran("four", second, second + 0.5, "b.0", fence=1)
    evidence.topics.statuses["four"] = [said("four", "succeeded", second + 0.5, 3, "b.0")]
    evidence.troubles += troubles
    return evidence


def test_a_fault_that_begins_when_a_takeover_should_be_over_excuses_nothing() -> None:
    """What it took longer because of that fault does not count, and the rest does."""
    verdict = judge(take_over_at(100, Trouble("broker_kill", 90 * S, 92 * S)))
    assert (verdict.takeover_s, verdict.takeovers_in_trouble) == (80.0, 0)
    assert verdict.missed == ["takeover took 80.0 s, and not 12"]


def test_a_fault_that_was_over_a_moment_before_may_hold_up_a_takeover() -> None:
    verdict = judge(take_over_at(24, Trouble("broker_kill", 1 * S, 5 * S)))
    assert (verdict.takeover_s, verdict.takeover_in_trouble_s, verdict.missed) == (0.0, 14.0, [])


@pytest.mark.parametrize(
    ("taken_at", "troubles", "after_s"),
    [
        pytest.param(50, [(12, 15)], 20.0, id="as long as it may take once nothing is wrong"),
        pytest.param(51, [(12, 15)], 21.0, id="longer"),
        pytest.param(60, [(12, 15), (35, 40)], 0.0, id="it was interrupted, and began anew"),
        pytest.param(70, [(12, 15), (44, 46)], 14.0, id="it had the time for it before it was interrupted"),
        pytest.param(160, [(12, 150)], 0.0, id="all brokers were away all the time"),
    ],
)
def test_a_takeover_in_trouble_has_to_be_over_soon_after_it(
    taken_at: int, troubles: list[tuple[int, int]], after_s: float
) -> None:
    evidence = take_over_at(taken_at, *(Trouble("kafka_restart", a * S, b * S) for a, b in troubles))
    verdict = judge(evidence)
    assert (verdict.takeover_in_trouble_s, verdict.takeover_after_trouble_s) == (taken_at - 10.0, after_s)
    assert len(verdict.missed) == (after_s > 20)


def test_what_holds_up_a_takeover_is_the_machine_if_nothing_was_acknowledged_meanwhile() -> None:
    verdict = judge(take_over_at(45, Trouble("kafka_stall", 11 * S, 30 * S)))
    assert (verdict.takeover_in_trouble_s, verdict.takeover_after_trouble_s, verdict.missed) == (
        35.0,
        0.0,
        [],
    )


@pytest.mark.parametrize(
    "heir",
    [
        pytest.param(Life("c", 30, 0, 12 * S, "killed"), id="killed"),
        pytest.param(Life("c", 30, 0, 25 * S, "left", told_ns=12 * S), id="told to leave"),
    ],
)
def test_who_may_have_been_given_the_partitions_of_a_dead_one_may_be_gone_as_well(heir: Life) -> None:
    evidence = take_over_at(25)
    evidence.lives.append(heir)
    verdict = judge(evidence)
    assert (verdict.takeover_s, verdict.takeover_in_trouble_s) == (0.0, 15.0)
    assert verdict.missed == []


def test_a_leave_in_trouble_has_to_be_over_soon_after_it() -> None:
    evidence = take_over_at(50, Trouble("broker_kill", 9 * S, 12 * S))
    evidence.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=9 * S)
    evidence.runs[3] = ran("four", 9.5, 9.6, how="cancelled")
    verdict = judge(evidence)
    assert (verdict.leave_s, verdict.leave_after_trouble_s) == (0.0, 23.0)
    assert verdict.missed == [
        "a leave in trouble took 23.0 s in which nothing was wrong any more, and not 11"
    ]


def queue(evidence: Evidence, job_id: str, written_s: float, start_s: float, key: str | None) -> None:
    evidence.topics.jobs.append(
        record(job_id, len(evidence.topics.jobs), key=key, written_ms=WALL_MS + round(written_s * 1000))
    )
    evidence.runs.append(ran(job_id, start_s, start_s + 0.5, "b.0", key=key, fence=1))
    evidence.topics.statuses[job_id] = [said(job_id, "succeeded", start_s + 0.5, 9, "b.0")]
    evidence.accepted.append(Accepted(job_id, "t", "succeeded", "low", None))


@pytest.mark.parametrize(
    ("written_s", "key", "takeover_s"),
    [
        pytest.param(9.0, None, 50.0, id="it waits all the time"),
        pytest.param(58.0, None, 2.0, id="it comes later"),
        pytest.param(9.0, "other", 0.0, id="it may wait for its key"),
    ],
)
def test_a_partition_in_which_nothing_waits_has_nothing_to_take_over(
    written_s: float, key: str | None, takeover_s: float
) -> None:
    evidence = honest()
    evidence.traffic_ns = [(0, 80 * S)]
    evidence.lives[1] = Life("b", 20, 0, 90 * S, "stays")
    evidence.runs[3:] = [ran("four", 9.5, 9.8)]
    evidence.topics.statuses["four"] = [said("four", "succeeded", 9.8, 3)]
    queue(evidence, "five", written_s, 60, key)
    verdict = judge(evidence)
    assert (verdict.broken, verdict.takeover_s) == ({}, takeover_s)


@pytest.mark.parametrize(
    ("written_s", "takeover_s"),
    [
        pytest.param(6.5, 0.0, id="it lagged behind before"),
        pytest.param(7.5, 3.0, id="it kept up"),
    ],
)
def test_a_partition_that_lags_before_its_owner_dies_shows_no_takeover(
    written_s: float, takeover_s: float
) -> None:
    evidence = honest()
    queue(evidence, "five", written_s, 13, None)
    verdict = judge(evidence)
    assert (verdict.broken, verdict.takeover_s) == ({}, takeover_s)
    assert verdict.takeover_in_trouble_s == 3.0 - takeover_s


def test_what_comes_when_a_broker_is_away_long_after_a_kill_waits_in_trouble() -> None:
    evidence = honest()
    evidence.traffic_ns = [(0, 80 * S)]
    evidence.lives[1] = Life("b", 20, 0, 90 * S, "stays")
    evidence.runs[3:] = [ran("four", 9.5, 9.8)]
    evidence.topics.statuses["four"] = [said("four", "succeeded", 9.8, 3)]
    queue(evidence, "five", 50, 70, None)
    assert judge(evidence).takeover_s == 20.0
    evidence.troubles.append(Trouble("broker_kill", 49 * S, 69 * S))
    verdict = judge(evidence)
    assert (verdict.takeover_s, verdict.takeover_in_trouble_s, verdict.missed) == (0.0, 20.0, [])


def test_a_partition_in_which_nothing_begins_stands_still_all_the_time() -> None:
    evidence = honest()
    evidence.topics.jobs.append(record("five", 0, partition=1))
    assert judge(evidence).standstill_s == 20.0


def test_a_partition_of_one_priority_that_stands_still_is_seen_beside_the_others() -> None:
    evidence = honest()
    evidence.topics.jobs.append(record("five", 0, topic="jobs.high"))
    evidence.topics.statuses["five"] = [said("five", "succeeded", 2.5, 4)]
    evidence.runs.append(ran("five", 2, 2.5, key=None))
    assert judge(evidence).standstill_s == 18.0


def test_who_dies_before_it_has_partitions_has_none_to_take_over() -> None:
    """Its predecessor's, of the same name, are not its own."""
    evidence = honest()
    evidence.lives.append(Life("a", 11, 14 * S, 15 * S, "killed"))
    assert judge(evidence).takeover_s == 3.0


def test_jobs_in_processes_of_one_worker_are_no_rebalance() -> None:
    evidence = honest()
    evidence.runs[1] = ran("two", 4, 4.5, pid=11)
    assert judge(evidence).rebalance_s == 0.0


def test_between_two_times_of_traffic_nothing_stands_still() -> None:
    """The second one begins when all that the first has left is done."""
    evidence = honest()
    assert judge(evidence).standstill_s == 7.0
    evidence.lives[1] = Life("b", 20, 0, 300 * S, "stays")
    evidence.traffic_ns = [(0, 20 * S), (200 * S, 204 * S)]
    evidence.topics.jobs.append(record("five", 9))
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.runs.append(ran("five", 201, 201.5, "b.0", fence=1))
    evidence.topics.statuses["five"] = [
        said("five", "succeeded", 201.5, 9, "b.0", started_ms=WALL_MS + 201_000)
    ]
    verdict = judge(evidence)
    assert (verdict.broken, verdict.standstill_s, verdict.kills) == ({}, 7.0, 1)


def test_evidence_of_older_campaigns_has_one_time_of_traffic(tmp_path: Path) -> None:
    save(honest(), tmp_path / "new.json")
    given = json.loads((tmp_path / "new.json").read_text())
    assert given["traffic_ns"] == [[0, 20 * S]]
    (tmp_path / "old.json").write_text(json.dumps({**given, "traffic_ns": [0, 20 * S]}))
    assert load(tmp_path / "old.json").traffic_ns == load(tmp_path / "new.json").traffic_ns == [(0, 20 * S)]
