"""``--processes N``: a parent that keeps N worker processes running.

In:  a command line for child i. Out: an exit code. A child that dies is started again, soon at first and
more slowly if it keeps dying; signals are passed on; children do not outlive the parent.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

import structlog

from workers.console import INTERRUPTED, OK, USAGE, ending_signals
from workers.parent_death import HOPELESS, environment_of_a_child

log = structlog.get_logger("rustfs_workers.supervisor")

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
#: A child that lived this long starts again as if for the first time.
_STABLE_S: Final = 60.0


def pause_before_restart(deaths_in_a_row: int) -> float:
    """Seconds to wait: 1, 2, 4, … 30."""
    return min(_FIRST_PAUSE_S * float(2 ** min(deaths_in_a_row - 1, 10)), _LONGEST_PAUSE_S)


@dataclass
class _Slot:
    index: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    restart_at: float = field(default=0.0)
    #: How many signals have been passed on to this process.
    told: int = 0

    def tell(self, signals: int) -> None:
        """Pass on what has not been passed on yet: SIGTERM the first time, SIGKILL after that."""
        if self.process is not None and self.told < signals and self.process.poll() is None:
            self.told = signals
            self.process.send_signal(signal.SIGTERM if signals == 1 else signal.SIGKILL)


def supervise(count: int, command: Callable[[int], Sequence[str]]) -> int:
    """Run ``count`` children until a signal, or until one says that starting it again is useless.

    Wrong usage does not get better by trying again; nor does a worker id that somebody else has: it would fence that one. The
    exit code is 0 after SIGTERM, 143 after a second one, 130 after Ctrl-C, 2 for a useless one.

    Raises:
        OSError: a child cannot be started at all.
    """
    slots = [_Slot(index) for index in range(count)]
    stopping: list[int] = []
    hopeless = False
    # Not an Event: a signal that comes within its wait() would wait for the lock that wait() holds, for ever.
    changed: SimpleQueue[None] = SimpleQueue()

    def on_signal(number: int, _frame: object) -> None:
        stopping.append(number)
        for slot in slots:
            slot.tell(len(stopping))
        changed.put(None)

    before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in ending_signals()}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: changed.put(None))
    try:
        while True:
            now = time.monotonic()
            for slot in slots:
                code = _look_after(slot, command, now, stopping=bool(stopping))
                if code == HOPELESS and not stopping:
                    hopeless = True
                    on_signal(signal.SIGTERM, None)
                slot.tell(len(stopping))  # it may have come while this very process was being started
            if stopping and all(slot.process is None or slot.process.poll() is not None for slot in slots):
                return USAGE if hopeless else _exit_code(stopping)
            waits = [slot.restart_at - now for slot in slots if slot.process is None]
            with contextlib.suppress(Empty):
                changed.get(timeout=max(min([*waits, 1.0]), 0.01))
    finally:
        for slot in slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.kill()
                slot.process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _look_after(
    slot: _Slot, command: Callable[[int], Sequence[str]], now: float, *, stopping: bool
) -> int | None:
    """Start what should run and does not; the exit code of a child that has just ended."""
    code = None
    if slot.process is not None and (code := slot.process.poll()) is not None:
        slot.process = None
        if code == HOPELESS:
            log.error("worker process ended: starting it again is useless", process=slot.index)
        elif not stopping:
            slot.deaths = 1 if now - slot.started_at > _STABLE_S else slot.deaths + 1
            pause = pause_before_restart(slot.deaths)
            slot.restart_at = now + pause
            log.error("worker process ended", process=slot.index, exit_code=code, restart_in_s=pause)
    if slot.process is None and not stopping and now >= slot.restart_at and code != HOPELESS:
        try:
            slot.process = subprocess.Popen(
                command(slot.index),
                # Ctrl-C reaches the parent alone, which then tells its children.
                start_new_session=True,
                env=environment_of_a_child(supervised=True),
            )
        except OSError as error:
            if not slot.deaths:
                raise  # it has never run: what it needs is not there
            # The machine is short of processes, memory or files: no reason to end the others.
            slot.deaths += 1
            pause = pause_before_restart(slot.deaths)
            slot.restart_at = now + pause
            log.warning("worker process not started", process=slot.index, error=str(error), again_in_s=pause)
            return code
        slot.started_at = now
        slot.told = 0
    return code


def _exit_code(signals: Sequence[int]) -> int:
    """As of one worker alone: nobody may take for a drain what was ended by force."""
    first, *more = signals
    if first == signal.SIGINT:
        return INTERRUPTED
    return 128 + more[0] if more else OK
