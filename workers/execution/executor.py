"""Runs handlers: takes messages from the scheduler, calls, and hands outcomes to the commit thread.

In:  messages that may start. Out: outcomes.

Async handlers run right in one of the ``slots``, plain functions in threads (what they return that can be awaited, in the
slot again), CPU-bound ones in processes. What is still running at
a tick is looked at by the ``sweep``: a short job pays for none of that.

Everything here happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
from collections.abc import Callable, Container
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from schemas.errors import HandlerNotFound, PermanentError, UnknownSchema, WireError
from workers.committing.router import Router, Run, as_result
from workers.context import WorkerContext
from workers.execution.active import RELEASED, TIMEOUT, Active
from workers.execution.decoder import Decoded, Decoder
from workers.execution.processes import NotStarted, ProcessDied, ProcessPool
from workers.execution.run_times import RunTimes
from workers.execution.slots import Slots
from workers.execution.sweep import Sweep
from workers.execution.threads import HandlerThreads, drop
from workers.message import Message
from workers.outcome import COMMIT_REQUEST, Outcome
from workers.results import Failed, JobResult, Snooze, failed_by
from workers.unsaid import guarded

if TYPE_CHECKING:
    from workers.config import WorkerConfig
    from workers.context import ChildPlanner
    from workers.execution.sandbox import Sandbox
    from workers.offsets import PartitionState
    from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.executor")

#: An unknown type may belong to a release that is being rolled out.
UNKNOWN_TYPE_LIMIT_MS: Final = 15 * 60_000
UNKNOWN_TYPE_SNOOZE: Final = timedelta(seconds=10)
#: Their names come from messages: a line in the log for so many of them.
_UNKNOWN_TYPES_SAID: Final = 100
#: What a cancelled handler may take to end; a process has half a second of it before it is killed.
_CANCEL_S: Final = 1.0


def _steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Executor:
    """Runs one job in whichever way it wants to be run, and owns everything that is running."""

    def __init__(
        self,
        *,
        config: WorkerConfig,
        decoder: Decoder,
        router: Router,
        scheduler: Scheduler,
        emit: Callable[[Outcome], None],
        planner: ChildPlanner,
        now_ms: Callable[[], int],
        worker_name: str,
        on_failure: Callable[[BaseException], None],
        may_start: Callable[[], bool] = lambda: True,
        processes: ProcessPool | None = None,
        sandbox: Sandbox | None = None,
        is_crowded: Callable[[], bool] = lambda: False,
        steady_ms: Callable[[], int] = _steady_ms,
    ) -> None:
        self._decoder = decoder
        self._router = router
        self._scheduler = scheduler
        self._emit = emit
        self._planner = planner
        self._now_ms = now_ms
        self._steady_ms = steady_ms
        self._worker = worker_name
        self._may_start = may_start
        #: Called with an error of our own (not a handler's) that must end the worker.
        self._on_failure = on_failure
        self._processes = processes
        self._sandbox = sandbox
        #: Whether so many have to be kept apart that each cannot have a process in which nothing has run before.
        self._is_crowded = is_crowded
        self._threads = HandlerThreads(config.max_concurrent_jobs, self._count_stray)
        self._slots = Slots(
            scheduler=scheduler,
            most=config.max_concurrent_jobs,
            run=self._run,
            may_start=may_start,
            ask_for_commit=self._ask_for_commit,
            on_failure=on_failure,
        )
        #: Something may be startable.
        self.wake = self._slots.wake
        self.active: dict[Active, None] = {}
        self._sweep = Sweep(
            active=self.active,
            scheduler=scheduler,
            emit=emit,
            wake=self.wake,
            steady_ms=steady_ms,
            now_ms=now_ms,
            worker_name=worker_name,
            tick_ms=config.tick_ms,
            on_failure=on_failure,
        )
        self._finished = asyncio.Event()
        self._run_times = RunTimes()
        self._unknown_types: set[str] = set()

    async def release(self, parts: set[Any], timeout_s: float, *, only_who_may_end: bool = False) -> None:
        """Let the running jobs of these partitions finish until the deadline, then cancel what is left.

        The partitions are marked ``releasing`` already, so nothing new starts on them. A thread that does not listen to
        ``context.cancelled`` goes on, and its outcome is dropped. ``only_who_may_end``: do not wait for those that will hardly end in time.
        """
        left = {active for active in self.active if active.message.part in parts}
        if only_who_may_end:
            now, within_ms = self._steady_ms(), timeout_s * 1000
            left = {
                a
                for a in left
                if self._run_times.may_end(a.decoded.job_type, now - a.since_steady_ms, within_ms)
            }
        await self._until_done(left, timeout_s)
        cancelled = [active for active in self.active if active.message.part in parts]
        for active in cancelled:
            log.info(
                "job cancelled",
                job_id=active.context.job_id,
                reason="partition released",
                at=active.message.where,
            )
            active.cancel(RELEASED)
        await self._until_done(set(cancelled), _CANCEL_S)

    def runs_on(self, parts: Container[PartitionState]) -> bool:
        """Whether anything of these partitions still runs. Any thread."""
        return any(active.message.part in parts for active in list(self.active))

    def cancel_all(self, reason: str) -> None:
        """Cancel everything that runs; what remains ours starts again later."""
        for active in list(self.active):
            active.cancel(reason)

    async def stop(self) -> None:
        """End the slots and the pools. Everything that may finish has been waited for by now.

        A handler that swallows its cancellation, or a thread, can be ended by nobody: ``left_behind`` counts them.
        """
        self._sweep.stop()
        await self._slots.stop(_CANCEL_S)
        self._threads.stop()

    @property
    def left_behind(self) -> int:
        """After ``stop``: handlers that go on all the same."""
        return self._slots.left_behind + self._threads.going_on

    async def _until_done(self, some: set[Active], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not some.isdisjoint(self.active):
            # Others may wait as well: one that cleared the event of all would take a wake-up from them.
            if self._finished.is_set():
                self._finished = asyncio.Event()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            try:
                await asyncio.wait_for(self._finished.wait(), remaining)
            except TimeoutError:
                return

    def _ask_for_commit(self) -> None:
        """Start limits must move before what is parked can start: ask for a commit."""
        self._scheduler.needs_commit = False
        self._emit(COMMIT_REQUEST)

    async def _run(self, message: Message, slot: asyncio.Task[Any] | None) -> None:
        started_ms = self._now_ms()
        try:
            decoded = self._decoder.decode(message)
        except UnknownSchema:
            learned = await self._learn(message)
            if learned is None:
                return
            decoded = learned
        except WireError as error:
            self._unreadable(message, error)
            return
        handler = decoded.handler
        delivery = message.delivery
        record = decoded.record
        context = WorkerContext(
            job_id=record["id"],
            job_type=decoded.job_type,
            priority=message.priority or decoded.priority,
            attempt=delivery.attempt,
            key=record["key"],
            worker_id=self._worker,
            fence=message.part.fence,
            created_at_ms=record["created_at"],
            redrives=delivery.redrives,
            traceparent=delivery.traceparent,
            planner=self._planner,
        )
        if handler is None:
            # Anybody can write a time that is yet to come; counted from there it would wait for ever.
            since_ms = min(delivery.unknown_since_ms or started_ms, started_ms)
            self._say_unknown(decoded.job_type)
            result: JobResult = _unknown_type(decoded.job_type, started_ms - since_ms)
            self._finish(message, decoded, context, started_ms, result, unknown_since_ms=since_ms)
            return
        timeout_ms = record["timeout_ms"]
        if timeout_ms is None:
            timeout_ms = decoded.timeout_ms
        active = Active(message, decoded, handler, context, started_ms, self._steady_ms(), timeout_ms)
        active.task = slot
        self.active[active] = None
        if active.execution == "process":
            self._sweep.arm()
        else:
            self._sweep.add(active)
        apart: NotStarted | ProcessDied | None = None
        try:
            if active.execution == "async":
                result = as_result(await handler.call(decoded.job, context))
            elif active.execution == "thread":
                result = as_result(await self._in_thread(active))
            else:
                result = await self._in_process(active)
        except (NotStarted, ProcessDied) as error:  # of the sandbox
            apart, result = error, failed_by(error, retryable=True)
        except asyncio.CancelledError as error:
            if active.cancel_reason is not None:
                result = _timed_out(active)
            elif self._slots.loop_is_ending:
                raise  # the slot itself is being stopped
            else:
                # Something that the handler waited for was cancelled, or the handler has cancelled its own task.
                result = failed_by(error)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is a failure of its job
            result = failed_by(error)
        except BaseException as error:
            # SystemExit from a library, KeyboardInterrupt from a REPL in a thread, a panic of native code: the job's failure,
            # not the worker's end. (Ctrl-C comes as a signal to the event loop.)
            if isinstance(error, GeneratorExit) and not _is_current(slot):
                raise  # the slot itself is being closed
            result = failed_by(error)
        finally:
            active.done = True
            del self.active[active]
            self._finished.set()
        if apart is not None:
            self._came_to_nothing(message, apart)
            return
        if active.cancel_reason is None:
            self._run_times.note(decoded.job_type, self._steady_ms() - active.since_steady_ms)
        else:
            if slot is not None:
                while slot.cancelling():
                    slot.uncancel()
            if active.cancel_reason == RELEASED and isinstance(result, Failed):
                # Whatever it says: libraries make errors of their own of a cancellation, and so do threads.
                self._give_back(message)
                return
        self._finish(message, decoded, context, active.started_ms, result)

    async def _learn(self, message: Message) -> Decoded | None:
        """Decode it with a schema that has to be asked for first. None: it does not run now; what is to become of it has been said."""
        try:
            decoded = await self._decoder.learn_and_decode(message)
        except WireError as error:
            self._unreadable(message, error)
            return None
        except asyncio.CancelledError:
            self._give_back(message)  # a handler before it left a timer that cancels its slot
            raise
        except Exception as error:  # noqa: BLE001 - Kafka or the registry did not answer: no reason to lose the job
            log.warning("schema not to be had now", at=message.where, error=str(error))
            self._postpone(message)
            return None
        if not self._may_start() or not message.part.may_run:
            # Others may run it by now. ``release`` and ``cancel_all`` saw nothing of it: no handler was running.
            self._give_back(message)
            return None
        return decoded

    def _came_to_nothing(self, message: Message, why: NotStarted | ProcessDied) -> None:
        """In the sandbox. Two workers have died with it, and now a process in which nothing else ran: it is the one that kills.

        Where there are many of them others may have run there before: then it gets a process that is new. If that was killed by somebody, most likely by a system that
        is short of memory, the job runs alone in the worker: the others may have had the memory.
        """
        if isinstance(why, ProcessDied) and not why.after_others and why.code != -signal.SIGKILL:
            last = f"its own: {why}"
            self._emit(self._router.worker_lost(message, self._worker, self._now_ms(), last))
            self._scheduler.done(message)
            return
        log.warning("no proof that this job kills: it runs again", at=message.where, reason=str(why))
        if isinstance(why, ProcessDied) and why.after_others:
            message.needs_fresh_process = True
        else:
            message.kept_out = True
        self._give_back(message)
        self.wake()

    def _say_unknown(self, job_type: str) -> None:
        """The group may have workers of another release, or of another program; then this one's jobs are held up by it."""
        if job_type in self._unknown_types or len(self._unknown_types) >= _UNKNOWN_TYPES_SAID:
            return
        self._unknown_types.add(job_type)
        log.warning(
            "no handler for this job type: its jobs wait for a worker that has one to take this one's place; all of a group need the same (--import)",
            job_type=job_type,
            minutes=UNKNOWN_TYPE_LIMIT_MS // 60_000,
        )

    def _finish(
        self,
        message: Message,
        decoded: Decoded,
        context: WorkerContext,
        started_ms: int,
        result: JobResult,
        *,
        unknown_since_ms: int = 0,
    ) -> None:
        run = Run.of(
            message,
            context,
            started_ms,
            self._now_ms(),
            children=context.end(),
            progress=context._progress,
            unknown_since_ms=unknown_since_ms,
        )
        try:
            outcome = self._router.settle(run, result, decoded.limits)
        except Exception as error:  # noqa: BLE001 - an output that has changed since it was looked at
            bad = replace(failed_by(error, retryable=False), error_type="BadResult")
            outcome = self._router.settle(run, bad, decoded.limits)
        self._emit(outcome)
        self._scheduler.done(message)

    def _unreadable(self, message: Message, error: WireError) -> None:
        log.warning("undecodable record dead-lettered", at=message.where, error=str(error))
        self._emit(self._router.unreadable(message, error, self._now_ms(), self._worker))
        self._scheduler.done(message)

    def _postpone(self, message: Message) -> None:
        """Try again in a second; the message keeps its key until then. If it runs alone, others have their turn."""
        if self._scheduler.isolated is message:
            self._scheduler.survived()
            self._ask_for_commit()

        def again() -> None:
            self._give_back(message)
            self.wake()

        asyncio.get_running_loop().call_later(1.0, guarded(again, self._on_failure))

    def _give_back(self, message: Message) -> None:
        """Cancelled before it finished: ours again after a lost connection, somebody else's after a revocation."""
        if message.part.may_run:
            self._scheduler.put_back(message)
        else:
            self._scheduler.done(message)

    async def _in_thread(self, active: Active) -> Any:
        """A plain function. Its timeout sets ``context.cancelled``; if it does not listen, it is abandoned.

        What can be awaited is no result: it is awaited here, within the same limit.
        """
        active.abandoned = asyncio.get_running_loop().create_future()
        call = partial(active.handler.call, active.decoded.job, active.context)
        value = await self._threads.run(call, active.abandoned)
        if not inspect.isawaitable(value):
            return value
        # A decorator that is a plain function returns the coroutine of what it wraps. From here on it is one as any other.
        if active.cancel_reason is not None:
            drop(value)
            raise asyncio.CancelledError
        active.execution = "async"
        return await value

    def _count_stray(self, by: int) -> None:
        self._scheduler.strays += by

    async def _in_process(self, active: Active) -> JobResult:
        in_sandbox = active.message.sandboxed and active.handler.execution != "process"
        if not in_sandbox and self._processes is None:
            raise PermanentError("this worker has no process pool; set process_pool_size")
        kind = active.handler.job_type
        # Not the record as it was read: an older writer's may lack fields that the child needs.
        body = kind.wire.encode(kind.to_record(active.decoded.job, dict(active.decoded.record)))

        def on_start() -> None:
            # Until a process was free the job waited for its turn: its time begins here.
            active.started_ms, active.since_steady_ms = self._now_ms(), self._steady_ms()
            self._sweep.add(active)

        if in_sandbox:
            assert self._sandbox is not None  # noqa: S101 - it has given the job its place
            return await self._sandbox.run(
                active.handler,
                body,
                active.context,
                on_start=on_start,
                fresh=active.message.needs_fresh_process or not self._is_crowded(),
            )
        assert self._processes is not None  # noqa: S101
        return await self._processes.run(active.handler, body, active.context, on_start=on_start)


def _is_current(task: asyncio.Task[Any] | None) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no event loop runs any more
        return False


def _unknown_type(job_type: str, for_ms: int) -> JobResult:
    if for_ms < UNKNOWN_TYPE_LIMIT_MS:
        return Snooze(UNKNOWN_TYPE_SNOOZE, f"no handler for {job_type} here yet")
    return failed_by(HandlerNotFound(job_type), retryable=False)


def _timed_out(active: Active) -> Failed:
    if active.cancel_reason == TIMEOUT:
        return Failed(f"the run took longer than {active.timeout_ms} ms", error_type="Timeout")
    return Failed("cancelled", error_type="Cancelled")
