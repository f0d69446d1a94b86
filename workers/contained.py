"""``sys.exit`` in a task that a handler has started ends that task, not the worker.

asyncio lets ``SystemExit`` and ``KeyboardInterrupt`` out of the event loop, whichever task they come from: everything that
runs beside it would be cancelled, and its job, which looks like any other that was cut short, would do so again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class TaskExited(RuntimeError):
    """A task wanted to end the program."""


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine whose ``SystemExit`` is an ordinary error. No coroutine function: one that never starts is never awaited."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self.__name__ = getattr(inner, "__name__", type(inner).__name__)
        self.__qualname__ = getattr(inner, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        return _contain(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return _contain(self._inner.throw, *error)

    def close(self) -> None:
        _contain(self._inner.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()


def _contain(step: Callable[..., T], *arguments: Any) -> T:
    try:
        return step(*arguments)
    except (SystemExit, KeyboardInterrupt) as error:
        raise TaskExited(f"{type(error).__name__}: {error}") from error


def contained_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """For ``loop.set_task_factory``."""
    return asyncio.Task(_Contained(coroutine), loop=loop, **options)
