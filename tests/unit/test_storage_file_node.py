from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.storage_nodes import LARGE, SMALL, both_sizes, change, open_files
from tests.support.stored_content import KEY, Content, write
from workers.storage import ObjectKey, StorageError, Ticket, object_key
from workers.storage.errors import (
    AccessDenied,
    CopyCorrupt,
    NameRefused,
    NodeFull,
    NodeUnreachable,
    NotAnObject,
    ObjectMissing,
    SourceChanged,
    SymlinkRefused,
    TargetChanged,
)
from workers.storage.file_node import FileNode
from workers.storage.node import Verify

pytestmark = pytest.mark.job_processing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def node(root: Path) -> FileNode:
    return FileNode("n1", root)


def read(node: FileNode, key: ObjectKey = KEY) -> bytes:
    with node.open(key) as opened:
        return opened.read()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_file_system_may_take_and_give_less_at_a_time_than_asked(
    node: FileNode, root: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    written, given = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda file, chunk: written(file, chunk[: len(chunk) // 2 + 1]))
    monkeypatch.setattr(os, "pread", lambda file, count, at: given(file, count // 2 + 1, at))
    content = os.urandom(size)
    write(node, Content(content))
    assert (root / "bucket/a/key").read_bytes() == content
    assert read(node) == content
    with node.open(KEY) as opened:
        assert b"".join(opened.chunks()) == content


def move(path: Path, to: Path) -> None:
    path.rename(to)


def temporary(root: Path) -> list[Path]:
    return list((root / ".rfw/tmp").iterdir())


@pytest.mark.parametrize("size", [0, 1, SMALL, 1 << 20, (1 << 20) + 1, LARGE])
def test_what_is_written_is_read(node: FileNode, root: Path, size: int) -> None:
    content = os.urandom(size)
    write(node, Content(content))
    assert (root / "bucket/a/key").read_bytes() == content
    assert temporary(root) == []
    with node.open(KEY) as opened:
        assert opened.version.size == size
        assert opened.read() == content
        assert b"".join(opened.chunks()) == content
        opened.check_unchanged()


def test_a_missing_object_is_retryable_and_nothing_is_made(node: FileNode, root: Path) -> None:
    with pytest.raises(ObjectMissing, match="bucket/a/key is not on node n1") as caught:
        node.open(KEY)
    assert caught.value.retryable
    assert list(root.iterdir()) == []


def test_an_absent_root_is_an_outage_and_is_never_made(tmp_path: Path) -> None:
    node = FileNode("n1", tmp_path / "unmounted")
    for attempt in (lambda: node.open(KEY), lambda: write(node, Content(b"x")), node.check):
        with pytest.raises(NodeUnreachable, match="is its disk mounted") as caught:
            attempt()
        assert caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_vanishes_during_a_write_is_not_made_again(node: FileNode, root: Path) -> None:
    aside = root.with_name("aside")
    write(node, Content(b"x", publish=lambda: move(root, aside)))
    assert (aside / "bucket/a/key").read_bytes() == b"x"
    with pytest.raises(NodeUnreachable):
        write(node, Content(b"y"))
    assert not root.exists()


def test_a_root_that_is_a_link_is_the_operators_word(tmp_path: Path, root: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    write(FileNode("n1", tmp_path / "link"), Content(b"x"))
    assert (root / "bucket/a/key").read_bytes() == b"x"


@pytest.mark.parametrize("link", ["bucket", "bucket/a", "bucket/a/key"])
def test_a_link_out_of_the_root_is_not_followed_when_reading(
    node: FileNode, root: Path, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    (outside / "a/key").write_bytes(b"secret")
    (outside / "key").write_bytes(b"secret")
    place = root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside / "key" if link == "bucket/a/key" else outside)
    with pytest.raises(SymlinkRefused) as caught:
        node.open(KEY)
    assert not caught.value.retryable


@pytest.mark.parametrize("link", ["bucket", "bucket/a", "bucket/a/key", ".rfw", ".rfw/tmp"])
def test_a_link_out_of_the_root_is_not_followed_when_writing(
    node: FileNode, root: Path, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    (outside / "tmp").mkdir()
    place = root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside / "key" if link == "bucket/a/key" else outside)
    with pytest.raises(SymlinkRefused):
        write(node, Content(b"x"))
    assert [path for path in outside.rglob("*") if path.is_file()] == []


def test_a_link_that_appears_during_the_write_is_not_followed(
    node: FileNode, root: Path, tmp_path: Path
) -> None:
    """A large object's directory is entered again, by its own name, when it is published."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "bucket/a").mkdir(parents=True)

    def swap() -> None:
        (root / "bucket/a").rmdir()
        (root / "bucket/a").symlink_to(outside)

    with pytest.raises(SymlinkRefused):
        write(node, Content(os.urandom(LARGE), written=swap))
    assert list(outside.iterdir()) == []


def test_a_directory_is_no_object(node: FileNode, root: Path) -> None:
    (root / "bucket/a/key").mkdir(parents=True)
    for attempt in (lambda: node.open(KEY), lambda: write(node, Content(b"x"))):
        with pytest.raises(NotAnObject, match="a directory") as caught:
            attempt()
        assert not caught.value.retryable
    assert (root / "bucket/a/key").is_dir()


def test_a_directory_that_appears_during_the_write_is_not_replaced(node: FileNode, root: Path) -> None:
    def replace_by_directory() -> None:
        (root / "bucket/a/key").unlink(missing_ok=True)
        (root / "bucket/a/key").mkdir()

    with pytest.raises(TargetChanged):
        write(node, Content(b"x", publish=replace_by_directory))
    (root / "bucket/a/key").rmdir()
    write(node, Content(b"x"))
    with pytest.raises(NotAnObject):
        write(node, Content(b"y", publish=replace_by_directory))
    assert (root / "bucket/a/key").is_dir()
    assert temporary(root) == []


def test_a_pipe_is_no_object_and_nobody_waits_for_its_writer(node: FileNode, root: Path) -> None:
    (root / "bucket/a").mkdir(parents=True)
    os.mkfifo(root / "bucket/a/key")
    with pytest.raises(NotAnObject, match="pipe"):
        node.open(KEY)


def test_a_socket_is_no_object(node: FileNode, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bucket/a").mkdir(parents=True)
    monkeypatch.chdir(root / "bucket/a")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("key")
        with pytest.raises(NotAnObject, match="socket"):
            node.open(KEY)


def test_below_a_file_nothing_can_be(node: FileNode, root: Path) -> None:
    (root / "bucket").mkdir()
    (root / "bucket/a").write_bytes(b"a file")
    with pytest.raises(ObjectMissing):
        node.open(KEY)
    with pytest.raises(NotAnObject, match="a file stands where a directory is needed"):
        write(node, Content(b"x"))
    assert (root / "bucket/a").read_bytes() == b"a file"


@pytest.mark.parametrize(
    "name", ["with space", "a+b", "ü", "h#1", "per%20cent", "ends.", "*?[x]", "back\\slash", "é" * 100]
)
def test_unusual_names_are_stored_as_they_are(node: FileNode, root: Path, name: str) -> None:
    key = object_key(f"bucket/{name}")
    write(node, Content(name.encode()), key)
    assert [path.name for path in (root / "bucket").iterdir()] == [name]
    assert read(node, key) == name.encode()


def test_a_name_that_the_file_system_refuses_is_a_permanent_error(node: FileNode, root: Path) -> None:
    (root / "bucket").mkdir()
    key = object_key("bucket/" + "n" * 256)
    for attempt in (lambda: node.open(key), lambda: write(node, Content(b"x"), key)):
        with pytest.raises(NameRefused, match="refuses this name") as caught:
            attempt()
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EILSEQ, NameRefused),
        (errno.ENOSPC, NodeFull),
        (errno.EDQUOT, NodeFull),
        (errno.EIO, NodeUnreachable),
        (errno.EROFS, NodeUnreachable),
        (errno.ESTALE, NodeUnreachable),
        (errno.EXDEV, NotAnObject),
    ],
)
def test_what_the_system_says_gets_a_name(
    node: FileNode, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(kind, match="bucket/a/key on node n1"):
        write(node, Content(b"x"))
    monkeypatch.undo()
    assert temporary(root) == []
    assert not (root / "bucket/a/key").exists()


def test_a_failed_read_gets_a_name(node: FileNode, monkeypatch: pytest.MonkeyPatch) -> None:
    write(node, Content(os.urandom(LARGE)))

    def refuse(*args: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with node.open(KEY) as opened:
        monkeypatch.setattr(os, "pread", refuse)
        with pytest.raises(NodeUnreachable, match="Input/output error"):
            opened.read()
        with pytest.raises(NodeUnreachable, match="Input/output error"):
            list(opened.chunks())


def test_a_write_that_fails_at_the_end_is_not_published(
    node: FileNode, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may report a failed write only when the file is closed."""
    real = os.close
    failed: list[int] = []

    def close(file: int) -> None:
        is_file = stat.S_ISREG(os.fstat(file).st_mode)
        real(file)
        if is_file and not failed:
            failed.append(file)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(NodeFull):
        write(node, Content(b"x"))
    monkeypatch.undo()
    assert failed
    assert not (root / "bucket/a/key").exists()
    assert temporary(root) == []


@both_sizes
@pytest.mark.parametrize("how", ["flip", "truncate", "extend"])
@pytest.mark.parametrize("verify", ["readback", "sha256", "size"])
def test_a_damaged_copy_is_not_published(
    node: FileNode, root: Path, size: int, how: str, verify: Verify
) -> None:
    def damage() -> None:
        (copy,) = temporary(root)
        content = bytearray(copy.read_bytes())
        match how:
            case "flip":
                content[size // 2] ^= 1
            case "truncate":
                del content[-1]
            case _:
                content += b"x"
        copy.write_bytes(content)

    incoming = Content(os.urandom(size), written=damage)
    if how == "flip" and verify != "readback":
        write(node, incoming, verify=verify)  # nothing but reading back can see it
        assert read(node) != incoming.content
        return
    with pytest.raises(CopyCorrupt) as caught:
        write(node, incoming, verify=verify)
    assert caught.value.retryable
    assert not (root / "bucket/a/key").exists()
    assert temporary(root) == []


@both_sizes
def test_a_free_name_that_somebody_takes_meanwhile_stays_theirs(
    node: FileNode, root: Path, size: int
) -> None:
    def take() -> None:
        (root / "bucket/a/key").write_bytes(b"theirs")

    with pytest.raises(TargetChanged) as caught:
        write(node, Content(os.urandom(size), publish=take))
    assert caught.value.retryable
    assert (root / "bucket/a/key").read_bytes() == b"theirs"
    assert temporary(root) == []


@both_sizes
def test_an_object_that_somebody_replaces_meanwhile_stays_theirs(
    node: FileNode, root: Path, size: int
) -> None:
    write(node, Content(os.urandom(size)))
    with pytest.raises(TargetChanged):
        write(node, Content(b"ours", written=lambda: change(root / "bucket/a/key", b"theirs")))
    assert (root / "bucket/a/key").read_bytes() == b"theirs"
    assert temporary(root) == []


def test_an_object_is_replaced_in_one_step(node: FileNode, root: Path) -> None:
    write(node, Content(b"old"))
    seen = []
    write(node, Content(b"newer", publish=lambda: seen.append((root / "bucket/a/key").read_bytes())))
    assert seen == [b"old"]
    assert (root / "bucket/a/key").read_bytes() == b"newer"


@pytest.mark.parametrize("why", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_a_free_name_is_looked_at_again(
    node: FileNode, root: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "link", refuse)
    write(node, Content(b"x"))
    assert (root / "bucket/a/key").read_bytes() == b"x"
    other = root / "bucket/other"
    with pytest.raises(TargetChanged):
        write(node, Content(b"ours", publish=lambda: change(other, b"theirs")), object_key("bucket/other"))
    assert other.read_bytes() == b"theirs"
    assert temporary(root) == []


def test_a_rerun_removes_its_own_leftovers_and_nobody_elses(node: FileNode, root: Path) -> None:
    (root / ".rfw/tmp").mkdir(parents=True)
    older, same, newer = Ticket("job-1", 1), Ticket("job-1", 2), Ticket("job-1", 3)
    mine = [older.temporary_name(), same.temporary_name()]
    others = [newer.temporary_name(), Ticket("job-1x1", 1).temporary_name(), "job-1", "job-1.x.y", "note"]
    for name in (*mine, *others):
        (root / ".rfw/tmp" / name).write_bytes(b"left over")
    write(node, Content(b"x"), ticket=same)
    assert sorted(path.name for path in temporary(root)) == sorted(others)


def test_a_leftover_link_to_a_published_object_is_only_a_name(node: FileNode, root: Path) -> None:
    """A run that is killed between the link and the unlink leaves two names for one file."""
    write(node, Content(b"published"))
    os.link(root / "bucket/a/key", root / ".rfw/tmp" / Ticket("job-1").temporary_name())
    write(node, Content(b"x"), object_key("bucket/b"))
    assert temporary(root) == []
    assert (root / "bucket/a/key").read_bytes() == b"published"


def test_a_run_that_was_given_up_does_not_publish_what_the_next_one_writes(
    node: FileNode, root: Path
) -> None:
    """The next run removes the first one's copy; their names differ, so the first has nothing to publish."""
    with pytest.raises(TargetChanged):
        write(node, Content(b"first", publish=lambda: write(node, Content(b"second"))))
    assert (root / "bucket/a/key").read_bytes() == b"second"
    assert temporary(root) == []


def test_temporary_names_differ_and_hold_nothing_unexpected() -> None:
    jobs = ("a", "a", "../../x", "j" * 300, "\ud800", "")
    names = {Ticket(job, 1).temporary_name() for job in jobs}
    assert len(names) == len(jobs)
    assert all(len(name) < 200 and name.replace(".", "").replace("-", "").isalnum() for name in names)


@both_sizes
@pytest.mark.parametrize("how", ["rewritten", "truncated", "grown", "replaced", "removed", "moved away"])
def test_a_change_of_the_object_is_noticed_by_its_reader(
    node: FileNode, root: Path, size: int, how: str
) -> None:
    write(node, Content(os.urandom(size)))
    path = root / "bucket/a/key"
    with node.open(KEY) as opened:
        opened.check_unchanged()
        match how:
            case "rewritten":
                change(path, os.urandom(size))
            case "truncated":
                os.truncate(path, size - 1)
            case "grown":
                with path.open("ab") as file:
                    file.write(b"x")
            case "replaced":
                (root / "other").write_bytes(path.read_bytes())
                os.utime(root / "other", ns=(path.stat().st_mtime_ns,) * 2)
                (root / "other").rename(path)
            case "removed":
                path.unlink()
            case _ if size == SMALL:
                path.rename(root / "bucket/a/elsewhere")
            case _:
                (root / "bucket/a").rename(root / "bucket/b")
        with pytest.raises(SourceChanged):
            opened.check_unchanged()
        if how in {"truncated", "grown"}:
            with pytest.raises(SourceChanged):
                opened.read()
            with pytest.raises(SourceChanged):
                list(opened.chunks())


def test_another_hard_link_is_no_change(node: FileNode, root: Path) -> None:
    write(node, Content(b"x"))
    with node.open(KEY) as opened:
        os.link(root / "bucket/a/key", root / "backup")
        opened.check_unchanged()


def test_an_error_of_the_sender_publishes_nothing(node: FileNode, root: Path) -> None:
    for incoming in (Content(b"x", written=fail), Content(b"x", publish=fail)):
        with pytest.raises(SourceChanged):
            write(node, incoming)
    assert not (root / "bucket/a/key").exists()
    assert temporary(root) == []


def fail() -> None:
    raise SourceChanged("the source changed")


def test_nothing_stays_open(node: FileNode, root: Path) -> None:
    write(node, Content(b"x"))
    (root / "bucket/d").mkdir()
    (root / "bucket/link").symlink_to(root)
    before = open_files()
    for path in ("a/key", "new", "d", "d/x/y", "link/x", "a/key/z"):
        key = object_key(f"bucket/{path}")
        for incoming in (Content(b"y"), Content(os.urandom(LARGE)), Content(b"z", publish=fail)):
            try:
                write(node, incoming, key)
                read(node, key)
            except StorageError:
                continue
    assert open_files() == before


def test_closing_twice_is_harmless(node: FileNode) -> None:
    write(node, Content(b"x"))
    opened = node.open(KEY)
    opened.close()
    before = open_files()
    opened.close()
    assert open_files() == before
