"""A consumer group of a Kafka in memory: members, their epochs, who owns what, and what is committed.

In:  joins, heartbeats, departures. Out: what a member is to give up or gets; whether its commit counts.

The rules are those of KIP-848: the coordinator computes the target; a member first gives up what is not its own any
more and is then raised to the group's epoch, so one that is asked for more at once keeps its epoch, and others have what it
has given up already; what others have not given up yet is not handed out. An offset commit
counts if it names the member's own epoch; who owns the partition is not looked at. With an earlier epoch it counts for
partitions that the member has kept since (KIP-1251, Kafka 4.3); and one that was fenced has kept what it gets back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException

from schemas.topics import Partition
from workers.testing.memory_log import CommittedOffset, Transaction


@dataclass(eq=False, slots=True)
class Member:
    """One consumer, as the coordinator sees it."""

    member_id: str
    topics: tuple[str, ...]
    epoch: int = 0
    #: With the epoch at which it got each.
    owned: dict[Partition, int] = field(default_factory=dict)
    target: set[Partition] = field(default_factory=set)
    #: It does not know its epoch, and is told so with its next heartbeat.
    fenced: bool = False


class ConsumerGroup:
    """One group. Topics that are read together have equal partition counts, so a range is one of partition numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.members: dict[str, Member] = {}
        self.committed: dict[Partition, CommittedOffset] = {}
        #: Transactions that may commit offsets of a partition when they end.
        self.pending: dict[Partition, set[Transaction]] = {}

    def join(self, member_id: str, topics: tuple[str, ...], counts: dict[str, int]) -> Member:
        """A member without partitions; it gets them with its heartbeats."""
        member = self.members[member_id] = Member(member_id, topics)
        self._rebalance(counts)
        return member

    def leave(self, member_id: str, counts: dict[str, int]) -> None:
        """It goes, or its session has expired: what it had belongs to nobody."""
        if self.members.pop(member_id, None) is not None:
            self._rebalance(counts)

    def come_back(self, member: Member) -> set[Partition]:
        """A fenced one joins again: it has what it had, since when it had it, as far as that is still its target."""
        member.fenced = False
        member.owned = {place: since for place, since in member.owned.items() if place in member.target}
        member.epoch = self.epoch
        return set(member.owned)

    def forget(self, member: Member, counts: dict[str, int]) -> None:
        """A coordinator that was killed is back, and nobody has a copy of what it gave this member last.

        It is free again. Since for the coordinator the member has nothing to give up, it has the group's epoch at once.
        """
        last = max(member.owned.values(), default=0)
        # Like one that has just joined, so that others have a claim to what it had.
        self.members[member.member_id] = self.members.pop(member.member_id)
        self._rebalance(counts)
        member.owned = {
            place: since for place, since in member.owned.items() if since < last and place in member.target
        }
        member.epoch = self.epoch

    def to_revoke(self, member: Member, held: set[Partition]) -> set[Partition]:
        """What it must give up before anything else, of what it takes for its own."""
        keeps = {place for place in member.target if place in member.owned or self._is_free(place)}
        return held - keeps

    def give_up(self, member: Member, places: set[Partition]) -> None:
        """It has let go of these."""
        for place in places:
            member.owned.pop(place, None)

    def take(self, member: Member) -> set[Partition]:
        """After it has given up what it must: the group's epoch, and what is free of its target."""
        member.epoch = self.epoch
        wanted = member.target - member.owned.keys()
        if not wanted:
            return wanted
        taken = {place for place in wanted if self._is_free(place)}
        member.owned |= dict.fromkeys(taken, self.epoch)
        return taken

    def _is_free(self, place: Partition) -> bool:
        return not any(place in member.owned for member in self.members.values())

    def check_member(self, member_id: str, epoch: int, places: Iterable[Partition]) -> None:
        """Whether a commit of these places with this metadata counts.

        Raises:
            KafkaException: the group does not know it, or not with this epoch; the transaction has to be aborted.
        """
        member = self.members.get(member_id)
        if member is None:
            raise _refused(KafkaError.UNKNOWN_MEMBER_ID, f"{member_id} is no member of {self.name}")
        if member.epoch != epoch and not all(member.owned.get(place, epoch + 1) <= epoch for place in places):
            raise _refused(
                KafkaError.ILLEGAL_GENERATION,
                f"{member_id} has epoch {member.epoch} in {self.name}, and commits with {epoch}",
            )

    def _rebalance(self, counts: dict[str, int]) -> None:
        self.epoch += 1
        members = list(self.members.values())
        for position, member in enumerate(members):
            member.target = {
                (topic, number)
                for topic in member.topics
                for number in range(counts[topic])
                if number * len(members) // counts[topic] == position
            }


def _refused(code: int, text: str) -> KafkaException:
    return KafkaException(KafkaError(code, text, txn_requires_abort=True))
