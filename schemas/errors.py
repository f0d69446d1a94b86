"""The errors that more than one module raises, in one tree.

    PipelineError
    ├── SettingsError           a setting is wrong (names the setting)
    ├── JobRefused              a job was refused before anything was sent
    │   ├── UnknownJobType      no such type is declared in this process
    │   ├── InvalidJob          a field, the delay, the priority … is wrong
    │   └── PayloadTooLarge     the encoded job is over the limit
    ├── JobTypeError            a job class is declared wrongly (name taken, field not allowed)
    ├── WorkerNotMade           a worker's constructor wanted what is not there now
    ├── WireError               bytes from Kafka that cannot be understood
    │   ├── BadFrame            neither single-object nor Confluent framing
    │   ├── UnknownSchema       a well-formed frame whose schema is not known (yet)
    │   ├── BadSchema           a schema from elsewhere that cannot be used, or not safely
    │   ├── BadRecord           the bytes do not decode with their schema
    │   └── BadHeaders          a header of ours that is not what it should be
    ├── IllegalTransition       a change of state that the table in ``lifecycle`` does not have
    ├── KafkaUnreachable        no broker answered (exit code 3)
    │   └── NoBroker            somebody else did
    ├── ReadIncomplete          topics could not be read to their end in time
    ├── DeliveryFailed          Kafka did not acknowledge a record
    ├── QueueClosed             the queue was closed while somebody waited for a job
    ├── TopicsMismatch          a topic exists with settings that break a guarantee
    ├── CommitVanished          Kafka shows less as committed than it has acknowledged
    ├── WorkerIdTaken           another process works under the same worker id
    ├── GroupNotInitialised     a partition has no committed offset or no map this version can read
    ├── TransientError          raised by handlers: try again later (the default for exceptions)
    └── PermanentError          raised by handlers: trying again cannot help, dead-letter at once
        └── HandlerNotFound     no handler is registered for this job type

Where they belong to one module they are there: ``JobNotFound`` (streams.reader), ``RedriveTakenOver`` (streams.redrive_session),
``KafkaRefused`` (streams.clients), ``RegistryFailed`` (streams.registry), ``WrongEventLoop`` (streams.queue), ``StorageError``
(workers.storage.errors).

A message states the fact and, where there is one, the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """Base of everything that this project raises on purpose.

    Attributes:
        sent: if it has ended a ``schedule_jobs``: the ids of the jobs that had been sent, in the order of the jobs.
    """

    sent: tuple[str, ...] = ()


class SettingsError(PipelineError):
    """A setting has a value that cannot be used."""


class JobRefused(PipelineError):
    """The job was refused before anything was sent: nothing to undo."""


class UnknownJobType(JobRefused):
    """No job type of this name is declared in this process."""

    def __init__(self, job_type: str, known: list[str]) -> None:
        self.job_type = job_type
        self.known = known
        names = ", ".join(sorted(known)) or "none"
        near = difflib.get_close_matches(job_type, known, n=1)
        meant = f"did you mean {near[0]}? Else " if near else ""
        super().__init__(
            f"job type {job_type!r} is not known here (known: {names}); {meant}"
            "import the module that declares it (on the command line: --import my_package.jobs)"
        )


class InvalidJob(JobRefused):
    """A field, the delay, the key or another property of the job is wrong."""


class PayloadTooLarge(JobRefused):
    """The encoded job is larger than the limit."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the encoded job has {size:,} bytes, the limit is {limit:,}; "
            "put the data into the object store and its path into the job"
        )


class JobTypeError(PipelineError):
    """A job class is declared in a way that cannot work."""


class WorkerNotMade(PipelineError):
    """A worker's constructor wanted something that is not there now, and may be next time: a file, a host, memory."""


class WireError(PipelineError):
    """Bytes from Kafka that cannot be understood; the record goes to the dead letters unchanged."""


