"""Threads that are none: each runs until it pauses, and who goes on is decided by the seed.

In:  functions. Out: one step of one of them at a time, all in one real thread, so that a seed decides everything.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """Raised in a thread whose process is gone: nothing that it still does may have an effect."""


class Hub:
    """Made in the thread that drives everything."""

    def __init__(self) -> None:
        self._driver = getcurrent()

    def pause(self) -> None:
        """Others may run now. Called by the driver itself it does nothing."""
        if getcurrent() is not self._driver:
            self._driver.switch()


class Actor:
    """One thread of a process."""

    def __init__(self, hub: Hub, main: Callable[[], None]) -> None:
        self._hub = hub
        self._greenlet = greenlet(main, parent=hub._driver)

    @property
    def ended(self) -> bool:
        """Whether it has returned."""
        return self._greenlet.dead

    def step(self) -> None:
        """Go on until the next pause."""
        self._greenlet.switch()

    def kill(self) -> None:
        """It does nothing more."""
        if not self._greenlet.dead and self._greenlet.gr_frame is not None:
            try:
                self._greenlet.throw(Killed)
            except Killed:
                pass


class CheckedLock:
    """A lock whose holder must not pause: in real threads that would be a wait under a lock."""

    def __init__(self) -> None:
        self._holder: object | None = None

    def __enter__(self) -> None:
        assert self._holder is None, "somebody paused while holding the lock, or takes it twice"
        self._holder = getcurrent()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._holder = None
