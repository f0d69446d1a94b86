"""Calls that block, in threads of the worker's own.

asyncio's threads are the handlers' as well: a few calls there that do not end fill them all, and a drain that needs one
would wait for ever.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Each call ends by itself, within seconds; a handful is under way at the same time.
_MOST: Final = 16
_threads = ThreadPoolExecutor(_MOST, thread_name_prefix="rustfs-workers")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As ``asyncio.to_thread``, but for context variables. Any event loop."""
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(call, *args, **kwargs))


def _forget_threads() -> None:
    global _threads  # noqa: PLW0603 - one pool per process
    _threads = ThreadPoolExecutor(_MOST, thread_name_prefix="rustfs-workers")


# A fork copies no threads, but the pool's count of them: in the child its calls would wait for ever.
os.register_at_fork(after_in_child=_forget_threads)
