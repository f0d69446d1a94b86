"""A handler process: what ``ProcessPool`` starts.

In:  names of the handlers that the worker registered, then jobs as Avro bytes, from a socket of its own.
Out: metrics, progress, child jobs and results, into the same socket. stdout and stderr are the handler's.

``context.cancelled`` stays False for ever here: a run that has to end is ended with its process.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import faulthandler
import functools
import importlib
import inspect
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from io import BytesIO
from typing import Any, Final

import structlog

from schemas.errors import InvalidJob, JobTypeError, WorkerNotMade
from schemas.headers import MAX_NAME_BYTES, clip
from schemas.job import Job
from schemas.jobtype import JobType, job_type
from schemas.topics import JobPriority
from workers.committing.router import as_result
from workers.context import WorkerContext
from workers.execution import frames, process_wire
from workers.logs import LogStream
from workers.results import JobResult, failed_by
from workers.worker import Handler, Handlers

_PR_SET_PDEATHSIG: Final = 1
#: A loop that reports each of its million rounds must not keep the worker's event loop busy with reading.
_WORDS_PER_S: Final = 100.0


class Ended(SystemExit):
    """The worker wants this process to end. A SystemExit, since asyncio lets nothing else through everywhere."""


class ChannelContext(WorkerContext):
    """A context whose words travel to the worker. Usable from every thread of the handler, until the run is over.

    Metrics and progress travel at once, up to 100 times in a second: what comes on top of that goes with a later
    word, at the latest with the result. ``cancelled`` stays False for ever.
    """

    __slots__ = ("_asked_at", "_channel", "_lock", "_news", "_words_left")

    def __init__(self, channel: socket.socket, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._channel = channel
        self._lock = threading.Lock()
        self._news: dict[str, Any] = {}
        self._asked_at = time.monotonic()
        self._words_left = _WORDS_PER_S

    def update_metrics(self, name: str, value: float = 1) -> None:
        """As in ``WorkerContext``, for every library's numbers."""
        number = value if type(value) in (int, float) else float(value)
        name = clip(str(name), MAX_NAME_BYTES)
        with self._lock:
            self._check_running()
            super().update_metrics(name, number)
            metrics = self._news.setdefault("metrics", {})
            metrics[name] = metrics.get(name, 0) + number
            self._tell()

    def progress(self, done: int, total: int | None = None) -> None:
        """As in ``WorkerContext``."""
        with self._lock:
            self._check_running()
            super().progress(done, total)
            self._news["progress"] = self._progress
            self._tell()

    def schedule_nowait(
        self, job: Job, priority: JobPriority | None = None, delay: timedelta | None = None, **options: Any
    ) -> str:
        """As in ``WorkerContext``; the worker plans the job and answers."""
        if not _is_job(job):
            raise InvalidJob(
                f"{job!r:.80} is not a Job; jobs are instances of dataclasses that derive from it"
            )
        kind: JobType = job_type(type(job))
        # Only the job's own fields count: the worker makes the envelope.
        envelope = {
            "id": self.job_id,
            "type": kind.name,
            "priority": self.priority.value,
            "created_at": 0,
            "source": "",
        }
        body = process_wire.CODEC.encode_job(kind, job, envelope)
        said = process_wire.options_text({**options, "priority": priority, "delay": delay})
        with self._lock:
            self._check_running()
            self._channel.sendall(frames.pack({"say": "schedule", "type": kind.name, "options": said}, body))
            answer, _ = frames.receive(self._channel)
        if "refused" in answer:
            raise process_wire.refusal_of(answer)
        return str(answer["id"])

    def finish(self, result: JobResult) -> None:
        """Send the result. What is said after it would count for the next job: it is refused."""
        with self._lock:
            self._over = True
            self._channel.sendall(process_wire.result_frame(result, self._news))

    def _tell(self) -> None:
        now = time.monotonic()
        earned = (now - self._asked_at) * _WORDS_PER_S
        self._words_left = min(self._words_left + earned, _WORDS_PER_S)
        self._asked_at = now
        if self._words_left >= 1:
            self._words_left -= 1
            self._channel.sendall(frames.pack({"say": "news", **self._news}))
            self._news.clear()

    def _check_running(self) -> None:
        if self._over:
            raise RuntimeError(
                f"the run of job {self.job_id} is over; end threads before the handler returns"
            )


