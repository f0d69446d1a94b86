"""Who runs beside nothing else, and how everybody else gets their turn."""

from __future__ import annotations

import pytest

from schemas.offsetmap import Suspect
from tests.support.messages import commit, message
from tests.support.schedule_bench import (
    HIGH,
    LOW,
    NOW_MS,
    arrive,
    dangerous,
    open_partition,
    run_alone,
    take,
    take_alone,
)
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.time_share import (
    FIRST_PATIENCE_MS,
    OTHERS_FIRST_MS,
    OWED,
    TURN_MS,
    TimeShare,
)

pytestmark = pytest.mark.worker_coordination


# --- alone --------------------------------------------------------------------------------------------------


def test_who_was_unfinished_at_two_deaths_runs_beside_nothing_else() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    running = message(open_partition(), 0)
    arrive(scheduler, running)
    assert take(scheduler) is running
    killer, innocent = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer)
    assert not scheduler.has_ready
    arrive(scheduler, innocent)
    commit(part)
    assert scheduler.take(NOW_MS) is None, "something else still runs"
    scheduler.done(running)
    assert take_alone(scheduler, part) is killer
    assert scheduler.take(NOW_MS) is None
    scheduler.done(killer)
    commit(part, 0)
    assert take(scheduler) is innocent


def test_nobody_starts_while_a_commit_still_says_that_another_runs_alone() -> None:
    """If that one killed the process, the one that has ended would be accused for it."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    taken = take_alone(scheduler, part)
    part.dirty = False
    scheduler.done(taken)
    assert part.dirty, "a commit is due that says so no longer"
    assert scheduler.take(NOW_MS) is None
    assert not scheduler.has_ready
    commit(part, 0)
    assert take(scheduler) is other


def test_the_commit_that_ends_one_names_the_next() -> None:
    """Two for each would make quick ones twice as slow, a tick for each commit."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(3))
    arrive(scheduler, *(message(part, offset) for offset in range(3)))
    first = take_alone(scheduler, part)
    scheduler.done(first)
    assert scheduler.take(NOW_MS) is None
    commit(part, 0)
    second = take(scheduler)
    assert (second.offset, part.committed_alone) == (1, 1)
    scheduler.survived()
    assert scheduler.take(NOW_MS) is None
    assert part.alone is None, "beside one that has survived nobody runs alone"
    scheduler.done(second)
    commit(part, 1)
    third = take_alone(scheduler, part)
    scheduler.put_back(third)
    assert third.offset == 2


def test_beside_a_thread_that_goes_on_none_is_named_ahead() -> None:
    """It would be accused for what the thread does."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, message(part, 0), message(part, 1))
    scheduler.done(take_alone(scheduler, part))
    scheduler.strays = 1
    assert scheduler.take(NOW_MS) is None
    assert part.alone is None


def test_when_it_is_the_turn_of_others_none_is_named_ahead() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, message(part, 0), message(part, 1), message(open_partition(), 0))
    scheduler.done(take_alone(scheduler, part))
    assert scheduler.take(NOW_MS + TURN_MS) is None
    assert part.alone is None


def test_who_survives_long_enough_is_joined_by_others_once_that_is_committed() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    take_alone(scheduler, part)
    scheduler.survived()
    assert scheduler.take(NOW_MS) is None
    commit(part)
    assert take(scheduler) is other
    assert scheduler.running == 2


def test_one_that_was_cancelled_while_it_ran_alone_runs_alone_again() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    scheduler.put_back(take_alone(scheduler, part))
    assert take(scheduler) is killer
    assert scheduler.take(NOW_MS) is None


def test_one_that_was_cancelled_while_it_ran_alone_is_named_by_no_later_commit_until_it_starts_again() -> (
    None
):
    """Kafka does not answer, and the worker is stopped: the next owner would accuse it, though it did not run any more."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    taken = take_alone(scheduler, part)
    part.dirty = False
    scheduler.put_back(taken)
    assert part.dirty
    assert commit(part).suspects[0].alone == ""
    assert take_alone(scheduler, part) is killer


def test_nobody_starts_before_one_that_was_cancelled_while_a_commit_says_that_it_runs_alone() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, others = dangerous(range(2)), open_partition(HIGH)
    arrive(scheduler, *(message(part, offset) for offset in range(2)), message(others, 0))
    commit(part)
    now_ms = run_alone(scheduler, part, NOW_MS, 0)
    assert scheduler.take(now_ms) is None
    commit(part)
    second = scheduler.take(now_ms)
    assert second is not None
    scheduler.put_back(second)
    assert scheduler.take(now_ms + 3_600_000) is second, "it would be accused for what others do"


