"""Broker time as a worker knows it: late by an acknowledgement at most, and never early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.liveness.clock import BrokerClock

pytestmark = pytest.mark.worker_coordination

NS = 1_000_000


class Clocks:
    """The broker's clock, the one on the wall and the steady one. Microseconds, so that parts of milliseconds count."""

    def __init__(self) -> None:
        self.steady_us = 5_000_000
        self.broker_us = 1_700_000_000_000_123
        self.wall_us = self.broker_us
        self.worker = BrokerClock(
            steady_ns=lambda: self.steady_us * 1_000, wall_ns=lambda: self.wall_us * 1_000
        )

    def pass_us(self, us: int) -> None:
        self.steady_us += us
        self.broker_us += us
        self.wall_us += us

    def report(self, *, to_broker_us: int, back_us: int) -> None:
        sent_ns = self.worker.steady_ns()
        self.pass_us(to_broker_us)
        stamped_ms = self.broker_us // 1_000
        self.pass_us(back_us)
        self.worker.sample(stamped_ms, sent_ns)

    @property
    def early_us(self) -> int:
        return self.worker.now_ms() * 1_000 - self.broker_us


delays = st.integers(0, 500_000)


@given(
    st.integers(-(10**10), 10**10),
    st.lists(
        st.tuples(delays, delays, delays, st.sampled_from([0, 0, 0, -(10**7), 10**7])),
        min_size=1,
        max_size=80,
    ),
)
def test_it_is_never_early_whatever_the_clock_on_the_wall_does(
    wrong_by_us: int, reports: list[tuple[int, int, int, int]]
) -> None:
    clocks = Clocks()
    clocks.wall_us += wrong_by_us
    for there, back, pause, set_by_us in reports:
        clocks.report(to_broker_us=there, back_us=back)
        clocks.wall_us += set_by_us
        clocks.pass_us(pause)
        assert clocks.early_us <= 0


@given(st.lists(delays, min_size=1, max_size=60))
def test_it_is_late_by_the_quickest_acknowledgement_at_most(backs: list[int]) -> None:
    clocks = Clocks()
    for back in backs:
        clocks.report(to_broker_us=0, back_us=back)
    assert clocks.early_us >= -min(backs) - 3_000  # milliseconds are whole


@given(st.lists(st.tuples(delays, delays, st.sampled_from([0, 0, -(10**7), 10**7])), min_size=1, max_size=80))
def test_after_the_brokers_clock_was_set_back_it_is_early_by_an_answers_time_at_most(
    reports: list[tuple[int, int, int]],
) -> None:
    clocks = Clocks()
    for there, back, set_by_us in reports:
        clocks.broker_us += set_by_us
        clocks.report(to_broker_us=there, back_us=back)
        assert clocks.early_us <= there + back + 1_000, "a bound from before contradicts this one"


def test_a_good_answer_counts_for_a_minute_of_reports() -> None:
    clocks = Clocks()
    clocks.report(to_broker_us=0, back_us=0)
    for _ in range(59):
        clocks.report(to_broker_us=0, back_us=400_000)
    assert clocks.early_us >= -3_000
    clocks.report(to_broker_us=0, back_us=400_000)
    assert clocks.early_us <= -400_000


def test_before_the_first_report_there_is_only_the_local_clock() -> None:
    clocks = Clocks()
    assert clocks.worker.now_ms() == clocks.wall_us // 1_000
    assert clocks.worker.offset_ms == 0


def test_how_far_the_local_clock_is_off_is_told() -> None:
    clocks = Clocks()
    clocks.wall_us -= 7_000_000
    clocks.report(to_broker_us=0, back_us=0)
    assert 6_997 <= clocks.worker.offset_ms <= 7_000
