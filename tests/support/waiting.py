"""Waiting for what happens in another process, where there is no signal to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

#: A condition may take a fifth of the time.
_PAUSES: Final = 4
_LONGEST_PAUSE_S: Final = 0.25


def eventually(condition: Callable[[], Any], timeout_s: float, what: str, *, pause_s: float = 0.02) -> Any:
    """Wait until the condition gives something true; it is asked often, and a time-out says what was waited for.

    One that reads whole topics is asked less often: it would take the processor, and Kafka's, from what it waits for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        if (now := time.monotonic()) > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(max(pause_s, min(_PAUSES * (now - began), _LONGEST_PAUSE_S)))


async def file_appears(file: Path, timeout_s: float) -> bool:
    """For a handler that runs until the test makes this file. False: it was not made in time."""
    deadline = time.monotonic() + timeout_s
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True
