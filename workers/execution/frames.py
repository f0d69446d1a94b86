"""The frames between a worker and its handler processes: a JSON header and raw bytes, each with its length.

No pickle: a header is text and numbers, a body is an Avro record.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

_LENGTHS: Final = struct.Struct(">II")
HEADER_BYTES: Final = _LENGTHS.size
#: A frame that claims more than this is not one of ours.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024

Header = dict[str, Any]


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame."""
    text = json.dumps(header, separators=(",", ":"), default=str).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


def lengths(front: bytes) -> tuple[int, int]:
    """Length of header and of body.

    Raises:
        ValueError: not a frame of ours.
    """
    text, body = _LENGTHS.unpack(front)
    if text + body > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {text + body} bytes")
    return text, body


def receive(channel: socket.socket) -> tuple[Header, bytes]:
    """The next frame from a blocking socket.

    Raises:
        EOFError: the other side is gone.
    """
    text, body = lengths(_exactly(channel, HEADER_BYTES))
    return json.loads(_exactly(channel, text)), _exactly(channel, body)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
