"""What a ``WorkerConfig`` refuses, by name: in code there is no settings file that would have checked it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from schemas.errors import SettingsError
from schemas.topics import PRIORITIES, JobPriority
from streams.settings import default_worker_id, load_settings
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


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("buffer_low", {"buffer_low": 11, "buffer_high": 10}),
        ("buffer_low", {"buffer_low": 10, "buffer_high": 10}),
        ("session_timeout", {"session_timeout": timedelta(seconds=-1)}),
        ("session_timeout", {"session_timeout": timedelta(milliseconds=1)}),
        ("session_timeout", {"session_timeout": timedelta(seconds=1801)}),
        ("tick_ms", {"tick_ms": 0}),
        ("drain_timeout", {"drain_timeout": timedelta(seconds=-1)}),
        ("job_timeout", {"job_timeout": timedelta(0)}),
        ("job_timeout", {"job_timeout": 300}),
        ("session_timeout", {"session_timeout": 45.0}),
        ("max_concurrent_jobs", {"max_concurrent_jobs": "10"}),
        ("process_pool_size", {"process_pool_size": 2.5}),
        ("tick_ms", {"tick_ms": True}),
        ("sandbox_size", {"sandbox_size": None}),
        ("max_concurrent_jobs", {"max_concurrent_jobs": 10**9}),
        ("worker_id", {"worker_id": 5}),
        ("worker_id", {"worker_id": ""}),
        ("worker_id", {"worker_id": "-.."}),
        ("worker_id", {"worker_id": "a\n"}),
        ("worker_id", {"worker_id": "a/b"}),
        ("worker_id", {"worker_id": "a" * 65}),
        ("strict_priorities", {"strict_priorities": "no"}),
        ("priority_weights", {"priority_weights": 5}),
        (r"priority_weights\[critical\]", {"priority_weights": dict.fromkeys(PRIORITIES, 1.5)}),
        (r"priority_weights\[critical\]", {"priority_weights": dict.fromkeys(PRIORITIES, 10**9)}),
        ("priority_weights has 'urgent'", {"priority_weights": dict.fromkeys((*PRIORITIES, "urgent"), 1)}),
        ("revoke_timeout", {"revoke_timeout": timedelta.max}),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, wrong: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        WorkerConfig(**{"worker_id": "w"} | wrong)


def test_the_longest_name_and_the_bounds_of_a_session_are_those_of_the_settings() -> None:
    for session_s in (3, 1800):
        settings = load_settings(worker_id="a" * 64, session_timeout_s=session_s)
        config = WorkerConfig.from_settings(settings)
        assert (config.worker_id, config.session_timeout) == ("a" * 64, timedelta(seconds=session_s))


@pytest.mark.parametrize("host", ["_rack-4", "-rack", "__", "rack_", "ra\u00e7k"])
def test_every_hosts_own_name_is_one_that_a_worker_may_have(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: f"{host}.example")
    assert WorkerConfig().worker_id == default_worker_id()
