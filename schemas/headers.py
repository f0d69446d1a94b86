"""What changes in delivery travels in headers, so a job's bytes never change.

In:  the raw headers of a record. Out: a typed ``Delivery`` (and back).

A fresh job carries ``rfw-type`` alone; every other header has a default that means "first time".
Our headers are UTF-8 text. A dead letter also carries Spring Kafka's ``kafka_dlt-*`` headers, whose
partition (4 bytes) and offset and timestamp (8 bytes each) are big-endian numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas.errors import BadHeaders

RawHeaders = list[tuple[str, bytes]]

TYPE: Final = "rfw-type"
ATTEMPT: Final = "rfw-attempt"
DELIVERY: Final = "rfw-delivery"
NOT_BEFORE: Final = "rfw-not-before"
DELAY: Final = "rfw-delay"
FIRST_SEEN: Final = "rfw-first-seen"
ORIGIN_TOPIC: Final = "rfw-origin-topic"
ORIGIN_PARTITION: Final = "rfw-origin-partition"
ORIGIN_OFFSET: Final = "rfw-origin-offset"
ERROR_TYPE: Final = "rfw-error-type"
ERROR_MESSAGE: Final = "rfw-error-message"
REDRIVES: Final = "rfw-redrives"
UNKNOWN_SINCE: Final = "rfw-unknown-since"
SNOOZED_SINCE: Final = "rfw-snoozed-since"
HISTORY: Final = "rfw-history"
FAILED_AT: Final = "rfw-failed-at"
TRACEPARENT: Final = "traceparent"

MAX_MESSAGE_BYTES: Final = 1024
MAX_STACKTRACE_BYTES: Final = 8192
#: Earlier attempts that a job remembers; older ones are dropped first.
MAX_HISTORY: Final = 10
#: For the name of a job type, a topic, an error or a worker.
MAX_NAME_BYTES: Final = 256
#: Characters of a job type's name.
MAX_TYPE_NAME: Final = 64

#: 9999-12-31 in milliseconds: a time after it is a mistake, and would overflow a datetime.
LATEST_MS: Final = 253_402_300_799_999
#: No honest counter comes near it. What follows one that is accepted still fits into an Avro int, so
#: whatever can be read can be run, retried and redriven; a reader refuses what lies above.
MAX_COUNT: Final = 1_000_000_000


def time_of_record(timestamp_ms: int) -> int:
    """The timestamp of a record, within the calendar: producers may write any 64 bits, or none (-1)."""
    return min(max(timestamp_ms, 0), LATEST_MS)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job was first read from."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One earlier run of a job, bounded in size so that it can travel in a header."""

    attempt: int
    worker: str
    started_at_ms: int
    finished_at_ms: int
    error_type: str
    error_message: str

    #: Room for an error message here; the full (≤ 1 KiB) one stands in the status of its time.
    MESSAGE_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery state of a record. ``attempt`` counts from 1 and names the run this record is for."""

    job_type: str = ""
    attempt: int = 1
    #: Rises by one whenever the job is published again; with the job id it tells a copy from a successor.
    delivery: int = 0
    not_before_ms: int = 0
    #: What the producer asked for, to be counted by the broker's clock: ``not_before_ms`` is by the producer's own. Only on
    #: the record that the producer wrote.
    delay_ms: int = 0
    first_seen_ms: int = 0
    redrives: int = 0
    #: When a worker without a handler for its type met it first, unless one with a handler has run it since.
    unknown_since_ms: int = 0
    #: When the job was snoozed for the first time in this life.
    snoozed_since_ms: int = 0
    origin: Origin | None = None
    error_type: str = ""
    error_message: str = ""
    history: tuple[Attempt, ...] = ()
    traceparent: str = ""

    def next(self, **changes: object) -> Delivery:
        """The delivery of the record that follows this one."""
        return replace(self, delivery=self.delivery + 1, delay_ms=0, **changes)  # type: ignore[arg-type]

    def counted_from(self, ms: int) -> Delivery:
        """A delay that begins now, by broker time."""
        return replace(self, not_before_ms=min(ms + self.delay_ms, LATEST_MS), delay_ms=0)


#: The deliveries of first runs, by type. Bounded, since type names come from messages.
_FRESH: dict[bytes, Delivery] = {}
_MOST_TYPES: Final = 1000
_MOST_DIGITS: Final = 19


def parse(raw: RawHeaders | None) -> Delivery:
    """Read the headers that are ours; others are ignored.

    Raises:
        BadHeaders: a header of ours is not UTF-8, not a number, or out of range.
    """
    if raw is None:
        return Delivery()
    if len(raw) == 1 and raw[0][0] == TYPE:  # every first run: no parsing at all
        value = raw[0][1]
        known = _FRESH.get(value)
        if known is None:
            known = Delivery(job_type=_name(TYPE, value))
            if value and len(value) <= MAX_TYPE_NAME and len(_FRESH) < _MOST_TYPES:
                _FRESH[value] = known
        return known
    # Kafka allows a header twice; the last one is the newest.
    fields = {name: value for name, value in raw if name.startswith("rfw-") or name == TRACEPARENT}
    origin = None
    if ORIGIN_TOPIC in fields:
        origin = Origin(
            _name(ORIGIN_TOPIC, fields[ORIGIN_TOPIC]),
            _number(fields, ORIGIN_PARTITION, 0, 0, 2**31 - 1),
            _number(fields, ORIGIN_OFFSET, 0, 0, 2**63 - 1),
        )
    return Delivery(
        job_type=_name(TYPE, fields.get(TYPE, b"")),
        attempt=_number(fields, ATTEMPT, 1, 1, MAX_COUNT),
        delivery=_number(fields, DELIVERY, 0, 0, MAX_COUNT),
        not_before_ms=_number(fields, NOT_BEFORE, 0, 0, LATEST_MS),
        delay_ms=_number(fields, DELAY, 0, 0, LATEST_MS),
        first_seen_ms=_number(fields, FIRST_SEEN, 0, 0, LATEST_MS),
        redrives=_number(fields, REDRIVES, 0, 0, MAX_COUNT),
        unknown_since_ms=_number(fields, UNKNOWN_SINCE, 0, 0, LATEST_MS),
        snoozed_since_ms=_number(fields, SNOOZED_SINCE, 0, 0, LATEST_MS),
        origin=origin,
        error_type=_text(ERROR_TYPE, fields.get(ERROR_TYPE, b"")),
        error_message=_text(ERROR_MESSAGE, fields.get(ERROR_MESSAGE, b"")),
        history=_history(fields.get(HISTORY)),
        traceparent=_text(TRACEPARENT, fields.get(TRACEPARENT, b"")),
    )


#: What of a record's headers may still speak for it if others cannot be read: never when it is due.
_SALVAGED: Final = (
    (TYPE,),
    (ATTEMPT,),
    (DELIVERY,),
    (FIRST_SEEN,),
    (REDRIVES,),
    (ORIGIN_TOPIC, ORIGIN_PARTITION, ORIGIN_OFFSET),
    (HISTORY,),
)


def salvage(raw: RawHeaders | None) -> Delivery:
    """The delivery of a record that is going to the dead letters, from those of its headers that can be read.

    Its counters tell to which life of the job the letter and its status belong.
    """
    good: RawHeaders = []
    for names in _SALVAGED:
        group = [(name, value) for name, value in raw or () if name in names]
        try:
            parse(group)
        except BadHeaders:
            continue
        good += group
    return parse(good)


def build(delivery: Delivery) -> RawHeaders:
    """The headers that say exactly this; defaults are left out.

    Names of errors and workers are cut at 256 bytes, messages at 1 KiB, those in the history at 200 bytes.
    """
    raw: RawHeaders = [(TYPE, delivery.job_type.encode())]
    for name, number, default in (
        (ATTEMPT, delivery.attempt, 1),
        (DELIVERY, delivery.delivery, 0),
        (NOT_BEFORE, delivery.not_before_ms, 0),
        (FIRST_SEEN, delivery.first_seen_ms, 0),
        (REDRIVES, delivery.redrives, 0),
        (UNKNOWN_SINCE, delivery.unknown_since_ms, 0),
        (SNOOZED_SINCE, delivery.snoozed_since_ms, 0),
    ):
        if number != default:
            raw.append((name, str(number).encode()))
    if delivery.origin is not None:
        raw.append((ORIGIN_TOPIC, delivery.origin.topic.encode()))
        raw.append((ORIGIN_PARTITION, str(delivery.origin.partition).encode()))
        raw.append((ORIGIN_OFFSET, str(delivery.origin.offset).encode()))
    if delivery.error_type:
        raw.append((ERROR_TYPE, clip(delivery.error_type, MAX_NAME_BYTES).encode()))
    if delivery.error_message:
        raw.append((ERROR_MESSAGE, clip(delivery.error_message, MAX_MESSAGE_BYTES).encode()))
    if delivery.history:
        raw.append((HISTORY, _write_history(delivery.history)))
    if delivery.traceparent:
        raw.append((TRACEPARENT, delivery.traceparent.encode()))
    return raw


def dead_letter(
    delivery: Delivery,
    *,
    at: Origin,
    timestamp_ms: int,
    failed_at_ms: int,
    stacktrace: str,
    original: RawHeaders | None = None,
) -> RawHeaders:
    """Headers of a dead letter: ours and Spring Kafka's (names and byte formats of its ``KafkaHeaders``).

    Both families name the place where the job was first read, as Spring does: what failed at last may have
    been a copy on its way through the retry topics.

    Args:
        delivery: with the error that ended it.
        at: the record that failed; the job's origin, if it was never published again.
        timestamp_ms: of that record.
        failed_at_ms: now.
        stacktrace: of the error; 8 KiB of it are kept.
        original: the headers of a record that we could not read: those that are not ours are kept beside the
            ones that say why.
    """
    origin = at
    if delivery.origin is not None:
        origin, timestamp_ms = delivery.origin, delivery.first_seen_ms or timestamp_ms
    foreign = [
        (name, value)
        for name, value in original or ()
        if not name.startswith(("rfw-", "kafka_dlt-")) and name != TRACEPARENT
    ]
    message = clip(delivery.error_message, MAX_MESSAGE_BYTES)
    return [
        *build(replace(delivery, origin=origin)),
        (FAILED_AT, str(failed_at_ms).encode()),
        ("kafka_dlt-original-topic", origin.topic.encode()),
        ("kafka_dlt-original-partition", origin.partition.to_bytes(4, "big")),
        ("kafka_dlt-original-offset", origin.offset.to_bytes(8, "big")),
        ("kafka_dlt-original-timestamp", max(timestamp_ms, 0).to_bytes(8, "big")),
        ("kafka_dlt-exception-fqcn", clip(delivery.error_type, MAX_NAME_BYTES).encode()),
        ("kafka_dlt-exception-message", message.encode()),
        ("kafka_dlt-exception-stacktrace", clip_trace(stacktrace, MAX_STACKTRACE_BYTES).encode()),
        *foreign,
    ]


def clip(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8, cut at a character, with "…" where something is missing.

    Characters that UTF-8 cannot hold (lone surrogates, as in undecodable file names) become "?".
    """
    if len(text) <= limit and text.isascii():
        return text
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"


