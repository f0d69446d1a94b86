from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import pytest

from schemas import ids
from schemas.ids import new_job_id

pytestmark = [
    pytest.mark.job_processing,
    # Python 3.12 and later warn of a fork beside threads; how ids survive one is what is tested here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def milliseconds(job_id: str) -> int:
    return uuid.UUID(job_id).int >> 80


def turn(job_id: str) -> int:
    return int(job_id[-4:], 16)


def ids_of_a_child(count: int) -> set[str]:
    """What a forked child makes. A child that hangs fails the test by its time limit."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            made = "\n".join(new_job_id() for _ in range(count))
            with os.fdopen(writing, "w") as file:
                file.write(made)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        made = file.read()
    os.waitpid(child, 0)
    return set(made.split())


def test_an_id_is_a_uuid_of_version_7_in_its_usual_form() -> None:
    for _ in range(2_000):
        job_id = new_job_id()
        parsed = uuid.UUID(job_id)
        assert str(parsed) == job_id
        assert parsed.variant == uuid.RFC_4122
        assert parsed.version == 7


def test_an_id_begins_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [milliseconds(new_job_id()) for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert before <= made[0]
    assert made == sorted(made)
    assert made[-1] <= after


def test_ids_sort_by_their_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for ms in (0, 1, 2**32, 1_760_000_000_000, 2**48 - 1):
        monkeypatch.setattr(time, "time_ns", lambda ms=ms: ms * 1_000_000 + 999_999)
        made.append(new_job_id())
        assert milliseconds(made[-1]) == ms
    assert made == sorted(made)


def by_eight_threads(each: int) -> list[str]:
    """So many ids of each."""
    made: list[list[str]] = [[] for _ in range(8)]

    def work(mine: list[str]) -> None:
        mine.extend(new_job_id() for _ in range(each))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [job_id for mine in made for job_id in mine]


def test_no_id_is_made_twice_by_many_threads() -> None:
    assert len(set(by_eight_threads(12_500))) == 100_000


def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    new_job_id()  # the parent has a pool of randomness to inherit
    children = [ids_of_a_child(1_000) for _ in range(3)]
    parents = {new_job_id() for _ in range(3_000)}
    random_parts = [{job_id[14:-4] for job_id in made} for made in (*children, parents)]
    assert [len(part) for part in random_parts] == [1_000, 1_000, 1_000, 3_000]
    assert len(set().union(*random_parts)) == 6_000


def test_ids_take_turns_and_the_turn_after_the_last_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_turn", 65_533)
    assert [turn(new_job_id()) for _ in range(2)] == [65_534, 65_535]
    assert ids.next_turn() == 0
    assert [turn(new_job_id(given)) for given in (7, 7, 65_535)] == [7, 7, 65_535], "theirs"
    assert turn(new_job_id()) == 1


def test_no_turn_is_taken_twice_by_many_threads() -> None:
    assert len(set(map(turn, by_eight_threads(5_000)))) == 40_000


def test_processes_do_not_begin_at_the_same_turn() -> None:
    """A command that makes one job ends after its first id; a hundred of them would choose one partition."""
    new_job_id()  # the parent has a turn to inherit
    forked = {turn(*ids_of_a_child(1)) for _ in range(5)}
    program = "from schemas.ids import new_job_id; print(new_job_id())"
    fresh = {
        turn(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        for _ in range(3)
    }
    assert len(forked) > 1
    assert len(fresh) > 1


@pytest.mark.timeout(20)
def test_a_child_forked_while_another_thread_makes_an_id_does_not_hang() -> None:
    """The lock is held at the moment of the fork, and its holder does not exist in the child."""
    with ids._lock:
        assert len(ids_of_a_child(10)) == 10


def test_every_random_bit_is_drawn_by_itself() -> None:
    """All 58: each is set half of the time, and none can be told from one beside it."""
    values = [uuid.UUID(new_job_id()).int for _ in range(4_000)]
    places = [*range(16, 62), *range(64, 76)]
    for place in places:
        ones = sum(value >> place & 1 for value in values)
        assert 1_700 < ones < 2_300, place
    for first, second in ((61, 57), (60, 56), (61, 60), (64, 61)):
        equal = sum((value >> first & 1) == (value >> second & 1) for value in values)
        assert 1_700 < equal < 2_300, (first, second)
    variants = Counter(f"{value:032x}"[16] for value in values)
    assert set(variants) == set("89ab")
