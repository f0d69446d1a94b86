"""A simulation that finds nothing proves something only if it would have found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.world import World

# Pure computation: a limit that a busy machine does not reach.
pytestmark = [pytest.mark.worker_coordination, pytest.mark.distributed, pytest.mark.timeout(600)]

_SEEDS = 600
#: Where rare ones were seen last: looked at first, to save the search for them. A change of the code may move them.
_SEEN: Final[Mapping[str, int]] = {
    "trusts_success": 399,
    "no_fence": 132,
    "keeps_what_is_lost": 24,
    "reads_what_is_open": 21,
    "believes_its_producers": 19,
    "wakes_up_unaware": 8,
}


@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found(name: str) -> None:
    for seed in (_SEEN.get(name, 0), *range(_SEEDS)):
        with PLANTED[name]():
            if World(seed).run():
                return
    pytest.fail(f"{name}: none of {_SEEDS} seeds finds it")
