from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Job, JobPriority, Topics, ids
from schemas.codec import Codec, peek_id, peek_priority
from schemas.errors import InvalidJob, PayloadTooLarge, UnknownJobType
from schemas.jobtype import job_type
from schemas.partitions import partition_of_id
from schemas.topics import TIERS
from streams.outgoing import JobOptions, Rules, compose, plan, settle
from tests.support.deployments import Sample

pytestmark = pytest.mark.job_processing

NOW = 1_700_000_000_000
RULES = Rules(Codec(), Topics("p."), "host:1")
DAY = timedelta(days=1)


def record_of(value: bytes) -> dict[str, Any]:
    return RULES.codec.decode(job_type(Sample).wire, value)


def test_fresh_job_is_one_record_with_one_header() -> None:
    outgoing = plan(Sample(path="b/x"), JobOptions(JobPriority.HIGH), NOW, RULES)
    assert outgoing.topic == "p.jobs.high"
    assert outgoing.headers == [("rfw-type", b"test_sample")]
    assert outgoing.key == outgoing.job_id.encode() == peek_id(outgoing.value)
    assert not outgoing.ordered
    assert uuid.UUID(outgoing.job_id).version == 7
    assert peek_priority(outgoing.value) is JobPriority.HIGH
    record = record_of(outgoing.value)
    assert record["created_at"] == NOW
    assert record["source"] == "host:1"
    assert record["path"] == "b/x"
    assert record["key"] is None


def test_ordering_key_is_the_record_key_and_the_client_places_it() -> None:
    outgoing = plan(Sample(order_key="bucket/ö"), JobOptions(), NOW, RULES)
    assert outgoing.key == "bucket/ö".encode()
    assert outgoing.ordered
    given = plan(Sample(order_key="bucket/ö"), JobOptions(key="other"), NOW, RULES)
    assert given.key == b"other"
    assert record_of(given.value)["key"] == "other"


