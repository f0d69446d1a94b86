"""Which state a report tells of."""

from __future__ import annotations

from typing import Any

import pytest

from workers.liveness.self_report import state_of
from workers.liveness.survivors import CUT_OFF, LEFT

pytestmark = pytest.mark.worker_coordination

USUAL = {
    "asked": "running",
    "cut_off": False,
    "draining": False,
    "stopping": False,
    "failed": False,
    "left_in_order": False,
}


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({"asked": "starting"}, "starting"),
        ({}, "running"),
        ({"draining": True}, "draining"),
        ({"asked": "starting", "draining": True}, "starting"),
        ({"cut_off": True}, CUT_OFF),
        ({"cut_off": True, "draining": True}, CUT_OFF),
        ({"stopping": True, "draining": True}, "stopped"),
        # It reports for a moment longer: its successor must not take that for a sign of life.
        ({"failed": True}, "stopped"),
        # "left" is what acquits a worker's jobs, so only the very last words may say so.
        ({"left_in_order": True, "draining": True}, "draining"),
        ({"asked": "stopped", "left_in_order": True, "stopping": True, "draining": True}, LEFT),
        ({"asked": "stopped", "left_in_order": True, "stopping": True, "failed": True}, LEFT),
        ({"asked": "stopped", "stopping": True, "draining": True}, "stopped"),
    ],
)
def test_a_report_names_the_worst_state_that_applies(more: dict[str, Any], state: str) -> None:
    assert state_of(**{**USUAL, **more}) == state
