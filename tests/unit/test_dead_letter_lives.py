from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from schemas import JobPriority, JobStatus, Topics
from schemas.codec import Codec
from schemas.headers import FAILED_AT, MAX_HISTORY, Attempt, Delivery, build, parse
from schemas.records import StatusChange
from streams import redrive_session
from streams.clients import KafkaRefused
from streams.dead_letters import DeadLetter, DeadLetterFilter, dead_letter_of, header_text, mark_redriven
from streams.jobinfo import JobEvent, JobState, StatusSeen
from streams.new_life import life_after, life_again
from streams.redrive import pause_s
from streams.settings import load_settings
from tests.support.letters import DIED, T0, letter
from tests.support.statuses import JOB_ID

pytestmark = pytest.mark.job_processing


def status(state: JobStatus, delivery: int, redrives: int = 0, **facts: Any) -> StatusChange:
    return StatusChange(
        job_id=JOB_ID,
        key="b/k",
        at=T0 + 60_000,
        created_at=T0 - 5,
        started_at=T0 + 59_000,
        state=state,
        type="t",
        priority=JobPriority.HIGH,
        attempt=4,
        delivery=delivery,
        redrives=redrives,
        worker="w.1",
        **facts,
    )


def marks(letters: list[DeadLetter], *changes: StatusChange) -> list[bool]:
    return [x.redriven for x in mark_redriven(letters, {change.job_id: change for change in changes})]


def test_a_letter_waits_while_its_death_is_the_newest_thing_known() -> None:
    assert marks([letter()], status(JobStatus.FAILED, 9)) == [False]
    assert marks([letter()]) == [False]


def test_a_letter_is_over_once_a_later_life_is_known() -> None:
    assert marks([letter()], status(JobStatus.PENDING, 10, 1)) == [True]
    assert marks([letter()], status(JobStatus.RUNNING, 10)) == [True]


def test_of_two_deaths_the_later_life_waits() -> None:
    second = letter(replace(DIED, redrives=1, delivery=14), offset=1)
    assert marks([letter(), second]) == [True, False]
    assert marks([letter(), second], status(JobStatus.FAILED, 14, 1)) == [True, False]


def test_one_death_written_twice_is_redriven_once() -> None:
    assert marks([letter(), letter(offset=1)], status(JobStatus.FAILED, 9)) == [False, True]


def test_what_holds_no_job_is_never_redriven() -> None:
    strange = letter(Delivery(), job_id="p.jobs.dlq/2/0", priority=None)
    assert marks([strange]) == [False]
    assert not strange.can_run


def test_a_new_life_is_the_same_bytes_at_the_same_partition() -> None:
    life = life_after(letter(), status(JobStatus.FAILED, 9), T0 + 90_000, Topics("p."))
    assert (life.topic, life.partition, life.key, life.value) == ("p.jobs.high", 2, b"b/k", b"bytes")
    delivery = parse(life.headers)
    assert (delivery.attempt, delivery.delivery, delivery.redrives) == (1, 10, 1)
    assert (delivery.error_type, delivery.error_message, delivery.not_before_ms) == ("", "", 0)
    assert (delivery.origin, delivery.first_seen_ms, delivery.traceparent) == (DIED.origin, T0, "00-a-b-01")
    # The run that ended the last life is remembered with those before it.
    assert delivery.history == (
        *DIED.history,
        Attempt(4, "w.1", T0 + 59_000, T0 + 60_000, "ValueError", "no"),
    )
    assert life.status.state is JobStatus.PENDING
    assert (life.status.attempt, life.status.delivery, life.status.redrives) == (1, 10, 1)
    assert (life.status.key, life.status.created_at, life.status.attempts) == (
        "b/k",
        T0 - 5,
        delivery.history,
    )


def test_history_stays_bounded_over_many_lives() -> None:
    long = replace(DIED, history=DIED.history * MAX_HISTORY)
    life = life_after(letter(long), None, T0, Topics("p."))
    assert len(parse(life.headers).history) == MAX_HISTORY
    assert parse(life.headers).history[-1].attempt == 4
    assert life.status.attempts == parse(life.headers).history


def test_a_status_of_another_delivery_says_nothing_of_this_death() -> None:
    life = life_after(letter(), status(JobStatus.FAILED, 8), T0, Topics("p."))
    assert parse(life.headers).history[-1] == Attempt(4, "", T0 + 60_000, T0 + 60_000, "ValueError", "no")


