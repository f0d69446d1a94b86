"""The poll thread: owns the consumer, and makes every call on it.

In:  records from Kafka, and the group's callbacks (``assignments``). Out: messages for the event loop.

It never runs a handler and never waits for one, except on revocation, and then only until a deadline:
so the longest job costs no membership. What is more than the worker can hold is paused (``flow_control``),
and polling goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from schemas.topics import Partition, Topics
from streams.clients import RepeatFilter
from streams.raw_headers import raw_headers
from workers.message import Message
from workers.offsets import PartitionState

if TYPE_CHECKING:
    from workers.committing.commit import Committer
    from workers.consuming.assignments import Assignments
    from workers.consuming.duplicates import DuplicateWindow
    from workers.consuming.flow_control import FlowControl
    from workers.consuming.look_back import LookBack
    from workers.liveness.lease import Lease
    from workers.scheduling.delay import Delays
    from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.poller")

#: Messages taken in one go before flow control looks again. They cost 8 µs each, and an urgent one waits for the round.
_ROUND: Final = 1_000
#: The same for records of retry topics: they stay in memory until they are due.
_TIER_ROUND: Final = 250
_IDLE_POLL_S: Final = 0.1
_BUSY_POLL_S: Final = 0.005
_POSITIONS_EVERY_S: Final = 2.0


class Poller:
    """The group member."""

    def __init__(
        self,
        *,
        make_consumer: Callable[[Callable[[KafkaError], None]], Consumer],
        assignments: Assignments,
        flow: FlowControl,
        look_back: LookBack,
        copies: DuplicateWindow,
        topics: Topics,
        committer: Committer,
        scheduler: Scheduler,
        delays: Delays,
        lock: threading.Lock,
        deliver: Callable[[list[Message]], None],
        on_failure: Callable[[BaseException], None],
        lease: Lease,
    ) -> None:
        self._make_consumer = make_consumer
        self._assignments = assignments
        self._flow = flow
        self._look_back = look_back
        self._copies = copies
        self._topics = topics
        self._committer = committer
        self._scheduler = scheduler
        self._delays = delays
        self._lock = lock
        self._deliver = deliver
        self._on_failure = on_failure
        self._lease = lease
        #: When there was nothing left to take, by the lease's clock: what is taken next came after that.
        self._drained_s = lease.now_s
        self._news = RepeatFilter()
        self._stop = False
        self._positions_at = 0.0
        self._consumer: Consumer | None = None
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Leave the group. False: the thread did not end in time."""
        self._stop = True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._poll()
        except BaseException as error:  # noqa: BLE001 - handed to whoever supervises the worker
            self._on_failure(error)
        finally:
            if self._consumer is not None:
                self._assignments.leave(self._consumer)

    def _poll(self) -> None:
        self._consumer = consumer = self._make_consumer(self._on_error)
        self._assignments.join(consumer)
        while not (self._stop or self._assignments.failed):
            self._round(consumer)

    def _round(self, consumer: Consumer) -> None:
        assignments = self._assignments
        assignments.keep_up(consumer)
        first = consumer.poll(_BUSY_POLL_S if self._flow.is_holding_back else _IDLE_POLL_S)
        assignments.look_at_group(consumer)
        drained_s = self._drained_s
        if first is None:
            self._drained_s = self._lease.now_s
        else:
            where: Any = (first.topic(), first.partition())
            owner = assignments.parts.get(where)
            # poll() waits, consume() with no time does not: together they return what there is, at once
            most = _TIER_ROUND if first.topic() in self._topics.tier_of else _ROUND
            more = consumer.consume(most, 0)
            if len(more) < most:
                self._drained_s = self._lease.now_s
            # It may call us back, more than once, and drops what it has of a partition that it takes away. What it gave before
            # is up to us: where the partition has come back meanwhile, all that lies before this record would count as finished.
            self._receive([first, *more] if assignments.parts.get(where) is owner else more, drained_s)
        self._flow.apply(consumer, assignments.parts, drains=assignments.drains)
        now = time.monotonic()
        if first is None and now - self._positions_at > _POSITIONS_EVERY_S:
            self._positions_at = now
            self._note_positions(consumer)

    def _receive(self, received: list[KafkaMessage], drained_s: float) -> None:
        parts, priority_of, tier_of = self._assignments.parts, self._topics.priority_of, self._topics.tier_of
        messages: list[Message] = []
        # The next commit opens the way to as many, before the event loop has even seen them.
        room = self._scheduler.room(self._committer.ahead)
        is_due = False
        place: Partition | None = None
        part: PartitionState | None = None
        with self._lock:
            for record in received:
                error = record.error()
                topic, partition, offset = record.topic(), record.partition(), record.offset()
                if error is not None:
                    self._consuming_failed(error, (topic or "", partition or 0))
                    continue
                assert topic is not None  # noqa: S101 - a record that was consumed has a place
                assert partition is not None  # noqa: S101
                assert offset is not None  # noqa: S101
                if place is None or topic != place[0] or partition != place[1]:
                    place = here = (topic, partition)
                    part = parts.get(here)
                # A partition that was revoked within this call: its new owner reads it from the committed offset.
                if part is None or not part.owned:
                    continue
                self._look_back.arrived(place, offset, part.base)
                is_news = part.note_delivered(offset)
                message = Message(
                    part,
                    offset,
                    record.key(),
                    record.value(),
                    raw_headers(record),
                    record.timestamp()[1],
                    priority_of.get(topic),
                    tier_of.get(topic),
                )
                message.copy = self._copies.is_copy(message, is_finished=not is_news)
                if not is_news:
                    continue  # finished: all that matters is that it was here
                if part.suspects and offset in part.suspects:
                    message.lost_worker = bool(part.suspects[offset].alone)
                messages.append(message)
                if message.priority is not None and room[message.priority] > 0:
                    room[message.priority] -= 1
                    part.want(offset)
                    is_due = is_due or offset >= part.start_limit
        if place is not None:  # librdkafka has errors of its own, which are no answer of Kafka's
            self._lease.answered(drained_s)
        if is_due:
            self._committer.nudge()
        if messages:
            self._scheduler.note_arrived(messages)
            self._delays.arrived(messages)
            self._deliver(messages)

    def _consuming_failed(self, error: KafkaError, place: Partition) -> None:
        is_gone = error.code() == KafkaError._AUTO_OFFSET_RESET
        if is_gone and self._look_back.give_up(place):
            self._assignments.rejoin()
        elif is_gone or error.fatal():
            raise KafkaException(error)
        else:
            log.warning("error while consuming", error=str(error))

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._on_failure(KafkaException(error))
        elif self._news.is_news(str(error)):
            log.info("kafka client", error=str(error))

    def _note_positions(self, consumer: Consumer) -> None:
        """Nothing came for a while: what lies between the last record and the position are transaction markers."""
        idle = [part for part in self._assignments.parts.values() if part.base == part.top]
        if not idle:
            return
        positions = consumer.position([TopicPartition(part.topic, part.partition) for part in idle])
        changed = False
        with self._lock:
            for tp in positions:
                part = self._assignments.parts.get((tp.topic, tp.partition))
                if part is not None and tp.offset > part.top:
                    part.note_position(tp.offset)
                    changed = True
        if changed:
            self._committer.nudge()
