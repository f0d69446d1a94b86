"""``JobBuilder``: a job of a registered type, put together step by step."""

from __future__ import annotations

import dataclasses
import importlib
from datetime import timedelta
from typing import Any, Self, cast

from schemas.errors import InvalidJob, UnknownJobType
from schemas.job import Job, job_class
from schemas.jobtype import job_type as declared
from schemas.topics import JobPriority
from workers.fields import no_such_field, parse_fields


class JobBuilder:
    """Builds one job, and remembers how it is to be scheduled.

    .. code-block:: python

        builder = JobBuilder("thumbnail").field("source_path", "bucket/a.jpg").priority(JobPriority.HIGH)
        job_id = await queue.schedule_job(builder.build(), **builder.options)

    Raises:
        UnknownJobType: no class with this type name has been imported, nor does one come with the project. JobTypeError: it is declared in a way that cannot work.
    """

    def __init__(self, job_type: str) -> None:
        if not isinstance(job_type, str):
            raise InvalidJob(f"{job_type!r:.80} is no name of a job type, such as 'replication'")
        self._cls = _class_of(job_type)
        declared(self._cls)  # whoever has forgotten @dataclass hears of it here
        self._fields: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def field(self, name: str, value: Any) -> Self:
        """Set a field."""
        self._fields[name] = value
        return self

    def fields(self, **values: Any) -> Self:
        """Set several fields."""
        self._fields.update(values)
        return self

    def parse(self, assignments: list[str]) -> Self:
        """Set fields from ``name=value`` texts."""
        self._fields.update(parse_fields(self._cls, assignments))
        return self

    def priority(self, priority: JobPriority) -> Self:
        """Which of the four topics it goes to."""
        self.options["priority"] = priority
        return self

    def delay(self, delay: timedelta) -> Self:
        """Not before this time has passed."""
        self.options["delay"] = delay
        return self

    def key(self, key: str) -> Self:
        """Ordering key; jobs of one key run one at a time."""
        self.options["key"] = key
        return self

    def max_retries(self, count: int) -> Self:
        """Runs after the first."""
        self.options["max_retries"] = count
        return self

    def timeout(self, timeout: timedelta) -> Self:
        """Limit of one run."""
        self.options["timeout"] = timeout
        return self

    def build(self) -> Job:
        """The job.

        Raises:
            InvalidJob: a field is missing or unknown, or the class refuses a value.
        """
        known = dataclasses.fields(cast("Any", self._cls))
        names = [field.name for field in known]
        if unknown := [name for name in self._fields if name not in names]:
            raise no_such_field(self._cls, unknown[0])
        missing = [field.name for field in known if field.name not in self._fields and _required(field)]
        if missing:
            raise InvalidJob(
                f"{self._cls.job_type} needs {', '.join(missing)}; its fields: {', '.join(names)}"
            )
        try:
            return self._cls(**self._fields)
        except (TypeError, ValueError) as error:
            raise InvalidJob(f"{self._cls.job_type}: {error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return (
        field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _class_of(job_type: str) -> type[Job]:
    try:
        return job_class(job_type)
    except UnknownJobType:
        importlib.import_module(
            "workers.handlers.replication"
        )  # it comes with the project, and loads the storage clients
        return job_class(job_type)
