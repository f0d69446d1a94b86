"""What has been let go is committed no more, and nothing is let go while a transaction of it is on its way or in doubt.

Kafka does not prevent it: a member that gives up partitions, and is asked for more at once, keeps its epoch, with which offsets
count whoever has the partition by then. Found by a storm (seed 12): an heir read what was committed a tenth of a second before
its predecessor's last offsets arrived, which were taken, and then were older than the heir's own; 186 jobs had two ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError

from schemas.topics import JobPriority
from tests.support.commit_bench import Bench, FakeProducer, Transaction, kafka_error
from tests.support.messages import TOPICS
from tests.support.poll_bench import Bench as PollBench
from tests.support.poll_bench import LastCommit
from workers.offsets import PartitionState

pytestmark = pytest.mark.worker_coordination

PLACE = (TOPICS.jobs[JobPriority.NORMAL], 0)
OTHER = (TOPICS.jobs[JobPriority.NORMAL], 1)


def let_go(bench: Bench, part: PartitionState) -> None:
    """As the poll thread does."""
    with bench.holdings.lock:
        part.owned = False
        bench.holdings.parts.discard(part)


def looks_when_refused(bench: Bench) -> list[bool]:
    """Whether the first partition may be let go when the commit thread waits for news of the group; it is, then."""
    seen: list[bool] = []

    def look(_timeout_s: float) -> None:
        seen.append(is_free(bench, bench.part))
        let_go(bench, bench.part)

    bench.kafka.refused = look  # type: ignore[assignment]
    return seen


def is_free(bench: Bench, part: PartitionState) -> bool:
    return bench.holdings.free({part.place}).is_set()


def test_offsets_of_a_partition_that_was_let_go_meanwhile_are_not_sent() -> None:
    bench = Bench()
    bench.kafka.fault("produce", lambda _: let_go(bench, bench.part))
    bench.success(0)
    bench.tick()
    assert "offsets" not in bench.kafka.steps
    assert "abort" in bench.kafka.steps
    assert (bench.kafka.committed, bench.counted) == ([], 0)
    assert bench.events["given_away"] == bench.events["fenced_outcomes"] == 1


def test_what_else_was_in_that_transaction_is_written_all_the_same() -> None:
    bench = Bench()
    other = bench.assign(10, number=1)
    bench.kafka.committed.clear()
    bench.kafka.fault("produce", lambda _: let_go(bench, bench.part))
    bench.success(0)
    bench.success(0, other)
    bench.tick()
    (transaction,) = bench.kafka.committed
    assert set(transaction.offsets) == {other.place}
    assert (len(transaction.records), bench.counted) == (1, 1)


def test_a_partition_is_kept_from_when_its_offsets_are_sent_to_the_end_of_the_transaction() -> None:
    bench = Bench()
    other = bench.assign(10, number=1)
    seen: list[tuple[str, bool]] = []
    for step in ("begin", "produce", "offsets", "commit"):

        def look(_: FakeProducer, step: str = step) -> None:
            seen.append((step, is_free(bench, bench.part)))
            assert is_free(bench, other), "it has nothing to do with that"

        bench.kafka.fault(step, look)
    bench.success(0)
    bench.tick()
    assert seen == [("begin", True), ("produce", True), ("offsets", False), ("commit", False)]
    assert is_free(bench, bench.part)


def test_who_is_asked_for_a_partition_gives_it_away_between_two_transactions_whatever_comes_next() -> None:
    """Whoever has much to write has always something on its way."""
    bench = Bench()
    gone: list[threading.Event] = []
    bench.kafka.fault("offsets", lambda _: gone.append(bench.holdings.let_go({bench.part.place})))
    bench.success(0)
    bench.success(1)
    bench.tick()
    assert (len(bench.kafka.committed), bench.counted) == (1, 2), "what has been sent is committed"
    assert gone[0].is_set()
    assert not bench.part.owned
    bench.success(2)
    bench.tick()
    assert len(bench.kafka.committed) == 1
    assert bench.events["fenced_outcomes"] == 1


def test_of_two_partitions_the_one_that_is_free_does_not_wait_for_the_other() -> None:
    bench = Bench()
    other = bench.assign(10, number=1)
    seen: list[tuple[bool, bool]] = []

    def look(_: FakeProducer) -> None:
        gone = bench.holdings.let_go({bench.part.place, other.place})
        seen.append((other.owned, gone.is_set()))

    bench.kafka.fault("offsets", look)
    bench.success(0)
    bench.tick()
    assert seen == [(False, False)]
    assert not bench.part.owned


def test_without_an_answer_offsets_may_still_come_until_the_next_producer_is_there() -> None:
    bench = Bench()
    seen: list[bool] = []
    waiting: list[threading.Event] = []

    def no_answer(_: FakeProducer) -> Exception:
        waiting.append(bench.holdings.free({bench.part.place}))
        return kafka_error(KafkaError._TIMED_OUT, retriable=True)

    bench.kafka.fault(
        "abort", kafka_error(KafkaError._TIMED_OUT, retriable=True)
    )  # nor does the abort get one
    bench.kafka.fault("offsets", no_answer)
    bench.kafka.fault("init", lambda _: seen.append(waiting[0].is_set()))
    bench.success(0)
    bench.tick()
    assert seen == [False]
    assert waiting[0].is_set()


def test_refused_ones_are_answered_before_anybody_waits_for_news_of_the_group() -> None:
    bench = Bench()
    seen = looks_when_refused(bench)
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.tick()
    assert seen == [True]


def test_a_commit_thread_that_has_ended_keeps_nobody_waiting() -> None:
    bench = Bench()
    seen: list[threading.Event] = []

    def fail(_: FakeProducer) -> Exception:
        seen.append(bench.holdings.free({bench.part.place}))
        return MemoryError()

    bench.committer._on_failure = lambda _: None
    bench.kafka.fault("offsets", fail)
    bench.success(0)
    bench.committer._stop = True
    bench.committer._run()
    (answered,) = seen
    assert answered.is_set()


async def test_a_partition_is_let_go_when_nothing_of_it_is_on_its_way() -> None:
    bench = PollBench()
    bench.assign(PLACE)
    bench.holdings.nothing_on_its_way.clear()
    letting_go = asyncio.create_task(bench.revoke(PLACE))
    while "cannot be let go" not in bench.steps:
        await asyncio.sleep(0)
    assert bench.steps[-1] == "cannot be let go"
    assert not letting_go.done()
    bench.holdings.nothing_on_its_way.set()
    await letting_go
    assert bench.steps[-1] == "unassign"
    assert bench.holdings.asked_for == [{PLACE}]
    assert bench.assignments.parts == {}
    assert bench.failures == []


class Answers(threading.Event):
    """Are there after so many waits; it remembers how long each might have taken."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after
        self.limits_s: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.limits_s.append(timeout)
        return len(self.limits_s) > self._after


