"""The copy of an object: what is brought where, what counts as done already, and what happens side by side."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.copy_bench import ALREADY_OK, COMPLETED, ORDER, copy, meddle, no_leftovers
from tests.support.storage_nodes import LARGE, SMALL, Disks, MeddledNode, both_sizes
from workers.storage import CopyReport, Node, NodeRegistry, ObjectKey, Ticket, copy_object
from workers.storage.copying import PROGRESS_BYTES
from workers.storage.node import Place

pytestmark = pytest.mark.job_processing


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


# --- what is copied -----------------------------------------------------------------------------------------


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


@both_sizes
def test_a_source_of_the_expected_size_and_hash_is_copied(disks: Disks, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    order = replace(ORDER, expected_size=size, expected_sha256=sha256(content).hexdigest())
    assert copy(disks, order).count("COMPLETED") == 2


# --- on the way ---------------------------------------------------------------------------------------------


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
