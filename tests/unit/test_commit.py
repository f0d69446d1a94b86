"""The commit thread: the order of its steps, and what it does with every answer that Kafka can give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from structlog.testing import capture_logs

from schemas.errors import CommitVanished, DeliveryFailed, GroupNotInitialised, KafkaUnreachable
from schemas.headers import Delivery, build
from schemas.lifecycle import JobStatus
from schemas.offsetmap import Suspect
from schemas.records import decode_status
from schemas.topics import JobPriority
from tests.support.commit_bench import (
    CODEC,
    Bench,
    FakeProducer,
    Transaction,
    kafka_error,
    status,
    succeeded,
    told,
)
from tests.support.messages import TOPICS, message
from workers import commit as commit_module
from workers.commit import MAX_BATCH, MAX_BATCH_BYTES
from workers.outcome import Outcome, OutRecord

pytestmark = pytest.mark.worker_coordination


# --- the ordinary way ------------------------------------------------------------------------------------


def test_the_order_of_steps_is_the_fence() -> None:
    """Metadata, then the filter, then exactly this metadata: a partition given away in between makes it too old."""
    bench = Bench()
    bench.success(0)
    bench.tick()
    assert bench.kafka.steps == ["metadata", "begin", "produce", "offsets", "commit"]
    assert bench.kafka.committed[0].metadata == 1


def test_a_tick_is_one_transaction_with_everything_that_ended() -> None:
    bench = Bench()
    for offset in (0, 1, 3):
        bench.success(offset)
    assert bench.tick()
    (transaction,) = bench.kafka.committed
    assert len(transaction.records) == 3
    assert (bench.stored.offset, set(bench.stored.finished)) == (2, {3})
    assert bench.counted == 3
    assert {change.state for change in bench.kafka.statuses} == {JobStatus.SUCCEEDED}


def test_twice_as_many_may_start_before_the_next_commit_as_ended_before_this_one() -> None:
    bench = Bench(records=1_000)
    for offset in range(100):
        bench.success(offset)
    bench.tick()
    assert (bench.stored.offset, bench.stored.start_limit) == (100, 300)


def test_a_tick_with_nothing_to_say_asks_kafka_for_nothing() -> None:
    bench = Bench(records=0)
    assert not bench.tick()
    assert bench.kafka.committed == []


def test_records_status_and_offset_go_together() -> None:
    bench = Bench()
    one = message(bench.part, 0)
    retry = OutRecord(
        TOPICS.retry[next(iter(TOPICS.retry))], 5, b"b/k", one.value, build(Delivery("test", 2, 1))
    )
    bench.emit(Outcome(one, status(one, JobStatus.RETRYING), (retry,)))
    bench.tick()
    (transaction,) = bench.kafka.committed
    told, onward = transaction.records
    assert (told.topic, told.key, told.partition) == (TOPICS.status, one.job_id, -1)
    assert onward == (retry.topic, one.value, b"b/k", 5, retry.headers)
    assert bench.stored.offset == 1


def test_a_plain_success_tells_of_which_run_and_life_it_is() -> None:
    bench = Bench()
    bench.emit(
        succeeded(message(bench.part, 0, delivery=Delivery("test", attempt=2, delivery=5, redrives=1)))
    )
    bench.tick()
    (change,) = bench.kafka.statuses
    assert (change.attempt, change.delivery, change.redrives, change.worker) == (2, 5, 1, "w.0")


def test_a_job_that_failed_for_good_is_in_the_log_once_that_is_true() -> None:
    """Who looks at a worker's log at night finds the id to ask `dlq show` for."""
    bench = Bench()
    one, other = message(bench.part, 0), message(bench.part, 1)
    failed = replace(status(one, JobStatus.FAILED), error_type="ObjectMissing", error_message="no b/k")
    bench.emit(Outcome(one, failed))
    bench.emit(Outcome(other, status(other, JobStatus.RETRYING)))

    with capture_logs() as before:
        bench.part.owned = False
        bench.tick()
    bench.part.owned = True
    bench.emit(Outcome(one, failed))
    bench.emit(Outcome(other, status(other, JobStatus.RETRYING)))
    with capture_logs() as after:
        bench.tick()

    assert [line["event"] for line in before] == []
    assert after == [
        {
            "event": "job dead-lettered",
            "log_level": "info",
            "job_id": failed.job_id,
            "type": failed.type,
            "attempt": failed.attempt,
            "error_type": "ObjectMissing",
            "error": "no b/k",
        }
    ]


