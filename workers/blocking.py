"""Calls that block, in threads of the worker's own.

asyncio's threads are the handlers' as well: a few calls there that do not end fill them all, and a drain that needs one
would wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Each call ends by itself, within seconds; a handful is under way at the same time.
_THREADS: Final = ThreadPoolExecutor(max_workers=16, thread_name_prefix="rustfs-workers")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As ``asyncio.to_thread``, but for context variables. Any event loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(call, *args, **kwargs))
