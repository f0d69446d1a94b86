"""How partitions come and go: the order in which they are taken and given up, and when the group is joined anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.errors import GroupNotInitialised, TopicsMismatch
from schemas.offsetmap import OffsetMap, Suspect
from schemas.topics import TIERS, JobPriority, Partition
from tests.support.messages import TOPICS
from tests.support.poll_bench import (
    Bench,
    FakeRecord,
    change,
    job_of,
    records,
    stopped_clock,
)
from tests.support.waiting import eventually
from workers.consuming import assignments as assignments_module
from workers.offsets import PartitionState

pytestmark = pytest.mark.worker_coordination

CRITICAL: Partition = (TOPICS.jobs[JobPriority.CRITICAL], 0)
NORMAL: Partition = (TOPICS.jobs[JobPriority.NORMAL], 0)
BESIDE: Partition = (NORMAL[0], 1)
LOW: Partition = (TOPICS.jobs[JobPriority.LOW], 0)
TIER: Partition = (TOPICS.retry[TIERS[2]], 0)


# --- taking partitions ---------------------------------------------------------------------------------


async def test_a_partition_is_read_from_before_its_committed_offset_once_the_commit_thread_knows_it() -> None:
    bench = Bench()
    bench.stored[NORMAL] = OffsetMap(241, frozenset({242}))
    bench.assignments.on_assign(*bench._leaving([NORMAL]))
    assert bench.steps == ["metadata", "settled", "read", "assign"]
    assert bench.consumer.assigned == {NORMAL: 241 - 128}
    part = bench.assignments.parts[NORMAL]
    assert bench.holdings.parts == {part}
    assert bench.committer.nudges == 1, "nothing of it may start before a first commit"
    assert not part.start(241)
    read = records(NORMAL, 113, 240, 241, 242, 243)
    assert [one.offset for one in bench.round(*read)] == [241, 243]


async def test_a_copy_of_what_the_predecessor_has_run_is_one() -> None:
    """Of a record before the committed offset, and of one behind it that the map says is finished."""
    bench = Bench()
    bench.stored[NORMAL] = OffsetMap(41, frozenset({42}))
    bench.assign(NORMAL)
    before, finished = records(NORMAL, 40, 42)
    copies = records(NORMAL, 43, job_id=job_of(40)) + records(NORMAL, 44, job_id=job_of(42))
    found = bench.round(before, *records(NORMAL, 41), finished, *copies, *records(NORMAL, 45))
    assert [(one.offset, one.copy) for one in found] == [(41, False), (43, True), (44, True), (45, False)]


@pytest.mark.parametrize(("log_end", "suspected"), [(8, {5, 6, 7}), (5, set()), (None, {5, 6, 7, 8, 9})])
async def test_what_was_not_written_yet_is_not_charged_with_a_death(
    log_end: int | None, suspected: set[int]
) -> None:
    """An idle worker may start the next few records without a commit: they may not even exist when it dies."""
    bench = Bench()
    bench.log_end = log_end
    bench.stored[NORMAL] = OffsetMap(5, start_limit=10, clean=False, incarnation="dead")
    (part,) = bench.assign(NORMAL)
    assert part.suspects.keys() == suspected


async def test_after_an_orderly_end_nobody_is_asked_where_the_partition_ends() -> None:
    bench = Bench()
    bench.log_end = 0
    bench.stored[NORMAL] = OffsetMap(
        5, start_limit=10, incarnation="gone", suspects={7: Suspect(("x",))}, losses={"x": 1}
    )
    (part,) = bench.assign(NORMAL)
    assert part.suspects.keys() == {7}


@pytest.mark.parametrize(("log_start", "start"), [(0, 0), (30, 30), (41, 41), (50, 41), (None, 0)])
async def test_it_looks_back_as_far_as_there_is_something(log_start: int | None, start: int) -> None:
    """Or may be, if Kafka does not tell."""
    bench = Bench()
    bench.log_start = log_start
    bench.stored[NORMAL] = OffsetMap(41)
    bench.assign(NORMAL)
    assert bench.consumer.assigned == {NORMAL: start}


async def test_what_it_looks_back_at_may_go_at_that_very_moment_and_what_is_to_be_run_may_not() -> None:
    bench = Bench()
    bench.stored[NORMAL] = OffsetMap(41)
    bench.assign(NORMAL)
    gone = FakeRecord(NORMAL, 0, problem=KafkaError(KafkaError._AUTO_OFFSET_RESET))
    assert bench.round(gone) == []
    bench.steps.clear()
    assert bench.round() == []
    assert bench.steps[:2] == ["unsubscribe", "subscribe"]
    bench.assignments._forget([NORMAL])
    bench.assign(NORMAL)
    assert bench.consumer.assigned == {NORMAL: 41}
    with pytest.raises(KafkaException):
        bench.round(gone)


async def test_a_partition_looks_back_no_longer_once_a_record_to_be_run_has_come() -> None:
    """What is gone then is somebody's work."""
    bench = Bench()
    bench.stored[NORMAL] = bench.stored[BESIDE] = OffsetMap(41)
    bench.assign(NORMAL, BESIDE)
    gone = [FakeRecord(at, 0, problem=KafkaError(KafkaError._AUTO_OFFSET_RESET)) for at in (NORMAL, BESIDE)]
    bench.round(*records(NORMAL, 40, 41), *records(BESIDE, 40))
    bench.round(gone[1])
    with pytest.raises(KafkaException):
        bench.round(gone[0])