@pytest.mark.parametrize("drains", [False, True])
async def test_who_is_asked_for_a_partition_waits_as_long_as_kafka_is_away(*, drains: bool) -> None:
    """It is still a member, told to end or not, and may be asked for more: then it keeps its epoch, and late offsets count."""
    bench = PollBench()
    bench.assign(PLACE)
    bench.holdings.nothing_on_its_way = answers = Answers(after=3)
    bench.assignments.drains = drains
    await bench.revoke(PLACE)
    assert answers.limits_s == [60.0] * 4
    assert bench.steps[-1] == "unassign"
    assert bench.failures == []


async def test_who_leaves_the_group_does_not_wait_for_long() -> None:
    """Somebody waits for its end, and may kill it."""
    bench = PollBench()
    bench.assign(PLACE)
    bench.holdings.nothing_on_its_way = answers = Answers(after=1)
    bench.assignments._closing = True
    bench.committer.last_commit = LastCommit(after=100)
    await bench.revoke(PLACE)
    assert len(bench.committer.last_commit.waited_s) == 1
    assert answers.limits_s == [10.0]
    assert bench.steps[-1] == "unassign"


async def test_a_minute_without_an_answer_ends_what_runs_elsewhere_as_well() -> None:
    """After five the group gives all of it to others, and whoever waits would not hear of that."""
    bench = PollBench()
    _, stays = bench.assign(PLACE, OTHER)
    bench.holdings.nothing_on_its_way = Answers(after=1)
    await bench.revoke(PLACE)
    assert stays.releasing
    assert bench.assignments._rejoin


# --- commits in doubt -----------------------------------------------------------------------------------------------


def look_at(
    bench: Bench, seen: list[tuple[str, bool]]
) -> Callable[..., Callable[[FakeProducer], Exception | None]]:
    """Makes faults that note whether the first partition may be let go, and fail if they are told to."""

    def look(step: str, error: Exception | None = None) -> Callable[[FakeProducer], Exception | None]:
        def note(_: FakeProducer) -> Exception | None:
            seen.append((step, is_free(bench, bench.part)))
            return error

        return note

    return look


