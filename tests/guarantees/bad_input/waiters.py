"""Somebody who waits for jobs, while garbage arrives on the topics that tell of their ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from streams.queue import JobQueue
from streams.settings import Settings
from tests.support.jobs import Note

#: When the jobs are due: one while the first garbage is read, one amid the rest of it.
_DELAYS_S: Final = (1, 5)


@contextmanager
def waiting(settings: Settings, timeout_s: float) -> Iterator[dict[str, str]]:
    """Schedule jobs, and wait for each from now on; in the end, by id: the state that was heard of, or what went wrong."""
    heard: dict[str, str] = {}

    async def one(queue: JobQueue, job_id: str) -> None:
        try:
            heard[job_id] = (await queue.wait(job_id, timedelta(seconds=timeout_s))).status.value
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the caller wants to know
            heard[job_id] = repr(error)

    async def wait_for_all() -> None:
        async with JobQueue.connect(settings) as queue:
            ids = [
                await queue.schedule_job(Note(), delay=timedelta(seconds=delay_s)) for delay_s in _DELAYS_S
            ]
            heard.update(dict.fromkeys(ids, "nothing"))
            is_listening.set()
            await asyncio.gather(*(one(queue, job_id) for job_id in ids))

    is_listening = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(wait_for_all()), name="waiters")
    thread.start()
    is_listening.wait(timeout_s)
    try:
        yield heard
    finally:
        thread.join()
