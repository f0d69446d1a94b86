"""Which metadata of the group a commit is sent with, as the poll thread comes by them and the commit thread asks for them."""

from __future__ import annotations

import pytest

from schemas.topics import TIERS, JobPriority, Partition
from tests.support.messages import TOPICS
from tests.support.poll_bench import Bench, change, stopped_clock

pytestmark = pytest.mark.worker_coordination

NORMAL: Partition = (TOPICS.jobs[JobPriority.NORMAL], 0)
BESIDE: Partition = (NORMAL[0], 1)
TIER: Partition = (TOPICS.retry[TIERS[2]], 0)


@pytest.mark.parametrize(("lease_s", "told_within_s"), [(5.0, 2.5), (44.0, 10.0)])
async def test_newer_metadata_may_be_tried_when_nothing_was_taken_from_us_for_long(
    monkeypatch: pytest.MonkeyPatch, lease_s: float, told_within_s: float
) -> None:
    """And not with those of then: an epoch that was raised meanwhile may have taken something, and we have not been told."""
    bench = Bench()
    bench.lease.seconds = lease_s
    clock = stopped_clock(monkeypatch)
    (part,) = bench.assign(NORMAL)
    bench.assignments.metadata.refused(0)
    bench.round()
    noted = bench.consumer.generation
    assert bench.consumer.consumer_group_metadata() > noted, "it goes on"
    clock.now_s += told_within_s
    assert bench.assignments.metadata.refused(0) is None
    bench.round()
    assert bench.assignments.metadata.refused(0) is None
    clock.now_s += 0.1
    bench.round()
    assert bench.assignments.metadata.refused(0) == bench.assignments.metadata.current == noted
    assert part.metadata < noted, "the commit thread looks first whether it is still ours"
    assert bench.assignments.metadata.refused(0) is None


async def test_metadata_that_are_not_refused_any_more_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    clock = stopped_clock(monkeypatch)
    bench.assign(NORMAL)
    before = bench.assignments.metadata.current
    bench.assignments.metadata.refused(0)
    bench.round()
    for _ in range(5):
        clock.now_s += 20.1
        bench.round()
    assert bench.assignments.metadata.current == before


@pytest.mark.parametrize("what", ["assign", "revoke", "lose"])
async def test_a_change_of_partitions_begins_the_question_anew(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    bench = Bench()
    clock = stopped_clock(monkeypatch)
    bench.assign(NORMAL, BESIDE)
    bench.assignments.metadata.refused(0)
    bench.round()
    clock.now_s += 2.6
    await change(bench, what, NORMAL, TIER)
    bench.round()
    assert bench.assignments.metadata.refused(0) is None


async def test_metadata_are_of_the_last_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ones could be of an epoch in which somebody else has a partition that we have not given up yet."""
    bench = Bench()
    clock = stopped_clock(monkeypatch)
    _, stays = bench.assign(NORMAL, BESIDE)
    before = bench.assignments.metadata.current
    for _ in range(5):
        clock.now_s += 60.0
        bench.round()
    await bench.revoke(NORMAL)
    bench.round()
    assert bench.assignments.metadata.current == before
    (back,) = bench.assign(NORMAL)
    assert bench.assignments.metadata.current == back.metadata == before + 1
    assert stays.metadata == before


def is_told(bench: Bench) -> bool:
    """Whether who asks does not have to wait."""
    began = bench.assignments.metadata.changed.is_set()
    bench.assignments.metadata.refused(0)
    return began


@pytest.mark.parametrize("what", ["assign", "revoke", "lose"])
async def test_a_change_of_partitions_is_told_once(what: str) -> None:
    bench = Bench()
    bench.assign(NORMAL)
    assert is_told(bench)
    assert not is_told(bench)
    await change(bench, what, NORMAL, BESIDE)
    assert is_told(bench)
    assert not is_told(bench)
