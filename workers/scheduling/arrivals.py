"""What becomes of a message before anything runs: it waits for its time, goes on to another topic, or may start.

In:  messages from the poll thread. Out: entries of the scheduler, outcomes that forward, and held messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from workers.consuming.key_places import KeyPlaces
from workers.outcome import Outcome
from workers.unsaid import guarded

if TYPE_CHECKING:
    from workers.committing.commit import Committer
    from workers.committing.router import Router
    from workers.liveness.verdicts import Verdicts
    from workers.message import Message
    from workers.offsets import PartitionState
    from workers.scheduling.delay import Delays
    from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.worker")

#: Our own jobs come to their topic less than a second before their time; clocks may differ a little.
_LONGEST_HOLD_MS: Final = 2_000
#: What is due in days is looked at each hour: the clock may have been set meanwhile.
_LONGEST_SLEEP_S: Final = 3600.0


class Arrivals:
    """For one event loop; every call is made there.

    Args:
        wake: there is something to start.
        on_failure: told what goes wrong when a time has come.
    """

    def __init__(
        self,
        *,
        delays: Delays,
        scheduler: Scheduler,
        committer: Committer,
        router: Router,
        verdicts: Verdicts,
        worker_name: str,
        now_ms: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._delays = delays
        self._scheduler = scheduler
        self._committer = committer
        self._router = router
        self._verdicts = verdicts
        self._worker_name = worker_name
        self._now_ms = now_ms
        self._loop = loop
        self._wake = wake
        self._on_failure = on_failure
        self._timer: asyncio.TimerHandle | None = None
        #: Set before the first message comes.
        self.key_places = KeyPlaces(1)

    def arrive(self, messages: list[Message]) -> None:
        """Sort what has come."""
        now = self._now_ms()
        ready: list[Message] = []
        held = False
        misplaced = self.key_places.misplaced(messages)
        if misplaced:
            self._committer.counters.event("misplaced_keys", misplaced)
        for message in messages:
            if message.delivery.delay_ms:
                # Less than a second: no broker has stamped it, so it counts from when it came. Who was to run has waited.
                waited_ms = message.delivery.delay_ms if message.lost_worker else 0
                message.delivery = message.delivery.counted_from(now - waited_ms)
            if message.tier is not None:
                self._delays.hold((message,))
                held = True
            elif message.copy:
                self._drop_copy(message)
            elif message.lost_worker:
                self._verdicts.expect((message,))
                ready.append(message)
            elif message.delivery.not_before_ms > now + _LONGEST_HOLD_MS:
                # Written to a job topic by a producer of another kind: it would hold up its partition, and then its priority.
                self._committer.emit(self._router.forward(message, now, self._worker_name))
                self._scheduler.leave(message)
            elif message.delivery.not_before_ms > now:
                self._delays.hold_until(message, message.delivery.not_before_ms)
                held = True
            else:
                ready.append(message)
        if held:
            self._arm()
        self._hand_over(ready)

    def purge(self, parts: set[PartitionState]) -> None:
        """Forget what has come of these partitions: they are being given up."""
        for message in self._delays.purge(parts):
            if message.priority is not None:
                self._scheduler.leave(message)
        self._scheduler.purge(parts)
        self._verdicts.purge(parts)

    def stop(self) -> None:
        """Nothing that waits for its time comes any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _hand_over(self, ready: list[Message]) -> None:
        if ready:
            self._scheduler.add(ready)
            self._wake()

    def _drop_copy(self, message: Message) -> None:
        log.warning("copy of a record skipped", job_id=message.job_id_text, at=message.where)
        self._committer.emit(Outcome(message, None, event="duplicates"))
        if message.priority is not None:
            self._scheduler.leave(message)

    def _arm(self) -> None:
        due = self._delays.next_due_ms()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            wait_s = max((due - self._now_ms()) / 1000, 0.0)
            self._timer = self._loop.call_later(
                min(wait_s, _LONGEST_SLEEP_S), guarded(self._on_due, self._on_failure)
            )

    def _on_due(self) -> None:
        self._timer = None
        now = self._now_ms()
        ready: list[Message] = []
        for message in self._delays.take_due(now):
            if not message.part.may_run:
                if message.priority is not None:
                    self._scheduler.leave(message)
            elif message.tier is None:
                ready.append(message)
            elif message.copy:
                self._drop_copy(message)
            elif message.problem is not None:
                unreadable = self._router.unreadable(message, message.problem, now, self._worker_name)
                self._committer.emit(unreadable)
            else:
                self._committer.emit(self._router.forward(message, now, self._worker_name))
        self._hand_over(ready)
        self._arm()
