"""Which partitions are ours: how they come, and how they are given up.

In:  the group's callbacks, in the poll thread. Out: partition states for whoever reads, runs and commits.

A partition that comes is looked at before anything of it is read: what is committed, who of it is suspected of a death, and
whether we were too slow and somebody else may have it by now. One that goes takes its running jobs with it, bounded by a
deadline, and is let go when no transaction of it is on its way or in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.topics import Partition, Topics
from streams.partition_counts import changed
from workers.consuming.group_metadata import GroupMetadata
from workers.consuming.membership_watch import Held
from workers.offsets import PartitionState

if TYPE_CHECKING:
    from schemas.offsetmap import OffsetMap
    from workers.committing.commit import Committer
    from workers.committing.holdings import Holdings
    from workers.consuming.look_back import LookBack
    from workers.consuming.takeover import CommittedOffsets
    from workers.liveness.lease import Lease
    from workers.liveness.survivors import Signs

log = structlog.get_logger("rustfs_workers.assignments")

_MEMBER_ID_EVERY_S: Final = 1.0
#: What comes after the time that running jobs get: a second for the cancelled ones to end, and the last commit. Without that,
#: what has ended runs again elsewhere; on a busy machine a transaction takes more than a second.
_LAST_COMMIT_S: Final = 3.0
#: What the last transaction for partitions that come back to us may take until it has ended, one way or the other.
_SETTLED_WITHIN_S: Final = 60.0
#: So many more times the last commit is waited for if the transaction before it has no answer. Not for ever: whoever has much to
#: write has always something on its way.
_LATE_COMMITS: Final = 3
#: After which it is said that partitions cannot be let go yet.
_UNANSWERED_FOR_S: Final = 60.0
#: The same for whoever leaves, and then goes: somebody waits for its end, and may kill it.
_LEAVING_S: Final = 10.0


class Memory(Protocol):
    """Knows something of partitions that are ours."""

    def forget(self, places: Collection[Partition], /) -> None:
        """These are ours no longer: who gets them back begins anew."""


class Assignments:
    """For the poll thread, except where it says otherwise.

    Args:
        revoke_timeout_s: seconds that running jobs get when their partition goes.
        now_ms: broker time, in milliseconds since 1970.
        log_ends: where partitions end. Raises KafkaException or PipelineError.
        release: ends the jobs of partitions in the event loop, and cancels them after so many seconds.
        purge: forgets the jobs of partitions that have not begun. For the event loop.
        runs_on: whether anything of partitions still runs. Any thread.
        memories: what has to forget a partition when it goes.
        on_failure: the worker cannot go on.
        on_refusal: the worker must not go on, and can leave in order.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        committed: CommittedOffsets,
        committer: Committer,
        holdings: Holdings,
        look_back: LookBack,
        lease: Lease,
        loop: asyncio.AbstractEventLoop,
        incarnation: str,
        transactional_id: str,
        revoke_timeout_s: float,
        now_ms: Callable[[], int],
        signs: Callable[[Mapping[str, int]], Signs],
        log_ends: Callable[[Iterable[Partition]], Mapping[Partition, int]],
        release: Callable[[set[PartitionState], float], Coroutine[Any, Any, None]],
        purge: Callable[[set[PartitionState]], None],
        runs_on: Callable[[set[PartitionState]], bool],
        memories: Collection[Memory],
        on_failure: Callable[[BaseException], None],
        on_refusal: Callable[[PipelineError], None],
    ) -> None:
        self._topics = topics
        self._committed = committed
        self._committer = committer
        self._look_back = look_back
        self._holdings = holdings
        self._lock = holdings.lock
        self._lease = lease
        self._loop = loop
        self._incarnation = incarnation
        self._transactional_id = transactional_id
        self._revoke_timeout_s = revoke_timeout_s
        self._now_ms = now_ms
        self._signs = signs
        self._log_ends = log_ends
        self._release = release
        self._purge = purge
        self._runs_on = runs_on
        self._memories = memories
        self._on_failure = on_failure
        self._on_refusal = on_refusal
        #: Partitions that each topic had when the worker started; set before it joins.
        self.partition_count: int | None = None
        self.parts: dict[Partition, PartitionState] = {}
        self.metadata = GroupMetadata(lease)
        #: A job may have ended this worker: no last map says that it left in order, or nobody would suspect what was running.
        self.leaves_unclean = False
        #: No record is taken any more, and nobody joins anew.
        self.drains = False
        #: Partitions could not be taken: there is no point in going on.
        self.failed = False
        #: What is let go now goes with the membership.
        self._closing = False
        self._rejoin = False
        #: The last assignment was: the next one is taken however long it takes, or nobody would ever begin.
        self._was_late = False
        #: Inside a callback of the group: partitions are on their way.
        self._changing = False
        self._member_id = ""
        self._member_id_at = 0.0

    @property
    def held(self) -> Held:
        """What the group means to us now. Any thread."""
        busy = self._changing or self._rejoin or self.drains
        with self._lock:
            return Held(self._member_id, frozenset(self.parts), busy)

    @property
    def partitions(self) -> tuple[int, ...]:
        """Partition numbers that are ours, on any topic. Any thread."""
        return tuple(sorted({partition for _, partition in list(self.parts)}))

    def rejoin(self) -> None:
        """Leave the group in order, and join it again. Any thread; it happens at the next round."""
        self._rejoin = True

    def join(self, consumer: Consumer) -> None:
        """Become a member; partitions come while it is polled."""
        consumer.subscribe(
            list(self._topics.consumed),
            on_assign=self.on_assign,
            on_revoke=self.on_revoke,
            on_lost=self.on_lost,
        )

    def keep_up(self, consumer: Consumer) -> None:
        """Once in each round, before it is polled: join anew if that is due."""
        if self._rejoin and not self.drains:
            consumer.unsubscribe()
            self.join(consumer)
            self._rejoin = False
            self._committer.counters.event("rejoined")

    def look_at_group(self, consumer: Consumer) -> None:
        """Once in each round, when it has been polled."""
        now = time.monotonic()
        if now - self._member_id_at > _MEMBER_ID_EVERY_S:
            self._member_id_at = now
            self._member_id = consumer.memberid() or ""
        self.metadata.look_for_newer(consumer, now)

    def leave(self, consumer: Consumer) -> None:
        """Leave the group for good, and close the consumer."""
        self._closing = True
        with contextlib.suppress(RuntimeError):
            consumer.close()

    # --- they come ----------------------------------------------------------------------------------

    def on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """The group gives us these."""
        try:
            with self._change():
                self._assign(consumer, assigned)
        except BaseException as error:  # noqa: BLE001 - librdkafka would swallow it
            self._on_failure(error)
            self.failed = True

    def _assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        started, asked_s = time.monotonic(), self._lease.now_s
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
        states = self._states(maps)
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
                state.releasing = self.drains
                self.parts[state.topic, state.partition] = state
            self._holdings.own(self.parts.values())
        self.metadata.partitions_changed()
        starts = self._look_back.starts({state.place: state.base for state in states})
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
        self._lease.answered(asked_s)
        # The first commit opens the partitions: before it nothing of them may start.
        self._committer.nudge()

    def _look_at(self, consumer: Consumer, places: list[Partition]) -> Mapping[Partition, OffsetMap]:
        """What is committed of them, once nothing of ours from before can change it."""
        if not self._holdings.settled(places).wait(_SETTLED_WITHIN_S):
            raise KafkaUnreachable("the transactions' coordinator", _SETTLED_WITHIN_S)
        return self._committed.for_assignment(consumer, places)

    def _states(self, maps: Mapping[Partition, OffsetMap]) -> list[PartitionState]:
        now_ms = self._now_ms()
        return [
            PartitionState(
                topic,
                partition,
                found,
                incarnation=self._incarnation,
                transactional_id=self._transactional_id,
                now_ms=now_ms,
                runs=topic in self._topics.priority_of,
                lock=self._lock,
            )
            for (topic, partition), found in maps.items()
        ]

    def _take_nothing(self, consumer: Consumer, bases: Mapping[Partition, int], started: float) -> None:
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

    def _known(self, assigned: list[TopicPartition]) -> list[Partition]:
        """Those that existed when the worker started. Others mean that keys have moved: nothing is read of them."""
        count = self.partition_count
        if count is not None and (highest := max((tp.partition for tp in assigned), default=0)) >= count:
            self._on_refusal(changed(count, highest + 1))
        return [(tp.topic, tp.partition) for tp in assigned if count is None or tp.partition < count]

    # --- they go ------------------------------------------------------------------------------------

    def on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """The group asks for these."""
        with self._change():
            self._revoke(consumer, revoked)

    def on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """The group has given these to others."""
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
        """Let running jobs end and commit them, bounded by the deadline; then let go, when nothing is on its way or in doubt."""
        started = time.monotonic()
        places = [(tp.topic, tp.partition) for tp in revoked]
        leaving = self._mark_releasing(places)
        try:
            if leaving:
                self._let_end(leaving, places, started)
        finally:
            # Whatever went wrong: they go, and no commit of ours may have them any more.
            self._await(self._holdings.let_go(places), places)
            self._forget(places)
            consumer.incremental_unassign(revoked)
        log.info(
            "partitions released", partitions=_numbers(places), seconds=round(time.monotonic() - started, 3)
        )

    def _let_end(self, leaving: set[PartitionState], places: list[Partition], started: float) -> None:
        # And a second for what was cancelled to end.
        self._in_loop(self._release(leaving, self._revoke_timeout_s), self._revoke_timeout_s + 1.5)
        remaining = self._revoke_timeout_s + _LAST_COMMIT_S - (time.monotonic() - started)
        # What goes on, being deaf or holding the event loop, may yet kill this process: then it is to be suspected.
        runs = self._runs_on(leaving)
        if runs:
            log.warning("partitions released though handlers go on there", partitions=_numbers(places))
        last = None if self.leaves_unclean else self._committer.release(leaving, clean=not runs)
        if last is None or not self._has_come(last, places, max(remaining, 0.5)):
            log.warning("partitions released without a last commit", partitions=_numbers(places))

    def _has_come(self, last: threading.Event, places: list[Partition], timeout_s: float) -> bool:
        """Whether the last commit has been made. While the one before has no answer, or what it has left is written, it may be late."""
        for _ in range(_LATE_COMMITS):
            if last.wait(timeout_s):
                return True
            free = self._holdings.free(places)
            if free.is_set() or self._closing:  # who leaves has had its drain
                return False
            self._await(free, places)
            timeout_s = _LAST_COMMIT_S
        return last.wait(timeout_s)

    def _await(self, free: threading.Event, places: list[Partition]) -> None:
        """As long as it takes: whoever has them next would not see what is committed late, and Kafka may be away for minutes.

        Nothing runs after the first of them, and the group is joined anew in the end: it waits five minutes for what it has asked
        for (``max.poll.interval.ms``), gives all that we have to others then, and we would not hear of that in here. The commit
        thread's end is an end of it as well.
        """
        told = False
        while not free.wait(_LEAVING_S if self._closing else _UNANSWERED_FOR_S):
            log.warning(
                "a transaction of partitions that are to be let go has no end", partitions=_numbers(places)
            )
            if self._closing:
                return
            self._rejoin = True
            if not told:
                told = True
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

    def _mark_releasing(self, places: Iterable[Partition]) -> set[PartitionState]:
        with self._lock:
            leaving = {self.parts[place] for place in places if place in self.parts}
            for part in leaving:
                part.releasing = True
        self._loop.call_soon_threadsafe(self._purge, leaving)
        return leaving

    def _forget(self, places: Collection[Partition]) -> None:
        with self._lock:
            for place in places:
                part = self.parts.pop(place, None)
                if part is not None:
                    part.owned = False
            self._holdings.own(self.parts.values())
        for memory in self._memories:
            memory.forget(places)
        self.metadata.partitions_changed()

    def _in_loop(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Run it in the event loop and wait, but not for ever: a handler may block the loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(timeout_s)
        except (FutureTimeout, FutureCancelled):
            log.warning("event loop did not answer, or was ended", seconds=timeout_s)


def _numbers(places: Iterable[Partition]) -> list[int]:
    return sorted({partition for _, partition in places})
