"""Somebody gives dead letters a new life while the storm goes on, again and again.

In:  what was accepted, as far as it has come. Out: which jobs it was told have a new life.

A call that fails leaves each job as it was or with a new life, and nobody tells which: what is then found among the statuses is
judged like any other life.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import PipelineError
from streams.dead_letters import DeadLetterFilter
from streams.redrive import redrive
from streams.settings import Settings
from tests.guarantees.evidence import Accepted
from tests.guarantees.jobs import AlwaysFails

#: Jobs of one call; some of them have not failed yet.
_MOST: Final = 100
_FIRST_PAUSE_S: Final = 15.0
#: Each call reads all dead letters and statuses: that much longer than it took, nothing is read.
_REST: Final = 10


@dataclass(slots=True)
class Redrives:
    """What came of it."""

    redriven: list[str] = field(default_factory=list)
    calls: int = 0
    failed_calls: int = 0

    def keep_on(
        self, settings: Settings, accepted: Sequence[Accepted], seed: int, stop: threading.Event
    ) -> None:
        """One call after another, until it is stopped. Blocks."""
        dice = random.Random(f"redrives {seed}")
        told = set(self.redriven)
        pause_s = _FIRST_PAUSE_S
        while not stop.wait(pause_s):
            failing = [job.job_id for job in list(accepted) if job.type == AlwaysFails.job_type]
            waiting = [job_id for job_id in failing if job_id not in told]
            ids = frozenset(dice.sample(waiting, min(_MOST, len(waiting))))
            began = time.monotonic()
            try:
                report = redrive(settings, DeadLetterFilter(ids=ids))
            except PipelineError:
                self.failed_calls += 1
            else:
                told.update(report.redriven)
                self.redriven += report.redriven
            self.calls += 1
            pause_s = max(_FIRST_PAUSE_S, _REST * (time.monotonic() - began))
