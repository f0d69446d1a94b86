"""What the group's coordinator answers to a heartbeat (KIP-848), read from the bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.frame_reader import FrameReader
from tests.support.kafka_proxy import Answer


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """``partitions``: how many the answer says that the member is to have; -1 where it says nothing of them.

    ``numbers``: those that they have on any topic.
    """

    member_id: str
    epoch: int
    partitions: int
    numbers: frozenset[int] = frozenset()


def read_heartbeat(answer: Answer) -> Heartbeat:
    """The parts of ConsumerGroupHeartbeatResponse, versions 0 and 1, that tests ask for."""
    reader = FrameReader(answer.frame)
    reader.skip(4 + 1 + 4 + 2)  # correlation id, tags, throttle time, error code
    reader.text()
    member_id = reader.text()
    epoch = reader.int32()
    reader.skip(4)  # heartbeat interval
    if reader.int8() < 0:
        return Heartbeat(member_id, epoch, -1)
    partitions = 0
    numbers: set[int] = set()
    for _ in range(reader.length()):
        reader.skip(16)  # topic id
        count = reader.length()
        numbers.update(reader.int32() for _ in range(count))
        reader.skip(1)  # tags
        partitions += count
    return Heartbeat(member_id, epoch, partitions, frozenset(numbers))