def test_one_that_gave_up_its_turn_goes_behind_the_others_but_not_behind_those_of_its_key() -> None:
    """Else one that cannot run now (its schema is not to be had) would keep all others from ever having their turn."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(4))
    keys = (b"k", b"k", b"other", None)
    first, same_key, other_key, no_key = (message(part, n, key=key) for n, key in enumerate(keys))
    arrive(scheduler, first, same_key, other_key, no_key)
    assert take_alone(scheduler, part) is first
    scheduler.survived()
    scheduler.put_back(first)
    started = []
    for _ in range(4):
        started.append(take_alone(scheduler, part))
        scheduler.done(started[-1])
        commit(part, started[-1].offset)
    assert started == [other_key, no_key, first, same_key]
    assert (len(scheduler), len(scheduler._keys)) == (0, 0)


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_one_that_nobody_suspects_any_more_starts_like_any_other(commits: int) -> None:
    """All its owners were heard of: no map would ever say that it runs alone, and everything would wait for that."""
    scheduler = Scheduler(others_first_ms=0)
    part, others = dangerous(range(2)), open_partition(HIGH)
    absolved, next_one, other = message(part, 0), message(part, 1), message(others, 0)
    part.suspects[1] = Suspect(("second", "third"))
    part.losses |= {"second": 2, "third": 3}
    arrive(scheduler, absolved, next_one, other)
    commit(part)
    if commits:
        assert scheduler.take(NOW_MS) is None, "it asks to be named"
        assert part.alone == 0
    if commits > 1:
        commit(part)
    part.absolve(("first", "dead"))
    assert scheduler.take(NOW_MS) is None
    assert scheduler.has_parked, "it asks for a commit"
    assert (part.alone, part.dirty) == (1 if commits < 2 else None, True)
    commit(part)
    started = []
    for _ in range(6):
        while (one := scheduler.take(NOW_MS)) is not None:
            assert part.committed_alone == (1 if one is next_one else None), "nobody beside one that is named"
            started.append(one)
            scheduler.done(one)
        commit(part, *(one.offset for one in started if one.part is part))
        scheduler.unpark()
    assert set(started) == {absolved, next_one, other}
    assert len(scheduler) == 0


def test_one_that_is_absolved_while_it_runs_alone_and_is_cancelled_holds_nobody_back() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, other = dangerous(), message(open_partition(HIGH), 0)
    absolved = message(part, 0)
    arrive(scheduler, absolved, other)
    assert take_alone(scheduler, part) is absolved
    part.absolve(("first", "dead"))
    scheduler.put_back(absolved)
    assert scheduler.take(NOW_MS) is None, "a commit still says that it runs alone"
    assert scheduler.has_parked, "it asks for another one"
    commit(part)
    assert {take(scheduler), take(scheduler)} == {absolved, other}


def test_one_that_is_absolved_by_anothers_verdict_does_not_wait_for_a_long_job() -> None:
    """Nothing else waits that would have the scheduler look at those that must run alone."""
    scheduler = Scheduler()
    long = message(open_partition(HIGH), 0)
    arrive(scheduler, long)
    assert take(scheduler) is long
    part = dangerous(range(2))
    accused, absolved = message(part, 0), message(part, 1)
    accused.lost_worker = True
    part.suspects[1] = Suspect(("second", "third"))
    part.losses |= {"second": 2, "third": 3}
    arrive(scheduler, accused, absolved)
    ready = [scheduler.has_ready]
    part.absolve(("second", "third"))
    scheduler.acquit(accused)
    ready.append(scheduler.has_ready)
    assert ready == [False, True]
    commit(part)
    started = [
        scheduler.take(NOW_MS + second * 1_000) for second in range(2 * FIRST_PATIENCE_MS // 1_000 + 1)
    ]
    assert absolved in started


def test_beside_a_thread_that_was_left_behind_one_runs_alone_without_being_named() -> None:
    """Else it would be accused, at its worker's death, for what the thread did."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    first, second = message(part, 0), message(part, 1)
    other = message(open_partition(HIGH), 0)
    arrive(scheduler, first, second, other)
    scheduler.strays = 1
    assert scheduler.take(NOW_MS) is None, "it asks for a commit, as it may not start yet"
    commit(part)
    assert take(scheduler) is first
    assert (part.alone, scheduler.isolated) == (None, first)
    commit(part)
    assert part.committed_alone is None
    assert scheduler.take(NOW_MS) is None, "nobody starts beside it"
    scheduler.done(first)
    assert scheduler.isolated is None
    scheduler.strays = 0
    commit(part, 0)
    assert take_alone(scheduler, part) is second
    assert part.committed_alone == 1, "the thread has ended"


