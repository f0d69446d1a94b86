"""Owners of a partition, one after another."""

from __future__ import annotations

from schemas.offsetmap import OffsetMap, parse
from tests.support.messages import partition
from workers.offsets import PartitionState


def died(part: PartitionState, plan: OffsetMap, *, now_ms: int = 0) -> PartitionState:
    """The successor of an owner whose last commit was ``plan``."""
    return partition(prior=read(plan), incarnation=f"after-{part.incarnation}", now_ms=now_ms)


def read(plan: OffsetMap) -> OffsetMap:
    """A map as the next one reads it."""
    return parse(plan.offset, plan.metadata())


def deliver(part: PartitionState, *offsets: int) -> list[int]:
    """Those of these records that need work."""
    return [offset for offset in offsets if part.note_delivered(offset)]
