"""The commit thread and answers that cannot be trusted: stale metadata, ambiguous commits, producers to replace."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import pytest
from confluent_kafka import KafkaError, KafkaException
from structlog.testing import capture_logs

from schemas.errors import CommitVanished, KafkaUnreachable
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap
from schemas.topics import Partition
from streams.offset_sender import OffsetSender
from tests.support.commit_bench import (
    Bench,
    FakeProducer,
    kafka_error,
    status,
    told,
)
from tests.support.messages import message, partition
from tests.support.waiting import eventually
from workers.committing import transactions as transactions_module
from workers.committing.transactions import NobodyWaits
from workers.offsets import PartitionState
from workers.outcome import COMMIT_REQUEST, Outcome

pytestmark = pytest.mark.worker_coordination


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
def test_after_refused_metadata_the_filter_looks_again_before_they_are_sent_again(code: int) -> None:
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
    assert bench.kafka.steps[6:8] == ["refused", "metadata"]
    (transaction,) = bench.kafka.committed
    assert (transaction.metadata, list(transaction.offsets)) == (1, [(bench.part.topic, 0)])
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
    for offset in range(2):
        bench.success(offset)
        bench.tick()

    def forgets(_: FakeProducer) -> Exception:
        bench.kafka.stored[bench.part.topic, bench.part.partition] = before
        return TIMED_OUT

    bench.kafka.fault("commit", forgets)
    bench.success(2)
    with pytest.raises(CommitVanished, match="has lost a transaction"):
        bench.tick()
    assert len(bench.kafka.statuses) == 2


@pytest.mark.parametrize(("fence_more", "incarnation"), [(1, "me"), (0, "heir"), (5, "heir")])
def test_a_partition_for_which_an_heir_has_committed_is_given_up(fence_more: int, incarnation: str) -> None:
    """A coordinator had forgotten that it was ours; nobody has told us, and what we know of it is worth nothing any more."""
    bench = Bench()
    other = bench.assign(5, number=1)
    heirs = replace(
        bench.stored,
        offset=4,
        fence=bench.part.fence + fence_more,
        incarnation=incarnation,
        finished=frozenset(),
    )

    def takes_it(_: FakeProducer) -> Exception:
        bench.kafka.stored[bench.part.topic, bench.part.partition] = heirs
        return TIMED_OUT

    bench.kafka.committed.clear()
    bench.kafka.fault("commit", takes_it)
    bench.success(1)
    bench.success(2, other)
    bench.tick()
    assert (bench.part.owned, other.owned) == (False, True)
    assert bench.kafka.steps.count("rejoin") == 1
    assert [list(transaction.fences.values()) for transaction in bench.kafka.committed] == [[{1}]]


def test_newer_metadata_are_tried_for_what_nobody_else_has_committed_for() -> None:
    """The coordinator may have given one away, and back again, before we heard of it."""
    bench = Bench()
    other = bench.assign(5, number=1)
    bench.kafka.stored[other.place] = replace(bench.kafka.stored[other.place], fence=other.fence + 1)
    bench.kafka.offered = [7]
    bench.kafka.committed.clear()
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.success(0, other)
    bench.tick()
    assert (bench.part.owned, other.owned) == (True, False)
    assert bench.kafka.steps.count("rejoin") == 1
    assert [transaction.fences for transaction in bench.kafka.committed] == [{7: {0}}]


def test_what_comes_while_newer_metadata_are_asked_for_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With older ones Kafka refuses it, and everything else of the same transaction."""
    bench = Bench()
    came: list[PartitionState] = []

    def comes_meanwhile(
        ours: Collection[Partition], lost: Collection[Partition]
    ) -> dict[Partition, OffsetMap] | None:
        if came:
            return asked(ours, lost)
        came.append(partition(number=1))
        came[0].metadata = 9
        bench.holdings.parts.add(came[0])
        return None  # no answer yet: it is asked again

    asked = bench.committer._recovery._standing.committed
    monkeypatch.setattr(bench.committer._recovery._standing, "committed", comes_meanwhile)
    bench.committer._recovery.go_on_with(7, [])
    assert came[0].metadata == 9
    assert bench.part.metadata == 7


def test_what_is_committed_by_our_predecessor_is_no_heirs() -> None:
    bench = Bench()
    bench.kafka.stored[bench.part.topic, bench.part.partition] = replace(
        bench.stored, fence=bench.part.fence - 1, incarnation="gone"
    )
    bench.kafka.fault("commit", TIMED_OUT)
    bench.part.dirty = True
    bench.tick()
    assert bench.part.owned
    assert "rejoin" not in bench.kafka.steps


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
    """Either Kafka is away, or our own transaction stays open: an end of what Kafka has forgotten, and a new producer."""
    bench = Bench()
    bench.kafka.fault("commit", TIMED_OUT)
    bench.kafka.unreadable = [KafkaUnreachable("the group's coordinator", 8.0)]
    bench.success(0)
    bench.tick()
    after = bench.kafka.steps[bench.kafka.steps.index("commit") + 1 :]
    assert after[:5] == ["init", "read back", "end forgotten", "init", "read back"]
    assert len(bench.kafka.statuses) == 1


