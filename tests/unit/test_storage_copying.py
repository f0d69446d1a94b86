from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.support.storage_nodes import LARGE, SMALL, Disks, MeddledNode, change, open_files
from workers.storage import (
    CopyOrder,
    CopyReport,
    Node,
    NodeRegistry,
    ObjectKey,
    Ticket,
    copy_object,
    copying,
    fanout,
    object_key,
)
from workers.storage.copying import PROGRESS_BYTES, TargetResult
from workers.storage.errors import NodeUnreachable, ObjectMissing, SourceChanged, SourceCorrupt, Stopped
from workers.storage.node import Place, Verify

pytestmark = pytest.mark.job_processing

ORDER = CopyOrder(object_key("bucket/key"), Ticket("job-1", 1))
COMPLETED, ALREADY_OK = TargetResult("COMPLETED"), TargetResult("ALREADY_OK")
both_sizes = pytest.mark.parametrize("size", [SMALL, LARGE])


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def copy(
    disks: Disks, order: CopyOrder = ORDER, *, n2: Node | None = None, n3: Node | None = None
) -> CopyReport:
    """From n1 to n2 and n3, or to the nodes given in their place."""
    targets = {"n2": n2 or disks.registry.node("n2"), "n3": n3 or disks.registry.node("n3")}
    return copy_object(order, disks.registry.node("n1"), targets)


def meddle(disks: Disks, node: str, **hooks: Callable[[], None]) -> MeddledNode:
    return MeddledNode(disks.registry.node(node), **hooks)


def no_leftovers(disks: Disks) -> bool:
    return all(disks.temporary(node) == [] for node in ("n1", "n2", "n3"))


