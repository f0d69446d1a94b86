"""The poll thread: what it hands over, and what it pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.offsetmap import OffsetMap, Suspect
from schemas.topics import TIERS, JobPriority, Partition
from tests.support.messages import TOPICS
from tests.support.poll_bench import (
    ASSIGNED_MS,
    LATER_MS,
    Bench,
    FakeRecord,
    records,
)
from workers.offsets import MAX_SPREAD
from workers.scheduling.delay import MAX_HELD_RECORDS

pytestmark = pytest.mark.worker_coordination

CRITICAL: Partition = (TOPICS.jobs[JobPriority.CRITICAL], 0)
NORMAL: Partition = (TOPICS.jobs[JobPriority.NORMAL], 0)
BESIDE: Partition = (NORMAL[0], 1)
LOW: Partition = (TOPICS.jobs[JobPriority.LOW], 0)
TIER: Partition = (TOPICS.retry[TIERS[2]], 0)


def offsets_of(found: Sequence[object]) -> list[object]:
    return [one.offset for one in found]  # type: ignore[attr-defined]


# --- what is handed over -------------------------------------------------------------------------------


async def test_a_record_is_handed_over_once_and_counts_as_waiting_from_then_on() -> None:
    bench = Bench()
    (part,) = bench.assign(NORMAL)
    found = bench.round(*records(NORMAL, 0, 1))
    assert [(one.part, one.offset, one.priority) for one in found] == [
        (part, offset, JobPriority.NORMAL) for offset in (0, 1)
    ]
    assert bench.scheduler.waiting(JobPriority.NORMAL) == 2
    assert bench.scheduler.waiting_bytes(JobPriority.NORMAL) == sum(one.size for one in found)
    assert bench.round(*records(NORMAL, 0, 1)) == []
    assert len(bench.scheduler) == 2


async def test_records_that_lay_here_while_nobody_took_them_are_no_news_of_kafka() -> None:
    """After a long revocation, or in a process that was frozen: it may have been gone since before they are noticed."""
    bench = Bench()
    bench.assign(NORMAL)
    bench.round()
    bench.time_s += 4.0
    bench.round(*records(NORMAL, 0, 1))
    assert bench.lease.silent_s == 4.0
    bench.round(*records(NORMAL, 2))
    assert bench.lease.silent_s == 0.0, "what came after that"


async def test_what_librdkafka_says_by_itself_is_no_answer() -> None:
    bench = Bench()
    bench.assign(NORMAL)
    bench.time_s += 4.0
    bench.round()
    (broken,) = records(NORMAL, 0)
    broken.problem = KafkaError(KafkaError._TRANSPORT)
    bench.round(broken)
    assert bench.lease.silent_s == 4.0


async def test_records_of_neighbours_belong_to_their_own_partition() -> None:
    bench = Bench()
    bench.assign(NORMAL, BESIDE)
    one, two = records(NORMAL, 0, 1)
    other, last = records(BESIDE, 0, 1)
    found = bench.round(one, other, two, last)
    assert [(m.part.partition, m.offset) for m in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]


async def test_records_of_partitions_that_are_not_ours_are_left_to_their_owner() -> None:
    bench = Bench()
    (lost,) = bench.assign(NORMAL)
    lost.owned = False
    assert bench.round(*records(NORMAL, 0), *records(BESIDE, 0)) == []
    assert len(bench.scheduler) == 0


@pytest.mark.parametrize("comes_back", [True, False])
async def test_what_was_taken_before_a_partition_went_and_came_back_opens_no_gap(
    comes_back: bool,  # noqa: FBT001
) -> None:
    """All that lies before it would count as finished, though it was unfinished when the partition went."""
    bench = Bench()
    bench.assign(NORMAL)
    assert offsets_of(bench.round(*records(NORMAL, 0, 1, 2))) == [0, 1, 2]

    def the_group_moves() -> None:
        bench.assignments.on_lost(*bench._leaving([NORMAL]))
        if comes_back:
            bench.assign(NORMAL)

    bench.consumer.meanwhile = the_group_moves
    assert await asyncio.to_thread(bench.round, *records(NORMAL, 3)) == []
    if not comes_back:
        bench.assign(NORMAL)
    assert offsets_of(bench.round(*records(NORMAL, 0, 1, 2, 3))) == [0, 1, 2, 3]


async def test_only_the_one_that_ran_alone_at_a_death_is_accused() -> None:
    bench = Bench()
    two = ("dead", "dead-too")
    bench.stored[NORMAL] = OffsetMap(
        0, suspects={0: Suspect(two, "dead-too"), 1: Suspect(two)}, losses={"dead": 1, "dead-too": 2}
    )
    bench.assign(NORMAL)
    assert [one.lost_worker for one in bench.round(*records(NORMAL, 0, 1, 2))] == [True, False, False]


async def test_who_was_heard_of_after_its_loss_accuses_nobody() -> None:
    """Each partition has its own loss of an owner: only what was heard after that counts."""
    bench = Bench()
    suspects = {0: Suspect(("dead", "frozen"), "frozen")}
    bench.stored[NORMAL] = OffsetMap(0, suspects=suspects, losses={"dead": 100, "frozen": 200})
    bench.stored[BESIDE] = OffsetMap(0, suspects=suspects, losses={"dead": 100, "frozen": 400})
    bench.heard = {"frozen": 300}
    absolved, not_absolved = bench.assign(NORMAL, BESIDE)
    assert bench.asked == [{"dead": 100, "frozen": 200}]
    assert absolved.suspects == {0: Suspect(("dead",))}
    assert not_absolved.suspects == suspects


async def test_nobody_is_asked_for_while_a_loss_has_no_consequence() -> None:
    bench = Bench()
    bench.stored[NORMAL] = OffsetMap(0, start_limit=1, clean=False, incarnation="gone")
    (part,) = bench.assign(NORMAL)
    assert bench.asked == []
    assert part.losses == {"gone": ASSIGNED_MS}


async def test_a_copy_is_marked_until_the_partition_has_had_another_owner() -> None:
    bench = Bench()
    job = "01a20bd1-1946-743e-922d-000000000007"
    bench.assign(NORMAL)
    found = bench.round(*records(NORMAL, 0, 1, job_id=job))
    assert [one.copy for one in found] == [False, True]
    await bench.revoke(NORMAL)
    bench.assign(NORMAL)
    assert [one.copy for one in bench.round(*records(NORMAL, 2, job_id=job))] == [False]


async def test_more_than_may_start_asks_for_a_commit() -> None:
    bench = Bench()
    (part,) = bench.assign(NORMAL)
    bench.round(*records(NORMAL, 0))
    assert bench.committer.nudges == 0
    bench.round(*records(NORMAL, part.start_limit))
    assert bench.committer.nudges == 1
    assert part.wanted == part.start_limit + 1, "that one opens the way to it"


async def test_an_urgent_one_is_not_behind_a_backlog_of_others() -> None:
    """It would be refused, and wait for a commit more."""
    bench = Bench()
    backlog, urgent = bench.assign(NORMAL, CRITICAL)
    bench.round(*records(NORMAL, *range(50)))
    assert backlog.wanted <= bench.committer.ahead
    urgent.start_limit = 0
    bench.round(*records(CRITICAL, 0))
    assert urgent.wanted == 1


async def test_nothing_of_a_retry_topic_runs() -> None:
    bench = Bench()
    assert [part.runs for part in bench.assign(NORMAL, TIER)] == [True, False]


async def test_what_arrives_behind_as_many_as_may_start_before_the_next_commit_asks_for_none() -> None:
    """A successor would suspect it for nothing."""
    bench = Bench()
    (part,) = bench.assign(NORMAL)
    beyond = part.start_limit
    bench.round(*records(NORMAL, *range(beyond, beyond + 5)))
    assert (bench.committer.nudges, part.wanted) == (1, beyond + bench.committer.ahead)
    bench.round(*records(NORMAL, *range(beyond + 5, beyond + 10)))
    assert (bench.committer.nudges, part.wanted) == (1, beyond + bench.committer.ahead)


async def test_an_error_beside_records_costs_none_of_them() -> None:
    bench = Bench()
    bench.assign(NORMAL)
    first, second = records(NORMAL, 0, 1)
    problem = FakeRecord(NORMAL, 0, problem=KafkaError(KafkaError._TRANSPORT))
    assert len(bench.round(first, problem, second)) == 2


async def test_an_offset_that_is_gone_is_never_guessed() -> None:
    bench = Bench()
    bench.assign(NORMAL)
    with pytest.raises(KafkaException):
        bench.round(FakeRecord(NORMAL, 0, problem=KafkaError(KafkaError._AUTO_OFFSET_RESET)))


# --- pauses --------------------------------------------------------------------------------------------


def run_all_but(bench: Bench, left: int) -> None:
    bench.scheduler.add(bench.delivered)
    while bench.scheduler.waiting(JobPriority.NORMAL) > left:
        message = bench.scheduler.take(0)
        assert message is not None
        bench.scheduler.done(message)


async def test_a_priority_with_enough_is_paused_until_little_is_left_and_the_others_go_on() -> None:
    bench = Bench(high=10, low=4)
    bench.assign(NORMAL, BESIDE, LOW)
    bench.round(*records(NORMAL, *range(9)), *records(LOW, 0))
    assert bench.consumer.paused == set()
    bench.round(*records(BESIDE, 0))
    assert bench.consumer.paused == {NORMAL, BESIDE}
    run_all_but(bench, 5)
    bench.round()
    assert bench.consumer.paused == {NORMAL, BESIDE}
    run_all_but(bench, 4)
    bench.round()
    assert bench.consumer.paused == set()


async def test_a_few_large_records_are_enough_too() -> None:
    bench = Bench(high=10, low=4)
    bench.assign(NORMAL)
    bench.round(*records(NORMAL, *range(3), size=3 << 20))
    assert bench.consumer.paused == {NORMAL}
    run_all_but(bench, 2)
    bench.round()
    assert bench.consumer.paused == {NORMAL}, "they are few, and still hold more than half"
    run_all_but(bench, 1)
    bench.round()
    assert bench.consumer.paused == set()


async def test_a_partition_far_ahead_of_its_lowest_unfinished_record_stops_alone() -> None:
    bench = Bench()
    part, _ = bench.assign(NORMAL, BESIDE)
    part.top = part.base + MAX_SPREAD
    bench.round()
    assert bench.consumer.paused == {NORMAL}


async def test_a_retry_partition_that_holds_enough_is_paused() -> None:
    bench = Bench()
    (part,) = bench.assign(TIER)
    bench.round(*records(TIER, *range(MAX_HELD_RECORDS // 2)))
    assert bench.consumer.paused == set()
    found = bench.round(*records(TIER, *range(MAX_HELD_RECORDS // 2, MAX_HELD_RECORDS)))
    assert bench.consumer.paused == {TIER}
    assert {(one.part, one.priority, one.timestamp_ms) for one in found} == {(part, None, LATER_MS)}
    assert len(bench.scheduler) == 0


async def test_a_local_clock_that_is_ahead_does_not_let_a_retry_partition_hold_more() -> None:
    """Its records are not due yet by the broker's time, which is the one that counts."""
    bench = Bench()
    bench.assign(TIER)
    found = records(TIER, *range(MAX_HELD_RECORDS))
    for one in found:
        one.timestamp_ms = ASSIGNED_MS
    bench.round(*found[:250])
    bench.round(*found[250:])
    assert bench.consumer.paused == {TIER}


async def test_a_drain_takes_nothing_more() -> None:
    bench = Bench()
    bench.assign(NORMAL, TIER)
    bench.assignments.drains = True
    bench.round()
    assert bench.consumer.paused == {NORMAL, TIER}


# --- markers -----------------------------------------------------------------------------------------------


async def test_a_marker_behind_the_last_record_is_finished() -> None:
    """Else the lag of a partition where all is done would never become zero."""
    bench = Bench()
    part, busy = bench.assign(NORMAL, BESIDE)
    bench.round(*records(BESIDE, 0))
    bench.consumer.positions = {NORMAL: part.top + 1}
    part.dirty = False
    bench.poller._note_positions(bench.consumer)  # type: ignore[arg-type]
    assert (part.dirty, bench.committer.nudges) == (True, 1)
    assert part.plan(()).offset == 1
    assert busy.top == 1