def test_at_the_end_what_stands_is_asked_for_once() -> None:
    bench = Bench()
    bench.kafka.fault("commit", TIMED_OUT)
    bench.kafka.unreadable = [KafkaUnreachable("the group's coordinator", 8.0)] * 9
    bench.committer._stop = True
    bench.success(0)
    with pytest.raises(NobodyWaits):
        bench.tick()


@pytest.mark.parametrize("away", ["for a producer", "for what is committed"])
def test_a_worker_that_leaves_while_kafka_is_away_has_not_failed_and_says_what_runs_again(away: str) -> None:
    """Its command would exit with an error each time that both are stopped together."""
    bench = Bench()
    bench.committer._stop = True
    bench.kafka.fault("commit", TIMED_OUT)
    bench.kafka.unreadable = [KafkaUnreachable("the group's coordinator", 8.0)] * 9
    if away == "for a producer":
        bench.kafka.fault("init", lambda _: None)  # that with which the thread begins
        bench.kafka.fault("init", TIMED_OUT)
    bench.success(0)
    bench.committer.emit(COMMIT_REQUEST)
    failures: list[BaseException] = []
    bench.committer._on_failure = failures.append
    with capture_logs() as logs:
        bench.committer._run()
    assert failures == []
    assert [line["log_level"] for line in logs if line["event"].startswith("no Kafka at the end")] == [
        "warning"
    ]


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


@pytest.mark.parametrize(
    "faults",
    [
        {"commit": kafka_error(KafkaError._TIMED_OUT)},
        {"offsets": kafka_error(KafkaError._TRANSPORT, abort=True)},
        {
            "offsets": kafka_error(KafkaError._TRANSPORT, abort=True),
            "abort": kafka_error(KafkaError.INVALID_TXN_STATE),
        },
        {"commit": kafka_error(KafkaError._TIMED_OUT), "init": kafka_error(KafkaError._TIMED_OUT)},
    ],
    ids="+".join,
)
def test_a_producer_that_is_replaced_ends_in_a_thread_of_its_own(faults: dict[str, Exception]) -> None:
    """librdkafka's end of it may take for ever; where the collector of garbage ends it, a lock may be held."""
    bench = Bench()
    for step, error in faults.items():
        bench.kafka.fault(step, error)
    bench.success(0)
    gc.collect()
    bench.kafka.ended_in.clear()
    gc.disable()
    try:
        bench.tick()
        replaced = bench.kafka.producers - 1
        eventually(lambda: len(bench.kafka.ended_in) == replaced, 10, "nobody keeps them")
    finally:
        gc.enable()
    assert set(bench.kafka.ended_in) == {"end of a producer"}
    assert len(bench.kafka.statuses) == 1


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


