"""One object on a file node: read, and written so that it is whole or not there.

In:  an open root and a key. Out: a ``FilePlace``, with an open ``FileObject`` if the name holds one.

A copy is written to ROOT/.rfw/tmp, verified there and then linked (the name was free: an existing one is
never replaced) or renamed (overwrite) into place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from workers.storage.errors import CopyCorrupt, NotAnObject, SourceChanged, TargetChanged
from workers.storage.file_tree import FileTree
from workers.storage.keys import RESERVED, ObjectKey
from workers.storage.node import SMALL_BYTES, Incoming, OpenObject, Place, Ticket, Verify, Version

CHUNK_BYTES: Final = 1 << 20
#: A durable node flushes as it writes: gigabytes in memory take a slow disk minutes, in which a copy would make no step.
FLUSH_BYTES: Final = 256 << 20
TEMPORARY: Final = (RESERVED, "tmp")

# Without O_NONBLOCK opening a FIFO would wait for its writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class FilePlace(Place):
    """Where an object is or would be below an open root.

    Args:
        tree: the node's directories.
        key: the object.

    Raises:
        StorageError: the root is absent, or something that is no object has the name.
    """

    def __init__(self, tree: FileTree, key: ObjectKey) -> None:
        self.found: FileObject | None = None
        self._tree = tree
        self._key = key
        self._directory = -1
        self._root = tree.open_root()
        try:
            self._directory = tree.enter(self._root, key.directories)
            file = os.open(key.name, _READ, dir_fd=self._directory)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return  # free: nothing can be below a file either
            self.close()
            tree.reading_failed(error, key)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            self.close()
            raise NotAnObject(f"{key} on node {tree.node} is {_kind(status.st_mode)}, no object")
        self.found = FileObject(self, tree, key, file, version_of(status))

    def write(self, incoming: Incoming, ticket: Ticket, *, verify: Verify) -> None:
        """Store an object; see ``Place.write``."""
        try:
            temporary = self._tree.enter(self._root, TEMPORARY, create=True)
            try:
                _remove_leftovers(temporary, ticket)
                name = ticket.temporary_name()
                file = os.open(name, _CREATE, 0o666, dir_fd=temporary)
                try:
                    try:
                        self._fill(file, incoming, verify)
                    finally:
                        os.close(
                            file
                        )  # before it is published: here a network file system reports failed writes
                    self._publish(name, temporary, incoming)
                finally:
                    _unlink_if_there(name, temporary)
            finally:
                os.close(temporary)
        except OSError as error:
            self._tree.writing_failed(error, self._key)

    def keep(self, ticket: Ticket) -> None:
        """Remove leftovers, and flush on a durable node; see ``Place.keep``."""
        # The object itself is fine: that something of ours is in the way there must not fail its job.
        with contextlib.suppress(OSError):
            temporary = self._tree.enter(self._root, TEMPORARY)
            try:
                _remove_leftovers(temporary, ticket)
            finally:
                os.close(temporary)
        if self._tree.durable and self.found is not None:
            # Whoever wrote it may have been interrupted before it was flushed, or this node was not durable then.
            try:
                self.found.flush()
                self._tree.flush(self._root, self._key.directories)
            except OSError as error:
                self._tree.writing_failed(error, self._key)

    def status(self) -> os.stat_result:
        """What the name holds now. Safe from several threads at once.

        Raises:
            OSError: nothing, or it cannot be told.
        """
        if self.found is None or self.found.version.size <= SMALL_BYTES:
            return os.stat(self._key.name, dir_fd=self._directory, follow_symlinks=False)
        # A large object takes its time: meanwhile its directory may have been moved away with it.
        directory = self._tree.enter(self._root, self._key.directories)
        try:
            return os.stat(self._key.name, dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file and the directories."""
        if self.found is not None:
            self.found.close_file()
        for directory in (self._directory, self._root):
            if directory >= 0:
                os.close(directory)
        self._directory = self._root = -1

    def _fill(self, file: int, incoming: Incoming, verify: Verify) -> None:
        unflushed = 0
        for chunk in incoming.chunks():
            _write_all(file, chunk)
            unflushed += len(chunk)
            if self._tree.durable and unflushed >= FLUSH_BYTES:
                os.fsync(file)
                unflushed = 0
        if self._tree.durable:
            os.fsync(file)
            if incoming.size > SMALL_BYTES and hasattr(os, "posix_fadvise"):
                # Verify what the disk holds, not what memory does.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if incoming.whole is not None and verify == "readback":
            if _read_exactly(file, incoming.size) != incoming.whole:
                raise self._corrupt("differs from what was written to it")
            return
        size = os.fstat(file).st_size
        if size != incoming.size:
            raise self._corrupt(f"has {size:,} of {incoming.size:,} bytes")
        if verify == "readback":
            digest = sha256()
            for chunk in _chunks_of(file, size):
                digest.update(chunk)
                incoming.checked()
            if digest.hexdigest() != incoming.sha256():
                raise self._corrupt("differs from what was written to it")

    def _publish(self, name: str, temporary: int, incoming: Incoming) -> None:
        if self._directory >= 0 and incoming.whole is None:
            os.close(self._directory)  # looked at long ago; see status()
            self._directory = -1
        if self._directory < 0:
            self._directory = self._tree.enter(self._root, self._key.directories, create=True)
        final = self._key.name
        if self.found is not None:
            try:
                self.found.check_unchanged()
            except SourceChanged as error:
                raise TargetChanged(
                    f"{self._key} on node {self._tree.node} was written by somebody else meanwhile"
                ) from error
            incoming.before_publish()
            os.rename(name, final, src_dir_fd=temporary, dst_dir_fd=self._directory)
        else:
            incoming.before_publish()
            try:
                # A link, unlike a rename, never replaces what somebody else has put there meanwhile.
                os.link(name, final, src_dir_fd=temporary, dst_dir_fd=self._directory, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _rename_where_free(name, temporary, final, self._directory)
        if self._tree.durable:
            self._tree.flush(self._root, self._key.directories)

    def _corrupt(self, how: str) -> CopyCorrupt:
        return CopyCorrupt(f"the copy of {self._key} on node {self._tree.node} {how}")


class FileObject(OpenObject):
    """The open file at a place."""

    def __init__(self, place: FilePlace, tree: FileTree, key: ObjectKey, file: int, version: Version) -> None:
        self.version = version
        self._place = place
        self._tree = tree
        self._key = key
        self._file = file

    def read(self) -> bytes:
        """The whole content; see ``OpenObject.read``."""
        try:
            content = _read_exactly(self._file, self.version.size)
        except OSError as error:
            self._tree.reading_failed(error, self._key)
        if len(content) != self.version.size:
            raise self._changed()
        self.check_unchanged()
        return content

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces; see ``OpenObject.chunks``."""
        seen = 0
        try:
            # One byte more than expected shows a file that grew.
            for chunk in _chunks_of(self._file, self.version.size + 1):
                seen += len(chunk)
                if seen > self.version.size:
                    break
                yield chunk
        except OSError as error:
            self._tree.reading_failed(error, self._key)
        if seen != self.version.size:
            raise self._changed()
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Compare with what the name holds now; see ``OpenObject.check_unchanged``."""
        try:
            status = self._place.status()
        except (FileNotFoundError, NotADirectoryError):
            raise self._changed() from None
        except OSError as error:
            self._tree.reading_failed(error, self._key)
        if version_of(status) != self.version:
            raise self._changed()

    def flush(self) -> None:
        """Bring its content to the disk.

        Raises:
            OSError: it may not be there.
        """
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file and its place."""
        self._place.close()

    def close_file(self) -> None:
        """Close the file alone; its place does that."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{self._key} on node {self._tree.node} changed while it was read")


