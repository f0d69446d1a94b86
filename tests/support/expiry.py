"""Committed offsets that do not last: what an empty group loses after a week, within a second.

Kafka itself takes them away, at its next look. Until version 4 of the request a commit may say how long it is to last, and
brokers still keep to it; one without says nothing, and lasts for ``offsets.retention.minutes``, of which one is the least.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from schemas.topics import Partition
from streams.settings import Settings

_OFFSET_COMMIT = 8
_VERSION = 2
_NOBODY = -1


def commit_for(
    settings: Settings, offsets: Mapping[Partition, tuple[int, str]], *, lasting_ms: int = -1
) -> None:
    """Commit these offsets and their metadata for the workers' group, which has no member now."""
    body = _text(settings.topics.group) + struct.pack(">i", _NOBODY) + _text("")
    body += struct.pack(">qi", lasting_ms, len(offsets))
    for (topic, number), (offset, metadata) in offsets.items():
        # librdkafka reads on where there is no zero behind a map.
        body += _text(topic) + struct.pack(">iiq", 1, number, offset) + _text(metadata + "\0")
    frame = struct.pack(">hhi", _OFFSET_COMMIT, _VERSION, 1) + _text("expiry") + body
    host, _, port = settings.bootstrap_servers().partition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(struct.pack(">i", len(frame)) + frame)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(size)
    refused = {code for code in _codes(answer) if code}
    assert not refused, f"Kafka refuses the commit: {refused}"


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _codes(answer: bytes) -> list[int]:
    """Of each partition."""
    codes, at = [], 4
    (topics,) = struct.unpack_from(">i", answer, at)
    at += 4
    for _ in range(topics):
        (length,) = struct.unpack_from(">h", answer, at)
        at += 2 + length
        (partitions,) = struct.unpack_from(">i", answer, at)
        at += 4
        for _ in range(partitions):
            _, code = struct.unpack_from(">ih", answer, at)
            codes.append(code)
            at += 6
    return codes
