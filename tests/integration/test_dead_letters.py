from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from schemas import JobPriority, JobStatus
from schemas.codec import peek_id
from schemas.errors import IllegalTransition
from schemas.headers import Delivery, Origin, dead_letter, parse
from schemas.records import STATUS
from streams import redrive as redrive_module
from streams.clients import producer_config
from streams.dead_letters import DeadLetter, DeadLetterFilter, list_dead_letters
from streams.producer import JobProducer
from streams.provision import provision
from streams.reader import JobNotFound, JobReader
from streams.redrive import redrive, retry_job
from streams.redrive_session import RedriveTakenOver
from streams.schemas_topic import publish_schemas
from streams.settings import Settings
from tests.support.deployments import Sample, Writer, read_all, settings_for

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

ALL = DeadLetterFilter()
DIED = Delivery(job_type="test_sample", attempt=4, delivery=6, error_type="ValueError", error_message="no")


def job_id(number: int) -> str:
    return f"01a20bd1-1946-743e-922d-{number:012x}"


@pytest.fixture
def settings(kafka: Any, topic_prefix: str, tmp_path: Path) -> Settings:
    settings = settings_for(kafka, topic_prefix, tmp_path)
    provision(settings)
    publish_schemas(settings, [STATUS], timeout_s=20)
    return settings


@pytest.fixture
def writer(settings: Settings) -> Writer:
    return Writer(settings)


def jobs(settings: Settings) -> list[Message]:
    """Job records, as committed."""
    return read_all(settings, *settings.topics.jobs.values())


def lives(settings: Settings) -> Counter[str]:
    """Job id to the number of its committed job records."""
    return Counter(peek_id(message.value()).decode() for message in jobs(settings))


def bury(writer: Writer, count: int) -> None:
    for number in range(count):
        writer.dead(job_id(number), Sample(path=f"b/{number}"), DIED, partition=number % 3)
    writer.flush()


def test_a_dead_letter_tells_its_story(settings: Settings, writer: Writer) -> None:
    writer.dead(job_id(1), Sample(path="b/x", order_key="b/x"), DIED, priority=JobPriority.LOW, partition=2)
    writer.flush()
    (letter,) = list_dead_letters(settings)
    assert letter.to_json() == {
        "id": job_id(1),
        "type": "test_sample",
        "error_type": "ValueError",
        "error_message": "no",
        "attempt": 4,
        "failed_at": "2023-11-14T22:14:20.000Z",
    }
    assert letter.priority is JobPriority.LOW
    full = letter.to_full_json()
    assert full["fields"] == {"path": "b/x", "size": 0, "tags": None, "order_key": "b/x"}
    assert full["key"] == "b/x"
    assert ["kafka_dlt-original-offset", "7"] in full["headers"]


def test_a_redrive_starts_a_new_life_at_the_same_place(settings: Settings, writer: Writer) -> None:
    writer.dead(job_id(1), Sample(order_key="b/x"), DIED, priority=JobPriority.HIGH, partition=2)
    writer.flush()
    (letter,) = list_dead_letters(settings)
    report = redrive(settings, ALL)
    assert report.redriven == (job_id(1),)
    (message,) = read_all(settings, settings.topics.jobs[JobPriority.HIGH])
    assert (message.partition(), message.key(), message.value()) == (2, b"b/x", letter.value)
    delivery = parse(message.headers())  # type: ignore[arg-type]
    assert (delivery.attempt, delivery.delivery, delivery.redrives, delivery.error_type) == (1, 7, 1, "")
    assert delivery.origin == letter.delivery.origin
    reader = JobReader(settings)
    info = reader.get_job(job_id(1))
    reader.close()
    assert (info.status, info.attempt, info.redrives) == (JobStatus.PENDING, 1, 1)
    assert [attempt.attempt for attempt in info.attempts] == [4]
    assert list_dead_letters(settings) == []
    (over,) = list_dead_letters(settings, DeadLetterFilter(include_redriven=True))
    assert over.redriven