def without_offsets(bench: Bench, producer: FakeProducer) -> Exception:
    """Of this transaction Kafka keeps the records alone, and does not say so."""
    bench.kafka.land(Transaction(records=list(producer.open.records)))
    return kafka_error(KafkaError._TIMED_OUT, retriable=True)


def test_what_kafka_has_kept_in_part_is_in_doubt_until_the_rest_is_written() -> None:
    """A campaign (seed 7) forked two jobs: the partition was let go before its owner had looked, and nobody wrote the rest."""
    bench = Bench()
    seen: list[tuple[str, bool]] = []
    look = look_at(bench, seen)

    def torn(producer: FakeProducer) -> Exception:
        seen.append(("commit", is_free(bench, bench.part)))
        return without_offsets(bench, producer)

    bench.kafka.fault("commit", torn)
    bench.kafka.fault("init", look("init"))
    bench.kafka.fault("begin", lambda _: None)
    bench.kafka.fault("begin", look("again"))
    bench.success(0)
    bench.tick()
    assert seen == [("commit", False), ("init", False), ("again", False)]
    assert is_free(bench, bench.part)
    assert bench.counted == 1
    assert bench.events["torn_transactions"] == 1


def test_of_what_kafka_has_kept_nothing_is_in_doubt_as_soon_as_that_is_known() -> None:
    """On brokers that are short of time it is tried again in ever smaller portions, which may take minutes."""
    bench = Bench()
    seen: list[tuple[str, bool]] = []
    look = look_at(bench, seen)
    bench.kafka.fault("commit", look("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True)))
    bench.kafka.fault("init", look("init"))
    bench.kafka.fault("begin", lambda _: None)
    bench.kafka.fault("begin", look("again"))
    bench.success(0)
    bench.tick()
    assert seen == [("commit", False), ("init", False), ("again", True)]
    assert bench.counted == 1


def test_what_was_lost_while_its_offsets_were_sent_is_not_committed() -> None:
    bench = Bench()
    bench.kafka.fault("offsets", lambda _: let_go(bench, bench.part))
    bench.success(0)
    bench.tick()
    assert "abort" in bench.kafka.steps
    assert (bench.kafka.committed, bench.counted) == ([], 0)


def test_stale_metadata_end_the_doubt_before_anybody_waits_for_news_of_the_group() -> None:
    """Who would bring them may be waiting for this."""
    bench = Bench()
    seen = looks_when_refused(bench)
    bench.kafka.fault("commit", lambda producer: without_offsets(bench, producer))
    bench.kafka.fault("offsets", lambda _: None)
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.tick()
    assert seen == [True]


async def test_a_minute_without_an_answer_ends_what_runs_elsewhere_also_where_a_rejoin_is_due_already() -> (
    None
):
    bench = PollBench()
    _, stays = bench.assign(PLACE, OTHER)
    bench.holdings.nothing_on_its_way = Answers(after=1)
    bench.assignments.rejoin()
    await bench.revoke(PLACE)
    assert stays.releasing


async def test_a_last_commit_may_be_as_late_as_the_one_before_it() -> None:
    bench = PollBench()
    (part,) = bench.assign(PLACE)
    bench.committer.last_commit = LastCommit(after=1)
    bench.holdings.nothing_on_its_way.clear()
    letting_go = asyncio.create_task(bench.revoke(PLACE))
    while "not free" not in bench.steps:
        await asyncio.sleep(0)
    assert part.owned, "or nobody would write what is missing"
    bench.holdings.nothing_on_its_way.set()
    await letting_go
    assert bench.committer.last_commit.waited_s[-1] == 3.0, "and the last commit is still to come"
    assert bench.assignments.parts == {}
    assert bench.steps[-1] == "unassign"
    assert bench.failures == []


async def test_a_last_commit_that_is_only_late_is_not_waited_for_any_longer() -> None:
    bench = PollBench()
    bench.assign(PLACE)
    bench.committer.last_commit = LastCommit(after=1)
    await bench.revoke(PLACE)
    assert len(bench.committer.last_commit.waited_s) == 1
    assert bench.steps[-1] == "unassign"


async def test_one_with_always_something_on_its_way_lets_go_all_the_same() -> None:
    bench = PollBench()
    bench.assign(PLACE)
    bench.committer.last_commit = LastCommit(after=100)
    bench.holdings.nothing_on_its_way = Alternates()
    await bench.revoke(PLACE)
    assert len(bench.committer.last_commit.waited_s) == 4
    assert bench.steps[-1] == "unassign"


class Alternates(threading.Event):
    """Never set when it is looked at, and set by whoever waits for it."""

    def wait(self, timeout: float | None = None) -> bool:
        return True