def test_one_that_must_run_alone_waits_behind_its_key_as_everybody_does() -> None:
    scheduler = Scheduler(others_first_ms=0)
    closed, part = open_partition(HIGH), dangerous()
    closed.start_limit = 0
    holder, killer = message(closed, 0, key=b"k"), message(part, 0, key=b"k")
    arrive(scheduler, holder)
    assert scheduler.take(NOW_MS) is None  # it waits for a commit, and holds its key
    arrive(scheduler, killer)
    other = message(open_partition(LOW), 0)
    arrive(scheduler, other)
    assert take(scheduler) is other, "nobody is held back for one whose key is not free"
    scheduler.done(other)
    commit(closed)
    scheduler.unpark()
    assert take(scheduler) is holder
    scheduler.done(holder)
    assert take_alone(scheduler, part) is killer
    scheduler.done(killer)
    commit(part, 0)
    assert scheduler.take(NOW_MS) is None, "nobody runs twice"
    assert len(scheduler) == 0


def test_of_those_behind_a_key_the_most_urgent_is_next_whether_or_not_it_must_run_alone() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, beside = dangerous(), open_partition(LOW)
    running = message(open_partition(HIGH), 0, key=b"k")
    first, second = (message(beside, offset, key=b"k") for offset in range(2))
    killer = message(part, 0, key=b"k")
    arrive(scheduler, running, first, second)
    assert take(scheduler) is running
    assert scheduler.take(NOW_MS) is None
    scheduler.done(running)  # the first of them has the key, and has not started
    arrive(scheduler, killer)
    assert take(scheduler) is first
    scheduler.done(first)
    scheduler.done(take_alone(scheduler, part))
    commit(part, 0)
    assert take(scheduler) is second


