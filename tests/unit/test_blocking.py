from __future__ import annotations

import asyncio
import os

import pytest

from workers.blocking import in_thread

pytestmark = [
    pytest.mark.job_processing,
    # Python 3.12 and later warn of a fork beside threads; how calls survive one is what is tested here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.mark.timeout(20)
def test_a_call_of_a_forked_child_has_a_thread_to_run_in() -> None:
    """The parent's are not there, but its pool would count on them: the call, and who waits for it, would hang."""
    asyncio.run(in_thread(os.getpid))  # the parent has a thread to inherit
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            asyncio.run(asyncio.wait_for(in_thread(os.write, writing, b"called"), 10))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"called"
    os.waitpid(child, 0)
