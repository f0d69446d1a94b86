"""A redrive on a Kafka that answers as it likes: no job forks, none is left behind, and nobody is told otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DeliveryFailed, IllegalTransition, KafkaUnreachable, ReadIncomplete
from schemas.headers import Delivery, parse
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange, StatusWriter
from schemas.topics import PRIORITIES, JobPriority
from streams import redrive as redrive_module
from streams import redrive_session
from streams.clients import KafkaRefused
from streams.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters, mark_redriven
from streams.jobinfo import JobEvent, JobState, StatusSeen
from streams.reader import JobNotFound
from streams.redrive import RedriveReport, batches, redrive, retry_job
from streams.redrive_session import RedriveTakenOver
from streams.settings import load_settings
from streams.visible import Written
from tests.support.commit_bench import CODEC, FakeKafka, FakeProducer, Transaction, kafka_error
from tests.support.letters import letter
from tests.support.messages import TOPICS
from tests.support.statuses import JOB_ID, status

pytestmark = pytest.mark.job_processing

SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
TIMED_OUT = kafka_error(KafkaError._TIMED_OUT, retriable=True)
STATUSES = StatusWriter(CODEC)
_BYTES = memoryview(bytes(3_000_000))


def job_id(number: int) -> str:
    return f"01a20bd1-1946-743e-922d-{number:012x}"


def letter_of(number: int, **facts: Any) -> DeadLetter:
    return letter(job_id=job_id(number), offset=number, **facts)


class Cemetery:
    """Dead letters, and what is known of their jobs: what a redrive reads and writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        self.kafka = FakeKafka()
        self.letters = [letter_of(number) for number in range(count)]
        self.event = JobEvent(
            JOB_ID, Delivery("test"), JobPriority.LOW, False, b"b/k", b"bytes", 5, (TOPICS.jobs[PRIORITIES[3]], 1, 5)
        )  # fmt: skip
        self.before: list[StatusChange] = []
        #: By workers that have a new life already.
        self.told_since: list[StatusChange] = []
        self.complete = True
        monkeypatch.setattr(redrive_session, "Producer", lambda config: self.kafka.producer(config["logger"]))
        monkeypatch.setattr(redrive_module, "publish_schemas", lambda *_, **__: None)
        monkeypatch.setattr(redrive_module, "read_dead_letters", self._read)
        monkeypatch.setattr(redrive_module, "JobReader", lambda *_: self)
        monkeypatch.setattr(
            redrive_session,
            "visible_records",
            self._visible,
        )

    def _visible(
        self, _: Any, records: set[Written], _since_ms: int, *, timeout_s: float, each: Callable[[Any], None]
    ) -> set[Written]:
        for change in self.told_since:
            each(SimpleNamespace(topic=lambda: TOPICS.status, value=lambda c=change: STATUSES.encode(c)))
        return self.kafka.read_visible(records, 0)

    @property
    def known(self) -> dict[str, StatusChange]:
        return {change.job_id: change for change in [*self.before, *self.kafka.statuses]}

    def _read(self, *_: Any, **__: Any) -> DeadLetters:
        self.kafka.steps.append("read")
        return DeadLetters(tuple(mark_redriven(self.letters, self.known)), self.known, self.complete)

    # a reader, for retry_job

    def read(self, job_id: str, *, timeout_s: float) -> Cemetery:
        self.kafka.steps.append("read")
        return self

    def state_of(self, job_id: str) -> JobState:
        change = self.known.get(job_id)
        if job_id != JOB_ID:
            return JobState()
        return JobState(self.event, StatusSeen(change, (TOPICS.status, 0, 1)) if change else None)

    def close(self) -> None:
        self.kafka.steps.append("close")

    # what came of it

    @property
    def lives(self) -> Counter[str]:
        """Job id to how often it was given a new life."""
        return Counter(change.job_id for change in self.kafka.statuses)

    @property
    def each_once(self) -> Counter[str]:
        return Counter(letter.id for letter in self.letters)


@pytest.fixture
def cemetery(monkeypatch: pytest.MonkeyPatch) -> Cemetery:
    return Cemetery(monkeypatch)


def run(**facts: Any) -> RedriveReport:
    return redrive(SETTINGS, DeadLetterFilter(), codec=CODEC, **facts)


def lands_and_then(error: Exception | None) -> Callable[[FakeProducer], Exception | None]:
    """The broker commits; what the answer says is another matter."""

    def what(producer: FakeProducer) -> Exception | None:
        producer.kafka.land(producer.open)
        producer.open = replace(producer.open, records=[])
        return error

    return what


# --- the ordinary way -----------------------------------------------------------------------------------


