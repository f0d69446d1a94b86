"""What a worker that fails leaves to its successor."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from schemas.codec import Codec
from schemas.errors import SettingsError
from streams.settings import Settings
from tests.support.deployments import Sample
from tests.support.jobs import Note
from workers.config import WorkerConfig
from workers.context import WorkerContext
from workers.manager import WorkerManager
from workers.process import WorkerProcess
from workers.worker import Handlers, Worker

pytestmark = pytest.mark.worker_coordination


async def test_only_a_failure_where_handlers_are_called_is_a_death_for_the_successor() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    kafka_failed, job_failed = (
        WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec()) for _ in range(2)
    )
    kafka_failed._committer._on_failure(ZeroDivisionError())
    job_failed._executor._failure(ZeroDivisionError())
    for process, unclean in ((kafka_failed, False), (job_failed, True)):
        assert process.assignments.leaves_unclean is unclean
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(process.failure, 10)


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


@pytest.mark.parametrize(("goes_on", "may_have_killed"), [(False, False), (True, False), (False, True)])
async def test_a_drain_is_clean_only_if_nothing_can_end_the_process_any_more(
    *, goes_on: bool, may_have_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deaf handler that outlives the drain may yet crash it: its heirs would suspect nobody."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    process = WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec())
    said: list[bool] = []

    def release(_parts: object, *, clean: bool) -> threading.Event:
        said.append(clean)
        done = threading.Event()
        done.set()
        return done

    monkeypatch.setattr(process._committer, "release", release)
    monkeypatch.setattr(process._executor, "runs_on", lambda _: goes_on)
    process.assignments.leaves_unclean = may_have_killed
    await process.drain(0)
    assert said == [not (goes_on or may_have_killed)]


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


class Closing(Worker):
    """A handler that notes its end."""

    worker_type = Note.job_type

    def __init__(self, closed: list[str], error: Exception | None = None) -> None:
        self._closed, self._error = closed, error

    async def process_job(self, job: Note, context: WorkerContext) -> None:
        """Nothing comes here."""

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._closed.append(self.worker_type)
        if self._error is not None:
            raise self._error


class ClosingPlainly(Closing):
    """The same, as a plain function."""

    worker_type = Sample.job_type

    def close(self) -> None:  # type: ignore[override]
        self._closed.append(self.worker_type)


async def test_a_worker_that_stops_closes_its_handlers_whatever_they_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each start of a manager would leave threads and connections behind."""
    closed: list[str] = []
    handlers = Handlers()
    for worker in (Closing(closed, ZeroDivisionError("no")), ClosingPlainly(closed)):
        handlers.register(worker)
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    for times in (1, 2):
        process = WorkerProcess(WorkerConfig(worker_id="w"), handlers, settings, Codec())
        for thread in (process._poller, process._committer, process._reporter):  # they have not been started
            monkeypatch.setattr(thread, "stop", lambda *_: True)
        with capture_logs() as logs:
            await process.stop()
        assert closed == [Note.job_type, Sample.job_type] * times
        assert [(line["type"], line["error"]) for line in logs if line["log_level"] == "warning"] == [
            (Note.job_type, "ZeroDivisionError: no")
        ]


def test_a_thread_that_outlives_the_event_loop_ends_without_a_word() -> None:
    """The commit thread of a worker whose Kafka died may still wait for it when everything else has ended."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")

    async def made() -> WorkerProcess:
        return WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec())

    process = asyncio.run(made())
    process._committer._on_failure(ZeroDivisionError())
    process._deliver([])
    process._committed_one()