def test_a_finished_job_can_live_again_beyond_all_that_is_known_of_it() -> None:
    event = JobEvent(
        JOB_ID,
        Delivery(job_type="t"),
        JobPriority.LOW,
        False,
        None,
        b"v",
        T0,
        ("p.jobs.low", 1, 5),
    )
    state = JobState(
        event, StatusSeen(status(JobStatus.SUCCEEDED, 3, attempts=DIED.history), ("p.jobs.status", 0, 1))
    )
    life = life_again(JOB_ID, state, T0 + 9, Topics("p."))
    assert (life.topic, life.partition, life.key) == ("p.jobs.low", 1, JOB_ID.encode())
    delivery = parse(life.headers)
    assert (delivery.delivery, delivery.redrives, delivery.attempt) == (4, 1, 1)
    assert delivery.history == DIED.history, "its status has told of them"


def test_a_new_life_has_the_key_of_the_last_one_though_it_is_no_text() -> None:
    """With another one it would run beside the jobs whose order it belongs to."""
    event = JobEvent(
        JOB_ID, Delivery(job_type="t"), JobPriority.LOW, False, b"\xff/k", b"v", T0, ("p.jobs.low", 1, 5)
    )
    assert life_again(JOB_ID, JobState(event, None), T0 + 9, Topics("p.")).key == b"\xff/k"
    assert event.key_text == "\ufffd/k"


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**62), 2**62])
@pytest.mark.parametrize("failed_at", [b"", b"9" * 15, b"9" * 40])
def test_a_letter_with_a_time_that_no_calendar_has_is_shown_all_the_same(
    timestamp_ms: int, failed_at: bytes
) -> None:
    """Anybody can write one, and it must not hide the others."""
    record: Any = SimpleNamespace(
        topic=lambda: "p.jobs.dlq",
        partition=lambda: 0,
        offset=lambda: 7,
        key=lambda: None,
        value=lambda: b"?",
        headers=lambda: [(FAILED_AT, failed_at)],
        timestamp=lambda: (1, timestamp_ms),
    )
    assert dead_letter_of(record).to_full_json()["failed_at"]


def test_a_dead_letter_filter_matches_all_its_fields() -> None:
    one = letter()
    assert DeadLetterFilter().matches(one)
    assert DeadLetterFilter(ids=frozenset({JOB_ID}), job_type="t", error_type="ValueError").matches(one)
    assert DeadLetterFilter(ids=frozenset({"p.jobs.dlq/2/0"})).matches(one)
    for other in (
        DeadLetterFilter(ids=frozenset({"x"})),
        DeadLetterFilter(job_type="u"),
        DeadLetterFilter(error_type="KeyError"),
    ):
        assert not other.matches(one)
    assert not DeadLetterFilter().matches(replace(one, redriven=True))
    assert DeadLetterFilter(include_redriven=True).matches(replace(one, redriven=True))


def test_springs_numbers_are_shown_as_numbers() -> None:
    assert header_text("kafka_dlt-original-offset", (77).to_bytes(8, "big")) == "77"
    assert header_text("rfw-error-message", "nö".encode()) == "nö"


@pytest.mark.parametrize("size", [0, 7, 9, 3_000])
def test_what_is_none_of_springs_numbers_hides_no_letter(size: int) -> None:
    """Of 1,800 bytes and more Python prints no number: `dlq show` ended with that error."""
    assert header_text("kafka_dlt-original-offset", bytes(size)) == "\0" * size


def test_the_pace_makes_up_for_what_was_too_fast() -> None:
    assert pause_s(done=8, elapsed_s=0.25, rate=8) == 0.75
    assert pause_s(done=8, elapsed_s=1.0, rate=8) == 0
    assert pause_s(done=8, elapsed_s=9.0, rate=8) == 0


@given(st.integers(0, 5), st.integers(0, 50), st.integers(1, 9))
def test_a_redriven_letter_is_over(redrives: int, number: int, attempt: int) -> None:
    """Whatever died, once its new life is written no redrive takes it again."""
    dead = letter(replace(DIED, redrives=redrives, delivery=number, attempt=attempt))
    life = life_after(dead, None, T0, Topics("p."))
    assert marks([dead], life.status) == [True]
    assert parse(build(parse(life.headers))) == parse(life.headers)


def test_a_refusal_is_not_called_an_absent_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, _: Any) -> None:
            pass

        def init_transactions(self, _: float) -> None:
            raise KafkaException(KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))

    monkeypatch.setattr(redrive_session, "Producer", Refusing)
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(KafkaRefused, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
        redrive_session.Session(settings, Codec(), redrive_session.Progress())
