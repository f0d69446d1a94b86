"""How long the event loop waits for a busy executor."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import JobPriority
from schemas.codec import Codec
from schemas.jobtype import job_type
from schemas.offsetmap import OffsetMap
from schemas.topics import Topics
from workers.bench.jobs import NoopJob
from workers.committing.router import Router
from workers.config import WorkerConfig
from workers.execution import slots
from workers.execution.decoder import Decoder
from workers.execution.executor import Executor
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome
from workers.scheduling.scheduler import Scheduler
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing

BACKLOG = 3_000


def backlog(codec: Codec) -> list[Message]:
    """Jobs that do nothing, on a partition where all of them may start."""
    kind = job_type(NoopJob)
    prior = OffsetMap(
        offset=0, finished=frozenset(), start_limit=0, clean=True, fence=0, incarnation="before"
    )
    part = PartitionState("jobs.low", 0, prior, incarnation="now", transactional_id="t")
    part.start_limit = BACKLOG
    envelope: dict[str, Any] = {
        "type": kind.name,
        "priority": "low",
        "key": None,
        "created_at": 0,
        "max_retries": None,
        "timeout_ms": None,
        "source": "",
        "parent_id": None,
    }
    values = [
        codec.encode_job(kind, NoopJob(number), {**envelope, "id": f"00000000-0000-0000-0000-{number:012d}"})
        for number in range(BACKLOG)
    ]
    return [
        Message(part, offset, None, value, None, 0, JobPriority.LOW, None)
        for offset, value in enumerate(values)
    ]


async def work_off(monkeypatch: pytest.MonkeyPatch, look: Callable[[int], None]) -> list[Outcome]:
    """Run the backlog on a clock that moves by a tenth of a slice whenever it is read; ``look`` at each round of the loop."""
    ticks = itertools.count(1_000_000_000_000, slots._SLICE_NS // 10)
    monkeypatch.setattr(
        slots, "time", SimpleNamespace(time_ns=time.time_ns, monotonic_ns=lambda: next(ticks))
    )
    config, handlers, codec, scheduler = WorkerConfig(worker_id="w"), Handlers(), Codec(), Scheduler()
    handlers.register(NoopJob)
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []
    busy = Executor(
        config=config,
        decoder=Decoder(codec, handlers, config),
        router=Router(Topics()),
        scheduler=scheduler,
        emit=outcomes.append,
        planner=lambda *_: ("", None),  # type: ignore[arg-type]
        now_ms=lambda: 0,
        steady_ms=lambda: 0,
        worker_name="w.0",
        on_failure=failures.append,
    )
    messages = backlog(codec)
    scheduler.arrived[JobPriority.LOW] += len(messages)
    scheduler.add(messages)
    busy.wake()
    while len(outcomes) < BACKLOG:
        await asyncio.sleep(0)
        look(len(outcomes))
    await busy.stop()
    assert failures == []
    return outcomes


async def test_a_backlog_of_quick_jobs_leaves_the_event_loop_to_others_after_every_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many jobs may run at the same time: what arrives meanwhile must not wait for a slice of each slot."""
    rounds = [0]
    await work_off(monkeypatch, rounds.append)
    longest = max(after - before for before, after in itertools.pairwise(rounds))
    # A slice has room for ten looks at the clock, and each job takes at least one.
    assert longest <= 2 * 10
