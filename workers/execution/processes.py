"""Handlers with ``execution = "process"``: CPU-bound work, beside the event loop and outside of its GIL.

In:  a job as Avro bytes. Out: its result.

Also the only kind that a timeout can really end: its process is killed. A child is told the importable
names of the handlers that this process registered itself, never a name from a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import structlog

from schemas.errors import InvalidJob, JobTypeError, PipelineError, UnknownSchema
from schemas.job import job_class
from schemas.jobtype import job_type
from workers.context import WorkerContext
from workers.execution import frames, process_wire
from workers.execution.process_names import announce, search_path
from workers.results import Failed, JobResult, Snooze
from workers.worker import Handler

log = structlog.get_logger("rustfs_workers.processes")

#: Importing numerical libraries from a cold disk takes its time.
_START_TIMEOUT_S: Final = 60.0
#: Between SIGTERM, which lets a handler clean up, and SIGKILL.
_GRACE_S: Final = 0.5
#: One that waits for a disk or a file server that does not answer cannot be ended, nor one of another user. It keeps nobody waiting.
_KILLED_WITHIN_S: Final = 5.0
#: After a child that did not start, before the next one is tried.
_PAUSE_S: Final = 5.0
_SNOOZE: Final = timedelta(seconds=10)
#: The search path first: the working directory may hold a package with one of our names.
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from workers.lean import import_structlog; import_structlog(); "
    "from workers.execution.process_child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


class NotStarted(PipelineError):
    """A child could not be started: that is nobody's failure but ours."""


class ProcessDied(Exception):
    """A child ended under the job that it ran.

    Attributes:
        code: its exit code, or minus its signal.
        after_others: others had run there before: it may have died of what one of them has left behind.
    """

    def __init__(self, code: int, *, after_others: bool = False) -> None:
        super().__init__(f"the handler's process died with {_how(code)}")
        self.code = code
        self.after_others = after_others


class ProcessPool:
    """At most ``size`` child processes, started when they are first needed. For one event loop.

    A child imports what this process has registered, with this process's ``sys.path`` of now, and makes each
    ``Worker`` anew, from its class or from the function that was registered.

    Raises:
        JobTypeError: a handler for processes cannot be imported by a child.
    """

    def __init__(self, size: int, handlers: Iterable[Handler]) -> None:
        self._announced = [announce(handler) for handler in handlers]
        self._path = search_path()
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False
        self._pause: tuple[float, str] | None = None

    async def start(self) -> None:
        """Start one child, if there is anything to run in it: what is wrong shows before a job is taken.

        Raises:
            JobTypeError: the child cannot import what it is to run.
            PipelineError: it did not start for another reason.
        """
        if self._announced and not self._all:
            self._idle.append(await self._start())

    async def run(
        self,
        handler: Handler,
        body: bytes,
        context: WorkerContext,
        *,
        on_start: Callable[[], None] = lambda: None,
    ) -> JobResult:
        """Run one job in a child and return its result. Cancelling this ends the child, and then raises.

        A job whose child cannot be started is snoozed: that is no failure of the job.

        Args:
            handler: its handler, one of those that the pool was made with.
            body: the job's record in the handler's own schema, without a frame.
            context: gets the run's metrics, progress and child jobs as they come.
            on_start: called when a child is free and takes the job; until then the run waits its turn.

        Raises:
            asyncio.CancelledError: also if the pool is closed; the job has not failed then.
        """
        try:
            return await self.run_or_raise(handler, body, context, on_start=on_start)
        except NotStarted as error:
            log.error("handler process did not start", job_id=context.job_id, error=str(error))  # noqa: TRY400
            return Snooze(_SNOOZE, str(error))
        except ProcessDied as error:
            return died(error.code)

    async def run_or_raise(
        self,
        handler: Handler,
        body: bytes,
        context: WorkerContext,
        *,
        on_start: Callable[[], None] = lambda: None,
        fresh: bool = False,
    ) -> JobResult:
        """The same, for who does something else about a child that does not start, or dies.

        ``fresh``: in a child in which nothing has run before.

        Raises:
            NotStarted, ProcessDied, asyncio.CancelledError.
        """
        async with self._free:
            try:
                if fresh and self._idle:
                    self._end(self._idle.pop())
                child = (None if fresh else self._take_idle()) or await self._start()
            except PipelineError as error:
                raise NotStarted(str(error)) from error
            on_start()
            after_others, child.has_run = child.has_run, True
            try:
                result = await child.run(handler, body, context)
            except (EOFError, OSError) as error:
                code = await self._end(child)
                if self._closed:
                    raise asyncio.CancelledError("the process pool was closed") from error
                raise ProcessDied(code, after_others=after_others) from error
            except BaseException:
                # Cancelled: what runs there has to end, and a process is the one thing that can be ended.
                await self._end(child)
                raise
            self._idle.append(child)
            return result

    def end_idle(self) -> None:
        """End those that run nothing; the next job starts another."""
        while self._idle:
            self._end(self._idle.pop())

    async def close(self) -> None:
        """End all children, running jobs included. Nothing runs after it."""
        self._closed = True
        self._idle.clear()
        await asyncio.gather(*(self._end(child) for child in list(self._all)))

    def _take_idle(self) -> _Child | None:
        if self._closed:
            raise asyncio.CancelledError("the process pool is closed")
        while self._idle:
            child = self._idle.pop()
            if not child.gone:
                return child
            log.warning("idle handler process ended", pid=child.pid)
            self._end(child)
        return None

    async def _start(self) -> _Child:
        now = time.monotonic()
        if self._pause is not None and now < self._pause[0]:
            raise PipelineError(self._pause[1])
        try:
            child = await _Child.spawn(self._path)
            self._all.add(child)
            try:
                await child.greet(self._announced)
            except BaseException:
                await self._end(child)
                raise
        except (PipelineError, OSError) as error:
            self._pause = (now + _PAUSE_S, str(error))
            if self._closed:
                raise asyncio.CancelledError("the process pool was closed") from error
            if isinstance(error, PipelineError):
                raise
            raise PipelineError(f"a handler process did not start: {error}") from error
        if self._closed:
            await self._end(child)
            raise asyncio.CancelledError("the process pool was closed")
        self._pause = None
        log.debug("handler process started", pid=child.pid, seconds=round(time.monotonic() - now, 2))
        return child

    def _end(self, child: _Child) -> asyncio.Future[int]:
        """End it and give its exit code. Goes on if the one who waits is cancelled a second time."""
        ending = child.end()
        ending.add_done_callback(lambda _: self._all.discard(child))
        return asyncio.shield(ending)


