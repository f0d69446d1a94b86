"""One worker process, put together: threads, event loop, and the way of a message between them.

    poll thread ──messages──► event loop: delays, scheduler, executor ──outcomes──► commit thread

In:  a configuration, handlers, settings. Out: jobs done.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from schemas.codec import Codec
from schemas.errors import KafkaUnreachable, PipelineError
from schemas.records import WorkerReport
from streams import transactional_ids
from streams.clients import kafka_failed
from streams.outgoing import Rules
from streams.scan import EARLIEST, LATEST
from streams.schemas_topic import schema_lookup
from streams.settings import Settings
from workers.blocking import in_thread
from workers.committing.commit import Committer
from workers.committing.forgotten import ForgottenTransactions
from workers.committing.hanging import HangingWatch, ends_of
from workers.committing.holdings import Holdings
from workers.committing.router import Router
from workers.config import WorkerConfig
from workers.connections import Connections
from workers.consuming.assignments import Assignments
from workers.consuming.duplicates import DuplicateWindow
from workers.consuming.flow_control import FlowControl
from workers.consuming.key_places import KeyPlaces
from workers.consuming.look_back import LookBack
from workers.consuming.membership_watch import MembershipWatch, is_ours
from workers.consuming.partition_watch import PartitionWatch
from workers.consuming.poller import Poller
from workers.consuming.takeover import CommittedOffsets
from workers.execution.active import RELEASED
from workers.execution.children import ChildJobs
from workers.execution.decoder import Decoder
from workers.execution.executor import Executor
from workers.execution.processes import ProcessPool
from workers.execution.sandbox import MOST_FRESH_PROCESSES, Sandbox
from workers.liveness.clock import BrokerClock
from workers.liveness.lease import CutOff, Lease, LeaseChange, lease_s
from workers.liveness.membership_question import MembershipQuestion
from workers.liveness.reporter import Reporter
from workers.liveness.rival import RivalWatch, find_rival, worker_id_taken
from workers.liveness.self_report import SelfReport, state_of
from workers.liveness.survivors import Signs, signs_of_life
from workers.liveness.verdicts import Verdicts
from workers.message import Message
from workers.own_schemas import introduce, own_schemas
from workers.scheduling.arrivals import Arrivals
from workers.scheduling.delay import Delays
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler
from workers.unsaid import guarded
from workers.worker import Handlers

log = structlog.get_logger("rustfs_workers.worker")

_FIRST_ANSWER_S: Final = 20.0
_ANSWER_S: Final = 10.0
#: What a handler may take to let go what it holds.
_CLOSE_S: Final = 10.0
#: For the last commit of a drain.
_LAST_COMMIT_S: Final = 10.0
#: For the last commit, what is in doubt of the one before, and the group's answer.
_LEFT_WITHIN_S: Final = 30.0


class WorkerProcess:
    """A group member with its handlers. Made, started, drained and stopped in one event loop."""

    def __init__(self, config: WorkerConfig, handlers: Handlers, settings: Settings, codec: Codec) -> None:
        self.config = config
        self.incarnation = uuid.uuid4().hex[:12]
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        connections = self._connections = Connections(settings)
        self._handlers = handlers
        self._codec = codec
        self._loop = asyncio.get_running_loop()
        self._topics = settings.topics
        self._transactional_id = transactional_ids.of_worker(self._topics, config.name)
        self._producer_id = self._transactional_id
        #: After a failure: whether a drain is still possible.
        self.can_drain = False
        #: After ``stop``: handlers that nobody could end.
        self.left_behind = 0
        self._lock = threading.Lock()
        self._clock = BrokerClock()
        self._session_s = config.session_timeout / timedelta(seconds=1)
        self._lease = Lease(lease_s(self._session_s))
        self._cut_off = CutOff(self._lease)
        self._lease_timer: asyncio.TimerHandle | None = None
        self._draining = False
        #: A drain has come to its end: nothing that could be ended runs any more.
        self._drained = False
        self._stopping = False
        self._schemas = schema_lookup(settings, codec.store)
        self._router = Router(self._topics)
        self._delays = Delays()
        decoder = Decoder(codec, handlers, config, self._learn_schema)
        weights, strict = config.priority_weights, config.strict_priorities
        in_processes = [handler for handler in handlers if handler.execution == "process"]
        self._processes = ProcessPool(config.process_pool_size, in_processes)
        self._sandbox = Sandbox(config.sandbox_size, handlers)

        def places(size: int, types: Collection[str]) -> PoolPlaces | None:
            needs = decoder.is_one_of(types)
            return PoolPlaces(size, needs, weights=weights, strict=strict) if types else None

        self._scheduler = Scheduler(
            weights=weights,
            strict=strict,
            pool=places(config.process_pool_size, [handler.job_type.name for handler in in_processes]),
            sandbox=places(config.sandbox_size, self._sandbox.types),
            pool_keeps_apart=config.sandbox_size > 0,
        )
        forgotten = self._forgotten = ForgottenTransactions(
            settings, lambda: self.assignments.partition_count or 0
        )
        self._committed = CommittedOffsets(
            settings,
            connections.heir,
            own_transactional_id=self._transactional_id,
            forgotten=forgotten,
        )
        holdings = Holdings(self._lock)
        self._committer = Committer(
            make_producer=lambda logger: connections.producer(self._producer_id, logger),
            membership=_LateMembership(self),
            read_back=self._committed.read_back,
            read_visible=connections.read_visible,
            codec=codec,
            router=self._router,
            worker_name=config.name,
            holdings=holdings,
            tick_ms=config.tick_ms,
            on_committed=self._committed_one,
            on_failure=self._fail,
            end_forgotten=self._end_forgotten,
            on_fenced=RivalWatch(
                lambda: find_rival(
                    settings, codec, config.name, self.incarnation, self._self_report.started_ms
                ),
                self._leave_to,
            ).fenced,
            upcoming=self._scheduler.upcoming,
            lease=self._lease,
            now_ms=self._stamped_ms,
            job_types=handlers.types,
        )
        self._executor = Executor(
            config=config,
            decoder=decoder,
            router=self._router,
            scheduler=self._scheduler,
            emit=self._committer.emit,
            planner=ChildJobs(
                Rules.of(settings, codec, config.name),
                own_schemas(handlers),
                now_ms=self._clock.now_ms,
                partitions=lambda: self.assignments.partition_count or 0,
            ),
            now_ms=self._clock.now_ms,
            worker_name=config.name,
            on_failure=self.fail_at_work,
            # Not while our last report says that nothing runs: a death then would be charged to nobody.
            may_start=lambda: self._cut_off.may_start,
            processes=self._processes,
            sandbox=self._sandbox,
            is_crowded=lambda: (
                sum(part.dangerous for part in list(self.assignments.parts.values())) > MOST_FRESH_PROCESSES
            ),
        )
        self._verdicts = Verdicts(
            scheduler=self._scheduler,
            lock=self._lock,
            signs=self._signs_of_life,
            now_ms=self._clock.now_ms,
            patience_ms=config.lost_worker_wait // timedelta(milliseconds=1),
            noticed_ms=self._noticed_ms,
            acquitted=self._acquitted,
            buried=self._buried,
            doubted=self._doubted,
            on_failure=self._fail,
        )
        self._arrivals = Arrivals(
            delays=self._delays,
            scheduler=self._scheduler,
            committer=self._committer,
            router=self._router,
            verdicts=self._verdicts,
            worker_name=config.name,
            now_ms=self._clock.now_ms,
            loop=self._loop,
            wake=self._executor.wake,
            on_failure=self._fail,
        )
        look_back = LookBack(functools.partial(connections.offsets, EARLIEST))
        copies = DuplicateWindow()
        flow = FlowControl(
            topics=self._topics,
            committer=self._committer,
            scheduler=self._scheduler,
            delays=self._delays,
            high=config.buffer_high,
            low=config.buffer_low,
            now_ms=self._clock.now_ms,
        )
        self.assignments = Assignments(
            topics=self._topics,
            committed=self._committed,
            committer=self._committer,
            holdings=holdings,
            look_back=look_back,
            lease=self._lease,
            loop=self._loop,
            incarnation=self.incarnation,
            transactional_id=self._transactional_id,
            revoke_timeout_s=config.revoke_timeout / timedelta(seconds=1),
            now_ms=self._clock.now_ms,
            signs=functools.partial(signs_of_life, settings, codec),
            log_ends=functools.partial(connections.offsets, LATEST),
            release=functools.partial(self._executor.release, only_who_may_end=True),
            purge=guarded(self._arrivals.purge, self._fail),
            runs_on=self._executor.runs_on,
            memories=(look_back, copies, flow),
            on_failure=self._fail,
            on_refusal=self._refuse,
        )
        self._poller = Poller(
            make_consumer=lambda on_error: connections.consumer(
                on_error, on_lost_heartbeat=self._membership.suspect
            ),
            assignments=self.assignments,
            flow=flow,
            look_back=look_back,
            copies=copies,
            topics=self._topics,
            committer=self._committer,
            scheduler=self._scheduler,
            delays=self._delays,
            lock=self._lock,
            deliver=self._deliver,
            on_failure=self._fail,
            lease=self._lease,
        )
        self._self_report = SelfReport(
            codec=codec,
            worker_name=config.name,
            incarnation=self.incarnation,
            job_types=handlers.types,
            partitions=lambda: self.assignments.partitions,
            scheduler=self._scheduler,
            counters=self._committer.counters,
        )
        self._membership = MembershipWatch(
            held=lambda: self.assignments.held,
            ask=connections.member,
            rejoin=self.assignments.rejoin,
            loop=self._loop,
        )
        self._question = MembershipQuestion(self._lease, self._is_member)
        producer = connections.reporter()
        self._counts = PartitionWatch(
            lambda: producer.list_topics(timeout=_ANSWER_S).topics,
            self._topics.transactional,
            self._refuse,
            also=(self._topics.reports, self._topics.schemas),
        )
        self._hanging = HangingWatch(
            lambda: ends_of(settings, {number for _, number in list(self.assignments.parts)}),
            forgotten.end_where,
        )
        self._reporter = Reporter(
            producer=producer,
            topic=self._topics.reports,
            key=config.name,
            make=self._report,
            clock=self._clock,
            lease=self._lease,
            on_failure=self._fail,
        )

    async def start(self) -> None:
        """Join the group and begin to work.

        Raises:
            JobTypeError: a handler for processes cannot be imported by a process of its own.
            TopicsMismatch: topics are missing, or their partition counts differ.
            KafkaUnreachable: Kafka does not answer.
        """
        try:
            count = self.assignments.partition_count = await self._counts.count()
        except KafkaException as error:
            raise kafka_failed(self._settings, error, _ANSWER_S) from error
        await self._processes.start()
        self._arrivals.key_places = KeyPlaces(count)
        # Beside what follows: on a Kafka that has just been started a new producer waits half a second.
        self._committer.start()
        try:
            await self._introduce_itself()
        except BaseException:
            await in_thread(self._committer.stop, _ANSWER_S)
            await self._processes.close()
            await self._sandbox.close()
            raise
        self._reporter.start()
        self._poller.start()
        self._counts.start(count)
        self._hanging.start()
        self._check_lease()
        log.info(
            "worker started",
            worker=self.config.name,
            incarnation=self.incarnation,
            types=self._handlers.types,
            lease_s=self._lease.seconds,
        )

    async def _introduce_itself(self) -> None:
        """What others must know before the first job is taken, and the lease."""
        await in_thread(introduce, self._settings, own_schemas(self._handlers), timeout_s=_FIRST_ANSWER_S)
        if not await in_thread(self._reporter.first, _FIRST_ANSWER_S):
            did = f"acknowledged the worker's first report ({self._topics.reports})"
            raise KafkaUnreachable(self._settings.bootstrap_servers(), _FIRST_ANSWER_S, did)
        await in_thread(self._ask_for_group_times)

    @property
    def has_failed(self) -> bool:
        """It cannot go on; ``failure`` says why, or will in a moment."""
        return self.failure.done() or self.assignments.leaves_unclean

    async def drain(self, timeout_s: float) -> None:
        """Stop taking, let running jobs end until the deadline, cancel the rest, commit, leave the group in order."""
        if self._draining:
            return
        self._draining = True
        started = time.monotonic()
        self.assignments.drains = True
        with self._lock:
            parts = set(self.assignments.parts.values())
            for part in parts:
                part.releasing = True
        self._arrivals.purge(parts)
        running = len(self._executor.active)
        await self._executor.release(parts, timeout_s)
        # What goes on, being deaf or holding the event loop, may yet kill this process: then it is to be suspected.
        clean = not (self.assignments.leaves_unclean or self._executor.runs_on(parts))
        released = self._committer.release(parts, clean=clean)
        if not await in_thread(released.wait, _LAST_COMMIT_S):
            log.warning(
                "drained without a last commit: what has ended since the one before runs again elsewhere",
                worker=self.config.name,
                seconds=_LAST_COMMIT_S,
            )
        self._drained = True
        log.info(
            "worker drained",
            worker=self.config.name,
            running=running,
            seconds=round(time.monotonic() - started, 2),
        )

    async def stop(self) -> None:
        """End every thread. After a drain this takes a moment; without one it is an unclean death for our successor."""
        self._stopping = True
        await self._counts.stop()
        await self._hanging.stop()
        await self._membership.stop()
        await self._question.stop()
        await self._verdicts.stop()
        self._arrivals.stop()
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        if not await in_thread(self._poller.stop, _LEFT_WITHIN_S):
            log.error("poll thread did not end", worker=self.config.name)
        if not await in_thread(self._committer.stop, 10.0):
            log.error("commit thread did not end", worker=self.config.name)
        await self._executor.stop()
        await self._processes.close()
        await self._sandbox.close()
        await in_thread(self._reporter.stop)
        await in_thread(self._schemas.close)
        self.left_behind = self._executor.left_behind
        if self.left_behind:
            log.error("handlers did not end", worker=self.config.name, handlers=self.left_behind)
        await self._close_handlers()
        log.info("worker stopped", worker=self.config.name)

    async def _close_handlers(self) -> None:
        """A program that starts and stops workers for years must not gather their threads and connections."""
        for worker in (handler.worker for handler in self._handlers if handler.worker is not None):
            try:
                closing = worker.close()
                if inspect.isawaitable(closing):
                    await _within(closing, _CLOSE_S)
            except (Exception, asyncio.CancelledError) as error:
                # The user's code may raise anything. One that awaits a task which it has cancelled raises CancelledError.
                me = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and me is not None and me.cancelling():
                    raise
                log.warning(
                    "handler could not be closed",
                    type=worker.worker_type,
                    error=f"{type(error).__name__}: {error}",
                )

    @property
    def counters(self) -> dict[tuple[str, str, str], int]:
        """Jobs by (type, priority, state), as committed."""
        return dict(self._committer.counters.jobs)

    @property
    def events(self) -> dict[str, int]:
        """Other counts, such as duplicates, stale metadata and ambiguous commits."""
        return dict(self._committer.counters.events)

    # --- from the poll thread -------------------------------------------------------------------

    def _deliver(self, messages: list[Message]) -> None:
        self._tell_the_loop(self._arrivals.arrive, messages)

    def _committed_one(self) -> None:
        self._tell_the_loop(self._after_commit)

    def _fail(self, error: BaseException) -> None:
        def set_failure() -> None:
            if not self.failure.done():
                self.failure.set_exception(error)

        self._tell_the_loop(set_failure)

    def _tell_the_loop(self, callback: Callable[..., None], *arguments: Any) -> None:
        # A commit thread that waits for a dead Kafka outlives the loop: then there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(guarded(callback, self._fail), *arguments)

    def fail_at_work(self, error: BaseException) -> None:
        """Where handlers are called: one of the jobs may be the cause, so for our successor this is a death."""
        self.assignments.leaves_unclean = True
        self._fail(error)

    def _refuse(self, error: PipelineError) -> None:
        """Stop for a reason that leaves all parts in order: there will be a drain, and it can commit."""
        log.error("worker stops", worker=self.config.name, error=str(error))
        self.can_drain = True
        self._fail(error)

    def _leave_to(self, rival: WorkerReport) -> None:
        # The name is the other's from now on; our last outcomes are committed under one that nobody else has.
        self._producer_id = f"{self._transactional_id}.{self.incarnation}"
        self._refuse(worker_id_taken(rival, self.incarnation, socket.gethostname()))

    # --- in the event loop ----------------------------------------------------------------------

    def _acquitted(self, message: Message) -> None:
        log.info("job goes on: its lost worker is alive", at=message.where)
        self._committer.counters.event("acquitted")
        self._committer.nudge()
        self._executor.wake()

    def _doubted(self, message: Message) -> None:
        log.warning(
            "job runs alone once more: Kafka may have been away when its worker died", at=message.where
        )
        self._committer.counters.event("doubted")
        self._committer.nudge()
        self._executor.wake()

    def _noticed_ms(self) -> int:
        """A worker that dies is missed after a session. One that gave up before it died was silent for a lease before that."""
        return int((self._session_s + self._lease.seconds) * 1000)

    def _signs_of_life(self, losses: Mapping[str, int]) -> Signs:
        return signs_of_life(self._settings, self._codec, losses, int(self._lease.seconds * 1000))

    def _buried(self, message: Message) -> None:
        self._committer.emit(self._router.worker_lost(message, self.config.name, self._clock.now_ms()))
        self._executor.wake()

    def _after_commit(self) -> None:
        self._scheduler.unpark()
        self._executor.wake()

    def _check_lease(self) -> None:
        """Kafka may have given us up if it has not answered for this long: then others run our jobs, so we must not."""
        self._lease_timer = self._loop.call_later(0.25, guarded(self._check_lease, self._fail))
        self._question.look()
        if not self.assignments.parts and self._lease.silent_s <= self._lease.seconds:
            # Nothing that others could have by now; what will be given to us starts after a commit of its own.
            self._lease.committed(self._lease.begin())
        match self._cut_off.look():
            case LeaseChange.LOST:
                silent_s = round(self._lease.silent_s, 1)
                log.error("no answer from Kafka: everything is cancelled", silent_s=silent_s)
                self._committer.counters.event("cut_off")
                self._executor.cancel_all(RELEASED)
                # Before so many reports wait for an answer that this one would not be sent.
                self._reporter.now()
            case LeaseChange.REGAINED:
                log.info("Kafka answers again")
                # Whatever runs alone next may kill this process: before that it has to be known that something runs again.
                self._reporter.now()
                self._executor.wake()
        if self._cut_off.is_cut_off:
            self._committer.prove()

    # --- called from other threads ---------------------------------------------------------------

    def _end_forgotten(self) -> None:
        self._forgotten.end(self._producer_id)

    async def _is_member(self) -> bool:
        # Two questions fit into the lease: one may go to a broker that is frozen, and gets no answer.
        timeout_s = min(2.0, self._lease.seconds / 3)
        member = await self._connections.member(self.assignments.held.member_id, timeout_s=timeout_s)
        return is_ours(self.assignments.held, member)

    def _stamped_ms(self) -> int:
        """What stands on a record that is written now, or less: the broker's clock stamps some topics, ours the others."""
        return min(self._clock.now_ms(), time.time_ns() // 1_000_000)

    def _learn_schema(self, key: bytes) -> bool:
        return self._schemas.learn(key, 10.0)

    def _ask_for_group_times(self) -> None:
        """The session that the group's coordinator grants, and with it the lease; else that of the settings."""
        times = self._connections.group_times()
        if times is not None:
            self._session_s = times.session_ms / 1000
            self._lease.seconds = lease_s(self._session_s, times.heartbeat_ms / 1000)

    def _report(self, asked: str) -> bytes:
        return self._self_report.encoded(self._state(asked))

    def _state(self, asked: str) -> str:
        return state_of(
            asked=asked,
            cut_off=self._cut_off.is_cut_off,
            draining=self._draining,
            stopping=self._stopping,
            failed=self.failure.done(),
            left_in_order=self._drained
            and not (self.assignments.leaves_unclean or self._executor.left_behind),
        )


async def _within(closing: Awaitable[object], limit_s: float) -> None:
    """Wait for the end of it, for so long; one that does not end when it is cancelled is left behind.

    Raises:
        TimeoutError: it had not ended by then. What it raises itself.
    """
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.wait((task,), timeout=limit_s)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        raise TimeoutError(f"not closed within {limit_s:g} s")
    task.result()


class _LateMembership:
    """What is known of the group, for the committer, which is made first."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    @property
    def metadata(self) -> Any:
        return self._process.assignments.metadata.current

    def refused(self, timeout_s: float) -> Any:
        return self._process.assignments.metadata.refused(timeout_s)

    def rejoin(self) -> None:
        self._process.assignments.rejoin()
