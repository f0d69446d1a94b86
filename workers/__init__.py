"""What does the work, and what programs import.

A job's way: ``consuming`` (from Kafka: ``poller``, ``message``) → ``scheduling`` (what waits, and what comes next) → ``execution``
(runs the handler: ``worker``, ``context``, ``results``) → ``committing`` (what follows: ``outcome``, with ``offsets``, into Kafka).
``liveness`` is who lives and who does not. ``process`` puts them together, ``manager`` is how a program uses them, and ``commands``
is the command line. ``handlers`` and ``storage`` do the work on objects.

Words that the code uses:

- *owner*: the worker process that has a partition; its *heir* is the next one. *Incarnation*: one process, from start to end.
- *fence*: a number that rises with each owner of a partition.
- *life* of a job: from its scheduling to its final state; a redrive begins the next one. *Attempt*: a run that counts, from 1.
  *Delivery*: the number of a job's record within its life; each retry, snooze or forward writes the next one.
- *suspect*: a record that was unfinished when its owner was lost. After two losses it is kept *apart*: in the *sandbox*, or *alone*
  (beside nothing else). *Accused*: its owner was lost while it ran alone; a *verdict* buries it, or lets it go on.
- *base*, *gaps*, *finished*: a partition's committed offset, and what is known behind it (``schemas.offsetmap``). *Beyond reach*: so
  far ahead of the base that a map has no room for it. *Start limit*: from there on nothing starts before a commit has said so.
- *clean*: the last map of an owner that left in order; nobody is suspected then.
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
    from workers.handlers.replication import ReplicationJob
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
    "ReplicationJob",
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
    "ReplicationJob": "workers.handlers.replication",
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
