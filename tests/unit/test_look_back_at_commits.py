"""A transaction that Kafka has acknowledged is looked at again when a connection is lost after it: its coordinator may have died.

It may have been killed before it had told all partitions, and have forgotten that when it came back. Our next transaction there
ends the forgotten one as well: an abort undoes what has been acknowledged, and the job that was to be retried is nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from confluent_kafka import KafkaError

from schemas.errors import CommitVanished, ReadIncomplete
from schemas.headers import Delivery, build
from schemas.lifecycle import JobStatus
from tests.support.commit_bench import Bench, kafka_error, status
from tests.support.messages import TOPICS, message
from workers.committing import recovery
from workers.outcome import Outcome, OutRecord

pytestmark = pytest.mark.worker_coordination

RETRY = next(iter(TOPICS.retry.values()))
TIMED_OUT = kafka_error(KafkaError._TIMED_OUT, retriable=True)


@dataclass
class Clock:
    """Stands still, unless a test moves it."""

    now_s: float = 0.0

    def monotonic(self) -> float:
        return self.now_s


def retried(bench: Bench, offset: int) -> None:
    """One that failed is written, and acknowledged."""
    one = message(bench.part, offset)
    onward = OutRecord(RETRY, 5, b"b/k", one.value, build(Delivery("test", 2, 1)))
    counts_as = ("test", one.priority, "retrying")
    bench.emit(Outcome(one, status(one, JobStatus.RETRYING), (onward,), counts_as=counts_as))  # type: ignore[arg-type]
    bench.tick()


def undo(bench: Bench, topic: str) -> None:
    """An abort that came later reaches what was forgotten there."""
    for transaction in bench.kafka.committed:
        transaction.records = [record for record in transaction.records if record.topic != topic]


def standing(bench: Bench, topic: str) -> int:
    return sum(record.topic == topic for one in bench.kafka.committed for record in one.records)


@pytest.mark.parametrize("gone", [RETRY, TOPICS.status])
def test_what_was_undone_is_written_again_before_anything_else(gone: str) -> None:
    bench = Bench()
    retried(bench, 0)
    undo(bench, gone)
    bench.kafka.lose_connection()
    bench.success(1)
    bench.tick()
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)
    assert (bench.stored.offset, bench.counted) == (2, 2), "and nothing is counted twice"
    assert bench.events["torn_transactions"] == 1


def test_it_is_looked_for_with_a_new_producer_since_it_was_begun() -> None:
    bench = Bench()
    bench.stamped_ms = 5_000
    retried(bench, 0)
    bench.stamped_ms = 9_000
    bench.kafka.steps.clear()
    bench.kafka.lose_connection()
    bench.success(1)
    bench.tick()
    assert bench.kafka.steps[:5] == ["metadata", "init", "read back", "look", "metadata"]
    assert bench.kafka.looked_since == [5_000]
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)


def test_one_loss_is_one_look() -> None:
    bench = Bench()
    retried(bench, 0)
    bench.kafka.lose_connection()
    bench.success(1)
    bench.tick()
    bench.success(2)
    bench.tick()
    assert bench.kafka.steps.count("look") == 1


def test_after_an_unclear_answer_the_one_before_is_looked_at_as_well() -> None:
    """The next producer has aborted what was open, and with it what was forgotten."""
    bench = Bench()
    retried(bench, 0)

    def abort_reaches_it(_: object) -> Exception:
        undo(bench, RETRY)
        return TIMED_OUT

    bench.kafka.fault("commit", abort_reaches_it)
    bench.success(1)
    bench.tick()
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)
    assert (bench.stored.offset, bench.counted) == (2, 2)


def test_offsets_that_were_undone_are_committed_again_with_what_is_missing() -> None:
    bench = Bench()
    before = bench.stored
    retried(bench, 0)
    bench.kafka.stored[bench.part.place] = before
    undo(bench, RETRY)
    bench.kafka.lose_connection()
    bench.success(2)
    bench.tick()
    assert (bench.stored.offset, bench.stored.finished) == (1, frozenset({2}))
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)
    assert bench.counted == 2


def test_more_than_the_last_one_cannot_be_undone_in_that_way() -> None:
    """Kafka has lost what all replicas had."""
    bench = Bench()
    before = bench.stored
    for offset in range(2):
        bench.success(offset)
        bench.tick()
    bench.kafka.stored[bench.part.place] = before
    bench.kafka.lose_connection()
    bench.success(2)
    with pytest.raises(CommitVanished):
        bench.tick()


def test_where_nobody_can_look_its_offsets_speak_for_it() -> None:
    bench = Bench()
    retried(bench, 0)
    bench.kafka.hidden = [ReadIncomplete(1.0)] * 100
    bench.committer._stop = True  # nobody waits for Kafka any more
    bench.kafka.lose_connection()
    bench.success(1)
    bench.tick()
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)


@pytest.mark.parametrize("waits", ["in one call", "in two calls"])
def test_what_was_in_doubt_when_kafka_went_is_looked_at_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """However long that takes: a worker that waited for more than five minutes took its last transaction for known."""
    bench = Bench()
    clock = Clock()
    monkeypatch.setattr(recovery, "time", clock)
    retried(bench, 0)
    undo(bench, RETRY)
    bench.kafka.lose_connection()

    def is_away(_: object) -> Exception | None:
        clock.now_s += 2 * recovery._DOUBTFUL_FOR_S
        return TIMED_OUT if waits == "in two calls" else None

    bench.kafka.fault("init", is_away)
    bench.success(1)
    bench.tick()
    bench.tick()
    assert (standing(bench, RETRY), standing(bench, TOPICS.status)) == (1, 2)
    assert (bench.stored.offset, bench.counted) == (2, 2)


def test_one_from_long_ago_is_beyond_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers close idle connections: that costs a producer, and no look."""
    bench = Bench()
    retried(bench, 0)
    monkeypatch.setattr(recovery, "_DOUBTFUL_FOR_S", 0.0)
    bench.kafka.lose_connection()
    bench.success(1)
    bench.tick()
    assert "look" not in bench.kafka.steps
    assert bench.stored.offset == 2