def test_outcomes_of_a_lost_partition_are_dropped_and_counted() -> None:
    bench = Bench()
    bench.success(0)
    bench.part.owned = False
    bench.tick()
    assert bench.kafka.committed == []
    assert (bench.counted, bench.events["fenced_outcomes"]) == (0, 1)


def test_news_of_a_job_whose_partition_is_lost_is_not_told() -> None:
    bench = Bench()
    one = message(bench.part, 0)
    bench.part.owned = False
    bench.emit(Outcome(None, status(one, JobStatus.RUNNING), owner=one))
    bench.tick()
    assert bench.kafka.committed == []


def test_news_alone_is_fenced_by_the_offset_of_its_partition() -> None:
    """Else an owner that was frozen says "running" of a job that its heir has ended, and compaction keeps that."""
    bench = Bench()
    one = message(bench.part, 0)
    bench.part.dirty = False
    bench.emit(Outcome(None, status(one, JobStatus.RUNNING), owner=one))
    bench.tick()
    (transaction,) = bench.kafka.committed
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.RUNNING]
    assert set(transaction.offsets) == {(bench.part.topic, bench.part.partition)}
    assert transaction.metadata == bench.kafka.generation


def test_before_the_first_assignment_outcomes_wait_in_their_order() -> None:
    bench = Bench()
    outcomes = [bench.success(offset) for offset in range(3)]
    bench.kafka.generation = None  # type: ignore[assignment]
    bench.kafka.refresh = lambda timeout_s: None  # type: ignore[method-assign]
    bench.tick()
    assert list(bench.committer._outbox) == outcomes


def test_a_transaction_is_bounded() -> None:
    bench = Bench(records=MAX_BATCH + 5)
    for offset in range(MAX_BATCH + 5):
        bench.success(offset)
    bench.tick()
    assert (len(bench.kafka.committed[0].records), bench.committer.pending) == (MAX_BATCH, 5)


