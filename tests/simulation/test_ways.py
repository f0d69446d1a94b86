"""The way of single records through a worker: what the storms do not have."""

from __future__ import annotations

import pytest

from schemas.headers import Delivery, build, parse
from schemas.topics import TIERS, JobPriority
from tests.simulation.world import World

pytestmark = [pytest.mark.job_processing]


@pytest.fixture
def world() -> World:
    return World(1)


def letter_of(world: World, topic: str, value: bytes | None, headers: list[tuple[str, bytes]]) -> Delivery:
    """The one dead letter that this record leads to; everything else is done."""
    world.kafka.append(topic, 0, b"k", value, headers)
    assert world.calm() == []
    (letter,) = world.kafka.records(world.topics.dlq)
    assert (letter.value, letter.key) == (value, b"k")
    return parse(letter.headers)


def test_an_unreadable_record_of_a_job_topic_is_a_dead_letter(world: World) -> None:
    letter = letter_of(world, world.topics.jobs[JobPriority.LOW], b"garbage", [])
    assert letter.error_type == "BadFrame"


def test_an_unreadable_record_of_a_retry_topic_is_a_dead_letter_and_goes_no_further(world: World) -> None:
    letter = letter_of(
        world, world.topics.retry[TIERS[1]], b"garbage", build(Delivery(job_type="test", attempt=2))
    )
    assert letter.error_type == "BadFrame"
    assert not any(list(world.kafka.records(topic)) for topic in world.topics.jobs.values())


def test_headers_that_cannot_be_read_do_not_delay_their_own_burial(world: World) -> None:
    letter = letter_of(
        world,
        world.topics.retry[TIERS[0]],
        b"x",
        [("rfw-not-before", b"253402300799999"), ("rfw-attempt", b"-1")],
    )
    assert (letter.error_type, letter.not_before_ms) == ("BadHeaders", 0)


def test_a_name_of_half_a_megabyte_stops_nobody(world: World) -> None:
    letter = letter_of(
        world, world.topics.jobs[JobPriority.HIGH], b"x", [("rfw-origin-topic", b"t" * 500_000)]
    )
    assert letter.error_type == "BadHeaders"
    assert letter.origin is not None
    assert letter.origin.topic == world.topics.jobs[JobPriority.HIGH]
