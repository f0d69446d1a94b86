"""When a worker must not go on (counts that change, a name used twice, a commit that vanished), and what it says."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import TopicsMismatch
from schemas.offsetmap import OffsetMap
from schemas.records import WorkerReport
from streams.clients import RepeatFilter
from streams.partition_counts import equal_count
from tests.support.waiting import eventually
from workers.consuming.partition_watch import PartitionWatch
from workers.liveness.rival import WINDOW_S, FenceCount, RivalWatch, goes_on
from workers.offsets import PartitionState

pytestmark = pytest.mark.worker_coordination


@dataclass
class Topic:
    partitions: range


def topics(**counts: int) -> Mapping[str, Topic]:
    return {name: Topic(range(count)) for name, count in counts.items()}


def test_equal_counts_are_one_number() -> None:
    assert equal_count(topics(a=3, b=3, other=7), ["a", "b"]) == 3


def test_the_topic_that_differs_is_named() -> None:
    with pytest.raises(TopicsMismatch, match=r"b has 4, the others 3"):
        equal_count(topics(a=3, b=4, c=3), ["a", "b", "c"])


def test_a_missing_topic_is_named_with_the_remedy() -> None:
    with pytest.raises(TopicsMismatch, match=r"do not exist: b; create them"):
        equal_count(topics(a=3), ["a", "b"])


async def test_a_changed_count_is_told_once_and_no_answer_is_none() -> None:
    """All topics growing alike leaves the counts equal: only the number at the start tells."""

    def answers() -> Iterator[Mapping[str, Topic]]:
        yield topics(a=3, b=3)
        yield topics(a=3, b=3)
        yield topics(a=6, b=6)

    asked, given = 0, answers()

    def ask() -> Mapping[str, Topic]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return next(given)

    told: asyncio.Queue[TopicsMismatch] = asyncio.Queue()
    watch = PartitionWatch(ask, ["a", "b"], told.put_nowait, interval_s=0.001)
    watch.start(await watch.count())
    error = await asyncio.wait_for(told.get(), 30)
    assert "have 6 partitions now, and had 3" in str(error)
    await watch.stop()
    assert (asked, told.qsize()) == (4, 0)


def test_being_fenced_twice_counts_only_within_a_minute() -> None:
    fences = FenceCount()
    assert not fences.again(0.0)
    assert not fences.again(WINDOW_S + 1)
    assert fences.again(WINDOW_S + 2)


def test_the_second_time_it_is_fenced_it_looks_for_the_other_one_and_leaves_to_it() -> None:
    """Beside the commit thread: offsets are answered meanwhile."""
    other = WorkerReport("w", "other", 1, 1, 5_000, "host", "running", (), (), 0, 0, (), {})
    looked_in: list[str] = []
    left_to: queue.Queue[WorkerReport] = queue.Queue()

    def find() -> WorkerReport | None:
        looked_in.append(threading.current_thread().name)
        return other

    watch = RivalWatch(find, left_to.put)
    watch.fenced()
    assert looked_in == []
    watch.fenced()
    assert left_to.get(timeout=30) is other
    assert looked_in == ["rival"]


@pytest.mark.parametrize("answer", [None, KafkaException(KafkaError(KafkaError._TRANSPORT))])
def test_without_another_one_that_stays_it_goes_on(answer: Exception | None) -> None:
    over = threading.Event()

    def find() -> WorkerReport | None:
        over.set()
        if answer is not None:
            raise answer
        return None

    watch = RivalWatch(find, lambda _: pytest.fail("there is nobody"))
    watch.fenced()
    watch.fenced()
    assert over.wait(30)
    eventually(lambda: not watch._looks.locked(), 30, "it has looked")


@pytest.mark.parametrize(
    ("state", "started_ms", "incarnation", "leaves"),
    [
        ("running", 1_000, "other", True),
        ("starting", 1_000, "other", True),
        ("running", 3_000, "other", False),
        ("running", 2_000, "a", True),
        ("running", 2_000, "z", False),
        ("running", 1_000, "me", False),
        ("draining", 1_000, "other", False),
        ("stopped", 1_000, "other", False),
        ("left", 1_000, "other", False),
    ],
)
def test_of_two_with_one_id_the_one_that_stays_and_began_first_goes_on(
    *, state: str, started_ms: int, incarnation: str, leaves: bool
) -> None:
    """If each left to the other nobody would be left; nor does anybody leave to one that is about to go."""
    other = WorkerReport("w", incarnation, 1, started_ms, 5_000, "host", state, (), (), 0, 0, (), {})
    assert goes_on(other, 2_000, "me") is leaves


def test_memory_and_kafka_disagree_when_an_acknowledged_commit_is_gone() -> None:
    """Going on from memory would commit past jobs whose outcomes nobody can read."""
    part = PartitionState("t", 0, OffsetMap(10), incarnation="i", transactional_id="x")
    part.note_delivered(10)
    part.note_delivered(11)
    part.note_delivered(12)
    part.committed(part.plan([10, 12]))
    assert part.agrees_with(OffsetMap(11, frozenset({12})))
    assert part.agrees_with(OffsetMap(13))
    assert not part.agrees_with(OffsetMap(10, frozenset({12})))
    assert not part.agrees_with(OffsetMap(11))


def test_a_line_that_differs_only_in_numbers_is_said_once() -> None:
    news = RepeatFilter()
    assert news.is_news("127.0.0.1:25 refused after 3 ms")
    assert not news.is_news("127.0.0.1:25 refused after 4 ms")
    assert not news.is_news("127.0.0.1:25 refused after 4 ms, 12 identical error(s) suppressed")
    assert news.is_news("127.0.0.1:25 reset")
