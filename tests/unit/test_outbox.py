from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas.errors import DeliveryFailed
from streams.outbox import Failure, Outbox, Ticket, delivery_failed
from streams.settings import load_settings

pytestmark = pytest.mark.job_processing


class Report:
    """What librdkafka says of a record."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return b"not a job"


def report(ticket: Ticket, error: int | None = None, key: bytes = b"k") -> None:
    message: Any = Report(key)
    ticket(None if error is None else KafkaError(error), message)


def test_a_ticket_is_done_when_the_last_report_comes() -> None:
    done: list[int] = []
    ticket = Ticket(lambda: done.append(1))
    report(ticket)
    ticket.seal(2)
    assert done == []
    report(ticket)
    assert done == [1]
    assert ticket.finished
    assert ticket.failure() is None


def test_a_ticket_whose_reports_came_before_it_was_sealed_is_done_by_sealing() -> None:
    done: list[int] = []
    ticket = Ticket(lambda: done.append(1))
    report(ticket)
    report(ticket)
    ticket.seal(2)
    assert done


def test_a_failure_says_whether_the_record_may_have_been_written() -> None:
    ticket = Ticket(lambda: None)
    report(ticket, KafkaError.MSG_SIZE_TOO_LARGE, b"big")
    report(ticket, KafkaError._MSG_TIMED_OUT, b"late")
    ticket.seal(2)
    words = str(ticket.failure())
    assert "2 job(s)" in words
    assert "certainly not written: b'big'" in words
    assert "perhaps written" in words
    assert words.index("b'late'") > words.index("perhaps written")


def test_an_unknown_reason_counts_as_perhaps_written() -> None:
    ticket = Ticket(lambda: None)
    report(ticket, KafkaError.REQUEST_TIMED_OUT)
    assert ticket.failures[0].perhaps_written


def test_a_million_failures_stay_readable() -> None:
    failed = delivery_failed([Failure(str(n), "no", perhaps_written=True) for n in range(1000)], 1_000_000)
    assert failed is not None
    assert "1,000,000 job(s)" in str(failed)
    assert "and 980 more" in str(failed)
    assert len(str(failed)) < 1000


def test_a_producer_from_before_a_fork_refuses_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are not there: a job would never be sent, and its caller wait for ever."""
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), unreachable_after_s=0.1)
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    with pytest.raises(DeliveryFailed, match="before a fork"):
        outbox.prepare()
    with pytest.raises(DeliveryFailed, match="before a fork"), outbox.bulk():
        pass


def test_a_record_that_meets_the_closing_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1"))
    producer = outbox.producer()

    class Late:
        """Hands a record over after the outbox has closed, as a thread may that was held up in between."""

        def produce(self, *args: Any, **kwargs: Any) -> None:
            outbox.close(0)
            producer.produce(*args, **kwargs)

        def __len__(self) -> int:
            return len(producer)

        def __getattr__(self, name: str) -> Any:
            return getattr(producer, name)

    finished = threading.Event()
    ticket = Ticket(finished.set)
    monkeypatch.setattr(outbox, "_producer", Late())
    assert outbox.produce("t", b"k", b"v", 0, ticket)
    ticket.seal(1)
    assert finished.wait(20), "nobody tells that it was not sent"
    assert not ticket.failures[0].perhaps_written
    with pytest.raises(DeliveryFailed, match="closed"):
        outbox.produce("t", b"k", b"v", 0, ticket)
