"""What became of the records of one call, as Kafka reports it.

In:  delivery reports. Out: a ``DeliveryFailed`` that says which jobs are certainly not written, and which perhaps are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, Message

from schemas.codec import peek_id
from schemas.errors import DeliveryFailed, WireError
from streams.acknowledged import was_acknowledged

#: How many failed ids an error names.
_NAMED: Final = 1000
#: librdkafka's and Kafka's errors after which a record is certainly not in the log.
_NOT_WRITTEN: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError._PURGE_QUEUE,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that was not acknowledged."""

    job_id: str
    reason: str
    #: Kafka may have it all the same: the answer was lost, not the record.
    perhaps_written: bool


class Ticket:
    """Counts delivery reports of one call; it is itself the callback of every record (one object for all).

    ``done`` is called once or more, in the thread that serves reports or in the one that seals.
    """

    __slots__ = ("_done", "_expected", "_seen", "began", "failed", "failures", "timed_out")

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._seen = 0
        self._expected = -1
        self.failures: list[Failure] = []
        self.failed = 0
        #: Kafka did not acknowledge a record in time.
        self.timed_out = False
        self.began = time.monotonic()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """A delivery report."""
        if error is not None:
            self.timed_out = self.timed_out or error.code() == KafkaError._MSG_TIMED_OUT
            self._fail(message, error.str(), perhaps_written=error.code() not in _NOT_WRITTEN)
        elif not was_acknowledged(message):
            self._fail(
                message, "it was never acknowledged itself, only what came after it", perhaps_written=True
            )
        self._seen += 1
        if self._seen == self._expected:
            self._done()

    def _fail(self, message: Message, reason: str, *, perhaps_written: bool) -> None:
        self.failed += 1
        if len(self.failures) < _NAMED:
            self.failures.append(Failure(_id_of(message), reason, perhaps_written))

    def seal(self, sent: int) -> None:
        """No more than ``sent`` reports will come."""
        self._expected = sent
        if self._seen == sent:
            self._done()

    @property
    def finished(self) -> bool:
        """All reports are there. Ctrl-C between sending a record and counting it leaves one more."""
        return 0 <= self._expected <= self._seen

    def no_more(self) -> None:
        """What is missing will not come: Ctrl-C ended this callback before it counted."""
        if missing := max(self._expected - self._seen, 0):
            self.failed += missing
            self.failures.append(Failure("unknown", "the report was lost", perhaps_written=True))
            self._seen = self._expected

    def failure(self) -> DeliveryFailed | None:
        """What went wrong, in words; None if nothing did."""
        return delivery_failed(self.failures, self.failed)


def delivery_failed(failures: list[Failure], count: int) -> DeliveryFailed | None:
    """The error for records that were not acknowledged; None if there are none."""
    if not count:
        return None
    perhaps = [failure.job_id for failure in failures if failure.perhaps_written]
    surely = [failure.job_id for failure in failures if not failure.perhaps_written]
    parts = [f"Kafka did not acknowledge {count:,} job(s): {failures[0].reason}"]
    if surely:
        parts.append(f"certainly not written: {_some(surely)}")
    if perhaps:
        parts.append(
            f"perhaps written, so schedule them again only under the same id (job_id=, or submit --job-id): {_some(perhaps)}"
        )
    return DeliveryFailed("; ".join(parts))


def stayed_full(seconds: float) -> DeliveryFailed:
    """Kafka took nothing for so long that there is no room for more."""
    return DeliveryFailed(f"nothing was sent: the queue to Kafka stayed full for {seconds:.0f} s")


def _id_of(message: Message) -> str:
    try:
        return peek_id(message.value()).decode()
    except WireError:
        return repr(message.key())


def _some(ids: list[str]) -> str:
    shown = ", ".join(ids[:20])
    return f"{shown} and {len(ids) - 20:,} more" if len(ids) > 20 else shown  # noqa: PLR2004
