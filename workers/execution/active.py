"""One handler call on its way, and how it is asked to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from workers.context import WorkerContext
from workers.execution.decoder import Decoded
from workers.message import Message

if TYPE_CHECKING:
    from workers.worker import Handler

#: Why it was asked to.
TIMEOUT: Final = "timeout"
RELEASED: Final = "released"


class Active:
    """One handler call on its way."""

    __slots__ = (
        "abandoned",
        "announced_progress",
        "cancel_reason",
        "context",
        "decoded",
        "done",
        "execution",
        "handler",
        "message",
        "overdue",
        "progress_at_steady_ms",
        "since_steady_ms",
        "started_ms",
        "task",
        "timeout_ms",
    )

    def __init__(
        self,
        message: Message,
        decoded: Decoded,
        handler: Handler,
        context: WorkerContext,
        started_ms: int,
        since_steady_ms: int,
        timeout_ms: int,
    ) -> None:
        self.message = message
        self.decoded = decoded
        self.handler = handler
        #: Where it runs: what its handler says, or in the sandbox's processes.
        self.execution = "process" if message.sandboxed else handler.execution
        self.context = context
        #: By broker time, for people.
        self.started_ms = started_ms
        #: By the steady clock, like every other time in here: a broker's clock that is set times nobody out.
        self.since_steady_ms = since_steady_ms
        self.timeout_ms = timeout_ms
        self.task: asyncio.Task[Any] | None = None
        self.cancel_reason: str | None = None
        self.done = False
        #: Its time is up, and a look has found that it goes on.
        self.overdue = False
        self.abandoned: asyncio.Future[None] | None = None
        self.announced_progress: tuple[int, int | None] | None = None
        self.progress_at_steady_ms = 0

    def cancel(self, reason: str) -> None:
        """Ask the handler to end; the first reason counts. A coroutine that goes on all the same may be asked again."""
        again = self.cancel_reason is not None
        if not again:
            self.cancel_reason = reason
            self.context.cancelled = True
        if self.task is not None and self.execution in (("async",) if again else ("async", "process")):
            self.task.cancel()
