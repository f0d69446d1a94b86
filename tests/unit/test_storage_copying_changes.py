"""The copy of an object whose source is not as it should be, or that somebody changes meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.copy_bench import COMPLETED, ORDER, copy, meddle, no_leftovers
from tests.support.storage_nodes import LARGE, Disks, both_sizes, change, open_files
from workers.storage import copying
from workers.storage.errors import NodeUnreachable, ObjectMissing, SourceChanged, SourceCorrupt
from workers.storage.node import Verify

pytestmark = pytest.mark.job_processing


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


# --- the source ---------------------------------------------------------------------------------------------


def test_a_missing_source_is_retryable(disks: Disks) -> None:
    with pytest.raises(ObjectMissing) as caught:
        copy(disks)
    assert caught.value.retryable
    assert no_leftovers(disks)


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


# --- the targets --------------------------------------------------------------------------------------------


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
