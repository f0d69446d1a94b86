"""What is left to write of a transaction of which Kafka has kept a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import pytest
from confluent_kafka import KafkaError

from schemas.errors import GroupNotInitialised, KafkaUnreachable, ReadIncomplete
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap
from schemas.partitions import partition_of
from streams.clients import KafkaRefused
from streams.visible import Written, places_of
from tests.support.commit_bench import Bench, FakeProducer, Transaction, kafka_error, status, succeeded
from tests.support.messages import TOPICS, committed, message, partition
from workers.committing import standing as standing_module
from workers.committing.torn import Left, WrittenOutcome, what_is_left
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome, OutRecord
from workers.testing import MemoryKafka

pytestmark = [pytest.mark.worker_coordination]

TIERS = list(TOPICS.retry.values())


def retry_of(one: Message, state: JobStatus = JobStatus.RETRYING) -> Outcome:
    """A job that failed: a status and a record."""
    record = OutRecord(TIERS[0], 0, b"k", one.value, [("rfw-delivery", b"1")])
    return Outcome(
        one,
        status(one, state),
        (record,),
        counts_as=("test", one.priority, state.value),  # type: ignore[arg-type]
    )


def written(outcome: Outcome) -> WrittenOutcome:
    """Some bytes for its status, and its records as they are."""
    told = Written("t.jobs.status", -1, b"id", repr(outcome.status).encode()) if outcome.status else None
    return told, tuple(Written.of(r.topic, r.partition, r.key, r.value, r.headers) for r in outcome.records)


def owned_map(part: PartitionState, *finished: int) -> OffsetMap:
    """Ours, with these finished."""
    return replace(
        committed(), finished=frozenset(finished), incarnation=part.incarnation, fence=part.fence, clean=False
    )


def left_of(
    outcomes: list[Outcome], read: OffsetMap, visible: Collection[Written] | None
) -> tuple[Left, PartitionState]:
    one = outcomes[0].message or outcomes[0].owner
    assert one is not None
    return what_is_left(outcomes, [written(o) for o in outcomes], {one.part.place: read}, visible), one.part


@pytest.fixture
def part() -> PartitionState:
    return partition()


def test_of_a_whole_commit_nothing_is_left(part: PartitionState) -> None:
    outcome = retry_of(message(part, 3))
    told, records = written(outcome)
    left, _ = left_of([outcome], owned_map(part, 3), {told, *records})  # type: ignore[arg-type]
    assert left == Left(standing=[outcome])


def test_an_outcome_of_which_nothing_stands_is_written_whole(part: PartitionState) -> None:
    outcome = retry_of(message(part, 3))
    left, _ = left_of([outcome], owned_map(part), set())
    assert left == Left(missing=[outcome])
    assert left.missing[0] is outcome


@pytest.mark.parametrize("seen", ["status", "record", "both"])
def test_what_is_seen_of_an_unfinished_one_is_not_written_again(part: PartitionState, seen: str) -> None:
    outcome = retry_of(message(part, 3))
    told, records = written(outcome)
    visible = {"status": {told}, "record": {*records}, "both": {told, *records}}[seen]
    left, _ = left_of([outcome], owned_map(part), visible)  # type: ignore[arg-type]
    (rest,) = left.missing
    assert rest.message is outcome.message, "its offset goes with the rest"
    assert rest.counts_as == outcome.counts_as
    assert (rest.status is None, rest.records == ()) == (seen != "record", seen != "status")
    assert left.torn == 1


@pytest.mark.parametrize("seen", ["nothing", "status", "record"])
def test_what_is_missing_of_a_finished_one_is_written_without_its_offset(
    part: PartitionState, seen: str
) -> None:
    outcome = retry_of(message(part, 3))
    told, records = written(outcome)
    visible = {"nothing": set(), "status": {told}, "record": {*records}}[seen]
    left, _ = left_of([outcome], owned_map(part, 3), visible)  # type: ignore[arg-type]
    (rest,) = left.missing
    assert (rest.message, rest.owner, rest.late) == (None, outcome.message, True)
    assert (rest.status is None, rest.records == ()) == (seen == "status", seen == "record")
    assert left.torn == 1
    again, _ = left_of([rest], owned_map(part, 3), set())
    assert again == Left(missing=[rest]), "as often as it takes"
    done, _ = left_of([rest], owned_map(part, 3), {told, *records})  # type: ignore[arg-type]
    assert done == Left(standing=[rest])


def test_a_job_whose_end_is_seen_is_not_told_to_run(part: PartitionState) -> None:
    one = message(part, 3)
    running = Outcome(None, status(one, JobStatus.RUNNING), owner=one)
    end = succeeded(one)
    told, _ = written(end)
    left, _ = left_of([running, end], owned_map(part), {told})  # type: ignore[arg-type]
    assert [rest.message for rest in left.missing] == [one]


def test_news_of_a_job_that_goes_on_is_told_again(part: PartitionState) -> None:
    one = message(part, 3)
    running = Outcome(None, status(one, JobStatus.RUNNING), owner=one)
    left, _ = left_of([running], owned_map(part), set())
    assert left == Left(missing=[running])


@pytest.mark.parametrize("owned", [True, False])
def test_what_somebody_else_has_finished_is_not_written(part: PartitionState, *, owned: bool) -> None:
    """We may not know yet that the partition is lost."""
    part.owned = owned
    heirs = replace(owned_map(part, 3), incarnation="heir", fence=part.fence + 1)
    left, _ = left_of([retry_of(message(part, 3))], heirs, set())
    assert left == Left()


def test_what_we_have_finished_in_a_partition_that_is_lost_nobody_else_will_write(
    part: PartitionState,
) -> None:
    part.owned = False
    outcome = retry_of(message(part, 3))
    left, _ = left_of([outcome], owned_map(part, 3), set())
    (rest,) = left.missing
    assert rest.late
    assert left_of([outcome], owned_map(part), set())[0] == Left(), "an heir runs it again"


def test_where_nobody_can_look_the_offsets_speak(part: PartitionState) -> None:
    finished, unfinished = retry_of(message(part, 3)), retry_of(message(part, 4))
    left, _ = left_of([finished, unfinished], owned_map(part, 3), None)
    assert left == Left(standing=[finished], missing=[unfinished])


# --- in the commit thread -------------------------------------------------------------------------------------------

TIMED_OUT = kafka_error(KafkaError._TIMED_OUT, retriable=True)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def forbidden() -> KafkaRefused:
    error = KafkaRefused("no")
    error.__cause__ = kafka_error(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    return error


def tear(bench: Bench, *, offsets: bool, statuses: bool, records: bool) -> None:
    """The next commit lands in part, and is not answered."""

    def lands(producer: FakeProducer) -> Exception:
        whole = producer.open
        kept = [s for s in whole.records if (statuses if s.topic == TOPICS.status else records)]
        bench.kafka.land(Transaction(kept, whole.offsets if offsets else {}, whole.metadata))
        return TIMED_OUT

    bench.kafka.fault("commit", lands)


@pytest.mark.parametrize(
    ("offsets", "statuses", "records"),
    [
        (offsets, statuses, records)
        for offsets in (False, True)
        for statuses in (False, True)
        for records in (False, True)
    ],
)
def test_a_torn_transaction_is_completed_without_repeats(
    *, offsets: bool, statuses: bool, records: bool
) -> None:
    bench = Bench()
    tear(bench, offsets=offsets, statuses=statuses, records=records)
    bench.success(0)
    bench.emit(retry_of(message(bench.part, 1)))
    bench.tick()
    assert sorted(change.state for change in bench.kafka.statuses) == [
        JobStatus.RETRYING,
        JobStatus.SUCCEEDED,
    ]
    sent = [s.topic for one in bench.kafka.committed for s in one.records if s.topic != TOPICS.status]
    assert sent == [TIERS[0]]
    assert bench.stored.offset == 2
    assert bench.counted == 2
    assert ("torn_transactions" in bench.events) is not (offsets == statuses == records)


def test_the_rest_is_looked_for_again_if_its_own_transaction_is_torn() -> None:
    bench = Bench()
    tear(bench, offsets=True, statuses=False, records=False)
    tear(bench, offsets=False, statuses=True, records=False)
    bench.emit(retry_of(message(bench.part, 0)))
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == [JobStatus.RETRYING]
    assert [s.topic for one in bench.kafka.committed for s in one.records] == [TOPICS.status, TIERS[0]]
    assert bench.counted == 1


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_word_on_the_way_is_not_said_late_where_others_may_have_said_the_last_one(*, goes_on: bool) -> None:
    """The retry stands, and the partition is lost while that is looked at: its heir may have run it by now."""
    bench = Bench()
    tear(bench, offsets=True, statuses=False, records=True)
    look = bench.committer._recovery._standing._read_visible

    def lost_meanwhile(records: Collection[Written], since_ms: int) -> set[Written]:
        bench.part.owned = False
        return look(records, since_ms)

    bench.committer._recovery._standing._read_visible = lost_meanwhile
    if goes_on:
        bench.emit(retry_of(message(bench.part, 0)))
    else:
        bench.success(0)
    bench.tick()
    assert [change.state for change in bench.kafka.statuses] == ([] if goes_on else [JobStatus.SUCCEEDED])


def test_what_hides_the_records_is_waited_for() -> None:
    bench = Bench()
    bench.kafka.hidden = [ReadIncomplete(5), KafkaUnreachable("nowhere", 5)]
    tear(bench, offsets=False, statuses=True, records=True)
    bench.success(0)
    bench.tick()
    assert bench.kafka.steps.count("look") == 3
    assert len(bench.kafka.statuses) == 1
    assert "unverified_commits" not in bench.events


@pytest.mark.parametrize("why", ["refused", "stopped", "for too long"])
def test_hidden_records_are_given_up_after_a_while_and_counted(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A user who may not read statuses, for one: then it is as it was, and a count says so."""
    bench = Bench()
    bench.kafka.hidden = [forbidden()] if why == "refused" else [ReadIncomplete(5)] * 9
    if why == "for too long":
        monkeypatch.setattr(standing_module, "_PATIENCE_TO_SEE_S", -1.0)
    bench.committer._stop = why == "stopped"
    bench.kafka.fault("commit", TIMED_OUT)
    bench.success(0)
    bench.tick()
    assert bench.kafka.steps.count("look") == 1
    assert len(bench.kafka.statuses) == 1
    assert bench.events["unverified_commits"] == 1