def test_what_happens_to_a_producer_that_was_replaced_is_no_news_of_its_successor() -> None:
    bench = Bench()
    replaced = bench.kafka.logger
    bench.kafka.fault("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True))
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert replaced is not None

    def late_news(_: FakeProducer) -> None:
        replaced.log(logging.INFO, "FAIL [thrd:main]: Disconnected (after 3 ms)")

    bench.kafka.fault("commit", late_news)
    bench.success(1)
    bench.tick()
    assert bench.kafka.producers == 2


def test_a_connection_lost_before_the_transaction_makes_a_new_producer() -> None:
    """librdkafka tells of such a loss twice in half a minute: of the third one, in a transaction, nobody would hear."""
    bench = Bench()
    for offset in range(3):
        bench.kafka.lose_connection()
        bench.success(offset)
        bench.tick()
    assert bench.kafka.producers == 4
    assert len(bench.kafka.statuses) == 3
    assert bench.committer.counters.events.get("ambiguous", 0) == 0


@pytest.mark.parametrize(("losses", "producers"), [(1, 2), (2, 3)])
def test_a_producer_that_has_lost_two_connections_by_its_beginning_is_not_used(
    losses: int, producers: int
) -> None:
    """Of the third one, in its first transaction, nobody would hear."""
    bench = Bench()

    def loses(_: FakeProducer) -> None:
        for _number in range(losses):
            bench.kafka.lose_connection()

    bench.kafka.fault("init", loses)
    bench.kafka.lose_connection()
    bench.success(0)
    bench.tick()
    assert (bench.kafka.producers, len(bench.kafka.statuses)) == (producers, 1)


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


@pytest.mark.parametrize("polls_before", [0, 1])
def test_what_ends_a_producer_between_two_calls_costs_it_and_not_the_worker(polls_before: int) -> None:
    """librdkafka's fatal errors are raised by ``poll``, whatever asked for it: before a transaction, or after a commit."""
    bench = Bench()
    for _ in range(polls_before):
        bench.kafka.fault("poll", lambda _: None)
    bench.kafka.fault("poll", kafka_error(KafkaError._UNSUPPORTED_FEATURE, fatal=True))
    bench.success(0)
    bench.tick()
    assert bench.kafka.producers == 2
    assert len(bench.kafka.statuses) == 1, "once"


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
    with pytest.raises(NobodyWaits):
        bench.committer._transactions.renew()


def test_a_call_that_librdkafka_never_ends_is_left_behind_and_a_new_producer_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen with three brokers: the group's coordinator was killed, and the worker stood still until it was back."""
    monkeypatch.setattr(transactions_module, "_OFFSETS_TIMEOUT_S", 0.05)
    bench = Bench()
    bench.committer._transactions._offsets = OffsetSender(grace_s=0.05)
    coordinator_back = threading.Event()

    def stands_still(producer: FakeProducer) -> None:
        producer.kafka.fault("abort", kafka_error(KafkaError._CONFLICT))
        assert coordinator_back.wait(30)

    bench.kafka.fault("offsets", stands_still)
    bench.success(0)
    bench.tick()
    coordinator_back.set()

    assert bench.kafka.producers == 2
    assert len(bench.kafka.statuses) == 1
    assert (bench.stored.offset, bench.counted) == (1, 1)
    assert bench.events["ambiguous_commits"] == 1


# --- partitions that come back while a transaction for them is under way ----------------------------------------------


def of(bench: Bench) -> set[tuple[str, int]]:
    return {(bench.part.topic, bench.part.partition)}


@pytest.mark.parametrize("step", ["begin", "produce", "offsets", "commit"])
def test_what_is_committed_is_settled_when_the_transaction_has_ended(step: str) -> None:
    bench = Bench()
    seen: list[threading.Event] = []
    bench.kafka.fault(step, lambda _: seen.append(bench.holdings.settled(of(bench))))
    bench.success(0)
    assert bench.holdings.settled(of(bench)).is_set()
    bench.tick()
    (settled,) = seen
    assert settled.is_set()
    assert bench.holdings.settled(of(bench)).is_set()


@pytest.mark.parametrize("step", ["begin", "produce", "offsets", "commit"])
def test_partitions_stay_unsettled_while_their_transaction_is_open(step: str) -> None:
    """Nor do partitions wait that have nothing to do with it."""
    bench = Bench()
    seen: list[tuple[bool, bool]] = []

    def look(_: FakeProducer) -> None:
        other = bench.holdings.settled({(bench.part.topic, 7)})
        seen.append((bench.holdings.settled(of(bench)).is_set(), other.is_set()))

    bench.kafka.fault(step, look)
    bench.success(0)
    bench.tick()
    assert seen == [(False, True)]


def test_an_aborted_transaction_is_settled_before_news_of_the_group_is_waited_for() -> None:
    """The thread that has it is the one that waits here."""
    bench = Bench()
    seen: list[bool] = []

    def look(timeout_s: float) -> None:
        bench.part.owned = False
        seen.append(bench.holdings.settled(of(bench)).is_set())

    bench.kafka.refused = look  # type: ignore[method-assign]
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.tick()
    assert seen == [True]
    assert bench.kafka.committed == []


def test_an_ambiguous_one_is_settled_by_the_next_producer_and_not_before() -> None:
    bench = Bench()
    seen: list[bool] = []

    def look(_: object) -> None:
        seen.append(bench.holdings.settled(of(bench)).is_set())

    def read_back(places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        look(places)
        return bench.kafka.read_back(places)

    bench.kafka.fault("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True))
    bench.kafka.fault("init", look)
    bench.committer._recovery._standing._read_back = read_back
    bench.success(0)
    bench.tick()
    assert seen == [False, True]


def test_a_commit_thread_that_has_ended_settles_everything() -> None:
    bench = Bench()
    seen: list[threading.Event] = []

    def fail(_: FakeProducer) -> Exception:
        seen.append(bench.holdings.settled(of(bench)))
        return MemoryError()

    bench.kafka.fault("commit", fail)
    bench.committer._on_failure = lambda _: None
    bench.success(0)
    bench.committer.start()
    assert bench.committer.stop(10)
    assert seen[0].wait(0)
