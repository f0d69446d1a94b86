"""Records as other languages may write them: with header names that are not UTF-8."""

from __future__ import annotations

import struct
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from streams.settings import Settings

#: Length of a name in the batch is written in front of it: the stand-in is as long as what takes its place.
_STAND_IN = "a-name"
BAD_NAME = b"\xff\xfe\x00-\xc3\x28"
_CRC_AT = 17
_CHECKED_FROM = 21


async def produce_with_a_bad_header_name(
    settings: Settings, topic: str, value: bytes, key: bytes, headers: list[tuple[str, bytes]]
) -> None:
    """One record on partition 0 with these headers, and one more whose name nobody can read."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers())
    await producer.start()
    try:
        batch: Any = producer.create_batch()
        assert batch.append(key=key, value=value, timestamp=None, headers=[(_STAND_IN, b"x"), *headers])
        raw = bytearray(batch._build())
        at = raw.index(_STAND_IN.encode())
        raw[at : at + len(_STAND_IN)] = BAD_NAME
        struct.pack_into(">I", raw, _CRC_AT, calc_crc32c(bytes(raw[_CHECKED_FROM:])))
        batch._buffer = bytes(raw)
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()
