"""Notices that a transaction hangs in a partition, and has it ended if Kafka has forgotten it.

In:  now and then, how far readers of our partitions get, and how far they reach. Out: nothing hangs any more.

A forgotten transaction (``workers.committing.forgotten``) that holds back the group's offsets is met at once, by whoever is given the
partition. One that is left in a retry topic or among the statuses holds back whoever reads on there: its jobs would
never run, and nobody would be told. Its author may be long gone, so the coordinator's log is asked who it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

import structlog
from confluent_kafka import IsolationLevel, KafkaException

from schemas.errors import PipelineError
from schemas.topics import Partition
from streams.scan import LATEST, informed_admin, offsets
from streams.settings import Settings
from workers.blocking import in_thread

log = structlog.get_logger("rustfs_workers.hanging")

#: Two looks must see the same: longer than a transaction of ours may last, and than Kafka takes to end a dead one's.
INTERVAL_S: Final = 16.0
_ANSWER_S: Final = 2.0
#: Looks after which what was ended, and hangs still, is named again: Kafka may have forgotten the end a second time.
_NAME_AGAIN: Final = 8

#: For each partition where its first open transaction begins, and where it ends.
Ends = Mapping[Partition, tuple[int, int]]


class Hanging:
    """Which partitions have not moved on between two looks. Each hanging transaction is named, and again if it still hangs much later."""

    def __init__(self) -> None:
        self._open: dict[Partition, int] = {}
        #: Where it begins, and how many looks ago it was named.
        self._named: dict[Partition, tuple[int, int]] = {}

    def look(self, ends: Ends) -> set[Partition]:
        """Those whose readers stand before the same transaction as at the last look."""
        standing = {place: stable for place, (stable, end) in ends.items() if stable < end}
        self._named = {
            place: (stable, looks + 1)
            for place, (stable, looks) in self._named.items()
            if standing.get(place) == stable and looks < _NAME_AGAIN
        }
        found = {
            place
            for place, stable in standing.items()
            if self._open.get(place) == stable and place not in self._named
        }
        self._open = standing
        self._named |= {place: (standing[place], 0) for place in found}
        return found

    def again(self, places: Iterable[Partition]) -> None:
        """Nothing could be done about these: name them again."""
        for place in places:
            self._named.pop(place, None)


def ends_of(settings: Settings, numbers: Collection[int]) -> Ends:
    """In every topic that workers write to, of these partition numbers. Blocks; any thread.

    Raises:
        KafkaUnreachable: no answer in time. KafkaRefused: see ``offsets``.
    """
    places = [(topic, number) for topic in settings.topics.transactional for number in numbers]
    if not places:
        return {}
    ask = partial(offsets, settings, informed_admin(settings, _ANSWER_S), places, LATEST, timeout_s=_ANSWER_S)
    # In this order: what is written in between must not look like something that hangs.
    ends, stable = ask(), ask(isolation=IsolationLevel.READ_COMMITTED)
    return {place: (stable[place], ends[place]) for place in places}


class HangingWatch:
    """Looks after the partitions of this worker, in the event loop.

    Args:
        ends: how far readers get, asked in a thread.
        end: ends what hangs there, in a thread; False: not all of it yet.
        interval_s: seconds between two looks.
    """

    def __init__(
        self,
        ends: Callable[[], Ends],
        end: Callable[[set[Partition]], bool],
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._ends = ends
        self._end = end
        self._interval_s = interval_s
        self._hanging = Hanging()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="hanging transactions")

    async def stop(self) -> None:
        """End; harmless if it never began."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            found: set[Partition] = set()
            try:
                found = self._hanging.look(await in_thread(self._ends))
                if found:
                    log.warning("a transaction hangs", partitions=sorted(f"{t}/{n}" for t, n in found))
                    if not await in_thread(self._end, found):
                        self._hanging.again(found)
            except (KafkaException, PipelineError) as error:
                self._hanging.again(found)
                log.info("hanging transactions cannot be looked after now", error=str(error))
            except Exception:
                self._hanging.again(found)
                log.exception("hanging transactions were not looked after")
