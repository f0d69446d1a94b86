"""A durable node flushes what it writes to the disk before it says that it is there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.storage_nodes import LARGE
from tests.support.stored_content import Content, write
from workers.storage import file_place, object_key
from workers.storage.errors import NodeUnreachable
from workers.storage.file_node import FileNode

pytestmark = pytest.mark.job_processing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("durable", [False, True])
def test_a_durable_node_flushes_file_and_directories_before_it_reports(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    durable: bool,  # noqa: FBT001
) -> None:
    events: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(file: int) -> None:
        events.append("file" if stat.S_ISREG(os.fstat(file).st_mode) else "directory")
        real_fsync(file)

    def link(*args: Any, **options: Any) -> None:
        events.append("published")
        real_link(*args, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    node = FileNode("n1", root, durable=durable)
    write(node, Content(b"x"))
    write(node, Content(os.urandom(LARGE)), object_key("bucket/a/large"))
    if durable:
        way = [
            "directory"
        ] * 3  # a, bucket and the root: whoever made one may have been killed before it was flushed
        assert events == ["file", "published", *way, "file", "published", *way]
    else:
        assert events == ["published", "published"]


def test_a_durable_node_flushes_as_it_writes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a large object at the end could take a slow disk longer than a copy may stand still."""
    flushed_at: list[int] = []

    def fsync(file: int) -> None:
        if stat.S_ISREG(os.fstat(file).st_mode):
            flushed_at.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(file_place, "FLUSH_BYTES", 2 << 20)
    content = os.urandom((5 << 20) + 1)
    write(FileNode("n1", root, durable=True), Content(content))
    assert flushed_at == [2 << 20, 4 << 20, len(content)]


def test_a_file_system_that_cannot_flush_directories_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the object's name, and the operator can do without."""

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NodeUnreachable, match=r"cannot flush a directory.*durable=false") as refused:
        write(FileNode("n1", root, durable=True), Content(b"x"))
    assert refused.value.retryable
