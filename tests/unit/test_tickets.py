"""What a call learns of its records from Kafka's reports."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from streams.tickets import Ticket, Unacknowledged
from tests.support.reports import Report, report

pytestmark = pytest.mark.job_processing


def test_a_record_of_which_only_a_successor_was_acknowledged_is_not_accepted() -> None:
    """A storm (seed 14) lost one: its leader died, and the next one, which knew nothing of the producer, took what came after it."""
    ticket = Ticket(lambda: None)
    ticket(None, Report(b"k", offset=None))  # type: ignore[arg-type]
    ticket(None, Report(b"k", offset=7))  # type: ignore[arg-type]
    ticket.seal(2)
    assert ticket.finished
    failure = ticket.unacknowledged.error()
    assert failure is not None
    assert "1 job(s)" in str(failure)
    assert "never acknowledged itself" in str(failure)
    assert "perhaps written" in str(failure)


def test_a_ticket_is_done_when_the_last_report_comes() -> None:
    done: list[int] = []
    ticket = Ticket(lambda: done.append(1))
    report(ticket)
    ticket.seal(2)
    assert done == []
    report(ticket)
    assert done == [1]
    assert ticket.finished
    assert ticket.unacknowledged.error() is None


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
    words = str(ticket.unacknowledged.error())
    assert "2 job(s)" in words
    assert "certainly not written: b'big'" in words
    assert "perhaps written" in words
    assert words.index("b'late'") > words.index("perhaps written")


@pytest.mark.parametrize(
    "reason",
    [
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._TRANSPORT,
        KafkaError._FATAL,
    ],
)
def test_what_kafka_may_have_got_counts_as_perhaps_written(reason: int) -> None:
    """Who schedules it again under another id would double it."""
    ticket = Ticket(lambda: None)
    report(ticket, reason)
    assert ticket.unacknowledged.perhaps_written == ["b'k'"]


def test_a_million_failures_stay_readable() -> None:
    ids = [str(n) for n in range(1_000_000)]
    failed = Unacknowledged("no", perhaps_written=ids).error()
    assert failed is not None
    assert "1,000,000 job(s)" in str(failed)
    assert "and 999,980 more" in str(failed)
    assert len(str(failed)) < 1000
    assert failed.perhaps_written == tuple(ids), "who has to schedule them again needs all of them"
