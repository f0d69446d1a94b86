"""A worker process of the simulation: the real one, with its threads, its clock and its handlers replaced.

Real are the poller, the committer and its transactions, the partitions' states and maps, the scheduler, the delays, the
router, the decoder, the verdicts and the way of a message between them (``WorkerProcess``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException

from schemas.errors import KafkaUnreachable
from schemas.offsetmap import OffsetMap, parse
from schemas.topics import Partition
from streams.visible import Written, places_of
from tests.simulation.hub import Actor, CheckedLock
from tests.simulation.sim_executor import SimExecutor
from tests.simulation.sim_loop import SimLoop
from tests.simulation.sim_threads import (
    OffsetsAtOnce,
    SimAssignments,
    SimCommitter,
    SimHoldings,
    SimPoller,
    SimVerdicts,
)
from workers.committing.commit_queue import CommitQueue
from workers.committing.router import Router
from workers.config import WorkerConfig
from workers.consuming.duplicates import DuplicateWindow
from workers.consuming.flow_control import FlowControl
from workers.consuming.key_places import KeyPlaces
from workers.consuming.look_back import LookBack
from workers.execution.children import ChildJobs
from workers.execution.decoder import Decoder
from workers.liveness.lease import CutOff, Lease
from workers.liveness.survivors import Signs
from workers.message import Message
from workers.process import WorkerProcess
from workers.scheduling.arrivals import Arrivals
from workers.scheduling.delay import Delays
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Pauses that a read waits for somebody's open transaction before it does something about it.
_PATIENCE: Final = 4
_MOST_READS: Final = 400


class _Clock:
    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms


class _Reporter:
    """Reports all the time."""

    def now(self) -> None:
        """It has done so already."""


class _Question:
    """The coordinator need not be asked: where Kafka is there, reports are answered."""

    def look(self) -> None:
        """Nothing is silent."""


class _Failure:
    """The future that tells of a worker's failure."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self.error is not None

    def set_exception(self, error: BaseException) -> None:
        self.error = error


