"""The table from job type to handler: what may be registered, and how it is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from typing import Any

import pytest

from schemas import Job, JobPriority, job
from schemas.errors import JobTypeError, WorkerNotMade
from workers import Worker, WorkerContext
from workers.console import FAILED, exit_code
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
        (partial(Lost), r"Lost\(\) cannot make a Worker: KeyError: 'SCALES_URL'"),
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


class Offline(Handles):
    def __init__(self) -> None:
        raise ConnectionRefusedError("scales:7000")


def test_a_worker_whose_constructor_finds_a_service_away_is_no_fault_of_its_declaration() -> None:
    """Usage errors end a supervisor; this process is started again by it, with growing pauses."""
    with pytest.raises(
        WorkerNotMade, match=r"^Offline cannot be made: ConnectionRefusedError: scales:7000$"
    ) as caught:
        Handlers().register(Offline)
    assert exit_code(caught.value) == FAILED


def plain(self: Any, *_: Any) -> str:
    return "plain"


async def coroutine(self: Any, *_: Any) -> str:
    return "coroutine"


def through_decorator(self: Any, *_: Any) -> Any:
    return coroutine(self)


@wraps(coroutine)
def wrapped(self: Any, *_: Any) -> Any:
    return coroutine(self)


@pytest.fixture
def _undeclared() -> Iterator[None]:
    """Other tests look at all declared types."""
    yield
    job._declared.pop("test_handlers_places", None)


def job_that(function: Callable[..., Any], execution: Any) -> Any:
    members = {"job_type": "test_handlers_places", "execution": execution, "execute": function}
    return dataclass(type("Placed", (Job,), members))


def worker_that(function: Callable[..., Any], execution: Any) -> Any:
    members = {"worker_type": "test_handlers_passive", "execution": execution, "process_job": function}
    return type("Placed", (Worker,), members)


@pytest.mark.usefixtures("_undeclared")
@pytest.mark.parametrize(
    ("make", "method"), [(job_that, "execute"), (worker_that, "process_job")], ids=["job", "worker"]
)
@pytest.mark.parametrize(
    ("function", "execution", "said"),
    [
        (
            plain,
            "async",
            "'async', and {0} is a plain function; write `async def {0}`, or leave execution out",
        ),
        (coroutine, "thread", "'thread', and {0} is an `async def`; leave execution out, or write a plain"),
        (plain, "fork", "'fork'; use async, thread or process"),
    ],
)
def test_an_execution_that_the_function_is_not_made_for_is_refused(
    make: Callable[..., Any], method: str, function: Callable[..., Any], execution: str, said: str
) -> None:
    with pytest.raises(JobTypeError, match=rf"^Placed\.execution is {said.format(method)}"):
        Handlers().register(make(function, execution))


@pytest.mark.usefixtures("_undeclared")
@pytest.mark.parametrize("make", [job_that, worker_that], ids=["job", "worker"])
@pytest.mark.parametrize(
    ("function", "execution", "place"),
    [
        (plain, None, "thread"),
        (plain, "thread", "thread"),
        (plain, "process", "process"),
        (coroutine, None, "async"),
        (coroutine, "async", "async"),
        (coroutine, "process", "process"),
        (wrapped, "async", "async"),
        # What a plain function returns is not known before it is called.
        (through_decorator, "thread", "thread"),
    ],
)
def test_an_execution_that_can_work_is_taken(
    make: Callable[..., Any], function: Callable[..., Any], execution: str | None, place: str
) -> None:
    handlers = Handlers()
    handlers.register(make(function, execution))
    (handler,) = handlers
    assert handler.execution == place


def test_a_backoff_that_is_none_is_refused_when_it_is_registered() -> None:
    """At a job's first failure it would be an error of its own, and cost the job its retries."""
    kind: Any = type("Hasty", (Handles,), {"backoff": timedelta(seconds=5)})
    with pytest.raises(JobTypeError, match=r"Hasty.backoff is .*; use a Backoff"):
        Handlers().register(kind)
