"""Counts of what has been done stay bounded and honest, whatever type names messages bring."""

from __future__ import annotations

import pytest

from workers.committing import counters as counters_module
from workers.committing.counters import Counters

pytestmark = pytest.mark.job_processing


def test_names_that_messages_make_up_are_counted_together_beyond_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters_module, "MOST_OF_STRANGERS", 2)
    counters = Counters(["ours"])
    for number in range(5):
        counters.job((f"made-up-{number}", "low", "failed"))
    counters.job(("made-up-1", "low", "failed"))
    assert counters.jobs == {
        ("made-up-0", "low", "failed"): 1,
        ("made-up-1", "low", "failed"): 2,
        ("other", "low", "failed"): 3,
    }


def test_they_take_no_place_from_types_that_the_worker_runs() -> None:
    counters = Counters(["ours"])
    for number in range(2 * counters_module.MOST_OF_STRANGERS):
        counters.job((f"made-up-{number}", "low", "failed"))
    counters.job(("ours", "high", "succeeded"))
    assert counters.jobs["ours", "high", "succeeded"] == 1


def test_sums_of_what_handlers_count_are_bounded_and_what_is_left_out_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters_module, "MOST_METRICS", 2)
    counters = Counters(["ours"])
    counters.add("ours", {"bytes": 1.5, "files": 1})
    counters.add("ours", {"bytes": 2, "made-up-1": 1, "made-up-2": 1})
    assert counters.metrics == {("ours", "bytes"): 3.5, ("ours", "files"): 1}
    assert counters.events == {"metrics_left_out": 2}