class BadFrame(WireError):
    """The value starts neither with Avro's single-object marker nor with Confluent's magic byte."""


class UnknownSchema(WireError):
    """The frame is well-formed, but nobody has told us the schema it names."""

    def __init__(self, schema_key: bytes) -> None:
        self.schema_key = schema_key
        super().__init__(f"schema {schema_key.hex()} is not known; its producer has not published it")


class BadSchema(WireError):
    """A schema from Kafka or a registry that is no Avro record, or one whose data could kill this process."""


class BadRecord(WireError):
    """The bytes do not decode with the schema that their frame names."""


class BadHeaders(WireError):
    """A header of ours has a value that it cannot have."""


class IllegalTransition(PipelineError):
    """A change of state that the transition table does not have."""


class KafkaUnreachable(PipelineError):
    """No broker answered in time, or did what it was asked for."""

    def __init__(self, bootstrap_servers: str, seconds: float, did: str = "answered") -> None:
        self.bootstrap_servers = bootstrap_servers
        super().__init__(
            f"no Kafka broker {did} at {bootstrap_servers} within {seconds:.0f} s; look whether it runs there. "
            "KAFKA_BOOTSTRAP_SERVERS names another one; without it `rustfs-workers up` starts one"
        )


class NoBroker(KafkaUnreachable):
    """Somebody answered who speaks Kafka's protocol and is no broker, or a very old one."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        PipelineError.__init__(
            self,
            f"what answers at {bootstrap_servers} is no Kafka broker for clients: the port of a controller, or a Kafka "
            "before 4.0; KAFKA_BOOTSTRAP_SERVERS names the brokers' own listeners",
        )


class ReadIncomplete(PipelineError):
    """Topics could not be read to their end in time, and half of what they say would be a wrong answer."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the topics could not be read to their end within {seconds:.0f} s: they hold more, or an open transaction "
            "hides the rest; try again"
        )


class DeliveryFailed(PipelineError):
    """Kafka did not acknowledge a record; whether it was written is unknown unless the message says so.

    Attributes:
        not_written: ids of the jobs that are certainly not in Kafka.
        perhaps_written: ids of those that may be there: scheduled again under the same id, they are known for copies.
    """

    def __init__(
        self, message: str, *, not_written: Iterable[str] = (), perhaps_written: Iterable[str] = ()
    ) -> None:
        self.not_written = tuple(not_written)
        self.perhaps_written = tuple(perhaps_written)
        super().__init__(message)


class QueueClosed(PipelineError):
    """The queue was closed while somebody waited for a job, or before."""

    def __init__(self) -> None:
        super().__init__(
            "the queue is closed, so nobody is told how the job ends; close it after the last wait()"
        )


class TopicsMismatch(PipelineError):
    """A topic exists with settings that would break a guarantee."""


class CommitVanished(PipelineError):
    """Kafka shows less as committed than it has acknowledged: going on from memory would lose jobs."""


class WorkerIdTaken(PipelineError):
    """Another process works under the same worker id: each of them would refuse what the other writes."""


class GroupNotInitialised(PipelineError):
    """A partition has no committed offset, or a map of a version this worker cannot read."""


class TransientError(PipelineError):
    """Raised by a handler: this run failed, a later one may succeed."""


class PermanentError(PipelineError):
    """Raised by a handler, alone or in a group: no later run can succeed; the job is dead-lettered at once."""


class HandlerNotFound(PermanentError):
    """No handler is registered for this job type."""

    def __init__(self, job_type: str) -> None:
        self.job_type = job_type
        super().__init__(f"no handler is registered for job type {job_type!r}")


def reason_of(error: BaseException) -> str:
    """What an error of somebody else's code says of itself, or its name. Never raises what its ``__str__`` raises."""
    name = type(error).__name__
    try:
        return str(error) or name
    except Exception as broken:  # noqa: BLE001 - it may raise anything
        return f"{name}, which cannot say why: its __str__ raised {type(broken).__name__}"