def test_it_is_looked_for_since_it_was_tried_first(bench: Bench) -> None:
    """And after a look that came to something, since that: what was there by then is not written again."""

    def late(_: FakeProducer) -> Exception:
        bench.stamped_ms += 1_000
        return TIMED_OUT

    for _ in range(3):
        bench.kafka.fault("commit", late)
    bench.success(0)
    bench.tick()
    assert bench.kafka.looked_since == [1_000, 2_000, 3_000]


def test_after_a_look_that_came_to_nothing_it_is_still_looked_for_since_the_first_try(bench: Bench) -> None:
    def late(_: FakeProducer) -> Exception:
        bench.stamped_ms += 1_000
        return TIMED_OUT

    bench.kafka.fault("commit", late)
    bench.kafka.fault("commit", late)
    bench.kafka.hidden = [forbidden()]
    bench.success(0)
    bench.tick()
    assert bench.kafka.looked_since == [1_000, 1_000]


@pytest.mark.parametrize("readable", [True, False])
def test_a_partition_that_is_lost_meanwhile_holds_up_nobody(bench: Bench, *, readable: bool) -> None:
    """Its heir's map may be of a newer version; what we have finished there is written if it can be known."""
    lost = bench.assign(5, number=1)
    read_back = bench.kafka.read_back

    def careful(places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], OffsetMap]:
        wanted = list(places)
        if lost.place in wanted and not readable:
            assert wanted == [lost.place]
            raise GroupNotInitialised("it begins with '9'")
        return read_back(wanted)

    def lands(producer: FakeProducer) -> Exception:
        bench.kafka.land(Transaction([], producer.open.offsets))
        lost.owned = False
        return TIMED_OUT

    bench.committer._recovery._standing._read_back = careful
    bench.kafka.committed.clear()
    bench.kafka.fault("commit", lands)
    bench.success(0)
    bench.success(0, lost)
    bench.tick()
    assert len(bench.kafka.statuses) == 1 + readable


