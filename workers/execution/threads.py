"""Plain functions in threads, which nobody can end.

In:  a function, and a future that is set when nobody waits for it any more. Out: what it returns or raises, or nothing:
then its thread is left behind, and counted as long as it goes on. For one event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class HandlerThreads:
    """As many as handlers may run at the same time; those left behind come on top.

    Args:
        size: of the pool.
        on_stray: told 1 when a thread is left behind, -1 when that one has ended after all.
    """

    def __init__(self, size: int, on_stray: Callable[[int], None]) -> None:
        self._size = size
        self._on_stray = on_stray
        self._pool = self._new_pool()
        self._calls: set[asyncio.Future[Any]] = set()

    @property
    def going_on(self) -> int:
        """Calls that have not returned, those left behind included."""
        return len(self._calls)

    async def run(self, function: Callable[[], Any], abandoned: asyncio.Future[None]) -> Any:
        """Call it in a thread, in a copy of the caller's context: a thread would keep what a handler leaves in its own.

        Raises:
            CancelledError: it was abandoned. Else what the function raises.
        """
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._pool, contextvars.copy_context().run, _call, function)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        await asyncio.wait((call, abandoned), return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            return call.result()
        # Leave the thread behind, with its pool: its place must not be missing for others.
        self._on_stray(1)
        call.add_done_callback(self._stray_ended)
        old, self._pool = self._pool, self._new_pool()
        old.shutdown(wait=False)
        raise asyncio.CancelledError

    def stop(self) -> None:
        """Start nothing that waits. What runs goes on: a thread cannot be ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _stray_ended(self, call: asyncio.Future[Any]) -> None:
        self._on_stray(-1)
        # Nobody waits for it.
        if not call.cancelled() and call.exception() is None:
            drop(call.result())

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._size, thread_name_prefix="handler")


def drop(value: object) -> None:
    """Nobody will await it: a coroutine that is left alone would say so."""
    if inspect.iscoroutine(value):
        value.close()


def _call(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except StopIteration as error:
        # A future refuses it and would never be done. Coroutines and generators say the same.
        raise RuntimeError("the handler raised StopIteration") from error
