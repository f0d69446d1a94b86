"""The commit thread: the order of its steps, and what it does with every answer that Kafka can give."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException
from structlog.testing import capture_logs

from schemas.headers import Delivery, build
from schemas.lifecycle import JobStatus
from schemas.offsetmap import Suspect
from streams.clients import KafkaRefused
from tests.support.commit_bench import (
    Bench,
    FakeProducer,
    kafka_error,
    status,
    succeeded,
)
from tests.support.messages import TOPICS, message, partition
from tests.support.waiting import eventually
from workers.committing.commit_queue import LEAST_BATCH, MAX_BATCH, MAX_BATCH_BYTES, CommitQueue
from workers.offsets import MAX_REACH
from workers.outcome import COMMIT_REQUEST, Outcome, OutRecord

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


def test_what_a_map_has_no_room_for_waits_until_those_before_it_have_ended() -> None:
    """A copy that is skipped, or a record that goes on to another topic: they did not have to start."""
    bench = Bench(records=2)
    bench.part.note_delivered(MAX_REACH)
    bench.success(1)
    bench.success(MAX_REACH)
    bench.tick()
    assert (bench.counted, bench.stored.finished) == (1, frozenset(range(1, MAX_REACH)))
    assert not bench.tick(), "and nobody turns in circles meanwhile"
    bench.success(0)
    bench.tick()
    assert bench.stored.offset == MAX_REACH
    assert bench.tick()
    assert (bench.counted, bench.stored.offset) == (3, MAX_REACH + 1)


def test_what_waited_beyond_reach_goes_with_its_partition() -> None:
    bench = Bench(records=2)
    bench.part.note_delivered(MAX_REACH)
    bench.success(MAX_REACH)
    bench.tick()
    bench.part.owned = False
    bench.tick()
    assert (bench.counted, bench.events["fenced_outcomes"]) == (0, 1)


def test_three_times_as_many_may_start_before_the_next_commit_as_ended_before_this_one() -> None:
    """Wherever they are: a successor suspects all that may start, and in no partition more than are about to."""
    bench = Bench(records=1_000)
    other = bench.assign(1_000, number=1)
    for offset in range(100):
        bench.success(offset)
    bench.waiting = [message(bench.part, offset) for offset in range(100, 300)]
    bench.waiting += [message(other, offset) for offset in range(1_000)]
    bench.tick()
    assert (bench.stored.offset, bench.stored.start_limit) == (100, 300)
    assert bench.kafka.stored[other.topic, other.partition].start_limit == 100


def test_a_few_may_always_start() -> None:
    bench = Bench(records=1_000)
    bench.waiting = [message(bench.part, offset) for offset in range(1_000)]
    bench.success(0)
    bench.tick()
    assert bench.stored.start_limit == 64


def test_while_one_runs_alone_nobody_of_any_partition_may_start() -> None:
    """At its worker's death nobody else is suspected."""
    bench = Bench(records=10)
    other = bench.assign(10, number=1)
    other.want(5)
    other.name_alone(None)
    bench.tick()
    assert other.start(0)
    bench.success(0, other)
    bench.tick()
    assert not other.dirty
    bench.waiting = [message(other, 8)]
    bench.part.suspects[0] = Suspect(("a", "b"))
    bench.part.losses.update(a=1, b=2)
    bench.part.name_alone(0)
    bench.tick()
    assert (bench.stored.alone, bench.kafka.stored[other.topic, other.partition].clean) == (0, True)
    assert other.wanted <= 8, "nobody is about to start"
    assert bench.part.start(0)
    other.dirty = False
    bench.part.name_alone(None)
    bench.tick()
    assert not bench.kafka.stored[other.topic, other.partition].clean
    assert other.start(1)


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
    assert onward == (retry.topic, 5, b"b/k", one.value, retry.headers)
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


def test_each_partition_is_fenced_by_metadata_of_its_own_assignment_until_a_commit_has_shown_that_it_is_ours() -> (
    None
):
    """With newer ones Kafka would not look whether it has been somebody else's meanwhile."""
    bench = Bench()
    bench.kafka.generation = 7
    other = bench.assign(5, number=1)
    bench.part.metadata = 1  # as long as nothing of it has been committed
    bench.kafka.committed.clear()
    for offset in range(2):
        bench.success(offset)
        bench.success(offset, other)
        bench.tick()
    assert [transaction.fences for transaction in bench.kafka.committed] == [{1: {0}, 7: {1}}, {7: {0, 1}}]


