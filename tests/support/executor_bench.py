"""An executor on a clock and a decoder of the test's own, and what its jobs came to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from schemas.backoff import Backoff
from schemas.headers import Delivery
from schemas.job import Execution
from schemas.lifecycle import JobStatus
from tests.support.messages import TOPICS, commit, message, partition
from workers.committing.router import Limits, Router
from workers.config import WorkerConfig
from workers.context import WorkerContext
from workers.execution.children import ChildJobs
from workers.execution.executor import Executor
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome, PlainSuccess
from workers.results import Success
from workers.scheduling.scheduler import Scheduler

NOW_MS = 1_000_000
HOUR_MS = 3_600_000
LIMITS = Limits(3, Backoff(base=timedelta(seconds=2)), HOUR_MS)
Call = Callable[[Any, WorkerContext], Any]


@dataclass
class FakeHandler:
    call: Call
    execution: Execution = "async"
    job_type: Any = None


@dataclass
class FakeDecoded:
    handler: FakeHandler | None
    record: dict[str, Any]
    timeout_ms: int = HOUR_MS
    job_type: str = "test"
    job: Any = None
    limits: Limits = LIMITS
    priority: Any = None


class FakeDecoder:
    """Gives each message what the test has laid down for it."""

    def __init__(self) -> None:
        self.by_offset: dict[int, FakeDecoded | Exception] = {}
        self.learned: dict[int, FakeDecoded | Exception] = {}

    def decode(self, one: Message) -> FakeDecoded:
        return self._give(self.by_offset[one.offset])

    async def learn_and_decode(self, one: Message) -> FakeDecoded:
        await asyncio.sleep(0)  # the real one waits for Kafka here, and others have their turn
        return self._give(self.learned[one.offset])

    @staticmethod
    def _give(what: FakeDecoded | Exception) -> FakeDecoded:
        if isinstance(what, Exception):
            raise what
        return what


class Bench:
    """An executor with a clock that the test moves, and a list instead of a commit thread."""

    def __init__(self, concurrency: int = 4) -> None:
        self.now_ms = NOW_MS
        #: So much of ``now_ms`` is no time that has passed: the broker's clock was set.
        self.set_by_ms = 0
        self.outcomes: list[Outcome] = []
        self.failures: list[BaseException] = []
        self.emitted = asyncio.Event()
        #: What the lease says.
        self.may_start = True
        self.decoder = FakeDecoder()
        self.scheduler = Scheduler()
        self.part = partition()
        self.part.top = 1_000
        commit(self.part)
        self.part.top = 0
        fake: Any = self.decoder
        planning: Any = None
        self.executor = Executor(
            config=WorkerConfig(worker_id="w", max_concurrent_jobs=concurrency, tick_ms=1),
            decoder=fake,
            router=Router(TOPICS),
            scheduler=self.scheduler,
            emit=self._emit,
            planner=ChildJobs(planning, now_ms=lambda: self.now_ms, partitions=lambda: 0),
            now_ms=lambda: self.now_ms,
            worker_name="w.0",
            on_failure=self.failures.append,
            may_start=lambda: self.may_start,
            steady_ms=lambda: self.now_ms - self.set_by_ms,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.stop()
        assert self.failures == []

    def _emit(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.emitted.set()

    def set_clock(self, by_ms: int) -> None:
        """As if somebody had set the broker's clock; no time passes."""
        self.now_ms += by_ms
        self.set_by_ms += by_ms

    def add(
        self,
        call: Call | None,
        *,
        execution: Execution = "async",
        key: bytes | None = None,
        part: PartitionState | None = None,
        timeout_ms: int | None = HOUR_MS,
        delivery: Delivery | None = None,
    ) -> Message:
        """A job whose handler is ``call`` arrives."""
        part = part or self.part
        one = message(part, part.top, key=key, delivery=delivery, timestamp_ms=NOW_MS)
        part.note_delivered(part.top)
        record = {"id": one.job_id.decode(), "key": None, "created_at": NOW_MS, "timeout_ms": timeout_ms}
        handler = None if call is None else FakeHandler(call, execution)
        self.decoder.by_offset[one.offset] = FakeDecoded(handler, record)
        assert one.priority is not None
        self.scheduler.arrived[one.priority] += 1
        self.scheduler.arrived_bytes[one.priority] += one.size
        self.scheduler.add([one])
        return one

    @property
    def ends(self) -> list[Outcome]:
        """What has ended; news of running jobs left out."""
        return [outcome for outcome in self.outcomes if outcome.message is not None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look after each outcome, and now and then: not every state of an executor comes with an outcome."""
        async with asyncio.timeout(30):
            while not condition():
                self.emitted.clear()
                try:
                    await asyncio.wait_for(self.emitted.wait(), 0.01)
                except TimeoutError:
                    continue

    async def ended(self, count: int = 1) -> list[Outcome]:
        self.executor.wake()
        await self.until(lambda: len(self.ends) >= count)
        assert self.failures == []
        return self.ends

    async def end_of(self, call: Call, **facts: Any) -> Outcome:
        """How the only job ends."""
        self.add(call, **facts)
        (outcome,) = await self.ended()
        assert self.scheduler.running == 0
        return outcome


def state_of(outcome: Outcome) -> JobStatus | None:
    return outcome.state


def error_of(outcome: Outcome) -> tuple[str | None, str | None]:
    assert outcome.status is not None
    assert not isinstance(outcome.status, PlainSuccess)
    return outcome.status.error_type, outcome.status.error_message


class Gate:
    """A handler that waits until the test opens it, and notes what happens to it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.opened = asyncio.Event()
        self.runs = 0
        self.context: WorkerContext | None = None

    async def __call__(self, job: Any, context: WorkerContext) -> None:
        self.runs += 1
        self.context = context
        self.started.set()
        await self.opened.wait()


async def returns_nothing(job: Any, context: WorkerContext) -> None:
    return None


def raising(error: BaseException) -> Call:
    async def call(job: Any, context: WorkerContext) -> Any:
        raise error

    return call


async def stubborn(job: Any, context: WorkerContext) -> Success:
    """Ends well where others would end."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return Success({"cleaned": True})
    return Success()
