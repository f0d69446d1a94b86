"""The poll thread: owns the consumer, and makes every call on it.

In:  records from Kafka, assignments, revocations. Out: messages for the event loop, partition states.

It never runs a handler and never waits for one, except on revocation, and then only until a deadline:
so the longest job costs no membership. What is more than the worker can hold is paused, a whole
priority at a time, and polling goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.topics import PRIORITIES, JobPriority, Topics
from streams.clients import RepeatFilter
from streams.partition_counts import changed
from streams.raw_headers import raw_headers
from workers.delay import MAX_TOTAL_BYTES
from workers.duplicates import DuplicateWindow
from workers.group_metadata import GroupMetadata
from workers.membership_watch import Held
from workers.message import Message
from workers.offsets import PartitionState, Place

if TYPE_CHECKING:
    from schemas.offsetmap import OffsetMap
    from workers.commit import Committer
    from workers.delay import Delays
    from workers.lease import Lease
    from workers.scheduler import Scheduler
    from workers.survivors import Signs
    from workers.takeover import CommittedOffsets

log = structlog.get_logger("rustfs_workers.poller")

#: Messages taken in one go before flow control looks again. They cost 8 µs each, and an urgent one waits for the round.
_ROUND: Final = 1_000
#: The same for records of retry topics: they stay in memory until they are due.
_TIER_ROUND: Final = 250
#: Records before the committed offset that a new owner looks at, of each partition: a copy of one of them may follow.
_LOOK_BACK: Final = 128
_MAX_BUFFERED_BYTES: Final = 8 * 1024 * 1024
#: Of each partition, beside those: jobs that wait behind their key cannot start, and must not keep others from being fetched.
MAX_BYTES_BEHIND_KEYS: Final = 4 * 1024 * 1024
_IDLE_POLL_S: Final = 0.1
_BUSY_POLL_S: Final = 0.005
_MEMBER_ID_EVERY_S: Final = 1.0
_POSITIONS_EVERY_S: Final = 2.0
#: What comes after the time that running jobs get: a second for the cancelled ones to end, and the last commit. Without that,
#: what has ended runs again elsewhere; on a busy machine a transaction takes more than a second.
_LAST_COMMIT_S: Final = 3.0
#: What the last transaction for partitions that come back to us may take until it has ended, one way or the other.
_SETTLED_WITHIN_S: Final = 60.0
#: After which it is said that partitions cannot be let go yet.
_UNANSWERED_FOR_S: Final = 60.0


class Poller:
    """The group member."""

    def __init__(
        self,
        *,
        make_consumer: Callable[[Callable[[KafkaError], None]], Consumer],
        topics: Topics,
        committed: CommittedOffsets,
        committer: Committer,
        scheduler: Scheduler,
        delays: Delays,
        lock: threading.Lock,
        lease: Lease,
        loop: asyncio.AbstractEventLoop,
        incarnation: str,
        transactional_id: str,
        buffer_high: int,
        buffer_low: int,
        revoke_timeout_s: float,
        now_ms: Callable[[], int],
        signs: Callable[[Mapping[str, int]], Signs],
        log_starts: Callable[[Iterable[Place]], Mapping[Place, int]],
        log_ends: Callable[[Iterable[Place]], Mapping[Place, int]],
        release: Callable[[set[PartitionState], float], Coroutine[Any, Any, None]],
        purge: Callable[[set[PartitionState]], None],
        deliver: Callable[[list[Message]], None],
        on_failure: Callable[[BaseException], None],
        on_refusal: Callable[[PipelineError], None],
        on_answer: Callable[[], None],
    ) -> None:
        self._make_consumer = make_consumer
        self._topics = topics
        self._committed = committed
        self._committer = committer
        self._scheduler = scheduler
        self._delays = delays
        self._lock = lock
        self._lease = lease
        self._loop = loop
        self._incarnation = incarnation
        self._transactional_id = transactional_id
        self._high = buffer_high
        self._low = buffer_low
        self._revoke_timeout_s = revoke_timeout_s
        self._now_ms = now_ms
        self._signs = signs
        self._log_starts = log_starts
        self._log_ends = log_ends
        self._release = release
        self._purge = purge
        self._deliver = deliver
        self._on_failure = on_failure
        self._on_refusal = on_refusal
        self._on_answer = on_answer
        #: Partitions that each topic had when the worker started; set before ``start``.
        self.partition_count: int | None = None
        self.metadata = GroupMetadata(lease)
        self._member_id_at = 0.0
        self._stop = False
        self._drain = False
        #: What is let go now goes with the membership: Kafka takes nothing more of us, whatever is on its way.
        self._closing = False
        #: A job may have ended this worker: no last map says that it left in order, or nobody would suspect what was running.
        self.leaves_unclean = False
        self.parts: dict[Place, PartitionState] = {}
        self._copies = DuplicateWindow()
        #: Partitions that are read from before their committed offset, until that is reached.
        self._looking_back: set[Place] = set()
        #: Not at the next assignment, after what was asked for had gone.
        self._may_look_back = True
        self._news = RepeatFilter()
        self._paused: set[Place] = set()
        self._paused_priorities: set[JobPriority] = set()
        self._positions_at = 0.0
        self._consumer: Consumer | None = None
        self._rejoin = False
        #: The last assignment was: the next one is taken however long it takes, or nobody would ever begin.
        self._was_late = False
        #: Inside a callback of the group: partitions are on their way.
        self._changing = False
        self._member_id = ""
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._thread.start()

    def drain(self) -> None:
        """Take no more records; polling goes on, so the membership lasts until ``stop``."""
        self._drain = True

    def stop(self, timeout_s: float) -> bool:
        """Leave the group. False: the thread did not end in time."""
        self._stop = True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def rejoin(self) -> None:
        """Leave the group in order, and join it again. Any thread; it happens at the next round."""
        self._rejoin = True

    @property
    def held(self) -> Held:
        """What the group means to us now. Any thread."""
        busy = self._changing or self._rejoin or self._stop or self._drain
        with self._lock:
            return Held(self._member_id, frozenset(self.parts), busy)

    @property
    def partitions(self) -> tuple[int, ...]:
        """Partition numbers that are ours, on any topic."""
        return tuple(sorted({partition for _, partition in list(self.parts)}))

    def _run(self) -> None:
        try:
            self._consumer = consumer = self._make_consumer(self._on_error)
            self._subscribe(consumer)
            while not self._stop:
                self._round(consumer)
        except BaseException as error:  # noqa: BLE001 - handed to whoever supervises the worker
            self._on_failure(error)
        finally:
            if self._consumer is not None:
                self._closing = True
                with contextlib.suppress(RuntimeError):
                    self._consumer.close()

    def _subscribe(self, consumer: Consumer) -> None:
        consumer.subscribe(
            list(self._topics.consumed),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def _round(self, consumer: Consumer) -> None:
        if self._rejoin and not self._drain:
            consumer.unsubscribe()
            self._subscribe(consumer)
            self._rejoin = False
            self._committer.counters.event("rejoined")
        first = consumer.poll(_BUSY_POLL_S if self._paused_priorities else _IDLE_POLL_S)
        now = time.monotonic()
        if now - self._member_id_at > _MEMBER_ID_EVERY_S:
            self._member_id_at = now
            self._member_id = consumer.memberid() or ""
        self.metadata.look_for_newer(consumer, now)
        if first is not None:
            where: Any = (first.topic(), first.partition())
            owner = self.parts.get(where)
            # poll() waits, consume() with no time does not: together they return what there is, at once
            more = consumer.consume(_TIER_ROUND if first.topic() in self._topics.tier_of else _ROUND, 0)
            # It may call us back, more than once, and drops what it has of a partition that it takes away. What it gave before
            # is up to us: where the partition has come back meanwhile, all that lies before this record would count as finished.
            self._receive([first, *more] if self.parts.get(where) is owner else more)
        self._control_flow(consumer)
        if first is None and now - self._positions_at > _POSITIONS_EVERY_S:
            self._positions_at = now
            self._note_positions(consumer)

    def _receive(self, received: list[KafkaMessage]) -> None:
        parts, priority_of, tier_of = self.parts, self._topics.priority_of, self._topics.tier_of
        messages: list[Message] = []
        # The next commit opens the way to as many, before the event loop has even seen them.
        room = self._scheduler.room(self._committer.ahead)
        is_due = False
        place: Place | None = None
        part: PartitionState | None = None
        with self._lock:
            for record in received:
                error = record.error()
                topic, partition, offset = record.topic(), record.partition(), record.offset()
                if error is not None:
                    if not self._looked_too_far_back(error, (topic or "", partition or 0)):
                        self._raise_if_final(error)
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
                if self._looking_back and offset >= part.base:
                    self._looking_back.discard((topic, partition))
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
                message.copy = self._copies.is_copy(message)
                if not is_news:
                    continue  # finished: all that matters is that it was here
                if part.suspects and offset in part.suspects:
                    message.lost_worker = bool(part.suspects[offset].alone)
                messages.append(message)
                if message.priority is not None and room[message.priority] > 0:
                    room[message.priority] -= 1
                    part.want(offset)
                    is_due = is_due or offset >= part.start_limit
        self._on_answer()
        if is_due:
            self._committer.nudge()
        if messages:
            arrived, arrived_bytes = self._scheduler.arrived, self._scheduler.arrived_bytes
            for message in messages:
                if message.priority is not None:
                    arrived[message.priority] += 1
                    arrived_bytes[message.priority] += message.size
            self._delays.arrived(messages)
            self._deliver(messages)

    def _looked_too_far_back(self, error: KafkaError, place: Place) -> bool:
        """Whether what was asked for was removed in this very moment, and is nobody's work: taken anew, without looking back."""
        if error.code() != KafkaError._AUTO_OFFSET_RESET or place not in self._looking_back:
            return False
        self._may_look_back = False
        self._rejoin = True
        return True

    @staticmethod
    def _raise_if_final(error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise KafkaException(error)
        log.warning("error while consuming", error=str(error))

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._on_failure(KafkaException(error))
        elif self._news.is_news(str(error)):
            log.info("kafka client", error=str(error))

    def _control_flow(self, consumer: Consumer) -> None:
        """Pause whole priorities that have more than enough, single partitions that must not go on, and full tiers."""
        for priority in PRIORITIES:
            buffered, size = self._scheduler.startable(priority), self._scheduler.startable_bytes(priority)
            if buffered >= self._high or size >= _MAX_BUFFERED_BYTES:
                self._paused_priorities.add(priority)
            elif buffered <= self._low and size <= _MAX_BUFFERED_BYTES // 2:
                self._paused_priorities.discard(priority)
        wanted: set[Place] = set()
        now_ms, priority_of = self._now_ms(), self._topics.priority_of
        for place, part in self.parts.items():
            its_priority, paused = priority_of.get(place[0]), place in self._paused
            if self._drain or self._is_full(part):
                wanted.add(place)
            elif its_priority is not None:
                if its_priority in self._paused_priorities or self._has_enough_behind_keys(
                    part, paused=paused
                ):
                    wanted.add(place)
            elif self._is_overdue_enough(paused=paused) or self._delays.holds_enough(
                part, now_ms, paused=paused
            ):
                wanted.add(place)
        if wanted == self._paused:
            return
        pause, resume = wanted - self._paused, self._paused - wanted
        if pause:
            consumer.pause([TopicPartition(*place) for place in pause])
        if resume:
            consumer.resume([TopicPartition(*place) for place in resume])
        self._paused = wanted

    def _is_overdue_enough(self, *, paused: bool) -> bool:
        """Whether forwarding does not keep up with what is due: the rest of it stays in Kafka."""
        return self._committer.pending_bytes * (2 if paused else 1) >= MAX_TOTAL_BYTES

    def _has_enough_behind_keys(self, part: PartitionState, *, paused: bool) -> bool:
        """Once paused it stays so until half of it is gone."""
        return self._scheduler.bytes_behind_keys(part) * (2 if paused else 1) >= MAX_BYTES_BEHIND_KEYS

    def _is_full(self, part: PartitionState) -> bool:
        if not part.full():
            return False
        # A retry topic that is overdue is full for a moment, while it is forwarded.
        if part.topic in self._topics.priority_of and self._news.is_news(f"full: {part.topic}"):
            log.warning(
                "partition stops: too many records wait or are finished behind its lowest unfinished one",
                at=f"{part.topic}/{part.partition}/{part.base}",
                behind=part.spread,
            )
        return True

    def _note_positions(self, consumer: Consumer) -> None:
        """Nothing came for a while: what lies between the last record and the position are transaction markers."""
        idle = [part for part in self.parts.values() if part.base == part.top]
        if not idle:
            return
        positions = consumer.position([TopicPartition(part.topic, part.partition) for part in idle])
        changed = False
        with self._lock:
            for tp in positions:
                part = self.parts.get((tp.topic, tp.partition))
                if part is not None and tp.offset > part.top:
                    part.note_position(tp.offset)
                    changed = True
        if changed:
            self._committer.nudge()

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        try:
            with self._change():
                self._assign(consumer, assigned)
        except BaseException as error:  # noqa: BLE001 - librdkafka would swallow it
            self._on_failure(error)
            self._stop = True

    def _assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        started = time.monotonic()
        self.metadata.take(consumer)
        self._member_id = consumer.memberid() or ""
        places = self._known(assigned)
        if not places:
            consumer.incremental_assign([])
            return
        try:
            maps = self._look_at(consumer, places)
        except KafkaUnreachable as error:
            log.warning("what is committed is not to be had", error=str(error))
            self._take_nothing(consumer, dict.fromkeys(places, OFFSET_END), started)
            return
        now_ms = self._now_ms()
        states = [
            PartitionState(
                topic,
                partition,
                maps[topic, partition],
                incarnation=self._incarnation,
                transactional_id=self._transactional_id,
                now_ms=now_ms,
                runs=topic in self._topics.priority_of,
                lock=self._lock,
            )
            for topic, partition in places
        ]
        self._acquit_the_unwritten([state for state in states if state.unclean and state.suspects])
        self._absolve(states)
        if time.monotonic() - started > self._lease.seconds and not self._was_late:
            self._take_nothing(consumer, {state.place: state.base for state in states}, started)
            return
        self._was_late = False
        with self._lock:
            for state in states:
                state.metadata = self.metadata.current
                # A drain that has begun meanwhile has marked only what was here by then.
                state.releasing = self._drain
                self.parts[state.topic, state.partition] = state
            self._committer.parts = set(self.parts.values())
        self.metadata.partitions_changed()
        starts = self._starts({state.place: state.base for state in states})
        consumer.incremental_assign(starts)
        # One that was paused when it was taken from us is still paused for librdkafka, and would be for ever.
        consumer.resume(starts)
        unclean = sorted({state.prior.incarnation for state in states if state.unclean})
        log.info(
            "partitions assigned",
            partitions=sorted({partition for _, partition in places}),
            seconds=round(time.monotonic() - started, 3),
            left_unclean_by=unclean or None,
        )
        self._on_answer()
        # The first commit opens the partitions: before it nothing of them may start.
        self._committer.nudge()

    def _look_at(self, consumer: Consumer, places: list[Place]) -> Mapping[Place, OffsetMap]:
        """What is committed of them, once nothing of ours from before can change it."""
        if not self._committer.settled(places).wait(_SETTLED_WITHIN_S):
            raise KafkaUnreachable("the transactions' coordinator", _SETTLED_WITHIN_S)
        return self._committed.for_assignment(consumer, places)

    def _take_nothing(self, consumer: Consumer, bases: Mapping[Place, int], started: float) -> None:
        """Join the group again: Kafka was away while these partitions were looked at, and somebody else may have them by now.

        A coordinator that was killed and is back within seconds can have forgotten that it gave them to us.
        """
        log.warning(
            "partitions taken too late: joining the group again",
            partitions=_numbers(bases),
            seconds=round(time.monotonic() - started, 3),
        )
        # For librdkafka they have to be assigned to be given back; what comes of them until then is nobody's.
        consumer.incremental_assign([TopicPartition(*place, base) for place, base in bases.items()])
        self._rejoin = self._was_late = True

    def _starts(self, bases: Mapping[Place, int]) -> list[TopicPartition]:
        """Where reading begins: a little before the committed offset, as far as there is something.

        The memory for copies is each owner's own: what its predecessor ran must not run again because it stands twice.
        """
        starts = dict(bases)
        behind = [place for place, base in bases.items() if base > 0] if self._may_look_back else []
        try:
            lowest = self._log_starts(behind) if behind else {}
        except (KafkaException, PipelineError) as error:
            # Its leader is away, when producers write again what they have written already. What lies too far back says so.
            log.info("where partitions begin is not to be had: looked back all the same", error=str(error))
            lowest = dict.fromkeys(behind, 0)
        for place, low in lowest.items():
            starts[place] = min(max(bases[place] - _LOOK_BACK, low), bases[place])
        self._may_look_back = True
        self._looking_back |= {place for place, start in starts.items() if start < bases[place]}
        return [TopicPartition(*place, start) for place, start in starts.items()]

    def _acquit_the_unwritten(self, states: list[PartitionState]) -> None:
        """A job that is yet to come is not charged with the death of a worker that was idle."""
        if not states:
            return
        try:
            ends = self._log_ends([state.place for state in states])
        except (KafkaException, PipelineError) as error:
            log.info(
                "where partitions end is not to be had: more is suspected than has to be", error=str(error)
            )
            return
        for state in states:
            state.acquit_from(ends[state.topic, state.partition])

    def _absolve(self, states: list[PartitionState]) -> None:
        """Who was only frozen or cut off did not die of a job: what counts because of it is taken back."""
        losses: dict[str, int] = {}
        for state in states:
            for owner, lost_ms in state.losses_in_question.items():
                losses[owner] = min(lost_ms, losses.get(owner, lost_ms))
        if losses:
            heard = self._signs(losses).heard
            for state in states:
                state.absolve(
                    {owner for owner, lost_ms in state.losses.items() if heard.get(owner, 0) > lost_ms}
                )

    def _known(self, assigned: list[TopicPartition]) -> list[Place]:
        """Those that existed when the worker started. Others mean that keys have moved: nothing is read of them."""
        count = self.partition_count
        if count is not None and (highest := max((tp.partition for tp in assigned), default=0)) >= count:
            self._on_refusal(changed(count, highest + 1))
        return [(tp.topic, tp.partition) for tp in assigned if count is None or tp.partition < count]

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        with self._change():
            self._revoke(consumer, revoked)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        with self._change():
            self._lose(consumer, lost)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        self._changing = True
        try:
            yield
        finally:
            self._changing = False

    def _revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """Let running jobs end and commit them, bounded by the deadline; then let go, when Kafka has answered what was sent."""
        started = time.monotonic()
        places = [(tp.topic, tp.partition) for tp in revoked]
        leaving = self._mark_releasing(places)
        if leaving:
            # And a second for what was cancelled to end.
            self._in_loop(self._release(leaving, self._revoke_timeout_s), self._revoke_timeout_s + 1.5)
            remaining = self._revoke_timeout_s + _LAST_COMMIT_S - (time.monotonic() - started)
            if self.leaves_unclean or not self._committer.release(leaving).wait(max(remaining, 0.5)):
                log.warning("partitions released without a last commit", partitions=_numbers(places))
        self._forget(places)
        self._await_answers(places)
        consumer.incremental_unassign(revoked)
        log.info(
            "partitions released", partitions=_numbers(places), seconds=round(time.monotonic() - started, 3)
        )

    def _await_answers(self, places: list[Place]) -> None:
        """As long as it takes: whoever has them next would not see what is committed late, and Kafka may be away for minutes.

        Nothing runs after the first of them, and the group is joined anew in the end: it waits five minutes for what it has asked
        for (``max.poll.interval.ms``), gives all that we have to others then, and we would not hear of that in here. The commit
        thread's end is an end of it as well.
        """
        answered = self._committer.answered(places)
        while not answered.wait(_LAST_COMMIT_S if self._closing else _UNANSWERED_FOR_S):
            log.warning(
                "offsets of partitions that are to be let go have no answer", partitions=_numbers(places)
            )
            if self._closing:
                return
            if not self._rejoin:
                self._rejoin = True
                self._in_loop(self._release(self._mark_releasing(list(self.parts)), 0.0), 1.5)

    def _lose(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """The group has given us up: others own these partitions already. Nothing of ours counts any more."""
        places = [(tp.topic, tp.partition) for tp in lost]
        leaving = self._mark_releasing(places)
        self._forget(places)
        self._in_loop(self._release(leaving, 0.0), 1.5)
        consumer.incremental_unassign(lost)
        self._committer.counters.event("sessions_lost")
        log.warning("partitions lost", partitions=_numbers(places))

    def _mark_releasing(self, places: Iterable[Place]) -> set[PartitionState]:
        with self._lock:
            leaving = {self.parts[place] for place in places if place in self.parts}
            for part in leaving:
                part.releasing = True
        self._loop.call_soon_threadsafe(self._purge, leaving)
        return leaving

    def _forget(self, places: Iterable[Place]) -> None:
        with self._lock:
            for place in places:
                part = self.parts.pop(place, None)
                if part is not None:
                    part.owned = False
            self._committer.parts = set(self.parts.values())
        self._paused -= set(places)
        self._looking_back -= set(places)
        self._copies.forget({partition for _, partition in places})
        self.metadata.partitions_changed()

    def _in_loop(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Run it in the event loop and wait, but not for ever: a handler may block the loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(timeout_s)
        except (FutureTimeout, asyncio.CancelledError):
            log.warning("event loop did not answer in time", seconds=timeout_s)


def _numbers(places: Iterable[Place]) -> list[int]:
    return sorted({partition for _, partition in places})
