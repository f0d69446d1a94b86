"""What the auditor measures: takeovers, leaves, and how long a partition stood still."""

from __future__ import annotations

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import Life, Trouble
from tests.support.honest_evidence import S, honest, ran, record, said

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
