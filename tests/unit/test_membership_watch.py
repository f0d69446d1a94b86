"""After a lost heartbeat: when a worker and the group's coordinator do not agree, and when that is no matter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import pytest

from schemas.errors import KafkaUnreachable
from streams.group_members import Member
from workers.consuming.membership_watch import Held, MembershipWatch, compare, is_ours, lost_heartbeats

pytestmark = pytest.mark.worker_coordination


def places(numbers: Iterable[int]) -> frozenset[tuple[str, int]]:
    return frozenset(("jobs.normal", number) for number in numbers)


def held(*numbers: int, member_id: str = "m", busy: bool = False) -> Held:
    return Held(member_id, places(numbers), busy)


def member(assigned: Iterable[int], target: Iterable[int]) -> Member:
    return Member(3, places(assigned), places(target))


# --- the comparison ---------------------------------------------------------------------------------------


def test_who_has_what_it_should_have_agrees() -> None:
    assert not compare(held(0, 1), member([0, 1], [0, 1]))


def test_what_is_still_with_others_is_not_missing() -> None:
    assert not compare(held(), member([], [0, 1]))


def test_what_was_given_and_never_heard_of_is_missing() -> None:
    found = compare(held(0), member([0, 1], [0, 1]))
    assert (found.missing, found.surplus) == (places([1]), frozenset())


def test_what_should_have_been_given_away_is_surplus() -> None:
    found = compare(held(0, 1), member([0, 1], [0]))
    assert (found.missing, found.surplus) == (frozenset(), places([1]))


def test_what_was_given_away_and_the_coordinator_does_not_know_of_is_missing() -> None:
    """Nobody else gets it as long as the coordinator takes it for ours."""
    found = compare(held(0), member([0, 1], [0]))
    assert (found.missing, found.surplus) == (places([1]), frozenset())


def test_a_member_that_nobody_knows_hears_of_it_by_itself() -> None:
    assert not compare(held(0), None)


# --- the watch --------------------------------------------------------------------------------------------


class Group:
    """A poll thread and a coordinator that say, look by look, what the test wants."""

    def __init__(self, *looks: tuple[Held, Member | Exception | None]) -> None:
        self.looks = list(looks)
        self.asked = 0
        self.rejoined_at: list[int] = []

    def held(self) -> Held:
        return self.looks[min(self.asked, len(self.looks) - 1)][0]

    async def ask(self, member_id: str) -> Member | None:
        answer = self.looks[min(self.asked, len(self.looks) - 1)][1]
        self.asked += 1
        self.before_answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def before_answer(self) -> None:
        """What else happens while the coordinator is asked: here the next look's state is not there yet."""
        self.asked -= 1
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.asked += 1

    def rejoin(self) -> None:
        self.rejoined_at.append(self.asked)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def watching(group: Group, scenario: Callable[[MembershipWatch], Awaitable[None]]) -> None:
    async def run() -> None:
        watch = MembershipWatch(
            held=group.held,
            ask=group.ask,
            rejoin=group.rejoin,
            loop=asyncio.get_running_loop(),
            interval_s=0.0,
        )
        await scenario(watch)
        await watch.stop()

    asyncio.run(run())


def looks(group: Group, at_least: int) -> None:
    """One suspicion, and so many looks."""

    async def scenario(watch: MembershipWatch) -> None:
        watch.suspect()
        await until(lambda: group.asked >= at_least)

    watching(group, scenario)


AGREED = (held(0), member([0], [0]))
LOST = (held(0), member([0, 1], [0, 1]))
STUCK = (held(0, 1), member([0, 1], [0]))


@pytest.mark.parametrize(
    ("has", "known", "expected"),
    [
        (held(0), member([0], [0]), True),
        (held(0), member([0, 1], [0, 1]), True),
        (held(0, 1), member([0], [0]), False),
        (held(0, 1, busy=True), member([0], [0]), True),
        (held(), member([], []), True),
        (held(0), None, False),
        (held(busy=True), None, False),
    ],
)
def test_what_we_have_is_ours_if_the_coordinator_says_so(
    has: Held, known: Member | None, *, expected: bool
) -> None:
    """After a loss the same member may be back, with nothing yet."""
    assert is_ours(has, known) is expected


