"""Job ids: UUIDs of version 7 (RFC 9562), so that ids sort by the time they were made."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

#: A turn is what an id ends in: 16 bits.
_TURNS: Final = 1 << 16


def _anywhere() -> int:
    """Where a process begins with its turns: if all began at the same one, so would all that make a single id."""
    return int.from_bytes(os.urandom(2))


_lock = threading.Lock()
_pool = b""
_taken = 0
_turn = _anywhere()


def new_job_id(turn: int | None = None) -> str:
    """A new id: 48 bits of milliseconds, 58 random bits, 16 bits of a turn. Safe from any thread, about 1 µs.

    ``turn``, 0 to 65,535, places a job that has no ordering key (``schemas.partitions.partition_of_id``). None: the next
    one of this process, so that ids made one after another go to one partition after another, however many there are.

    Randomness is read from the system in blocks: one call for 500 ids instead of one each.
    """
    global _pool, _taken, _turn  # noqa: PLW0603 - one pool per process
    with _lock:
        if _taken + 8 > len(_pool):
            _pool, _taken = os.urandom(4000), 0
        random = _pool[_taken : _taken + 8]
        _taken += 8
        if turn is None:
            turn = _turn = (_turn + 1) % _TURNS
    digits = f"{time.time_ns() // 1_000_000:012x}{random.hex()}{turn:04x}"
    variant = "89ab"[random[2] >> 4 & 3]  # from the four bits that the variant replaces: no bit is used twice
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def next_turn() -> int:
    """The turn that the next id would have, for ids that are to share one: their jobs go to one partition. Safe from any thread."""
    global _turn  # noqa: PLW0603 - one counter per process
    with _lock:
        _turn = (_turn + 1) % _TURNS
        return _turn


def _forget() -> None:
    global _lock, _pool, _taken, _turn
    # Another thread may have held the lock when the process was forked; in the child nobody would release it.
    _lock, _pool, _taken, _turn = threading.Lock(), b"", 0, _anywhere()


# A forked child must not hand out the ids of its parent, and many that each make one job must not all choose its partition.
os.register_at_fork(after_in_child=_forget)
