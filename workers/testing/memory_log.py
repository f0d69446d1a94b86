"""Partitions and transactions of a Kafka in memory: what is written, and what of it may be read.

In:  records, markers. Out: offsets, and the records that a committed read sees.

A transaction's records are in the log at once, in their place; a committed read ends before the first one that is
still open (the last stable offset). Its end leaves a marker in each partition, which takes an offset as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from schemas.headers import RawHeaders
from schemas.topics import Partition


class CommittedOffset(NamedTuple):
    """What a group has committed for one partition."""

    offset: int
    metadata: str


@dataclass(eq=False, slots=True)
class Transaction:
    """One transaction of a producer, from its first record to its marker."""

    transactional_id: str
    producer_id: int
    epoch: int
    started_ms: int
    timeout_ms: int
    #: Partitions that it has written to, and the first offset in each.
    first: dict[Partition, int] = field(default_factory=dict)
    #: Offsets to be committed with it, by group.
    offsets: dict[str, dict[Partition, CommittedOffset]] = field(default_factory=dict)
    #: None while it is open.
    committed: bool | None = None


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record in its place."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: RawHeaders | None
    timestamp_ms: int
    transaction: Transaction | None = None
    #: The end of a transaction: nobody reads it, but it has an offset.
    is_marker: bool = False

    @property
    def is_visible(self) -> bool:
        """Whether a committed read returns it, once it gets there."""
        return not self.is_marker and (self.transaction is None or self.transaction.committed is True)


class PartitionLog:
    """One partition."""

    def __init__(self, topic: str, partition: int) -> None:
        self.place: Partition = (topic, partition)
        self.records: list[StoredRecord] = []
        self._open: list[Transaction] = []

    @property
    def end(self) -> int:
        """One past the last record: the high watermark."""
        return len(self.records)

    @property
    def stable_end(self) -> int:
        """One past the last record that a committed read may reach."""
        return min((transaction.first[self.place] for transaction in self._open), default=self.end)

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: RawHeaders | None,
        now_ms: int,
        transaction: Transaction | None = None,
    ) -> StoredRecord:
        """Write a record."""
        offset = self.end
        if transaction is not None and self.place not in transaction.first:
            transaction.first[self.place] = offset
            self._open.append(transaction)
        topic, partition = self.place
        record = StoredRecord(topic, partition, offset, key, value, headers, now_ms, transaction=transaction)
        self.records.append(record)
        return record

    def mark_end(self, transaction: Transaction, now_ms: int) -> None:
        """Write the marker that ends a transaction here."""
        self._open.remove(transaction)
        topic, partition = self.place
        self.records.append(
            StoredRecord(
                topic, partition, self.end, None, None, None, now_ms, transaction=transaction, is_marker=True
            )
        )

    def give_up(self, transaction: Transaction, heir: Transaction) -> None:
        """What ``transaction`` has written here so far is part of ``heir`` instead."""
        first = heir.first[self.place] = transaction.first.pop(self.place)
        self._open[self._open.index(transaction)] = heir
        for offset in range(first, self.end):
            if self.records[offset].transaction is transaction:
                self.records[offset] = replace(self.records[offset], transaction=heir)

    def read(self, offset: int) -> tuple[StoredRecord | None, int]:
        """The first record from there on that a committed read returns, and where to go on."""
        records = self.records
        if offset >= len(records):
            return None, offset  # by far the most often: whoever polls has read everything
        end = self.stable_end
        while offset < end:
            record = records[offset]
            offset += 1
            if record.is_visible:
                return record, offset
        return None, offset

    def __iter__(self) -> Iterator[StoredRecord]:
        """Everything that a committed read returns now."""
        return (record for record in self.records[: self.stable_end] if record.is_visible)
