"""What one worker asks of Kafka, and the clients that it makes for that.

In:  settings. Out: consumers and producers with a worker's configuration, answers.

Whoever works with the answers gets these as functions, and does not know of any client: tests and the simulation give their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # it has no __all__

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.topics import Partition
from streams.clients import KafkaRefused, admin_config, producer_config, worker_consumer_config
from streams.clients import log as client_log
from streams.group_members import Member, describe_member
from streams.provision import ASK_FOR_TIMES, GroupTimes, group_times
from streams.scan import informed_admin, offsets
from streams.settings import Settings
from streams.visible import Written, visible_records
from workers.consuming.membership_watch import lost_heartbeats

log = structlog.get_logger("rustfs_workers.connections")

#: A takeover waits for it; without an answer it does without.
_OFFSETS_S: Final = 2.0
#: For what an ambiguous commit left, one try of several; a busy topic has hundreds of thousands of records since its begin.
_VISIBLE_S: Final = 20.0
_PAUSE_S: Final = 0.5
#: A worker that is started beside a Kafka which comes and goes waits for it.
_GROUP_TIMES_S: Final = 20.0
#: So far the clocks of brokers may be apart.
_CLOCKS_DIFFER_MS: Final = 30_000


class Connections:
    """Safe for any thread; what it makes is for one, as always with Kafka's clients."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def consumer(self, on_error: Any, *, on_lost_heartbeat: Callable[[], None]) -> Consumer:
        """A member of the group; both are called in the thread that polls it."""
        logger = lost_heartbeats(on_lost_heartbeat, onward=client_log)
        config = worker_consumer_config(self._settings, self._settings.topics.group, logger=logger)
        return Consumer({**config, "error_cb": on_error})

    def producer(self, transactional_id: str, logger: Any) -> Producer:
        """For the commit thread."""
        config = producer_config(
            self._settings, transactional_id=transactional_id, linger_ms=1, logger=logger
        )
        # Success is known from the commit: a report per record would cost a microsecond each.
        return Producer({**config, "delivery.report.only.error": True})

    def heir(self, transactional_id: str) -> Producer:
        """For whoever ends what a dead worker left open."""
        return Producer(producer_config(self._settings, transactional_id=transactional_id))

    def reporter(self) -> Producer:
        """For what a worker says of itself."""
        return Producer(producer_config(self._settings, linger_ms=0))

    def read_visible(self, records: Collection[Written], since_ms: int) -> set[Written]:
        """Which of these can be read. Blocks, for twenty seconds at most.

        Raises:
            PipelineError: after half a second at the least: it is asked for again, and each question costs a client.
        """
        try:
            return visible_records(
                self._settings, records, since_ms - _CLOCKS_DIFFER_MS, timeout_s=_VISIBLE_S
            )
        except PipelineError:
            time.sleep(_PAUSE_S)
            raise

    def offsets(self, spec: OffsetSpec, places: Iterable[Partition]) -> dict[Partition, int]:
        """Where these partitions begin or end. Blocks for some seconds at most.

        Raises:
            KafkaUnreachable, KafkaRefused.
        """
        admin = informed_admin(self._settings, _OFFSETS_S)
        return offsets(self._settings, admin, places, spec, timeout_s=_OFFSETS_S)

    def group_times(self) -> GroupTimes | None:
        """Session and heartbeat that the group's coordinator grants; None: it does not say. Blocks, for half a minute at most.

        Raises:
            KafkaUnreachable: it does not answer. Not to know is no reason to go on: the lease depends on it.
        """
        deadline = time.monotonic() + _GROUP_TIMES_S
        while True:
            try:
                return group_times(self._settings, AdminClient(admin_config(self._settings)))
            except KafkaRefused as error:
                log.warning("the group's session is not known", error=str(error), remedy=ASK_FOR_TIMES)
                return None
            except KafkaUnreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    async def member(self, member_id: str, *, timeout_s: float = 5.0) -> Member | None:
        """What the group's coordinator thinks of this member.

        Raises:
            KafkaUnreachable: it does not answer.
        """
        group = self._settings.topics.group
        return await describe_member(self._settings, group, member_id, timeout_s=timeout_s)
