"""A handler process: what ``ProcessPool`` starts. Reads jobs from a socket, runs them, writes results.

``context.cancelled`` never becomes True here: a run that has to end is ended with its process.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib
import inspect
import os
import signal
import socket
import sys
import traceback
from datetime import timedelta
from io import BytesIO
from typing import Any

from schemas.errors import InvalidJob, PermanentError
from schemas.ids import new_job_id
from schemas.job import Job
from schemas.jobtype import JobType, job_type
from schemas.topics import JobPriority
from workers import frames
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Skipped, Snooze, Success
from workers.router import as_result
from workers.worker import Handler, Handlers

_MILLISECOND = timedelta(milliseconds=1)


class ChannelContext(WorkerContext):
    """A context whose words travel to the worker at once."""

    __slots__ = ("_channel",)

    def __init__(self, channel: socket.socket, **facts: Any) -> None:
        super().__init__(**facts)
        self._channel = channel

    def update_metrics(self, name: str, value: float = 1) -> None:
        """As in ``WorkerContext``."""
        super().update_metrics(name, value)
        self._channel.sendall(frames.pack({"say": "metrics", "name": name, "value": value}))

    def progress(self, done: int, total: int | None = None) -> None:
        """As in ``WorkerContext``."""
        self._channel.sendall(frames.pack({"say": "progress", "done": done, "total": total}))

    def schedule_nowait(
        self, job: Job, priority: JobPriority | None = None, delay: timedelta | None = None, **options: Any
    ) -> str:
        """As in ``WorkerContext``; the worker plans the job."""
        kind: JobType = job_type(type(job))
        envelope = {
            "id": new_job_id(),
            "type": kind.name,
            "priority": (priority or self.priority).value,
            "created_at": 0,
            "source": "",
        }
        said = {
            **options,
            "priority": None if priority is None else priority.value,
            "delay_ms": None if delay is None else -(-delay // _MILLISECOND),
        }
        body = kind.wire.encode(kind.to_record(job, envelope))
        self._channel.sendall(frames.pack({"say": "schedule", "type": kind.name, "options": said}, body))
        answer, _ = frames.receive(self._channel)
        if "refused" in answer:
            raise InvalidJob(answer["refused"])
        return str(answer["id"])


def main() -> None:
    """Serve until the worker closes the socket."""
    _die_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    hello, _ = frames.receive(channel)
    sys.path[:] = hello["path"]
    try:
        handlers = _load(hello["handlers"])
    except Exception as error:  # noqa: BLE001 - an import can raise anything; the worker says it to people
        channel.sendall(frames.pack({"error": f"{type(error).__name__}: {error}"}))
        return
    channel.sendall(frames.pack({"ready": os.getpid()}))
    while True:
        try:
            header, body = frames.receive(channel)
        except EOFError:
            return
        handler = handlers.get(header["run"])
        assert handler is not None  # noqa: S101 - the worker sends only what it registered
        facts = header["context"]
        facts["priority"] = JobPriority(facts["priority"])
        result = _run(handler, body, ChannelContext(channel, **facts))
        channel.sendall(frames.pack({"say": "result", **_said(result)}))


def _run(handler: Handler, body: bytes, context: WorkerContext) -> JobResult:
    try:
        job = handler.job_type.from_record(handler.job_type.wire.decode(BytesIO(body)))
        value = handler.call(job, context)
        if inspect.isawaitable(value):
            value = asyncio.run(_await(value))
        return as_result(value)
    except PermanentError as error:
        return _failed(error, retryable=False)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is a failure of its job
        return _failed(error, retryable=True)


async def _await(value: Any) -> Any:
    return await value


def _failed(error: Exception, *, retryable: bool) -> Failed:
    trace = "".join(traceback.format_exception(error))
    return Failed(str(error) or type(error).__name__, retryable, type(error).__name__, trace)


def _said(result: JobResult) -> frames.Header:
    match result:
        case Success(output):
            return {"kind": "success", "output": None if output is None else dict(output)}
        case Skipped(reason):
            return {"kind": "skipped", "reason": reason}
        case Snooze(delay, reason):
            return {"kind": "snooze", "delay_ms": delay / _MILLISECOND, "reason": reason}
        case Failed():
            return {
                "kind": "failed",
                "reason": result.reason,
                "retryable": result.retryable,
                "error_type": result.error_type,
                "stacktrace": result.stacktrace,
            }
        case _:
            raise AssertionError(f"not a result: {result!r}")


def _load(names: dict[str, dict[str, str]]) -> Handlers:
    handlers = Handlers()
    for name in names.values():
        module = importlib.import_module(name["module"])
        handlers.register(functools.reduce(getattr, name["name"].split("."), module))  # type: ignore[arg-type]
    return handlers


def _die_with_parent() -> None:
    """No handler process outlives its worker, even one that is busy and never looks at its socket."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    main()
