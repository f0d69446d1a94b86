"""Markers that end a transaction in some partitions only, as a coordinator sends them that is none any more.

This is Kafka's WriteTxnMarkers, version 1, which brokers send each other; no client has it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from tests.support import kafka_proxy
from tests.support.transaction_requests import EndTxn

_WRITE_TXN_MARKERS = 27
_VERSION = 1
_TIMEOUT_S = 10.0


def commit_in(port: int, transaction: EndTxn, partitions: Mapping[str, int]) -> None:
    """Commit what it has written to these topics: the first so many partitions of each. Blocks."""
    request = (
        struct.pack(">hhihB", _WRITE_TXN_MARKERS, _VERSION, 1, -1, 0)
        + b"\x02"  # one transaction
        + struct.pack(">qh?", transaction.producer_id, transaction.epoch, True)
        + _compact(len(partitions))
        + b"".join(
            _compact(len(name))
            + name.encode()
            + _compact(count)
            + struct.pack(f">{count}i", *range(count))
            + b"\x00"
            for name, count in partitions.items()
        )
        + struct.pack(">iBB", 0, 0, 0)  # the coordinator's epoch
    )
    with socket.create_connection((kafka_proxy.HOST, port), _TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(size)
    # In any order: of each topic its name, how many partitions, and of each of them number and error.
    for name, count in partitions.items():
        _, _, found = answer.partition(_compact(len(name)) + name.encode() + _compact(count))
        errors = {struct.unpack_from(">ihB", found, 7 * place) for place in range(count)}
        assert errors == {(number, 0, 0) for number in range(count)}, f"{name}: {errors}"


def _compact(length: int) -> bytes:
    """Of an array or a text: one more than it has, as a varint; 127 are enough here."""
    assert length < 127
    return bytes([length + 1])