def test_who_must_run_alone_does_not_overtake_an_earlier_one_of_its_key_that_need_not() -> None:
    """That one was held behind others when its owners died."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(1, 2))
    earlier, later = message(part, 0, key=b"k"), message(part, 1, key=b"k")
    part.gaps.clear()  # it is there
    arrive(scheduler, earlier, later)
    commit(part)
    assert take(scheduler) is earlier
    assert scheduler.take(NOW_MS) is None
    scheduler.done(earlier)
    commit(part, 0)
    run_alone(scheduler, part, NOW_MS, 1)


def test_while_one_waits_for_its_turn_to_run_alone_only_its_key_waits_not_its_partition() -> None:
    scheduler = Scheduler()
    part = dangerous()
    for offset in range(1, 12):
        part.note_delivered(offset)
    waiting = message(part, 0, key=b"k")
    later, *others = (message(part, offset, key=b"k" if offset == 1 else None) for offset in range(1, 12))
    arrive(scheduler, waiting, later, *others)
    commit(part)
    assert [take(scheduler) for _ in others] == others
    assert scheduler.take(NOW_MS) is None


def test_who_has_worked_for_an_hour_between_two_that_must_run_alone_was_not_held_back_for_an_hour() -> None:
    """The second one would have waited for three hours, with its key."""
    scheduler = Scheduler(others_first_ms=0)
    part, others = dangerous(range(2)), open_partition(number=1)
    first, second, *work = message(part, 0), message(part, 1), *(message(others, n) for n in range(100))
    arrive(scheduler, first)
    now_ms = run_alone(scheduler, part, NOW_MS, 1_000)
    arrive(scheduler, *work)
    for one in work:
        assert scheduler.take(now_ms) is one
        scheduler.done(one)
        now_ms += 36_000
    arrive(scheduler, second, message(others, 100))
    assert run_alone(scheduler, part, now_ms, 1)


def test_no_others_are_owed_what_they_have_not_waited_for() -> None:
    share = TimeShare(others_first_ms=0)
    assert share.holds_back(0, running=0, others=False)
    share.started(3_600_000)
    assert share.holds_back(3_600_000, running=0, others=True)
    assert share.holds_back(3_600_999, running=0, others=True)
    assert not share.holds_back(3_601_000, running=0, others=True), "they have waited for a turn's second"
    assert not share.holds_back(3_601_000 + OWED * 1_000 - 1, running=0, others=True)
    assert share.holds_back(3_601_000 + OWED * 1_000, running=0, others=True)


def test_a_night_that_a_machine_sleeps_counts_for_a_minute() -> None:
    share = TimeShare(others_first_ms=0)
    assert share.holds_back(0, running=1, others=True)
    assert not share.holds_back(30_000_000, running=1, others=True)
    assert not share.holds_back(30_000_000 + OWED * 60_000 - 1, running=1, others=True)
    assert share.holds_back(30_000_000 + OWED * 60_000, running=1, others=True)


def test_a_dangerous_one_of_a_lost_partition_holds_nobody_back() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    arrive(scheduler, message(part, 0))
    taken = take_alone(scheduler, part)
    other = message(open_partition(HIGH), 0)
    arrive(scheduler, other)
    part.releasing = True
    scheduler.done(taken)
    assert take(scheduler) is other


# --- and all others ---------------------------------------------------------------------------------------


def test_others_have_the_first_turn() -> None:
    """Where a worker lives for a minute it would do nothing but what ran alone, for half a minute, and died with it."""
    scheduler = Scheduler()
    part = dangerous()
    others = [message(open_partition(HIGH), offset) for offset in range(2)]
    arrive(scheduler, message(part, 0), *others)
    commit(part)
    assert scheduler.take(NOW_MS) is others[0]
    assert not scheduler.turn_is_due(NOW_MS + OTHERS_FIRST_MS - 1)
    scheduler.done(others[0])
    run_alone(scheduler, part, NOW_MS + OTHERS_FIRST_MS, 1)


def test_where_no_others_wait_nobody_has_to_wait_for_their_turn() -> None:
    scheduler = Scheduler()
    part = dangerous()
    arrive(scheduler, message(part, 0))
    commit(part)
    run_alone(scheduler, part, NOW_MS, 1)


def test_others_get_three_times_as_long_as_they_were_held_back() -> None:
    """Ten that run for half a minute each must not stop a worker for five minutes."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(3))
    arrive(scheduler, *(message(part, offset) for offset in range(3)))
    others = [message(open_partition(HIGH), offset) for offset in range(3)]
    arrive(scheduler, *others)
    commit(part)
    now_ms = run_alone(scheduler, part, NOW_MS, 20_000)
    first = scheduler.take(now_ms)
    assert first is others[0]
    scheduler.done(first)
    assert scheduler.take(now_ms + 59_999) is others[1]
    scheduler.done(others[1])
    run_alone(scheduler, part, now_ms + 60_000, 1)


def test_others_that_wait_for_one_another_have_their_whole_turn() -> None:
    """One runs for long, the rest share a key: each time that one has ended nobody else could start for a moment."""
    scheduler = Scheduler()
    part, others = dangerous(), open_partition(HIGH)
    arrive(scheduler, message(part, 0), message(others, 0))
    commit(part)
    long = scheduler.take(NOW_MS)
    assert long is not None
    assert long.part is others
    chain = [message(others, offset, key=b"k") for offset in range(1, 4)]
    arrive(scheduler, *chain)
    for second, one in enumerate(chain):
        now_ms = NOW_MS + 1_000 * second
        assert scheduler.take(now_ms) is one
        assert scheduler.take(now_ms) is None, "the next of its key waits for it"
        scheduler.done(one)
    scheduler.done(long)
    run_alone(scheduler, part, NOW_MS + 4_000, 1)


def test_quick_ones_go_one_after_another_before_others_have_their_turn() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(4))
    arrive(scheduler, *(message(part, offset) for offset in range(4)), message(open_partition(HIGH), 0))
    commit(part)
    now_ms = NOW_MS
    for _ in range(3):
        now_ms = run_alone(scheduler, part, now_ms, TURN_MS // 3 + 1)
    other = scheduler.take(now_ms)
    assert other is not None
    assert other.priority is HIGH


def test_without_others_nobody_waits_for_their_turn() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, *(message(part, offset) for offset in range(2)))
    commit(part)
    now_ms = run_alone(scheduler, part, NOW_MS, 30_000)
    run_alone(scheduler, part, now_ms, 1)


