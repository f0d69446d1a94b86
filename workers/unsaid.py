"""No callback of the event loop fails in silence: what it raises ends the worker.

asyncio logs it and goes on. The worker would look healthy, with jobs that nobody starts any more; one that ends says why, and is
started again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def guarded(callback: Callable[P, object], on_failure: Callable[[BaseException], None]) -> Callable[P, None]:
    """``callback`` for an event loop's timers and calls from other threads; what it raises goes to ``on_failure``."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - handed on
            on_failure(error)

    return call