async def test_after_one_assignment_without_a_look_back_there_are_looks_back_again() -> None:
    bench = Bench()
    bench.stored[NORMAL] = bench.stored[BESIDE] = OffsetMap(41)
    bench.assign(NORMAL)
    bench.round(FakeRecord(NORMAL, 0, problem=KafkaError(KafkaError._AUTO_OFFSET_RESET)))
    bench.assignments._forget([NORMAL])
    bench.assign()
    bench.assign(NORMAL)
    bench.assign(BESIDE)
    assert bench.consumer.assigned == {NORMAL: 41, BESIDE: 0}


async def test_a_partition_that_cannot_be_taken_ends_the_worker() -> None:
    """librdkafka would swallow the exception, and the partition would belong to a member that never reads it."""
    bench = Bench()
    bench.stored[NORMAL] = GroupNotInitialised("no map")
    bench.assignments.on_assign(*bench._leaving([NORMAL]))
    assert [type(error) for error in bench.failures] == [GroupNotInitialised]
    assert bench.assignments.failed
    assert bench.consumer.assigned == {}


async def test_partitions_that_came_later_are_refused_and_not_read() -> None:
    """Keys have moved to them: their jobs might run beside others of the same key."""
    bench = Bench(partitions=1)
    bench.assignments.on_assign(*bench._leaving([NORMAL]))
    assert bench.refusals == []
    bench.assignments.on_assign(*bench._leaving([BESIDE]))
    assert [type(error) for error in bench.refusals] == [TopicsMismatch]
    assert bench.consumer.assigned == {NORMAL: 0}
    assert list(bench.assignments.parts) == [NORMAL]


# --- giving them up ------------------------------------------------------------------------------------


async def test_a_revoked_partition_is_given_back_after_its_last_commit() -> None:
    """Under metadata taken before: with newer ones a partition already given away would be accepted."""
    bench = Bench()
    part, stays = bench.assign(NORMAL, BESIDE)
    await bench.revoke(NORMAL)
    assert bench.steps == [
        "jobs end within 3 s (ours releasing)",
        "last commit (ours releasing)",
        "unassign",
    ]
    assert bench.purged == [{part}]
    assert not part.owned
    assert bench.holdings.parts == {stays}
    assert (stays.owned, stays.releasing) == (True, False)
    assert bench.round(*records(NORMAL, 0)) == []


