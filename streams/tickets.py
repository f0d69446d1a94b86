"""What became of the records of one call, as Kafka reports it.

In:  delivery reports. Out: a ``DeliveryFailed`` that says which jobs are certainly not written, and which perhaps are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import KafkaError, Message

from schemas.codec import peek_id
from schemas.errors import DeliveryFailed, WireError
from streams.acknowledged import was_acknowledged

#: How many ids an error names in its words; it has all of them.
_NAMED: Final = 20
#: librdkafka's and Kafka's errors after which a record is certainly not in the log. Not "purged in queue": a record whose broker
#: died before its answer came goes back into the queue, to be sent once more.
_NOT_WRITTEN: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
    }
)


@dataclass(slots=True)
class Unacknowledged:
    """Jobs that Kafka did not acknowledge, by their ids, in the order of their reports."""

    #: Of the first one.
    reason: str = ""
    not_written: list[str] = field(default_factory=list)
    #: Kafka may have them all the same: the answer was lost, not the record.
    perhaps_written: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.not_written) + len(self.perhaps_written)

    def add(self, job_id: str, reason: str, *, perhaps_written: bool) -> None:
        """One more."""
        self.reason = self.reason or reason
        (self.perhaps_written if perhaps_written else self.not_written).append(job_id)

    def take_over(self, others: Unacknowledged) -> None:
        """Those of another call."""
        self.reason = self.reason or others.reason
        self.not_written += others.not_written
        self.perhaps_written += others.perhaps_written

    def error(self) -> DeliveryFailed | None:
        """What went wrong, in words and with all ids; None if nothing did."""
        if not len(self):
            return None
        parts = [f"Kafka did not acknowledge {len(self):,} job(s): {self.reason}"]
        if self.not_written:
            parts.append(f"certainly not written: {some_of(self.not_written)}")
        if self.perhaps_written:
            parts.append(
                "perhaps written, so schedule them again only under the same id (job_id=, or submit --job-id): "
                + some_of(self.perhaps_written)
            )
        return DeliveryFailed(
            "; ".join(parts), not_written=self.not_written, perhaps_written=self.perhaps_written
        )


class Ticket:
    """Counts delivery reports of one call; it is itself the callback of every record (one object for all).

    ``done`` is called once or more, in the thread that serves reports or in the one that seals.
    """

    __slots__ = ("_done", "_expected", "_seen", "began", "timed_out", "unacknowledged")

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._seen = 0
        self._expected = -1
        self.unacknowledged = Unacknowledged()
        #: Kafka did not acknowledge a record in time.
        self.timed_out = False
        self.began = time.monotonic()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """A delivery report."""
        if error is not None:
            self.timed_out = self.timed_out or error.code() == KafkaError._MSG_TIMED_OUT
            is_in_doubt = error.code() not in _NOT_WRITTEN
            self.unacknowledged.add(_id_of(message), error.str(), perhaps_written=is_in_doubt)
        elif not was_acknowledged(message):
            reason = "it was never acknowledged itself, only what came after it"
            self.unacknowledged.add(_id_of(message), reason, perhaps_written=True)
        self._seen += 1
        if self._seen == self._expected:
            self._done()

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
        while 0 <= self._seen < self._expected:
            self.unacknowledged.add("unknown", "the report was lost", perhaps_written=True)
            self._seen += 1


def stayed_full(seconds: float) -> DeliveryFailed:
    """Kafka took nothing for so long that there is no room for more."""
    return DeliveryFailed(f"nothing was sent: the queue to Kafka stayed full for {seconds:.0f} s")


def _id_of(message: Message) -> str:
    try:
        return peek_id(message.value()).decode()
    except WireError:
        return repr(message.key())


def some_of(ids: Sequence[str]) -> str:
    """Ids in words: an error names the first twenty, and has all of them."""
    shown = ", ".join(ids[:_NAMED])
    return f"{shown} and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else shown