def test_a_job_whose_last_status_cannot_be_read_here_is_not_redriven(
    settings: Settings, writer: Writer
) -> None:
    """It may tell of the life that somebody has given it who has the schema registry."""
    bury(writer, 2)
    producer = Producer(producer_config(settings))
    producer.produce(settings.topics.status, b"\0\0\0\0\7not ours", job_id(1).encode())
    assert producer.flush(20) == 0
    report = redrive(settings, ALL)
    assert report.redriven == (job_id(0),)
    assert [letter.id for letter in report.refused] == [job_id(1)]
    assert report.refused[0].unclear
    assert lives(settings) == Counter([job_id(0)])


def test_nothing_is_redriven_twice_and_a_second_death_can_be(settings: Settings, writer: Writer) -> None:
    bury(writer, 5)
    assert len(redrive(settings, ALL).redriven) == 5
    assert redrive(settings, ALL).redriven == ()
    again = replace(DIED, delivery=9, redrives=1)
    writer.dead(job_id(3), Sample(path="b/3"), again)
    writer.flush()
    assert redrive(settings, ALL).redriven == (job_id(3),)
    assert lives(settings) == {job_id(n): 2 if n == 3 else 1 for n in range(5)}


def test_ids_types_and_errors_choose(settings: Settings, writer: Writer) -> None:
    bury(writer, 3)
    writer.dead(job_id(7), Sample(), replace(DIED, error_type="KeyError"))
    writer.flush()
    assert redrive(settings, DeadLetterFilter(error_type="KeyError")).redriven == (job_id(7),)
    report = redrive(settings, DeadLetterFilter(ids=frozenset({job_id(1), job_id(7), "nobody"})))
    assert report.redriven == (job_id(1),)
    assert report.not_waiting == (job_id(7), "nobody")
    assert redrive(settings, DeadLetterFilter(job_type="other")).redriven == ()


def test_a_dry_run_changes_nothing(settings: Settings, writer: Writer) -> None:
    bury(writer, 4)
    report = redrive(settings, ALL, dry_run=True)
    assert (len(report.redriven), report.dry_run) == (4, True)
    assert jobs(settings) == []
    assert len(list_dead_letters(settings)) == 4


def test_bytes_that_hold_no_job_are_refused_by_name(settings: Settings, writer: Writer) -> None:
    bad = Delivery(error_type="BadFrame", error_message="begins with 17")
    writer.dead_bytes(b"\x17garbage", bad, key=b"?", partition=1)
    writer.dead(job_id(1), Sample(), DIED)
    writer.flush()
    report = redrive(settings, ALL)
    assert report.redriven == (job_id(1),)
    (refused,) = report.refused
    assert refused.id == f"{settings.topics.dlq}/1/0"
    assert refused.value == b"\x17garbage"
    assert [letter.id for letter in list_dead_letters(settings)] == [refused.id]


def test_a_letter_that_has_grown_too_large_for_its_job_topic_holds_up_no_other(
    settings: Settings, writer: Writer
) -> None:
    """Kafka counts compressed bytes, so somebody else may have written one; each redrive gave up over it, five times."""
    large = Producer({**producer_config(settings), "message.max.bytes": 5_000_000})
    value = writer.job_bytes(job_id(9), Sample(path="x" * 1_048_300))
    dead = dead_letter(DIED, at=Origin("t", 0, 7), timestamp_ms=1, failed_at_ms=1, stacktrace="")
    large.produce(settings.topics.dlq, value, b"k" * 300, 0, headers=dead)  # type: ignore[arg-type]
    assert large.flush(20) == 0
    bury(writer, 3)
    report = redrive(settings, ALL)
    assert sorted(report.redriven) == [job_id(0), job_id(1), job_id(2)]
    assert [letter.id for letter in report.refused] == [job_id(9)]
    assert lives(settings) == Counter(report.redriven)
    assert [letter.id for letter in redrive(settings, ALL, dry_run=True).refused] == [job_id(9)]


