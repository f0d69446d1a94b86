"""Writes new lives, each with both of its records or not at all, while nobody else does.

In:  new lives. Out: transactions, and which lives have been given for certain.

Two operators at once must not fork a job: all of them use one transactional id. Taking it fences whoever had it and ends what he had
open; only then is it time to read what is to be redriven. After an answer that cannot be trusted a session ends, and the next one
begins with what stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from confluent_kafka import KafkaException, Message, Producer

from schemas.codec import Codec
from schemas.errors import DeliveryFailed, PipelineError, WireError
from schemas.records import StatusChange, StatusWriter, decode_status
from streams import transactional_ids
from streams.client_log import ConnectionWatch
from streams.clients import FENCED, TRANSACTION_TIMEOUT_MS, kafka_failed, producer_config
from streams.dead_letters import LOOK_S
from streams.new_life import NewLife
from streams.producer_end import let_go
from streams.settings import Settings
from streams.tickets import some_of
from streams.visible import Written, is_forbidden, visible_records

log = structlog.get_logger("rustfs_workers.redrive")

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


@dataclass(slots=True)
class Progress:
    """What has been done so far, across sessions."""

    done: list[str] = field(default_factory=list)
    #: Of the transaction whose fate is not known.
    doubtful: Sequence[NewLife] = ()

    def clear_doubt(self, life_of: Callable[[str], int]) -> None:
        """Nobody else can have written since: what has the new life now got it from that transaction."""
        self.done += [life.job_id for life in self.doubtful if life_of(life.job_id) >= life.status.redrives]
        self.doubtful = ()


class _Doubt(Exception):
    """Whether the transaction was committed is not known: start over, and read what is there."""


class _LostWhileIdle(_Doubt):
    """A connection, and nothing was under way: of the next one perhaps nobody would hear, see ``ConnectionWatch``.

    A new producer alone would not do: another process may have taken the id, and redriven what we still have before us.
    """


class Session:
    """One producer that holds the deployment's redrive id, from taking it to the first doubt."""

    def __init__(self, settings: Settings, codec: Codec, progress: Progress) -> None:
        self._settings = settings
        self._codec = codec
        self._progress = progress
        self._connection = ConnectionWatch()
        self._statuses = StatusWriter(codec)
        self._topics = settings.topics
        self._producer = Producer(
            producer_config(
                settings,
                transactional_id=transactional_ids.of_redrive(settings.topics),
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
        try:
            self._write([record for life in lives for record in self._records_of(life)])
        except RedriveTakenOver:
            if not self._connection.lost:  # else an earlier try may have come through
                self._progress.doubtful = ()
            raise
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
                timeout_s=LOOK_S,
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


def in_sessions(settings: Settings, codec: Codec, run: Callable[[Session], None], progress: Progress) -> None:
    """Call ``run``, again in a new session after each doubt.

    Raises:
        RedriveTakenOver: another redrive of this deployment began.
        DeliveryFailed: there was too much doubt, or something else came in between; its words, and ``perhaps_written``, say which jobs
            may have a new life.
        KafkaUnreachable: no broker answered, and nobody has a new life.
    """
    try:
        _in_sessions(settings, codec, run, progress)
    except PipelineError as error:
        perhaps = [life.job_id for life in progress.doubtful]
        says_how_many = isinstance(error, RedriveTakenOver)
        if not perhaps and (says_how_many or not progress.done):
            raise
        words = [str(error)]
        if not says_how_many:
            words.append(f"{len(progress.done):,} job(s) were certainly given a new life")
        if perhaps:
            words.append(f"perhaps so were {some_of(perhaps)}")
        raise DeliveryFailed("; ".join(words), perhaps_written=perhaps) from error


def _in_sessions(
    settings: Settings, codec: Codec, run: Callable[[Session], None], progress: Progress
) -> None:
    doubt: _Doubt | None = None
    doubts = 0
    while doubts < _STARTS:
        before = len(progress.done)
        session = Session(settings, codec, progress)
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
        f"Kafka's answers could not be trusted {_STARTS} times ({doubt}); run it again for what is left"
    ) from doubt
