"""A copy is the same delivery of the same job at another place; nothing else is."""

from __future__ import annotations

import uuid

import pytest

from schemas.headers import Delivery
from schemas.topics import TIERS, JobPriority
from tests.support.messages import TOPICS, message, partition
from workers.consuming.duplicates import DuplicateWindow

pytestmark = pytest.mark.job_processing

JOB, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
SECOND = Delivery(job_type="test", delivery=1)


def test_the_same_delivery_at_another_offset_is_a_copy() -> None:
    window, part = DuplicateWindow(), partition()
    assert not window.is_copy(message(part, 0, job_id=JOB))
    assert window.is_copy(message(part, 1, job_id=JOB))
    assert window.is_copy(message(part, 2, job_id=JOB))


def test_the_same_record_delivered_again_is_no_copy() -> None:
    """After a lost session our own record comes a second time: it must run."""
    window = DuplicateWindow()
    assert not window.is_copy(message(partition(), 0, job_id=JOB))
    assert not window.is_copy(message(partition(), 0, job_id=JOB))


def test_a_successor_is_no_copy_and_a_copy_of_it_is_one() -> None:
    window, part = DuplicateWindow(), partition()
    retry = partition(TOPICS.retry[TIERS[0]])
    assert not window.is_copy(message(part, 0, job_id=JOB))
    assert not window.is_copy(message(retry, 0, job_id=JOB, delivery=SECOND))
    assert not window.is_copy(message(part, 1, job_id=OTHER, delivery=SECOND))
    assert window.is_copy(message(retry, 1, job_id=JOB, delivery=SECOND))


def test_a_copy_on_another_topic_is_recognised() -> None:
    window = DuplicateWindow()
    assert not window.is_copy(message(partition(TOPICS.retry[TIERS[0]]), 7, job_id=JOB, delivery=SECOND))
    assert window.is_copy(message(partition(TOPICS.retry[TIERS[1]]), 7, job_id=JOB, delivery=SECOND))


def test_one_that_was_dropped_as_a_copy_of_another_topics_does_not_make_that_one_a_copy() -> None:
    """Its next owner may meet them the other way round: it would drop the one that is left, and the job be gone."""
    low, critical = (partition(TOPICS.jobs[one]) for one in (JobPriority.LOW, JobPriority.CRITICAL))
    before, after = DuplicateWindow(), DuplicateWindow()
    assert not before.is_copy(message(low, 50, job_id=JOB))
    assert before.is_copy(message(critical, 9, job_id=JOB)), "it is dropped, and with that finished"
    assert not after.is_copy(message(critical, 9, job_id=JOB), is_finished=True)
    assert not after.is_copy(message(low, 50, job_id=JOB))
    assert after.is_copy(message(low, 51, job_id=JOB))
    assert after.is_copy(message(critical, 10, job_id=JOB)), "for the one at 50 runs here"


def test_a_copy_of_one_that_is_finished_is_one_on_the_same_topic() -> None:
    window = DuplicateWindow()
    assert not window.is_copy(message(partition(), 3, job_id=JOB), is_finished=True)
    assert window.is_copy(message(partition(), 4, job_id=JOB))


def test_what_cannot_be_read_is_never_a_copy() -> None:
    window, part = DuplicateWindow(), partition()
    assert [window.is_copy(message(part, offset, value=b"garbage")) for offset in range(3)] == [False] * 3


def test_another_owner_sees_what_comes_next() -> None:
    window = DuplicateWindow()
    window.is_copy(message(partition(number=3), 0, job_id=JOB))
    window.is_copy(message(partition(number=4), 0, job_id=OTHER))
    window.forget({("any", 3), ("any", 9)})
    assert not window.is_copy(message(partition(number=3), 5, job_id=JOB))
    assert window.is_copy(message(partition(number=4), 5, job_id=OTHER))


def test_the_window_is_bounded_and_forgets_the_oldest_first() -> None:
    window, part = DuplicateWindow(3), partition()
    jobs = [str(uuid.UUID(int=number)) for number in range(4)]
    for offset, job in enumerate(jobs):
        assert not window.is_copy(message(part, offset, job_id=job))
    assert window.is_copy(message(part, 10, job_id=jobs[1]))
    assert not window.is_copy(message(part, 10, job_id=jobs[0]))
    assert len(window._seen[0].places) == 3


def test_what_is_read_of_one_topic_pushes_out_nothing_of_another() -> None:
    """Found by a storm: a new owner read 9,000 finished jobs again, while copies came to a retry topic."""
    window, part, retry = DuplicateWindow(3), partition(), partition(TOPICS.retry[TIERS[0]])
    assert not window.is_copy(message(retry, 0, job_id=JOB))
    for offset in range(9):
        assert not window.is_copy(message(part, offset, job_id=str(uuid.UUID(int=100 + offset))))
    assert window.is_copy(message(retry, 16, job_id=JOB))
    assert len(window._seen[0].places) == 3 + 1


def test_memory_is_bounded_however_many_partitions_are_ours_and_each_keeps_its_latest() -> None:
    window = DuplicateWindow(window=8, most=20, least=2)
    parts = [partition(number=number) for number in range(10)]
    for offset in range(30):
        for part in parts:
            name = str(uuid.UUID(int=offset * 100 + part.partition))
            assert not window.is_copy(message(part, offset, job_id=name))
            assert len(window) <= 20 + 2 * len(parts)
    for part in parts:
        latest = str(uuid.UUID(int=29 * 100 + part.partition))
        assert window.is_copy(message(part, 30, job_id=latest))
    window.forget({("any", number) for number in range(10)})
    assert len(window) == 0
