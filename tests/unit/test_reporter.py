"""The thread that says each second that a worker lives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.support.waiting import eventually
from workers.liveness import reporter as reporter_module
from workers.liveness.clock import BrokerClock
from workers.liveness.lease import Lease
from workers.liveness.reporter import Reporter

pytestmark = pytest.mark.worker_coordination

AN_HOUR_S = 3600.0


class Acknowledged:
    """A record that a broker has stamped."""

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000


class FakeProducer:
    """Acknowledges in ``poll``, as soon as Kafka is there."""

    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.unanswered: list[Callable[[Any, Any], None]] = []
        self.is_away = False
        self.error: KafkaError | None = None
        self.fatal: KafkaException | None = None
        self.flushed = threading.Event()
        self.rounds = 0

    def __len__(self) -> int:
        return len(self.unanswered)

    def produce(
        self, _topic: str, value: bytes, _key: str, *, on_delivery: Callable[[Any, Any], None]
    ) -> None:
        self.sent.put(value)
        self.unanswered.append(on_delivery)

    def poll(self, timeout_s: float) -> None:
        if self.fatal is not None:
            raise self.fatal
        self.rounds += 1
        if self.is_away:
            threading.Event().wait(min(timeout_s, 0.01))
            return
        while self.unanswered:
            self.unanswered.pop()(self.error, Acknowledged())

    def flush(self, _timeout_s: float) -> None:
        self.flushed.set()

    def next(self) -> bytes:
        return self.sent.get(timeout=10)


class HeardLease(Lease):
    """On a clock that a test sets; remembers when what was answered had been asked."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.heard: list[float] = []
        super().__init__(5.0, lambda: self.time_s)

    def answered(self, asked_s: float) -> None:
        super().answered(asked_s)
        self.heard.append(asked_s)


class Bench:
    def __init__(self) -> None:
        self.producer = FakeProducer()
        self.lease = HeardLease()
        self.failures: list[BaseException] = []
        producer: Any = self.producer
        self.reporter = Reporter(
            producer=producer,
            topic="reports",
            key="w.0",
            make=str.encode,
            clock=BrokerClock(),
            lease=self.lease,
            on_failure=self.failures.append,
        )

    @property
    def answers(self) -> int:
        return len(self.lease.heard)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Nothing is due but what a test asks for."""
    monkeypatch.setattr(reporter_module, "INTERVAL_S", AN_HOUR_S)
    bench = Bench()
    yield bench
    bench.reporter.stop()


def test_one_report_each_second() -> None:
    assert reporter_module.INTERVAL_S == 1.0


def test_it_goes_on_reporting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "INTERVAL_S", 0.01)
    bench.reporter.start()
    assert [bench.producer.next() for _ in range(5)] == [b"running"] * 5
    eventually(lambda: bench.answers >= 4, 10, "answers are told of")


def test_what_is_new_is_told_at_once_and_the_end_is_told_last(bench: Bench) -> None:
    bench.reporter.start()
    assert bench.producer.next() == b"running"
    bench.reporter.now()
    assert bench.producer.next() == b"running"
    bench.reporter.stop()
    assert bench.producer.next() == b"stopped"
    assert bench.producer.flushed.is_set()
    assert bench.producer.sent.empty()


def test_what_is_new_is_told_also_while_an_answer_is_awaited(bench: Bench) -> None:
    bench.producer.is_away = True
    bench.reporter.start()
    bench.producer.next()
    bench.reporter.now()
    assert bench.producer.next() == b"running"


def test_while_three_wait_for_an_answer_only_what_is_new_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five requests on the way one is left for that."""
    monkeypatch.setattr(reporter_module, "INTERVAL_S", 0.01)
    bench.producer.is_away = True
    bench.reporter.start()
    eventually(lambda: len(bench.producer) == 3, 10, "three reports wait")
    bench.producer.rounds = 0
    eventually(lambda: bench.producer.rounds >= 10, 10, "ten more were due")
    assert len(bench.producer) == 3
    bench.reporter.now()
    eventually(lambda: len(bench.producer) == 4, 10, "what is new is sent")
    bench.producer.is_away = False
    eventually(lambda: bench.answers >= 6, 10, "it goes on as before")


def test_the_first_one_waits_for_its_answer(bench: Bench) -> None:
    assert bench.reporter.first(10)
    assert (bench.producer.next(), bench.answers) == (b"starting", 1)
    bench.producer.is_away = True
    assert not bench.reporter.first(0.05)
    assert bench.answers == 1


def test_an_answer_that_waited_for_a_frozen_process_says_nothing_about_now(bench: Bench) -> None:
    """Kafka may be gone by the time that it is found."""
    bench.producer.is_away = True
    assert not bench.reporter.first(0.05)
    bench.lease.time_s = 4.0
    bench.producer.is_away = False
    bench.producer.poll(0)
    assert bench.lease.heard == [0.0]
    assert bench.lease.silent_s == 4.0


def test_a_report_that_was_not_delivered_is_no_answer(bench: Bench) -> None:
    """The lease lives by answers."""
    bench.producer.error = KafkaError(KafkaError._MSG_TIMED_OUT)
    assert not bench.reporter.first(0.05)
    assert bench.answers == 0


def test_a_producer_that_sends_nothing_any_more_ends_the_worker(bench: Bench) -> None:
    """Others would take a worker without reports for dead, and judge its jobs."""
    bench.producer.fatal = KafkaException(KafkaError(KafkaError._UNSUPPORTED_FEATURE, "made up", fatal=True))
    bench.reporter.start()
    eventually(lambda: bench.failures, 10, "its supervisor is told")
    assert bench.failures == [bench.producer.fatal]
