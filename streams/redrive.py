"""Give dead letters, and other finished jobs, a new life.

In:  which ones. Out: for each a job record (the same bytes, on the job topic of its priority and the same
partition number) and a ``pending`` status with ``redrives`` one higher, in one transaction.

Only what the topics show as ended once nobody else can write (``streams.redrive_session``) is redriven. A run that breaks off leaves
each job either as it was or redriven.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from schemas.codec import Codec
from schemas.errors import ReadIncomplete
from schemas.lifecycle import JobStatus, actor_of
from schemas.records import STATUS
from streams.dead_letters import (
    LOOK_S,
    DeadLetter,
    DeadLetterFilter,
    DeadLetters,
    place_id,
    read_dead_letters,
)
from streams.jobinfo import status_now
from streams.new_life import can_live, life_after, life_again, life_of
from streams.reader import JobNotFound, JobReader
from streams.redrive_session import Progress, Session, in_sessions
from streams.registry import build_codec
from streams.schemas_topic import publish_schemas
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.redrive")

#: Letters of one transaction, and their bytes: Kafka ends one that takes longer than its time-out, and whoever wrote it.
_BATCH: Final = 200
_BATCH_BYTES: Final = 4 * 1024 * 1024
#: Nothing is redriven on half a picture.
_READ_S: Final = LOOK_S
_KAFKA_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive did, or would do (dry run)."""

    #: Ids, in the order in which they were given a new life.
    redriven: tuple[str, ...]
    #: Letters that match but hold no job, or one that is too large to be written again.
    refused: tuple[DeadLetter, ...]
    #: Ids asked for of which no letter is waiting: unknown, or redriven before.
    not_waiting: tuple[str, ...]
    dry_run: bool = False
    #: Ids asked for whose letter waits, and which the filter's type or error leaves out.
    not_matching: tuple[str, ...] = ()


def redrive(
    settings: Settings,
    which: DeadLetterFilter,
    *,
    dry_run: bool = False,
    rate: float | None = None,
    codec: Codec | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> RedriveReport:
    """Give the matching dead letters a new life. Blocks: not for an event loop.

    Args:
        settings: which deployment.
        which: which letters; those redriven before are never taken again.
        dry_run: only tell.
        rate: at most so many per second; None: as fast as it goes.
        codec: one to share.
        after_batch: called after each transaction with the number of jobs so far.

    Raises:
        ReadIncomplete: the topics could not be read to their end; nothing was redriven.
        KafkaUnreachable: no broker answered; nothing was redriven.
        TopicsMismatch: a topic does not exist.
        RedriveTakenOver: another redrive began; it says how many were redriven.
        DeliveryFailed: something failed on the way; it says how many were redriven, and which ones perhaps.
    """
    codec = codec or build_codec(settings)
    which = replace(which, include_redriven=False)
    progress = Progress()
    if dry_run:
        found = _read(settings, codec)
        return _report(found, which, progress, dry_run=True)
    publish_schemas(settings, [STATUS], timeout_s=_KAFKA_S)
    reports: list[RedriveReport] = []

    def run(session: Session) -> None:
        found = _read(settings, codec)
        progress.clear_doubt(
            lambda job_id: change.redrives if (change := found.statuses.get(job_id)) is not None else 0
        )
        reports.append(_report(found, which, progress))
        batch = _BATCH if rate is None else max(1, int(min(_BATCH, rate / 4)))
        waiting = [letter for letter in found.letters if can_live(letter) and which.matches(letter)]
        for letters in batches(waiting, batch):
            began, now_ms = time.monotonic(), time.time_ns() // 1_000_000
            session.commit(
                [
                    life_after(letter, found.statuses.get(letter.id), now_ms, settings.topics)
                    for letter in letters
                ]
            )
            if after_batch is not None:
                after_batch(len(progress.done))
            if rate is not None and letters[-1] is not waiting[-1]:
                time.sleep(pause_s(len(letters), time.monotonic() - began, rate))

    in_sessions(settings, codec, run, progress)
    first = reports[0]
    return replace(first, redriven=tuple(progress.done))


def batches(letters: Sequence[DeadLetter], most: int) -> Iterator[list[DeadLetter]]:
    """In their order: at most so many at a time, and no more bytes than a transaction should have. Pure."""
    batch: list[DeadLetter] = []
    size = 0
    for letter in letters:
        one = len(letter.value or b"")
        if batch and (len(batch) == most or size + one > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += one
    if batch:
        yield batch


def retry_job(settings: Settings, job_id: str, *, codec: Codec | None = None) -> None:
    """Start a new life of one finished job, whatever its end was. Blocks: not for an event loop.

    Raises:
        JobNotFound: its record is gone.
        IllegalTransition: it is not finished.
        ReadIncomplete: the topics could not be read to their end; nothing was changed.
        KafkaUnreachable: no broker answered; nothing was changed.
        TopicsMismatch: a topic does not exist.
        RedriveTakenOver: a redrive began meanwhile; nothing was changed.
        DeliveryFailed: Kafka failed time and again; the job is either as it was or pending, if ``perhaps_written`` names it.
    """
    codec = codec or build_codec(settings)
    publish_schemas(settings, [STATUS], timeout_s=_KAFKA_S)
    reader = JobReader(settings, codec)
    progress = Progress()

    def run(session: Session) -> None:
        seen = reader.read(job_id, timeout_s=_READ_S)
        if not seen.complete:
            raise ReadIncomplete(_READ_S)
        state = seen.state_of(job_id)
        if state.gone:
            raise JobNotFound(job_id)
        progress.clear_doubt(lambda _: life_of(state))
        if progress.done:
            return  # the commit whose answer was lost did succeed
        actor_of(status_now(state), JobStatus.PENDING)
        session.commit([life_again(job_id, state, time.time_ns() // 1_000_000, settings.topics)])

    try:
        in_sessions(settings, codec, run, progress)
    finally:
        reader.close()


def _read(settings: Settings, codec: Codec) -> DeadLetters:
    found = read_dead_letters(settings, codec, timeout_s=_READ_S)
    if not found.complete:
        raise ReadIncomplete(_READ_S)
    return found


def _report(
    found: DeadLetters, which: DeadLetterFilter, progress: Progress, *, dry_run: bool = False
) -> RedriveReport:
    chosen = [letter for letter in found.letters if which.matches(letter)]
    missing = (which.ids or frozenset()) - _names_of(chosen) - set(progress.done)
    of_any_kind = replace(which, job_type=None, error_type=None)
    left_out = missing & _names_of(letter for letter in found.letters if of_any_kind.matches(letter))
    return RedriveReport(
        redriven=tuple(letter.id for letter in chosen if can_live(letter)) if dry_run else (),
        refused=tuple(letter for letter in chosen if not can_live(letter)),
        not_waiting=tuple(sorted(missing - left_out)),
        dry_run=dry_run,
        not_matching=tuple(sorted(left_out)),
    )


def _names_of(letters: Iterable[DeadLetter]) -> set[str]:
    """What an id may have been given as: the job's, or the letter's place."""
    return {name for letter in letters for name in (letter.id, place_id(letter))}


def pause_s(done: int, elapsed_s: float, rate: float) -> float:
    """How long to wait so that ``done`` jobs in ``elapsed_s`` do not exceed ``rate`` per second."""
    return max(done / rate - elapsed_s, 0)
