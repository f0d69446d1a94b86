"""What the overload takes for broken: each thing, put into a run in which nothing was wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.guarantees.overload import Found

pytestmark = pytest.mark.distributed

STEADY, FILLED, AFTER = 200, 20, 100


def fine() -> Found:
    return Found(
        drain_per_s=3_000,
        sent_per_s=6_000,
        done_per_s=3_000,
        factor=2.0,
        backlog=1_000_000,
        accepted=2_000_000,
        urgent=6_000,
        most_waiting=1_000_000,
        held_back=10,
        worker_mib=[100.0] * (STEADY + FILLED + AFTER),
        producer_mib=[50.0] * (STEADY + FILLED + AFTER),
        steady=STEADY,
        filled=STEADY + FILLED,
        urgent_p99_ms=60.0,
        final={"succeeded": 2_006_000},
    )


def grown(first: int, by: float = 9.0) -> list[float]:
    """Memory that grows at that sample, for good."""
    return [100.0 + (by if number >= first else 0.0) for number in range(STEADY + FILLED + AFTER)]


def surging(at: int, by: float) -> list[float]:
    """Memory that is more for the length of one sample."""
    return [100.0 + (by if number == at else 0.0) for number in range(STEADY + FILLED + AFTER)]


def test_nothing_is_broken_where_nothing_was_wrong() -> None:
    assert fine().broken() == []


def test_what_is_on_its_way_for_a_moment_is_no_growth() -> None:
    assert replace(fine(), worker_mib=surging(STEADY + FILLED - 1, 31.0)).broken() == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"lost": 1}, "1 jobs are lost"),
        ({"filled": STEADY}, "memory was not looked at while the backlog was filled"),
        ({"worker_mib": [100.0] * (STEADY + FILLED)}, "memory was not looked at while it recovered"),
        ({"forked": 2}, "2 jobs have more than one end"),
        ({"final": {"succeeded": 1, "failed": 1}}, "ends: "),
        ({"moves": 1}, "partitions moved 1 times"),
        ({"worker_mib": grown(STEADY // 2)}, "the worker grew by 9 MiB"),
        ({"worker_mib": grown(STEADY + 5)}, "the worker grew by 9 MiB while the backlog was filled"),
        ({"worker_mib": grown(STEADY + FILLED + 5)}, "the worker grew by 9 MiB while it recovered"),
        ({"worker_mib": surging(STEADY + FILLED - 1, 33.0)}, "the worker held 33 MiB more for a moment"),
        ({"producer_mib": grown(STEADY // 2)}, "the producer grew by 9 MiB"),
        ({"steady": 19, "filled": 19}, "memory was looked at 19 times only"),
        ({"urgent": 19}, "only 19 urgent jobs came"),
        ({"held_back": 0}, "no producer had to wait while Kafka stood still"),
        ({"urgent_p99_ms": 251.0}, "urgent jobs began after 251.0 ms"),
        ({"sent_per_s": 5_000}, "only 1.7 times what was done was sent"),
        ({"most_waiting": 899_999}, "only 899,999 waited"),
        ({"read_ahead": 150_001}, "a producer read 150,001 ahead"),
    ],
)
def test_what_must_not_be_is_said(facts: dict[str, Any], said: str) -> None:
    assert any(line.startswith(said) for line in replace(fine(), **facts).broken())
