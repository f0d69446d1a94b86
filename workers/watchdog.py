"""Ends a process in which no Python runs any more, and says where each of its threads stands.

Some calls of librdkafka that ask its main thread something (the group's metadata, the begin of a transaction) keep the
interpreter's lock while they wait. If that thread waits for ever, no Python runs, no signal reaches the process, and only
Python's ``faulthandler`` still counts, in a thread that needs no such lock. (It has been seen once, when a broker had been
killed. librdkafka's issue 5476, open for 2.16, tells of a deadlock in which its main thread stands still: an
OffsetForLeaderEpoch request to a broker that leaves the cluster.)

So this is for a process that is the worker's own. There is one such timer in a process.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Far longer than anything that keeps the interpreter's lock has a reason to.
LIMIT_S: Final = 120.0
_LOOK_S: Final = 1.0
_STDERR: Final = 2


@contextmanager
def watchdog(limit_s: float = LIMIT_S, *, look_s: float = _LOOK_S) -> Iterator[None]:
    """Watch while the block runs; the end is told on stderr, with exit code 1.

    Args:
        limit_s: for how long no Python may run, in seconds. A process that is stopped for longer than that ends when it goes on.
        look_s: seconds between two signs of life.
    """
    over = threading.Event()
    where = _where_to_tell()

    def show_life() -> None:
        while True:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=where)
            if over.wait(look_s):
                faulthandler.cancel_dump_traceback_later()
                return

    thread = threading.Thread(target=show_life, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(where)


def _where_to_tell() -> int:
    """A descriptor of its own: stderr, or nowhere if that is closed."""
    try:
        return os.dup(_STDERR)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