def main(channel_fd: int, parent: int) -> None:
    """Serve until the worker closes the socket.

    Args:
        channel_fd: the socket to the worker, open already.
        parent: the worker's process id.
    """
    os.set_inheritable(channel_fd, False)  # not for the programs that handlers start
    with socket.socket(fileno=channel_fd) as channel:
        _die_with(parent, channel)
        _end_when_told(channel)
        faulthandler.enable()
        try:
            _serve(channel)
        except (EOFError, OSError, Ended):
            pass  # the worker closed its side, or is gone
        finally:
            # Nothing is left to unwind: raised while the interpreter ends, it would only leave a trace on stderr.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_at_hangup(channel: socket.socket) -> None:
    """End this process as soon as the other side of the channel is closed, whatever its main thread does."""
    hangup = select.poll()
    hangup.register(channel, 0)  # POLLHUP comes unasked, and bytes do not wake it
    while not hangup.poll():
        pass
    os._exit(1)


def _serve(channel: socket.socket) -> None:
    hello, _ = frames.receive(channel)
    try:
        handlers = _load(hello["handlers"])
    except Exception as error:  # noqa: BLE001 - an import runs the user's code: it may raise anything
        trace = "".join(traceback.format_exception(error))
        channel.sendall(
            frames.pack(
                {
                    "error": f"{type(error).__name__}: {error}",
                    "stacktrace": trace,
                    "passes": _passes(error),
                }
            )
        )
        return
    if not structlog.is_configured():
        # Its default is stdout, which is for data.
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(LogStream(sys.stderr))  # type: ignore[arg-type]  # print() asks no more
        )
    channel.sendall(frames.pack({"ready": os.getpid()}))
    while True:
        header, body = frames.receive(channel)
        context = ChannelContext(channel, **process_wire.arguments(header["context"]))
        # In a copy of our context: nobody inherits what a handler leaves there.
        context.finish(contextvars.copy_context().run(_run, handlers[header["run"]], body, context))


def _run(handler: Handler, body: bytes, context: WorkerContext) -> JobResult:
    try:
        job = handler.job_type.from_record(handler.job_type.wire.decode(BytesIO(body)))
        value = handler.call(job, context)
        if inspect.isawaitable(value):
            value = asyncio.run(_result(value))
        return as_result(value)
    except Ended:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is a failure of its job
        return failed_by(error)


async def _result(value: Any) -> Any:
    return await value


def _load(announced: list[dict[str, Any]]) -> dict[str, Handler]:
    """Import what the worker registered; its names come from the worker's own code, never from a message."""
    handlers = Handlers()
    for one in announced:
        job = _import(one["job"])
        handlers.register(job if one["worker"] is None else _factory(one))
    loaded = {handler.job_type.name: handler for handler in handlers}
    for one in announced:
        handler = loaded.get(one["type"])
        if handler is None or handler.job_type.wire.fingerprint.hex() != one["schema"]:
            raise JobTypeError(f"job type {one['type']!r} has changed since the worker started; restart it")
    return loaded


def _passes(error: Exception) -> bool:
    """Whether the system had not enough of something: next time it may have."""
    return isinstance(error, WorkerNotMade | MemoryError | OSError)


def _factory(announced: dict[str, Any]) -> Any:
    factory = _import(announced["worker"])
    arguments, by_name = announced["arguments"]
    return functools.partial(factory, *arguments, **by_name) if arguments or by_name else factory


def _import(name: list[str]) -> Any:
    module, path = name
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def _is_job(value: object) -> bool:
    return isinstance(value, Job)


def _end_when_told(channel: socket.socket) -> None:
    """SIGTERM unwinds the handler, so that it can clean up; but only once the worker has closed its side.

    Service managers send SIGTERM to all processes of a service: the worker drains then, and its running jobs
    must be left alone.
    """

    def on_sigterm(_number: int, _frame: object) -> None:
        try:
            told = not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            told = False
        except OSError:
            told = True
        if told:
            raise Ended

    signal.signal(signal.SIGTERM, on_sigterm)


def _die_with(parent: int, channel: socket.socket) -> None:
    """No handler process outlives its worker, even one that is busy and never looks at its socket."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        if prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) == 0:
            if os.getppid() != parent:  # it died before
                os._exit(1)
            return
    threading.Thread(target=exit_at_hangup, args=(channel,), name="hangup", daemon=True).start()