def test_whoever_wrote_before_is_fenced_before_anything_is_read(cemetery: Cemetery) -> None:
    report = run()
    assert cemetery.kafka.steps[:3] == ["init", "read", "begin"]
    assert list(report.redriven) == [job_id(0), job_id(1), job_id(2)]
    assert cemetery.lives == cemetery.each_once


def test_job_and_status_of_each_go_together(cemetery: Cemetery) -> None:
    cemetery.letters = [letter_of(7)]
    run()
    (transaction,) = cemetery.kafka.committed
    job, told = transaction.records
    assert (job.topic, job.value, job.key, job.partition) == (
        TOPICS.jobs[JobPriority.HIGH],
        b"bytes",
        b"b/k",
        2,
    )
    assert (told.topic, told.key) == (TOPICS.status, job_id(7).encode())
    assert parse(job.headers).redrives == cemetery.kafka.statuses[0].redrives == 1


def test_only_what_was_asked_for_can_run_and_still_waits_is_given_a_new_life(cemetery: Cemetery) -> None:
    strange = letter_of(3, priority=None)
    unclear = letter_of(5, unclear=True)
    cemetery.letters += [strange, letter_of(4, type="other"), unclear]
    cemetery.before = [status(JobStatus.PENDING, job_id=job_id(1), redrives=1)]
    asked = DeadLetterFilter(job_type="t", include_redriven=True)
    report = redrive(SETTINGS, asked, codec=CODEC)
    assert list(report.redriven) == [job_id(0), job_id(2)]
    assert [one.id for one in report.refused] == [strange.id, unclear.id]
    assert cemetery.lives == Counter([job_id(0), job_id(2)])


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_id_that_the_filter_leaves_out_is_not_said_to_be_no_dead_letter(
    cemetery: Cemetery,
    dry_run: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    cemetery.letters += [letter_of(4, type="other")]
    cemetery.before = [status(JobStatus.PENDING, job_id=job_id(1), redrives=1)]
    place = f"{cemetery.letters[-1].topic}/{cemetery.letters[-1].partition}/{cemetery.letters[-1].offset}"
    asked = frozenset({job_id(0), job_id(1), job_id(4), place, "nobody"})
    report = redrive(SETTINGS, DeadLetterFilter(ids=asked, job_type="t"), codec=CODEC, dry_run=dry_run)
    assert list(report.redriven) == [job_id(0)]
    assert list(report.not_waiting) == [job_id(1), "nobody"]
    assert list(report.not_matching) == sorted([job_id(4), place])


@pytest.mark.parametrize("dry_run", [True, False])
def test_half_a_picture_is_no_ground_for_a_redrive(cemetery: Cemetery, dry_run: bool) -> None:  # noqa: FBT001
    cemetery.complete = False
    with pytest.raises(ReadIncomplete):
        run(dry_run=dry_run)
    assert cemetery.kafka.committed == []


def test_a_full_producer_queue_is_waited_for(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("produce", BufferError("full"))
    run()
    assert cemetery.lives == cemetery.each_once


# --- answers that cannot be trusted ---------------------------------------------------------------------


@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_whose_answer_is_lost_is_read_back_not_repeated(
    cemetery: Cemetery,
    landed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    cemetery.kafka.fault("commit", lands_and_then(TIMED_OUT) if landed else TIMED_OUT)
    report = run()
    assert cemetery.lives == cemetery.each_once
    assert sorted(report.redriven) == [job_id(0), job_id(1), job_id(2)], "each is told of once"
    assert cemetery.kafka.producers == 2, "a straggler of the old one is refused"


def test_a_connection_lost_during_a_commit_makes_its_success_doubtful(cemetery: Cemetery) -> None:
    """librdkafka repeats the commit by itself; the first one can still arrive, in the next transaction."""

    cemetery.kafka.fault("commit", lambda producer: producer.kafka.lose_connection())
    report = run()
    assert cemetery.kafka.producers == 2
    assert cemetery.lives == cemetery.each_once
    assert len(report.redriven) == 3


@pytest.mark.parametrize("polls_before", [0, 1])
def test_what_ends_a_producer_between_two_calls_costs_it_and_no_letter(
    cemetery: Cemetery, polls_before: int
) -> None:
    """librdkafka's fatal errors are raised by ``poll``: before a transaction, or after a commit."""
    for _ in range(polls_before):
        cemetery.kafka.fault("poll", lambda _: None)
    cemetery.kafka.fault("poll", kafka_error(KafkaError._UNSUPPORTED_FEATURE, fatal=True))
    report = run()
    assert cemetery.kafka.producers == 2
    assert cemetery.lives == cemetery.each_once
    assert len(report.redriven) == 3


@pytest.mark.parametrize("kept", [TOPICS.status, TOPICS.jobs[JobPriority.HIGH]])
def test_the_other_half_of_a_torn_life_is_written(cemetery: Cemetery, kept: str) -> None:
    """With its status alone it would be pending for ever; with its record alone it would be redriven a second time."""

    def tear(producer: FakeProducer) -> Exception:
        records = [
            sent for sent in producer.open.records if sent.topic == kept and sent.key != job_id(2).encode()
        ]
        producer.kafka.land(Transaction(records[:2]))
        return TIMED_OUT

    cemetery.letters = [letter_of(number, value=job_id(number).encode()) for number in range(3)]
    cemetery.kafka.fault("commit", tear)
    report = run()
    assert cemetery.lives == cemetery.each_once
    written = Counter(sent.topic for one in cemetery.kafka.committed for sent in one.records)
    assert written == {TOPICS.status: 3, TOPICS.jobs[JobPriority.HIGH]: 3}
    assert sorted(report.redriven) == [job_id(0), job_id(1), job_id(2)]


def test_a_torn_life_that_has_ended_by_now_is_not_said_to_wait(cemetery: Cemetery) -> None:
    """Compaction would keep that as the last word."""

    def tear(producer: FakeProducer) -> Exception:
        producer.kafka.land(
            Transaction([sent for sent in producer.open.records if sent.topic != TOPICS.status])
        )
        return TIMED_OUT

    cemetery.letters = [letter_of(number, value=job_id(number).encode()) for number in range(2)]
    ended = status(JobStatus.SUCCEEDED, job_id=job_id(0), redrives=1)
    cemetery.told_since = [ended]
    cemetery.kafka.fault("commit", tear)
    cemetery.kafka.fault("commit", lambda _: cemetery.before.append(ended))
    report = run()
    assert [change.job_id for change in cemetery.kafka.statuses] == [job_id(1)]
    assert sorted(report.redriven) == [job_id(0), job_id(1)]


def test_what_cannot_be_read_is_looked_at_again_and_not_guessed(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("commit", TIMED_OUT)
    cemetery.kafka.hidden = [ReadIncomplete(60), KafkaUnreachable("nowhere", 5)]
    assert len(run().redriven) == 3
    assert cemetery.lives == cemetery.each_once
    assert cemetery.kafka.steps.count("look") == 3


def test_it_is_not_looked_at_for_ever(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("commit", TIMED_OUT)
    cemetery.kafka.hidden = [ReadIncomplete(60)] * 9
    with pytest.raises(DeliveryFailed, match="could not be read to their end"):
        run()
    assert cemetery.kafka.committed == []


def test_who_may_not_look_goes_by_the_statuses(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("commit", TIMED_OUT)
    refused = KafkaRefused("no")
    refused.__cause__ = kafka_error(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    cemetery.kafka.hidden = [refused]
    assert len(run().redriven) == 3
    assert cemetery.lives == cemetery.each_once


def test_after_a_connection_was_lost_between_two_transactions_it_starts_over_as_often_as_that_happens(
    cemetery: Cemetery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow rate leaves connections idle, and brokers close those; librdkafka keeps the third time to itself."""
    monkeypatch.setattr(redrive_module, "_BATCH", 1)
    monkeypatch.setattr(redrive_session, "_STARTS", 1)
    run(after_batch=lambda _: cemetery.kafka.lose_connection())
    assert (cemetery.kafka.producers, cemetery.lives) == (3, cemetery.each_once)


def test_an_error_while_writing_starts_over_too(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("produce", kafka_error(KafkaError._STATE))
    assert len(run().redriven) == 3
    assert cemetery.lives == cemetery.each_once


def test_it_does_not_start_over_for_ever_and_says_how_far_it_came(
    cemetery: Cemetery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive_module, "_BATCH", 1)
    cemetery.kafka.fault("commit", lambda _: None)
    for _ in range(20):
        cemetery.kafka.fault("commit", TIMED_OUT)
    with pytest.raises(DeliveryFailed, match=r"1 job\(s\) were certainly given") as failure:
        run()
    assert str(failure.value).count("certainly given") == 1
    assert cemetery.lives == Counter([job_id(0)])


def test_who_is_fenced_stops_and_says_how_far_it_came(
    cemetery: Cemetery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another operator goes on: starting over would fence it in turn, for ever."""
    monkeypatch.setattr(redrive_module, "_BATCH", 2)
    cemetery.kafka.fault("commit", lambda _: None)
    cemetery.kafka.fault("commit", kafka_error(KafkaError._FENCED, fatal=True))
    with pytest.raises(RedriveTakenOver) as stopped:
        run()
    assert stopped.value.done == 2
    assert cemetery.kafka.producers == 1


def test_a_kafka_that_gives_no_producer_is_said_before_anything_is_read(cemetery: Cemetery) -> None:
    cemetery.kafka.fault("init", TIMED_OUT)
    with pytest.raises(KafkaUnreachable):
        run()
    assert "read" not in cemetery.kafka.steps


# --- one job --------------------------------------------------------------------------------------------


def retry(cemetery: Cemetery) -> None:
    try:
        retry_job(SETTINGS, JOB_ID, codec=CODEC)
    finally:
        assert cemetery.kafka.steps[-1] == "close"


@pytest.mark.parametrize("landed", [True, False])
def test_one_job_gets_one_new_life_whatever_the_answer(
    cemetery: Cemetery,
    landed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    cemetery.before = [status(JobStatus.SUCCEEDED)]
    cemetery.kafka.fault("commit", lands_and_then(TIMED_OUT) if landed else TIMED_OUT)
    retry(cemetery)
    assert cemetery.lives == Counter([JOB_ID])
    assert [change.redrives for change in cemetery.kafka.statuses] == [1]


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("then", ["no broker", "half a picture"])
def test_who_cannot_find_out_what_became_of_a_commit_says_which_job_perhaps_lives_again(
    cemetery: Cemetery, then: str, *, landed: bool
) -> None:
    """Whoever believes that nothing has changed gives it another life once that one is over."""
    cemetery.before = [status(JobStatus.SUCCEEDED)]

    def commit(producer: FakeProducer) -> Exception | None:
        cemetery.complete = then != "half a picture"
        return lands_and_then(TIMED_OUT)(producer) if landed else TIMED_OUT

    cemetery.kafka.fault("commit", commit)
    if then == "no broker":
        cemetery.kafka.fault("init", lambda _: None)
        cemetery.kafka.fault("init", TIMED_OUT)
    with pytest.raises(DeliveryFailed, match=f"perhaps so were {JOB_ID}") as failure:
        retry(cemetery)
    assert failure.value.perhaps_written == (JOB_ID,)


def test_a_kafka_that_goes_away_between_two_transactions_does_not_hide_what_was_done(
    cemetery: Cemetery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive_module, "_BATCH", 2)
    cemetery.kafka.fault("init", lambda _: None)
    cemetery.kafka.fault("init", TIMED_OUT)
    cemetery.kafka.fault("begin", lambda _: None)
    cemetery.kafka.fault("begin", kafka_error(KafkaError._STATE))
    with pytest.raises(DeliveryFailed, match=r"2 job\(s\) were certainly given"):
        run()
    assert cemetery.lives == Counter([job_id(0), job_id(1)])


def test_a_job_that_is_not_finished_is_left_alone(cemetery: Cemetery) -> None:
    cemetery.before = [status(JobStatus.RUNNING)]
    with pytest.raises(IllegalTransition):
        retry(cemetery)
    assert cemetery.kafka.committed == []


def test_a_job_is_neither_missing_nor_finished_on_half_a_picture(cemetery: Cemetery) -> None:
    cemetery.before = [status(JobStatus.SUCCEEDED)]
    cemetery.complete = False
    with pytest.raises(ReadIncomplete):
        retry(cemetery)
    assert cemetery.kafka.committed == []


def test_a_job_whose_record_is_gone_is_not_found(cemetery: Cemetery) -> None:
    with pytest.raises(JobNotFound):
        retry_job(SETTINGS, job_id(99), codec=CODEC)


@given(st.lists(st.integers(0, 3_000_000), max_size=30), st.integers(1, 7))
def test_a_batch_has_no_more_letters_nor_bytes_than_a_transaction_should(sizes: list[int], most: int) -> None:
    """What takes longer than its time-out is ended by Kafka, and the same one would be tried for ever."""
    letters = [letter_of(number, value=_BYTES[:size]) for number, size in enumerate(sizes)]
    made = list(batches(letters, most))
    assert [one for batch in made for one in batch] == letters
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(one.value or b"") for one in batch) <= 4 * 1024 * 1024


def test_the_rate_is_kept_from_the_first_job_on_however_long_the_letters_were_read(
    cemetery: Cemetery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of reading would let as many minutes' jobs go at once."""
    clock, pauses = [0.0], list[float]()
    read = cemetery._read

    def slowly(*arguments: Any, **more: Any) -> DeadLetters:
        clock[0] += 100.0
        return read(*arguments, **more)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(redrive_module, "read_dead_letters", slowly)
    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep, time_ns=lambda: 10**18)
    monkeypatch.setattr(redrive_module, "time", fake)
    redrive(SETTINGS, DeadLetterFilter(), rate=4.0, codec=CODEC)
    assert pauses == [0.25, 0.25]
