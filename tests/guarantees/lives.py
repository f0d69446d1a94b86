"""When each worker process lived, and so when the runs that it never finished were over. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

from tests.guarantees.evidence import Life, Run


class Lives:
    """All worker processes of a campaign; several of one name lived one after another."""

    def __init__(self, lives: Iterable[Life]) -> None:
        self._by_worker: dict[str, list[Life]] = defaultdict(list)
        for life in sorted(lives, key=lambda one: one.start_ns):
            self._by_worker[life.worker].append(life)

    def life_of(self, run: Run) -> Life:
        """The worker process of a run; it may have run in a child of it."""
        lives = self._by_worker[run.worker.partition(".")[0]]
        place = bisect_right([life.start_ns for life in lives], run.start_ns) - 1
        return lives[max(place, 0)]

    def end_of(self, run: Run) -> int:
        """When a run ended: by itself, or with its process."""
        return run.end_ns if run.end_ns is not None else self.life_of(run).end_ns
