"""The worker's protocol in thousands of orders: nothing is lost, doubled, early, or out of order in any of them."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.simulation.world import World

# Pure computation, half a minute of it: a limit that a busy machine does not reach.
pytestmark = [pytest.mark.worker_coordination, pytest.mark.distributed, pytest.mark.timeout(600)]

#: CI runs some thousands more: `python -m tests.simulation`.
_SEEDS = range(40)


@cache
def run(seed: int) -> tuple[list[str], Counter[str]]:
    """What broke in this world, and what befell it."""
    world = World(seed)
    return world.run(), world.faults


def test_every_guarantee_holds_in_these_worlds() -> None:
    for seed in _SEEDS:
        broken, _ = run(seed)
        assert not broken, f"python -m tests.simulation --seed {seed}: {broken[:3]}"


def test_a_seed_decides_everything() -> None:
    first, again = World(11), World(11)
    assert first.run() == again.run() == []
    assert first.faults == again.faults
    assert first.now_ms == again.now_ms
    assert first.judge.reexecuted == again.judge.reexecuted > 0


def test_the_faults_that_matter_happen() -> None:
    faults = {kind for seed in _SEEDS for kind in run(seed)[1]}
    wanted = {
        "kill",
        "freeze",
        "cut",
        "leave",
        "outage",
        "slow",
        "lost",
        "forget",
        "offsets",
        "connection lost",
        "coordinator lost",
        "forgotten",
        "commit lost",
        "answer lost",
        "abort lost",
        "straggler",
        "straggler refused",
        "torn",
        "slow begin",
        "slow offsets",
    }
    assert wanted <= faults