def test_metadata_of_a_transaction_that_was_refused_prove_nothing() -> None:
    bench = Bench()
    bench.kafka.generation = 7
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.kafka.committed.clear()
    bench.success(0)
    bench.tick()
    assert [transaction.fences for transaction in bench.kafka.committed] == [{1: {0}}]


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
    values = 3 * MAX_BATCH_BYTES // 2
    assert values < bench.committer.pending_bytes < values + 10_000, "and what goes with each"
    bench.tick()
    assert (len(bench.kafka.committed[0].records), bench.committer.pending, done.is_set()) == (4, 1, False)
    bench.tick()
    assert bench.committer.pending_bytes == 0
    assert (bench.stored.offset, bench.stored.clean, done.is_set()) == (3, True, True)


def forwarding(bench: Bench, offset: int, size: int) -> Outcome:
    one = message(bench.part, offset)
    return Outcome(
        one, status(one, JobStatus.FAILED), (OutRecord(TOPICS.dlq, 0, one.key, offset.to_bytes(size), []),)
    )


class SlowWay:
    """To Kafka: a transaction of more than ``most`` records, or ``room`` bytes, comes to no end, ``patience`` times at the most."""

    def __init__(self, bench: Bench, *, room: int = 1 << 40, most: int = 1 << 40, patience: int) -> None:
        self._room = room
        self._most = most
        self._patience = patience
        self.failed = 0
        #: What Kafka waits for a transaction, or the share of it that this one needs.
        self.took_s = 0.0
        for _ in range(2 * patience):
            bench.kafka.fault("commit", self._commit)

    def _commit(self, producer: FakeProducer) -> Exception | None:
        records = producer.open.records
        too_much = len(records) > self._most or sum(len(sent.value or b"") for sent in records) > self._room
        self.failed += too_much
        self.took_s += 5.0 if too_much else 5.0 * len(records) / self._most
        assert self.failed < self._patience, "it goes round in circles"
        return kafka_error(KafkaError._TIMED_OUT, retriable=True) if too_much else None


def test_what_is_too_much_for_the_way_to_kafka_is_written_in_parts() -> None:
    """The same transaction would be tried for ever: by this worker, and by each heir."""
    bench = Bench(records=64)
    way = SlowWay(bench, room=3 * 1024 * 1024, patience=100)
    for offset in range(64):
        bench.emit(forwarding(bench, offset, 1024 * 1024))
    while bench.committer.pending:
        bench.tick()
    assert bench.stored.offset == 64
    assert len(bench.kafka.statuses) == 64
    assert way.failed < len(bench.kafka.committed) / 2, f"{way.failed}: it is found out again and again"


@pytest.mark.parametrize(("most", "tries"), [(16, 22), (100, 6), (1_000, 2)])
def test_brokers_that_are_short_of_time_get_smaller_transactions_however_few_bytes_they_have(
    monkeypatch: pytest.MonkeyPatch, most: int, tries: int
) -> None:
    """A storm on a machine that was busy with other things: five workers tried 1,400 outcomes each, time and again, for ever."""
    bench = Bench(records=MAX_BATCH)
    way = SlowWay(bench, most=most, patience=200)
    clock = SimpleNamespace(monotonic=lambda: way.took_s, time_ns=time.time_ns)
    monkeypatch.setattr("workers.committing.commit.time", clock)
    for offset in range(MAX_BATCH):
        bench.success(offset)
    while bench.committer.pending:
        bench.tick()
    assert (bench.stored.offset, bench.counted) == (MAX_BATCH, MAX_BATCH)
    assert way.failed <= tries, "each try takes as long as Kafka waits for a transaction"