@pytest.mark.parametrize("found", [LOST, STUCK])
def test_the_same_disagreement_twice_is_a_reason_to_join_again(found: tuple[Held, Member]) -> None:
    group = Group(found, found, AGREED, AGREED)
    looks(group, 4)
    assert group.rejoined_at == [1]


def test_a_disagreement_that_does_not_last_is_a_change_on_its_way() -> None:
    group = Group(LOST, AGREED, LOST, AGREED, AGREED)
    looks(group, 5)
    assert group.rejoined_at == []


def test_one_that_changes_is_not_the_same() -> None:
    group = Group(LOST, (held(0), member([0, 1, 2], [0, 1, 2])), AGREED, AGREED)
    looks(group, 4)
    assert group.rejoined_at == []


def test_the_same_of_another_membership_is_not_the_same() -> None:
    group = Group(LOST, (held(0, member_id="other"), LOST[1]), AGREED, AGREED)
    looks(group, 4)
    assert group.rejoined_at == []


def test_while_partitions_come_and_go_nothing_is_concluded() -> None:
    busy = (held(0, busy=True), LOST[1])
    group = Group(LOST, busy, LOST, AGREED, AGREED)
    looks(group, 5)
    assert group.rejoined_at == []


def test_what_changes_while_the_coordinator_is_asked_is_not_compared_with_its_answer() -> None:
    class Moves(Group):
        def before_answer(self) -> None:
            """The next look's state is there before this one's answer."""

    group = Moves(LOST, (held(1), LOST[1]), LOST, AGREED, AGREED)
    looks(group, 4)
    assert group.rejoined_at == []


def test_no_answer_is_no_reason_and_no_end() -> None:
    away = (held(0), KafkaUnreachable("kafka:9092", 5.0))
    group = Group(LOST, away, LOST, AGREED, AGREED)
    looks(group, 5)
    assert group.rejoined_at == [2]


def test_it_looks_until_both_agree_twice_and_no_longer() -> None:
    group = Group(AGREED)

    async def scenario(watch: MembershipWatch) -> None:
        watch.suspect()
        await until(lambda: group.asked >= 2)
        for _ in range(20):
            await asyncio.sleep(0)

    watching(group, scenario)
    assert group.asked == 2


def test_without_a_lost_heartbeat_nobody_is_asked() -> None:
    group = Group(STUCK)

    async def scenario(_watch: MembershipWatch) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    watching(group, scenario)
    assert group.asked == 0


def test_a_suspicion_after_the_end_begins_nothing() -> None:
    group = Group(STUCK)

    async def scenario(watch: MembershipWatch) -> None:
        await watch.stop()
        watch.suspect()
        for _ in range(20):
            await asyncio.sleep(0)

    watching(group, scenario)
    assert group.asked == 0


# --- the sign -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("REQTMOUT GroupCoordinator/1: Timed out ConsumerGroupHeartbeatRequest in flight (after 1000ms)", 1),
        ("REQTMOUT GroupCoordinator/1: Timed out FetchRequest in flight (after 1000ms)", 0),
        ("FAIL 127.0.0.1:9092/1: Disconnected", 0),
    ],
)
def test_only_a_heartbeat_that_timed_out_is_a_sign(line: str, lost: int) -> None:
    signs: list[None] = []
    lost_heartbeats(lambda: signs.append(None), logging.getLogger("onward")).info(line)
    assert len(signs) == lost


def test_what_the_consumer_says_is_still_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    onward = logging.getLogger("onward")
    caplog.set_level(logging.WARNING, "onward")
    logger = lost_heartbeats(lambda: None, onward)
    logger.warning("a broker is away")
    logger.info("not asked for")
    assert [record.getMessage() for record in caplog.records] == ["a broker is away"]