@pytest.mark.parametrize("size", [0, 1, SMALL, LARGE])
def test_an_object_is_brought_to_every_target(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    report = copy(disks)
    assert report == CopyReport(size, sha256(content).hexdigest(), {"n2": COMPLETED, "n3": COMPLETED})
    assert disks.get("n2", "bucket/key") == disks.get("n3", "bucket/key") == content
    assert no_leftovers(disks)


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
def test_a_second_run_finds_everything_done_and_writes_nothing(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    copy(disks)
    before = disks.path("n2", "bucket/key").stat()
    report = copy(disks)
    assert report == CopyReport(size, sha256(content).hexdigest(), {"n2": ALREADY_OK, "n3": ALREADY_OK})
    after = disks.path("n2", "bucket/key").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@both_sizes
def test_a_rerun_that_finds_everything_done_still_removes_what_the_first_run_left(
    disks: Disks, size: int
) -> None:
    content = os.urandom(size)
    for node in ("n1", "n2", "n3"):
        disks.put(node, "bucket/key", content)
    disks.put("n2", f".rfw/tmp/{Ticket('job-1', 0).temporary_name()}", b"half a copy")
    assert copy(disks).count("ALREADY_OK") == 2
    assert no_leftovers(disks)


def test_a_complete_copy_counts_although_leftovers_cannot_be_looked_for(disks: Disks) -> None:
    for node in ("n1", "n2", "n3"):
        disks.put(node, "bucket/key", b"x")
    disks.put("n2", ".rfw", b"a file where our directory should be")
    assert copy(disks).count("ALREADY_OK") == 2


@both_sizes
def test_only_the_missing_copy_is_made(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    disks.put("n3", "bucket/key", content)
    assert copy(disks).targets == {"n2": COMPLETED, "n3": ALREADY_OK}
    assert disks.get("n2", "bucket/key") == content


@both_sizes
def test_another_content_of_the_same_size_and_time_is_replaced(disks: Disks, size: int) -> None:
    """Time stamps prove nothing."""
    content = os.urandom(size)
    source = disks.put("n1", "bucket/key", content)
    target = disks.put("n2", "bucket/key", content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(target, ns=(source.stat().st_mtime_ns,) * 2)
    assert copy(disks).targets["n2"] == COMPLETED
    assert disks.get("n2", "bucket/key") == content


@both_sizes
def test_a_hard_link_to_the_source_is_no_copy(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    source = disks.put("n1", "bucket/key", content)
    (disks.path("n2", "bucket")).mkdir()
    os.link(source, disks.path("n2", "bucket/key"))
    assert copy(disks).targets["n2"] == COMPLETED
    assert disks.path("n2", "bucket/key").stat().st_ino != source.stat().st_ino
    assert disks.get("n2", "bucket/key") == content


@both_sizes
def test_two_targets_that_are_hard_links_of_each_other_are_one_copy(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    first = disks.put("n2", "bucket/key", content)
    (disks.path("n3", "bucket")).mkdir()
    os.link(first, disks.path("n3", "bucket/key"))
    assert copy(disks).targets == {"n2": ALREADY_OK, "n3": COMPLETED}
    assert disks.path("n3", "bucket/key").stat().st_ino != first.stat().st_ino


@both_sizes
def test_two_nodes_that_became_one_directory_are_one_copy(disks: Disks, tmp_path: Path, size: int) -> None:
    """The settings cannot show it: a mount, or a link that was turned after the start."""
    alias = tmp_path / "alias"
    alias.symlink_to(tmp_path / "n3")
    registry = NodeRegistry({"n2": disks.urls["n2"], "alias": f"file://{alias}"})
    alias.unlink()
    alias.symlink_to(tmp_path / "n2")
    disks.put("n1", "bucket/key", os.urandom(size))
    for _ in range(3):
        report = copy(disks, n2=registry.node("n2"), n3=registry.node("alias"))
        assert [report.count("FAILED"), report.count("COMPLETED")] == [1, 1]
        assert {target.error_type for target in report.targets.values()} == {None, "TargetChanged"}


@both_sizes
def test_never_overwrite_leaves_another_content_and_accepts_the_same(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    disks.put("n2", "bucket/key", b"precious")
    disks.put("n3", "bucket/key", content)
    report = copy(disks, replace(ORDER, overwrite="never"))
    assert report.targets["n2"].error_type == "TargetExists"
    assert not report.targets["n2"].retryable
    assert report.targets["n3"] == ALREADY_OK
    assert disks.get("n2", "bucket/key") == b"precious"


@both_sizes
def test_always_overwrite_writes_the_same_content_again(disks: Disks, size: int) -> None:
    disks.put("n1", "bucket/key", os.urandom(size))
    copy(disks)
    before = disks.path("n2", "bucket/key").stat().st_ino
    assert copy(disks, replace(ORDER, overwrite="always")).targets == {"n2": COMPLETED, "n3": COMPLETED}
    assert disks.path("n2", "bucket/key").stat().st_ino != before


def test_a_missing_source_is_retryable(disks: Disks) -> None:
    with pytest.raises(ObjectMissing) as caught:
        copy(disks)
    assert caught.value.retryable
    assert no_leftovers(disks)


@both_sizes
def test_a_source_of_the_expected_size_and_hash_is_copied(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    order = replace(ORDER, expected_size=size, expected_sha256=sha256(content).hexdigest())
    assert copy(disks, order).count("COMPLETED") == 2


@both_sizes
@pytest.mark.parametrize("expected", [{"expected_size": 5}, {"expected_sha256": "0" * 64}])
@pytest.mark.parametrize("verify", ["readback", "size"])
@pytest.mark.parametrize("targets_with_it", [(), ("n3",), ("n2", "n3")])
def test_a_source_that_is_not_as_expected_is_never_published(
    disks: Disks, size: int, expected: dict[str, Any], targets_with_it: tuple[str, ...], verify: Verify
) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    for node in targets_with_it:
        disks.put(node, "bucket/key", content)
    with pytest.raises(SourceCorrupt) as caught:
        copy(disks, replace(ORDER, verify=verify, **expected))
    assert not caught.value.retryable
    assert (disks.get("n2", "bucket/key") is None) is ("n2" not in targets_with_it)
    assert no_leftovers(disks)


@both_sizes
def test_a_source_that_changes_during_the_copy_is_not_published(disks: Disks, size: int) -> None:
    source = disks.put("n1", "bucket/key", os.urandom(size))
    n2 = meddle(disks, "n2", written=lambda: change(source, os.urandom(size)))
    with pytest.raises(SourceChanged) as caught:
        copy(disks, n2=n2)
    assert caught.value.retryable
    assert disks.get("n2", "bucket/key") is None
    assert no_leftovers(disks)


@both_sizes
def test_a_source_that_changes_after_the_last_copy_fails_the_run(disks: Disks, size: int) -> None:
    """What was published is whole but old; the rerun replaces it."""
    old, new = os.urandom(size), os.urandom(size)
    source = disks.put("n1", "bucket/key", old)
    other_is_published = threading.Event()

    def change_it() -> None:
        assert other_is_published.wait(10)
        change(source, new)

    with pytest.raises(SourceChanged):
        copy(
            disks,
            n2=meddle(disks, "n2", published=other_is_published.set),
            n3=meddle(disks, "n3", published=change_it),
        )
    assert disks.get("n2", "bucket/key") == disks.get("n3", "bucket/key") == old
    assert copy(disks).count("COMPLETED") == 2
    assert disks.get("n2", "bucket/key") == disks.get("n3", "bucket/key") == new


def test_a_source_that_shrinks_under_its_reader_is_not_published(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = disks.put("n1", "bucket/key", os.urandom(4 * LARGE))
    monkeypatch.setattr(copying, "PROGRESS_BYTES", 0)
    monkeypatch.setattr(copying, "_PROGRESS_STEP_BYTES", 1)
    order = replace(ORDER, progress=lambda done, total: os.truncate(source, LARGE))
    with pytest.raises(SourceChanged):
        copy(disks, order)
    assert disks.get("n2", "bucket/key") is None
    assert no_leftovers(disks)


@both_sizes
def test_a_target_that_somebody_writes_while_it_is_compared_fails_alone(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    theirs = disks.put("n2", "bucket/key", content)
    report = copy(disks, n2=meddle(disks, "n2", looked=lambda: os.truncate(theirs, 1)))
    assert (report.targets["n2"].error_type, report.targets["n2"].retryable) == ("TargetChanged", True)
    assert report.targets["n3"] == COMPLETED
    assert theirs.read_bytes() == content[:1], "it is theirs"


@both_sizes
def test_a_run_leaves_nothing_open_however_it_ends(disks: Disks, size: int) -> None:
    source = disks.put("n1", "bucket/key", os.urandom(size))
    copy(disks)
    before = open_files()
    copy(disks)
    with pytest.raises(SourceChanged):
        copy(disks, n2=meddle(disks, "n2", looked=lambda: change(source, os.urandom(size))))
    with pytest.raises(SourceCorrupt):
        copy(disks, replace(ORDER, expected_sha256="0" * 64))
    assert open_files() == before


def flip_a_byte(disks: Disks, node: str) -> None:
    (temporary,) = disks.temporary(node)
    content = bytearray(temporary.read_bytes())
    content[len(content) // 2] ^= 0x80
    temporary.write_bytes(content)


@both_sizes
def test_a_flipped_byte_fails_one_target_and_not_the_other(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    report = copy(disks, n2=meddle(disks, "n2", written=lambda: flip_a_byte(disks, "n2")))
    assert report.targets["n2"].error_type == "CopyCorrupt"
    assert report.targets["n2"].retryable
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n2", "bucket/key") is None
    assert disks.get("n3", "bucket/key") == content
    assert no_leftovers(disks)


@both_sizes
def test_an_unreachable_target_fails_alone(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    disks.path("n2", "").rmdir()
    report = copy(disks)
    assert report.targets["n2"].error_type == "NodeUnreachable"
    assert report.targets["n2"].retryable
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n3", "bucket/key") == content
    assert not disks.path("n2", "").exists()


@both_sizes
def test_a_target_that_breaks_during_the_copy_fails_alone(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)

    def break_down() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    report = copy(disks, n2=meddle(disks, "n2", written=break_down))
    assert report.targets["n2"].error_type == "NodeUnreachable"
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n3", "bucket/key") == content
    assert no_leftovers(disks)


class Panic(BaseException):
    """What native code raises when it panics is no Exception."""


@both_sizes
def test_a_panic_of_a_target_fails_that_target(disks: Disks, size: int) -> None:
    disks.put("n1", "bucket/key", os.urandom(size))

    def panic() -> None:
        raise Panic("native code gave up")

    report = copy(disks, n2=meddle(disks, "n2", before=panic))
    failed = TargetResult("FAILED", "Panic: native code gave up", "Panic", retryable=True)
    assert report.targets == {"n2": failed, "n3": COMPLETED}


def test_ctrl_c_is_no_result_of_a_target(disks: Disks) -> None:
    disks.put("n1", "bucket/key", os.urandom(SMALL))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(disks, n2=meddle(disks, "n2", before=interrupt))


def test_a_large_copy_ends_when_every_target_has_failed(disks: Disks) -> None:
    disks.put("n1", "bucket/key", os.urandom(8 * LARGE))
    for node in ("n2", "n3"):
        disks.put(node, ".rfw", b"a file where our directory should be")
    report = copy(disks)
    assert report.sha256 is None
    assert {target.error_type for target in report.targets.values()} == {"NotAnObject"}


def test_a_thread_that_the_system_refuses_leaves_no_other_one_behind(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison goes on in its own thread; the copy, which needs one for each target, fails."""
    content = os.urandom(LARGE)
    for node in ("n1", "n2"):
        disks.put(node, "bucket/key", content)
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name in refused:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    refused = {"copy-n2", "copy-n3"}
    assert copy(disks).targets == {"n2": ALREADY_OK, "n3": COMPLETED}
    disks.put("n1", "bucket/key", content[::-1])
    refused.add("copy-to-n3")
    with pytest.raises(RuntimeError, match="new thread"):
        copy(disks)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy-")]
    assert disks.get("n2", "bucket/key") == content
    assert no_leftovers(disks)


def test_the_reader_does_not_wait_for_a_target_that_has_failed(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "_PATIENCE_S", 60)
    disks.put("n1", "bucket/key", os.urandom(16 << 20))
    queue_is_full = threading.Event()
    pieces = []

    def stopped() -> bool:
        pieces.append(True)
        if len(pieces) > fanout.QUEUE_CHUNKS:
            queue_is_full.set()
        return False

    def fail_then() -> None:
        assert queue_is_full.wait(10)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    targets = {"n2": meddle(disks, "n2", before=fail_then)}
    report = copy_object(replace(ORDER, stopped=stopped), disks.registry.node("n1"), targets)
    assert report.count("FAILED") == 1


@both_sizes
def test_a_source_that_cannot_be_read_to_its_end_fails_the_run(
    disks: Disks, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = disks.put("n1", "bucket/key", os.urandom(size)).stat()
    real = os.pread

    def pread(file: int, length: int, position: int) -> bytes:
        status = os.fstat(file)
        if os.path.samestat(status, source) and position + length > size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, length, position)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(NodeUnreachable, match="bucket/key on node n1"):
        copy(disks)
    monkeypatch.undo()
    assert disks.get("n2", "bucket/key") is None
    assert no_leftovers(disks)


def test_a_target_directory_of_the_objects_name_is_a_permanent_failure(disks: Disks) -> None:
    disks.put("n1", "bucket/key", b"x")
    disks.put("n2", "bucket/key/below", b"y")
    report = copy(disks)
    assert report.targets["n2"].error_type == "NotAnObject"
    assert not report.targets["n2"].retryable
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n2", "bucket/key/below") == b"y"


@both_sizes
def test_a_run_that_is_cancelled_before_it_publishes_does_not(disks: Disks, size: int) -> None:
    disks.put("n1", "bucket/key", os.urandom(size))
    cancelled = threading.Event()
    order = replace(ORDER, stopped=cancelled.is_set)
    targets = {"n2": meddle(disks, "n2", written=cancelled.set)}
    with pytest.raises(Stopped) as caught:
        copy_object(order, disks.registry.node("n1"), targets)
    assert caught.value.retryable
    assert disks.get("n2", "bucket/key") is None
    assert no_leftovers(disks)


def test_a_cancelled_run_reads_no_further(disks: Disks) -> None:
    disks.put("n1", "bucket/key", os.urandom(4 * LARGE))
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(Stopped):
        copy(disks, replace(ORDER, stopped=stopped))
    assert len(asked) == 3
    assert no_leftovers(disks)


def test_a_cancelled_comparison_reads_no_further(disks: Disks) -> None:
    content = os.urandom(4 * LARGE)
    for node in ("n1", "n2", "n3"):
        disks.put(node, "bucket/key", content)
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return True

    with pytest.raises(Stopped):
        copy(disks, replace(ORDER, stopped=stopped))
    assert len(asked) == 3  # once by each reader


def test_a_cancellation_is_noticed_while_a_target_does_not_move(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that hangs must not keep the reader from looking."""
    monkeypatch.setattr(fanout, "_PATIENCE_S", 0.01)
    pieces = 8
    disks.put("n1", "bucket/key", os.urandom(pieces << 20))
    cancelled = threading.Event()
    looks = []

    def hang() -> None:
        assert cancelled.wait(10)

    def stopped() -> bool:
        looks.append(True)
        if len(looks) > 2 * pieces:  # more often than there are pieces
            cancelled.set()
        return cancelled.is_set()

    with pytest.raises(Stopped):
        copy(disks, replace(ORDER, stopped=stopped), n2=meddle(disks, "n2", before=hang))
    assert disks.get("n2", "bucket/key") is disks.get("n3", "bucket/key") is None


def test_progress_is_told_for_large_objects_only(disks: Disks) -> None:
    told: list[tuple[int, int]] = []
    order = replace(ORDER, progress=lambda done, total: told.append((done, total)))
    source = disks.put("n1", "bucket/key", os.urandom(LARGE))
    for size in (LARGE, 20 << 20):
        os.truncate(source, size)
        copy(disks, order)
    assert told == []
    os.truncate(source, PROGRESS_BYTES + 1)
    copy_object(order, disks.registry.node("n1"), {"n2": disks.registry.node("n2")})
    assert told == [(step << 20, PROGRESS_BYTES + 1) for step in (16, 32, 48, 64)]


class LookedAtTogether(MeddledNode):
    """A node across the network that waits, when it is looked at, for another to be looked at too."""

    def __init__(self, node: Node, together: threading.Barrier) -> None:
        super().__init__(node)
        self.waits_for = "network"
        self.together = together

    def look(self, key: ObjectKey) -> Place:
        self.together.wait(10)
        return super().look(key)


@both_sizes
def test_targets_across_the_network_are_looked_at_side_by_side(disks: Disks, size: int) -> None:
    """Each waits for the other: one after the other, this would fail."""
    disks.put("n1", "bucket/key", os.urandom(size))
    together = threading.Barrier(2)
    n2, n3 = (LookedAtTogether(disks.registry.node(name), together) for name in ("n2", "n3"))
    report = copy(disks, n2=n2, n3=n3)
    assert report.count("COMPLETED") == 2


def test_the_targets_of_a_large_object_are_written_side_by_side(disks: Disks) -> None:
    disks.put("n1", "bucket/key", os.urandom(LARGE))
    together = threading.Barrier(2)

    def meet() -> None:
        together.wait(10)

    n2, n3 = (meddle(disks, name, before=meet, written=meet) for name in ("n2", "n3"))
    report = copy(disks, n2=n2, n3=n3)
    assert report.count("COMPLETED") == 2


@pytest.mark.parametrize("options", ["", "?durable=true"])
def test_the_local_targets_of_a_small_object_cost_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    disks = Disks(tmp_path, options)
    disks.put("n1", "bucket/key", b"x")
    monkeypatch.setattr(threading, "Thread", None)
    assert copy(disks).count("COMPLETED") == 2


@both_sizes
@pytest.mark.parametrize("meddling", ["rewritten", "replaced", "removed"])
def test_a_target_that_changes_after_it_was_compared_is_not_called_the_same(
    disks: Disks, size: int, meddling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    target = disks.put("n2", "bucket/key", content)

    def meddle_with_the_target() -> None:
        if meddling == "rewritten":
            change(target, content[::-1])
        else:
            target.unlink()
            if meddling == "replaced":
                change(target, content[::-1])

    pread = os.pread

    def read(file: int, length: int, position: int) -> bytes:
        chunk = pread(file, length, position)
        of_target = os.fstat(file).st_ino == inode
        if of_target and position + len(chunk) == size and not meddled:
            meddled.append(True)
            meddle_with_the_target()
        return chunk

    inode, meddled = target.stat().st_ino, list[bool]()
    monkeypatch.setattr(os, "pread", read)
    report = copy(disks)
    assert meddled
    assert (report.targets["n2"].error_type, report.targets["n2"].retryable) == ("TargetChanged", True)
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n2", "bucket/key") == (None if meddling == "removed" else content[::-1])