def clip_trace(trace: str, limit: int) -> str:
    """A stack trace of at most ``limit`` bytes of UTF-8 (from 100 up): how it begins and, mostly, how it ends.

    The end has the error itself and the frames next to it; the beginning is where the call came from.
    """
    if len(trace) <= limit and trace.isascii():
        return trace
    raw = trace.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    gap = f"\n… {len(raw) - limit:,} bytes and more left out …\n"
    room = limit - len(gap.encode())
    head = raw[: room // 5]
    tail = raw[-(room - len(head)) :]
    return head.decode("utf-8", "ignore") + gap + tail.decode("utf-8", "ignore")


def _text(name: str, value: bytes | None) -> str:
    try:
        return (value or b"").decode()
    except UnicodeDecodeError as error:
        raise BadHeaders(f"header {name} is not UTF-8: {value!r:.80}") from error


def _name(name: str, value: bytes | None) -> str:
    """A name travels on, in every header and status that follows: one of half a megabyte would make records too large."""
    if len(value or b"") > MAX_NAME_BYTES:
        raise BadHeaders(
            f"header {name} has {len(value or b''):,} bytes, {MAX_NAME_BYTES} at most: {value!r:.80}"
        )
    return _text(name, value)


def _number(fields: dict[str, bytes], name: str, default: int, low: int, high: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    # isdigit first: int() would also take "1_0", " 1 " and thousands of digits
    if len(value) > _MOST_DIGITS or not value.isdigit() or not low <= int(value) <= high:
        raise BadHeaders(f"header {name} must be a number from {low} to {high}, got {value!r:.80}")
    return int(value)


def _history(value: bytes | None) -> tuple[Attempt, ...]:
    if value is None:
        return ()
    try:
        rows = json.loads(value)
        if not isinstance(rows, list):
            raise TypeError("not a list")
        return tuple(map(_attempt, rows[-MAX_HISTORY:]))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadHeaders(f"header {HISTORY} is not a list of attempts: {value!r:.80}") from error


def _attempt(row: Any) -> Attempt:
    number, worker, started, finished, error_type, message = row
    for value, low, high in ((number, 1, MAX_COUNT), (started, 0, LATEST_MS), (finished, 0, LATEST_MS)):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r:.80} is not a number from {low} to {high}")
    if not all(isinstance(text, str) for text in (worker, error_type, message)):
        raise TypeError("a name or message is not a text")
    return Attempt(
        attempt=number,
        worker=clip(worker, MAX_NAME_BYTES),
        started_at_ms=started,
        finished_at_ms=finished,
        error_type=clip(error_type, MAX_NAME_BYTES),
        error_message=clip(message, Attempt.MESSAGE_LIMIT),
    )


def _write_history(history: Iterable[Attempt]) -> bytes:
    rows = [
        [
            a.attempt,
            clip(a.worker, MAX_NAME_BYTES),
            a.started_at_ms,
            a.finished_at_ms,
            clip(a.error_type, MAX_NAME_BYTES),
            clip(a.error_message, Attempt.MESSAGE_LIMIT),
        ]
        for a in list(history)[-MAX_HISTORY:]
    ]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
