"""Dead letters: what they say, and whether they were given a new life. Pure, but for ``read_dead_letters``.

In:  records of ``jobs.dlq`` and ``jobs.status``. Out: ``DeadLetter`` values, oldest first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from confluent_kafka import Message

from schemas import headers as h
from schemas.codec import Codec, peek_id, peek_priority
from schemas.errors import BadHeaders, ReadIncomplete, WireError
from schemas.headers import Delivery, RawHeaders
from schemas.jobtype import ENVELOPE_NAMES
from schemas.records import StatusChange
from schemas.topics import JobPriority
from streams.jobinfo import JobFold, StatusSeen, iso, jsonable, moment
from streams.raw_headers import raw_headers
from streams.reader import Schemas, place_of, sighting_of
from streams.registry import build_codec
from streams.scan import scan
from streams.schemas_topic import schema_lookup
from streams.settings import Settings

#: Bytes that each has. Whatever is longer is somebody else's, and perhaps longer than Python may print a number.
_SPRINGS_NUMBERS: Final = {
    "kafka_dlt-original-partition": 4,
    "kafka_dlt-original-offset": 8,
    "kafka_dlt-original-timestamp": 8,
}
#: How long looking at dead letters may take: each status that Kafka keeps is passed over, some hundred thousand a second.
LOOK_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead letter topic."""

    #: The job's id; ``<topic>/<partition>/<offset>`` where the bytes hold none.
    id: str
    type: str
    error_type: str
    error_message: str
    #: The run that failed last, from 1.
    attempt: int
    failed_at: datetime | None
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: RawHeaders
    delivery: Delivery
    #: None: the bytes hold no job, so nothing can run it.
    priority: JobPriority | None
    #: The job's own fields; None if they cannot be decoded.
    fields: Mapping[str, Any] | None = None
    #: A new life began after this, or another letter of this life stands before it.
    redriven: bool = False
    #: The newest status of its job cannot be read here, and may tell of a new life.
    unclear: bool = False

    @property
    def redrives(self) -> int:
        """How many lives it had before the one that ended here."""
        return self.delivery.redrives

    @property
    def can_run(self) -> bool:
        """Whether a redrive makes sense: its bytes name a job."""
        return self.priority is not None

    def to_json(self) -> dict[str, Any]:
        """What ``dlq list --json`` prints of it."""
        return {
            "id": self.id,
            "type": self.type,
            "error_type": self.error_type,
            "error_message": self.error_message,
            "attempt": self.attempt,
            "failed_at": iso(self.failed_at),
        }

    def to_full_json(self) -> dict[str, Any]:
        """What ``dlq show --json`` prints of it."""
        return {
            **self.to_json(),
            "redrives": self.redrives,
            "redriven": self.redriven,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "key": None if self.key is None else self.key.decode("utf-8", "replace"),
            "headers": [[name, header_text(name, value)] for name, value in self.headers],
            "fields": jsonable(self.fields),
            "value_hex": None if self.value is None else self.value.hex(),
        }


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters; None means any. ``ids``: of jobs, or places (``<topic>/<partition>/<offset>``)."""

    ids: frozenset[str] | None = None
    job_type: str | None = None
    error_type: str | None = None
    #: Those that have been given a new life are history; list them too?
    include_redriven: bool = False

    def matches(self, letter: DeadLetter) -> bool:
        """Whether it lets a letter through."""
        return (
            (self.include_redriven or not letter.redriven)
            and (self.ids is None or letter.id in self.ids or place_id(letter) in self.ids)
            and (self.job_type is None or letter.type == self.job_type)
            and (self.error_type is None or letter.error_type == self.error_type)
        )


@dataclass(frozen=True)
class DeadLetters:
    """What a reading found, oldest first, with the newest status of each job."""

    letters: tuple[DeadLetter, ...]
    statuses: Mapping[str, StatusChange]
    #: False: the time was up before the end was reached.
    complete: bool


def list_dead_letters(
    settings: Settings,
    which: DeadLetterFilter | None = None,
    *,
    codec: Codec | None = None,
    with_fields: bool = True,
) -> list[DeadLetter]:
    """Dead letters, oldest first, with their fields if those are wanted. Blocks: not for an event loop.

    Raises:
        ReadIncomplete: the topics could not be read to their end in time.
        KafkaUnreachable: no broker answered.
        TopicsMismatch: a topic does not exist.
    """
    which = which or DeadLetterFilter()
    codec = codec or build_codec(settings)
    found = read_dead_letters(settings, codec, timeout_s=LOOK_S)
    if not found.complete:
        raise ReadIncomplete(LOOK_S)
    chosen = [letter for letter in found.letters if which.matches(letter)]
    if not with_fields:
        return chosen
    schemas = Schemas(codec, schema_lookup(settings, codec.store)).of_one_reading()
    try:
        return [
            replace(letter, fields=_fields(letter.value, schemas)) if letter.can_run else letter
            for letter in chosen
        ]
    finally:
        schemas.close()


def read_dead_letters(settings: Settings, codec: Codec, *, timeout_s: float) -> DeadLetters:
    """Read dead letters, without their fields, and their jobs' statuses, to the ends taken now. Blocks."""
    topics = settings.topics
    until = time.monotonic() + timeout_s
    letters: list[DeadLetter] = []
    complete = scan(
        settings, (topics.dlq,), lambda message: letters.append(dead_letter_of(message)), timeout_s=timeout_s
    ).complete
    # The others', millions perhaps, are passed over by their key: they would take minutes, and gigabytes.
    wanted = {letter.id.encode() for letter in letters}
    schemas = Schemas(codec, schema_lookup(settings, codec.store)).of_one_reading()
    fold = JobFold()
    unclear: set[str] = set()

    def take(message: Message) -> None:
        job_id = (message.key() or b"").decode("utf-8", "replace")
        try:
            sighting = sighting_of(message, topics, schemas, wanted)
        except WireError:
            # In a schema that is not to be had here, or of a version to come.
            unclear.add(job_id)
            return
        if sighting is not None:
            fold.see(sighting)
            unclear.discard(job_id)  # a later one that can be read is newer

    try:
        left_s = max(until - time.monotonic(), 0.0)
        complete = (
            not wanted or scan(settings, (topics.status,), take, timeout_s=left_s).complete
        ) and complete
    finally:
        schemas.close()
    statuses = {
        job_id: seen.change
        for job_id, state in fold.states.items()
        if isinstance(seen := state.last_status, StatusSeen)
    }
    marked = mark_redriven(letters, statuses)
    marked = [replace(letter, unclear=True) if letter.id in unclear else letter for letter in marked]
    return DeadLetters(tuple(marked), statuses, complete)