class SimWorker(WorkerProcess):
    """One incarnation of a worker."""

    def __init__(self, world: World, name: str, incarnation: str) -> None:
        self.world = world
        self.config = WorkerConfig(worker_id=name, lost_worker_wait=timedelta(seconds=30))
        self.incarnation = incarnation
        #: The name under which it stands in the world.
        self.slot = name
        self.is_alive = True
        #: Frozen: nothing of it runs. Cut off: it runs, and Kafka does not answer.
        self.is_frozen = self.is_cut_off = False
        #: Kafka has committed a part of its transaction. It alone knows the rest, so nothing else happens to it until that is
        #: written: see docs/guarantees.md.
        self.is_torn = False
        #: Kafka has forgotten to tell some partitions of its last transaction, and it has not looked at that since they were told.
        self.is_half_told = False
        #: Kafka has had a report of it since it cancelled everything.
        self.has_said_so = False
        #: When something happened to it that makes jobs run again.
        self.troubles: list[int] = []
        #: When something happened to it of which it may not hear in time.
        self.absences: list[int] = []
        self.failure: Any = _Failure()
        loop: Any = SimLoop(self.now_ms)
        lock: Any = CheckedLock()
        self._loop, self._lock = loop, lock
        self.turns: SimLoop = loop
        self._clock: Any = _Clock(self.now_ms)
        self._topics = world.topics
        self._transactional_id = self._producer_id = f"{self._topics.prefix}worker.{name}"
        self._session_s = world.session_ms / 1000
        self._lease = Lease(self._session_s - 1, lambda: world.now_ms / 1000)
        self._cut_off = CutOff(self._lease)
        self._reporter: Any = _Reporter()
        self._question: Any = _Question()
        self._lease_timer = None
        self._draining = self._drained = self._stopping = self.can_drain = False
        self._router = Router(self._topics)
        self._delays = Delays()
        self._scheduler = Scheduler(sandbox=PoolPlaces(1, lambda _: True) if world.has_sandbox else None)
        self.logger: Any = None
        self.holdings = holdings = SimHoldings(lock)
        holdings.worker = self
        committer = SimCommitter(
            make_producer=self._make_producer,
            membership=_Membership(self),
            read_back=self._read_back,
            read_visible=self._read_visible,
            codec=world.codec,
            router=self._router,
            worker_name=name,
            holdings=holdings,
            tick_ms=20,
            on_committed=self._committed_one,
            on_failure=self._fail,
            upcoming=self._scheduler.upcoming,
            lease=self._lease,
            now_ms=self.now_ms,
            # Maps that open a wide window would hide what happens at its end.
            queue=CommitQueue(least_ahead=2),
        )
        committer.worker = self
        committer._transactions._offsets = OffsetsAtOnce(self)  # type: ignore[assignment]
        self._committer: Any = committer
        self._executor: Any = SimExecutor(
            self,
            Decoder(world.codec, world.handlers, self.config),
            ChildJobs(world.rules, now_ms=self.now_ms, partitions=lambda: world.partitions),
        )
        self._verdicts: Any = SimVerdicts(
            scheduler=self._scheduler,
            lock=lock,
            signs=self._signs,
            now_ms=self.now_ms,
            patience_ms=30_000,
            noticed_ms=self._noticed_ms,
            acquitted=self._acquitted,
            buried=self._buried,
            doubted=self._doubted,
            on_failure=self._fail,
        )
        self._verdicts.worker = self
        self._arrivals = Arrivals(
            delays=self._delays,
            scheduler=self._scheduler,
            committer=self._committer,
            router=self._router,
            verdicts=self._verdicts,
            worker_name=name,
            now_ms=self.now_ms,
            loop=loop,
            wake=self._executor.wake,
            on_failure=self._fail,
        )
        self._arrivals.key_places = KeyPlaces(world.partitions)
        look_back, copies = LookBack(lambda places: dict.fromkeys(places, 0)), DuplicateWindow()
        flow = FlowControl(
            topics=self._topics,
            committer=committer,
            scheduler=self._scheduler,
            delays=self._delays,
            high=8,
            low=4,
            now_ms=self.now_ms,
        )
        self.assignments = assignments = SimAssignments(
            topics=self._topics,
            committed=self,  # type: ignore[arg-type]
            committer=committer,
            holdings=holdings,
            look_back=look_back,
            lease=self._lease,
            loop=loop,
            incarnation=incarnation,
            transactional_id=self._transactional_id,
            revoke_timeout_s=1.0,
            now_ms=self.now_ms,
            signs=self._signs,
            log_ends=lambda places: {place: world.kafka.log(place).end for place in places},
            release=self._executor.release,
            purge=self._arrivals.purge,
            runs_on=self._executor.runs_on,
            memories=(look_back, copies, flow),
            on_failure=self._fail,
            on_refusal=self._refuse,
        )
        assignments.worker = self
        assignments.partition_count = world.partitions
        self._poller = poller = SimPoller(
            make_consumer=self._make_consumer,
            assignments=assignments,
            flow=flow,
            look_back=look_back,
            copies=copies,
            topics=self._topics,
            committer=committer,
            scheduler=self._scheduler,
            delays=self._delays,
            lock=lock,
            deliver=self._deliver,
            on_failure=self._fail,
            lease=self._lease,
        )
        poller.worker = self
        self._poll_thread = Actor(world.hub, self._guarded(poller.main))
        self._commit_thread = Actor(world.hub, self._guarded(committer.main))
        self._leave_thread: Actor | None = None
        self._check_lease()

    # --- what the world does with it ----------------------------------------------------------------------

    @property
    def ready(self) -> list[Callable[[], None]]:
        """What of it may go on now."""
        if not self.is_alive or self.is_frozen:
            return []
        threads = [self._poll_thread, self._commit_thread, self._leave_thread]
        steps = [thread.step for thread in threads if thread is not None and not thread.ended]
        return [self.turn_of_loop] if self.is_cut_off else [*steps, self.turn_of_loop]

    def turn_of_loop(self) -> None:
        """A turn of the event loop: callbacks, then a start or an end of a job."""
        self.turns.run()
        if not self.is_alive:
            return
        rng = self.world.rng
        match rng.randrange(4):
            case 0:
                self._executor.sweep()
                self._verdicts.look()
            case 1 | 2:
                execution = self._executor.start_one()
                if execution is not None:
                    self.world.started(self, execution)
            case _:
                now = self.now_ms()
                ready = [one for one in self._executor.running if now - one.started_ms >= one.job.runs_for_ms]
                if ready:
                    self.world.finish(self, rng.choice(ready))

    def leave(self) -> None:
        """As SIGTERM does: ``WorkerProcess.drain`` and ``stop``, in a thread of the simulation."""
        self._leave_thread = Actor(self.world.hub, self._guarded(self._leave))

    @property
    def has_left(self) -> bool:
        """Whether it has ended in order."""
        return self._leave_thread is not None and self._leave_thread.ended

    @property
    def must_live(self) -> bool:
        """Whether something of its last transaction is missing, or may yet be undone: whoever comes next cannot know of it."""
        return self.is_torn or self.is_half_told

    def die(self) -> None:
        """As kill -9 does."""
        self.is_alive = False
        self._executor.die()

    def bury(self) -> None:
        """What is left of its threads in this process."""
        for thread in (self._poll_thread, self._commit_thread, self._leave_thread):
            if thread is not None:
                thread.kill()

    def goes_without_a_word(self) -> None:
        """It lets go without a last commit, like one that dies."""
        self.world.trouble(self, "slow")
        self.world.judge.ends(self)

    def lose_connection(self) -> None:
        """What librdkafka writes into its log then."""
        if self.logger is not None:  # else there is no producer yet
            self.logger.error("FAIL [thrd:main]: Disconnected (after 3 ms)")

    def now_ms(self) -> int:
        """The world's clock."""
        return self.world.now_ms

    def pause(self) -> None:
        """Others may run; if this process has died meanwhile, nothing of it goes on."""
        self.world.hub.pause()
        self.world.check(self)

    def has_been_forgotten(self, places: Iterable[Partition]) -> bool:
        """Whether the coordinator has, or has had, others run something of this that we have, and we have not heard of it."""
        group = self.world.kafka.group(self._topics.group)
        member = group.members.get(self.world.judge.members[self.incarnation])
        return member is not None and any(
            part.owned
            and part.metadata is not None
            and member.owned.get(place, math.inf) > part.metadata.epoch
            for place in places
            if (part := self.assignments.parts.get(place)) is not None
        )

    @property
    def is_forgotten(self) -> bool:
        """The same of anything."""
        return self.has_been_forgotten(list(self.assignments.parts))

    def pause_until(self, is_true: Callable[[], bool], timeout_s: float) -> None:
        """Wait, so long at the most."""
        deadline = self.now_ms() + int(timeout_s * 1000)
        while not is_true() and self.now_ms() < deadline:
            self.pause()

    # --- what it asks of Kafka ----------------------------------------------------------------------------

    def for_assignment(self, _consumer: Any, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        """As ``CommittedOffsets`` does: a stable read; if somebody's transaction is in the way, that somebody's id is taken."""
        wanted = list(places)
        for turn in range(_MOST_READS):
            try:
                return self._read(wanted)
            except KafkaException:
                self.pause()
            if turn == _PATIENCE:
                for found in self._read(wanted, stable=False).values():
                    if found.transactional_id not in ("", self._transactional_id):
                        self.world.producer(self, found.transactional_id).init_transactions()
        raise KafkaUnreachable("nowhere", 60)

    def _read_back(self, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        wanted = list(places)
        for _ in range(_PATIENCE):
            try:
                return self._read(wanted)
            except KafkaException:
                self.pause()
        raise KafkaUnreachable("nowhere", 10)

    def _read_visible(self, records: Collection[Written], since_ms: int) -> set[Written]:
        kafka = self.world.kafka
        every = [
            (topic, number) for topic, count in kafka.partition_counts.items() for number in range(count)
        ]
        logs = [kafka.log(place) for place in places_of(records, every)]
        ends = [log.end for log in logs]
        for _ in range(_PATIENCE):
            self.world.on_step("read", self)
            if all(log.stable_end >= end for log, end in zip(logs, ends, strict=True)):
                seen = [one for log in logs for one in log if one.timestamp_ms >= since_ms]
                return {
                    written
                    for one in seen
                    for partition in (-1, one.partition)
                    if (written := Written.of(one.topic, partition, one.key, one.value, one.headers))
                    in records
                }
            self.pause()
        raise KafkaUnreachable("nowhere", 10)

    def _read(self, places: Iterable[Partition], *, stable: bool = True) -> dict[Partition, OffsetMap]:
        self.world.on_step("read", self)
        found = self.world.kafka.committed(self._topics.group, places, require_stable=stable)
        return {place: parse(offset, metadata) for place, (offset, metadata) in found.items()}

    def _make_producer(self, logger: Any) -> Any:
        self.logger = logger
        return self.world.producer(self, self._producer_id)

    def _make_consumer(self, _on_error: Any) -> Any:
        return self.world.consumer(self)

    def _signs(self, losses: Mapping[str, int]) -> Signs:
        return self.world.signs(losses)

    def reported(self) -> str:
        """Kafka has acknowledged a report, as it does each second; the state that it tells of."""
        self._lease.answered(self._lease.now_s)
        return self._state("running")

    def _doubted(self, message: Message) -> None:
        super()._doubted(message)
        self.world.judge.doubted[message.job_id] += 1

    # --- inside -------------------------------------------------------------------------------------------

    def _guarded(self, main: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                main()
            except Exception as error:  # noqa: BLE001 - a thread that fails ends its worker
                self._fail(error)

        return run

    def _leave(self) -> None:
        self._draining = True
        self.assignments.drains = True
        with self._lock:
            parts = set(self.assignments.parts.values())
            for part in parts:
                part.releasing = True
        self._arrivals.purge(parts)
        self.pause_until(lambda: not self._executor.runs_on(parts), 5.0)
        self._executor.cancel(parts)
        if not self._committer.release(parts).wait(10.0):
            self.goes_without_a_word()
        self._stopping = True
        self._poller._stop = True
        self.pause_until(lambda: self._poll_thread.ended, 60.0)


class _Membership:
    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker

    @property
    def metadata(self) -> Any:
        return self._worker.assignments.metadata.current

    def refused(self, timeout_s: float) -> Any:
        # By the clock of the world, without a thread that waits.
        metadata = self._worker.assignments.metadata
        metadata._refused_at = self._worker.now_ms() / 1000
        self._worker.pause_until(metadata.changed.is_set, timeout_s)
        return metadata.refused(0)

    def rejoin(self) -> None:
        self._worker.assignments.rejoin()
