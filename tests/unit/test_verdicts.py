"""Jobs that wait until it is known whether the worker that ran them alone is dead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.offsetmap import OffsetMap, Suspect
from tests.support.messages import TOPICS, commit, message, partition
from tests.support.schedule_bench import NORMAL, NOW_MS, arrive, open_partition, take
from workers.liveness.survivors import Signs
from workers.liveness.verdicts import Verdicts
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination

LOST_MS, PATIENCE_MS, NOTICED_MS = 100_000, 30_000, 10_500
#: Kafka was there until it was lost, and a session later it was missed.
SEEN = {"frozen": LOST_MS - NOTICED_MS}


class Bench:
    """Verdicts on a real scheduler; the test says what the reports say, and what time it is."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.signs = Signs({}, last=SEEN)
        self.now_ms = LOST_MS
        self.asked: list[Mapping[str, int]] = []
        self.acquitted: list[Message] = []
        self.buried: list[Message] = []
        self.doubted: list[Message] = []
        self.failures: list[BaseException] = []
        self.looked = asyncio.Event()
        #: Set: each look is answered at once.
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._one_answer = threading.Semaphore(0)
        self._loop = asyncio.get_running_loop()
        self.verdicts = Verdicts(
            scheduler=self.scheduler,
            lock=threading.Lock(),
            signs=self._ask,
            now_ms=lambda: self.now_ms,
            patience_ms=PATIENCE_MS,
            noticed_ms=lambda: NOTICED_MS,
            acquitted=self.acquitted.append,
            buried=self.buried.append,
            doubted=self.doubted.append,
            on_failure=self.failures.append,
            look_every_s=0.001,
        )

    def _ask(self, losses: Mapping[str, int]) -> Signs:
        self.asked.append(losses)
        self._loop.call_soon_threadsafe(self.looked.set)
        if not self.may_answer.is_set():
            self._one_answer.acquire(timeout=10)
        return self.signs

    def answer_once(self) -> None:
        """The look that is under way."""
        self.looked.clear()
        self._one_answer.release()

    async def looks_again(self) -> None:
        """A look has begun after the one that was answered."""
        await asyncio.wait_for(self.looked.wait(), 10)

    async def looks(self) -> None:
        """Two more looks: the second one begins after the first has been judged by."""
        for _ in range(2):
            self.looked.clear()
            await asyncio.wait_for(self.looked.wait(), 10)

    async def judges(self) -> None:
        """Until the last one that waited is judged."""
        async with asyncio.timeout(10):
            while self.scheduler.accused:
                await asyncio.sleep(0.001)

    def accused(
        self,
        *,
        deaths: tuple[str, ...] = ("frozen",),
        key: bytes | None = None,
        number: int = 0,
        before_ms: int = PATIENCE_MS,
    ) -> Message:
        """One that waits for its verdict; it ran alone at its last death, so long after those before it."""
        suspects = {0: Suspect(deaths, deaths[-1])}
        losses = {**dict.fromkeys(deaths, LOST_MS - before_ms), deaths[-1]: LOST_MS}
        prior = OffsetMap(0, suspects=suspects, losses=losses)
        part = partition(TOPICS.jobs[NORMAL], number, prior=prior)
        part.note_delivered(0)
        commit(part)
        one = message(part, 0, key=key)
        one.lost_worker = True
        self.verdicts.expect((one,))
        arrive(self.scheduler, one)
        assert self.scheduler.take(NOW_MS) is None
        return one


async def test_whose_worker_is_heard_of_starts_as_if_nothing_had_been() -> None:
    bench = Bench()
    one = bench.accused()
    await bench.looks()
    assert (bench.acquitted, bench.buried) == ([], [])
    bench.signs = Signs({"frozen": LOST_MS + 1})
    await bench.judges()
    assert bench.acquitted == [one]
    assert bench.asked[0] == {"frozen": LOST_MS}
    assert (one.part.suspects, one.part.dirty) == ({}, True)
    assert take(bench.scheduler) is one


async def test_who_was_unfinished_at_two_other_deaths_runs_alone_again() -> None:
    bench = Bench()
    one = bench.accused(deaths=("dead", "dead-too", "frozen"))
    bench.signs = Signs({"frozen": LOST_MS + 1})
    await bench.judges()
    assert one.part.suspects == {0: Suspect(("dead", "dead-too"))}
    assert bench.scheduler.take(NOW_MS) is None, "it asks for a commit that says it runs alone"
    assert one.part.alone == 0
    commit(one.part)
    assert take(bench.scheduler) is one
    assert bench.scheduler.isolated is one


async def test_a_worker_that_is_silent_for_long_is_dead() -> None:
    bench = Bench()
    one = bench.accused()
    bench.now_ms = LOST_MS + PATIENCE_MS - 1
    await bench.looks()
    assert bench.buried == []
    bench.now_ms += 1
    await bench.judges()
    assert bench.buried == [one]
    assert len(bench.scheduler) == 0


