"""What a producer asks of a transaction's coordinator, read from the bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.support import kafka_proxy
from tests.support.frame_reader import FrameReader
from tests.support.kafka_proxy import Request


@dataclass(frozen=True, slots=True)
class EndTxn:
    """The request that ends a transaction, as librdkafka writes it (version 1)."""

    transactional_id: str
    producer_id: int
    epoch: int
    commit: bool


def read_end_txn(request: Request) -> EndTxn | None:
    """None: it is another request."""
    if request.api != kafka_proxy.END_TXN or request.version > 2:
        return None
    at = 8 + 2 + len(request.client_id.encode())
    (length,) = struct.unpack_from(">h", request.frame, at)
    name = request.frame[at + 2 : at + 2 + length].decode()
    producer_id, epoch, commit = struct.unpack_from(">qh?", request.frame, at + 2 + length)
    return EndTxn(name, producer_id, epoch, commit)


def error_code(answer: bytes) -> int:
    """Of an EndTxn's answer: behind correlation id and throttle time."""
    (code,) = struct.unpack_from(">h", answer, 8)
    return int(code)


def numbers_of_offsets(request: Request) -> set[int]:
    """The partition numbers, on any topic, of which a TxnOffsetCommit (version 3) has offsets."""
    reader = FrameReader(request.frame)
    reader.skip(8 + 2 + len(request.client_id.encode()) + 1)  # the header, with its tags
    reader.text()  # transactional id
    reader.text()  # group
    reader.skip(8 + 2 + 4)  # producer id, its epoch, the member's
    reader.text()  # member id
    reader.text()  # group instance id
    numbers = set()
    for _ in range(reader.length()):
        reader.text()
        for _ in range(reader.length()):
            numbers.add(reader.int32())
            reader.skip(8 + 4)  # offset, leader epoch
            reader.text()  # metadata
            reader.skip(1)
        reader.skip(1)
    return numbers


def offset_error_codes(answer: bytes) -> set[int]:
    """Of a TxnOffsetCommit's answer, in a flexible version: those of all its partitions."""
    reader = FrameReader(answer)
    reader.skip(4 + 1 + 4)  # correlation id, tags, throttle time
    codes = set()
    for _ in range(reader.length()):
        reader.text()
        for _ in range(reader.length()):
            reader.int32()
            codes.add(reader.int16())
            reader.skip(1)
        reader.skip(1)
    return codes
