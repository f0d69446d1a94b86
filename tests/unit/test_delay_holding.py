"""How much of a retry topic is held in memory."""

from __future__ import annotations

import pytest

from schemas.offsetmap import OffsetMap
from schemas.topics import TIERS
from workers.delay import MAX_HELD_RECORDS, Delays
from workers.message import Message
from workers.offsets import PartitionState

pytestmark = pytest.mark.job_processing

TIER = TIERS[2]
NOW = 1_800_000_000_000


def records(count: int, *, written_ms: int = NOW) -> list[Message]:
    part = PartitionState("t", 0, OffsetMap(0), incarnation="i", transactional_id="x")
    return [Message(part, offset, None, b"", None, written_ms, None, TIER) for offset in range(count)]


def test_a_partition_holds_enough_before_the_event_loop_has_seen_its_records() -> None:
    delays, waiting = Delays(), records(MAX_HELD_RECORDS)
    part = waiting[0].part
    delays.arrived(waiting[:-1])
    assert not delays.holds_enough(part, NOW, paused=False)
    delays.arrived(waiting[-1:])
    assert delays.holds_enough(part, NOW, paused=False)


def test_a_paused_partition_goes_on_when_more_than_half_of_it_is_gone() -> None:
    delays, waiting = Delays(), records(MAX_HELD_RECORDS)
    part, half = waiting[0].part, MAX_HELD_RECORDS // 2
    for message in waiting[half + 1 :]:
        message.timestamp_ms += 10_000
    delays.arrived(waiting)
    delays.hold(waiting[half:])
    delays.hold(waiting[:half])
    assert delays.holds_enough(part, NOW, paused=True)
    assert len(delays.take_due(NOW + TIER.delay_ms)) == half + 1
    assert not delays.holds_enough(part, NOW, paused=True)


def test_records_that_are_due_are_let_through_however_many_they_are() -> None:
    delays, overdue = Delays(), records(4 * MAX_HELD_RECORDS, written_ms=NOW - TIER.delay_ms)
    delays.arrived(overdue)
    assert not delays.holds_enough(overdue[0].part, NOW, paused=False)
    assert delays.holds_enough(overdue[0].part, NOW - 1, paused=False)
