from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError

from streams.outbox import Failure, Ticket, delivery_failed

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
