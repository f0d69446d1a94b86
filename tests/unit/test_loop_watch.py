"""Whoever holds the event loop is named, and ended when it has gone on for too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from workers.loop_watch import LoopWatch

pytestmark = pytest.mark.worker_coordination


def watched(ended: list[int], limit_s: float = 0.3) -> LoopWatch:
    watch = LoopWatch(limit_s, code=1, told_after_s=0.1, look_s=0.02, end=ended.append)
    watch.start()
    return watch


def holds_until(condition: Callable[[], object]) -> None:
    """As a handler does that does not know of ``await``."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


async def test_a_loop_that_is_held_is_told_of_with_the_line_and_then_ended() -> None:
    ended: list[int] = []
    watch = watched(ended)
    with capture_logs() as logs:
        holds_until(lambda: ended)
    watch.stop()
    assert ended == [1]
    assert [line["log_level"] for line in logs] == ["warning", "error"]
    assert all("holds_until" in line["at"] for line in logs)


async def test_a_loop_that_turns_is_left_alone_however_long() -> None:
    ended: list[int] = []
    watch = watched(ended)
    with capture_logs() as logs:
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
    watch.stop()
    assert (ended, logs) == ([], [])


async def test_whoever_wants_the_process_to_end_shortens_the_time() -> None:
    ended: list[int] = []
    watch = watched(ended, limit_s=1000)
    watch.hurry(0.05, 143)
    holds_until(lambda: ended)
    watch.stop()
    assert ended == [143]
