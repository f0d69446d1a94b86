"""What is on the wire: jobs, states, topics, headers and their bytes. Imports nothing of ours, does no I/O.

A job's way through the modules: ``job`` (the class a user writes) → ``jobtype`` (its schema) → ``codec``
(its bytes) → ``headers`` (what changes in delivery) → ``topics`` (where it goes) → ``lifecycle`` (the
states it passes) → ``records`` (how a state change looks).
"""

from schemas.backoff import Backoff
from schemas.errors import PermanentError, PipelineError, TransientError
from schemas.job import Job
from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority, Topics

__all__ = [
    "Backoff",
    "Job",
    "JobPriority",
    "JobStatus",
    "PermanentError",
    "PipelineError",
    "Topics",
    "TransientError",
]
