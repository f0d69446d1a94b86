"""How many commits it takes to start jobs of which each can start only after the one before it has ended."""

from __future__ import annotations

import threading

import pytest

from tests.support.commit_bench import CODEC, FakeKafka, succeeded
from tests.support.messages import TOPICS, message, partition
from tests.support.schedule_bench import NOW_MS, arrive
from workers.committing.commit import Committer
from workers.committing.holdings import Holdings
from workers.committing.router import Router
from workers.liveness.lease import Lease
from workers.message import Message
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination

JOBS = 200
#: So many commits are more than enough for 200 jobs that take no time: 4 s at a tick of 20 ms would be one job for each.
ENOUGH = 50


def commits_for(scheduler: Scheduler, key: bytes | None) -> int:
    """Commits until all have run, if the event loop runs whatever may start between two of them."""
    kafka = FakeKafka()
    holdings = Holdings(threading.Lock())
    committer = Committer(
        make_producer=kafka.producer,
        membership=kafka,
        read_back=kafka.read_back,
        read_visible=kafka.read_visible,
        codec=CODEC,
        router=Router(TOPICS),
        worker_name="w.0",
        holdings=holdings,
        tick_ms=1,
        on_committed=scheduler.unpark,
        on_failure=lambda error: None,
        upcoming=scheduler.upcoming,
        lease=Lease(5.0, lambda: 0.0),
    )
    committer._transactions.renew()
    part = partition()
    holdings.parts.add(part)
    messages: list[Message] = []
    for offset in range(JOBS):
        part.note_delivered(offset)
        messages.append(message(part, offset, key=key))
    arrive(scheduler, *messages)
    ended = commits = 0
    while ended < JOBS and commits < 2 * JOBS:
        while running := list(iter(lambda: scheduler.take(NOW_MS), None)):
            for one in running:  # all at the same time, and each has waited for something
                committer.emit(succeeded(one))
                scheduler.done(one)
            ended += len(running)
        committer._tick()
        commits += 1
    assert ended == JOBS
    return commits


def test_jobs_without_a_key() -> None:
    assert commits_for(Scheduler(), None) < ENOUGH


def test_jobs_of_one_key_do_not_wait_for_a_commit_each() -> None:
    assert commits_for(Scheduler(), b"bucket/object") < ENOUGH


def test_jobs_that_wait_for_a_process_do_not_wait_for_a_commit_each_besides() -> None:
    scheduler = Scheduler(pool=PoolPlaces(2, lambda _: True))
    assert commits_for(scheduler, None) < ENOUGH
