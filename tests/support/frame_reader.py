"""Fields of Kafka's flexible protocol versions (KIP-482), read from a frame's bytes one after the other."""

from __future__ import annotations

import struct


class FrameReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, count: int) -> None:
        self._at += count

    def int8(self) -> int:
        (value,) = struct.unpack_from(">b", self._data, self._at)
        self._at += 1
        return int(value)

    def int16(self) -> int:
        (value,) = struct.unpack_from(">h", self._data, self._at)
        self._at += 2
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
