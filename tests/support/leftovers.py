"""Job types that leave something behind in their worker (``worker --import tests.support.leftovers``)."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from schemas import Job

#: Longer than any test.
LONG_S = 600.0


@dataclass
class FillsAsynciosThreads(Job):
    """A call that blocks, in a thread that nobody can end."""

    job_type = "left_in_a_thread"
    max_retries = 0
    timeout = timedelta(seconds=1)

    async def execute(self) -> None:
        await asyncio.to_thread(time.sleep, LONG_S)


@dataclass
class LeavesAThread(Job):
    """One that Python waits for when the program ends."""

    job_type = "leaves_a_thread"

    async def execute(self) -> None:
        threading.Thread(target=time.sleep, args=(LONG_S,)).start()


@dataclass
class LeavesATask(Job):
    """One that asyncio waits for when the program ends."""

    job_type = "leaves_a_task"

    async def execute(self) -> None:
        self.task = asyncio.create_task(_never_ends())


async def _never_ends() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@dataclass
class ExitsInATask(Job):
    """As a library does that was made for the command line."""

    job_type = "exits_in_a_task"
    max_retries = 0

    async def execute(self) -> None:
        async def step() -> None:
            await asyncio.sleep(0)  # a step later, so that it is the task's own
            sys.exit("usage: tool FILE")

        async with asyncio.TaskGroup() as group:
            group.create_task(step())


@dataclass
class ExitsInACallback(Job):
    """When it has ended well."""

    job_type = "exits_in_a_callback"

    async def execute(self) -> None:
        asyncio.get_running_loop().call_later(0.1, sys.exit, 0)