def test_one_that_goes_on_for_an_hour_stops_nobody_for_an_hour() -> None:
    """It has survived alone; the next one that must run alone has to wait for it, all others need not."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, *(message(part, offset) for offset in range(2)))
    others = open_partition(HIGH)
    commit(part)
    assert scheduler.take(NOW_MS) is None
    commit(part)
    survivor = scheduler.take(NOW_MS)
    arrive(scheduler, *(message(others, offset) for offset in range(5)))
    scheduler.survived()
    commit(part)
    now_ms = NOW_MS + 30_000
    started = []
    for _ in range(3_600):
        taken = scheduler.take(now_ms)
        if taken is not None:
            assert taken.part is others
            started.append(now_ms)
            scheduler.done(taken)
        now_ms += 1_000
    assert len(started) == 5
    assert started[-1] - started[0] < 10_000
    assert survivor is not None
    scheduler.done(survivor)
    commit(part, 0)
    run_alone(scheduler, part, now_ms, 1)


def test_those_that_run_on_and_on_are_waited_for_in_the_end() -> None:
    """Others that take two minutes each, one always beside another: the held-back time grows until all of them have ended."""
    scheduler = Scheduler(others_first_ms=0)
    part, others = dangerous(), open_partition(HIGH)
    arrive(scheduler, *(message(others, offset) for offset in range(10_000)))
    running = {scheduler.take(NOW_MS): NOW_MS + 120_000, scheduler.take(NOW_MS): NOW_MS + 60_000}
    arrive(scheduler, message(part, 0))
    commit(part)
    for second in range(3_600):
        now_ms = NOW_MS + 1_000 * second
        for one, ends_ms in list(running.items()):
            if one is not None and ends_ms <= now_ms:
                scheduler.done(one)
                del running[one]
        while len(running) < 2 and (taken := scheduler.take(now_ms)) is not None:
            running[taken] = now_ms + 120_000
        if part.alone == 0:
            assert running == {}
            return
    raise AssertionError("it never had its turn")


def test_who_waits_to_run_alone_is_not_overtaken_by_a_later_one_of_its_key() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, message(part, 0), message(part, 1, key=b"k"))
    part.note_delivered(2)
    later, other = message(part, 2, key=b"k"), message(open_partition(HIGH), 0)
    arrive(scheduler, later, other)
    commit(part)
    now_ms = run_alone(scheduler, part, NOW_MS, 20_000)
    assert scheduler.take(now_ms) is other
    assert scheduler.take(now_ms) is None
    scheduler.done(other)
    now_ms = run_alone(scheduler, part, now_ms + 20_000, 1)
    scheduler.unpark()
    assert scheduler.take(now_ms) is later


def test_when_a_turn_may_end_the_scheduler_asks_to_be_looked_at() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, others = dangerous(), open_partition(HIGH)
    assert not scheduler.turn_is_due(NOW_MS)
    running, waits = message(others, 0), message(others, 1)
    arrive(scheduler, running)
    assert take(scheduler) is running
    arrive(scheduler, message(part, 0), waits)
    commit(part)
    assert scheduler.take(NOW_MS) is None
    assert not scheduler.turn_is_due(NOW_MS + FIRST_PATIENCE_MS - 1)
    assert scheduler.turn_is_due(NOW_MS + FIRST_PATIENCE_MS)
    assert scheduler.take(NOW_MS + FIRST_PATIENCE_MS) is waits
    assert not scheduler.turn_is_due(NOW_MS + (1 + OWED) * FIRST_PATIENCE_MS - 1)
    assert scheduler.turn_is_due(NOW_MS + (1 + OWED) * FIRST_PATIENCE_MS)


def test_a_clock_that_is_set_back_keeps_nobody_waiting() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    arrive(scheduler, *(message(part, offset) for offset in range(2)))
    others = open_partition(HIGH)
    arrive(scheduler, *(message(others, offset) for offset in range(3)))
    commit(part)
    now_ms = run_alone(scheduler, part, NOW_MS, 20_000)
    other = scheduler.take(now_ms)
    assert other is not None
    scheduler.done(other)
    run_alone(scheduler, part, now_ms - 3_600_000, 1)