class _Child:
    """One child process and the channel to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        #: A job has begun there.
        self.has_run = False
        self._process = process
        self._reader = reader
        self._writer = writer
        self._exit = asyncio.create_task(self._watch(), name=f"exit of handler process {process.pid}")
        self._ending: asyncio.Task[int] | None = None

    @classmethod
    async def spawn(cls, path: list[str]) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            channel = str(theirs.fileno())
            try:
                # In this thread: the child's death signal comes when the thread that started it ends.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", _BOOT, channel, str(os.getpid()), *path),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    # Ctrl-C goes to the whole terminal group: the worker decides what ends, not the terminal.
                    # A group of its own also lets us end what the handler has started.
                    start_new_session=True,
                )
            except BaseException:
                writer.close()
                raise
        return cls(process, reader, writer)

    @property
    def gone(self) -> bool:
        return self._exit.done() or self._reader.at_eof()

    async def greet(self, announced: list[dict[str, Any]]) -> None:
        """Tell it what it will have to run, and wait until it is ready.

        Raises:
            JobTypeError: it cannot import that.
            PipelineError: it died, or is not ready in time.
        """
        self._writer.write(frames.pack({"handlers": announced}))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                header, _ = await self._receive()
        except TimeoutError as error:
            raise PipelineError(
                f"a handler process was not ready within {_START_TIMEOUT_S:.0f} s; does an import wait for something?"
            ) from error
        except EOFError as error:
            how = _how(await self.end())
            raise PipelineError(f"a handler process ended with {how} while it started; see stderr") from error
        if "error" in header:
            log.error("import failed in a handler process", pid=self.pid, stacktrace=header["stacktrace"])
            text = f"a handler process cannot import what this worker has registered: {header['error']}"
            raise PipelineError(text) if header["passes"] else JobTypeError(text)

    async def run(self, handler: Handler, body: bytes, context: WorkerContext) -> JobResult:
        """One job.

        Raises:
            EOFError, OSError: the child died.
        """
        order = {"run": handler.job_type.name, "context": process_wire.facts(context)}
        self._writer.write(frames.pack(order, body))
        while True:
            header, data = await self._receive()
            for name, value in header.get("metrics", {}).items():
                context.update_metrics(name, value)
            if "progress" in header:
                context.progress(*header["progress"])
            match header["say"]:
                case "schedule":
                    self._writer.write(frames.pack(await _plan(header, data, context)))
                case "result":
                    return process_wire.result_of(header)

    def end(self) -> asyncio.Task[int]:
        """Ask it to end, then make it; the result is its exit code (negative: the signal)."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._finish(), name=f"end of handler process {self.pid}")
        return self._ending

    async def _finish(self) -> int:
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        if self._exit.done():
            return self._exit.result()  # long ago, perhaps: its number may be somebody else's by now
        for number, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _KILLED_WITHIN_S)):
            self._signal(number)
            await asyncio.wait((self._exit,), timeout=grace_s)
            if self._exit.done():
                break
        else:
            log.error("handler process cannot be ended: it is left behind", pid=self.pid)
            self._writer.transport.abort()
            return -signal.SIGKILL
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return self._exit.result()

    async def _watch(self) -> int:
        code = await self._process.wait()
        # What the handler has started and left behind. The group keeps its number while anyone is in it.
        self._signal(signal.SIGKILL)
        # The end may not show on the channel: what the handler has forked can hold it open.
        self._writer.transport.abort()
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none left, or only zombies
            os.killpg(self.pid, number)

    async def _receive(self) -> tuple[frames.Header, bytes]:
        text, body = frames.lengths(await self._reader.readexactly(frames.HEADER_BYTES))
        header = json.loads(await self._reader.readexactly(text))
        return header, await self._reader.readexactly(body)


def died(code: int) -> Failed:
    """The result of a job whose process ended under it. ``code``: its exit code, or minus its signal."""
    hint = "; the system may be short of memory" if code == -signal.SIGKILL else ""
    return Failed(f"the handler's process died with {_how(code)}{hint}", error_type="ProcessDied")


async def _plan(header: frames.Header, data: bytes, context: WorkerContext) -> frames.Header:
    """Plan a child's child job here, where the topics and the registry are known."""
    try:
        kind = job_type(job_class(header["type"]))
        try:
            job = kind.from_record(process_wire.CODEC.decode(kind.wire, data))
        except UnknownSchema as error:
            raise InvalidJob(
                f"job type {kind.name!r} has other fields in the handler's process than in the worker; restart it"
            ) from error
        return {"id": await context.schedule(job, **process_wire.options_of(header["options"]))}
    except Exception as error:  # noqa: BLE001 - the handler asked: it gets the answer
        return process_wire.refusal(error)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return next((f"signal {known.name}" for known in signal.Signals if known == -code), f"signal {-code}")
