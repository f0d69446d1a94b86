"""``WorkerManager``: start, wait and shutdown, in whatever order a program calls them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from schemas.errors import SettingsError
from streams.settings import Settings
from workers.config import WorkerConfig
from workers.manager import WorkerManager
from workers.process import WorkerProcess

pytestmark = pytest.mark.worker_coordination


async def test_a_failed_worker_for_which_nobody_waits_is_shut_down_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its program waits for Ctrl-C, say: the worker would keep its partitions, and commit nothing any more."""
    manager, stopped = started_manager(monkeypatch)
    await manager.start()
    process = manager.process
    with capture_logs() as logs:
        process._committer._on_failure(ZeroDivisionError("of the commit thread"))
        await asyncio.wait_for(stopped.wait(), 10)
        await manager.shutdown()
    assert [(line["log_level"], line["error"]) for line in logs] == [("error", "of the commit thread")]
    with pytest.raises(ZeroDivisionError):
        await manager.wait()


async def test_a_worker_that_a_job_may_have_ended_is_not_drained_even_if_nobody_has_been_told_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last maps would be clean, and each heir die of the same job."""
    manager, stopped = started_manager(monkeypatch)
    drained: list[float] = []

    async def drain(_: WorkerProcess, timeout_s: float) -> None:
        drained.append(timeout_s)

    monkeypatch.setattr(WorkerProcess, "drain", drain)
    await manager.start()
    manager.process.fail_at_work(ZeroDivisionError())
    await manager.shutdown()
    assert stopped.is_set()
    assert drained == []


async def test_a_failed_worker_for_which_somebody_waits_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    manager, stopped = started_manager(monkeypatch)
    await manager.start()
    waiting = asyncio.create_task(manager.wait())
    await asyncio.sleep(0)
    manager.process._committer._on_failure(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await waiting
    await asyncio.sleep(0)
    assert not stopped.is_set()
    await manager.shutdown()
    assert stopped.is_set()


def started_manager(monkeypatch: pytest.MonkeyPatch) -> tuple[WorkerManager, asyncio.Event]:
    """One whose process neither starts nor stops anything; and what is set when it would have stopped."""
    stopped = asyncio.Event()

    async def nothing(*_: object) -> None:
        """There is no Kafka here."""

    async def stop(_: WorkerProcess) -> None:
        stopped.set()

    monkeypatch.setattr(WorkerProcess, "start", nothing)
    monkeypatch.setattr(WorkerProcess, "drain", nothing)
    monkeypatch.setattr(WorkerProcess, "stop", stop)
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    return WorkerManager(WorkerConfig(worker_id="w"), settings), stopped


async def test_a_drain_that_is_given_a_number_is_refused_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forgotten first and refused then, it could not be drained any more."""
    manager, stopped = started_manager(monkeypatch)
    await manager.start()
    process = manager.process
    for wrong in (10, timedelta(seconds=-1)):
        with pytest.raises(SettingsError, match="timeout is"):
            await manager.shutdown(wrong)  # type: ignore[arg-type]
    assert manager.process is process
    assert not stopped.is_set()
    await manager.shutdown(timedelta(0))
    assert stopped.is_set()


def held_start(monkeypatch: pytest.MonkeyPatch) -> tuple[list[WorkerProcess], asyncio.Event]:
    """Starts that have begun, and what lets them end."""
    begun: list[WorkerProcess] = []
    goes_on = asyncio.Event()

    async def start(process: WorkerProcess) -> None:
        begun.append(process)
        await goes_on.wait()

    monkeypatch.setattr(WorkerProcess, "start", start)
    return begun, goes_on


