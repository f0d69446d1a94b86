"""A node that is a directory: ``file:///srv/n1``. Object ``bucket/key`` is the file ROOT/bucket/key.

Plain system calls instead of obstore's local store, which follows symbolic links out of its root, creates a
missing root, never calls fsync and costs several times as much per object.

**Root.** It must exist: an unmounted disk is an error, never an empty node. Use a directory *below* the mount
point (``/mnt/disk1/node``), since the mount point itself exists without the disk.

**Links.** No symbolic link below the root is followed: every directory on the way is opened by its own name,
relative to the one above (``O_NOFOLLOW``).

**Publishing.** A copy is written to ROOT/.rfw/tmp, verified there and then linked (target was absent: an
existing name is never replaced) or renamed (overwrite) into place: readers see the old object, the new one, or
none, never a part.

**Power loss.** With ``durable`` the file is flushed before it is published and the directory afterwards: what
was reported complete is on the disk. Without, the kernel writes within about 30 s; after a *power loss or kernel
crash* (not after a crash of the worker) a copy of the last seconds can be missing, or empty, or partly zero,
although its job succeeded. The source is untouched and healing finds such copies by their hash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, NoReturn

from workers.storage.errors import (
    AccessDenied,
    CopyCorrupt,
    NameRefused,
    NodeFull,
    NodeUnreachable,
    NotAnObject,
    ObjectMissing,
    SourceChanged,
    StorageError,
    SymlinkRefused,
    TargetChanged,
)
from workers.storage.keys import RESERVED, ObjectKey
from workers.storage.node import SMALL_BYTES, Incoming, Node, OpenObject, Ticket, Verify, Version

CHUNK_BYTES: Final = 1 << 20

_TEMPORARY: Final = (RESERVED, "tmp")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK opening a FIFO would wait for its writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class FileNode(Node):
    """A directory tree as a node. Holds nothing open between calls, so its disk can be unmounted."""

    local = True

    def __init__(self, name: str, root: Path, *, durable: bool = False) -> None:
        self.name = name
        self.root = root
        self.durable = durable

    def open(self, key: ObjectKey) -> FileObject:
        """Open an object; see ``Node.open``."""
        directory = -1
        file = -1
        try:
            directory = self._enter(key.parts[:-1])
            file = os.open(key.parts[-1], _READ, dir_fd=directory)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise NotAnObject(f"{key} on node {self.name} is {_kind(status.st_mode)}, not an object")
        except OSError as error:
            _close(file, directory)
            self._reading_failed(error, key)
        except StorageError:
            _close(file, directory)
            raise
        return FileObject(self, key, directory, file, version_of(status))

    def write(
        self, key: ObjectKey, incoming: Incoming, ticket: Ticket, *, verify: Verify, overwrite: bool
    ) -> None:
        """Store an object; see ``Node.write``."""
        with contextlib.ExitStack() as cleanup:
            try:
                temporary = self._enter(_TEMPORARY, create=True)
                cleanup.callback(os.close, temporary)
                self._remove_leftovers(temporary, ticket)
                name = ticket.temporary_name()
                file = os.open(name, _CREATE, 0o666, dir_fd=temporary)
                cleanup.callback(_unlink_if_there, name, temporary)
                cleanup.callback(os.close, file)
                for chunk in incoming.chunks():
                    _write_all(file, chunk)
                self._flush(file, incoming.size)
                self._verify(file, key, incoming, verify)
                directory = self._enter(key.parts[:-1], create=True)
                cleanup.callback(os.close, directory)
                incoming.before_publish()
                self._publish(name, temporary, key, directory, overwrite=overwrite)
            except OSError as error:
                self._writing_failed(error, key)

    def check(self) -> None:
        """Open the root; see ``Node.check``."""
        os.close(self._open_root())

    def _flush(self, file: int, size: int) -> None:
        if self.durable:
            os.fsync(file)
            if size > SMALL_BYTES and hasattr(os, "posix_fadvise"):
                # Verify what the disk holds, not what memory does.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _verify(self, file: int, key: ObjectKey, incoming: Incoming, verify: Verify) -> None:
        size = os.fstat(file).st_size
        if size != incoming.size:
            raise CopyCorrupt(
                f"the copy of {key} on node {self.name} has {size:,} of {incoming.size:,} bytes"
            )
        if verify != "readback":
            return
        if incoming.whole is not None:
            same = _read_exactly(file, size) == incoming.whole
        else:
            digest = sha256()
            for chunk in _chunks_of(file, size):
                digest.update(chunk)
            same = digest.hexdigest() == incoming.sha256()
        if not same:
            raise CopyCorrupt(f"the copy of {key} on node {self.name} differs from what was written to it")

    def _publish(self, name: str, temporary: int, key: ObjectKey, directory: int, *, overwrite: bool) -> None:
        final = key.parts[-1]
        if overwrite:
            os.rename(name, final, src_dir_fd=temporary, dst_dir_fd=directory)
        else:
            try:
                # A link, unlike a rename, never replaces what somebody else has put there meanwhile.
                os.link(name, final, src_dir_fd=temporary, dst_dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._rename_where_free(name, temporary, final, directory)
        if self.durable:
            os.fsync(directory)

    @staticmethod
    def _rename_where_free(name: str, temporary: int, final: str, directory: int) -> None:
        """For file systems without hard links: a short moment in which another writer could be replaced."""
        try:
            os.stat(final, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, final, src_dir_fd=temporary, dst_dir_fd=directory)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)

    @staticmethod
    def _remove_leftovers(temporary: int, ticket: Ticket) -> None:
        for name in os.listdir(temporary):
            if ticket.is_leftover(name):
                # Only this name: a run killed right after publishing leaves a second link to the published file.
                _unlink_if_there(name, temporary)

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NodeUnreachable(
                f"node {self.name}: {self.root} cannot be opened ({error.strerror}); is its disk mounted? "
                "A node's directory is never created by a job"
            ) from error

    def _enter(self, parts: tuple[str, ...], *, create: bool = False) -> int:
        """Open a directory below the root, step by step, following no links. The caller closes it."""
        current = self._open_root()
        try:
            for part in parts:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=current)
                except FileNotFoundError:
                    if not create:
                        raise
                    below = self._make(part, current)
                except NotADirectoryError:
                    # The answer for a file, and on Linux for a symbolic link as well.
                    if stat.S_ISLNK(os.stat(part, dir_fd=current, follow_symlinks=False).st_mode):
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
                    raise
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    def _make(self, part: str, current: int) -> int:
        with contextlib.suppress(FileExistsError):  # another job made it
            os.mkdir(part, dir_fd=current)
        if self.durable:
            os.fsync(current)
        return os.open(part, _DIRECTORY, dir_fd=current)

    def _reading_failed(self, error: OSError, key: ObjectKey) -> NoReturn:
        match error.errno:
            # A file where a directory should be: nothing can be below it.
            case errno.ENOENT | errno.ENOTDIR:
                raise ObjectMissing(f"{key} is not on node {self.name}") from error
            case errno.ENXIO:
                raise NotAnObject(
                    f"{key} on node {self.name} is a socket or device, not an object"
                ) from error
            case _:
                self._failed(error, key)

    def _writing_failed(self, error: OSError, key: ObjectKey) -> NoReturn:
        where = f"{key} on node {self.name}"
        match error.errno:
            case errno.EEXIST:
                raise TargetChanged(f"{where} was written by somebody else meanwhile") from error
            case errno.ENOENT:
                raise TargetChanged(
                    f"{where}: a directory or the temporary copy was removed meanwhile"
                ) from error
            case errno.ENOTDIR:
                raise NotAnObject(f"{where}: a file stands where a directory is needed") from error
            case errno.EISDIR:
                raise NotAnObject(f"{where} is a directory") from error
            case errno.EXDEV:
                raise NotAnObject(
                    f"{where} lies on another file system than the node's {RESERVED}; "
                    "make what is mounted there a node of its own"
                ) from error
            case _:
                self._failed(error, key)

    def _failed(self, error: OSError, key: ObjectKey) -> NoReturn:
        where = f"{key} on node {self.name}"
        match error.errno:
            case errno.ELOOP:
                raise SymlinkRefused(
                    f"{where}: a symbolic link is in the way and is not followed; "
                    "make the directory it points to a node of its own"
                ) from error
            case errno.ENAMETOOLONG | errno.EILSEQ | errno.EINVAL:
                raise NameRefused(f"{where}: the file system refuses this name ({error.strerror})") from error
            case errno.EACCES | errno.EPERM:
                raise AccessDenied(f"{where}: {error.strerror}; give the worker's user access") from error
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                raise NodeFull(f"{where}: {error.strerror}") from error
            case _:
                raise NodeUnreachable(f"{where}: {error.strerror or error}") from error


class FileObject(OpenObject):
    """An open file of a node."""

    def __init__(self, node: FileNode, key: ObjectKey, directory: int, file: int, version: Version) -> None:
        self._node = node
        self._key = key
        self._directory = directory
        self._file = file
        self.version = version

    def read(self) -> bytes:
        """The whole content; see ``OpenObject.read``."""
        try:
            # One byte more than expected shows a file that grew.
            content = _read_exactly(self._file, self.version.size + 1)
        except OSError as error:
            self._node._reading_failed(error, self._key)
        if len(content) != self.version.size:
            raise self._changed()
        return content

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces; see ``OpenObject.chunks``."""
        seen = 0
        try:
            for chunk in _chunks_of(self._file, self.version.size + 1):
                seen += len(chunk)
                if seen > self.version.size:
                    break
                yield chunk
        except OSError as error:
            self._node._reading_failed(error, self._key)
        if seen != self.version.size:
            raise self._changed()

    def check_unchanged(self) -> None:
        """Compare with what the name holds now; see ``OpenObject.check_unchanged``."""
        try:
            status = os.stat(self._key.parts[-1], dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            raise self._changed() from None
        except OSError as error:
            self._node._reading_failed(error, self._key)
        if version_of(status) != self.version:
            raise self._changed()

    def close(self) -> None:
        """Close the file and its directory."""
        _close(self._file, self._directory)
        self._file = self._directory = -1

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{self._key} on node {self._node.name} changed while it was read")


def version_of(status: os.stat_result) -> Version:
    """The version that a file's status tells of. A hard link more or less is no other version."""
    place = (status.st_dev, status.st_ino)
    return Version(status.st_size, (status.st_mtime_ns, *place), place)


def _kind(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"


def _write_all(file: int, chunk: bytes) -> None:
    written = os.write(file, chunk)
    while written < len(chunk):
        written += os.write(file, memoryview(chunk)[written:])


def _read_exactly(file: int, size: int) -> bytes:
    """The first ``size`` bytes, or all there are."""
    content = os.pread(file, size, 0)
    while 0 < len(content) < size:
        more = os.pread(file, size - len(content), len(content))
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


def _unlink_if_there(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _close(*files: int) -> None:
    for file in files:
        if file >= 0:
            os.close(file)
