"""Threads for calls that block, as few as keep an event loop's work moving.

In:  blocking calls, from one event loop. Out: their results, in that loop.

A copy of a few KiB takes some hundred microseconds in dozens of system calls, and each of those lets go of
the interpreter. Several threads that do this side by side mostly take it away from each other: two of them
need three times the processor time of one. So there is *one* thread while it keeps up; only when a call takes
longer than ``patience`` (a large object, a slow disk, a node that hangs), another thread goes on with what
waits. Results are handed back several at a time, since waking the event loop costs as much as a small copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Asked by a call between two steps: whether nobody waits for it any more.
Stopped = Callable[[], bool]

#: How long a cancelled ``run`` waits for its thread to stop. Less than what a worker gives cancelled jobs
#: when a partition moves (1 s).
LET_GO: Final = timedelta(milliseconds=400)
#: Threads that are left behind in the operating system, for each that may work: others take their place, up to so many.
_LEFT_BEHIND: Final = 4
#: Results are handed back when nothing waits, or so many are there, or the first is so old.
_BATCH: Final = 16
_BATCH_AGE_S: Final = 0.002


class _Call:
    """One call on its way."""

    __slots__ = (
        "delivered",
        "ended",
        "error",
        "function",
        "future",
        "given_up",
        "left_behind",
        "result",
        "started",
    )

    def __init__(self, function: Callable[[Stopped], Any], future: asyncio.Future[None]) -> None:
        self.function = function
        self.future = future
        self.given_up = False
        self.started = False
        self.ended = False
        self.left_behind = False
        self.delivered = False
        self.result: Any = None
        self.error: BaseException | None = None

    def is_given_up(self) -> bool:
        return self.given_up


class Crew:
    """A few daemon threads. For one event loop at a time; ``run`` is called in it.

    Args:
        limit: most threads at the same time. More calls wait.
        patience: how long calls wait for the one that runs before another thread is put on; zero gives each
            its own at once.
        name: of the threads, for people.
    """

    def __init__(self, limit: int, *, patience: timedelta, name: str) -> None:
        self._limit = limit
        self._patience_s = patience.total_seconds()
        self._name = name
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._waiting: deque[_Call] = deque()
        self._started_at: dict[int, float] = {}  # a busy thread's number: when it began its call
        self._threads = 0
        self._idle = 0
        self._left_behind = 0
        self._called = 0  # idle threads that have been called and did not come yet
        self._closed = False
        self._done: list[_Call] = []
        self._first_done_at = 0.0
        self._loop_told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outstanding = 0

    async def run(self, function: Callable[[Stopped], T]) -> T:
        """Call the function in a thread; it is given a callable that says whether to stop.

        If this is cancelled, the function is told, and gets up to ``LET_GO`` to return before the
        cancellation goes on: so a file is not published while somebody else already works on it. A function
        that hangs in the operating system is left behind in its thread.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop.create_future())
        with self._lock:
            self._closed = False
            if loop is not self._loop:
                self._begin(loop)
            self._waiting.append(call)
            if self._nobody_keeps_up():
                self._one_more()
                if not self._threads:
                    self._waiting.clear()  # it is the only one
                    raise RuntimeError("the system gives no thread to run this in; look at its limits")
            self._outstanding += 1
        if self._timer is None and self._patience_s:
            self._arm(loop)
        try:
            await call.future
        except asyncio.CancelledError:
            with self._lock:
                call.given_up = True
            if call.started and not call.delivered:
                call.future = loop.create_future()
                await asyncio.wait([call.future], timeout=LET_GO.total_seconds())
                with self._lock:
                    self._leave_behind(call)
            raise
        finally:
            if loop is self._loop:
                self._outstanding -= 1
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def close(self) -> None:
        """Let the threads end when nothing waits any more; a call that comes later gets new ones. Any thread; twice is harmless."""
        with self._lock:
            self._closed = True
            self._called += self._idle
            self._idle = 0
            self._work.notify_all()

    def _leave_behind(self, call: _Call) -> None:
        """It hangs: another thread takes the place of its own, or one node would stop the copies of all. With the lock held."""
        if not call.ended and self._left_behind < _LEFT_BEHIND * self._limit:
            call.left_behind = True
            self._left_behind += 1
            self._threads -= 1
            # What waits already would wait for the next call of ``run``, and nobody has to make one.
            if self._waiting and self._nobody_keeps_up():
                self._one_more()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Another loop than before: nobody waits any more for what is on its way for that one."""
        self._loop, self._timer = loop, None
        self._done, self._loop_told = [], False
        self._outstanding = 0

    def _nobody_keeps_up(self) -> bool:
        """Whether another thread would be of use. With the lock held."""
        if not self._patience_s:
            return len(self._waiting) > self._called
        if self._called:
            return False
        patient_until = time.monotonic() - self._patience_s
        return not any(began > patient_until for began in self._started_at.values())

    def _one_more(self) -> None:
        """Call a thread that sits idle, or a new one. With the lock held."""
        if self._idle:
            self._idle -= 1
            self._called += 1
            self._work.notify()
        elif self._threads < self._limit:
            with contextlib.suppress(RuntimeError):  # the system gives no more: those that are there go on
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
                self._threads += 1
                self._called += 1

    def _serve(self) -> None:
        """One thread: waits until it, or any other, is called; then works while that is of use."""
        with self._lock:
            while True:
                # Whoever comes first takes a call that was meant for another: the numbers stay right.
                self._work.wait_for(lambda: self._called > 0)
                self._called -= 1
                if not self._work_off(threading.get_ident()):
                    return
                if self._closed:
                    self._threads -= 1
                    return
                self._idle += 1

    def _work_off(self, me: int) -> bool:
        """Take a call after another, until nothing waits or others keep up. With the lock held.

        False: it was left behind meanwhile, and another one has its place.
        """
        while self._waiting and (not self._patience_s or self._nobody_keeps_up()):
            call = self._waiting.popleft()
            if call.given_up:
                continue
            call.started = True
            self._started_at[me] = time.monotonic()
            self._lock.release()
            try:
                call.result = call.function(call.is_given_up)
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                call.error = error
            finally:
                self._lock.acquire()
                del self._started_at[me]
                call.ended = True
            if call.left_behind:
                self._left_behind -= 1
                return False
            self._finished(call)
        self._tell()
        return True

    def _finished(self, call: _Call) -> None:
        if call.future.get_loop() is not self._loop:
            return  # it was given up, and its loop with it
        now = time.monotonic()
        if not self._done:
            self._first_done_at = now
        self._done.append(call)
        if not self._patience_s or len(self._done) >= _BATCH or now - self._first_done_at > _BATCH_AGE_S:
            self._tell()

    def _tell(self) -> None:
        """Let the event loop take what is done. With the lock held."""
        if self._done and self._loop is not None and not self._loop_told:
            self._loop_told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            done, self._done = self._done, []
            self._loop_told = False
        for call in done:
            call.delivered = True
            if not call.future.done():
                call.future.set_result(None)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._patience_s, self._look)

    def _look(self) -> None:
        """Every ``patience``: is what waits being worked on? What is done handed back?"""
        self._timer = None
        if not self._outstanding:
            return
        with self._lock:
            if self._waiting and self._nobody_keeps_up():
                self._one_more()
        if self._done:
            self._deliver()
        self._arm(asyncio.get_running_loop())