async def test_nobody_is_judged_while_the_reports_cannot_be_read() -> None:
    bench = Bench()
    one = bench.accused()
    bench.signs = Signs({}, complete=False)
    bench.now_ms = LOST_MS + 10 * PATIENCE_MS
    await bench.looks()
    assert (bench.buried, bench.doubted) == ([], [])
    bench.signs = Signs({"frozen": LOST_MS + 1}, complete=False)
    await bench.judges()
    assert bench.acquitted == [one], "what was read counts"


async def test_one_that_nobody_can_judge_runs_alone_once_more() -> None:
    """Of hundreds of workers nobody can read what they have reported for hours: its key would stand still for ever."""
    bench = Bench()
    one = bench.accused(deaths=("dead", "dead-too", "frozen"))
    bench.signs = Signs({}, complete=False)
    await bench.judges()
    assert (bench.doubted, bench.buried) == ([one], [])
    assert bench.scheduler.take(NOW_MS) is None
    commit(one.part)
    assert take(bench.scheduler) is one
    assert bench.scheduler.isolated is one
    assert not bench.verdicts._in_vain


async def test_a_worker_whose_name_another_one_has_is_dead_at_once() -> None:
    bench = Bench()
    one = bench.accused()
    bench.signs = Signs({}, frozenset({"frozen"}), complete=False, last=SEEN)
    await bench.looks()
    assert bench.buried == [], "those that could not be read may tell of an outage"
    bench.signs = Signs({}, frozenset({"frozen"}), last=SEEN)
    await bench.judges()
    assert bench.buried == [one]


async def test_who_comes_while_somebody_looks_is_not_judged_by_what_is_found() -> None:
    """Nobody has looked for its worker: that nothing was heard of it means nothing."""
    bench = Bench()
    bench.now_ms = LOST_MS + PATIENCE_MS
    bench.may_answer.clear()
    first = bench.accused()
    await asyncio.wait_for(bench.looked.wait(), 10)
    late = bench.accused(deaths=("late",), number=1)
    bench.signs = Signs({}, last=SEEN)
    bench.answer_once()
    async with asyncio.timeout(10):
        while not bench.buried:
            await asyncio.sleep(0.001)
    await bench.looks_again()
    assert (bench.buried, bench.doubted) == ([first], [])
    bench.signs = Signs({"late": LOST_MS + 1})
    bench.may_answer.set()
    bench.answer_once()
    await bench.judges()
    assert bench.acquitted == [late]


async def test_the_owners_that_were_lost_before_are_waited_for_as_well() -> None:
    """One of three was only cut off, for longer than the other two lived: two deaths make nobody a dead letter."""
    bench = Bench()
    one = bench.accused(deaths=("cut-off", "dead", "alone"), before_ms=1_000)
    bench.signs = Signs({}, frozenset({"dead", "alone"}), last={"alone": LOST_MS - 1})
    bench.now_ms = LOST_MS + PATIENCE_MS - 2_000
    await bench.looks()
    assert (bench.buried, bench.doubted) == ([], [])
    bench.signs = Signs({"cut-off": LOST_MS}, frozenset({"dead", "alone"}), last={"alone": LOST_MS - 1})
    await bench.judges()
    assert (bench.buried, bench.doubted) == ([], [one])
    assert one.part.suspects == {0: Suspect(("dead", "alone"))}


async def test_one_whose_charge_is_taken_back_with_another_ones_is_acquitted() -> None:
    """Both are of one partition, and of one owner."""
    bench = Bench()
    suspects = {offset: Suspect(("frozen",), "frozen") for offset in range(2)}
    part = partition(TOPICS.jobs[NORMAL], prior=OffsetMap(0, suspects=suspects, losses={"frozen": LOST_MS}))
    both = [message(part, offset) for offset in range(2)]
    for one in both:
        part.note_delivered(one.offset)
    commit(part)
    for one in both:
        one.lost_worker = True
        bench.verdicts.expect((one,))
        arrive(bench.scheduler, one)
        assert bench.scheduler.take(NOW_MS) is None
    await bench.looks()
    bench.signs = Signs({"frozen": LOST_MS + 1})
    await bench.judges()
    assert (bench.acquitted, bench.failures) == (both, [])


async def test_one_that_is_silent_for_long_enough_was_lost_for_good() -> None:
    bench = Bench()
    one = bench.accused(deaths=("silent", "dead", "alone"), before_ms=1_000)
    bench.signs = Signs({}, frozenset({"dead", "alone"}), last={"alone": LOST_MS - 1})
    bench.now_ms = LOST_MS + PATIENCE_MS - 1_001
    await bench.looks()
    assert bench.buried == []
    bench.now_ms += 1
    await bench.judges()
    assert bench.buried == [one]


async def test_who_has_seen_three_other_deaths_waits_for_no_fourth() -> None:
    bench = Bench()
    one = bench.accused(deaths=("silent", "dead", "too", "alone"), before_ms=1_000)
    bench.signs = Signs({}, frozenset({"dead", "too", "alone"}), last={"alone": LOST_MS - 1})
    await bench.judges()
    assert bench.buried == [one]