# --- where to look ----------------------------------------------------------------------------------------------------


def test_records_are_looked_for_where_they_would_stand() -> None:
    every = [("a", number) for number in range(12)] + [("b", 0), ("b", 1)]
    assert places_of([Written("a", 5, b"k", None)], every) == {("a", 5)}
    assert places_of([Written("a", -1, b"k", None)], every) == {("a", partition_of(b"k", 12))}
    assert places_of([Written("b", -1, None, None)], every) == {("b", 0), ("b", 1)}


# --- the Kafka in memory does it as well ------------------------------------------------------------------------------


def test_a_part_of_a_transaction_is_committed_and_the_rest_aborted() -> None:
    kafka = MemoryKafka()
    kafka.create_topic("t", 2)
    producer = kafka.producer("id")
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce("t", b"kept", partition=0)
    producer.produce("t", b"gone", partition=1)
    kafka.tear("id", producer.producer_id, producer.epoch, lambda place: place == ("t", 0))
    assert [record.value for record in kafka.records("t")] == [b"kept"]
    assert kafka.log(("t", 1)).stable_end == 0, "the rest is still open"
    kafka.producer("id").init_transactions()
    assert [record.value for record in kafka.records("t")] == [b"kept"]
    assert kafka.log(("t", 1)).stable_end == 2
