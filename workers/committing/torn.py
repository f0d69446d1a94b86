"""What is left to write of a transaction of which Kafka may have kept a part.

In:  outcomes, the offsets that are committed now, and which of their records readers see. Out: which outcomes stand as a
whole, and the rest of those that do not.

A transaction is all or nothing, but for this (Kafka 4.3.1): a broker that is killed while it coordinates one, and is back
before the others have missed it, still takes itself for the coordinator. Its log says "commit", though nobody else has
that entry, and it has markers written into some partitions before its successor aborts the rest. Offsets can be on either
side: finished jobs whose retries are gone, or retries of jobs that are not finished. So after a commit without a clear
answer each part is looked at.

Pure: no clock, no broker.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.offsetmap import OffsetMap
from schemas.topics import Partition
from streams.visible import Written
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome

#: What an outcome writes: its status, if it has one, and the rest.
WrittenOutcome = tuple[Written | None, tuple[Written, ...]]


@dataclass(slots=True)
class Left:
    """What became of some outcomes."""

    #: Everything of these is there.
    standing: list[Outcome] = field(default_factory=list)
    #: To be written, in their order.
    missing: list[Outcome] = field(default_factory=list)
    #: Of how many a part was there.
    torn: int = 0
    #: Of which partitions records are there without the offsets: only their owner knows that the jobs have come to their end.
    without_offsets: set[PartitionState] = field(default_factory=set)


def what_is_left(
    outcomes: Sequence[Outcome],
    written: Sequence[WrittenOutcome],
    read: Mapping[Partition, OffsetMap],
    visible: Container[Written] | None,
    *,
    acknowledged: int = 0,
) -> Left:
    """Compare what was to be written with what stands.

    Args:
        outcomes: of one transaction, or of several in their order.
        written: what each of them writes.
        read: of their partitions.
        visible: which records are to be seen; None if nobody can say: then the offsets have to speak for them.
        acknowledged: the first so many are of a transaction that Kafka has reported as committed.
    """
    rests = [
        _rest_of(outcome, records, read, visible, acknowledged=number < acknowledged)
        for number, (outcome, records) in enumerate(zip(outcomes, written, strict=True))
    ]
    ended = {rest.message for rest in rests if rest is not None and rest.message and rest.status is None}
    left = Left()
    for outcome, rest in zip(outcomes, rests, strict=True):
        # Told again behind its end, "running" would be a job's last word, and compaction keep it.
        if rest is None or (_is_news(rest) and rest.owner in ended):
            continue
        if _is_news(rest) or rest.message or rest.status or rest.records:
            left.missing.append(rest)
            left.torn += rest is not outcome
            if rest.message is not None and rest is not outcome:
                left.without_offsets.add(rest.message.part)
        else:
            left.standing.append(outcome)
    return left


def _is_news(outcome: Outcome) -> bool:
    return outcome.message is None and not outcome.late


def _rest_of(
    outcome: Outcome,
    written: WrittenOutcome,
    read: Mapping[Partition, OffsetMap],
    visible: Container[Written] | None,
    *,
    acknowledged: bool,
) -> Outcome | None:
    """What of it is to be written; itself if that is everything. None: nobody wants it any more."""
    message = outcome.message
    if message is None:
        owner = outcome.owner
        overtaken = not outcome.late and owner is not None and _is_finished(owner, read)
        return None if overtaken else _without(outcome, written, visible or ())
    if _is_finished(message, read):
        if not acknowledged and not _is_last_owner(message.part, read):
            return None  # somebody else has run it, and we do not know yet that the partition is lost
        finished = replace(outcome, message=None, owner=message, late=True)
        if visible is None:
            return replace(finished, status=None, records=())
        return _without(finished, written, visible)
    return _without(outcome, written, visible or ()) if message.part.owned else None


def _without(outcome: Outcome, written: WrittenOutcome, visible: Container[Written]) -> Outcome:
    """The outcome without what is to be seen of it."""
    status, records = written
    if status not in visible and not any(record in visible for record in records):
        return outcome
    return replace(
        outcome,
        status=None if status in visible else outcome.status,
        records=tuple(
            record for record, as_read in zip(outcome.records, records, strict=True) if as_read not in visible
        ),
    )


def _is_finished(message: Message, read: Mapping[Partition, OffsetMap]) -> bool:
    place = message.part.place
    return place in read and read[place].is_finished(message.offset)


def _is_last_owner(part: PartitionState, read: Mapping[Partition, OffsetMap]) -> bool:
    """Whether nobody has committed for this partition since we did: what is finished there, we did."""
    found = read[part.place]
    return (found.incarnation, found.fence) == (part.incarnation, part.fence)
