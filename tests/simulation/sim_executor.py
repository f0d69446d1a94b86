"""Handlers of the simulation: they start when the scheduler gives something, and end when the seed says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import WireError
from schemas.headers import Delivery
from schemas.lifecycle import JobStatus
from tests.simulation.sim_jobs import SimJob
from workers.committing.router import Run, status_of
from workers.execution.children import ChildJobs
from workers.execution.decoder import Decoded, Decoder
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome

if TYPE_CHECKING:
    from tests.simulation.sim_worker import SimWorker

_SLOTS: Final = 4


@dataclass(eq=False, slots=True)
class Execution:
    """One call of a handler."""

    message: Message
    decoded: Decoded
    incarnation: str
    started_ms: int
    was_sandboxed: bool
    began_in_trouble: bool
    was_given_away: bool
    announced: bool = False
    ended_ms: int | None = None
    #: Cancelled, or its process died: it has no outcome.
    cut_short: bool = False

    @property
    def job(self) -> SimJob:
        job: SimJob = self.decoded.job
        return job

    @property
    def delivery(self) -> Delivery:
        return self.message.delivery


class SimExecutor:
    """Takes what the scheduler gives, and lets it end when the seed says so."""

    def __init__(self, worker: SimWorker, decoder: Decoder, planner: ChildJobs) -> None:
        self._worker = worker
        self._decoder = decoder
        self._planner = planner
        self.running: list[Execution] = []

    def wake(self) -> None:
        """Nothing to do: the event loop has its turn when the seed says so."""

    def release(self, parts: set[PartitionState], timeout_s: float) -> Any:
        """For ``_in_loop``, which knows what to do with it."""
        return parts, timeout_s

    def cancel_all(self, _reason: str) -> None:
        self.cancel({one.message.part for one in self.running})

    def runs_on(self, parts: Iterable[PartitionState]) -> bool:
        return any(one.message.part in parts for one in self.running)

    def cancel(self, parts: set[PartitionState]) -> None:
        for one in [one for one in self.running if one.message.part in parts]:
            self._end(one, cut_short=True)
            if one.message.part.owned and not one.message.part.releasing:
                self._worker._scheduler.put_back(one.message)
            else:
                self._worker._scheduler.done(one.message)

    def die(self) -> None:
        for one in list(self.running):
            self._end(one, cut_short=True)

    def start_one(self) -> Execution | None:
        if not self._worker._lease.holds or self._worker.must_live or len(self.running) >= _SLOTS:
            return None
        message = self._worker._scheduler.take(self._worker.now_ms())
        if message is None:
            if self._worker._scheduler.has_parked:
                self._worker._committer.emit(Outcome(None, None))
            return None
        try:
            decoded = self._decoder.decode(message)
        except WireError as error:
            worker = self._worker
            worker._committer.emit(
                worker._router.unreadable(message, error, worker.now_ms(), worker.config.name)
            )
            worker._scheduler.done(message)
            return None
        execution = Execution(
            message,
            decoded,
            self._worker.incarnation,
            self._worker.now_ms(),
            began_in_trouble=self._worker.is_cut_off,
            was_given_away=self._worker.has_been_forgotten([message.part.place]),
            was_sandboxed=message.sandboxed,
        )
        self.running.append(execution)
        return execution

    def finish(self, one: Execution, snoozed: int) -> None:
        self._end(one)
        result = one.job.result(one.message.delivery.attempt, snoozed)
        children = tuple(
            self._planner(SimJob(-1), one.decoded.priority, job_id=self._worker.world.new_id())[1]
            for _ in range(one.job.children)
        )
        run = self._run(one, children)
        self._worker._committer.emit(self._worker._router.settle(run, result, one.decoded.limits))
        self._worker._scheduler.done(one.message)

    def dies_in_sandbox(self, one: Execution) -> None:
        """Its own process ends, and nobody else's."""
        worker = self._worker
        self._end(one, cut_short=True)
        worker._committer.emit(
            worker._router.worker_lost(one.message, worker.config.name, worker.now_ms(), "its own")
        )
        worker._scheduler.done(one.message)

    def sweep(self) -> None:
        """What the tick's look around does: announce what is still running, and let who has survived rejoin the others."""
        now = self._worker.now_ms()
        isolated = self._worker._scheduler.isolated
        for one in self.running:
            if not one.announced:
                one.announced = True
                change = status_of(self._run(one), JobStatus.RUNNING)
                self._worker._committer.emit(Outcome(None, change, owner=one.message))
            if one.message is isolated and self._worker._scheduler.has_survived(now - one.started_ms):
                self._worker._scheduler.survived()
                self._worker._committer.emit(Outcome(None, None))

    def _end(self, one: Execution, *, cut_short: bool = False) -> None:
        one.ended_ms, one.cut_short = self._worker.now_ms(), cut_short
        self.running.remove(one)

    def _run(self, one: Execution, children: tuple[Any, ...] = ()) -> Run:
        record = one.decoded.record
        return Run(
            one.message,
            one.decoded.job_type,
            one.message.priority or one.decoded.priority,
            record["key"],
            record["created_at"],
            one.started_ms,
            self._worker.now_ms(),
            self._worker.config.name,
            children=children,
        )