def test_jobs_with_a_key_take_no_turn_from_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each in turn: those without would miss every other partition."""
    monkeypatch.setattr(ids, "_turn", 7)
    placed = Counter[int]()
    for _ in range(60):
        plan(Sample(order_key="bucket/ö"), JobOptions(), NOW, RULES)
        placed[partition_of_id(plan(Sample(), JobOptions(), NOW, RULES).job_id, 12)] += 1
    assert placed == dict.fromkeys(range(12), 5)


def test_jobs_that_share_a_turn_go_to_one_partition() -> None:
    settled = settle(JobOptions(), NOW, RULES)
    made = {compose(Sample(), settled, NOW, RULES, turn=31).job_id for _ in range(10)}
    assert len(made) == 10
    assert {partition_of_id(job_id, 12) for job_id in made} == {7}


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_delay_goes_to_the_largest_tier_that_is_not_longer(tier: Any) -> None:
    exactly = plan(Sample(), JobOptions(delay=timedelta(milliseconds=tier.delay_ms)), NOW, RULES)
    assert exactly.topic == f"p.jobs.retry.{tier.name}"
    assert dict(exactly.headers)["rfw-not-before"] == str(NOW + tier.delay_ms).encode()
    shorter = plan(Sample(), JobOptions(delay=timedelta(milliseconds=tier.delay_ms - 1)), NOW, RULES)
    assert shorter.topic != exactly.topic


def test_less_than_a_second_waits_at_its_job_topic() -> None:
    outgoing = plan(Sample(), JobOptions(JobPriority.LOW, timedelta(microseconds=1)), NOW, RULES)
    assert outgoing.topic == "p.jobs.low"
    # Rounded up: never early.
    assert dict(outgoing.headers)["rfw-not-before"] == str(NOW + 1).encode()


def test_no_delay_has_no_not_before() -> None:
    assert plan(Sample(), JobOptions(delay=timedelta(0)), NOW, RULES).headers == [
        ("rfw-type", b"test_sample")
    ]


@given(st.integers(0, 400 * 86_400_000_000))
def test_a_delay_is_rounded_up_to_whole_milliseconds(microseconds: int) -> None:
    delay = timedelta(microseconds=microseconds)
    outgoing = plan(Sample(), JobOptions(delay=delay), NOW, RULES)
    not_before = int(dict(outgoing.headers).get("rfw-not-before", str(NOW).encode()))
    assert not_before >= NOW + microseconds / 1000
    assert not_before < NOW + microseconds / 1000 + 1
    tier = {name: tier for tier, name in RULES.topics.retry.items()}.get(outgoing.topic)
    assert (tier.delay_ms if tier else 0) <= not_before - NOW


def test_a_delay_counts_by_the_brokers_clock_a_time_by_the_calendar() -> None:
    later = timedelta(seconds=40)
    delayed = dict(plan(Sample(), JobOptions(delay=later), NOW, RULES).headers)
    at = dict(
        plan(Sample(), JobOptions(at=datetime.fromtimestamp(NOW / 1000, UTC) + later), NOW, RULES).headers
    )
    child = dict(plan(Sample(), JobOptions(delay=later), NOW, RULES, by_broker=False).headers)
    assert delayed["rfw-delay"] == b"40000"
    assert delayed["rfw-not-before"] == at["rfw-not-before"] == child["rfw-not-before"]
    assert "rfw-delay" not in at
    assert "rfw-delay" not in child


def test_at_is_a_time_and_one_that_has_passed_is_now() -> None:
    later = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(seconds=30)
    assert plan(Sample(), JobOptions(at=later), NOW, RULES).topic == "p.jobs.retry.30s"
    past = plan(Sample(), JobOptions(at=later), NOW + 60_000, RULES)
    assert past.topic == "p.jobs.normal"
    # By our clock. By the broker's it may still be to come, and the worker waits for that.
    assert dict(past.headers)["rfw-not-before"] == str(NOW + 30_000).encode()
    long_ago = plan(Sample(), JobOptions(at=datetime(1960, 1, 1, tzinfo=UTC)), NOW, RULES)
    assert "rfw-not-before" not in dict(long_ago.headers)


def test_all_options_reach_the_record() -> None:
    job_id, parent = str(uuid.uuid4()), str(uuid.uuid4())
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    options = JobOptions(
        job_id=job_id,
        parent_id=parent,
        max_retries=0,
        timeout=timedelta(seconds=1.5),
        traceparent=trace,
    )
    outgoing = plan(Sample(tags=["a"]), options, NOW, RULES)
    record = record_of(outgoing.value)
    assert outgoing.job_id == job_id
    assert (record["id"], record["parent_id"]) == (job_id, parent)
    assert (record["max_retries"], record["timeout_ms"]) == (0, 1500)
    assert ("traceparent", trace.encode()) in outgoing.headers


@pytest.mark.parametrize(
    "options",
    [
        JobOptions(delay=timedelta(microseconds=-1)),
        JobOptions(delay=400 * DAY + timedelta(milliseconds=1)),
        JobOptions(at=datetime.fromtimestamp(NOW / 1000, UTC) + 401 * DAY),
        JobOptions(delay=timedelta.max),
        JobOptions(delay=timedelta.min),
        JobOptions(at=datetime.max.replace(tzinfo=UTC)),
        JobOptions(traceparent=f"00-{'a' * 32}-{'b' * 16}-01-\ud800"),
        JobOptions(at=datetime(2030, 1, 1)),  # noqa: DTZ001 - that is what is refused
        JobOptions(delay=DAY, at=datetime.fromtimestamp(NOW / 1000, UTC)),
        JobOptions(delay=5),  # type: ignore[arg-type]
        JobOptions(priority="high"),  # type: ignore[arg-type]
        JobOptions(key=""),
        JobOptions(key="k" * 1089),
        JobOptions(key="\ud800"),
        JobOptions(key=b"k"),  # type: ignore[arg-type]
        JobOptions(job_id="7"),
        JobOptions(job_id="CAFADC22-2C46-4F4B-9A52-3F5E3E0F0A01"),
        JobOptions(parent_id="x"),
        JobOptions(max_retries=-1),
        JobOptions(max_retries=True),
        JobOptions(timeout=timedelta(0)),
        JobOptions(timeout=10),  # type: ignore[arg-type]
        JobOptions(traceparent="00-1"),
    ],
    ids=repr,
)
def test_wrong_option_is_refused(options: JobOptions) -> None:
    with pytest.raises(InvalidJob):
        plan(Sample(), options, NOW, RULES)


def test_exactly_400_days_are_taken() -> None:
    assert plan(Sample(), JobOptions(delay=400 * DAY), NOW, RULES).topic == "p.jobs.retry.1d"


def test_a_key_of_1024_bytes_is_taken() -> None:
    assert len(plan(Sample(), JobOptions(key="ö" * 512), NOW, RULES).key) == 1024


@pytest.mark.parametrize(
    "job",
    [
        Sample(path=3),  # type: ignore[arg-type]
        Sample(size="3"),  # type: ignore[arg-type]
        Sample(size=2**63),
        Sample(tags="abc"),  # type: ignore[arg-type]
        "job",
        None,
    ],
    ids=repr,
)
def test_wrong_field_or_no_job_at_all_is_refused(job: Any) -> None:
    with pytest.raises(InvalidJob):
        plan(job, JobOptions(), NOW, RULES)


def test_payload_over_the_limit_is_refused_and_names_both_sizes() -> None:
    with pytest.raises(PayloadTooLarge, match="262,144") as refused:
        plan(Sample(path="x" * 262_144), JobOptions(), NOW, RULES)
    assert refused.value.size > refused.value.limit
    over = refused.value.size - refused.value.limit
    plan(Sample(path="x" * (262_144 - over)), JobOptions(), NOW, RULES)
    with pytest.raises(PayloadTooLarge):
        plan(Sample(path="x" * (262_144 - over + 1)), JobOptions(), NOW, RULES)


def test_class_without_a_name_of_its_own_is_unknown() -> None:
    @dataclass
    class Nameless(Job):
        x: int = 0

    @dataclass
    class Derived(Sample):
        y: int = 0

    for job in (Nameless(), Derived()):
        with pytest.raises(UnknownJobType, match="import the module that declares it"):
            plan(job, JobOptions(), NOW, RULES)


def test_a_users_ordering_key_that_raises_is_named() -> None:
    @dataclass
    class BadKey(Job):
        job_type = "test_bad_key"

        def ordering_key(self) -> str | None:
            raise ZeroDivisionError

    with pytest.raises(InvalidJob, match=r"test_bad_key\.ordering_key\(\) raised ZeroDivisionError"):
        plan(BadKey(), JobOptions(), NOW, RULES)
