from __future__ import annotations

import math
import statistics
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.backoff import Backoff
from schemas.errors import SettingsError

pytestmark = pytest.mark.job_processing

MS = timedelta(milliseconds=1)
durations = st.timedeltas(timedelta(0), timedelta(days=400))
backoffs = st.builds(
    Backoff,
    base=durations,
    factor=st.floats(1, 1e300) | st.integers(1, 10**6),
    cap=durations,
    floor=durations,
    jitter=st.booleans(),
)
job_ids = st.uuids().map(str)
attempts = st.integers(1, 2**31)


@given(backoffs, job_ids, attempts)
@example(Backoff(factor=10_000.0), "a", 500)
@example(Backoff(factor=2), "a", 2**31)
@example(Backoff(base=timedelta.max, cap=timedelta.max), "a", 2**31)
@example(Backoff(cap=timedelta(microseconds=1500), base=timedelta(1), jitter=False), "a", 1)
def test_a_wait_lies_between_floor_and_cap_for_any_attempt(
    backoff: Backoff, job_id: str, attempt: int
) -> None:
    delay_ms = backoff.delay_ms(job_id, attempt)
    assert min(backoff.floor // MS, backoff.cap // MS) <= delay_ms <= backoff.cap / MS
    assert isinstance(delay_ms, int)
    assert backoff.delay_ms(job_id, attempt) == delay_ms


@given(backoffs, job_ids, st.integers(1, 2_000))
def test_a_wait_is_never_over_the_bound_of_its_attempt(backoff: Backoff, job_id: str, attempt: int) -> None:
    try:
        bound = backoff.base / MS * float(backoff.factor) ** (attempt - 1)
    except OverflowError:
        bound = math.inf
    allowed = max(math.ceil(bound) if bound < math.inf else math.inf, backoff.floor / MS)
    assert backoff.delay_ms(job_id, attempt) <= allowed


def test_the_default_is_the_documented_one() -> None:
    exact = Backoff(jitter=False)
    seconds = [exact.delay_ms("a", attempt) / 1000 for attempt in (1, 2, 3, 4, 11, 12, 13)]
    assert seconds == [2, 4, 8, 16, 2048, 3600, 3600]


def test_a_repeated_outcome_asks_for_the_same_wait_in_any_process() -> None:
    """The number is frozen: an outcome written again by another worker lands in the same retry topic."""
    assert Backoff().delay_ms("01970c4e-8c00-7abc-8def-0123456789ab", 3) == 748


def test_jitter_is_full_and_even() -> None:
    """Each job and each attempt draws its own wait, anywhere between nothing and the bound."""
    backoff = Backoff(base=timedelta(seconds=100), floor=timedelta(0), factor=1)
    drawn = [backoff.delay_ms(f"job-{number}", 1) for number in range(4_000)]
    deciles = statistics.quantiles(drawn, n=10)
    assert all(
        abs(found - wanted) < 3_000
        for found, wanted in zip(deciles, range(10_000, 100_000, 10_000), strict=True)
    )
    assert backoff.delay_ms("job-1", 1) != backoff.delay_ms("job-1", 2)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"base": timedelta(-1)}, "base"),
        ({"cap": timedelta(-1)}, "cap"),
        ({"floor": timedelta(-1)}, "floor"),
        ({"factor": 0.5}, "factor"),
        ({"factor": -2.0}, "factor"),
        ({"factor": math.inf}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": "2"}, "factor"),
        ({"cap": 600}, "cap"),
        ({"jitter": "no"}, "jitter"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, object], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Backoff(**values)  # type: ignore[arg-type]
