"""How one worker process behaves. Given in code, or made from ``Settings``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from schemas.durations import seconds
from schemas.errors import SettingsError
from schemas.topics import PRIORITIES, JobPriority
from streams.settings import (
    LEAST_SESSION_S,
    LONGEST_SESSION_S,
    LONGEST_WORKER_ID,
    WORKER_ID,
    Settings,
    default_worker_id,
)
from workers.scheduling.turns import DEFAULT_WEIGHTS

#: Whole numbers: the least and the greatest. The same as in ``Settings``.
_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "max_concurrent_jobs": (1, 10_000),
    "process_pool_size": (1, 1000),
    "sandbox_size": (0, 1000),
    "retry_limit": (0, 1000),
    "tick_ms": (1, 1000),
    "process": (0, 1_000_000),
    "buffer_high": (1, 1_000_000),
    "buffer_low": (0, 1_000_000),
}
_GREATEST_WEIGHT: Final = 1000
_DURATIONS_FROM_ZERO: Final = (
    "drain_timeout",
    "revoke_timeout",
    "snooze_limit",
    "cleanup_interval",
    "lost_worker_wait",
)


@dataclass(frozen=True)
class WorkerConfig:
    """One worker.

    Attributes:
        worker_id: its name, the same after a restart and different from every other worker's.
        max_concurrent_jobs: handlers that run at the same time.
        job_timeout: limit of one run, unless the job or its type says otherwise.
        retry_limit: runs after the first, unless the job or its type says otherwise.
        cleanup_interval: reserved for the time between two rounds of housekeeping; without effect yet.
        process: number of this process among those of one worker.
        process_pool_size: processes for handlers with ``execution = "process"``.
        sandbox_size: processes for jobs that may kill, unfinished at two deaths of their worker; 0: they run alone in the worker.
        tick_ms: milliseconds between two transactions.
        drain_timeout: what running jobs get when the worker is asked to stop.
        revoke_timeout: what they get when their partition moves to another worker, if by what is known of their type they may
            end in that time; others are not waited for: they are cancelled, and run again there.
        snooze_limit: since a job's first snooze in its life; after it a snooze counts as a failure.
        buffer_high: waiting jobs of one priority at which fetching pauses.
        buffer_low: waiting jobs of one priority at which fetching goes on.
        priority_weights: turns of each priority while all have jobs waiting.
        strict_priorities: serve a priority only while all higher ones are empty.
        session_timeout: how long Kafka waits for a silent worker, where the broker does not tell.
        lost_worker_wait: how long a job whose worker was lost while it ran alone waits for a sign of life of it,
            before it is dead-lettered as the one that kills.

    Raises:
        SettingsError: a value has the wrong type, or is out of range.
    """

    worker_id: str = field(default_factory=default_worker_id)
    max_concurrent_jobs: int = 64
    job_timeout: timedelta = timedelta(seconds=300)
    retry_limit: int = 3
    cleanup_interval: timedelta = timedelta(seconds=60)
    process: int = 0
    process_pool_size: int = field(default_factory=lambda: os.cpu_count() or 1)
    sandbox_size: int = 8
    tick_ms: int = 20
    drain_timeout: timedelta = timedelta(seconds=30)
    revoke_timeout: timedelta = timedelta(seconds=1)
    snooze_limit: timedelta = timedelta(days=7)
    buffer_high: int = 2000
    buffer_low: int = 1000
    priority_weights: Mapping[JobPriority, int] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    strict_priorities: bool = False
    session_timeout: timedelta = timedelta(seconds=45)
    lost_worker_wait: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        worker_id: object = self.worker_id
        if (
            not isinstance(worker_id, str)
            or not re.fullmatch(WORKER_ID, worker_id)
            or worker_id.endswith("\n")  # Python's "$" stands before one too
            or len(worker_id) > LONGEST_WORKER_ID
        ):
            raise SettingsError(
                f"worker_id takes a name of at most {LONGEST_WORKER_ID} letters, digits, dots, dashes and underscores that begins "
                f"with a letter or a digit, it is {worker_id!r:.80}"
            )
        for name, (least, most) in _RANGES.items():
            _check_whole(name, getattr(self, name), least, most)
        if type(self.strict_priorities) is not bool:
            raise SettingsError(
                f"strict_priorities takes True or False, it is {self.strict_priorities!r:.80}"
            )
        for name in _DURATIONS_FROM_ZERO:
            seconds(name, getattr(self, name), least=timedelta(0))
        seconds("job_timeout", self.job_timeout)
        if not LEAST_SESSION_S <= seconds("session_timeout", self.session_timeout) <= LONGEST_SESSION_S:
            raise SettingsError(
                f"session_timeout takes {LEAST_SESSION_S} s to {LONGEST_SESSION_S:,} s, it is {self.session_timeout}"
            )
        if self.buffer_low >= self.buffer_high:
            raise SettingsError(
                f"buffer_low must be less than buffer_high ({self.buffer_high}), it is {self.buffer_low}"
            )
        weights: object = self.priority_weights
        if not isinstance(weights, Mapping):
            raise SettingsError(f"priority_weights takes a mapping of priorities, it is {weights!r:.80}")
        for priority in PRIORITIES:
            weight = weights.get(priority, 0)
            _check_whole(f"priority_weights[{priority.value}]", weight, 1, _GREATEST_WEIGHT)
        if unknown := [name for name in weights if name not in PRIORITIES]:
            raise SettingsError(f"priority_weights has {unknown[0]!r:.80}, which is no JobPriority")

    @property
    def name(self) -> str:
        """Worker id and process number: what reports, statuses and transactional ids carry."""
        return f"{self.worker_id}.{self.process}"

    @classmethod
    def from_settings(cls, settings: Settings, *, process: int = 0) -> WorkerConfig:
        """The worker that the settings describe."""
        return cls(
            worker_id=settings.worker_id,
            max_concurrent_jobs=settings.max_concurrent_jobs,
            job_timeout=timedelta(seconds=settings.job_timeout_s),
            retry_limit=settings.retry_limit,
            cleanup_interval=timedelta(seconds=settings.cleanup_interval_s),
            process=process,
            process_pool_size=settings.process_pool_size,
            sandbox_size=settings.sandbox_size,
            tick_ms=settings.tick_ms,
            drain_timeout=timedelta(seconds=settings.drain_timeout_s),
            revoke_timeout=timedelta(seconds=settings.revoke_timeout_s),
            snooze_limit=timedelta(seconds=settings.snooze_limit_s),
            buffer_high=settings.buffer_high,
            buffer_low=settings.buffer_low,
            priority_weights=settings.priority_weights.by_priority(),
            strict_priorities=settings.strict_priorities,
            session_timeout=timedelta(seconds=settings.session_timeout_s),
            lost_worker_wait=timedelta(seconds=settings.lost_worker_wait_s),
        )


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise SettingsError(f"{name} takes a whole number, it is {value!r:.80}")
    if not least <= value <= most:
        raise SettingsError(f"{name} takes {least:,} to {most:,}, it is {value:,}")
