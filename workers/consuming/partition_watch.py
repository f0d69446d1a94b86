"""Notices that somebody has changed the partition counts under a worker that runs.

In:  what the cluster says of its topics, asked for now and then. Out: one call with the ``TopicsMismatch``.

The group's coordinator tells sooner where a job topic grew, by assigning the new partition. This is for what nobody is
assigned, and for workers that are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog
from confluent_kafka import KafkaException

from schemas.errors import TopicsMismatch
from streams.partition_counts import TopicKnown, changed, equal_count
from workers.blocking import in_thread

log = structlog.get_logger("rustfs_workers.partition_watch")

INTERVAL_S = 30.0


class PartitionWatch:
    """Watches topics.

    Args:
        ask: says what topics there are; it blocks, and is called in a thread.
        names: topics that must have the same number of partitions.
        on_mismatch: called once, if they do not.
        interval_s: seconds between two looks.
        also: topics that must exist, with any number.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, TopicKnown]],
        names: Iterable[str],
        on_mismatch: Callable[[TopicsMismatch], None],
        *,
        interval_s: float = INTERVAL_S,
        also: Iterable[str] = (),
    ) -> None:
        self._ask = ask
        self._names = tuple(names)
        self._also = tuple(also)
        self._on_mismatch = on_mismatch
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    async def count(self) -> int:
        """The number of partitions.

        Raises:
            TopicsMismatch: topics are missing, or their counts differ.
            KafkaException: no answer.
        """
        return await in_thread(self._count)

    def start(self, count: int) -> None:
        """Watch that it stays ``count``."""
        self._task = asyncio.create_task(self._run(count), name="partition watch")

    async def stop(self) -> None:
        """End; harmless if it never began."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _count(self) -> int:
        return equal_count(self._ask(), self._names, self._also)

    async def _run(self, before: int) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                now = await in_thread(self._count)
            except KafkaException as error:
                log.info("partition counts not to be had now", error=str(error.args[0]))
            except TopicsMismatch as error:
                return self._on_mismatch(error)
            except Exception:
                log.exception("partitions were not counted")
            else:
                if now != before:
                    return self._on_mismatch(changed(before, now))
