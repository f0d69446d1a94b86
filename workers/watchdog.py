"""Ends a worker whose poll thread stands still, and says where each of its threads stands.

In:  how many rounds the poll thread has made. Out: the process ends, with exit code 1, if that does not change for too long.

librdkafka's own threads go on telling Kafka that a process lives whose Python stands still, in a native call that keeps the
interpreter's lock or in a deadlock: no signal reaches it, and for ``max.poll.interval.ms`` nobody else gets its partitions.
Python's ``faulthandler`` counts in a thread that needs no such lock. So this is for a process that is the worker's own.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

#: As long as Kafka bears with a consumer that does not poll (``max.poll.interval.ms``): others have its partitions then. No
#: round of the poll thread takes half of it.
LIMIT_S: Final = 300.0
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
