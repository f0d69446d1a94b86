"""Blocking calls from an event loop: quick ones in one thread, slow ones beside each other.

In:  functions that mostly take a fraction of a millisecond (a few system calls on a local disk).
Out: asyncio futures with their results.

Threads that make many short system calls slow each other down: each call gives the interpreter away and has to
get it back. With files of a few KiB 16 threads do a fifth of what one does, and handing every call over singly
halves the rest. So one thread takes what has come up, and gives back several results at a time.

That is right while calls are quick. When they are not (a busy disk, a network file system, one that hangs), a pool
is: then queued and new calls go there, until the calm has lasted a second. A call that hangs holds up nobody else.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

#: Average duration of a call from which on more threads help.
SLOW_S: Final = 0.001
#: A single call that takes longer is left alone; what waits behind it goes to the pool.
STALLED_S: Final = 0.02
#: How long the pool is used after calls were slow.
PATIENCE_S: Final = 1.0
#: So many results are given back at once at most.
BATCH: Final = 16

_MEMORY: Final = 0.9


@dataclass(slots=True)
class _Call:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 - raised again where the future is awaited
            self.error = error

    def resolve(self) -> None:
        if self.future.done():  # cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Lane:
    """Runs calls for one event loop. Made and used there; ``close`` from anywhere.

    Args:
        pool: where calls go that cannot wait for each other. It stays the caller's.
    """

    def __init__(self, pool: Executor) -> None:
        self.loop = asyncio.get_running_loop()
        self._pool = pool
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._finished: list[_Call] = []
        self._lock = threading.Lock()  # of _finished
        self._running_since: float | None = None
        self._average_s = 0.0
        self._patient_until = 0.0
        self._watched = False
        self._thread = threading.Thread(target=self._serve, name="quick-lane", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function in another thread; its result or exception is the future's."""
        call = _Call(function, self.loop.create_future())
        now = time.monotonic()
        if now < self._patient_until or self._is_stalled(now):
            self._to_pool(call)
        else:
            self._waiting.put(call)
            if not self._watched:
                self._watched = True
                self.loop.call_later(STALLED_S, self._watch)
        return call.future

    def close(self) -> None:
        """Let the thread end after the calls that it has been given."""
        self._waiting.put(None)

    def _serve(self) -> None:
        while (call := self._waiting.get()) is not None:
            self._running_since = started = time.monotonic()
            call.run()
            self._running_since = None
            ended = time.monotonic()
            self._average_s = _MEMORY * self._average_s + (1 - _MEMORY) * (ended - started)
            if self._average_s > SLOW_S:
                self._average_s = 0.0
                self._patient_until = ended + PATIENCE_S
            with self._lock:
                self._finished.append(call)
                full = len(self._finished) >= BATCH
            if full or self._waiting.empty():
                self._tell()

    def _tell(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop is closed: nobody waits for results any more.
            if not self.loop.is_closed():
                raise

    def _deliver(self) -> None:
        with self._lock:
            finished, self._finished = self._finished, []
        for call in finished:
            call.resolve()

    def _is_stalled(self, now: float) -> bool:
        since = self._running_since
        return since is not None and now - since > STALLED_S

    def _watch(self) -> None:
        """While there is work: see that a call that hangs keeps neither results nor waiting calls back."""
        now = time.monotonic()
        if self._is_stalled(now):
            self._patient_until = now + PATIENCE_S
            self._deliver()
        if now < self._patient_until:
            self._move_to_pool()
        self._watched = self._running_since is not None or not self._waiting.empty()
        if self._watched:
            self.loop.call_later(STALLED_S, self._watch)

    def _move_to_pool(self) -> None:
        while True:
            try:
                call = self._waiting.get_nowait()
            except queue.Empty:
                return
            if call is None:
                self._waiting.put(None)
                return
            self._to_pool(call)

    def _to_pool(self, call: _Call) -> None:
        def run() -> None:
            call.run()
            with self._lock:
                self._finished.append(call)
            self._tell()

        self._pool.submit(run)
