"""What a job is to the program that schedules or runs it: a dataclass with a type name.

In:  user-written subclasses of ``Job``. Out: the catalogue of types that this process knows.

A message never names a class: it carries a type name, which is looked up here among the classes that
the process itself imported.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, ClassVar, Literal

from schemas.backoff import DEFAULT_BACKOFF, Backoff
from schemas.errors import JobTypeError, UnknownJobType
from schemas.headers import MAX_TYPE_NAME

Execution = Literal["async", "thread", "process"]

_TYPE_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_.-][a-z0-9]+)*")

#: Job type name to class, for every subclass of Job that this process has imported.
_declared: dict[str, type[Job]] = {}


class Job:
    """Base class of job types. Subclasses are dataclasses; their fields are what travels.

    .. code-block:: python

        @dataclass
        class ThumbnailJob(Job):
            job_type = "thumbnail"
            max_retries = 5
            source_path: str

            async def execute(self, context): ...

    A ``datetime`` or a ``time`` travels to the millisecond: what is finer is cut off.

    A job is made anew from its fields wherever it is read: by the worker, and once more in a process of its own. So
    ``__post_init__`` may check fields or fill in what is missing; what changes a field each time changes the job.

    Class attributes (write them without an annotation, or they become fields):

    Attributes:
        job_type: the name on the wire; lower-case words joined by ``_``, ``-`` or ``.``.
        max_retries: how often a failed run is repeated; None takes the worker's ``retry_limit``.
        timeout: how long one run may take; None takes the worker's ``job_timeout``.
        backoff: how long a failed job waits.
        execution: where ``execute`` runs; None means "async" for a coroutine function, else "thread".
    """

    __slots__ = ()

    job_type: ClassVar[str] = ""
    max_retries: ClassVar[int | None] = None
    timeout: ClassVar[timedelta | None] = None
    backoff: ClassVar[Backoff] = DEFAULT_BACKOFF
    execution: ClassVar[Execution | None] = None
    #: Name of a file in ``schemas/avro`` that holds this type's schema; None derives it from the fields.
    schema_file: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("job_type")
        if name is None:
            return
        if not isinstance(name, str) or not _TYPE_NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME:
            raise JobTypeError(
                f"{cls.__qualname__}.job_type is {name!r}; use lower-case words joined by _ - or . "
                f"(at most {MAX_TYPE_NAME} characters)"
            )
        other = _declared.get(name)
        # The same class again is a module reload, or @dataclass(slots=True), which makes a second class.
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise JobTypeError(
                f"job type {name!r} is declared twice: by {other.__module__}.{other.__qualname__} "
                f"and by {cls.__module__}.{cls.__qualname__}"
            )
        _declared[name] = cls

    def ordering_key(self) -> str | None:
        """Jobs with the same key never run at the same time, and start in order at one priority.

        Override it for jobs about one thing: ``bucket/object``. None: no order, any partition.
        """
        return None

    # Any parameters, any result: type checkers then take `async def` and `def`, with a context and without.
    def execute(self, *_context: Any, **_: Any) -> Any:
        """Do the work; return a ``JobResult``, or None for success.

        Write it as ``async def execute(self, context)``, or as a plain function, which runs in a thread. One that
        does not look at its ``WorkerContext`` may leave the parameter out.
        """
        raise JobTypeError(
            f"{type(self).__qualname__} has no execute(); "
            f"give it one, or register a Worker for {self.job_type!r}"
        )

    @classmethod
    def runs_itself(cls) -> bool:
        """Whether the class has an ``execute`` of its own."""
        return cls.execute is not Job.execute


def declared_job_types() -> dict[str, type[Job]]:
    """A copy of the catalogue: type name to class."""
    return dict(_declared)


def job_class(name: str) -> type[Job]:
    """The class declared for a type name.

    Raises:
        UnknownJobType: this process has not imported one.
    """
    try:
        return _declared[name]
    except KeyError:
        raise UnknownJobType(name, list(_declared)) from None