def test_a_transaction_is_bounded_in_bytes_as_well_and_a_release_waits_for_the_rest() -> None:
    """Beyond five seconds Kafka ends it, and the same one would be tried for ever."""
    bench = Bench()
    onward = OutRecord(TOPICS.dlq, 0, None, bytes(MAX_BATCH_BYTES // 2), [])
    for offset in range(3):
        one = message(bench.part, offset)
        bench.emit(Outcome(one, status(one, JobStatus.FAILED), (onward,)))
    done = bench.committer.release([bench.part])
    assert bench.committer.pending_bytes == 3 * MAX_BATCH_BYTES // 2
    bench.tick()
    assert (len(bench.kafka.committed[0].records), bench.committer.pending, done.is_set()) == (4, 1, False)
    bench.tick()
    assert bench.committer.pending_bytes == 0
    assert (bench.stored.offset, bench.stored.clean, done.is_set()) == (3, True, True)


def test_type_names_from_messages_do_not_fill_the_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_module, "_MOST_COUNTERS", 2)
    bench = Bench()
    for offset in range(4):
        one = message(bench.part, offset)
        bench.emit(replace(succeeded(one), counts_as=(f"type-{offset % 3}", JobPriority.LOW, "succeeded")))
    bench.tick()
    assert {name: count for (name, _, _), count in bench.committer.counters.jobs.items()} == {
        "type-0": 2,
        "type-1": 1,
        "other": 1,
    }


def test_a_full_producer_queue_is_waited_for() -> None:
    bench = Bench()
    for _ in range(4):
        bench.kafka.fault("produce", BufferError("full"))
    bench.success(0)
    bench.tick()
    assert len(bench.kafka.committed) == 1
    assert "abort" not in bench.kafka.steps


# --- leaving ---------------------------------------------------------------------------------------------------


def test_a_release_commits_a_clean_map_and_says_so() -> None:
    bench = Bench()
    bench.success(0)
    done = bench.committer.release([bench.part])
    bench.tick()
    assert done.is_set()
    assert (bench.stored.clean, bench.stored.offset) == (True, 1)


def test_a_release_waits_for_the_outcomes_before_it() -> None:
    """More ended than one transaction carries: none of it may be left behind and run again."""
    bench = Bench(records=MAX_BATCH + 5)
    for offset in range(MAX_BATCH + 5):
        bench.success(offset)
    done = bench.committer.release([bench.part])
    while not done.is_set():
        bench.tick()
    assert (bench.stored.clean, bench.stored.offset) == (True, MAX_BATCH + 5)


def test_a_release_is_answered_even_if_the_thread_fails() -> None:
    bench = Bench()
    done = bench.committer.release([bench.part])
    bench.kafka.fault("begin", RuntimeError("a bug"))
    bench.kafka.fault("abort", RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        bench.tick()
    assert done.is_set()


def test_the_clean_flag_survives_a_refused_piece_of_news() -> None:
    bench = Bench()
    one = message(bench.part, 0)
    bench.kafka.refuse = lambda open_: (
        kafka_error(KafkaError.MSG_SIZE_TOO_LARGE, abort=True) if open_.records else None
    )
    bench.emit(Outcome(None, status(one, JobStatus.RUNNING), owner=one))
    bench.committer.release([bench.part])
    bench.tick()
    assert bench.stored.clean
    assert bench.kafka.statuses == []


# --- the thread -----------------------------------------------------------------------------------------------------


def test_all_that_is_left_is_written_before_the_thread_ends() -> None:
    bench = Bench(records=2 * MAX_BATCH)
    for offset in range(2 * MAX_BATCH):
        bench.success(offset)
    bench.committer._stop = True
    bench.committer.start()
    assert bench.committer.stop(60)
    assert (bench.stored.offset, bench.committer.pending) == (2 * MAX_BATCH, 0)


def test_what_does_not_fit_into_one_transaction_follows_in_the_next_without_being_asked_for() -> None:
    bench = Bench(records=2 * MAX_BATCH)
    for offset in range(2 * MAX_BATCH):
        bench.success(offset)
    bench.committer.start()
    while bench.committer.pending:
        bench.committed.clear()
        assert not bench.committer.pending or bench.committed.wait(30)
    assert bench.committer.stop(60)
    assert bench.stored.offset == 2 * MAX_BATCH


def test_what_comes_in_the_middle_of_a_transaction_is_not_forgotten() -> None:
    """A revocation waits for it, and nothing else may come that would wake the thread."""
    bench = Bench()
    releases: list[threading.Event] = []
    bench.kafka.fault("commit", lambda _: releases.append(bench.committer.release([bench.part])))
    bench.success(0)
    bench.committer.start()
    assert bench.committed.wait(30)
    assert releases[0].wait(30)
    assert bench.stored.clean
    assert bench.committer.stop(60)


def test_a_thread_that_ends_in_an_error_says_so_and_answers_who_waits() -> None:
    bench = Bench()
    failures: list[BaseException] = []
    bench.committer._on_failure = failures.append
    bench.kafka.fault("init", kafka_error(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    done = bench.committer.release([bench.part])
    bench.committer.start()
    assert done.wait(30)
    assert bench.committer.stop(60)
    assert [type(error) for error in failures] == [KafkaException]


# --- stale metadata ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
    ],
)
def test_stale_metadata_is_fetched_anew_before_the_filter_looks_again(code: int) -> None:
    bench = Bench()
    lost = bench.assign(5, number=1)
    bench.kafka.steps.clear()
    bench.kafka.committed.clear()

    def the_group_moves_on(_: FakeProducer) -> Exception:
        lost.owned = False
        return kafka_error(code, abort=True)

    bench.kafka.fault("offsets", the_group_moves_on)
    bench.success(0)
    bench.success(0, lost)
    bench.tick()
    assert bench.kafka.steps[:6] == ["metadata", "begin", "produce", "produce", "offsets", "abort"]
    assert bench.kafka.steps[6:8] == ["refresh", "metadata"]
    (transaction,) = bench.kafka.committed
    assert (transaction.metadata, list(transaction.offsets)) == (2, [(bench.part.topic, 0)])
    assert (bench.events["stale_metadata"], bench.events["fenced_outcomes"]) == (1, 1)
    assert bench.kafka.producers == 1, "stale metadata is ordinary"


def test_what_changed_meanwhile_is_in_the_next_plan() -> None:
    bench = Bench()
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.part.dirty = True
    bench.tick()
    assert len(bench.kafka.committed) == 1


def test_at_the_end_a_group_that_is_gone_is_not_asked_for_ever() -> None:
    bench = Bench()
    bench.committer._stop = True
    for _ in range(20):
        bench.kafka.fault("offsets", kafka_error(KafkaError.UNKNOWN_MEMBER_ID, abort=True))
    bench.success(0)
    bench.tick()
    assert bench.kafka.committed == []


# --- ambiguous commits -----------------------------------------------------------------------------------------------


def commits_then(error: Exception | None = None) -> Callable[[FakeProducer], Exception | None]:
    """The broker commits, but the answer is lost."""

    def what(producer: FakeProducer) -> Exception | None:
        producer.kafka.land(producer.open)
        return error

    return what


TIMED_OUT = kafka_error(KafkaError._TIMED_OUT, retriable=True)


def test_an_ambiguous_commit_that_arrived_is_not_written_again() -> None:
    bench = Bench()
    bench.kafka.fault("commit", commits_then(TIMED_OUT))
    bench.success(0)
    bench.success(2)
    bench.tick()
    assert len(bench.kafka.statuses) == 2
    assert bench.kafka.producers == 2, "the old epoch's stragglers are refused"
    assert bench.kafka.steps.index("init") < bench.kafka.steps.index("read back")
    assert bench.counted == 2
    assert bench.events["ambiguous_commits"] == 1
    assert (bench.part.base, bench.part.done) == (1, {2})


def test_an_acknowledged_commit_that_kafka_does_not_show_any_more_ends_the_worker() -> None:
    """Going on would hide that a transaction was lost; after a restart its jobs run again."""
    bench = Bench()
    before = bench.stored
    bench.success(0)
    bench.tick()

    def forgets(_: FakeProducer) -> Exception:
        bench.kafka.stored[bench.part.topic, bench.part.partition] = before
        return TIMED_OUT

    bench.kafka.fault("commit", forgets)
    bench.success(1)
    with pytest.raises(CommitVanished, match="has lost a transaction"):
        bench.tick()
    assert len(bench.kafka.statuses) == 1


def test_an_ambiguous_commit_that_did_not_arrive_is_written_again() -> None:
    bench = Bench()
    bench.kafka.fault("commit", TIMED_OUT)
    bench.success(0)
    bench.tick()
    assert len(bench.kafka.statuses) == 1
    assert (bench.stored.offset, bench.counted) == (1, 1)


@pytest.mark.parametrize("arrived", [True, False])
def test_the_end_of_a_job_is_its_last_word_after_an_ambiguous_commit_as_well(*, arrived: bool) -> None:
    """Its "running" was in the same transaction: told again alone, it would stand behind the end for ever."""
    bench = Bench()
    bench.kafka.fault("commit", commits_then(TIMED_OUT) if arrived else TIMED_OUT)
    one = message(bench.part, 0)
    bench.emit(Outcome(None, status(one, JobStatus.RUNNING), owner=one))
    bench.emit(told(one))
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.RUNNING, JobStatus.SUCCEEDED]


def test_what_stands_is_asked_for_until_kafka_answers() -> None:
    """Either Kafka is away, or our own transaction stays open: a new producer, and an end of what Kafka has forgotten."""
    bench = Bench()
    bench.kafka.fault("commit", TIMED_OUT)
    bench.kafka.unreadable = [KafkaUnreachable("the group's coordinator", 8.0)]
    bench.success(0)
    bench.tick()
    after = bench.kafka.steps[bench.kafka.steps.index("commit") + 1 :]
    assert after[:6] == ["init", "read back", "init", "metadata", "end forgotten", "read back"]
    assert len(bench.kafka.statuses) == 1


def test_at_the_end_what_stands_is_asked_for_once() -> None:
    bench = Bench()
    bench.kafka.fault("commit", TIMED_OUT)
    bench.kafka.unreadable = [KafkaUnreachable("the group's coordinator", 8.0)] * 9
    bench.committer._stop = True
    bench.success(0)
    with pytest.raises(KafkaUnreachable):
        bench.tick()


@pytest.mark.parametrize(
    ("error", "fenced"), [(kafka_error(KafkaError._FENCED, fatal=True), 1), (TIMED_OUT, 0)]
)
def test_who_is_fenced_is_told_of_it(error: Exception, fenced: int) -> None:
    """Twice, and another process lives by the same name."""
    bench = Bench()
    bench.kafka.fault("commit", error)
    bench.success(0)
    bench.tick()
    assert bench.kafka.steps.count("fenced") == fenced
    assert bench.events.get("fenced", 0) == fenced


def test_only_what_is_not_finished_is_written_again() -> None:
    """What ends between the two commits is new, and what a partition lost meanwhile is nobody's."""
    bench = Bench()
    lost = bench.assign(5, number=1)

    def lands_and_loses(producer: FakeProducer) -> Exception:
        lost.owned = False
        del producer.open.offsets[bench.part.topic, 1]
        commits_then()(producer)
        return TIMED_OUT

    bench.kafka.fault("commit", lands_and_loses)
    bench.success(0)
    bench.success(0, lost)
    bench.tick()
    bench.success(1)
    bench.tick()
    assert bench.stored.offset == 2
    assert bench.counted == 2


@pytest.mark.parametrize(
    "line",
    ["FAIL [thrd:b/1]: gone", "[thrd:b/1]: Disconnected", "REQTMOUT [thrd:b/1]: Timed out 1 in-flight"],
)
def test_a_lost_connection_makes_a_reported_success_ambiguous(line: str) -> None:
    """librdkafka repeats an EndTxn by itself; the first one can still arrive, in a later transaction."""
    bench = Bench()

    bench.kafka.fault("commit", lambda producer: producer.kafka.lose_connection(line))
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert len(bench.kafka.statuses) == 1
    assert bench.counted == 1


@pytest.mark.parametrize("code", [KafkaError.ILLEGAL_GENERATION, KafkaError.MSG_SIZE_TOO_LARGE])
def test_after_a_transaction_that_was_aborted_and_lost_a_connection_comes_a_new_producer(code: int) -> None:
    """Under the old epoch the broker takes the next record for a copy of one that was aborted, and drops it."""
    bench = Bench()

    def lose_and_refuse(producer: FakeProducer) -> Exception:
        producer.kafka.lose_connection()
        return kafka_error(code, abort=True)

    bench.kafka.fault("offsets", lose_and_refuse)
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.SUCCEEDED]


