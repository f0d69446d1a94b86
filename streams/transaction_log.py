"""What the coordinator of transactions has decided: its log, as it stands in Kafka.

In:  a transactional id. Out: its entries in order, and for each partition how its last transaction there was to end.

Kafka tells a client how a transaction ended only while the client asks for it. Whoever comes later, or has lost the
answer, finds it here alone. The formats are Kafka's own (``TransactionLogKey.json``, ``TransactionLogValue.json``,
versions 0 and 1); the place is that of ``TransactionStateManager.partitionFor``.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable, PipelineError, TopicsMismatch
from schemas.topics import Partition
from streams.clients import KafkaRefused, admin_config
from streams.scan import partitions_of, scan_partitions
from streams.settings import Settings

TOPIC: Final = "__transaction_state"
_KEY_VERSION: Final = 0
#: Of a key, before the id: its version and the id's length.
_HEAD_BYTES: Final = 4
#: Codes that waiting does not change.
_NOT_OURS: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
_HASH_LIMIT: Final = 1 << 32
_SMALLEST: Final = -(1 << 31)


class TransactionLogUnreadable(PipelineError):
    """The log is not there, not ours to read, or in a format that is not known here: asking again changes nothing."""


class Step(IntEnum):
    """How far a transaction was when an entry was written."""

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5
    DEAD = 6
    PREPARE_EPOCH_FENCE = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a transactional id."""

    producer_id: int
    epoch: int
    step: Step
    #: What the transaction has touched, the partitions of ``__consumer_offsets`` among them.
    partitions: frozenset[Partition]
    #: By the coordinator's clock, in milliseconds since 1970.
    at_ms: int
    #: After which Kafka aborts it; each producer has its own.
    timeout_ms: int = 0


def read_entries(settings: Settings, transactional_id: str, *, timeout_s: float) -> list[Entry]:
    """Every entry that is left of this id, oldest first; compaction leaves the last one at least. Blocks; any thread.

    Reads one whole partition of the log, whose active segment is 100 MB at most by Kafka's defaults.

    Raises:
        TransactionLogUnreadable: see there. KafkaUnreachable: not read to its end in time, so ask again.
    """
    key = key_of(transactional_id)
    found = _read(settings, lambda count: [partition_of(transactional_id, count)], key.__eq__, timeout_s)
    return found.get(key, [])


def read_all_entries(settings: Settings, prefix: str, *, timeout_s: float) -> dict[str, list[Entry]]:
    """The same of every id that begins with ``prefix``, by id. Reads the whole log.

    Raises:
        As ``read_entries``.
    """
    begin = prefix.encode()
    wanted = lambda key: key.startswith(begin, _HEAD_BYTES)  # noqa: E731 - of the keys in the log
    found = _read(settings, range, wanted, timeout_s)
    return {key[_HEAD_BYTES:].decode("utf-8", "replace"): entries for key, entries in found.items()}


def _read(
    settings: Settings,
    partitions: Callable[[int], Iterable[int]],
    wanted: Callable[[bytes], bool],
    timeout_s: float,
) -> dict[bytes, list[Entry]]:
    found: dict[bytes, list[Entry]] = defaultdict(list)

    def take(message: Message) -> None:
        key, value = message.key(), message.value()
        if key is not None and value is not None and wanted(key):
            found[key].append(parse(value))

    step_s = (
        timeout_s / 4
    )  # which topics there are, where the partitions begin, where they end, what they hold
    try:
        admin = AdminClient(admin_config(settings))
        count = len(partitions_of(settings, admin, [TOPIC], step_s))
        places = [(TOPIC, number) for number in partitions(count)]
        result = scan_partitions(settings, admin, places, take, timeout_s=step_s, read_committed=False)
    except (TopicsMismatch, KafkaRefused) as error:
        raise TransactionLogUnreadable(f"{TOPIC} cannot be read; may this user? ({error})") from error
    except KafkaException as error:
        if error.args[0].code() in _NOT_OURS:
            raise TransactionLogUnreadable(f"{TOPIC} cannot be read; may this user? ({error})") from error
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error
    if not result.complete:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s)
    return found


def last_decisions(entries: Iterable[Entry]) -> dict[Partition, bool]:
    """How the last decided transaction in each partition ends: True is a commit. Of the newest producer id only."""
    decided: dict[Partition, bool] = {}
    producer_id = None
    for entry in entries:
        if entry.producer_id != producer_id:
            decided, producer_id = {}, entry.producer_id
        if entry.step in (Step.PREPARE_COMMIT, Step.PREPARE_ABORT, Step.PREPARE_EPOCH_FENCE):
            commit = entry.step is Step.PREPARE_COMMIT
            decided.update(dict.fromkeys(entry.partitions, commit))
    return decided


def key_of(transactional_id: str) -> bytes:
    """Under which the log keeps this id."""
    text = transactional_id.encode()
    return struct.pack(">hh", _KEY_VERSION, len(text)) + text


def partition_of(transactional_id: str, count: int) -> int:
    """Where: by Java's ``String.hashCode``, made positive as Kafka's ``Utils.abs`` does."""
    number = 0
    units = transactional_id.encode("utf-16-be")
    for at in range(0, len(units), 2):
        number = (31 * number + int.from_bytes(units[at : at + 2])) % _HASH_LIMIT
    if number >= _HASH_LIMIT // 2:
        number -= _HASH_LIMIT
    return 0 if number == _SMALLEST else abs(number) % count


def parse(value: bytes) -> Entry:
    """One entry's value.

    Raises:
        TransactionLogUnreadable: it is in no format that is known here.
    """
    try:
        return _parse(value)
    except (struct.error, IndexError, ValueError) as error:
        raise TransactionLogUnreadable(
            f"an entry of {TOPIC} is in a format that is not known here ({error}): {value[:40].hex()}"
        ) from error


def _parse(value: bytes) -> Entry:
    reader = _Reader(value)
    (version,) = reader.take(">h")
    if version not in (0, 1):
        raise ValueError(f"version {version}")
    compact = version == 1
    producer_id, epoch, timeout_ms, step = reader.take(">qhib")
    partitions: set[Partition] = set()
    for _ in range(reader.length(compact=compact, wide=True)):
        name = reader.bytes(reader.length(compact=compact, wide=False)).decode()
        numbers = [reader.take(">i")[0] for _ in range(reader.length(compact=compact, wide=True))]
        if compact:
            reader.skip_tags()
        partitions.update((name, number) for number in numbers)
    (at_ms,) = reader.take(">q")
    return Entry(producer_id, epoch, Step(step), frozenset(partitions), at_ms, timeout_ms)


class _Reader:
    """Kafka's own primitive types, from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return found

    def bytes(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise ValueError("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def length(self, *, compact: bool, wide: bool) -> int:
        """Of an array (``wide``) or a text; none at all counts as empty."""
        if compact:
            return max(self._varint() - 1, 0)
        return max(self.take(">i" if wide else ">h")[0], 0)

    def skip_tags(self) -> None:
        for _ in range(self._varint()):
            self._varint()
            self.bytes(self._varint())

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the format's own: the top bit says that more follows
                return number
            shift += 7
