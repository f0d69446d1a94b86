"""Give dead letters, and other finished jobs, a new life.

In:  which ones. Out: for each a job record (the same bytes, on the job topic of its priority and the same
partition number) and a ``pending`` status with ``redrives`` one higher, in one transaction.

Two operators at once must not fork a job: all of them use one transactional id. Taking it fences whoever had
it and ends what he had open; only then are the topics read to their end, and what they show as alive again is
left alone. A run that breaks off leaves each job either as it was or redriven.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from confluent_kafka import KafkaException, Message, Producer

from schemas import headers as h
from schemas.codec import Codec
from schemas.errors import DeliveryFailed, PipelineError, ReadIncomplete, WireError
from schemas.headers import MAX_HISTORY, Attempt, Delivery, RawHeaders, clip
from schemas.lifecycle import JobStatus, actor_of
from schemas.records import STATUS, StatusChange, StatusWriter, decode_status
from schemas.topics import JobPriority, Topics
from streams.client_log import ConnectionWatch
from streams.clients import FENCED, MAX_FORWARDED_BYTES, TRANSACTION_TIMEOUT_MS, kafka_failed, producer_config
from streams.dead_letters import LOOK_S, DeadLetter, DeadLetterFilter, DeadLetters, read_dead_letters
from streams.jobinfo import JobState, status_now
from streams.producer_end import let_go
from streams.reader import JobNotFound, JobReader
from streams.registry import build_codec
from streams.schemas_topic import publish_schemas
from streams.settings import Settings
from streams.visible import Written, is_forbidden, visible_records

log = structlog.get_logger("rustfs_workers.redrive")

#: Letters of one transaction, and their bytes: Kafka ends one that takes longer than its time-out, and whoever wrote it.
_BATCH: Final = 200
_BATCH_BYTES: Final = 4 * 1024 * 1024
#: Of one letter. What follows it has fewer headers, and one more attempt to tell of.
_MOST_BYTES: Final = MAX_FORWARDED_BYTES - 4096
#: Nothing is redriven on half a picture.
_READ_S: Final = LOOK_S
_KAFKA_S: Final = 15.0
#: Our clock stamps what we look for, and may have been set meanwhile.
_CLOCK_STEPS_MS: Final = 10_000
#: How often a run starts over after an answer that cannot be trusted.
_STARTS: Final = 5


class RedriveTakenOver(PipelineError):
    """Another redrive of this deployment began: it goes on where this one was stopped."""

    def __init__(self, done: int) -> None:
        self.done = done
        super().__init__(
            f"another redrive of this deployment has begun, so this one stopped after {done:,} job(s); "
            "run one at a time, and this one again for what is left"
        )


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


@dataclass(frozen=True, slots=True)
class NewLife:
    """What is written for one job."""

    job_id: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: RawHeaders
    status: StatusChange


@dataclass(slots=True)
class _Progress:
    done: list[str] = field(default_factory=list)
    #: Of the transaction whose fate is not known.
    doubtful: Sequence[NewLife] = ()

    def clear_doubt(self, life_of: Callable[[str], int]) -> None:
        """Nobody else can have written since: what has the new life now got it from that transaction."""
        self.done += [life.job_id for life in self.doubtful if life_of(life.job_id) >= life.status.redrives]
        self.doubtful = ()


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
        RedriveTakenOver: another redrive began.
        DeliveryFailed: Kafka failed time and again; each job is either as it was or redriven.
    """
    codec = codec or build_codec(settings)
    which = replace(which, include_redriven=False)
    progress = _Progress()
    if dry_run:
        found = _read(settings, codec)
        return _report(found, which, progress, dry_run=True)
    publish_schemas(settings, [STATUS], timeout_s=_KAFKA_S)
    reports: list[RedriveReport] = []

    def run(session: _Session) -> None:
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

    _in_sessions(settings, codec, run, progress)
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
        DeliveryFailed: Kafka failed time and again; the job is either as it was or pending.
    """
    codec = codec or build_codec(settings)
    publish_schemas(settings, [STATUS], timeout_s=_KAFKA_S)
    reader = JobReader(settings, codec)
    progress = _Progress()

    def run(session: _Session) -> None:
        seen = reader.read(job_id, timeout_s=_READ_S)
        if not seen.complete:
            raise ReadIncomplete(_READ_S)
        state = seen.state_of(job_id)
        if state.gone:
            raise JobNotFound(job_id)
        progress.clear_doubt(lambda _: _life_of(state))
        if progress.done:
            return  # the commit whose answer was lost did succeed
        actor_of(status_now(state), JobStatus.PENDING)
        session.commit([life_again(job_id, state, time.time_ns() // 1_000_000, settings.topics)])

    try:
        _in_sessions(settings, codec, run, progress)
    finally:
        reader.close()


def can_live(letter: DeadLetter) -> bool:
    """Whether it can be given a new life: one that Kafka refuses would hold up all others of its transaction, for ever."""
    size = len(letter.value or b"") + len(letter.key or b"")
    size += sum(len(name) + len(text) for name, text in letter.headers)
    return letter.can_run and size <= _MOST_BYTES


def life_after(letter: DeadLetter, last: StatusChange | None, now_ms: int, topics: Topics) -> NewLife:
    """The new life of a dead letter. ``last``: the newest status of its job, if there is one."""
    assert letter.priority is not None and letter.value is not None  # noqa: S101, PT018 - it can run
    delivery = letter.delivery
    if last is not None and (last.redrives, last.delivery) != (delivery.redrives, delivery.delivery):
        last = None  # it tells of something else
    failed_at = now_ms if letter.failed_at is None else round(letter.failed_at.timestamp() * 1000)
    ended = Attempt(
        attempt=delivery.attempt,
        worker=last.worker if last is not None else "",
        started_at_ms=last.started_at if last is not None and last.started_at else failed_at,
        finished_at_ms=failed_at,
        error_type=delivery.error_type,
        error_message=clip(delivery.error_message, Attempt.MESSAGE_LIMIT),
    )
    return _new_life(
        letter.id,
        letter.priority,
        delivery,
        letter.partition,
        letter.key,
        letter.value,
        now_ms,
        topics,
        created_at=last.created_at if last is not None else delivery.first_seen_ms or failed_at,
        history=(*delivery.history, ended),
    )


def life_again(job_id: str, state: JobState, now_ms: int, topics: Topics) -> NewLife:
    """The new life of a job that is finished and whose record is still there.

    Raises:
        JobNotFound: the record is gone.
    """
    event, seen = state.event, state.last_status
    if event is None:
        raise JobNotFound(job_id)
    delivery = event.delivery
    history = delivery.history
    created_at = delivery.first_seen_ms or event.timestamp_ms
    if seen is not None:
        # The newest of everything: the copy that follows must be newer than all of it.
        redrives, number = max(
            (seen.change.redrives, seen.change.delivery), (delivery.redrives, delivery.delivery)
        )
        delivery = replace(delivery, redrives=redrives, delivery=number)
        history = seen.change.attempts or history
        created_at = seen.change.created_at
    return _new_life(
        job_id,
        event.priority,
        delivery,
        event.place[1],
        job_id.encode() if event.key is None else event.key.encode(),
        event.value,
        now_ms,
        topics,
        created_at=created_at,
        history=history,
    )


def _new_life(
    job_id: str,
    priority: JobPriority,
    delivery: Delivery,
    partition: int,
    key: bytes | None,
    value: bytes,
    now_ms: int,
    topics: Topics,
    *,
    created_at: int,
    history: Sequence[Attempt],
) -> NewLife:
    again = delivery.next(
        attempt=1,
        redrives=delivery.redrives + 1,
        not_before_ms=0,
        unknown_since_ms=0,
        snoozed_since_ms=0,
        error_type="",
        error_message="",
        history=tuple(history)[-MAX_HISTORY:],
    )
    text_key = (key or b"").decode("utf-8", "replace")
    return NewLife(
        job_id=job_id,
        topic=topics.jobs[priority],
        partition=partition,
        key=key,
        value=value,
        headers=h.build(again),
        status=StatusChange(
            job_id=job_id,
            key=None if text_key in ("", job_id) else text_key,
            at=now_ms,
            created_at=created_at,
            started_at=None,
            state=JobStatus.PENDING,
            type=delivery.job_type,
            priority=priority,
            attempt=1,
            delivery=again.delivery,
            redrives=again.redrives,
            attempts=again.history,
        ),
    )


class _Doubt(Exception):
    """Whether the transaction was committed is not known: start over, and read what is there."""


class _LostWhileIdle(_Doubt):
    """A connection, and nothing was under way: of the next one perhaps nobody would hear, see ``ConnectionWatch``.

    A new producer alone would not do: another process may have taken the id, and redriven what we still have before us.
    """


class _Session:
    """One producer that holds the deployment's redrive id, from taking it to the first doubt."""

    def __init__(self, settings: Settings, codec: Codec, progress: _Progress) -> None:
        self._settings = settings
        self._codec = codec
        self._progress = progress
        self._connection = ConnectionWatch()
        self._statuses = StatusWriter(codec)
        self._topics = settings.topics
        self._producer = Producer(
            producer_config(
                settings,
                transactional_id=f"{settings.topic_prefix}dlq-redrive",
                linger_ms=5,
                logger=self._connection.logger,
            )
        )
        try:
            self._producer.init_transactions(_KAFKA_S)
        except KafkaException as error:
            raise kafka_failed(settings, error, _KAFKA_S) from error

    def commit(self, lives: Sequence[NewLife]) -> None:
        """Write these, all or none, and note them as done.

        Raises:
            _Doubt: perhaps they were written. _LostWhileIdle: they were not.
            RedriveTakenOver: another process took the id; they were not written.
        """
        self._look_for_losses()
        self._progress.doubtful = lives
        self._write([record for life in lives for record in self._records_of(life)])
        self._progress.done += [life.job_id for life in lives]
        self._progress.doubtful = ()

    def complete(self) -> None:
        """Write the other half of each life of which Kafka has kept one.

        A transaction is all or nothing, but for one whose coordinator is killed and back within seconds: see
        ``workers.committing.torn``.

        Raises:
            _Doubt: perhaps they were written, or what stands cannot be read. RedriveTakenOver: they were not written.
        """
        self._poll()
        self._connection.lost = False  # while it began, nothing of a transaction was on its way
        lives = [(life, *self._records_of(life)) for life in self._progress.doubtful]
        if not lives:
            return
        since_ms = min(life.status.at for life, _, _ in lives) - _CLOCK_STEPS_MS
        told: dict[str, StatusChange] = {}

        def note(message: Message) -> None:
            if message.topic() == self._topics.status and (value := message.value()) is not None:
                with contextlib.suppress(WireError):  # not one of ours
                    change = decode_status(self._codec, value)
                    told[change.job_id] = change

        try:
            seen = visible_records(
                self._settings,
                {record for _, *pair in lives for record in pair},
                since_ms,
                timeout_s=_READ_S,
                each=note,
            )
        except PipelineError as error:
            if is_forbidden(error):
                log.warning(
                    "what was redriven cannot be looked at: its statuses have to speak", error=str(error)
                )
                return
            raise _Doubt(str(error)) from error
        torn: list[Written] = []
        for life, job, status in lives:
            if (job in seen) is (status in seen):
                continue
            if job not in seen:
                torn.append(job)
            # Its worker may have told more of it by now, and "pending" must not be the last word.
            elif (last := told.get(life.job_id)) is None or last.redrives < life.status.redrives:
                torn.append(status)
        if torn:
            log.warning("Kafka has kept a part of a transaction; the rest is written now", records=len(torn))
            self._look_for_losses()
            self._write(torn)

    def end(self) -> None:
        """Nothing can be committed any more."""
        ended = [self._producer]
        del self._producer
        let_go(ended)

    def _records_of(self, life: NewLife) -> tuple[Written, Written]:
        return (
            Written.of(life.topic, life.partition, life.key, life.value, life.headers),
            Written.of(
                self._topics.status, -1, life.job_id.encode(), self._statuses.encode(life.status), None
            ),
        )

    def _look_for_losses(self) -> None:
        self._poll()
        if self._connection.lost:
            raise _LostWhileIdle("a connection was lost between two transactions")

    def _poll(self) -> None:
        try:
            self._producer.poll(0)
        except KafkaException as error:
            if error.args[0].code() in FENCED:
                raise RedriveTakenOver(len(self._progress.done)) from error
            raise _Doubt(error.args[0].str()) from error

    def _write(self, records: Sequence[Written]) -> None:
        try:
            self._producer.begin_transaction()
            for record in records:
                self._produce(record)
            self._producer.commit_transaction(TRANSACTION_TIMEOUT_MS / 1000)
            self._producer.poll(0)
        except KafkaException as error:
            if error.args[0].code() in FENCED:
                raise RedriveTakenOver(len(self._progress.done)) from error
            raise _Doubt(error.args[0].str()) from error
        # librdkafka repeats a commit whose connection broke by itself, and the late first one may then end up
        # in the next transaction: only a new producer is safe.
        if self._connection.lost:
            raise _Doubt("the connection broke during a commit")

    def _produce(self, record: Written) -> None:
        topic, partition, key, value, headers = record
        while True:
            try:
                self._producer.produce(topic, value, key, partition, headers=list(headers))
            except BufferError:
                self._producer.poll(0.05)
            else:
                return