async def test_a_look_that_took_long_condemns_nobody_by_what_it_could_not_see() -> None:
    """It began after twenty seconds; the worker was heard of after 25, and the answer came after 35."""
    bench = Bench()
    bench.may_answer.clear()
    bench.now_ms = LOST_MS + 20_000
    one = bench.accused()
    await bench.looks_again()
    bench.now_ms = LOST_MS + 35_000
    bench.answer_once()
    await bench.looks_again()
    assert bench.buried == []
    bench.signs = Signs({"frozen": LOST_MS + 25_000})
    bench.may_answer.set()
    bench.answer_once()
    await bench.judges()
    assert bench.acquitted == [one]


@pytest.mark.parametrize("last", [{}, {"frozen": LOST_MS - NOTICED_MS - 1}])
async def test_who_may_have_been_cancelled_before_its_worker_died_runs_alone_once_more(
    last: dict[str, int],
) -> None:
    """A Kafka that was away gives everybody a new session when it is back."""
    bench = Bench()
    one = bench.accused(deaths=("dead", "dead-too", "frozen"))
    bench.signs = Signs({}, frozenset({"frozen"}), last=last)
    await bench.judges()
    assert (bench.doubted, bench.buried) == ([one], [])
    assert one.part.suspects == {0: Suspect(("dead", "dead-too", "frozen"))}
    assert one.part.dirty
    assert bench.scheduler.take(NOW_MS) is None
    commit(one.part)
    assert take(bench.scheduler) is one
    assert bench.scheduler.isolated is one


SIX = ("a", "b", "c", "d", "e", "frozen")


@pytest.mark.parametrize("last", [{}, {"frozen": LOST_MS - NOTICED_MS - 1}])
async def test_a_sixth_death_counts_where_nobody_can_tell_whether_kafka_was_there(
    last: dict[str, int],
) -> None:
    """Of the only worker, started again a minute later, nobody will ever know more."""
    bench = Bench()
    one = bench.accused(deaths=SIX)
    bench.signs = Signs({}, frozenset({"frozen"}), last=last)
    await bench.judges()
    assert (bench.buried, bench.doubted) == ([one], [])


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"outages": ((LOST_MS - 900, LOST_MS + 4_000),)}, id="kafka was away"),
        pytest.param({"at_rest": frozenset({"frozen"})}, id="nothing ran"),
    ],
)
async def test_not_even_a_sixth_death_counts_if_it_was_not_the_jobs(more: dict[str, Any]) -> None:
    bench = Bench()
    one = bench.accused(deaths=SIX)
    bench.signs = Signs({}, frozenset({"frozen"}), **more)
    await bench.judges()
    assert (bench.buried, bench.doubted) == ([], [one])


async def test_those_behind_its_key_wait_for_the_verdict_and_others_do_not() -> None:
    bench = Bench()
    one = bench.accused(key=b"k")
    others = open_partition(number=1)
    behind, beside = message(others, 0, key=b"k"), message(others, 1)
    arrive(bench.scheduler, behind, beside)
    assert take(bench.scheduler) is beside
    assert bench.scheduler.take(NOW_MS) is None
    bench.signs = Signs({}, frozenset({"frozen"}), last=SEEN)
    await bench.judges()
    assert bench.buried == [one]
    assert take(bench.scheduler) is behind


async def test_what_a_partition_loses_is_left_to_its_next_owner() -> None:
    bench = Bench()
    one = bench.accused()
    parts: set[PartitionState] = {one.part}
    assert bench.scheduler.purge(parts) == 1
    bench.verdicts.purge(parts)
    bench.signs = Signs({}, frozenset({"frozen"}), last=SEEN)
    watch = bench.verdicts._watch
    assert watch is not None
    await asyncio.wait_for(asyncio.shield(watch), 10)  # with nobody to wait for, it ends
    assert (bench.buried, bench.acquitted, bench.failures) == ([], [], [])


async def test_an_error_of_ours_is_told() -> None:
    bench = Bench()
    bench.signs = None  # type: ignore[assignment]
    bench.accused()
    while not bench.failures:
        await asyncio.sleep(0.001)
    assert isinstance(bench.failures[0], AttributeError)


async def test_one_that_comes_at_the_very_moment_when_the_last_one_is_judged_is_judged_as_well() -> None:
    bench = Bench()
    bench.accused()
    watch = bench.verdicts._watch
    assert watch is not None
    bench.verdicts._buried = lambda _: asyncio.get_running_loop().call_soon(bench.accused)  # type: ignore[assignment]
    bench.signs = Signs({}, frozenset({"frozen"}), last=SEEN)
    await asyncio.wait_for(asyncio.shield(watch), 10)
    bench.verdicts._buried = bench.buried.append
    assert bench.scheduler.accused, "it came before the watch was told of as ended"
    await bench.judges()
    assert len(bench.buried) == 1


async def test_who_comes_after_the_stop_is_not_looked_for() -> None:
    bench = Bench()
    await bench.verdicts.stop()
    bench.accused()
    assert bench.verdicts._watch is None
