"""Jobs of the simulation: each says itself what its runs come to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from schemas.backoff import Backoff
from workers import Job
from workers.results import Failed, JobResult, Skipped, Snooze, Success


@dataclass
class SimJob(Job):
    """``fails``: runs that fail before one succeeds; -1: all. ``kills``: each run ends its process."""

    job_type = "simulated"
    max_retries = 2
    backoff = Backoff(base=timedelta(seconds=1), cap=timedelta(seconds=6))
    number: int
    order_key: str = ""
    fails: int = 0
    permanent: bool = False
    snoozes: int = 0
    skips: bool = False
    children: int = 0
    kills: bool = False
    runs_for_ms: int = 0

    def ordering_key(self) -> str | None:
        return self.order_key or None

    async def execute(self) -> None:
        """Never called: the simulated executor asks ``result``."""

    def result(self, attempt: int, snoozed: int) -> JobResult:
        """What this run comes to."""
        if snoozed < self.snoozes:
            return Snooze(timedelta(milliseconds=700), "not yet")
        if self.fails < 0 or attempt <= self.fails:
            return Failed("as it was told", retryable=not self.permanent)
        if self.skips:
            return Skipped("nothing to do")
        return Success()

    @property
    def expected(self) -> str:
        """The state that it ends in."""
        if self.kills or self.fails > self.max_retries or self.fails < 0 or (self.fails and self.permanent):
            return "failed"
        return "skipped" if self.skips else "succeeded"
