"""Notices that the group's coordinator and this worker do not agree on its partitions, and lets it join again.

In:  a sign that a heartbeat's answer was lost. Out: at most a call of ``rejoin``.

The coordinator tells a member of a change once, in the answer to a heartbeat. If that answer is lost, Kafka's own client
asks for everything again; librdkafka (2.16) repeats the short heartbeat, and never hears of it: what it should give away
stays with it for five minutes (``max.poll.interval.ms``), what it was given belongs to nobody until the group changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from schemas.errors import KafkaUnreachable
from schemas.topics import Partition
from streams.client_log import ClientLog
from streams.group_members import Member

log = structlog.get_logger("rustfs_workers.membership")

#: Longer than a member may take to give partitions away (its deadline, and the heartbeat that says so).
INTERVAL_S: Final = 6.0
#: So often in a row they must agree before a lost answer is forgotten: a change may just be on its way.
_LOOKS: Final = 2
_LOST_HEARTBEAT: Final = "Timed out ConsumerGroupHeartbeatRequest"


@dataclass(frozen=True, slots=True)
class Held:
    """What this worker has, as its poll thread knows it. ``busy``: it is about to take or to give away partitions."""

    member_id: str
    partitions: frozenset[Partition]
    busy: bool


@dataclass(frozen=True, slots=True)
class Disagreement:
    """What the coordinator takes for ours and we do not have, and what we have and are to give away.

    Both happen for a moment in every change: only if they last has somebody not heard.
    """

    missing: frozenset[Partition]
    surplus: frozenset[Partition]

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus)


def compare(held: Held, member: Member | None) -> Disagreement:
    """A member that the coordinator does not know is told so by its next heartbeat: that is none."""
    if member is None:
        return Disagreement(frozenset(), frozenset())
    # What it is to have in the end may still be with others; what it was told to have is there for the taking.
    return Disagreement(member.assigned - held.partitions, held.partitions - member.target)


def is_ours(held: Held, member: Member | None) -> bool:
    """Whether the coordinator still takes all that we have for ours. What is to be given away counts as ours until we have done it."""
    return member is not None and (held.busy or held.partitions <= member.assigned)


def lost_heartbeats(on_lost: Callable[[], None], onward: logging.Logger) -> ClientLog:
    """For a consumer's configuration: tells when a heartbeat was not answered in time, in the thread that polls."""

    def hear(line: str) -> None:
        if _LOST_HEARTBEAT in line:
            on_lost()

    return ClientLog(hear, onward)


class MembershipWatch:
    """Looks again and again after a lost heartbeat, until both agree. For the event loop, but ``suspect``.

    Args:
        held: what this worker has now.
        ask: what the coordinator thinks of the member with this id.
        rejoin: lets the poll thread leave the group and join again.
        loop: where it looks.
        interval_s: seconds before each look.
    """

    def __init__(
        self,
        *,
        held: Callable[[], Held],
        ask: Callable[[str], Awaitable[Member | None]],
        rejoin: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._held = held
        self._ask = ask
        self._rejoin = rejoin
        self._loop = loop
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._agreed = 0
        self._stopped = False

    def suspect(self) -> None:
        """A heartbeat's answer was lost. Any thread."""
        self._loop.call_soon_threadsafe(self._begin)

    async def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        self._agreed = 0
        if not self._stopped and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._look(), name="membership watch")

    async def _look(self) -> None:
        before: tuple[str, Disagreement] | None = None
        while self._agreed < _LOOKS:
            await asyncio.sleep(self._interval_s)
            held = self._held()
            try:
                member = await self._ask(held.member_id)
            except KafkaUnreachable as error:
                log.info("what the group's coordinator thinks cannot be asked now", error=str(error))
                continue
            except Exception:
                log.exception("the group's coordinator was not asked")
                continue
            after = self._held()
            # Its answer and our own state must be of the same time, or they differ for an innocent reason.
            if held.busy or held != after:
                before = None
                continue
            found = compare(held, member)
            if not found:
                self._agreed, before = self._agreed + 1, None
                continue
            self._agreed = 0
            if before == (held.member_id, found):
                log.warning(
                    "the answer to a heartbeat was lost, and with it a change of partitions: joining the group again",
                    missing=_numbers(found.missing),
                    surplus=_numbers(found.surplus),
                )
                self._rejoin()
                before = None
            else:
                before = (held.member_id, found)


def _numbers(partitions: frozenset[Partition]) -> list[int]:
    return sorted({number for _, number in partitions})
