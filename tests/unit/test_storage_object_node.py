"""The obstore path, with its in-memory store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore import exceptions as refused
from obstore.store import MemoryStore

from tests.support.storage_nodes import SMALL, Disks, MeddledNode
from workers.storage import CopyOrder, CopyReport, Node, Ticket, copy_object, object_key, object_node
from workers.storage.copying import TargetResult
from workers.storage.errors import (
    NameRefused,
    NodeUnreachable,
    ObjectMissing,
    SourceChanged,
    StorageError,
    TargetChanged,
)
from workers.storage.object_node import ObjectNode

pytestmark = [pytest.mark.job_processing, pytest.mark.usefixtures("_small_parts")]

KEY = object_key("bucket/key")
ORDER = CopyOrder(KEY, Ticket("job-1", 1))
COMPLETED, ALREADY_OK = TargetResult("COMPLETED"), TargetResult("ALREADY_OK")
#: Smaller than the real ones, so that the tests are quick.
SINGLE_PUT_BYTES = PART_BYTES = 2 << 20
#: One request, one request from a stream, several parts.
SIZES = (0, SMALL, SINGLE_PUT_BYTES, 2 * PART_BYTES + 5)
every_size = pytest.mark.parametrize("size", SIZES)


class Memory(ObjectNode):
    """An in-memory node that the test can look into."""

    def __init__(self, name: str) -> None:
        self.memory = MemoryStore()
        super().__init__(name, self.memory)

    def put(self, content: bytes, key: str = str(KEY)) -> None:
        obstore.put(self.memory, key, content)

    def get(self, key: str = str(KEY)) -> bytes | None:
        try:
            return bytes(obstore.get(self.memory, key).bytes())
        except FileNotFoundError:
            return None


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_node, "SINGLE_PUT_BYTES", SINGLE_PUT_BYTES)
    monkeypatch.setattr(object_node, "_PART_BYTES", PART_BYTES)
    monkeypatch.setattr(object_node, "RANGE_BYTES", PART_BYTES // 2)


@pytest.fixture
def source() -> Memory:
    return Memory("m1")


@pytest.fixture
def target() -> Memory:
    return Memory("m2")


def meddle_late(target: Memory, size: int, hook: Callable[[], None]) -> MeddledNode:
    """When all has come; a small object does not come piece by piece, so there it happens before the write."""
    return MeddledNode(target, before=hook) if size <= SMALL else MeddledNode(target, written=hook)


def copy(source: Node, target: Node, order: CopyOrder = ORDER) -> TargetResult:
    return copy_object(order, source, {target.name: target}).targets[target.name]


@every_size
def test_an_object_goes_from_store_to_store(source: Memory, target: Memory, size: int) -> None:
    content = os.urandom(size)
    source.put(content)
    report = copy_object(ORDER, source, {"m2": target})
    assert report == CopyReport(size, sha256(content).hexdigest(), {"m2": COMPLETED})
    assert target.get() == content
    assert copy(source, target) == ALREADY_OK


@every_size
def test_an_object_goes_from_a_directory_to_a_store_and_back(
    tmp_path: Path, target: Memory, size: int
) -> None:
    disks = Disks(tmp_path)
    content = os.urandom(size)
    disks.put("n1", str(KEY), content)
    assert copy(disks.registry.node("n1"), target) == COMPLETED
    assert copy(target, disks.registry.node("n2")) == COMPLETED
    assert disks.get("n2", str(KEY)) == target.get() == content


def test_an_object_in_parts_of_the_real_size(
    source: Memory, target: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    content = os.urandom(object_node.SINGLE_PUT_BYTES + object_node._PART_BYTES + 5)
    source.put(content)
    assert copy(source, target) == COMPLETED
    assert target.get() == content


@pytest.mark.parametrize(
    "name", ["with space", "a+b", "ü", "h#1", "per%20cent", "%2e%2e", "*?[x]", "back\\slash"]
)
def test_unusual_names_are_stored_as_they_are(source: Memory, target: Memory, name: str) -> None:
    key = object_key(f"bucket/{name}")
    source.put(b"x", str(key))
    assert copy(source, target, replace(ORDER, key=key)) == COMPLETED
    assert [meta["path"] for batch in obstore.list(target.memory) for meta in batch] == [str(key)]


@every_size
def test_another_content_is_replaced(source: Memory, target: Memory, size: int) -> None:
    content = os.urandom(size)
    source.put(content)
    target.put(bytes(size) if size else b"x")
    assert copy(source, target) == COMPLETED
    assert target.get() == content


def test_a_missing_object_is_retryable(source: Memory, target: Memory) -> None:
    with pytest.raises(ObjectMissing, match="bucket/key is not on node m1"):
        copy(source, target)


@every_size
def test_a_free_name_that_somebody_takes_meanwhile_stays_theirs(
    source: Memory, target: Memory, size: int
) -> None:
    source.put(os.urandom(size))
    result = copy(source, meddle_late(target, size, lambda: target.put(b"theirs")))
    assert result.error_type == "TargetChanged"
    assert result.retryable
    assert target.get() == b"theirs"


@every_size
def test_an_object_that_somebody_replaces_meanwhile_stays_theirs(
    source: Memory, target: Memory, size: int
) -> None:
    source.put(os.urandom(size))
    target.put(b"old")
    result = copy(source, meddle_late(target, size, lambda: target.put(b"theirs")))
    assert result.error_type == "TargetChanged"
    assert target.get() == b"theirs"


@every_size
def test_a_source_that_changes_meanwhile_is_not_published(source: Memory, target: Memory, size: int) -> None:
    source.put(os.urandom(size))
    with pytest.raises(SourceChanged) as caught:
        copy(source, meddle_late(target, size, lambda: source.put(os.urandom(size))))
    assert caught.value.retryable
    assert target.get() is None


def test_the_pieces_that_are_read_belong_to_one_version(source: Memory) -> None:
    source.put(os.urandom(SINGLE_PUT_BYTES))
    with source.open(KEY) as opened:
        pieces = opened.chunks()
        next(pieces)
        source.put(os.urandom(SINGLE_PUT_BYTES))
        with pytest.raises(SourceChanged):
            next(pieces)


def test_an_object_that_is_removed_while_it_is_read_is_noticed(source: Memory) -> None:
    source.put(b"x")
    with source.open(KEY) as opened:
        obstore.delete(source.memory, str(KEY))
        with pytest.raises(SourceChanged):
            opened.read()
        with pytest.raises(SourceChanged):
            opened.check_unchanged()


class Damaging(Memory):
    """A store that keeps something else than it was given."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]) -> None:
        super().__init__(name)
        real_put, real_async = obstore.put, obstore.put_async

        def keep_damaged(path: str) -> Any:
            return real_put(self.memory, path, damage(self.get(path) or b""))

        def put(store: Any, path: str, content: Any, **options: Any) -> Any:
            done = real_put(store, path, content, **options)
            return keep_damaged(path) if store is self.memory else done

        async def put_async(store: Any, path: str, content: Any, **options: Any) -> Any:
            done = await real_async(store, path, content, **options)
            return keep_damaged(path) if store is self.memory else done

        monkeypatch.setattr(obstore, "put", put)
        monkeypatch.setattr(obstore, "put_async", put_async)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_copy_that_the_store_has_damaged_is_found_and_removed(
    source: Memory, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    def damage(content: bytes) -> bytes:
        return content[:-1] if how == "truncate" else bytes([content[0] ^ 1]) + content[1:]

    source.put(os.urandom(size))
    target = Damaging("m2", monkeypatch, damage)
    result = copy(source, target)
    assert result.error_type == "CopyCorrupt"
    assert result.retryable
    assert target.get() is None


def test_verifying_by_size_sees_a_truncated_copy_only(
    source: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.put(os.urandom(SMALL))
    order = replace(ORDER, verify="size")
    with monkeypatch.context() as patch:
        assert copy(source, Damaging("m2", patch, lambda content: content[::-1]), order) == COMPLETED
    with monkeypatch.context() as patch:
        assert (
            copy(source, Damaging("m3", patch, lambda content: content[1:]), order).error_type
            == "CopyCorrupt"
        )


@pytest.mark.parametrize("size", SIZES[1:])
def test_an_object_that_somebody_writes_during_the_verification_is_not_removed(
    source: Memory, target: Memory, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    source.put(os.urandom(size))
    real = ObjectNode.stat
    looks = []

    def stat(node: ObjectNode, key: Any) -> Any:
        if node is target:
            looks.append(key)
            # At the place, before a streamed upload is finished, and then: after the upload.
            if len(looks) == (3 if size > SINGLE_PUT_BYTES else 2):
                target.put(b"theirs")
        return real(node, key)

    monkeypatch.setattr(ObjectNode, "stat", stat)
    assert copy(source, target).error_type == "TargetChanged"
    assert target.get() == b"theirs"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refused.InvalidPathError("no such name"), NameRefused),
        (ValueError("no such name"), NameRefused),
        (refused.AlreadyExistsError("there"), TargetChanged),
        (refused.PreconditionError("there"), TargetChanged),
        (refused.PermissionDeniedError("forbidden"), NodeUnreachable),
        (refused.GenericError("connection refused\n\nDebug source:\nGeneric { … }"), NodeUnreachable),
        (TimeoutError(), NodeUnreachable),
    ],
)
def test_what_the_library_says_gets_a_name(
    target: Memory, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[StorageError]
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(obstore, "head", refuse)
    with pytest.raises(kind, match="bucket/key on node m2") as caught:
        target.look(KEY)
    assert caught.value.retryable is (kind is not NameRefused)
    assert "Debug source" not in str(caught.value)


def test_a_refused_write_is_the_targets_failure(
    source: Memory, target: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.put(b"x")

    def refuse(*args: Any, **options: Any) -> None:
        raise refused.InvalidPathError("no such name")

    monkeypatch.setattr(obstore, "put", refuse)
    result = copy(source, target)
    assert result.error_type == "NameRefused"
    assert not result.retryable


def test_a_sign_of_life_is_a_listing(target: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    target.check()

    def refuse(*args: Any, **options: Any) -> None:
        raise refused.GenericError("connection refused")

    monkeypatch.setattr(obstore, "list", refuse)
    with pytest.raises(NodeUnreachable, match="node m2: connection refused"):
        target.check()
