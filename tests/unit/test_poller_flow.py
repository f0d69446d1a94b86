"""Which partitions the poll thread pauses, and what it says about it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from schemas.topics import TIERS, JobPriority, Partition
from tests.support.messages import TOPICS, job_value, message
from tests.support.poll_bench import Bench, job_of
from workers.consuming.flow_control import MAX_HELD_BACK_BYTES
from workers.message import Message
from workers.offsets import MAX_SPREAD
from workers.scheduling.delay import MAX_TOTAL_BYTES
from workers.scheduling.pool_places import PoolPlaces

pytestmark = pytest.mark.worker_coordination

NORMAL: Partition = (TOPICS.jobs[JobPriority.NORMAL], 0)
BESIDE: Partition = (NORMAL[0], 1)
TIER: Partition = (TOPICS.retry[TIERS[0]], 0)


async def test_a_partition_that_reaches_its_limit_stops_alone_and_is_named() -> None:
    bench = Bench()
    stuck, _ = bench.assign(NORMAL, BESIDE)
    stuck.note_delivered(0)
    stuck.note_position(MAX_SPREAD)
    with capture_logs() as said:
        bench.round()
        bench.round()
    assert bench.consumer.paused == {NORMAL}
    assert [line["at"] for line in said] == [f"{stuck.topic}/0/0"], "once in a while, not at each look"


async def test_a_priority_is_paused_for_those_that_may_start_and_not_for_those_behind_their_key() -> None:
    bench = Bench(high=10, low=5)
    (part,) = bench.assign(NORMAL)

    def arrive(first: int, count: int, key: bytes | None) -> None:
        bench.scheduler.arrived[JobPriority.NORMAL] += count
        bench.scheduler.add([message(part, first + n, key=key) for n in range(count)])

    arrive(0, 50, b"hot")
    assert bench.scheduler.take(0) is not None
    assert bench.scheduler.take(0) is None
    bench.round()
    assert bench.consumer.paused == set()
    arrive(50, 10, None)
    bench.round()
    assert bench.consumer.paused == {NORMAL}


async def test_large_jobs_behind_their_key_pause_their_own_partition_until_half_of_them_are_gone() -> None:
    bench = Bench(high=100, low=50)
    hot, _ = bench.assign(NORMAL, BESIDE)
    size = MAX_HELD_BACK_BYTES // 8
    jobs = [
        message(hot, offset, key=b"hot", value=job_value(job_of(offset)) + bytes(size))
        for offset in range(20)
    ]

    def arrive(*some: Message) -> None:
        bench.scheduler.arrived[JobPriority.NORMAL] += len(some)
        bench.scheduler.arrived_bytes[JobPriority.NORMAL] += sum(one.size for one in some)
        bench.scheduler.add(some)
        bench.scheduler.take(0)
        bench.round()

    arrive(jobs[0])
    arrive(*jobs[1:8])
    assert bench.consumer.paused == set()
    arrive(*jobs[8:])
    assert bench.consumer.paused == {NORMAL}, "others of its priority need not wait"
    for one in jobs[:16]:
        assert bench.consumer.paused == {NORMAL}
        bench.scheduler.done(one)
        arrive()
    assert bench.consumer.paused == set()


async def test_jobs_that_wait_for_a_process_do_not_pause_the_others_of_their_priority() -> None:
    """Thousands that take a minute each would keep the slots of the worker empty for hours."""
    bench = Bench(high=10, low=5, pool=PoolPlaces(1, lambda one: one.part.partition == 0))
    slow, quick = bench.assign(NORMAL, BESIDE)

    def arrive(some: list[Message]) -> None:
        bench.scheduler.note_arrived(some)
        bench.scheduler.add(some)

    arrive([message(slow, offset) for offset in range(50)])
    assert bench.scheduler.take(0) is not None
    assert bench.scheduler.take(0) is None
    bench.round()
    assert bench.consumer.paused == set()
    large = job_value(job_of(50)) + bytes(MAX_HELD_BACK_BYTES)
    arrive([message(slow, 50, value=large), message(quick, 0)])
    assert bench.scheduler.take(0) is not None, "there is a slot for it"
    bench.round()
    assert bench.consumer.paused == {NORMAL}, "alone: what waits there is in memory"


async def test_retry_topics_wait_while_more_is_due_than_can_be_forwarded() -> None:
    bench = Bench()
    bench.assign(TIER, NORMAL)
    for pending, paused in (
        (MAX_TOTAL_BYTES - 1, False),
        (MAX_TOTAL_BYTES, True),
        (MAX_TOTAL_BYTES // 2, True),
        (9, False),
    ):
        bench.committer.pending_bytes = pending
        bench.round()
        assert bench.consumer.paused == ({TIER} if paused else set())
