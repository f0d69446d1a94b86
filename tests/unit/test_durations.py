"""Which running jobs can still end before a deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.durations import Durations

pytestmark = pytest.mark.worker_coordination


def durations(*took_ms: int) -> Durations:
    known = Durations()
    for took in took_ms:
        known.note("t", took)
    return known


@pytest.mark.parametrize(
    ("took", "age", "may_end"),
    [
        pytest.param([], 100, True, id="unknown and young"),
        pytest.param([], 3_001, False, id="unknown and old"),
        pytest.param([30_000] * 3, 100, False, id="a long one that has just begun"),
        pytest.param([30_000] * 3, 27_000, True, id="a long one about to end"),
        pytest.param([4_000, 5_000, 6_000], 5_500, True, id="longer than most, but within what is usual"),
        pytest.param([100] * 9 + [90_000], 50, True, id="most are short"),
        pytest.param([100] * 9 + [90_000], 5_000, False, id="it is not one of the short ones"),
        pytest.param([100] * 9, 2_000, True, id="longer than any, but not by much"),
        pytest.param([100] * 9, 60_000, False, id="longer than any"),
    ],
)
def test_who_may_end_within_three_seconds(took: list[int], age: int, *, may_end: bool) -> None:
    assert durations(*took).may_end("t", age, 3_000) is may_end


def test_types_are_apart() -> None:
    assert durations(30_000).may_end("other", 100, 3_000)


def test_what_was_long_ago_does_not_count() -> None:
    assert durations(*[60_000] * 99, *[10] * 31).may_end("t", 5, 3_000)


@given(st.lists(st.integers(0, 100_000)), st.integers(0, 100_000), st.integers(0, 10_000))
def test_with_more_time_nobody_ends_later(took: list[int], age: int, within: int) -> None:
    known = durations(*took)
    assert known.may_end("t", age, within) <= known.may_end("t", age, within + 1)
