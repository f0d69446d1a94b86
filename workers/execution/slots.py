"""Long-lived tasks that take one job after another.

A handler that never waits costs no task, no future and no trip through the event loop this way. Everything here happens in the
event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from workers.message import Message

if TYPE_CHECKING:
    from workers.scheduling.scheduler import Scheduler

#: A slot that finds more work goes on for this long before it lets the event loop look at anything else.
_SLICE_NS: Final = 2_000_000


class Slots:
    """As many as there is work for, up to ``most``.

    Args:
        scheduler: what may start.
        most: so many jobs run at the same time.
        run: runs one job in a slot's task; what it raises is an error of our own.
        may_start: whether anything may start now.
        ask_for_commit: start limits must move before what is parked can start.
        on_failure: a slot has ended with an error.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        most: int,
        run: Callable[[Message, asyncio.Task[Any] | None], Awaitable[None]],
        may_start: Callable[[], bool],
        ask_for_commit: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._scheduler = scheduler
        self._most = most
        self._run = run
        self._may_start = may_start
        self._ask_for_commit = ask_for_commit
        self._on_failure = on_failure
        self.tasks: set[asyncio.Task[None]] = set()
        #: Does nothing; it is cancelled only when the event loop ends, with all tasks, and nobody has asked us to stop.
        self._bystander: asyncio.Task[Any] | None = None
        self.idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._clean_context = contextvars.copy_context()
        self._stopping = False

    def wake(self) -> None:
        """Something may be startable."""
        if self._waking or self._stopping or not self._scheduler.has_ready or not self._may_start():
            return
        while self.idle:
            parking = self.idle.pop()
            if not parking.done():  # else its slot was cancelled just now
                parking.set_result(None)
                self._waking = True
                return
        if len(self.tasks) < self._most:
            self._add()
            self._waking = True

    @property
    def loop_is_ending(self) -> bool:
        """Whether a cancellation is that of everything in the event loop."""
        return self._bystander is None or self._bystander.cancelling() > 0

    @property
    def left_behind(self) -> int:
        """After ``stop``: those whose handler goes on all the same. Any thread: a copy, for the event loop changes the set."""
        return sum(not slot.done() for slot in list(self.tasks))

    async def stop(self, timeout_s: float) -> None:
        """End them. A handler that swallows its cancellation can be ended by nobody."""
        self._stopping = True
        if self._bystander is not None:
            self._bystander.cancel()
        for slot in self.tasks:
            slot.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=timeout_s)

    def _add(self) -> None:
        if self._bystander is None:
            self._bystander = asyncio.create_task(asyncio.Event().wait(), name="bystander")
        # Not by the loop's factory, which makes each step of a task dearer: what a slot awaits, it looks after itself.
        slot = asyncio.Task(
            self._slot(),
            loop=asyncio.get_running_loop(),
            name="slot",
            context=self._clean_context.copy(),
        )
        self.tasks.add(slot)
        slot.add_done_callback(self._ended)

    def _ended(self, slot: asyncio.Task[None]) -> None:
        self.tasks.discard(slot)
        if not slot.cancelled() and (error := slot.exception()) is not None:
            self._on_failure(error)
        elif not self.loop_is_ending:
            # A timer that a handler forgot cancels its slot, later, when that is parked or has been woken for another job.
            self._waking = False
            self.wake()

    async def _slot(self) -> None:
        """Take, run, repeat. Ends when a handler left something behind, so that nobody inherits it."""
        scheduler = self._scheduler
        now_ns, steady_ns = time.time_ns, time.monotonic_ns
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        clean = contextvars.copy_context()
        self._waking = False
        while not self._stopping:
            slice_end = steady_ns() + _SLICE_NS
            while self._may_start() and (message := scheduler.take(now_ns() // 1_000_000)) is not None:
                if self.idle or len(self.tasks) < self._most:
                    self.wake()
                if scheduler.needs_commit:
                    # Now: what was taken may take its time, and nobody else may come to ask.
                    self._ask_for_commit()
                await self._run(message, me)
                # In its context, or in this task: a handler that cancels its own has no effect on those after it.
                if not _is_still(clean) or (me is not None and me.cancelling()):
                    self.tasks.discard(me)
                    self._waking = False
                    self.wake()
                    return
                if steady_ns() > slice_end:
                    if self._waking:
                        # The slot that was woken goes on. If all of them did, each with a slice of its own, the
                        # event loop would come round after 64 slices, and an urgent job would wait that long.
                        break
                    await asyncio.sleep(0)
                    slice_end = steady_ns() + _SLICE_NS
            if scheduler.has_parked:
                self._ask_for_commit()
            parking = loop.create_future()
            self.idle.append(parking)
            try:
                await parking
            finally:
                self._waking = False
                if parking.cancelled() and parking in self.idle:
                    self.idle.remove(parking)


def _is_still(clean: contextvars.Context) -> bool:
    """Whether nothing has been left in the current context. How values compare is the user's code: it may raise, arrays do."""
    try:
        return contextvars.copy_context() == clean
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - whatever it is, a panic of native code too, something has been left
        return False
