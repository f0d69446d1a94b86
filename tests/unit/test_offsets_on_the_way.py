"""What has been let go is committed no more, and nothing is let go while offsets of it are on their way.

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
from tests.support.commit_bench import Bench, FakeProducer, kafka_error
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


def are_answered(bench: Bench, part: PartitionState) -> bool:
    return bench.holdings.answered({part.place}).is_set()


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


def test_they_are_on_their_way_from_the_question_to_the_answer() -> None:
    bench = Bench()
    other = bench.assign(10, number=1)
    seen: list[tuple[str, bool]] = []
    for step in ("begin", "produce", "offsets", "commit"):

        def look(_: FakeProducer, step: str = step) -> None:
            seen.append((step, are_answered(bench, bench.part)))
            assert are_answered(bench, other), "it has nothing to do with that"

        bench.kafka.fault(step, look)
    bench.success(0)
    bench.tick()
    assert seen == [("begin", True), ("produce", True), ("offsets", False), ("commit", True)]


def test_without_an_answer_they_may_still_come_until_the_next_producer_is_there() -> None:
    bench = Bench()
    seen: list[bool] = []
    waiting: list[threading.Event] = []

    def no_answer(_: FakeProducer) -> Exception:
        waiting.append(bench.holdings.answered({bench.part.place}))
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
    seen: list[bool] = []

    def look(_timeout_s: float) -> None:
        seen.append(are_answered(bench, bench.part))
        let_go(bench, bench.part)

    bench.kafka.refused = look  # type: ignore[assignment]
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.tick()
    assert seen == [True]


def test_a_commit_thread_that_has_ended_keeps_nobody_waiting() -> None:
    bench = Bench()
    seen: list[threading.Event] = []

    def fail(_: FakeProducer) -> Exception:
        seen.append(bench.holdings.answered({bench.part.place}))
        return MemoryError()

    bench.committer._on_failure = lambda _: None
    bench.kafka.fault("offsets", fail)
    bench.success(0)
    bench.committer._stop = True
    bench.committer._run()
    (answered,) = seen
    assert answered.is_set()


async def test_a_partition_is_let_go_when_they_have_been_answered() -> None:
    bench = PollBench()
    (part,) = bench.assign(PLACE)
    bench.holdings.answers.clear()
    letting_go = asyncio.create_task(bench.revoke(PLACE))
    while "offsets are on their way" not in bench.steps:
        await asyncio.sleep(0)
    assert not part.owned, "no new ones are sent"
    assert bench.steps[-1] == "offsets are on their way"
    assert not letting_go.done()
    bench.holdings.answers.set()
    await letting_go
    assert bench.steps[-1] == "unassign"
    assert bench.holdings.asked_for == [{PLACE}]
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
    bench.holdings.answers = answers = Answers(after=3)
    bench.assignments.drains = drains
    await bench.revoke(PLACE)
    assert answers.limits_s == [60.0] * 4
    assert bench.steps[-1] == "unassign"
    assert bench.failures == []


async def test_who_leaves_the_group_does_not_wait_for_long() -> None:
    """Kafka takes nothing of one that is no member."""
    bench = PollBench()
    bench.assign(PLACE)
    bench.holdings.answers = answers = Answers(after=1)
    bench.assignments._closing = True
    await bench.revoke(PLACE)
    assert answers.limits_s == [3.0]
    assert bench.steps[-1] == "unassign"


async def test_a_minute_without_an_answer_ends_what_runs_elsewhere_as_well() -> None:
    """After five the group gives all of it to others, and whoever waits would not hear of that."""
    bench = PollBench()
    _, stays = bench.assign(PLACE, OTHER)
    bench.holdings.answers = Answers(after=1)
    await bench.revoke(PLACE)
    assert stays.releasing
    assert bench.assignments._rejoin


# --- commits in doubt -----------------------------------------------------------------------------------------------


def is_certain(bench: Bench, part: PartitionState) -> bool:
    return bench.holdings.beyond_doubt({part.place}).is_set()


def test_a_commit_is_in_doubt_from_when_it_is_asked_for_until_what_follows_is_done() -> None:
    """A campaign (seed 7) forked two jobs: Kafka had kept a part of it, and the partition was let go before its owner had looked."""
    bench = Bench()
    other = bench.assign(10, number=1)
    seen: list[tuple[str, bool]] = []

    def look(step: str, error: Exception | None = None) -> Callable[[FakeProducer], Exception | None]:
        def note(_: FakeProducer) -> Exception | None:
            seen.append((step, is_certain(bench, bench.part)))
            assert is_certain(bench, other), "it has nothing to do with that"
            return error

        return note

    bench.kafka.fault("offsets", look("offsets"))
    bench.kafka.fault("commit", look("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True)))
    bench.kafka.fault("init", look("init"))
    bench.kafka.fault("begin", lambda _: None)
    bench.kafka.fault("begin", look("again"))
    bench.success(0)
    bench.tick()
    assert seen == [("offsets", True), ("commit", False), ("init", False), ("again", False)]
    assert is_certain(bench, bench.part)
    assert bench.counted == 1


def test_what_was_given_away_while_its_offsets_were_sent_is_not_committed() -> None:
    """Offsets that are answered may be let go; the transaction goes on, and nobody would write what is missing of it."""
    bench = Bench()
    bench.kafka.fault("offsets", lambda _: let_go(bench, bench.part))
    bench.success(0)
    bench.tick()
    assert "abort" in bench.kafka.steps
    assert (bench.kafka.committed, bench.counted) == ([], 0)


def test_stale_metadata_end_the_doubt_before_anybody_waits_for_news_of_the_group() -> None:
    """Who would bring them may be waiting for this."""
    bench = Bench()
    seen: list[bool] = []

    def look(_timeout_s: float) -> None:
        seen.append(is_certain(bench, bench.part))
        let_go(bench, bench.part)

    bench.kafka.refused = look  # type: ignore[assignment]
    bench.kafka.fault("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True))
    bench.kafka.fault("offsets", lambda _: None)
    bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    bench.success(0)
    bench.tick()
    assert seen == [True]


async def test_a_partition_is_not_let_go_while_a_commit_of_it_is_in_doubt() -> None:
    bench = PollBench()
    (part,) = bench.assign(PLACE)
    bench.committer.last_commit = LastCommit(after=1)
    bench.holdings.certain.clear()
    letting_go = asyncio.create_task(bench.revoke(PLACE))
    while "a commit is in doubt" not in bench.steps:
        await asyncio.sleep(0)
    assert part.owned, "or nobody would write what is missing"
    bench.holdings.certain.set()
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
