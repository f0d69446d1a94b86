"""How a transaction that Kafka has forgotten is ended: every partition is touched, and nothing of it is kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.support.messages import TOPICS
from workers.forgotten import ForgottenTransactions

pytestmark = pytest.mark.worker_coordination


class FakeProducer:
    def __init__(self, **faults: Exception) -> None:
        self.faults = faults
        self.touched: Counter[tuple[str, int]] = Counter()
        self.steps: list[str] = []

    def _step(self, name: str) -> None:
        if not self.steps or self.steps[-1] != name:
            self.steps.append(name)
        if name in self.faults:
            raise self.faults[name]

    def begin_transaction(self) -> None:
        self._step("begin")

    def produce(self, topic: str, value: bytes, key: bytes, partition: int) -> None:
        self._step("produce")
        self.touched[topic, partition] += 1

    def flush(self, timeout_s: float) -> None:
        self._step("flush")

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], metadata: Any, timeout_s: float
    ) -> None:
        self._step(f"offsets with {metadata} metadata")

    def abort_transaction(self, timeout_s: float) -> None:
        self._step("abort")


def end(producer: Any) -> None:
    ForgottenTransactions(TOPICS, lambda: 2).end(producer, "old")


def test_every_partition_that_a_worker_writes_to_is_touched_and_nothing_is_committed() -> None:
    producer = FakeProducer()
    end(producer)
    assert producer.steps == ["begin", "produce", "flush", "offsets with old metadata", "abort"]
    assert producer.touched == Counter(
        (topic, number) for topic in (*TOPICS.consumed, TOPICS.dlq, TOPICS.status) for number in range(2)
    )


@pytest.mark.parametrize("step", ["produce", "flush", "offsets with old metadata"])
def test_what_cannot_be_touched_now_is_left_and_the_rest_aborted(step: str) -> None:
    producer = FakeProducer(**{step: KafkaException(KafkaError(KafkaError._TIMED_OUT))})
    end(producer)
    assert producer.steps[-1] == "abort"


def test_an_abort_that_fails_is_said() -> None:
    with pytest.raises(KafkaException):
        end(FakeProducer(abort=KafkaException(KafkaError(KafkaError._FATAL))))
