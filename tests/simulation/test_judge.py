"""What the judge of the simulation takes for an excuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.judge import Judge

pytestmark = [pytest.mark.job_processing]


class Worlds:
    """One in which a job runs at one worker after another, and a judge who looks on."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.judge = Judge(self)  # type: ignore[arg-type]  # all of a world that it asks

    def is_finished(self, _execution: object) -> bool:
        return False

    def run(self, worker: Any, at_ms: int, **facts: bool) -> None:
        """A process of its own kills itself; its worker begins it at ``at_ms``."""
        self.now_ms = at_ms
        message = SimpleNamespace(job_id=b"j", where="jobs.low/0/0", key=None)
        known = {
            "began_in_trouble": False,
            "was_given_away": False,
            "was_sandboxed": True,
            "cut_short": True,
            **facts,
        }
        execution: Any = SimpleNamespace(
            message=message,
            delivery=SimpleNamespace(delivery=0, not_before_ms=0),
            job=SimpleNamespace(number=1, kills=True, order_key=""),
            started_ms=at_ms,
            **known,
        )
        self.judge.started(worker, execution)


def worker(*troubles: int) -> Any:
    return SimpleNamespace(
        incarnation="a", troubles=list(troubles), _scheduler=SimpleNamespace(isolated=None), _executor=None
    )


def test_trouble_before_the_next_run_is_why_a_death_did_not_count() -> None:
    world = Worlds()
    for at_ms in (10, 20, 30, 40):
        world.run(worker(at_ms + 5) if at_ms == 10 else worker(), at_ms)
    assert world.judge.broken == []


def test_trouble_after_the_next_run_has_begun_excuses_no_death() -> None:
    """The next owner knew of it by then."""
    world = Worlds()
    for at_ms in (10, 20, 30, 40):
        world.run(worker(25) if at_ms == 10 else worker(), at_ms)
    assert [case.partition(":")[0] for case in world.judge.broken] == ["kills on"]


def test_a_run_at_a_worker_whose_partition_was_given_away_ends_nobodys_time() -> None:
    world = Worlds()
    first, ended = worker(), {"cut_short": False}
    world.run(first, 10, **ended)
    world.run(worker(), 20, was_given_away=True, **ended)
    first.troubles.append(25)
    world.run(worker(), 30, **ended)
    assert world.judge.broken == []
    world.run(worker(), 40, **ended)
    assert [case.partition(":")[0] for case in world.judge.broken] == ["unexplained"]