def test_a_connection_lost_before_the_transaction_does_not_matter() -> None:
    bench = Bench()
    bench.kafka.lose_connection()
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 1


@pytest.mark.parametrize(
    "error",
    [
        kafka_error(KafkaError._FENCED, fatal=True),
        kafka_error(KafkaError.INVALID_PRODUCER_ID_MAPPING, abort=True),
        kafka_error(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, retriable=True, abort=True),
        kafka_error(KafkaError._TRANSPORT),
    ],
)
def test_a_producer_that_is_of_no_more_use_is_replaced(error: Exception) -> None:
    bench = Bench()
    bench.kafka.fault("offsets", error)
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert len(bench.kafka.statuses) == 1


def test_an_abort_that_fails_makes_it_ambiguous() -> None:
    bench = Bench()
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.kafka.fault("abort", TIMED_OUT)
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert len(bench.kafka.statuses) == 1


def test_a_transactional_id_that_is_not_ours_to_use_ends_the_worker() -> None:
    bench = Bench()
    bench.kafka.fault("init", kafka_error(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    with pytest.raises(KafkaException):
        bench.committer._transactions.renew()


def test_a_producer_is_waited_for_unless_the_worker_is_ending() -> None:
    bench = Bench()
    bench.kafka.fault("init", TIMED_OUT)
    bench.committer._transactions.renew()
    bench.committer._stop = True
    bench.kafka.fault("init", TIMED_OUT)
    with pytest.raises(KafkaException):
        bench.committer._transactions.renew()


# --- refusals --------------------------------------------------------------------------------------------------------


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
    "code", [KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR, KafkaError.NOT_ENOUGH_REPLICAS]
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
    bench.part.suspects = {2 * n: Suspect(("dead",) * (1 + n % 2)) for n in range(2_000)}
    bench.part.losses = {"dead": 1}
    bench.part.dirty = True
    with pytest.raises(GroupNotInitialised, match="characters"):
        bench.tick()
    assert bench.kafka.committed == []
