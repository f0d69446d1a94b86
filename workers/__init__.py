"""What does the work, and what programs import.

A job's way through the modules: ``poller`` (from Kafka; of which partitions: ``assignments``) → ``message`` →
``delay`` (what must wait) → ``scheduler`` (what comes next) → ``executor`` with ``decoder`` (runs it) →
``results`` (what the handler said) → ``router`` (what follows) → ``outcome`` → ``commit`` (into Kafka, with
``offsets``). ``process`` puts them together, ``manager`` is how a program uses them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from schemas import Backoff, Job, JobPriority, JobStatus, PermanentError, PipelineError, TransientError
    from streams.producer import JobProducer
    from streams.queue import JobQueue
    from streams.reader import JobFilter, JobNotFound
    from streams.settings import Settings, load_settings
    from workers.builder import JobBuilder
    from workers.config import WorkerConfig
    from workers.context import WorkerContext
    from workers.manager import WorkerManager
    from workers.results import Failed, JobResult, Skipped, Snooze, Success
    from workers.worker import Worker

__all__ = [
    "Backoff",
    "Failed",
    "Job",
    "JobBuilder",
    "JobFilter",
    "JobNotFound",
    "JobPriority",
    "JobProducer",
    "JobQueue",
    "JobResult",
    "JobStatus",
    "PermanentError",
    "PipelineError",
    "Settings",
    "Skipped",
    "Snooze",
    "Success",
    "TransientError",
    "Worker",
    "WorkerConfig",
    "WorkerContext",
    "WorkerManager",
    "load_settings",
]

#: Where each name lives. Imported when it is first used: a command that needs no Kafka starts in half the time.
_HOMES: Final = {
    "Backoff": "schemas",
    "Failed": "workers.results",
    "Job": "schemas",
    "JobBuilder": "workers.builder",
    "JobFilter": "streams.reader",
    "JobNotFound": "streams.reader",
    "JobPriority": "schemas",
    "JobProducer": "streams.producer",
    "JobQueue": "streams.queue",
    "JobResult": "workers.results",
    "JobStatus": "schemas",
    "PermanentError": "schemas",
    "PipelineError": "schemas",
    "Settings": "streams.settings",
    "Skipped": "workers.results",
    "Snooze": "workers.results",
    "Success": "workers.results",
    "TransientError": "schemas",
    "Worker": "workers.worker",
    "WorkerConfig": "workers.config",
    "WorkerContext": "workers.context",
    "WorkerManager": "workers.manager",
    "load_settings": "streams.settings",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'workers' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
