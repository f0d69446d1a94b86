"""``WorkerManager``: what a program uses to run workers in its own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

import structlog

from schemas.durations import seconds
from schemas.job import Job
from streams.registry import build_codec
from streams.settings import Settings, load_settings
from workers.blocking import in_thread
from workers.config import WorkerConfig
from workers.own_schemas import frame, own_schemas
from workers.process import WorkerProcess
from workers.worker import Handlers, Worker

log = structlog.get_logger("rustfs_workers.manager")


class WorkerManager:
    """Runs one worker process's worth of handlers.

    If the worker fails while nobody is in ``wait``, it is shut down, and the next ``wait`` says why.

    .. code-block:: python

        manager = WorkerManager(WorkerConfig(worker_id="worker-1"))
        manager.register(ThumbnailWorker())
        async with manager:
            await manager.wait()

    For one event loop; not thread-safe.
    """

    def __init__(self, config: WorkerConfig | None = None, settings: Settings | None = None) -> None:
        self._settings = settings if settings is not None else load_settings()
        self.config = config if config is not None else WorkerConfig.from_settings(self._settings)
        self.handlers = Handlers()
        self._process: WorkerProcess | None = None
        #: Done when the ``start`` that is under way has ended, whichever way.
        self._starting: asyncio.Future[None] | None = None
        #: How many wait for its end, the error that it ended with though nobody did, and the shutdown, once it is under way.
        self._waiters = 0
        self._failed: BaseException | None = None
        self._ending: asyncio.Future[None] | None = None
        #: After ``shutdown``: handlers that go on all the same, being threads or having swallowed their cancellation.
        #: Python and asyncio wait for them when the program ends.
        self.left_behind = 0

    def register(self, *what: type[Worker | Job] | Worker | Callable[[], Worker]) -> Self:
        """Add workers (instances, classes or other factories) and job classes that run themselves.

        A handler that may be run in a process of its own is made there again: by its class, by a function of a module, or by a
        ``functools.partial`` of one of these, with arguments that JSON holds as they are. An instance that was made with
        arguments cannot be.

        A manager to which nothing is added runs the workers that come with the project.

        Raises:
            JobTypeError: a type is not declared, or has a handler already.
            WorkerNotMade: a factory wanted something that is not there now.
            RuntimeError: the manager has been started.
        """
        if self._process is not None or self._starting is not None:
            raise RuntimeError("register before start")
        for one in what:
            self.handlers.register(one)
        return self

    async def start(self) -> None:
        """Join the group and begin to work. A ``shutdown`` that is under way is waited for first.

        Raises:
            KafkaUnreachable: Kafka does not answer.
            TopicsMismatch: topics are missing, or not as they must be.
            JobTypeError: a handler for processes cannot be imported there.
            RuntimeError: started already, or another ``start`` is under way.
        """
        if self._ending is not None:
            await asyncio.wait([self._ending])
        if self._process is not None or self._starting is not None:
            raise RuntimeError("started already")
        if not len(self.handlers):
            from workers.builtin import builtin_workers  # they load the storage clients

            self.register(*builtin_workers(self._settings))
        # A second worker of this name would take the first one's transactions, and nobody would ever stop one of them.
        self._starting = starting = asyncio.get_running_loop().create_future()
        try:
            schemas = own_schemas(self.handlers)
            codec = await in_thread(lambda: frame(build_codec(self._settings), schemas))
            process = WorkerProcess(self.config, self.handlers, self._settings, codec)
            await process.start()
            self._process = process
            self._failed = self._ending = None
            process.failure.add_done_callback(self._look_who_waits)
        finally:
            self._starting = None
            starting.set_result(None)

    async def wait(self) -> None:
        """Until the end of ``shutdown``, or until the worker fails.

        Raises:
            PipelineError, KafkaException: why it cannot go on.
            RuntimeError: not started.
        """
        if self._process is None and self._failed is not None:
            raise self._failed
        if self._process is None and self._ending is not None:
            await asyncio.shield(self._ending)
            return
        self._waiters += 1
        try:
            await asyncio.shield(self.process.failure)
        finally:
            self._waiters -= 1

    async def shutdown(self, timeout: timedelta | None = None) -> None:  # noqa: ASYNC109 - a deadline for jobs, not for us
        """Drain and stop: running jobs get ``timeout`` (default: the config's ``drain_timeout``), then are cancelled.

        What is cancelled is run again by another worker. Calling it twice is harmless: each call ends when it is done. A
        ``start`` that is under way is waited for first.

        Raises:
            SettingsError: ``timeout`` is no ``timedelta``, or negative; the worker goes on.
        """
        # Before anything changes: a worker that is forgotten and then not drained leaves its jobs running.
        limit = self.config.drain_timeout if timeout is None else timeout
        limit_s = seconds("timeout", limit, least=timedelta(0))
        if self._starting is not None:
            await asyncio.shield(self._starting)
        process, self._process = self._process, None
        if process is not None:
            self._ending = ending = asyncio.get_running_loop().create_future()
            try:
                await self._end(process, limit_s)
            finally:
                ending.set_result(None)
        elif self._ending is not None:
            await asyncio.shield(self._ending)

    async def _end(self, process: WorkerProcess, limit_s: float) -> None:
        had_failed = process.has_failed
        try:
            if process.can_drain or not had_failed:
                await process.drain(limit_s)
        finally:
            # Whoever gives up waiting for it, even twice, leaves no thread behind that nobody can stop.
            stopping = asyncio.get_running_loop().create_task(self._stop(process, had_failed=had_failed))
            await asyncio.shield(stopping)

    async def _stop(self, process: WorkerProcess, *, had_failed: bool) -> None:
        try:
            await process.stop()
        finally:
            self.left_behind = process.left_behind
            if not process.failure.done():
                process.failure.set_result(None)
        self._failed = None if process.failure.cancelled() else process.failure.exception()
        if self._failed is not None and not had_failed:
            log.error(
                "worker failed while it was shut down: what it had not committed runs again",
                worker=self.config.name,
                error=f"{type(self._failed).__name__}: {self._failed}",
            )

    @property
    def failed(self) -> BaseException | None:
        """Why the worker that was shut down last could not go on, in the end too; None: it left in order."""
        return self._failed

    def _look_who_waits(self, failure: asyncio.Future[None]) -> None:
        """A worker that failed commits nothing: it must not keep its partitions because its program is not in ``wait``."""
        error = None if failure.cancelled() else failure.exception()
        if error is None or self._waiters or self._process is None:
            return
        log.error("worker failed: it is shut down", worker=self.config.name, error=str(error))
        self._failed = error
        process, self._process = self._process, None
        limit_s = self.config.drain_timeout.total_seconds()
        self._ending = asyncio.get_running_loop().create_task(
            self._end(process, limit_s), name="shutdown of a failed worker"
        )

    @property
    def process(self) -> WorkerProcess:
        """What runs, for counters and diagnosis.

        Raises:
            RuntimeError: it is not running.
        """
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()
