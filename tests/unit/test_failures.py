"""What a worker that fails leaves to its successor."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from structlog.testing import capture_logs

from schemas.codec import Codec
from streams.settings import Settings
from tests.support.deployments import Sample
from tests.support.jobs import Note
from workers import process as process_module
from workers.config import WorkerConfig
from workers.context import WorkerContext
from workers.process import WorkerProcess
from workers.worker import Handlers, Worker

pytestmark = pytest.mark.worker_coordination


async def test_only_a_failure_where_handlers_are_called_is_a_death_for_the_successor() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    kafka_failed, job_failed = (
        WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec()) for _ in range(2)
    )
    kafka_failed._committer._on_failure(ZeroDivisionError())
    job_failed._executor._on_failure(ZeroDivisionError())
    for process, unclean in ((kafka_failed, False), (job_failed, True)):
        assert process.assignments.leaves_unclean is unclean
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(process.failure, 10)


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


class Closing(Worker):
    """A handler that notes its end."""

    worker_type = Note.job_type

    def __init__(self, closed: list[str], error: BaseException | None = None) -> None:
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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("no"), "ZeroDivisionError: no"),
        pytest.param(
            asyncio.CancelledError(), "CancelledError: ", id="it awaits a task that it has cancelled"
        ),
    ],
)
async def test_a_worker_that_stops_closes_its_handlers_whatever_they_raise(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    """Each start of a manager would leave threads and connections behind."""
    closed: list[str] = []
    handlers = Handlers()
    for worker in (Closing(closed, error), ClosingPlainly(closed)):
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
            (Note.job_type, told)
        ]


class NeverClosed(Closing):
    """Hangs, and takes no notice of its cancellation."""

    async def close(self) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            self._closed.append("cancelled")
            if len(self._closed) > 1:
                return


async def test_a_handler_that_cannot_be_closed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_CLOSE_S", 0.01)
    closed: list[str] = []
    handlers = Handlers()
    handlers.register(NeverClosed(closed))
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    process = WorkerProcess(WorkerConfig(worker_id="w"), handlers, settings, Codec())
    with capture_logs() as logs:
        await asyncio.wait_for(process._close_handlers(), 30)
    assert [line["error"] for line in logs] == ["TimeoutError: not closed within 0.01 s"]


def test_a_thread_that_outlives_the_event_loop_ends_without_a_word() -> None:
    """The commit thread of a worker whose Kafka died may still wait for it when everything else has ended."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")

    async def made() -> WorkerProcess:
        return WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec())

    process = asyncio.run(made())
    process._committer._on_failure(ZeroDivisionError())
    process._deliver([])
    process._committed_one()
