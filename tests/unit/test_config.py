"""What a ``WorkerConfig`` refuses, by name: in code there is no settings file that would have checked it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from schemas.errors import SettingsError
from schemas.topics import PRIORITIES, JobPriority
from workers.config import WorkerConfig

pytestmark = pytest.mark.worker_coordination


@pytest.mark.parametrize(
    "weights",
    [{}, {JobPriority.CRITICAL: 8, JobPriority.HIGH: 4}, dict.fromkeys(PRIORITIES, 0)],
)
def test_each_priority_has_a_share(weights: Mapping[JobPriority, int]) -> None:
    """With jobs of two that have none, looking for the next turn would never end, and the worker stand still."""
    with pytest.raises(SettingsError, match="priority_weights"):
        WorkerConfig(worker_id="w", priority_weights=weights)
