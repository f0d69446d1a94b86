"""The directories of a file node, entered step by step, and the names of what can go wrong there.

In:  a node's root and the parts of a path below it. Out: open directories, or a ``StorageError``.

No symbolic link below the root is followed: every directory on the way is opened by its own name, relative to
the one above (``O_NOFOLLOW``). The root itself may be one; it is the operator's word where the node lies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final, NoReturn

from workers.storage.errors import (
    AccessDenied,
    NameRefused,
    NodeFull,
    NodeUnreachable,
    NotAnObject,
    ObjectMissing,
    SymlinkRefused,
    TargetChanged,
)
from workers.storage.keys import RESERVED, ObjectKey

#: What file systems say that have no such operation for a directory.
_NO_FLUSH: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileTree:
    """A node's directory tree. Holds nothing open.

    Args:
        node: the node's name.
        root: its directory.
        durable: whether objects and their directories are flushed to the disk before they count.
    """

    __slots__ = ("durable", "node", "root")

    def __init__(self, node: str, root: Path, *, durable: bool) -> None:
        self.node = node
        self.root = os.fspath(root)
        self.durable = durable

    def open_root(self) -> int:
        """Open the root; the caller closes it.

        Raises:
            NodeUnreachable: it is not there, or no directory.
        """
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NodeUnreachable(
                f"node {self.node}: {self.root} cannot be opened ({error.strerror}); is its disk mounted? "
                "A node's directory is never created by a job"
            ) from error

    def enter(self, root: int, parts: tuple[str, ...], *, create: bool = False) -> int:
        """Open a directory below the open root, following no links; the caller closes it.

        Raises:
            OSError: for ``reading_failed`` or ``writing_failed`` to name.
        """
        current = root
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
                if current != root:
                    os.close(current)
                current = below
        except BaseException:
            if current != root:
                os.close(current)
            raise
        return current

    def _make(self, part: str, current: int) -> int:
        with contextlib.suppress(FileExistsError):  # another job made it
            os.mkdir(part, dir_fd=current)
        return os.open(part, _DIRECTORY, dir_fd=current)

    def flush(self, root: int, parts: tuple[str, ...]) -> None:
        """Bring the names of a directory, and of those above it, to the disk.

        All of them: whoever has made one may have been killed before it was flushed. What has not changed costs microseconds.

        Raises:
            OSError: they may not be there. NodeUnreachable: this file system cannot do that.
        """
        for depth in range(len(parts), -1, -1):
            directory = self.enter(root, parts[:depth])
            try:
                os.fsync(directory)
            except OSError as error:
                if error.errno not in _NO_FLUSH:
                    raise
                raise NodeUnreachable(
                    f"node {self.node}: its file system cannot flush a directory to the disk ({error.strerror}), so no copy there is "
                    "durable; write durable=false into its URL to do without"
                ) from error
            finally:
                if directory != root:
                    os.close(directory)

    def reading_failed(self, error: OSError, key: ObjectKey) -> NoReturn:
        """Name what went wrong while an object was read.

        Raises:
            StorageError: always.
        """
        match error.errno:
            # A file where a directory should be: nothing can be below it.
            case errno.ENOENT | errno.ENOTDIR:
                raise ObjectMissing(f"{key} is not on node {self.node}") from error
            case errno.ENXIO:
                raise NotAnObject(f"{key} on node {self.node} is a socket or device, no object") from error
            case _:
                self._failed(error, f"{key} on node {self.node}")

    def writing_failed(self, error: OSError, key: ObjectKey) -> NoReturn:
        """Name what went wrong while an object was written.

        Raises:
            StorageError: always.
        """
        where = f"{key} on node {self.node}"
        match error.errno:
            case errno.EEXIST:
                raise TargetChanged(f"{where} was written by somebody else meanwhile") from error
            case errno.ENOENT:
                raise TargetChanged(
                    f"{where}: its directory or temporary copy was removed meanwhile"
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
                self._failed(error, where)

    @staticmethod
    def _failed(error: OSError, where: str) -> NoReturn:
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
