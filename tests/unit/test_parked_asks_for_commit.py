"""A job that waits for nothing but a commit, while the job taken in the same breath takes its time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.errors import UnknownSchema
from tests.support.executor_bench import Bench, returns_nothing
from tests.support.messages import TOPICS, partition
from tests.support.schedule_bench import CRITICAL
from workers.message import Message

pytestmark = pytest.mark.job_processing


async def test_who_is_parked_asks_for_a_commit_though_the_one_taken_with_it_waits_for_its_schema() -> None:
    async with Bench() as bench:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def from_kafka(_message: Message) -> Any:
            asked.set()
            await answer.wait()  # the lookup has ten seconds
            return bench.decoder.learned[slow.offset]

        bench.decoder.learn_and_decode = from_kafka  # type: ignore[method-assign, assignment]
        closed = partition(TOPICS.jobs[CRITICAL], 1)
        closed.top = 5  # the offset tells the test's decoder which job it is
        closed.base = closed.start_limit = 0
        urgent = bench.add(returns_nothing, part=closed)
        slow = bench.add(returns_nothing)
        bench.decoder.learned[slow.offset] = bench.decoder.by_offset[slow.offset]
        bench.decoder.by_offset[slow.offset] = UnknownSchema(b"12345678")
        bench.executor.wake()
        await asyncio.wait_for(asked.wait(), 1)
        try:
            assert bench.scheduler.has_parked
            assert closed.dirty
            assert bench.outcomes, f"{urgent.where} waits for a commit, and nobody has asked for one"
        finally:
            answer.set()
            await bench.ended(1)
