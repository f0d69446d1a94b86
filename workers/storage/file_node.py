"""A node that is a directory: ``file:///srv/n1``. Object ``bucket/key`` is the file ROOT/bucket/key.

Plain system calls instead of obstore's local store, which follows symbolic links out of its root, creates a
missing root, never calls fsync and costs several times as much per object.

**Root.** It must exist: an unmounted disk is an error, never an empty node. Use a directory *below* the mount
point (``/mnt/disk1/node``), since the mount point itself exists without the disk. Nothing of it stays open
between two jobs, so the disk can be unmounted.

**Publishing.** Readers see the old object, the new one, or none, never a part (``file_place``).

**Writers.** Whoever puts objects into a node has to publish them whole as well, by a rename. A file that is rewritten in
place while it is copied can be copied half old, half new: its time of change is set when the writing begins, so nothing
tells that it goes on. A job with ``expected_sha256`` refuses such a copy.

**Power loss.** Without ``durable``, the default, the kernel writes within about 30 s; after a *power loss or
kernel crash* (not after a crash of the worker) a copy of the last seconds can be missing, or empty, or partly
zero, although its job succeeded. The source is untouched, and healing finds such copies by their hash. With
``durable`` the file is flushed before it is published and the directory afterwards: what was reported complete is
on the disk, and "readback" of a large copy reads the disk. The price, measured on a virtual disk that flushes
4 KiB in 0.25 ms: 1,000 instead of 6,500 small objects per second, 8 instead of 4 s for 2 GiB to two nodes.
"""

from __future__ import annotations

import os
from pathlib import Path

from workers.storage.file_place import FilePlace
from workers.storage.file_tree import FileTree
from workers.storage.keys import ObjectKey
from workers.storage.node import Node


class FileNode(Node):
    """A directory tree as a node.

    Args:
        name: as in the settings.
        root: the directory; it is not touched before it is needed.
        durable: whether every copy is flushed to the disk before it counts.
    """

    def __init__(self, name: str, root: Path, *, durable: bool = False) -> None:
        self.name = name
        self.waits_for = "disk" if durable else "nothing"
        self._tree = FileTree(name, root, durable=durable)

    def look(self, key: ObjectKey) -> FilePlace:
        """Look where an object is or would be; see ``Node.look``."""
        return FilePlace(self._tree, key)

    def check(self) -> None:
        """Open the root; see ``Node.check``."""
        os.close(self._tree.open_root())
