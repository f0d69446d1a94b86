"""A transaction that hangs is noticed at the second look, named once, and again if nothing could be done about it."""

from __future__ import annotations

import asyncio

import pytest

from schemas.errors import KafkaUnreachable
from schemas.topics import Partition
from workers.committing.hanging import Hanging, HangingWatch

pytestmark = pytest.mark.worker_coordination

A, B = ("jobs.status", 0), ("jobs.retry.1s", 2)


def test_what_stands_still_between_two_looks_is_named_once() -> None:
    hanging = Hanging()
    assert hanging.look({A: (5, 9), B: (3, 3)}) == set(), "it may be on its way"
    assert hanging.look({A: (5, 12), B: (3, 3)}) == {A}
    assert hanging.look({A: (5, 15), B: (3, 3)}) == set(), "it was named"


def test_what_moves_on_does_not_hang() -> None:
    hanging = Hanging()
    for stable in range(5):
        assert hanging.look({A: (stable, stable + 9)}) == set()


def test_the_next_one_in_the_same_partition_is_another() -> None:
    hanging = Hanging()
    for stable in (5, 5, 8):
        hanging.look({A: (stable, 9)})
    assert hanging.look({A: (8, 9)}) == {A}


def test_one_that_could_not_be_ended_is_named_again() -> None:
    hanging = Hanging()
    hanging.look({A: (5, 9), B: (1, 2)})
    assert hanging.look({A: (5, 9), B: (1, 2)}) == {A, B}
    hanging.again([A])
    assert hanging.look({A: (5, 9), B: (1, 2)}) == {A}


def test_a_partition_that_was_given_away_is_no_longer_ours_to_look_after() -> None:
    hanging = Hanging()
    hanging.look({A: (5, 9)})
    hanging.look({})
    assert hanging.look({A: (5, 9)}) == set()


def test_one_that_hangs_long_after_it_was_ended_is_named_again() -> None:
    """Kafka may forget the end of one a second time."""
    hanging = Hanging()
    named = [bool(hanging.look({A: (5, 9)})) for _ in range(22)]
    assert named == ([False, True] + [False] * 8 + [True] + [False] * 8 + [True])[:22] + [False] * 2


async def test_the_watch_ends_what_hangs_and_goes_on_if_kafka_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.committing.hanging._NAME_AGAIN", 1_000_000)
    answers: list[bool | Exception] = [KafkaUnreachable("127.0.0.1:1", 5.0), False, True]
    asked: list[set[Partition]] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(places: set[Partition]) -> bool:
        asked.append(places)
        answer = answers.pop(0)
        if not answers:
            loop.call_soon_threadsafe(done.set)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = HangingWatch(lambda: {A: (5, 9), B: (2, 2)}, end, interval_s=0.001)
    watch.start()
    await asyncio.wait_for(done.wait(), 30)
    await watch.stop()
    assert asked == [{A}] * 3, "until it is done, and then no more"