async def test_the_last_commit_has_its_time_however_little_running_jobs_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has ended and is not committed runs again elsewhere."""
    bench = Bench()
    clock = stopped_clock(monkeypatch)
    bench.assignments._revoke_timeout_s = 1.0
    release = bench.assignments._release

    async def slowly(parts: set[PartitionState], timeout_s: float) -> None:
        clock.now_s += 2.0  # those that were cancelled took all of their second
        await release(parts, timeout_s)

    bench.assignments._release = slowly
    bench.assign(NORMAL)
    await bench.revoke(NORMAL)
    assert bench.committer.last_commit.waited_s == [2.0]


async def test_a_partition_that_goes_while_a_handler_goes_on_there_was_not_left_in_order() -> None:
    """It may hold the event loop, or be deaf, and kill this process yet: its heir would suspect nobody."""
    bench = Bench()
    bench.assign(NORMAL)
    bench.runs_on = True
    await bench.revoke(NORMAL)
    assert bench.steps == [
        "jobs end within 3 s (ours releasing)",
        "last commit without a flag (ours releasing)",
        "unassign",
    ]


async def test_a_worker_that_a_job_may_have_ended_does_not_say_that_it_left_in_order() -> None:
    """Its successor would suspect nobody, and die of the same job; and so on for ever."""
    bench = Bench()
    (part,) = bench.assign(NORMAL)
    bench.assignments.leaves_unclean = True
    await bench.revoke(NORMAL)
    assert bench.steps == ["jobs end within 3 s (ours releasing)", "unassign"]
    assert not part.owned


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_partition_goes_whatever_becomes_of_letting_its_jobs_end(how: str) -> None:
    """Something has ended the event loop's tasks, say. Still ours in our eyes, its offsets could be sent to Kafka yet."""
    bench = Bench()
    (part,) = bench.assign(NORMAL)

    async def ends(_parts: set[PartitionState], _timeout_s: float) -> None:
        if how == "failed":
            raise ZeroDivisionError
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        await asyncio.sleep(0)

    bench.assignments._release = ends
    if how == "failed":
        with pytest.raises(ZeroDivisionError):
            await bench.revoke(NORMAL)
    else:
        await bench.revoke(NORMAL)
    assert not part.owned
    assert bench.holdings.parts == set()
    assert bench.steps[-1] == "unassign"


async def test_a_lost_partition_is_nobodys_before_its_jobs_are_cancelled() -> None:
    """Others run them by now: nothing of ours may count, not even what ends at this moment."""
    bench = Bench()
    part, stays = bench.assign(NORMAL, BESIDE)
    await bench.lose(NORMAL)
    assert bench.steps == ["jobs end within 0 s (lost releasing)", "unassign"]
    assert bench.purged == [{part}]
    assert bench.holdings.parts == {stays}
    assert bench.committer.counters.events == {"sessions_lost": 1}


async def test_what_comes_back_is_read_when_the_last_transaction_for_it_has_ended() -> None:
    """Kafka takes its offsets from a member that was fenced and has joined again: the read would be older than they are."""
    bench = Bench()
    bench.assign(NORMAL)
    await bench.lose(NORMAL)
    bench.steps.clear()
    bench.holdings.settles.clear()
    again = asyncio.create_task(asyncio.to_thread(bench.assign, NORMAL))
    await asyncio.to_thread(eventually, lambda: "settled" in bench.steps, 5, "it asks")
    assert bench.steps == ["metadata", "settled"]
    bench.holdings.settles.set()
    await again
    assert bench.failures == []
    assert bench.assignments.parts[NORMAL].owned