def version_of(status: os.stat_result) -> Version:
    """The version that a file's status tells of. A hard link more or less is no other version."""
    return Version(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def _kind(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"


def _write_all(file: int, chunk: bytes) -> None:
    written = os.write(file, chunk)
    while written < len(chunk):
        written += os.write(file, memoryview(chunk)[written:])


def _read_exactly(file: int, size: int) -> bytes:
    """The first ``size`` bytes; fewer or one more if the file has not exactly that many."""
    content = os.pread(file, size + 1, 0)
    while len(content) < size:
        more = os.pread(file, size + 1 - len(content), len(content))
        if not more:
            break
        content += more
    return content


def _chunks_of(file: int, size: int) -> Iterator[bytes]:
    position = 0
    while position < size:
        chunk = os.pread(file, min(CHUNK_BYTES, size - position), position)
        if not chunk:
            return
        position += len(chunk)
        yield chunk


def _remove_leftovers(temporary: int, ticket: Ticket) -> None:
    for name in os.listdir(temporary):
        if ticket.is_leftover(name):
            # Only this name: a run killed right after publishing leaves a second link to the published file.
            _unlink_if_there(name, temporary)


def _rename_where_free(name: str, temporary: int, final: str, directory: int) -> None:
    """For file systems without hard links: a short moment in which another writer could be replaced."""
    try:
        os.stat(final, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, final, src_dir_fd=temporary, dst_dir_fd=directory)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)


def _unlink_if_there(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
