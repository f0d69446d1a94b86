"""A simulation that finds nothing proves something only if it would have found it."""

from __future__ import annotations

from typing import Final

import pytest

from tests.simulation.planted import BREAKS, PLANTED
from tests.simulation.world import World
from workers.testing import MemoryKafka

# Pure computation: a limit that a busy machine does not reach.
pytestmark = [
    pytest.mark.worker_coordination,
    pytest.mark.distributed,
    pytest.mark.thorough,
    pytest.mark.timeout(900),
]

_SEEDS: Final = 680


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_breaks_a_guarantee_in_some_world(name: str) -> None:
    """By what it is said to do to jobs: that something else went wrong as well, or its worker ended, is no proof."""
    committed = MemoryKafka.committed
    for seed in range(_SEEDS):
        with PLANTED[name]():
            found = [what for what in World(seed).run() if what.partition(":")[0] in BREAKS[name]]
        assert MemoryKafka.committed is committed, "a plant is left behind for the tests after this one"
        if found:
            assert not World(seed).run(), f"{name} at seed {seed}: something else was found"
            return
    pytest.fail(f"{name}: none of {_SEEDS} seeds finds it")
