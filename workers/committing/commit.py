"""The commit thread: each tick, one Kafka transaction with everything that came to an end.

In:  outcomes. Out: status changes, retries, dead letters, child jobs and offsets, all or nothing.

The fence is the group metadata. With the newest ones Kafka looks at the member's epoch alone, not at who
owns a partition; with older ones it takes the offsets of what the member has kept since then (KIP-1251,
Kafka 4.3). So each partition's offsets are sent with metadata from its own assignment: if it was given
away in between they are refused, even if it has come back, and even if the coordinator had forgotten
that it was ours and nobody has told us. What was accepted was ours up to then, and goes on with newer
ones. Refused ones are not renewed before the coordinator has had the time to tell us what it took, nor
if somebody else has committed for the partition. What is lost and comes straight back was never given
away in Kafka's eyes, and the old metadata still count: so whoever begins anew with it first waits
(``Holdings.settled``).

An epoch rises with what a member is given, not with each partition that it lets go: one that gives up some, and is asked
for more at once, keeps its epoch, and Kafka would take offsets of what others have by then. So nothing is let go while
offsets of it are on their way (``workers.committing.holdings``), and none are sent of what has been let go.

What follows from an answer that cannot be trusted is ``workers.committing.recovery``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import Producer, TopicPartition

from schemas.codec import Codec
from schemas.errors import DeliveryFailed, GroupNotInitialised
from schemas.lifecycle import JobStatus
from schemas.offsetmap import MAX_CHARACTERS, OffsetMap
from schemas.records import StatusChange
from workers.committing.commit_queue import LEAST_BATCH_BYTES, CommitQueue, forwarded
from workers.committing.counters import Counters
from workers.committing.holdings import Holdings
from workers.committing.recovery import Recovery
from workers.committing.router import Router
from workers.committing.standing import ReadBack, ReadVisible, Standing
from workers.committing.torn import Left
from workers.committing.transactions import (
    Ambiguous,
    GivenAway,
    LostBetween,
    NobodyWaits,
    NotCommitted,
    Refused,
    Stale,
    Transactions,
    forget_frames,
)
from workers.liveness.lease import Lease
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import COMMIT_REQUEST, NOT_KEPT, NOT_WRITABLE, Outcome

log = structlog.get_logger("rustfs_workers.commit")

#: After so many tries without a clear answer, in more than a minute, a single large outcome is taken for too large: all partitions
#: of this worker wait for it, and those of each heir would. A broker that comes and goes is no proof.
_MOST_DOUBTS: Final = 10
_MOST_DOUBTS_S: Final = 60.0
_PATIENCE_AT_STOP: Final = 5
#: Pause before metadata that were refused are sent again.
_LOOK_AGAIN_S: Final = 1.0


class Membership(Protocol):
    """What the poll thread knows of the group."""

    @property
    def metadata(self) -> Any:
        """Of the last assignment; None before the first."""
        ...

    def refused(self, timeout_s: float) -> Any:
        """Kafka refuses metadata of ours: wait until partitions have changed, or newer ones, which are returned, may be tried."""
        ...

    def rejoin(self) -> None:
        """Let the poll thread leave the group, and join it again."""
        ...


class Committer:
    """Decides what goes into each transaction.

    ``emit`` is for the event loop; the other public names are for any thread, the rest is for its own.
    """

    def __init__(
        self,
        *,
        make_producer: Callable[[logging.Logger], Producer],
        membership: Membership,
        read_back: ReadBack,
        read_visible: ReadVisible,
        codec: Codec,
        router: Router,
        worker_name: str,
        holdings: Holdings,
        tick_ms: int,
        on_committed: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        end_forgotten: Callable[[], None] = lambda: None,
        on_fenced: Callable[[], None] = lambda: None,
        upcoming: Callable[[int], Iterable[Message]],
        lease: Lease,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        job_types: Iterable[str] = (),
        queue: CommitQueue | None = None,
    ) -> None:
        self._membership = membership
        self._now_ms = now_ms
        self._router = router
        self._worker = worker_name
        self._holdings = holdings
        self._tick_s = tick_ms / 1000
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._on_fenced = on_fenced
        self._upcoming = upcoming
        self._transactions = Transactions(
            make_producer=make_producer,
            codec=codec,
            topics=router.topics,
            worker_name=worker_name,
            lease=lease,
            given_up=lambda: self._stop,
            may_send=holdings.may_send,
            may_commit=holdings.may_commit,
        )
        self._queue = CommitQueue() if queue is None else queue
        self._wake = threading.Event()
        self._stop = False
        self._releases: list[tuple[frozenset[PartitionState], threading.Event]] = []
        self.counters = Counters(job_types)
        standing = Standing(
            read_back=read_back,
            read_visible=read_visible,
            end_forgotten=end_forgotten,
            renew=self._transactions.renew,
            given_up=lambda: self._stop,
            counters=self.counters,
        )
        self._recovery = Recovery(
            holdings=holdings, transactions=self._transactions, standing=standing, rejoin=membership.rejoin
        )
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def start(self) -> None:
        """Begin; the producer is made, and its predecessor's transaction ended, in the thread."""
        self._thread.start()

    def emit(self, outcome: Outcome) -> None:
        """Something to write with the next tick; for the event loop. Never blocks."""
        # Each slot that finds nothing to start asks for a commit: those that carry little would carry nothing else.
        if outcome is not COMMIT_REQUEST:
            self._queue.put(outcome)
        if not self._wake.is_set():
            self._wake.set()

    def nudge(self) -> None:
        """Partitions have changed: look for dirty ones."""
        self._wake.set()

    def prove(self) -> None:
        """Commit something soon, whether or not there is any news: it shows that the group still knows us."""
        with self._holdings.lock:
            for part in self._holdings.parts:
                part.dirty = True
        self._wake.set()

    def release(self, parts: Iterable[PartitionState], *, clean: bool = True) -> threading.Event:
        """Commit a last time for these partitions; the event is set when that is done or given up. Any thread.

        ``clean``: with the flag that says that nothing of them runs any more.
        """
        done = threading.Event()
        with self._holdings.lock:
            self._releases.append((frozenset(parts) if clean else frozenset(), done))
        self._wake.set()
        return done

    def stop(self, timeout_s: float) -> bool:
        """Write what is left and end. False: it did not end in time."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def ahead(self) -> int:
        """How many jobs may start before the next commit. Any thread."""
        return self._queue.ahead

    @property
    def pending(self) -> int:
        """Outcomes that wait for their transaction."""
        return len(self._queue)

    @property
    def pending_bytes(self) -> int:
        """What they hold in memory for the records that they write. Any thread."""
        return self._queue.pending_bytes

    def _run(self) -> None:
        try:
            self._transactions.renew()
            last = 0.0
            while True:
                self._wake.wait()
                if not self._stop:
                    pause = last + self._tick_s - time.monotonic()
                    if pause > 0 and not self._queue.is_full and not self._releases:
                        time.sleep(pause)
                self._wake.clear()
                last = time.monotonic()
                worked = self._tick()
                if self._stop and not worked and not self._queue and not self._releases:
                    return
                if self._queue or self._stop:
                    self._wake.set()
        except NobodyWaits as error:
            log.warning(
                "no Kafka at the end: what has ended since the last commit runs again elsewhere",
                error=str(error),
            )
        except BaseException as error:  # noqa: BLE001 - handed to whoever supervises the worker
            self._on_failure(error)
        finally:
            self._transactions.close()
            with self._holdings.lock:
                self._holdings.end_doubt()
            for _, done in self._releases:
                done.set()

    def _tick(self) -> bool:
        """One transaction, if there is anything to write. True if outcomes were taken."""
        releases: list[tuple[frozenset[PartitionState], threading.Event]] = []
        with self._holdings.lock:
            portion = self._queue.take()
            # A release is the last commit: what ended before it and does not fit into this transaction goes first.
            if portion.is_last:
                releases, self._releases = self._releases, []
        released = {part for parts, _ in releases for part in parts}
        try:
            self._commit(portion.outcomes, released)
        finally:
            self._queue.wrote(portion)
            with self._holdings.lock:
                self._holdings.end_doubt()
            for _, done in releases:
                done.set()
        return bool(portion.outcomes)

    def _commit(
        self,
        outcomes: list[Outcome],
        released: set[PartitionState],
        doubts: int = 0,
        began_ms: int | None = None,
    ) -> None:
        """Bring these outcomes into Kafka, whatever it takes; drop those whose partition is lost.

        ``doubts``: how often transactions with them had no clear answer, as far as that may have been their size. ``began_ms``:
        when the first of those whose records nobody has looked for began.
        """
        failures = refusals = 0
        tried_since = time.monotonic()
        # By the clock that stamps records, and now: a machine that sleeps in between counts no time.
        began_ms = self._now_ms() if began_ms is None else began_ms
        while True:
            with self._holdings.lock:
                # Under the lock: a partition must not be planned whose own metadata are newer.
                newest = self._membership.metadata
                outcomes, plans = self._plan(outcomes, released)
            if not outcomes and not plans:
                return
            wrote_since = time.monotonic()
            try:
                self._transactions.write(outcomes, _to_commit(plans))
            except NotCommitted as reason:
                with self._holdings.lock:
                    for part in plans:
                        part.dirty = True
                    doubtful = self._holdings.doubtful
                    self._note(reason, doubtful.union(plans))
                forget_frames(reason)
                error = reason
            else:
                self._queue.take_more_after(outcomes, time.monotonic() - wrote_since)
                self._committed(outcomes, plans, newest, began_ms)
                return
            failures += 1
            match error:
                case Ambiguous():
                    log.warning("commit without a clear answer", error=str(error), outcomes=len(outcomes))
                    self.counters.event("ambiguous_commits")
                    if error.fenced:
                        self.counters.event("fenced")
                        self._on_fenced()
                    recovering_ms = self._now_ms()
                    outcomes, is_known = self._recover(outcomes, began_ms, doubtful)
                    if is_known:
                        began_ms = recovering_ms
                    doubts += 1
                    if doubts > 1 and self._queue.take_less_than(outcomes):
                        self._in_portions(outcomes, released, began_ms)
                        return
                    tried_s = time.monotonic() - tried_since
                    if (
                        is_known
                        and doubts >= _MOST_DOUBTS
                        and tried_s > _MOST_DOUBTS_S
                        and _stands_in_the_way(outcomes)
                    ):
                        self._divide(outcomes, released, f"{error}, {doubts} times: it may be too large")
                        return
                case LostBetween():
                    outcomes = [*self._look_back(doubtful), *outcomes]
                case GivenAway():
                    self.counters.event("given_away")
                case Stale():
                    log.info("group metadata was stale", error=str(error))
                    self.counters.event("stale_metadata")
                    newer = self._membership.refused(_LOOK_AGAIN_S)
                    if newer is not None:
                        self._recovery.go_on_with(newer, outcomes)
                    if self._stop and failures > _PATIENCE_AT_STOP:
                        return  # the group is gone, and so are our partitions
                case Refused():
                    refusals += 1
                    log.warning("transaction refused", error=str(error), outcomes=len(outcomes))
                    if refusals > 1:
                        self._divide(outcomes, released, str(error))
                        return

    def _note(self, reason: NotCommitted, written: frozenset[PartitionState]) -> None:
        """What that means to whoever is asked for these partitions. Under the lock."""
        match reason:
            case Ambiguous():
                self._holdings.doubt(written | self._recovery.in_question)
            case LostBetween():
                self._holdings.doubt(self._holdings.doubtful | self._recovery.in_question)
                self._holdings.settle()
            case Stale():
                # It waits for news of the group, and who brings them must not wait for this.
                self._holdings.end_doubt()
            case _:
                self._holdings.settle()

    def _in_portions(self, outcomes: list[Outcome], released: set[PartitionState], began_ms: int) -> None:
        """As many at a time as may go now, which may become less on the way: what is too much is found out once."""
        while 0 < (some := self._queue.how_many(outcomes)) < len(outcomes):
            # One more doubt is enough to make them smaller still.
            self._commit(outcomes[:some], set(), doubts=1, began_ms=began_ms)
            outcomes = outcomes[some:]
        self._commit(outcomes, released, doubts=1, began_ms=began_ms)

    def _plan(
        self, outcomes: list[Outcome], released: set[PartitionState]
    ) -> tuple[list[Outcome], dict[PartitionState, OffsetMap]]:
        """The outcomes that are still ours, and the maps to commit with them. Under the lock.

        Sets aside what is beyond reach, opens the way to upcoming jobs, and marks the partitions as unsettled.
        """
        kept: list[Outcome] = []
        finished: dict[PartitionState, list[int]] = {}
        #: A transaction without offsets is not fenced: the news of a frozen owner would land behind its heir's end.
        told_of: set[PartitionState] = set()
        for outcome in outcomes:
            message = outcome.message
            if outcome.late:
                # What it belongs to is finished: whoever owns the partition now will not write it. But a retry that stands may
                # have run there since, and "retrying" must not be the last word about its job.
                if _is_overtaken(outcome):
                    self.counters.event("fenced_outcomes")
                    continue
            elif message is not None:
                if not message.part.owned:
                    self.counters.event("fenced_outcomes")
                    continue
                if message.part.is_beyond_reach(message.offset):
                    self._queue.set_aside(outcome)
                    continue
                offsets = finished.get(message.part)
                if offsets is None:
                    offsets = finished[message.part] = []
                offsets.append(message.offset)
            elif outcome.owner is None or not outcome.owner.part.owned:
                continue
            else:
                told_of.add(outcome.owner.part)
            kept.append(outcome)
        # One that runs beside nothing else: the others' maps say so, or its death would count for what only waited.
        resting = any(part.alone is not None for part in self._holdings.parts if part.owned)
        if not resting:
            for message in self._upcoming(self.ahead):
                message.part.want(message.offset)
        plans = {
            part: part.plan(finished.get(part, ()), clean=part in released, resting=resting)
            for part in self._holdings.parts
            if part.owned
            and (
                part.dirty
                or part in finished
                or part in told_of
                or part in released
                or part.resting != part.rests(resting=resting)
            )
        }
        self._holdings.begin(plans)
        return kept, plans

    def _recover(
        self, outcomes: list[Outcome], began_ms: int, doubtful: frozenset[PartitionState]
    ) -> tuple[list[Outcome], bool]:
        """After an ambiguous commit: count what Kafka shows, and go on with the rest. The flag: whether that is known.

        ``doubtful``: what was so before.
        """
        left, is_known = self._recovery.recover(outcomes, began_ms)
        for outcome in left.standing:
            self._count(outcome)
        self._take_up(left, doubtful, is_known=is_known)
        self._on_committed()
        return left.missing, is_known

    def _look_back(self, doubtful: frozenset[PartitionState]) -> list[Outcome]:
        """After a loss between two transactions: what is missing of the last one."""
        left, is_known = self._recovery.look_back(self._now_ms())
        self._take_up(left, doubtful, is_known=is_known)
        return left.missing

    def _take_up(self, left: Left, doubtful: frozenset[PartitionState], *, is_known: bool) -> None:
        if is_known:
            with self._holdings.lock:
                self._holdings.doubt(doubtful | left.without_offsets)
                self._holdings.settle()
        if left.torn:
            self.counters.event("torn_transactions")
            log.warning("Kafka has kept a part of a transaction; the rest is written now", outcomes=left.torn)

    def _divide(self, outcomes: list[Outcome], released: set[PartitionState], error: str) -> None:
        """The same refusal twice: find the outcome that cannot be written, so that it stops nobody else."""
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            self._commit(outcomes[:middle], set())
            self._commit(outcomes[middle:], released)
            return
        if not outcomes:
            raise GroupNotInitialised(f"Kafka refuses the offsets of this group: {error}")
        (outcome,) = outcomes
        if outcome.message is None:
            what = "the rest of an outcome" if outcome.late else "news"
            where = outcome.owner.where if outcome.owner is not None else ""
            log.error("dropped, since Kafka refuses it", what=what, at=where, error=error)
            self._commit([], released)
            return
        if outcome.event == NOT_KEPT:
            raise DeliveryFailed(f"the dead letter of {outcome.message.where} was refused as well: {error}")
        log.error("outcome cannot be written", at=outcome.message.where, error=error)
        bounded = self._router.not_writable(
            outcome,
            error,
            self._worker,
            time.time_ns() // 1_000_000,
            bare=outcome.event == NOT_WRITABLE,
        )
        self._commit([bounded], released)

    def _committed(
        self, outcomes: list[Outcome], plans: dict[PartitionState, OffsetMap], newest: Any, began_ms: int
    ) -> None:
        """``newest``: metadata from before the transaction, through which all of these have been ours, as Kafka has shown now."""
        with self._holdings.lock:
            before = {part.place: (part.base, part.done) for part in plans}
            for part, plan in plans.items():
                part.committed(plan)
                part.metadata = newest
            self._holdings.settle()
        if self._queue.has_set_aside:
            self._wake.set()
        self._recovery.remember(outcomes, before, began_ms)
        if outcomes:
            self.counters.event("transactions")
        for outcome in outcomes:
            self._count(outcome)
        self._on_committed()

    def _count(self, outcome: Outcome) -> None:
        if outcome.counts_as is not None:
            self.counters.job(outcome.counts_as)
            if isinstance(outcome.status, StatusChange):
                self.counters.add(outcome.status.type, outcome.status.metrics)
        if outcome.event is not None:
            self.counters.event(outcome.event)
        status = outcome.status
        if isinstance(status, StatusChange) and status.state is JobStatus.FAILED:
            log.info(
                "job dead-lettered",
                job_id=status.job_id,
                type=status.type,
                attempt=status.attempt,
                error_type=status.error_type,
                error=status.error_message,
            )


def _is_overtaken(outcome: Outcome) -> bool:
    """Whether only a status that is not final is missing, and the partition's next owner may have written a later one."""
    owner, state = outcome.owner, outcome.state
    is_lost = owner is not None and not owner.part.owned
    return is_lost and not outcome.records and state is not None and not state.final


def _stands_in_the_way(outcomes: list[Outcome]) -> bool:
    """Whether it is one that cannot be divided, and is large."""
    return len(outcomes) == 1 and outcomes[0].message is not None and forwarded(outcomes) > LEAST_BATCH_BYTES


def _to_commit(plans: Mapping[PartitionState, OffsetMap]) -> Collection[tuple[Any, list[TopicPartition]]]:
    """Offsets with their maps, by the group metadata that they are sent with: one for each assignment that is not yet proven."""
    by_metadata: dict[int, tuple[Any, list[TopicPartition]]] = {}
    for part, plan in plans.items():
        written = plan.metadata()
        if len(written) > MAX_CHARACTERS:
            # `full()` bounds what is finished, and suspects that do not fit are left out; a map that is cut would run finished
            # jobs again.
            raise GroupNotInitialised(
                f"the map of {part.topic}/{part.partition} has {len(written)} characters, {MAX_CHARACTERS} fit"
            )
        metadata = part.metadata
        _, offsets = by_metadata.setdefault(id(metadata), (metadata, []))
        offsets.append(TopicPartition(part.topic, part.partition, plan.offset, written))
    return by_metadata.values()
