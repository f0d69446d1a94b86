"""Ends a worker whose poll thread stands still, and says where each of its threads stands.

In:  how many rounds the poll thread has made. Out: the process ends, with exit code 1, if that does not change for too long.

Calls of librdkafka that ask its main thread something (the group's metadata, the begin of a transaction) keep the
interpreter's lock while they wait. And that thread can wait for ever: when a broker leaves the cluster while an
OffsetForLeaderEpoch request to it is under way, it and the broker's thread each hold the lock that the other one wants
(librdkafka issue 5476, open for 2.16). Then no Python runs any more, no signal reaches the process, and only Python's
``faulthandler`` still counts, in a thread that needs no such lock. So this is for a process that is the worker's own.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

#: Twice what a round of the poll thread takes at the most, when an assignment has to be read from a Kafka that is away.
LIMIT_S: Final = 150.0
_LOOK_S: Final = 1.0


@contextmanager
def watchdog(
    rounds: Callable[[], int], limit_s: float = LIMIT_S, *, look_s: float = _LOOK_S, log: TextIO | None = None
) -> Iterator[None]:
    """Watch while the block runs.

    Args:
        rounds: grows while all is well; called in a thread of its own.
        limit_s: how long it may stay the same, in seconds. A process that is stopped for longer ends when it goes on.
        look_s: seconds between two looks.
        log: a file with a descriptor, for what is said at the end; default stderr.
    """
    over = threading.Event()

    def look() -> None:
        last = -1
        while True:
            if (now := rounds()) != last:
                last = now
                faulthandler.dump_traceback_later(
                    limit_s, exit=True, file=log or sys.__stderr__ or sys.stderr
                )
            if over.wait(look_s):
                return

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
