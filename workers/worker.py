"""Who handles which job type: ``Worker`` classes, jobs that run themselves, and the table of both.

In:  what the program registered. Out: for a type name, a function to call and the rules around it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

from schemas.backoff import Backoff
from schemas.errors import JobTypeError, PipelineError, WorkerNotMade
from schemas.job import Execution, Job, job_class
from schemas.jobtype import JobType, job_type
from workers.context import WorkerContext


class Worker:
    """Handles one job type.

    Attributes:
        worker_type: the job type it handles.
        execution: where ``process_job`` runs; None means "async" for a coroutine function, else "thread". A coroutine that a
            plain function returns runs in the event loop, whatever thread the function itself ran in.
        backoff: how long its failed jobs wait, whatever their type says; None: as that says.
    """

    worker_type: ClassVar[str] = ""
    execution: ClassVar[Execution | None] = None
    backoff: Backoff | None = None

    #: Whether it was made with arguments: a handler process, which makes it anew, does not have them.
    _made_with_arguments: bool = False

    def _holds_something(self) -> bool:
        """Whether a new one, made without arguments, may lack something that this one has."""
        return self._made_with_arguments or vars(self).keys() > {"_made_with_arguments"}

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Notes whether there were arguments."""
        given = bool(args or kwargs)
        if given and cls.__init__ is object.__init__:
            # object's own check, which a __new__ switches off.
            raise TypeError(f"{cls.__qualname__}() takes no arguments")
        worker = super().__new__(cls)
        object.__setattr__(worker, "_made_with_arguments", given)  # a subclass may be a frozen dataclass
        return worker

    # Any result: type checkers then take `async def` and `def`.
    def process_job(self, job: Any, context: WorkerContext) -> Any:
        """Do the work; return a ``JobResult``, or None for success.

        Write it as an ``async def``, or as a plain function, which runs in a thread.
        It can run again after a crash, so its effects must be idempotent.
        """
        raise JobTypeError(f"{type(self).__qualname__} has no process_job()")

    # Any result, for the same reason.
    def close(self) -> Any:
        """Let go what it holds, threads and connections: its worker process has stopped.

        Write it as an ``async def``, which may take ten seconds, or as a plain function that does not block. It is called in the
        event loop, for each end of a worker process that has this instance, so it can come twice; and the next process
        that has it (``WorkerManager.start`` once more) calls ``process_job`` again. What it raises is logged.
        Handlers in processes of their own are not closed: those processes end.
        """

    async def health_check(self) -> bool:
        """Whether it could work now. For whoever asks: the worker process itself does not yet."""
        return True


@dataclass(frozen=True)
class Handler:
    """How to run one job type."""

    job_type: JobType
    call: Callable[[Any, WorkerContext], Any]
    execution: Execution
    max_retries: int | None
    timeout: timedelta | None
    backoff: Backoff
    worker: Worker | None = None
    #: What makes such a worker again in another process: a class, a function, or a ``functools.partial`` of one of these.
    factory: Callable[[], Worker] | None = None
    #: Whether the program has made ``worker`` itself, and may have given it more than its class does.
    is_given: bool = False


