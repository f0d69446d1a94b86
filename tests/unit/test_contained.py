"""Tasks that want to end the program."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import pytest

from workers.contained import TaskExited, contained_task

pytestmark = pytest.mark.job_processing


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("leave", [sys.exit, interrupt])
def test_their_exit_is_an_ordinary_error_to_whoever_waits_for_them(leave: Callable[[], NoReturn]) -> None:
    async def step() -> None:
        await asyncio.sleep(0)
        leave()

    async def program() -> str:
        asyncio.get_running_loop().set_task_factory(contained_task)
        with pytest.raises(TaskExited):
            await asyncio.create_task(step())
        return "goes on"

    assert asyncio.run(program()) == "goes on"


def test_they_are_cancelled_and_named_as_ever() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    async def program() -> None:
        asyncio.get_running_loop().set_task_factory(contained_task)
        begun, fresh = asyncio.create_task(waits(), name="begun"), asyncio.create_task(waits())
        await asyncio.sleep(0)
        never = asyncio.create_task(waits())
        assert begun.get_name() == "begun"
        assert "waits" in repr(begun)
        for task in (begun, fresh, never):
            task.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError)
            for one in await asyncio.gather(begun, fresh, never, return_exceptions=True)
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "was never awaited"
        asyncio.run(program())
