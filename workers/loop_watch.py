"""Ends a process whose event loop is held by a handler that does not wait with ``await``, and says where it stands.

Nothing else would notice: the poll thread keeps the membership, so the worker looks healthy, and its partitions stand still.
Time limits cannot end such a handler, being events of the same loop. After its end another worker runs its job, and after a few
deaths in a process of its own, where it can be ended.

So this is for a process that is the worker's own. ``watchdog`` is for what keeps even this thread from running.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger("rustfs_workers.running")

#: After which it is said.
TOLD_AFTER_S: Final = 5.0
_LOOK_S: Final = 1.0


class LoopWatch:
    """Made in the event loop's thread; its methods are for any.

    Args:
        limit_s: for how long the event loop may be held, in seconds.
        code: exit code then.
        told_after_s: after which it is said that it is held, and where.
        look_s: seconds between two looks.
        end: ends the process with the code.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        code: int,
        told_after_s: float = TOLD_AFTER_S,
        look_s: float = _LOOK_S,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._limit_s = limit_s
        self._code = code
        self._told_after_s = told_after_s
        self._look_s = look_s
        self._end = end
        #: Since the last turn of the loop, as far as this thread has run: a process that was stopped meanwhile has held nothing.
        self._held_s = 0.0
        self._told = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def hurry(self, limit_s: float, code: int) -> None:
        """Somebody wants the process to end: from now on the loop may be held for so long at the most."""
        self._limit_s, self._code = min(self._limit_s, limit_s), code

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._look_s):
            self._held_s += self._look_s
            if self._held_s > self._limit_s + self._look_s:
                log.error(
                    "ended by force: a handler holds the event loop", seconds=self._held_s, at=self._where()
                )
                self._end(self._code)
                return
            if self._held_s > self._told_after_s + self._look_s and not self._told:
                self._told = True
                log.warning(
                    "a handler holds the event loop: nothing else runs; write it as a plain function, which runs in a thread",
                    seconds=self._held_s,
                    at=self._where(),
                )
            try:
                self._loop.call_soon_threadsafe(self._turn)
            except RuntimeError:  # the loop is closed
                return

    def _turn(self) -> None:
        self._held_s, self._told = 0.0, False

    def _where(self) -> str:
        """The innermost lines that the loop's thread is at."""
        frame = sys._current_frames().get(self._watched)
        lines = traceback.extract_stack(frame)[-3:] if frame is not None else []
        return " < ".join(f"{line.filename}:{line.lineno} {line.name}" for line in reversed(lines))
