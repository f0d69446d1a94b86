"""What the group's coordinator answers to a heartbeat (KIP-848), read from the bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.support.kafka_proxy import Answer


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """``partitions``: how many the answer says that the member is to have; -1 where it says nothing of them."""

    member_id: str
    epoch: int
    partitions: int


def read_heartbeat(answer: Answer) -> Heartbeat:
    """The parts of ConsumerGroupHeartbeatResponse, versions 0 and 1, that tests ask for."""
    reader = _Reader(answer.frame)
    reader.skip(4 + 1 + 4 + 2)  # correlation id, tags, throttle time, error code
    reader.text()
    member_id = reader.text()
    epoch = reader.int32()
    reader.skip(4)  # heartbeat interval
    if reader.int8() < 0:
        return Heartbeat(member_id, epoch, -1)
    partitions = 0
    for _ in range(reader.length()):
        reader.skip(16)  # topic id
        numbers = reader.length()
        reader.skip(4 * numbers + 1)  # partitions, tags
        partitions += numbers
    return Heartbeat(member_id, epoch, partitions)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, count: int) -> None:
        self._at += count

    def int8(self) -> int:
        (value,) = struct.unpack_from(">b", self._data, self._at)
        self._at += 1
        return int(value)

    def int32(self) -> int:
        (value,) = struct.unpack_from(">i", self._data, self._at)
        self._at += 4
        return int(value)

    def length(self) -> int:
        """Of an array or a text; 0 where it is null."""
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return max(value - 1, 0)
            shift += 7

    def text(self) -> str:
        count = self.length()
        value = self._data[self._at : self._at + count].decode()
        self._at += count
        return value
