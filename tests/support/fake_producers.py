"""Producers that keep what they are given, and a broker that says what became of it: what an ``Outbox`` sends through."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from streams.tickets import Ticket
from tests.support.messages import TOPICS
from tests.support.reports import report


class FakeProducer:
    """Keeps what it is given until the test says what became of it."""

    def __init__(self, broker: Broker, config: dict[str, Any]) -> None:
        self.broker = broker
        self.on_error = config["error_cb"]
        self.in_flight: list[tuple[bytes, Ticket]] = []
        self.reports: queue.SimpleQueue[tuple[int | None, bytes, Ticket]] = queue.SimpleQueue()
        self.unreported = 0
        #: What ``poll`` raises next.
        self.fatal: KafkaException | None = None

    def __len__(self) -> int:
        return self.unreported

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, *, on_delivery: Ticket, **_: Any
    ) -> None:
        if self.broker.refusals:
            raise self.broker.refusals.pop(0)
        self.broker.records.append((topic, key, partition))
        self.unreported += 1
        self.in_flight.append((key, on_delivery))
        if self.broker.acknowledges:
            self.report(self.broker.errors.get(len(self.broker.records)))
        if topic == TOPICS.schemas:
            self.report(self.broker.schema_error)

    def report(self, error: int | None = None) -> None:
        """The fate of everything that is on its way; ``poll`` tells it."""
        while self.in_flight:
            self.reports.put((error, *self.in_flight.pop()))

    def break_down(self) -> None:
        """It sends nothing any more. ``poll`` says so, once."""
        self.fatal = KafkaException(KafkaError(KafkaError._UNSUPPORTED_FEATURE, "made up", fatal=True))

    def poll(self, timeout_s: float) -> None:
        fatal, self.fatal = self.fatal, None
        if fatal is not None:
            raise fatal
        try:
            error, key, ticket = (
                self.reports.get(timeout=timeout_s) if timeout_s else self.reports.get_nowait()
            )
        except queue.Empty:
            meanwhile, self.broker.after_idle_look = self.broker.after_idle_look, None
            if meanwhile is not None:
                meanwhile()
            return
        self.unreported -= 1
        report(ticket, error, key)

    def purge(self, *, in_flight: bool = True) -> None:
        self.report(KafkaError._PURGE_QUEUE)

    def list_topics(self, timeout: float) -> Any:
        self.broker.counted += 1
        if self.broker.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        partitions = dict.fromkeys(range(3))
        return SimpleNamespace(
            topics={
                name: SimpleNamespace(partitions=partitions) for name in (*TOPICS.consumed, TOPICS.schemas)
            }
        )


class Broker:
    """What producers of this test have sent, and how it answers."""

    def __init__(self) -> None:
        self.producers: list[FakeProducer] = []
        self.records: list[tuple[str, bytes, int]] = []
        self.refusals: list[Exception] = []
        self.schema_error: int | None = None
        #: Each record, at once, but for those of which it says something else: by their number, from 1.
        self.acknowledges = False
        self.errors: dict[int, int] = {}
        self.away = False
        self.counted = 0
        #: Called once, when a producer has been asked for news and had none.
        self.after_idle_look: Callable[[], None] | None = None

    def producer(self, config: dict[str, Any]) -> FakeProducer:
        self.producers.append(FakeProducer(self, config))
        return self.producers[-1]


class Waited:
    """A ticket, and a way to wait until all its reports are there."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self.ticket = Ticket(self._done.set)

    def seal(self, sent: int) -> None:
        self.ticket.seal(sent)

    def finished(self) -> bool:
        return self._done.wait(30)
