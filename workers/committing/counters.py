"""What a worker has done, in numbers: jobs by type, priority and state, what their handlers count, and events by name.

Cumulative since the process started. Jobs and metrics are counted by the commit thread, when their transaction has committed;
each event's name is counted by one thread only, so none is lost. A report copies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: Names of types come from messages. So many counters of types that this worker does not run; what is beyond counts as
#: ``other``. They travel in each report, once a second.
MOST_OF_STRANGERS: Final = 100

#: As many sums of what handlers count, for the same reason; those that come later stand in their jobs' statuses alone.
MOST_METRICS: Final = 500

#: Type, priority, state.
JobName = tuple[str, str, str]


class Counters:
    """Those of one worker process.

    Args:
        types: job types that it runs; these are always counted by name.
    """

    def __init__(self, types: Iterable[str] = ()) -> None:
        self.jobs: dict[JobName, int] = {}
        self.events: dict[str, int] = {}
        #: By type and name.
        self.metrics: dict[tuple[str, str], float] = {}
        self._types = frozenset(types)
        self._strangers = 0

    def job(self, name: JobName) -> None:
        """Count a job that has come to a state."""
        if name not in self.jobs and name[0] not in self._types:
            if self._strangers >= MOST_OF_STRANGERS:
                name = ("other", *name[1:])
            else:
                self._strangers += 1
        self.jobs[name] = self.jobs.get(name, 0) + 1

    def add(self, job_type: str, metrics: Mapping[str, float]) -> None:
        """Add what a run has counted with ``update_metrics``."""
        for name, value in metrics.items():
            if (sum_of := (job_type, name)) in self.metrics or len(self.metrics) < MOST_METRICS:
                self.metrics[sum_of] = self.metrics.get(sum_of, 0.0) + value
            else:
                self.event("metrics_left_out")

    def event(self, name: str, count: int = 1) -> None:
        """Count something that is not a job's state."""
        self.events[name] = self.events.get(name, 0) + count
