"""Where partitions begin and end: asked again until every leader has answered, and never answered by guess."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from schemas.errors import KafkaUnreachable
from streams import scan
from streams.clients import KafkaRefused
from streams.scan import EARLIEST, offsets, since
from streams.settings import load_settings

pytestmark = pytest.mark.job_processing

SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
PLACES = [("a", 0), ("b", 1)]
SILENT = KafkaException(KafkaError(KafkaError._TIMED_OUT))
MOVED = KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))


@dataclass
class Found:
    offset: int


class FakeAdmin:
    """Answers one after another, the last one again and again: an offset or an error for each place."""

    def __init__(self, *answers: dict[tuple[str, int], int | Exception]) -> None:
        self.answers = list(answers)
        self.asked: list[set[tuple[str, int]]] = []
        self.patience_s: list[float] = []
        #: How often it had been asked when it was told of the cluster anew.
        self.informed_after: list[int] = []

    def list_topics(self, **_: Any) -> SimpleNamespace:
        self.informed_after.append(len(self.asked))
        return SimpleNamespace(topics={})

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], *, request_timeout: float, **_: Any
    ) -> dict[TopicPartition, Future[Any]]:
        self.patience_s.append(request_timeout)
        self.asked.append({(place.topic, place.partition) for place in wanted})
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        futures: dict[TopicPartition, Future[Any]] = {}
        for place in wanted:
            future: Future[Any] = Future()
            futures[place] = future
            answer = now[place.topic, place.partition]
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(Found(answer))
        return futures


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MOVING_PAUSE_S", 0.0)


def ask(admin: Any, *, timeout_s: float = 60.0) -> dict[tuple[str, int], int]:
    return offsets(SETTINGS, admin, PLACES, EARLIEST, timeout_s=timeout_s)


@pytest.mark.parametrize("none_yet", [OFFSET_INVALID, MOVED, SILENT])
def test_who_has_not_answered_is_asked_again(none_yet: int | Exception) -> None:
    """librdkafka names no error for a broker that died under the question; taken as an end, it would hide a partition."""
    admin = FakeAdmin({PLACES[0]: 3, PLACES[1]: none_yet}, {PLACES[1]: 0})
    assert ask(admin) == {PLACES[0]: 3, PLACES[1]: 0}
    assert admin.asked == [set(PLACES), {PLACES[1]}]
    assert admin.informed_after == [1], "of itself it would ask the same leader again"
    assert admin.patience_s[0] < admin.patience_s[1] < 60.0, "a dead one is not waited for, a slow one is"


@pytest.mark.parametrize("none", [OFFSET_INVALID, MOVED, SILENT])
def test_who_never_answers_is_said(none: int | Exception) -> None:
    with pytest.raises(KafkaUnreachable):
        ask(FakeAdmin({PLACES[0]: 3, PLACES[1]: none}), timeout_s=-1.0)


def test_a_refusal_is_raised_at_once() -> None:
    refused = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(KafkaRefused):
        ask(FakeAdmin({PLACES[0]: 3, PLACES[1]: refused}))


def test_no_record_since_a_time_is_an_answer() -> None:
    admin: Any = FakeAdmin({PLACES[0]: -1, PLACES[1]: 7})
    assert offsets(SETTINGS, admin, PLACES, since(5), timeout_s=60.0) == {PLACES[0]: -1, PLACES[1]: 7}
