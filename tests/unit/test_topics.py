from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.topics import PRIORITIES, TIERS, JobPriority, Topics, tier_for

pytestmark = pytest.mark.job_processing

YEAR_AND_MORE_MS = 400 * 86_400_000


def hops(remaining_ms: int) -> list[int]:
    """The tiers that a job passes when every hop takes exactly its delay."""
    taken = []
    while (tier := tier_for(remaining_ms)) is not None:
        taken.append(tier.delay_ms)
        remaining_ms -= tier.delay_ms
    return taken


@given(st.integers(-1_000, YEAR_AND_MORE_MS))
@example(0)
@example(999)
@example(1_000)
@example(YEAR_AND_MORE_MS)
def test_a_tier_is_never_longer_than_what_remains(remaining_ms: int) -> None:
    tier = tier_for(remaining_ms)
    if tier is None:
        assert remaining_ms < 1_000
    else:
        assert tier.delay_ms <= remaining_ms
        longer = [other for other in TIERS if tier.delay_ms < other.delay_ms <= remaining_ms]
        assert longer == []


@given(st.integers(0, YEAR_AND_MORE_MS))
def test_hops_never_overshoot_and_leave_less_than_a_second(remaining_ms: int) -> None:
    taken = hops(remaining_ms)
    assert 0 <= remaining_ms - sum(taken) < 1_000
    assert taken == sorted(taken, reverse=True)
    assert len(taken) <= 400 + 30


@given(st.integers(0, YEAR_AND_MORE_MS), st.lists(st.integers(0, 120_000), max_size=40))
def test_hops_that_take_longer_only_shorten_the_way(remaining_ms: int, late_ms: list[int]) -> None:
    """A broker that was down adds to a hop; the next one is chosen from what then remains."""
    for late in late_ms:
        tier = tier_for(remaining_ms)
        if tier is None:
            break
        assert tier.delay_ms <= remaining_ms
        remaining_ms -= tier.delay_ms + late


def test_tiers_are_those_of_the_contract_in_rising_order() -> None:
    assert [(tier.name, tier.delay_ms) for tier in TIERS] == [
        ("1s", 1_000),
        ("5s", 5_000),
        ("30s", 30_000),
        ("2m", 120_000),
        ("10m", 600_000),
        ("1h", 3_600_000),
        ("6h", 21_600_000),
        ("1d", 86_400_000),
    ]


def test_names_are_those_of_the_contract() -> None:
    topics = Topics()
    assert list(topics.jobs.values()) == [
        "rustfs.jobs.critical",
        "rustfs.jobs.high",
        "rustfs.jobs.normal",
        "rustfs.jobs.low",
    ]
    assert list(topics.retry.values()) == [f"rustfs.jobs.retry.{tier.name}" for tier in TIERS]
    assert topics.consumed == (*topics.jobs.values(), *topics.retry.values())
    assert (topics.dlq, topics.status, topics.commands) == (
        "rustfs.jobs.dlq",
        "rustfs.jobs.status",
        "rustfs.jobs.commands",
    )
    assert (topics.reports, topics.schemas) == ("rustfs.workers.reports", "rustfs.schemas")


def test_every_name_carries_the_prefix() -> None:
    topics = Topics("stage-2.")
    names = [spec.name for spec in topics.specs()]
    assert all(name.startswith("stage-2.") and re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert len(set(names)) == len(names)
    assert {*topics.consumed, topics.dlq, topics.status, topics.commands, topics.reports, topics.schemas} <= {
        *names
    }


def test_topics_are_found_by_name() -> None:
    topics = Topics("p.")
    assert [topics.priority_of[topics.jobs[priority]] for priority in PRIORITIES] == list(PRIORITIES)
    assert [topics.tier_of[topics.retry[tier]] for tier in TIERS] == list(TIERS)


def test_jobs_never_expire_by_time() -> None:
    topics = Topics()
    specs = {spec.name: spec for spec in topics.specs(6)}
    for name in topics.consumed:
        assert specs[name].config["retention.ms"] == "-1"
        assert specs[name].config["retention.bytes"] == "-1"
        assert specs[name].config["cleanup.policy"] == "delete"
        assert specs[name].partitions == 6
    for name in topics.retry.values():
        assert specs[name].config["message.timestamp.type"] == "LogAppendTime"
    for name in topics.jobs.values():
        assert "message.timestamp.type" not in specs[name].config


def test_other_topics_have_the_policies_of_the_contract() -> None:
    topics = Topics()
    specs = {spec.name: spec for spec in topics.specs(6)}
    assert specs[topics.dlq].config["retention.ms"] == str(30 * 86_400_000)
    assert specs[topics.status].config == {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}
    assert specs[topics.status].partitions == specs[topics.dlq].partitions == 6
    assert specs[topics.commands].config["cleanup.policy"] == "compact"
    assert specs[topics.reports].config["message.timestamp.type"] == "LogAppendTime"
    assert specs[topics.reports].config["retention.ms"] == "86400000"
    assert specs[topics.schemas].partitions == 1
    assert specs[topics.schemas].config["cleanup.policy"] == "compact"


def test_priorities_are_read_in_any_case_and_most_urgent_first() -> None:
    assert [priority.value for priority in PRIORITIES] == ["critical", "high", "normal", "low"]
    assert JobPriority("HIGH") is JobPriority("high") is JobPriority.HIGH
    with pytest.raises(ValueError, match="urgent"):
        JobPriority("urgent")
