"""The copy of an object that fails: one target alone, all of them, or a run that is cancelled."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.copy_bench import ALREADY_OK, COMPLETED, ORDER, copy, meddle, no_leftovers
from tests.support.storage_nodes import LARGE, SMALL, Disks, both_sizes
from workers.storage import copy_object, fanout
from workers.storage.copying import TargetResult
from workers.storage.errors import Stopped
from workers.storage.node import Verify

pytestmark = pytest.mark.job_processing


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


# --- targets that fail --------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("flushed", ["file", "directory"])
def test_what_a_durable_node_holds_already_counts_once_it_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, flushed: str
) -> None:
    """Whoever has published it may have been interrupted before it was on the disk."""
    disks = Disks(tmp_path, "?durable=true")
    content = os.urandom(size)
    for name in ("n1", "n2", "n3"):
        disks.put(name, "bucket/key", content)
    broken = {"file": disks.path("n2", "bucket/key"), "directory": disks.path("n2", "")}[flushed].stat()
    fsync = os.fsync

    def fails_on_one(file: int) -> None:
        if os.fstat(file).st_ino == broken.st_ino:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", fails_on_one)
    report = copy(disks)
    assert (report.targets["n2"].state, report.targets["n2"].retryable) == ("FAILED", True)
    assert report.targets["n3"] == ALREADY_OK
    monkeypatch.setattr(os, "fsync", fsync)
    assert copy(disks).count("ALREADY_OK") == 2


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


def test_a_target_directory_of_the_objects_name_is_a_permanent_failure(disks: Disks) -> None:
    disks.put("n1", "bucket/key", b"x")
    disks.put("n2", "bucket/key/below", b"y")
    report = copy(disks)
    assert report.targets["n2"].error_type == "NotAnObject"
    assert not report.targets["n2"].retryable
    assert report.targets["n3"] == COMPLETED
    assert disks.get("n2", "bucket/key/below") == b"y"


# --- a run that is cancelled --------------------------------------------------------------------------------


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


def test_waiting_for_a_target_is_no_step(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks all the time whether to stop would never be taken for one that hangs."""
    monkeypatch.setattr(fanout, "_PATIENCE_S", 0.01)
    disks.put("n1", "bucket/key", os.urandom(16 << 20))
    cancelled = threading.Event()
    steps: list[int] = []
    looks: list[int] = []

    def hang() -> None:
        assert cancelled.wait(10)

    def stopped() -> bool:
        looks.append(len(steps))
        if looks[-20:] == [len(steps)] * 20:
            cancelled.set()
        return cancelled.is_set()

    order = replace(ORDER, stopped=stopped, step=lambda: steps.append(1))
    with pytest.raises(Stopped):
        copy(disks, order, n2=meddle(disks, "n2", before=hang))
    # Two looks at targets, and the pieces that found room.
    assert len(steps) <= 2 + fanout.QUEUE_CHUNKS + 1


def test_a_copy_that_is_read_again_makes_steps(disks: Disks) -> None:
    """Of a terabyte that takes an hour, and its source is read to the end by then."""
    pieces = 8
    disks.put("n1", "bucket/key", os.urandom(pieces << 20))

    def steps(verify: Verify) -> int:
        made: list[int] = []
        copy(disks, replace(ORDER, verify=verify, overwrite="always", step=lambda: made.append(1)))
        return len(made)

    assert steps("readback") == steps("sha256") + 2 * pieces, "two targets"


def test_a_run_that_is_cancelled_reads_its_copy_no_further(disks: Disks) -> None:
    disks.put("n1", "bucket/key", os.urandom(8 << 20))
    cancelled = threading.Event()
    checked: list[int] = []

    def step() -> None:
        if cancelled.is_set():
            checked.append(1)

    targets = {"n2": meddle(disks, "n2", written=cancelled.set)}
    with pytest.raises(Stopped):
        copy_object(replace(ORDER, stopped=cancelled.is_set, step=step), disks.registry.node("n1"), targets)
    assert len(checked) <= 2, "one piece, and the end of the call"
