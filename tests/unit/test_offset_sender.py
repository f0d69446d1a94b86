"""Offsets are sent in a thread that can be left behind: librdkafka does not always come back."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.offset_sender import OffsetSender, send_offsets

pytestmark = pytest.mark.worker_coordination

OFFSETS = [TopicPartition("jobs.normal", 0, 7)]


class Prompt:
    """A producer that answers at once."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []
        self.threads: list[threading.Thread] = []

    def send_offsets_to_transaction(self, *call: Any) -> None:
        self.calls.append(call)
        self.threads.append(threading.current_thread())
        if self.error is not None:
            raise self.error


class Stuck:
    """A producer whose call returns when the test says so."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.thread: threading.Thread | None = None

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self.thread = threading.current_thread()
        assert self.go.wait(30)


def test_the_call_is_made_with_what_was_given() -> None:
    producer = Prompt()
    OffsetSender().send(producer, OFFSETS, "metadata", 5.0)  # type: ignore[arg-type]
    assert producer.calls == [(OFFSETS, "metadata", 5.0)]


def test_one_thread_serves_call_after_call() -> None:
    sender, producer = OffsetSender(), Prompt()
    for _ in range(3):
        sender.send(producer, OFFSETS, None, 5.0)  # type: ignore[arg-type]
    assert len(set(producer.threads)) == 1
    assert producer.threads[0] is not threading.current_thread()


def test_what_kafka_says_is_raised_where_it_is_waited_for() -> None:
    said = KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
    sender = OffsetSender()
    with pytest.raises(KafkaException) as caught:
        sender.send(Prompt(said), OFFSETS, None, 5.0)  # type: ignore[arg-type]
    assert caught.value is said
    sender.send(Prompt(), OFFSETS, None, 5.0)  # type: ignore[arg-type]


def test_a_call_that_does_not_return_is_left_behind_by_name() -> None:
    sender, stuck, next_one = OffsetSender(grace_s=0.05), Stuck(), Prompt()
    with pytest.raises(KafkaException, match="did not return") as caught:
        sender.send(stuck, OFFSETS, None, 0.05)  # type: ignore[arg-type]
    assert caught.value.args[0].code() == KafkaError._TIMED_OUT

    sender.send(next_one, OFFSETS, None, 5.0)  # type: ignore[arg-type]
    assert next_one.threads[0] is not stuck.thread


def test_a_late_end_is_nobody_elses_answer() -> None:
    """The stuck call returns while the next one is under way: that one's own error must not get lost."""
    sender, stuck = OffsetSender(grace_s=0.05), Stuck()
    with pytest.raises(KafkaException):
        sender.send(stuck, OFFSETS, None, 0.05)  # type: ignore[arg-type]
    stuck.go.set()
    assert stuck.thread is not None
    stuck.thread.join(10)
    assert not stuck.thread.is_alive()

    with pytest.raises(KafkaException, match="fenced"):
        sender.send(Prompt(KafkaException(KafkaError(KafkaError._FENCED, "fenced"))), OFFSETS, None, 5.0)  # type: ignore[arg-type]


def test_a_producer_that_was_replaced_is_not_kept_alive() -> None:
    sender, producer = OffsetSender(), Prompt()
    sender.send(producer, OFFSETS, None, 5.0)  # type: ignore[arg-type]
    gone = threading.Event()
    weakref.finalize(producer, gone.set)
    del producer
    gc.collect()
    assert gone.wait(10)


def test_a_call_on_its_own_leaves_no_thread() -> None:
    producer = Prompt()
    send_offsets(producer, OFFSETS, None, 5.0)  # type: ignore[arg-type]
    producer.threads[0].join(10)
    assert not producer.threads[0].is_alive()
