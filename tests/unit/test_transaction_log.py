"""What the coordinator of transactions wrote down: where it stands, how it is read, and what follows from it."""

from __future__ import annotations

import struct

import pytest

from streams.transaction_log import (
    Entry,
    Step,
    TransactionLogUnreadable,
    key_of,
    last_decisions,
    parse,
    partition_of,
)

pytestmark = pytest.mark.worker_coordination

HEAD = (77, 3, 5_000)


def text(value: str, *, compact: bool) -> bytes:
    raw = value.encode()
    return (bytes([len(raw) + 1]) if compact else struct.pack(">h", len(raw))) + raw


def entry(
    version: int, step: int, topics: dict[str, list[int]] | None, *, tags: bytes = b"\x00", more: bytes = b""
) -> bytes:
    """An entry as Kafka writes it."""
    compact = version > 0

    def array(count: int | None) -> bytes:
        if compact:
            return bytes([0 if count is None else count + 1])
        return struct.pack(">i", -1 if count is None else count)

    value = struct.pack(">hqhib", version, *HEAD, step) + array(None if topics is None else len(topics))
    for topic, numbers in (topics or {}).items():
        value += text(topic, compact=compact) + array(len(numbers))
        value += b"".join(struct.pack(">i", number) for number in numbers) + (tags if compact else b"")
    return value + struct.pack(">qq", 1_700_000_000_123, 1_700_000_000_000) + (b"\x00" if compact else more)


@pytest.mark.parametrize("version", [0, 1])
def test_an_entry_is_read_in_both_formats(version: int) -> None:
    found = parse(entry(version, 2, {"__consumer_offsets": [12], "jobs.status": [0, 300]}))
    places = {("__consumer_offsets", 12), ("jobs.status", 0), ("jobs.status", 300)}
    assert found == Entry(77, 3, Step.PREPARE_COMMIT, frozenset(places), 1_700_000_000_123, 5_000)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("topics", [None, {}])
def test_an_entry_without_partitions_is_one(version: int, topics: dict[str, list[int]] | None) -> None:
    assert parse(entry(version, 4, topics)).partitions == frozenset()


def test_what_later_releases_add_is_passed_over() -> None:
    tagged = bytes([1, 5, 130, 1]) + b"x" * 130  # one tag, number 5, 130 bytes long
    assert parse(entry(1, 1, {"a": [1], "b": [2]}, tags=tagged)).partitions == {("a", 1), ("b", 2)}


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", struct.pack(">h", 2), entry(1, 2, {"a": [1]})[:-15], entry(1, 99, {}), b"\xff" * 40],
)
def test_what_is_not_understood_is_said(value: bytes) -> None:
    with pytest.raises(TransactionLogUnreadable, match="format"):
        parse(value)


def test_the_key_has_a_version_and_a_length() -> None:
    assert key_of("w.é") == b"\x00\x00\x00\x04w.\xc3\xa9"


@pytest.mark.parametrize(
    ("name", "expected"),
    # Java's hash codes: 0, 97, 99162322, the smallest number there is, and a negative one.
    [("", 0), ("a", 97), ("hello", 99_162_322 % 1_000), ("polygenelubricants", 0), ("worker.one.0", 320)],
)
def test_the_place_is_javas(name: str, expected: int) -> None:
    assert partition_of(name, 1_000) == expected


A, B, OFFSETS = ("jobs.status", 0), ("jobs.status", 1), ("__consumer_offsets", 9)


def step(step: Step, *places: tuple[str, int], producer_id: int = 1) -> Entry:
    return Entry(producer_id, 0, step, frozenset(places), 0)


def test_each_partition_has_its_own_last_decision() -> None:
    entries = [
        step(Step.EMPTY),
        step(Step.ONGOING, A, OFFSETS),
        step(Step.PREPARE_COMMIT, A, OFFSETS),
        step(Step.COMPLETE_COMMIT),
        step(Step.ONGOING, A, B),
        step(Step.PREPARE_ABORT, A, B),
        step(Step.COMPLETE_ABORT),
        step(Step.ONGOING, A),
    ]
    assert last_decisions(entries) == {A: False, B: False, OFFSETS: True}


def test_markers_end_only_what_their_own_producer_id_has_left() -> None:
    entries = [step(Step.PREPARE_COMMIT, A), step(Step.PREPARE_ABORT, B, producer_id=2)]
    assert last_decisions(entries) == {B: False}
