"""Handlers that the tests run in real handler processes.

Where a run has to wait for the test, it opens a FIFO: that blocks until the other side opens it too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas import Job, JobPriority, PermanentError
from schemas.errors import JobRefused
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Skipped, Snooze, Success
from workers.worker import Worker

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no words for it")


@dataclass
class Answers(Job):
    """Returns or raises what ``how`` says."""

    job_type = "child_answers"
    execution = "process"
    how: str = "none"

    def execute(self, context: WorkerContext) -> Any:
        return answer(self.how, context)


@dataclass
class AnswersLater(Job):
    """The same in a coroutine."""

    job_type = "child_answers_later"
    execution = "process"
    how: str = "none"

    async def execute(self, context: WorkerContext) -> Any:
        return answer(self.how, context)


def answer(how: str, context: WorkerContext) -> Any:  # noqa: PLR0911 - one for each answer
    match how:
        case "none":
            return None
        case "paints":
            before = COLOUR.get()
            COLOUR.set("red")
            return {"colour": before}
        case "mapping":
            return {"pages": 3}
        case "success":
            return Success({"pid": os.getpid(), "group": os.getpgrp(), "when": timedelta(seconds=1)})
        case "skipped":
            return Skipped("nothing to do")
        case "snooze":
            return Snooze(timedelta(milliseconds=1500, microseconds=1), "busy")
        case "failed":
            return Failed("no room", retryable=False, error_type="NoRoom", stacktrace="here")
        case "value error":
            raise ValueError("wrong number")
        case "permanent":
            raise PermanentError("never")
        case "exit":
            sys.exit("a library ends the program")
        case "not a result":
            return 42
        case "bad output":
            return Success({("a", "tuple"): 1})  # type: ignore[dict-item]
        case "no number":
            return Success({"shares": [0.5, float("nan")]})
        case "unprintable":
            return Success({"what": Unprintable()})
        case "large output":
            return Success({"text": "x" * 3_000_000})
        case "exception as reason":
            return Failed(ValueError("as it came"))  # type: ignore[arg-type]
        case "facts":
            return {
                "facts": [
                    context.job_id,
                    context.key,
                    context.worker_id,
                    context.priority,
                    context.traceparent,
                ],
                "numbers": [context.attempt, context.fence, context.redrives, context.created_at_ms],
                "created": context.created_at.isoformat(),
                "cancelled": context.cancelled,
                "is_priority": isinstance(context.priority, JobPriority),
                "type": context.job_type,
            }
        case "stdout":
            print("printed")
            sys.stdout.flush()
            os.write(1, b"\x00\x00\x00\x08written\n")
            return {"heard": True}
        case "structlog":
            import structlog

            structlog.get_logger().info("an event of the handler")
            return None
        case "argv":
            return {"argv": sys.argv, "path": sys.path}
        case _:
            raise AssertionError(how)


@dataclass
class Spins(Job):
    """Never ends by itself. ``directory`` gets the file ``cleaned`` if the handler could clean up."""

    job_type = "child_spins"
    execution = "process"
    directory: str = ""
    stubborn: bool = False
    program: bool = False

    def execute(self, context: WorkerContext) -> None:
        if self.stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.program:
            program = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
            assert program.stdout is not None
            program.stdout.readline()
            context.update_metrics("program", program.pid)
        try:
            context.progress(os.getpid())
            while True:
                pass
        finally:
            if self.directory:
                (Path(self.directory) / "cleaned").touch()


#: A program that a handler starts, and that does not end when it is asked to.
STUBBORN = """
import signal, sys, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
threading.Event().wait()
"""


@dataclass
class SpinsLater(Job):
    """A coroutine that waits for ever, and cleans up when it is ended."""

    job_type = "child_spins_later"
    execution = "process"
    directory: str = ""

    async def execute(self, context: WorkerContext) -> None:
        import asyncio

        try:
            context.progress(os.getpid())
            await asyncio.Event().wait()
        finally:
            (Path(self.directory) / "cleaned").touch()


@dataclass
class Dies(Job):
    job_type = "child_dies"
    execution = "process"
    how: str = "exit"

    def execute(self, context: WorkerContext) -> None:
        if self.how == "exit":
            os._exit(3)
        if self.how == "forked" and os.fork() == 0:
            # It inherits the channel, and holds it open longer than its parent lives.
            context.progress(os.getpid())
            signal.pause()
        if self.how == "forked":
            os._exit(5)
        os.kill(os.getpid(), getattr(signal, self.how))


@dataclass
class Meets(Job):
    """Says who it is, then opens a FIFO for reading (``waits``) or writing."""

    job_type = "child_meets"
    execution = "process"
    fifo: str = ""
    waits: bool = True

    def execute(self, context: WorkerContext) -> Success:
        context.progress(os.getpid(), 7)
        with open(self.fifo, "r" if self.waits else "w"):  # noqa: PTH123 - a FIFO
            return Success({"pid": os.getpid()})


@dataclass
class Counts(Job):
    """Adds one to ``rounds`` in each of many rounds, as fast as it can."""

    job_type = "child_counts"
    execution = "process"
    rounds: int = 0

    def execute(self, context: WorkerContext) -> None:
        for number in range(self.rounds):
            context.update_metrics("rounds")
            context.progress(number + 1, self.rounds)


@dataclass
class Leaves(Job):
    """Leaves a thread behind, which speaks after the run is over and writes down what came of it."""

    job_type = "child_leaves"
    execution = "process"
    fifo: str = ""
    told: str = ""

    def execute(self, context: WorkerContext) -> None:
        def late() -> None:
            with open(self.fifo):  # noqa: PTH123 - a FIFO
                pass
            try:
                context.update_metrics("stolen")
            except RuntimeError as error:
                Path(self.told).write_text(str(error), "utf-8")
            finally:
                with open(self.fifo, "w"):  # noqa: PTH123 - a FIFO
                    pass

        threading.Thread(target=late, daemon=True).start()


@dataclass
class Leaf(Job):
    """A child job with fields of every kind that needs care."""

    job_type = "child_leaf"
    number: int = 0
    day: date = date(2026, 1, 1)
    pause: timedelta = timedelta(seconds=1)
    names: list[str] = field(default_factory=list)


AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@dataclass
class Plants(Job):
    """Schedules child jobs."""

    job_type = "child_plants"
    execution = "process"
    how: str = "plain"

    def execute(self, context: WorkerContext) -> Any:
        leaf = Leaf(7, date(2026, 2, 3), timedelta(milliseconds=1500), ["a", "b"])
        match self.how:
            case "plain":
                return {"id": context.schedule_nowait(leaf)}
            case "options":
                return {
                    "id": context.schedule_nowait(
                        leaf,
                        JobPriority.CRITICAL,
                        timedelta(microseconds=1),
                        at=AT,
                        key="k",
                        max_retries=2,
                        timeout=timedelta(minutes=1),
                    )
                }
            case "not a job":
                context.schedule_nowait("leaf")  # type: ignore[arg-type]
            case "strange option":
                context.schedule_nowait(leaf, key=object())
            case "wrong field":
                context.schedule_nowait(Leaf("seven"))  # type: ignore[arg-type]
        try:
            context.schedule_nowait(leaf, key=self.how)
        except (JobRefused, RuntimeError, TypeError) as error:
            return {"error": type(error).__name__, "text": str(error), "size": getattr(error, "size", None)}
        return None


@dataclass
class PlantsLater(Job):
    job_type = "child_plants_later"
    execution = "process"

    async def execute(self, context: WorkerContext) -> JobResult:
        return Success({"ids": [await context.schedule(Leaf(number)) for number in range(3)]})


@dataclass
class Weighed(Job):
    job_type = "child_weighed"
    weight: int = 0


class Scales(Worker):
    worker_type = "child_weighed"
    execution = "process"

    def __init__(self, unit: str = "g") -> None:
        self.unit = unit

    def process_job(self, job: Weighed, context: WorkerContext) -> dict[str, Any]:
        return {"weight": f"{job.weight} {self.unit}", "pid": os.getpid()}


def kitchen_scales() -> Scales:
    """Makes one with arguments, wherever it is imported."""
    return Scales("kg")


class ScalesWithArguments(Worker):
    worker_type = "child_weighed"
    execution = "process"

    def __init__(self, unit: str, *, precision: int) -> None:
        self.unit = unit
        self.precision = precision


@contextmanager
def nested() -> Iterator[type[Job]]:
    """A job class that no other process can import."""
    from schemas.job import _declared

    @dataclass
    class Hidden(Job):
        job_type = "child_hidden"
        execution = "process"

        def execute(self, context: WorkerContext) -> None:
            return None

    try:
        yield Hidden
    finally:
        del _declared["child_hidden"]
