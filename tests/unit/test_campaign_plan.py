"""What a campaign plans: the jobs and the faults that a seed means."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice

import pytest

from tests.guarantees.campaign import Plan
from tests.guarantees.storm import Kind, storm
from tests.guarantees.traffic import orders

pytestmark = pytest.mark.distributed


def test_a_seed_means_the_same_jobs_and_faults() -> None:
    def first(seed: int) -> list[object]:
        return [one for _, one in zip(range(50), zip(orders(seed), storm(seed), strict=False), strict=False)]

    assert first(7) == first(7)
    assert first(7) != first(8)
    kinds = [fault.kind for _, fault in zip(range(9), storm(3), strict=False)]
    assert len(set(kinds)) == 9, "every kind once in a round"
    some = (Kind.WORKER_KILL, Kind.WORKER_LEAVE)
    assert {fault.kind for _, fault in zip(range(9), storm(3, only=some), strict=False)} == {*some}


def test_keys_meet_retries_snoozes_and_delays() -> None:
    """What they are promised is attacked across those as well; others of each kind have none."""
    keys: dict[str, set[str | None]] = {}
    for order, _ in zip(orders(7), range(5_000), strict=False):
        kind = "delayed" if order.delay is not None else type(order.job).job_type
        keys.setdefault(kind, set()).add(order.job.ordering_key())
    shared = keys["g_in_order"]
    assert len(shared) == 40
    for kind in ("g_flaky", "g_hopeless", "g_snoozes", "delayed"):
        assert None in keys[kind]
        assert len(keys[kind] & shared) > 10, kind


def test_only_the_first_half_of_a_long_storm_has_jobs_that_wait_for_minutes() -> None:
    """Nobody waits longer for the end of it, nor for the three minutes that run with the tests."""
    (short,) = Plan(7, 180.0).phases()
    wild, calm = Plan(7, 1_800.0).phases()
    assert (short.far, wild.far, calm.far) == (0, 117_000, 0)
    numbers = [
        number
        for number, order in zip(range(1, 6_000), orders(7, far=4_000), strict=False)
        if order.delay is not None and order.delay > timedelta(seconds=20)
    ]
    assert 10 < len(numbers) < 60
    assert numbers[-1] <= 4_000
    delays = [order.delay for order, _ in zip(orders(7), range(6_000), strict=False)]
    assert max(delay for delay in delays if delay is not None) <= timedelta(seconds=20)


def test_after_a_long_storm_only_workers_come_and_go() -> None:
    """A takeover has a bar, and amid killed brokers it cannot be missed."""
    (short,) = Plan(7, 180.0).phases()
    wild, calm = Plan(7, 1_800.0).phases()
    assert (short.seconds, wild.seconds, calm.seconds) == (180.0, 1_380.0, 420.0)
    faults = list(islice(calm.faults, 60))
    assert {fault.kind for fault in faults} == {Kind.WORKER_KILL, Kind.WORKER_LEAVE, Kind.WORKER_JOIN}
    assert all(fault.pause_s >= 14 for fault in faults)
