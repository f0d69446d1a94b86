"""While nothing else of Kafka answers, the group's coordinator is asked whether we are still a member."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from schemas.errors import KafkaUnreachable
from workers.liveness.lease import Lease
from workers.liveness.membership_question import MembershipQuestion

pytestmark = pytest.mark.worker_coordination

Answer = bool | Exception


class Bench:
    """A lease of three seconds, by a clock that a test sets; a coordinator that answers from a list, and its last answer for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.now = 100.0
        self.lease = Lease(3.0, lambda: self.now)
        self.answers = list(answers)
        self.asked = 0
        self.question = MembershipQuestion(self.lease, self._ask, pause_s=0.0)

    async def _ask(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def turns(self) -> None:
        """As many as a question needs, and more."""
        for _ in range(20):
            await asyncio.sleep(0)


def scenario(bench: Bench, play: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await play()
        await bench.question.stop()

    asyncio.run(run())


def test_nobody_is_asked_while_kafka_answers_anyway() -> None:
    bench = Bench(True)

    async def play() -> None:
        bench.now += 0.9
        bench.question.look()
        await bench.turns()
        assert bench.asked == 0

    scenario(bench, play)


def test_who_is_a_member_keeps_its_lease_however_long_nothing_else_is_heard() -> None:
    bench = Bench(True)

    async def play() -> None:
        for _ in range(5):
            bench.now += 2.0
            bench.question.look()
            await bench.turns()
            assert bench.lease.silent_s == 0.0
        assert (bench.asked, bench.lease.holds) == (5, True)

    scenario(bench, play)


@pytest.mark.parametrize("answer", [False, KafkaUnreachable("brokers", 1.0), ValueError("a defect of ours")])
def test_anything_else_keeps_nothing_and_it_is_asked_again(answer: Answer) -> None:
    bench = Bench(answer, answer, True)

    async def play() -> None:
        bench.now += 2.0
        bench.question.look()
        await bench.turns()
        assert (bench.asked, bench.lease.silent_s) == (3, 0.0)

    scenario(bench, play)


def test_after_the_lease_only_a_commit_says_whose_the_partitions_are() -> None:
    bench = Bench(False)

    async def play() -> None:
        bench.now += 2.0
        bench.question.look()
        await bench.turns()
        bench.now += 2.0
        await bench.turns()
        asked = bench.asked
        bench.question.look()
        await bench.turns()
        assert (bench.asked, bench.lease.holds) == (asked, False)

    scenario(bench, play)


def test_a_question_that_was_asked_before_the_lease_ended_and_is_answered_after_it_is_not_enough() -> None:
    """The process was frozen in between."""
    bench = Bench(True)

    async def play() -> None:
        bench.now += 2.0
        bench.question.look()
        await asyncio.sleep(0)
        bench.now += 60.0
        await bench.turns()
        assert (bench.asked, bench.lease.silent_s, bench.lease.holds) == (1, 60.0, False)

    scenario(bench, play)


def test_one_question_at_a_time_and_none_after_the_end() -> None:
    bench = Bench(False)

    async def play() -> None:
        bench.now += 2.0
        for _ in range(3):
            bench.question.look()
        await asyncio.sleep(0)
        assert bench.asked == 1
        await bench.question.stop()
        bench.question.look()
        await bench.turns()
        assert bench.asked == 1

    scenario(bench, play)
