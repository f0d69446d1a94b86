"""Messages and partitions for tests of what happens inside a worker, with no Kafka behind them."""

from __future__ import annotations

import itertools
import uuid

from schemas.headers import Delivery, build
from schemas.offsetmap import EMPTY_MAP, OffsetMap, parse
from schemas.topics import PRIORITIES, JobPriority, Tier, Topics
from workers.message import Message
from workers.offsets import MAX_REACH, PartitionState

TOPICS = Topics("t.")
FINGERPRINT = bytes(range(8))
_numbers = itertools.count(1)


def committed(offset: int = 0) -> OffsetMap:
    """What is committed for a partition that nobody has owned yet."""
    return parse(offset, EMPTY_MAP)


def partition(
    topic: str | None = None,
    number: int = 0,
    *,
    prior: OffsetMap | None = None,
    incarnation: str = "me",
    now_ms: int = 0,
) -> PartitionState:
    """A partition just assigned; nothing of it may start before its first commit."""
    return PartitionState(
        topic or TOPICS.jobs[JobPriority.NORMAL],
        number,
        prior or committed(),
        incarnation=incarnation,
        transactional_id=f"t.worker.{incarnation}",
        now_ms=now_ms,
    )


def want(part: PartitionState, count: int) -> None:
    """So many more of those that wait are about to start."""
    reach = max(part.started, part.base, part.wanted)
    end = min(reach + count, part.top, part.base + MAX_REACH)
    if reach < end:
        part.want(end - 1)


def commit(part: PartitionState, *finished: int, window: int = 1_000) -> OffsetMap:
    """One successful transaction for this partition; ``window``: so many of those that wait are about to start."""
    want(part, window)
    plan = part.plan(finished)
    part.committed(plan)
    return plan


def job_value(job_id: str, job_type: str = "test", priority: JobPriority = JobPriority.NORMAL) -> bytes:
    """The front of a job event: all that is looked at before a handler is found."""
    name = job_type.encode()
    return (
        b"\xc3\x01"
        + FINGERPRINT
        + b"\x48"
        + job_id.encode()
        + bytes((len(name) << 1,))
        + name
        + bytes((PRIORITIES.index(priority) << 1,))
    )


def message(
    part: PartitionState,
    offset: int,
    *,
    key: bytes | None = None,
    job_id: str | None = None,
    delivery: Delivery | None = None,
    timestamp_ms: int = 1_000,
    value: bytes | None = None,
    tier: Tier | None = None,
) -> Message:
    """A record as the poll thread hands it over; its priority is that of the partition's topic."""
    priority = TOPICS.priority_of.get(part.topic)
    if job_id is None:
        job_id = str(uuid.UUID(int=next(_numbers)))
    if value is None:
        value = job_value(job_id, priority=priority or JobPriority.NORMAL)
    headers = build(delivery or Delivery(job_type="test"))
    return Message(
        part, offset, key, value, headers, timestamp_ms, priority, tier or TOPICS.tier_of.get(part.topic)
    )
