"""Nothing may be under way when a producer ends, and it ends in a thread of its own."""

from __future__ import annotations

import threading
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from streams.producer_end import let_go
from tests.support.waiting import eventually


class FakeProducer:
    """Has one record that was never sent, and one whose answer is awaited."""

    def __init__(self, events: list[str], answer: threading.Event) -> None:
        self._events = events
        self._answer = answer
        self._queued = self._under_way = 1
        self._fatal = [KafkaException(KafkaError(KafkaError._FENCED, "made up", fatal=True))]

    def __len__(self) -> int:
        return self._queued + self._under_way

    def __del__(self) -> None:
        self._events.append(f"ended with {len(self)} in {threading.current_thread().name}")

    def purge(self, *, in_flight: bool) -> None:
        self._events.append(f"purged, in flight {in_flight}")
        self._queued = 0

    def poll(self, timeout_s: float) -> int:
        if self._fatal:
            self._events.append("fatal")
            raise self._fatal.pop()
        if self._answer.wait(timeout_s):
            self._under_way = 0
        return 0


def test_a_producer_ends_when_the_answers_have_come() -> None:
    events: list[str] = []
    answer = threading.Event()
    producers: list[Any] = [FakeProducer(events, answer)]
    let_go(producers)
    eventually(lambda: "fatal" in events, 10, "it is polled")
    assert events == ["purged, in flight False", "fatal"]
    answer.set()
    eventually(lambda: not producers, 10, "it is given up")
    eventually(lambda: len(events) == 3, 10, "it has ended")
    assert events[2] == "ended with 0 in end of a producer"


def test_whoever_lets_go_does_not_wait() -> None:
    answer = threading.Event()
    let_go([FakeProducer([], answer), FakeProducer([], answer)])  # type: ignore[list-item]
    answer.set()
