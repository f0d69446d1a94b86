"""May jobs start? Answers keep the lease; after too long a silence it takes a commit that began later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.liveness.lease import CutOff, Lease, LeaseChange, lease_s

pytestmark = pytest.mark.worker_coordination


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(5.0, clock)


@pytest.mark.parametrize(
    ("session_s", "heartbeat_s", "found"),
    [(45.0, 5.0, 39.0), (6.0, 0.5, 4.5), (45.0, None, 29.0), (2.0, 1.5, 1.0)],
)
def test_it_ends_before_the_session_though_the_last_heartbeat_was_an_interval_ago(
    session_s: float, heartbeat_s: float | None, found: float
) -> None:
    assert lease_s(session_s, heartbeat_s) == found


def test_it_holds_as_long_as_kafka_answers(lease: Lease, clock: Clock) -> None:
    for _ in range(10):
        clock.now += 4.9
        assert lease.holds
        lease.answered(clock.now)
    clock.now += 5.1
    assert not lease.holds


def test_an_answer_counts_from_when_it_was_asked_for(lease: Lease, clock: Clock) -> None:
    clock.now += 2.0
    asked_s = lease.now_s
    clock.now += 1.5
    lease.answered(asked_s)
    assert lease.silent_s == 1.5
    lease.answered(clock.now)
    lease.answered(asked_s)
    assert lease.silent_s == 0.0, "a later answer is not taken back by an earlier one"


def test_an_answer_after_too_long_a_silence_is_not_enough(lease: Lease, clock: Clock) -> None:
    """A process that was frozen hears the broker at once; whether the group has given it up, that does not say."""
    clock.now += 5.1
    lease.answered(clock.now)
    assert not lease.holds
    lease.committed(lease.begin())
    assert lease.holds


def test_a_commit_shows_what_was_so_when_it_began(lease: Lease, clock: Clock) -> None:
    began = lease.begin()
    clock.now += 4.0
    lease.committed(began)
    assert lease.silent_s == 4.0
    clock.now += 1.1
    assert not lease.holds


def test_a_transaction_that_began_before_the_silence_proves_nothing(lease: Lease, clock: Clock) -> None:
    before = lease.begin()
    clock.now += 5.1
    lease.committed(before)
    assert not lease.holds


def test_a_transaction_that_begins_first_thing_after_the_silence_notices_it(
    lease: Lease, clock: Clock
) -> None:
    clock.now += 5.1
    after = lease.begin()
    assert not lease.holds
    lease.committed(after)
    assert lease.holds


# --- cut off ---------------------------------------------------------------------------------------------


def test_who_loses_its_lease_is_told_once_and_once_more_when_it_is_back(lease: Lease, clock: Clock) -> None:
    cut_off = CutOff(lease)
    assert [cut_off.look(), cut_off.is_cut_off] == [None, False]
    clock.now += 5.1
    assert [cut_off.look(), cut_off.look(), cut_off.is_cut_off] == [LeaseChange.LOST, None, True]
    lease.committed(lease.begin())
    assert [cut_off.look(), cut_off.look(), cut_off.is_cut_off] == [LeaseChange.REGAINED, None, False]


def test_nothing_starts_once_the_lease_is_over_whether_anybody_has_looked_or_not(
    lease: Lease, clock: Clock
) -> None:
    cut_off = CutOff(lease)
    assert cut_off.may_start
    clock.now += 5.1
    assert not cut_off.may_start


def test_nothing_starts_before_the_one_who_acts_upon_it_has_found_that_the_lease_holds_again(
    lease: Lease, clock: Clock
) -> None:
    """Its reports still say that nothing runs: a death would be taken for nobody's."""
    cut_off = CutOff(lease)
    clock.now += 5.1
    cut_off.look()
    lease.committed(lease.begin())
    assert lease.holds
    assert not cut_off.may_start
    cut_off.look()
    assert cut_off.may_start


def test_a_suspended_machine_is_as_silent_as_one_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steady clock stands still meanwhile, and Kafka's does not."""
    since_boot = Clock()
    clocks = SimpleNamespace(monotonic=lambda: 0.0, clock_gettime=lambda _: since_boot.now)
    monkeypatch.setattr("workers.liveness.lease.time", clocks)
    lease = Lease(5.0)
    since_boot.now += 60.0
    assert lease.silent_s == 60.0
    assert not lease.holds
