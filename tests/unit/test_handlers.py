"""The table from job type to handler: what may be registered, and how it is called."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from schemas import Job, JobPriority
from schemas.errors import JobTypeError
from workers import Worker, WorkerContext
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing

CONTEXT = WorkerContext(job_id="j", job_type="t", priority=JobPriority.NORMAL)


@dataclass
class Alone(Job):
    job_type = "test_handlers_alone"

    def execute(self) -> str:
        return "alone"


@dataclass
class AloneAsync(Job):
    job_type = "test_handlers_alone_async"

    async def execute(self) -> str:
        return "alone"


@dataclass
class WithContext(Job):
    job_type = "test_handlers_context"

    def execute(self, context: WorkerContext) -> str:
        return context.job_id


@dataclass
class Odd(Job):
    job_type = "test_handlers_odd"

    def execute(self, context: WorkerContext, more: int) -> None:
        pass


@dataclass
class Passive(Job):
    job_type = "test_handlers_passive"


class Handles(Worker):
    worker_type = "test_handlers_passive"

    async def process_job(self, job: Passive, context: WorkerContext) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "execution", "result"),
    [(Alone, "thread", "alone"), (WithContext, "thread", "j"), (AloneAsync, "async", "alone")],
)
def test_execute_is_called_with_its_context_or_without(kind: type[Job], execution: str, result: str) -> None:
    handlers = Handlers()
    handlers.register(kind)

    handler = handlers.get(kind.job_type)
    assert handler is not None
    value: Any = handler.call(kind(), CONTEXT)

    assert handler.execution == execution
    assert (asyncio.run(value) if execution == "async" else value) == result


def test_an_execute_that_cannot_be_called_is_refused_at_once() -> None:
    with pytest.raises(JobTypeError, match=r"Odd.execute.* cannot be called; write execute\(self, context\)"):
        Handlers().register(Odd)


@pytest.mark.parametrize("what", [Handles, Handles(), partial(Handles)], ids=["class", "instance", "factory"])
def test_a_worker_is_registered_as_class_instance_or_factory(what: Any) -> None:
    handlers = Handlers()
    handlers.register(what)

    assert handlers.types == ("test_handlers_passive",)
    with pytest.raises(JobTypeError, match="has a handler already"):
        handlers.register(Handles)


def test_what_cannot_handle_anything_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        JobTypeError, match=r"Passive has no execute.*register a Worker for 'test_handlers_passive'"
    ):
        Handlers().register(Passive)
    with pytest.raises(JobTypeError, match="Worker needs a worker_type"):
        Handlers().register(Worker)
    with pytest.raises(JobTypeError, match="not a Worker"):
        Handlers().register(dict)  # type: ignore[arg-type]


class Needy(Handles):
    def __init__(self, unit: str) -> None:
        self.unit = unit


class Lost(Handles):
    def __init__(self) -> None:
        raise KeyError("SCALES_URL")


def make_lost() -> Worker:
    return Lost()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (Needy, r"Needy cannot be made: TypeError: .*missing 1 required positional argument: 'unit'"),
        (Lost, r"Lost cannot be made: KeyError: 'SCALES_URL'"),
        (make_lost, r"make_lost\(\) cannot make a Worker: KeyError: 'SCALES_URL'"),
        (partial(Lost), r"partial\(.*\) cannot make a Worker: KeyError: 'SCALES_URL'"),
    ],
    ids=["arguments", "error", "function", "partial"],
)
def test_a_worker_that_cannot_be_made_is_refused_by_name_with_what_its_constructor_said(
    what: Any, said: str
) -> None:
    handlers = Handlers()
    with pytest.raises(JobTypeError, match=rf"{said}; .*defaults.*def make\(\) -> Worker"):
        handlers.register(what)
    assert len(handlers) == 0
