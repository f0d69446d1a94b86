"""Which partitions the poll thread pauses, and what it says about it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from structlog.testing import capture_logs

from schemas.topics import TIERS, JobPriority
from tests.support.messages import TOPICS, commit, message, partition
from workers.delay import MAX_TOTAL_BYTES, Delays
from workers.offsets import MAX_SPREAD
from workers.poller import Poller
from workers.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination


class Consumer:
    def __init__(self) -> None:
        self.paused: set[tuple[str, int]] = set()

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused |= {(place.topic, place.partition) for place in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused -= {(place.topic, place.partition) for place in places}


class Committer:
    pending_bytes = 0


def poller_of(scheduler: Scheduler, *parts: Any) -> Poller:
    nobody: Any = None
    committer: Any = Committer()
    poller = Poller(
        make_consumer=nobody,
        topics=TOPICS,
        committed=nobody,
        committer=committer,
        scheduler=scheduler,
        delays=Delays(),
        lock=threading.Lock(),
        loop=nobody,
        incarnation="i",
        transactional_id="t",
        buffer_high=10,
        buffer_low=5,
        revoke_timeout_s=3,
        now_ms=nobody,
        last_heard=nobody,
        release=nobody,
        purge=nobody,
        deliver=nobody,
        on_failure=nobody,
        on_refusal=nobody,
        on_answer=nobody,
    )
    poller.parts = {(part.topic, part.partition): part for part in parts}
    return poller


def look(poller: Poller, consumer: Any) -> None:
    poller._control_flow(consumer)


def test_a_partition_that_reaches_its_limit_stops_alone_and_is_named() -> None:
    stuck, other = partition(), partition(number=1)
    stuck.note_delivered(0)
    stuck.note_position(MAX_SPREAD)
    poller, consumer = poller_of(Scheduler(), stuck, other), Consumer()
    with capture_logs() as said:
        look(poller, consumer)
        look(poller, consumer)
    assert consumer.paused == {(stuck.topic, 0)}
    assert [line["at"] for line in said] == [f"{stuck.topic}/0/0"], "once in a while, not at each look"


def test_a_priority_is_paused_for_those_that_may_start_and_not_for_those_behind_their_key() -> None:
    scheduler, part = Scheduler(), partition()
    part.top = 1_000
    commit(part)
    poller, consumer = poller_of(scheduler, part), Consumer()

    def arrive(first: int, count: int, key: bytes | None) -> None:
        scheduler.arrived[JobPriority.NORMAL] += count
        scheduler.add([message(part, first + n, key=key) for n in range(count)])

    arrive(0, 50, b"hot")
    assert scheduler.take(0) is not None
    assert scheduler.take(0) is None
    look(poller, consumer)
    assert consumer.paused == set()
    arrive(50, 10, None)
    look(poller, consumer)
    assert consumer.paused == {(part.topic, 0)}


def test_retry_topics_wait_while_more_is_due_than_can_be_forwarded() -> None:
    tier, jobs = partition(TOPICS.retry[TIERS[0]]), partition()
    poller, consumer = poller_of(Scheduler(), tier, jobs), Consumer()
    committer: Any = poller._committer
    for pending, paused in (
        (MAX_TOTAL_BYTES - 1, False),
        (MAX_TOTAL_BYTES, True),
        (MAX_TOTAL_BYTES // 2, True),
        (9, False),
    ):
        committer.pending_bytes = pending
        look(poller, consumer)
        assert consumer.paused == ({(tier.topic, 0)} if paused else set())