async def test_of_two_starts_at_the_same_time_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would work under one name, and a shutdown would end one of them."""
    manager, _ = started_manager(monkeypatch)
    begun, goes_on = held_start(monkeypatch)
    first = asyncio.create_task(manager.start())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="started already"):
        await manager.start()
    with pytest.raises(RuntimeError, match="register before start"):
        manager.register()
    goes_on.set()
    await first
    assert begun == [manager.process]
    await manager.shutdown()


async def test_a_shutdown_during_the_start_ends_what_has_been_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager, stopped = started_manager(monkeypatch)
    begun, goes_on = held_start(monkeypatch)

    async def work() -> None:
        async with manager:
            await manager.wait()

    working = asyncio.create_task(work())
    while not begun:
        await asyncio.sleep(0)
    ending = asyncio.create_task(manager.shutdown())
    await asyncio.sleep(0)
    assert not ending.done()
    goes_on.set()
    await ending
    assert stopped.is_set()
    await working
    with pytest.raises(RuntimeError, match="not started"):
        _ = manager.process


async def test_a_start_that_fails_leaves_nothing_to_shut_down_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager, stopped = started_manager(monkeypatch)
    starts = WorkerProcess.start
    begun = asyncio.Event()
    goes_on = asyncio.Event()

    async def fails(_: WorkerProcess) -> None:
        begun.set()
        await goes_on.wait()
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerProcess, "start", fails)
    starting = asyncio.create_task(manager.start())
    await begun.wait()
    ending = asyncio.create_task(manager.shutdown())
    goes_on.set()
    with pytest.raises(ZeroDivisionError):
        await starting
    await ending
    assert not stopped.is_set()
    monkeypatch.setattr(WorkerProcess, "start", starts)
    await manager.start()
    await manager.shutdown()
    assert stopped.is_set()


def held_drain(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """A drain that has begun, and what lets it end."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def drain(_process: WorkerProcess, _timeout_s: float) -> None:
        begun.set()
        await goes_on.wait()

    monkeypatch.setattr(WorkerProcess, "drain", drain)
    return begun, goes_on


async def test_whoever_comes_while_it_drains_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second shutdown that returns at once lets its program end, and jobs with it; two workers of one id are one too many."""
    manager, stopped = started_manager(monkeypatch)
    begun, goes_on = held_drain(monkeypatch)
    await manager.start()
    first = manager.process
    ending = asyncio.create_task(manager.shutdown())
    await begun.wait()
    others = [asyncio.create_task(one()) for one in (manager.shutdown, manager.wait, manager.start)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(one.done() for one in (ending, *others))
    goes_on.set()
    await asyncio.gather(ending, *others)
    assert stopped.is_set()
    assert manager.process is not first
    await manager.shutdown()


async def test_who_waits_for_what_has_been_shut_down_already_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may come between start and wait."""
    manager, _ = started_manager(monkeypatch)
    with pytest.raises(RuntimeError, match="not started"):
        await manager.wait()
    await manager.start()
    await manager.shutdown()
    await manager.wait()


async def test_a_failed_worker_may_be_started_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    manager, stopped = started_manager(monkeypatch)
    await manager.start()
    first = manager.process
    first._committer._on_failure(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await first.failure
    await manager.start()
    assert stopped.is_set()
    assert manager.process is not first
    await manager.shutdown()


async def test_a_worker_that_fails_while_it_drains_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last commit was not made: without a word its handlers ran again elsewhere, and it exited with 0."""
    manager, stopped = started_manager(monkeypatch)
    begun, goes_on = held_drain(monkeypatch)
    await manager.start()
    process = manager.process
    with capture_logs() as logs:
        ending = asyncio.create_task(manager.shutdown())
        await begun.wait()
        process._committer._on_failure(ZeroDivisionError("of the commit thread"))
        goes_on.set()
        await ending
    assert stopped.is_set()
    assert [(line["log_level"], line["error"]) for line in logs] == [
        ("error", "ZeroDivisionError: of the commit thread")
    ]
    assert isinstance(manager.failed, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        await manager.wait()


async def test_whoever_gives_up_waiting_for_a_shutdown_leaves_no_thread_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled twice, it left a commit thread and a report thread that nobody could stop."""
    manager, _ = started_manager(monkeypatch)
    stopping, goes_on, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stop(_: WorkerProcess) -> None:
        stopping.set()
        await goes_on.wait()
        stopped.set()

    monkeypatch.setattr(WorkerProcess, "stop", stop)
    held_drain(monkeypatch)
    await manager.start()
    ending = asyncio.create_task(manager.shutdown())
    await asyncio.sleep(0)
    ending.cancel()
    await stopping.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    goes_on.set()
    await asyncio.wait_for(stopped.wait(), 10)


async def test_whoever_waits_is_told_of_the_end_even_if_stopping_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager, _ = started_manager(monkeypatch)

    async def stop(_: WorkerProcess) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerProcess, "stop", stop)
    await manager.start()
    waiting = asyncio.create_task(manager.wait())
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        await manager.shutdown()
    await asyncio.wait_for(waiting, 10)