def dead_letter_of(message: Message) -> DeadLetter:
    """What a record of the dead letter topic says, without its fields; never fails, whatever the bytes are."""
    topic, partition, offset = place_of(message)
    key, value = message.key(), message.value()
    raw = [(name, content or b"") for name, content in raw_headers(message) or ()]
    try:
        delivery = h.parse(raw)
        bad_headers = ""
    except BadHeaders as error:
        delivery, bad_headers = Delivery(), str(error)
    try:
        job_id, priority = peek_id(value).decode(), None if bad_headers else peek_priority(value)
    except WireError:
        job_id, priority = f"{topic}/{partition}/{offset}", None
    return DeadLetter(
        id=job_id,
        type=delivery.job_type,
        error_type=delivery.error_type or ("BadHeaders" if bad_headers else ""),
        error_message=delivery.error_message or bad_headers,
        attempt=delivery.attempt,
        failed_at=moment(_failed_at(raw) or h.time_of_record(message.timestamp()[1])),
        topic=topic,
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=raw,
        delivery=delivery,
        priority=priority,
    )


def mark_redriven(letters: Iterable[DeadLetter], statuses: Mapping[str, StatusChange]) -> list[DeadLetter]:
    """The letters, oldest first; those that a later life or an earlier twin has settled are marked."""
    marked = []
    newest_life: dict[str, int] = {job_id: change.redrives for job_id, change in statuses.items()}
    letters = sorted(
        letters, key=lambda letter: (letter.failed_at or moment(0), letter.partition, letter.offset)
    )
    for letter in letters:
        newest_life[letter.id] = max(newest_life.get(letter.id, 0), letter.redrives)
    taken: set[tuple[str, int]] = set()
    for letter in letters:
        life = (letter.id, letter.redrives)
        over = letter.redrives < newest_life[letter.id] or _lives_on(letter, statuses.get(letter.id))
        # A torn transaction may leave one death twice: only the first may have a new life.
        redriven = letter.can_run and (over or life in taken)
        marked.append(replace(letter, redriven=True) if redriven else letter)
        taken.add(life)
    return marked


def _lives_on(letter: DeadLetter, change: StatusChange | None) -> bool:
    """Whether the job was published again after this letter, within the same life."""
    return (
        change is not None
        and change.redrives == letter.redrives
        and change.delivery > letter.delivery.delivery
    )


def place_id(letter: DeadLetter) -> str:
    """Where it stands, as an id."""
    return f"{letter.topic}/{letter.partition}/{letter.offset}"


def header_text(name: str, value: bytes) -> str:
    """A header for people: Spring's numbers are big-endian, everything else is text."""
    if len(value) == _SPRINGS_NUMBERS.get(name):
        return str(int.from_bytes(value, "big"))
    return value.decode("utf-8", "replace")


def _failed_at(raw: RawHeaders) -> int | None:
    for name, value in reversed(raw):
        if name == h.FAILED_AT and value.isdigit() and len(value) <= len(str(h.LATEST_MS)):
            return h.time_of_record(int(value))
    return None


def _fields(value: bytes | None, schemas: Schemas) -> Mapping[str, Any] | None:
    try:
        record = schemas.decode_job(value or b"")
    except WireError:
        return None
    return {name: item for name, item in record.items() if name not in ENVELOPE_NAMES}
