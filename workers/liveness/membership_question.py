"""While nothing else of Kafka answers: asks the group's coordinator whether this worker is still a member.

In:  a lease on which nothing has come for a while. Out: at most a call of ``Lease.answered``.

A broker that dies without a word stays among the copies that have to acknowledge for as long as the controller waits for it
(``broker.session.timeout.ms``, 9 s by default): until then nothing new is acknowledged, and nothing new can be read. A worker that
has no backlog to fetch hears nothing then, though its heartbeats are answered, and would cancel hours of work with each such
death. The coordinator answers this question from its memory, out of what has been acknowledged before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from schemas.errors import KafkaUnreachable
from workers.liveness.lease import Lease

log = structlog.get_logger("rustfs_workers.membership")

#: After this share of the lease the question is asked: reports, data and commits answer far more often while all is well.
_QUIET_SHARE: Final = 1 / 3
_PAUSE_S: Final = 0.5


class MembershipQuestion:
    """For the event loop.

    Args:
        lease: what an answer keeps.
        is_member: asks; raises KafkaUnreachable where nobody answers.
        pause_s: between two questions.
    """

    def __init__(
        self, lease: Lease, is_member: Callable[[], Awaitable[bool]], *, pause_s: float = _PAUSE_S
    ) -> None:
        self._lease = lease
        self._is_member = is_member
        self._pause_s = pause_s
        self._asking: asyncio.Task[None] | None = None
        self._stopped = False

    def look(self) -> None:
        """Ask if it is time to; to be called again and again."""
        is_asking = self._asking is not None and not self._asking.done()
        if self._is_time and not is_asking and not self._stopped:
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="membership question")

    async def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    @property
    def _is_time(self) -> bool:
        # Once it is over, only a commit shows that nobody else has our partitions.
        return self._lease.seconds * _QUIET_SHARE < self._lease.silent_s <= self._lease.seconds

    async def _ask(self) -> None:
        while self._is_time and not self._stopped:  # a client that is being closed may swallow a cancellation
            asked_s = self._lease.now_s
            try:
                is_member = await self._is_member()
            except KafkaUnreachable as error:
                log.info("the group's coordinator does not answer either", error=str(error))
            except Exception:
                log.exception("the group's coordinator was not asked")
            else:
                # Who is no member is told so by its next heartbeat.
                if is_member:
                    silent_s = round(self._lease.silent_s, 1)
                    log.info("still a member, though nothing else is heard of Kafka", silent_s=silent_s)
                    self._lease.answered(asked_s)
            await asyncio.sleep(self._pause_s)