def _in_sessions(
    settings: Settings, codec: Codec, run: Callable[[_Session], None], progress: _Progress
) -> None:
    doubt: _Doubt | None = None
    doubts = 0
    while doubts < _STARTS:
        before = len(progress.done)
        session = _Session(settings, codec, progress)
        try:
            session.complete()
            run(session)
        except _Doubt as error:
            log.warning("redrive starts over", reason=str(error), done=len(progress.done))
            doubt = error
            # A slow rate leaves connections idle between two jobs, and brokers close those.
            doubts += not isinstance(error, _LostWhileIdle) or len(progress.done) == before
        else:
            return
        finally:
            session.end()
    raise DeliveryFailed(
        f"Kafka's answers could not be trusted {_STARTS} times ({doubt}); {len(progress.done):,} job(s) "
        "were certainly given a new life. Run it again for what is left"
    ) from doubt


def _read(settings: Settings, codec: Codec) -> DeadLetters:
    found = read_dead_letters(settings, codec, timeout_s=_READ_S)
    if not found.complete:
        raise ReadIncomplete(_READ_S)
    return found


def _report(
    found: DeadLetters, which: DeadLetterFilter, progress: _Progress, *, dry_run: bool = False
) -> RedriveReport:
    chosen = [letter for letter in found.letters if which.matches(letter)]
    known = {letter.id for letter in chosen} | {f"{x.topic}/{x.partition}/{x.offset}" for x in chosen}
    missing = sorted((which.ids or frozenset()) - known - set(progress.done))
    return RedriveReport(
        redriven=tuple(letter.id for letter in chosen if can_live(letter)) if dry_run else (),
        refused=tuple(letter for letter in chosen if not can_live(letter)),
        not_waiting=tuple(missing),
        dry_run=dry_run,
    )


def _life_of(state: JobState) -> int:
    event, seen = state.event, state.last_status
    return max(event.delivery.redrives if event else 0, seen.change.redrives if seen else 0)


def pause_s(done: int, elapsed_s: float, rate: float) -> float:
    """How long to wait so that ``done`` jobs in ``elapsed_s`` do not exceed ``rate`` per second."""
    return max(done / rate - elapsed_s, 0)