class Handlers:
    """The table from type name to handler. Filled before the worker starts, read-only after."""

    def __init__(self) -> None:
        self._by_type: dict[str, Handler] = {}

    def register(self, what: type[Worker | Job] | Worker | Callable[[], Worker]) -> None:
        """Add a worker (an instance, a class or another factory), or a job class that runs itself.

        Raises:
            WorkerNotMade: its constructor wanted something that is not there now.
            JobTypeError: its type is not declared, or has a handler already; or the worker cannot be made; or it is an
                instance that was made with arguments, and runs in processes, which do not have them; or its
                ``execution`` does not fit its function.
        """
        if isinstance(what, type) and issubclass(what, Job):
            self._add(self._of_job(what))
            return
        worker = what if isinstance(what, Worker) else _made_by(what)
        if not isinstance(worker, Worker):
            raise JobTypeError(f"{what!r} gives {type(worker).__qualname__}, not a Worker")
        if not worker.worker_type:
            raise JobTypeError(f"{type(worker).__qualname__} needs a worker_type")
        is_given = worker is what
        factory: Any = type(worker) if is_given else what
        handler = self._of_worker(worker, factory, is_given=is_given)
        if is_given and handler.execution == "process" and worker._made_with_arguments:
            name = type(worker).__qualname__
            raise JobTypeError(
                f"this {name} was made with arguments, and runs in processes, each of which makes its own without them: "
                f"register the class, its arguments having defaults, or a function of a module that makes the {name}"
            )
        self._add(handler)

    def get(self, name: str) -> Handler | None:
        """The handler of a type, or None."""
        return self._by_type.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_type

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_type.values())

    def __len__(self) -> int:
        return len(self._by_type)

    @property
    def types(self) -> tuple[str, ...]:
        """The type names, sorted."""
        return tuple(sorted(self._by_type))

    def _add(self, handler: Handler) -> None:
        name = handler.job_type.name
        if name in self._by_type:
            raise JobTypeError(f"job type {name!r} has a handler already")
        self._by_type[name] = handler

    @staticmethod
    def _of_job(kind: type[Job]) -> Handler:
        if not kind.runs_itself():
            raise JobTypeError(
                f"{kind.__qualname__} has no execute(); give it one, or register a Worker for {kind.job_type!r}"
            )
        execution = _execution_of(kind, "execute", kind.execute, kind.execution)
        call = _call_execute if _takes_context(kind) else _call_execute_alone
        return Handler(job_type(kind), call, execution, kind.max_retries, kind.timeout, kind.backoff)

    @staticmethod
    def _of_worker(worker: Worker, factory: Callable[[], Worker], *, is_given: bool) -> Handler:
        cls = job_class(worker.worker_type)
        backoff: object = worker.backoff
        if not (backoff is None or isinstance(backoff, Backoff)):
            raise JobTypeError(f"{type(worker).__qualname__}.backoff is {backoff!r}; use a Backoff, or None")
        execution = _execution_of(type(worker), "process_job", worker.process_job, worker.execution)
        return Handler(
            job_type(cls),
            worker.process_job,
            execution,
            cls.max_retries,
            cls.timeout,
            worker.backoff or cls.backoff,
            worker,
            factory,
            is_given,
        )


def _made_by(factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except PipelineError:
        raise  # it says what to do
    except Exception as error:  # it is the user's code: it may raise anything
        if isinstance(factory, type):
            fact = f"{factory.__qualname__} cannot be made"
        else:
            # Not with the arguments of a partial: there may be a secret among them.
            called = factory.func if isinstance(factory, functools.partial) else factory
            fact = f"{getattr(called, '__qualname__', repr(called))}() cannot make a Worker"
        if isinstance(error, MemoryError | OSError):
            # No fault of the declaration: whoever supervises this process may start it again.
            raise WorkerNotMade(f"{fact}: {type(error).__name__}: {error}") from error
        raise JobTypeError(
            f"{fact}: {type(error).__name__}: {error}; it is called without arguments: give them defaults, or register an "
            "instance, a functools.partial with them, or a function that makes one (`def make() -> Worker`), in a program of your own"
        ) from error


def _call_execute(job: Any, context: WorkerContext) -> Any:
    return job.execute(context)


def _call_execute_alone(job: Any, _context: WorkerContext) -> Any:
    return job.execute()


def _takes_context(kind: type[Job]) -> bool:
    signature = inspect.signature(kind.execute)
    for arguments, answer in ((("self", "context"), True), (("self",), False)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return answer
    raise JobTypeError(
        f"{kind.__qualname__}.execute{signature} cannot be called; write execute(self, context)"
    )


def _execution_of(
    cls: type, method: str, function: Callable[..., Any], wanted: Execution | None
) -> Execution:
    is_async = inspect.iscoroutinefunction(function)
    if wanted is None:
        return "async" if is_async else "thread"
    said = f"{cls.__qualname__}.execution is {wanted!r}"
    if wanted not in ("async", "thread", "process"):
        raise JobTypeError(f"{said}; use async, thread or process")
    # Either would fail at each run, and what a plain function does would be done by then.
    if wanted == "async" and not is_async and _is_plain(function):
        raise JobTypeError(
            f"{said}, and {method} is a plain function; write `async def {method}`, or leave execution out: "
            "it runs in a thread then"
        )
    if wanted == "thread" and is_async:
        raise JobTypeError(
            f"{said}, and {method} is an `async def`; leave execution out, or write a plain `def {method}`"
        )
    return wanted


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether it is certainly no coroutine function: a decorator's may return the coroutine of what it wraps."""
    inner = inspect.unwrap(function)
    return inspect.isroutine(inner) and not inspect.iscoroutinefunction(inner)