@pytest.mark.parametrize(("each_takes_s", "transactions"), [(0.2, 60), (2.0, 150)])
def test_when_there_is_time_again_transactions_grow_to_what_they_were(
    monkeypatch: pytest.MonkeyPatch, each_takes_s: float, transactions: int
) -> None:
    """A storm (seed 18): brokers that came back took twenty outcomes at a time for a minute, by one worker that had thousands. It
    was told to leave, and gave them up."""
    bench = Bench(records=10 * MAX_BATCH)
    clock = SimpleNamespace(
        monotonic=lambda: each_takes_s * bench.kafka.steps.count("commit"), time_ns=time.time_ns
    )
    monkeypatch.setattr("workers.committing.commit.time", clock)
    for _ in range(6):
        bench.kafka.fault("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True))
    for offset in range(10 * MAX_BATCH):
        bench.success(offset)
    while bench.committer.pending:
        bench.tick()
    sizes = [len(one.records) for one in bench.kafka.committed]
    assert min(sizes[:5]) < 100, "it has become smaller"
    assert MAX_BATCH in sizes
    assert sizes.index(MAX_BATCH) < transactions


def test_who_asks_for_a_commit_takes_no_room_in_it() -> None:
    """Many ask while little fits into one: outcomes would never come to an end."""
    bench = Bench()
    for _ in range(100):
        bench.emit(COMMIT_REQUEST)
    assert bench.committer.pending == 0
    assert bench.committer._wake.is_set()


def test_nothing_more_may_start_while_more_has_ended_than_transactions_carry() -> None:
    """The same storm: 5,000 jobs ended while 1,200 were committed, and were done again by others."""
    queue, part = CommitQueue(), partition()
    ended = [succeeded(message(part, offset)) for offset in range(400)]
    for _ in range(8):
        queue.take_less_than(ended)
    for outcome in ended:
        queue.put(outcome)
    assert queue.ahead == 0
    while len(queue) > 2 * LEAST_BATCH:
        queue.wrote(queue.take())
    assert queue.ahead > 0
    for offset in range(400, 800):
        queue.put(Outcome(message(part, offset), None, event="forwarded"))
    assert queue.ahead > 0, "what is only forwarded holds up nobody who could start"


@pytest.mark.parametrize(("each_takes_s", "tries"), [(7.0, 10), (1.0, 62)])
def test_one_outcome_that_is_too_much_for_the_way_to_kafka_fails_alone(
    monkeypatch: pytest.MonkeyPatch, each_takes_s: float, tries: int
) -> None:
    """Nothing else of its worker would be committed, nor of any heir's. Not because of a few seconds in which Kafka comes and goes."""
    bench = Bench(records=2)
    room = 1024 * 1024
    way = SlowWay(bench, room=room, patience=100)
    clock = SimpleNamespace(monotonic=lambda: way.failed * each_takes_s, time_ns=time.time_ns)
    monkeypatch.setattr("workers.committing.commit.time", clock)
    bench.emit(forwarding(bench, 0, 2 * room))
    bench.success(1)
    while bench.committer.pending:
        bench.tick()
    assert bench.stored.offset == 2
    assert bench.events["not_writable"] == 1
    assert way.failed == pytest.approx(tries, abs=2)


@pytest.mark.parametrize("large", [0, 1, 3])
def test_it_fails_alone_wherever_it_stands_among_small_ones(
    monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    bench = Bench(records=4)
    room = 1024 * 1024
    way = SlowWay(bench, room=room, patience=100)
    clock = SimpleNamespace(monotonic=lambda: way.failed * 7.0, time_ns=time.time_ns)
    monkeypatch.setattr("workers.committing.commit.time", clock)
    for offset in range(4):
        if offset == large:
            bench.emit(forwarding(bench, offset, 2 * room))
        else:
            bench.success(offset)
    while bench.committer.pending:
        bench.tick()
    assert bench.stored.offset == 4
    assert bench.events["not_writable"] == 1


@pytest.mark.parametrize("may_read", [True, False])
def test_transactions_become_smaller_also_where_nothing_may_be_read(*, may_read: bool) -> None:
    """What stands of a transaction is not known there; that it was too much is."""
    bench = Bench(records=200)
    if not may_read:
        refused = KafkaRefused("not authorised")
        refused.__cause__ = kafka_error(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        bench.kafka.hidden = [refused] * 1_000
    SlowWay(bench, most=100, patience=100)
    for offset in range(200):
        bench.success(offset)
    while bench.committer.pending:
        bench.tick()
    assert bench.stored.offset == 200


def test_a_first_doubt_divides_nothing_whatever_was_refused_before() -> None:
    bench = Bench(records=2)
    for offset in range(2):
        bench.emit(forwarding(bench, offset, 1024 * 1024))
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.kafka.fault("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True))
    bench.tick()
    assert [len(one.offsets) for one in bench.kafka.committed] == [1]


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


def test_a_release_of_what_goes_on_is_no_clean_one() -> None:
    bench = Bench()
    bench.success(0)
    done = bench.committer.release([bench.part], clean=False)
    bench.tick()
    assert done.is_set()
    assert (bench.stored.clean, bench.stored.offset) == (False, 1)


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


def test_nothing_of_the_thread_is_left_when_it_has_ended() -> None:
    """Once a worker has written, the thread that sends its offsets lives as long as it does, and no longer."""
    before = set(threading.enumerate())
    bench = Bench()
    bench.success(0)
    bench.committer.start()
    assert bench.committed.wait(30)

    def threads() -> set[str]:
        return {thread.name for thread in set(threading.enumerate()) - before}

    # The producer that was replaced when the thread began has its end in one more, for a moment.
    eventually(lambda: threads() == {"commit", "send-offsets"}, 10, "those two are left")
    assert bench.committer.stop(60)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


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
    bench.committed.clear()
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