async def test_where_a_last_transaction_does_not_end_nothing_is_taken_and_the_group_is_joined_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kafka may be away for minutes: a worker outlives that."""
    monkeypatch.setattr(assignments_module, "_SETTLED_WITHIN_S", 0.01)
    bench = Bench()
    bench.holdings.settles.clear()
    bench.assignments.on_assign(bench.consumer, [TopicPartition(*NORMAL)])  # type: ignore[arg-type]
    assert bench.failures == []
    assert bench.assignments.parts == {}
    bench.steps.clear()
    bench.round()
    assert bench.steps[:2] == ["unsubscribe", "subscribe"]


async def test_a_partition_that_comes_back_full_is_paused_again() -> None:
    """The client has forgotten the pause with the partition."""
    bench = Bench()
    bench.assign(NORMAL)
    bench.round(*records(NORMAL, *range(10)))
    assert bench.consumer.paused == {NORMAL}
    await bench.revoke(NORMAL)
    assert bench.consumer.paused == set()
    bench.assign(NORMAL)
    bench.round()
    assert bench.consumer.paused == {NORMAL}


# --- joining again -----------------------------------------------------------------------------------------


async def test_who_is_to_join_again_leaves_first_and_does_it_once() -> None:
    bench = Bench()
    bench.assign(NORMAL)
    bench.assignments.rejoin()
    assert bench.assignments.held.busy
    bench.round()
    assert [step for step in bench.steps if "subscribe" in step] == ["unsubscribe", "subscribe"]
    bench.round()
    assert [step for step in bench.steps if "subscribe" in step] == ["unsubscribe", "subscribe"]
    assert bench.committer.counters.events["rejoined"] == 1
    assert not bench.assignments.held.busy


async def test_a_worker_that_drains_does_not_join_again() -> None:
    bench = Bench()
    bench.assignments.drains = True
    bench.assignments.rejoin()
    bench.round()
    assert not any("subscribe" in step for step in bench.steps)


async def test_what_is_assigned_while_a_worker_drains_begins_nothing() -> None:
    """The drain has marked what was here by then; jobs of this would begin, and be cancelled a second later."""
    bench = Bench()
    bench.assignments.drains = True
    (part,) = bench.assign(NORMAL)
    assert part.releasing


async def test_what_is_held_is_of_this_membership() -> None:
    bench = Bench()
    bench.assign(NORMAL, TIER)
    assert bench.assignments.held.partitions == {NORMAL, TIER}
    assert bench.assignments.held.member_id == "member-0"
    bench.assignments.rejoin()
    bench.round()
    bench.assign(BESIDE)
    assert bench.assignments.held.member_id == "member-1"


@pytest.mark.parametrize("what", ["assign", "revoke", "lose"])
async def test_while_partitions_come_and_go_the_thread_is_busy(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.assign(NORMAL)
    seen: list[bool] = []
    for step in ("incremental_assign", "incremental_unassign"):
        monkeypatch.setattr(bench.consumer, step, lambda _: seen.append(bench.assignments.held.busy))
    await change(bench, what, NORMAL, BESIDE)
    assert seen == [True]
    assert not bench.assignments.held.busy


@pytest.mark.parametrize("took_s", [5.0, 5.1])
async def test_partitions_at_which_was_looked_for_too_long_are_given_back_at_once(
    monkeypatch: pytest.MonkeyPatch, took_s: float
) -> None:
    """Kafka was away meanwhile, and has given them to another one: both would commit, each on top of the other."""
    bench = Bench()
    clock = stopped_clock(monkeypatch)
    read = bench.for_assignment

    def slowly(*arguments: Any) -> Any:
        clock.now_s += took_s
        return read(*arguments)

    monkeypatch.setattr(bench, "for_assignment", slowly)
    bench.assignments.on_assign(bench.consumer, [TopicPartition(*NORMAL)])  # type: ignore[arg-type]
    assert NORMAL in bench.consumer.assigned, "else librdkafka could not give it back"
    assert (NORMAL in bench.assignments.parts) is (took_s <= 5.0)
    assert bool(bench.round(*records(NORMAL, 0))) is (took_s <= 5.0)
    assert bench.steps.count("unsubscribe") == (took_s > 5.0)
    bench.consumer.assigned.clear()
    assert len(bench.assign(NORMAL)) == 1, "not again and again: who is slow has to begin some time"
    bench.round()
    assert "unsubscribe" not in bench.steps