def test_an_interrupted_redrive_leaves_no_job_twice_and_none_lost(
    settings: Settings, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(writer, 20)
    monkeypatch.setattr(redrive_module, "_BATCH", 4)

    def pull_the_plug(done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        redrive(settings, ALL, after_batch=pull_the_plug)
    assert sum(lives(settings).values()) == 8
    assert len(redrive(settings, ALL).redriven) == 12
    assert lives(settings) == {job_id(n): 1 for n in range(20)}


def test_of_two_operators_the_later_goes_on_and_no_job_forks(
    settings: Settings, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(writer, 12)
    monkeypatch.setattr(redrive_module, "_BATCH", 3)
    reports: list[tuple[str, ...]] = []

    def meanwhile(done: int) -> None:
        if done == 3:
            other = threading.Thread(target=lambda: reports.append(redrive(settings, ALL).redriven))
            other.start()
            other.join(60)

    with pytest.raises(RedriveTakenOver) as stopped:
        redrive(settings, ALL, after_batch=meanwhile)
    assert stopped.value.done == 3
    assert len(reports[0]) == 9
    assert lives(settings) == {job_id(n): 1 for n in range(12)}


def test_operators_that_start_together_fork_nothing(settings: Settings, writer: Writer) -> None:
    bury(writer, 30)
    outcomes: list[Any] = []
    gate = threading.Barrier(3)

    def run() -> None:
        gate.wait()
        try:
            outcomes.append(len(redrive(settings, ALL).redriven))
        except RedriveTakenOver as error:
            outcomes.append(error.done)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(outcomes) == 3
    redrive(settings, ALL)
    assert lives(settings) == {job_id(n): 1 for n in range(30)}


def test_a_rate_makes_small_transactions_with_pauses_between(
    settings: Settings, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(writer, 10)
    paused: list[int] = []
    batches: list[int] = []

    def pause_s(done: int, _elapsed_s: float, _rate: float) -> float:
        paused.append(done)
        return 0.0

    monkeypatch.setattr(redrive_module, "pause_s", pause_s)
    assert len(redrive(settings, ALL, rate=8, after_batch=batches.append).redriven) == 10
    assert batches == [2, 4, 6, 8, 10]
    assert paused == [2, 2, 2, 2], "nothing is waited for after the last"
    assert redrive(settings, ALL, rate=float("inf")).redriven == ()


def test_a_finished_job_lives_again_whatever_its_end_was(settings: Settings, writer: Writer) -> None:
    with JobProducer(settings) as producer:
        done = producer.schedule_job(Sample(path="b/again", order_key="b/again"))
        open_ = producer.schedule_job(Sample())
    writer.status(done, JobStatus.SUCCEEDED, Delivery(job_type="test_sample"), key="b/again")
    writer.flush()
    retry_job(settings, done)
    reader = JobReader(settings)
    info = reader.get_job(done)
    reader.close()
    assert (info.status, info.redrives, info.delivery, info.key) == (JobStatus.PENDING, 1, 1, "b/again")
    first, second = (m for m in jobs(settings) if m.key() == b"b/again")
    assert (first.partition(), first.value()) == (second.partition(), second.value())
    for running in (done, open_):
        with pytest.raises(IllegalTransition, match="cannot go from pending to pending"):
            retry_job(settings, running)
    with pytest.raises(JobNotFound):
        retry_job(settings, job_id(99))


def test_a_letter_is_frozen(settings: Settings, writer: Writer) -> None:
    bury(writer, 1)
    (letter,) = list_dead_letters(settings)
    assert isinstance(letter, DeadLetter)
    with pytest.raises(AttributeError):
        letter.redriven = True  # type: ignore[misc]
