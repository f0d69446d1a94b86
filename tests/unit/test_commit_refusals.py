"""The commit thread and what Kafka refuses: one outcome that cannot be written stops nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas.errors import DeliveryFailed, GroupNotInitialised
from schemas.lifecycle import JobStatus
from schemas.records import decode_status
from tests.support.commit_bench import (
    CODEC,
    Bench,
    Transaction,
    kafka_error,
    status,
    told,
)
from tests.support.messages import TOPICS, message
from workers.outcome import Outcome

pytestmark = pytest.mark.worker_coordination


def refuse_jobs(*poison: bytes) -> Callable[[Transaction], Exception | None]:
    """The broker refuses every transaction that holds a status or a record of these jobs."""

    def refuse(open_: Transaction) -> Exception | None:
        for sent in open_.records:
            if (
                sent.key in poison
                and sent.topic == TOPICS.status
                and sent.value is not None
                and decode_status(CODEC, sent.value).state is JobStatus.SUCCEEDED
            ):
                return kafka_error(KafkaError.MSG_SIZE_TOO_LARGE, abort=True)
        return None

    return refuse


def test_a_refusal_that_does_not_repeat_itself_fails_nobody() -> None:
    bench = Bench()
    bench.kafka.fault("offsets", kafka_error(KafkaError.UNKNOWN, abort=True))
    bench.success(0)
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.SUCCEEDED]


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_ENOUGH_REPLICAS,
        # "1 message(s) failed delivery", and why, where the leader of a retry partition does not answer
        KafkaError._INCONSISTENT,
        KafkaError._MSG_TIMED_OUT,
        # after a transaction with a record that was refused: librdkafka has counted it, the broker has not
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    ],
)
def test_a_broker_that_is_away_for_longer_than_two_tries_fails_nobody(code: int) -> None:
    """It says nothing of what a transaction contains: no outcome may be called unwritable because of it."""
    bench = Bench()
    tries = 0

    def refuse(_: Transaction) -> Exception | None:
        nonlocal tries
        tries += 1
        return kafka_error(code, abort=True) if tries <= 5 else None

    bench.kafka.refuse = refuse
    bench.success(0)
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.SUCCEEDED]


def test_one_that_kafka_refuses_fails_alone() -> None:
    bench = Bench(records=40)
    outcomes = [bench.success(offset) for offset in range(40)]
    poison = outcomes[17].message
    assert poison is not None
    bench.kafka.refuse = refuse_jobs(poison.job_id)
    bench.tick()
    states = {change.job_id.encode(): change for change in bench.kafka.statuses}
    assert len(states) == 40
    failed = states.pop(poison.job_id)
    assert (failed.state, failed.error_type) == (JobStatus.FAILED, "OutcomeNotWritable")
    assert {change.state for change in states.values()} == {JobStatus.SUCCEEDED}
    assert bench.stored.offset == 40
    dead = [sent for t in bench.kafka.committed for sent in t.records if sent.topic == TOPICS.dlq]
    assert len(dead) == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"progress_done": 2**70},
        {"progress_done": "half"},
        {"metrics": {"n": 10**400}},
        {"metrics": {5: 1.0}},
        {"metrics": {"n": "many"}},
        {"output": object()},
    ],
    ids=["huge", "text", "huge float", "no name", "no number", "no text"],
)
def test_what_a_handler_told_and_nobody_can_write_fails_its_own_job(facts: dict[str, Any]) -> None:
    """Numbers and texts of a handler's progress and metrics are its own: they must not end the worker."""
    bench = Bench()
    one = message(bench.part, 0)
    bench.emit(told(one, **facts))
    bench.success(1)
    bench.tick()
    found = {change.job_id.encode(): change.state for change in bench.kafka.statuses}
    assert found.pop(one.job_id) is JobStatus.FAILED
    assert list(found.values()) == [JobStatus.SUCCEEDED]
    assert bench.stored.offset == 2


def test_news_that_cannot_be_written_is_dropped() -> None:
    bench = Bench()
    one = message(bench.part, 0)
    bench.emit(Outcome(None, status(one, JobStatus.RUNNING, progress_done=2**70), owner=one))
    bench.success(1)
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.SUCCEEDED]


def test_a_dead_letter_that_is_too_large_itself_says_where_the_bytes_stand() -> None:
    bench = Bench()
    outcome = bench.success(0)
    assert outcome.message is not None
    refuses_success = refuse_jobs(outcome.message.job_id)

    def refuse(open_: Transaction) -> Exception | None:
        if any(sent.topic == TOPICS.dlq and sent.value for sent in open_.records):
            return kafka_error(KafkaError.MSG_SIZE_TOO_LARGE, abort=True)
        return refuses_success(open_)

    bench.kafka.refuse = refuse
    bench.tick()
    (change,) = bench.kafka.statuses
    assert (change.state, change.error_type) == (JobStatus.FAILED, "TooLargeToKeep")
    assert outcome.message.where in (change.error_message or "")
    (letter,) = (sent for t in bench.kafka.committed for sent in t.records if sent.topic == TOPICS.dlq)
    assert letter.value is None
    assert bench.stored.offset == 1


def test_a_dead_letter_that_is_refused_as_well_ends_the_worker() -> None:
    """Going on would lose the job: somebody has to look."""
    bench = Bench()
    bench.kafka.refuse = lambda open_: (
        kafka_error(KafkaError.MSG_SIZE_TOO_LARGE, abort=True) if open_.records else None
    )
    bench.success(0)
    with pytest.raises(DeliveryFailed):
        bench.tick()
    assert bench.kafka.committed == []


def test_offsets_that_kafka_refuses_end_the_worker() -> None:
    bench = Bench()
    bench.kafka.refuse = lambda _: kafka_error(KafkaError.OFFSET_METADATA_TOO_LARGE, abort=True)
    bench.part.dirty = True
    with pytest.raises(GroupNotInitialised):
        bench.tick()


def test_a_map_that_does_not_fit_is_never_sent() -> None:
    bench = Bench()
    bench.part.done = set(range(1, 60_000, 2))
    bench.part.dirty = True
    with pytest.raises(GroupNotInitialised, match="characters"):
        bench.tick()
    assert bench.kafka.committed == []
