"""Handlers with ``execution = "process"``: CPU-bound work, beside the event loop and outside of its GIL.

In:  a job as Avro bytes. Out: its result.

Also the only kind that a timeout can really end: its process is killed. A child is told the importable
names of the handlers that this process registered itself, never a name from a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import sys
from datetime import timedelta
from io import BytesIO
from typing import Any, Final

import structlog

from schemas.errors import JobTypeError, PipelineError
from schemas.job import Job, job_class
from schemas.jobtype import job_type
from schemas.topics import JobPriority
from workers import frames
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Skipped, Snooze, Success
from workers.worker import Handler, Handlers

log = structlog.get_logger("rustfs_workers.processes")

_START_TIMEOUT_S: Final = 30.0


class ProcessPool:
    """At most ``size`` child processes, started when they are first needed. For one event loop.

    Raises:
        JobTypeError: a handler for processes cannot be imported by a child.
    """

    def __init__(self, size: int, handlers: Handlers) -> None:
        self._names = {
            handler.job_type.name: _importable(handler)
            for handler in handlers
            if handler.execution == "process"
        }
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()

    async def run(self, handler: Handler, body: bytes, context: WorkerContext) -> JobResult:
        """Run one job in a child and return its result. Cancelling this kills the child.

        Args:
            handler: its handler, one of those that the pool was made with.
            body: the job's record in the handler's own schema, without a frame.
            context: gets the run's metrics, progress and child jobs.
        """
        async with self._free:
            child = self._idle.pop() if self._idle else await self._start()
            try:
                result = await child.run(handler, body, context)
            except (EOFError, OSError, asyncio.IncompleteReadError):
                code = await self._end(child)
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                return Failed(f"the handler's process died with {how}", error_type="ProcessDied")
            except BaseException:
                # Cancelled: what runs there has to end, and a process is the one thing that can be ended.
                await asyncio.shield(self._end(child))
                raise
            self._idle.append(child)
            return result

    async def close(self) -> None:
        """End all children."""
        await asyncio.gather(*(self._end(child) for child in list(self._all)))

    async def _start(self) -> _Child:
        child = await _Child.start(self._names)
        self._all.add(child)
        return child

    async def _end(self, child: _Child) -> int:
        self._all.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        return await child.kill()


class _Child:
    """One child process and the channel to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, names: dict[str, dict[str, str]]) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "workers.process_child",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C goes to the whole terminal group: the worker decides what ends, not the terminal.
                start_new_session=True,
                env=None,
                cwd=None,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer)
        try:
            writer.write(frames.pack({"path": sys.path, "handlers": names}))
            header, _ = await asyncio.wait_for(child._receive(), _START_TIMEOUT_S)
        except (TimeoutError, EOFError, OSError, asyncio.IncompleteReadError) as error:
            code = await child.kill()
            raise PipelineError(f"a handler process did not start (exit code {code})") from error
        if "error" in header:
            await child.kill()
            raise PipelineError(f"a handler process did not start: {header['error']}")
        log.debug("handler process started", pid=process.pid)
        return child

    async def run(self, handler: Handler, body: bytes, context: WorkerContext) -> JobResult:
        facts = {
            "job_id": context.job_id,
            "job_type": context.job_type,
            "priority": context.priority.value,
            "attempt": context.attempt,
            "key": context.key,
            "worker_id": context.worker_id,
            "fence": context.fence,
            "created_at_ms": context.created_at_ms,
            "redrives": context.redrives,
            "traceparent": context.traceparent,
        }
        self._writer.write(frames.pack({"run": handler.job_type.name, "context": facts}, body))
        while True:
            header, data = await self._receive()
            match header.get("say"):
                case "metrics":
                    context.update_metrics(header["name"], header["value"])
                case "progress":
                    context.progress(header["done"], header["total"])
                case "schedule":
                    self._writer.write(frames.pack(_schedule(header, data, context)))
                case "result":
                    return _result(header)
                case other:
                    raise OSError(f"unexpected word {other!r} from a handler process")

    async def kill(self) -> int:
        """End it and return its exit code (negative: the signal)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = await self._process.wait()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return code

    async def _receive(self) -> tuple[frames.Header, bytes]:
        text, body = frames.lengths(await self._reader.readexactly(frames.HEADER_BYTES))
        header = json.loads(await self._reader.readexactly(text))
        return header, await self._reader.readexactly(body)


def _schedule(header: frames.Header, data: bytes, context: WorkerContext) -> frames.Header:
    try:
        kind = job_type(job_class(header["type"]))
        job: Job = kind.from_record(kind.wire.decode(BytesIO(data)))
        options: dict[str, Any] = dict(header["options"])
        delay = options.pop("delay_ms", None)
        priority = options.pop("priority", None)
        child_id = context.schedule_nowait(
            job,
            None if priority is None else JobPriority(priority),
            None if delay is None else timedelta(milliseconds=delay),
            **options,
        )
    except (PipelineError, TypeError) as error:
        return {"refused": str(error)}
    return {"id": child_id}


def _result(header: frames.Header) -> JobResult:
    match header["kind"]:
        case "success":
            return Success(header["output"])
        case "skipped":
            return Skipped(header["reason"])
        case "snooze":
            return Snooze(timedelta(milliseconds=header["delay_ms"]), header["reason"])
        case _:
            return Failed(header["reason"], header["retryable"], header["error_type"], header["stacktrace"])


def _importable(handler: Handler) -> dict[str, str]:
    """The name under which a child can import the handler, checked here, where the mistake was made."""
    cls: type = handler.job_type.cls if handler.worker is None else type(handler.worker)
    where = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise JobTypeError(
            f"{where} runs in a process, which has to import it: put it into a module of its own"
        )
    if handler.worker is not None:
        needed = [
            name
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise JobTypeError(
                f"{where} runs in a process, which makes it without arguments: give {', '.join(needed)} a default"
            )
    return {"module": cls.__module__, "name": cls.__qualname__}
