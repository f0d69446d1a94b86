"""Partitions and messages for a scheduler, and what the poll thread, the event loop and commits do with them."""

from __future__ import annotations

from schemas.offsetmap import OffsetMap, Suspect
from schemas.topics import PRIORITIES, JobPriority
from tests.support.messages import TOPICS, commit, partition
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.scheduler import Scheduler

CRITICAL, HIGH, NORMAL, LOW = PRIORITIES
NOW_MS = 10_000_000


def open_partition(priority: JobPriority = NORMAL, number: int = 0, *, limit: int = 10_000) -> PartitionState:
    """A partition of a priority's topic whose first records may start."""
    part = partition(TOPICS.jobs[priority], number)
    part.top = limit
    commit(part, window=limit)
    return part


def arrive(scheduler: Scheduler, *messages: Message) -> None:
    """What the poll thread and then the event loop do."""
    for one in messages:
        assert one.priority is not None
        scheduler.arrived[one.priority] += 1
        scheduler.arrived_bytes[one.priority] += one.size
    scheduler.add(messages)


def take(scheduler: Scheduler) -> Message:
    taken = scheduler.take(NOW_MS)
    assert taken is not None
    return taken


def dangerous(offsets: range = range(1), number: int = 0, priority: JobPriority = NORMAL) -> PartitionState:
    """A partition whose records were unfinished at two deaths of an owner."""
    suspects = {offset: Suspect(("first",)) for offset in offsets}
    prior = OffsetMap(
        0, start_limit=offsets.stop, clean=False, incarnation="dead", suspects=suspects, losses={"first": 1}
    )
    part = partition(TOPICS.jobs[priority], number, prior=prior)
    for offset in offsets:
        part.note_delivered(offset)
    return part


def take_alone(scheduler: Scheduler, part: PartitionState) -> Message:
    """The dangerous one is named in a commit before it starts."""
    commit(part)
    part.dirty = False
    assert scheduler.take(NOW_MS) is None
    assert (part.dirty, scheduler.has_parked) == (True, True), "it asks for that commit"
    commit(part)
    return take(scheduler)


def run_alone(scheduler: Scheduler, part: PartitionState, now_ms: int, lasts_ms: int) -> int:
    """The next one that must run alone does; the time when it has ended."""
    assert scheduler.take(now_ms) is None, "it asks for a commit"
    commit(part)
    taken = scheduler.take(now_ms)
    assert taken is not None
    assert taken.part is part
    scheduler.done(taken)
    commit(part, taken.offset)
    return now_ms + lasts_ms


def assert_they_run_alone(scheduler: Scheduler, part: PartitionState, *messages: Message) -> None:
    """One after another in this order, each named by a commit before it starts."""
    for one in messages:
        assert scheduler.take(NOW_MS) is None, "it asks for a commit"
        commit(part)
        assert take(scheduler) is one
        assert scheduler.isolated is one
        scheduler.done(one)
        commit(part, one.offset)
