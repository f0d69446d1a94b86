"""The heartbeat of a campaign says how Kafka is, not how its own producer is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from streams.settings import load_settings
from tests.guarantees import pulse

pytestmark = pytest.mark.distributed

Report = Callable[[KafkaError | None, object], None]


class Producers:
    """The first one finds one partition no more; all others hear Kafka at once."""

    def __init__(self) -> None:
        self.made = 0
        self.enough = threading.Event()

    def __call__(self, _config: dict[str, Any]) -> SimpleNamespace:
        self.made += 1
        is_deaf = self.made == 1
        waiting: list[tuple[Report, KafkaError | None]] = []

        def produce(_topic: str, _value: bytes, partition: int, on_delivery: Report) -> None:
            error = KafkaError(KafkaError._MSG_TIMED_OUT) if is_deaf and partition == 3 else None
            waiting.append((on_delivery, error))
            if self.made == 2 and partition == 5:
                self.enough.set()

        def report(*_: float) -> None:
            while waiting:
                on_delivery, error = waiting.pop(0)
                on_delivery(error, None)

        return SimpleNamespace(produce=produce, poll=report, flush=report, purge=lambda: None)


def test_a_producer_that_has_lost_sight_of_a_partition_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a storm (seed 20) one of librdkafka's stayed deaf for 25 minutes, and takeovers counted as those of a Kafka in trouble."""
    producers = Producers()
    created = SimpleNamespace(result=lambda _: None)
    admin = SimpleNamespace(create_topics=lambda _: {pulse.TOPIC: created})
    monkeypatch.setattr(pulse, "AdminClient", lambda _: admin)
    monkeypatch.setattr(pulse, "Producer", producers)
    monkeypatch.setattr(pulse, "_EVERY_S", 0.001)
    with pulse.pulse(load_settings(kafka_bootstrap_servers="127.0.0.1:1")):
        assert producers.enough.wait(60), "it goes on with another one"
    assert producers.made == 2
