"""What every storage node can do, whatever it is made of.

In:  an object's key. Out: the ``Place`` where it is or would be on a node; from there it is read and written.

All calls block: they are made in threads, where they release the interpreter during I/O. Nodes are safe from
any thread; a ``Place`` and the ``OpenObject`` in it belong to the run that asked for them.
"""

from __future__ import annotations

import itertools
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import Final, Literal, Self

from workers.storage.errors import ObjectMissing
from workers.storage.keys import ObjectKey

#: Up to this size an object is read whole, in one call, and compared byte by byte.
SMALL_BYTES: Final = 1 << 20

#: How a fresh copy is checked. "readback": every byte is read again and compared. "sha256": the bytes are
#: hashed on their way and the copy's size is looked at. "size": only the size is looked at.
Verify = Literal["readback", "sha256", "size"]

#: See ``Node``.
Waits = Literal["nothing", "disk", "network"]

# Together they make a temporary name unique. A forked child would share both: workers are started, not
# forked.
_PROCESS: Final = secrets.token_hex(6)
_attempts = itertools.count()


@dataclass(frozen=True, slots=True)
class Version:
    """What an object was when it was opened.

    Attributes:
        size: in bytes.
        tag: opaque; another tag at the same place means that the object was written since.
        place: where its bytes lie (device and inode), if the node can tell. Two names at one place are one
        copy.
    """

    size: int
    tag: Hashable
    place: Hashable | None = None


class Ticket:
    """In whose name a copy is written: it marks the temporary name, so that a rerun finds its leftovers.

    Args:
        job_id: the job's id.
        fence: rises with every owner of the job.
    """

    __slots__ = ("_prefix", "fence")

    def __init__(self, job_id: str, fence: int = 0) -> None:
        self.fence = fence
        # Ids are UUIDs; anything else must not reach a file's name as it is.
        safe = re.fullmatch(r"[A-Za-z0-9_-]{1,80}", job_id)
        self._prefix = (job_id if safe else sha256(job_id.encode(errors="surrogatepass")).hexdigest()) + "."

    def temporary_name(self) -> str:
        """A name for one attempt. Never used twice.

        A run that was given up but still lives in its thread must not publish what the next one is writing.
        """
        return f"{self._prefix}{self.fence}.{_PROCESS}-{next(_attempts):x}"

    def is_leftover(self, name: str) -> bool:
        """Whether a temporary name belongs to an earlier run of this job, by this owner or one before it."""
        if not name.startswith(self._prefix):
            return False
        fence = name[len(self._prefix) :].partition(".")[0]
        return fence.isdecimal() and int(fence) <= self.fence


class OpenObject(ABC):
    """An object that can be read. Close it, or use it in ``with``."""

    version: Version

    @abstractmethod
    def read(self) -> bytes:
        """The whole content; for small objects.

        Raises:
            SourceChanged: it is not the opened version any more.
        """

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """The content from the start, in pieces of at most 4 MiB.

        Raises:
            SourceChanged: it is not the opened version any more.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Look at the object again, by its name. Safe from several threads at once.

        Raises:
            SourceChanged: the name holds another version, or nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it, and of its place. Twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Incoming(ABC):
    """Content on its way to one node.

    Attributes:
        size: in bytes.
        whole: all of it, where it is small; else None.
    """

    size: int
    whole: bytes | None = None

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """The content, once. It ends without an error only if all of it came and may be published."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of all of it, in hex; known after ``chunks`` ended."""

    @abstractmethod
    def checked(self) -> None:
        """A piece of the copy has been read again. Raises if nobody wants the copy any more."""

    @abstractmethod
    def before_publish(self) -> None:
        """The last look: raises if the copy must not become visible."""


class Place(ABC):
    """Where one object is, or would be, on one node. Close it.

    Attributes:
        found: what the name holds, open for reading; None if it is free.
    """

    found: OpenObject | None

    @abstractmethod
    def write(self, incoming: Incoming, ticket: Ticket, *, verify: Verify) -> None:
        """Store an object here: all of it becomes visible at once, or nothing does.

        A free name must still be free, a taken one must still hold what was found. Where the node has temporary names, the
        copy is verified before it is visible; elsewhere afterwards, and removed if it is wrong.

        Raises:
            CopyCorrupt: what was read back is not what was sent.
            TargetChanged: somebody else has written or removed the object since the look.
            StorageError: see ``workers.storage.errors``, and whatever ``incoming`` raises.
        """

    @abstractmethod
    def keep(self, ticket: Ticket) -> None:
        """Leave what was found, which is what should be here, and make it as safe as what ``write`` stores.

        Removes what earlier runs of this job have left, as ``write`` does; what cannot be removed stays, for cleanup to find.

        Raises:
            StorageError: the node promises that what it holds survives a power loss, and this may not.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it, and of what was found. Twice is harmless."""


class Node(ABC):
    """A place for objects.

    Attributes:
        name: as in the settings, lower case.
        waits_for: what a call for a small object mostly waits for. "nothing": it takes microseconds, and handing
            it to another thread would cost more. "disk": jobs are worth running side by side. "network": so are
            the targets of one job.
    """

    name: str
    waits_for: Waits

    @abstractmethod
    def look(self, key: ObjectKey) -> Place:
        """Look where an object is or would be. Nothing is created.

        Raises:
            NodeUnreachable: what the node holds is unknown.
            StorageError: see ``workers.storage.errors``.
        """

    @abstractmethod
    def check(self) -> None:
        """Ask the node for a sign of life.

        Raises:
            NodeUnreachable: there was none.
        """

    def open(self, key: ObjectKey) -> OpenObject:
        """Open an object for reading.

        Raises:
            ObjectMissing: the node answers, and the object is not there.
            StorageError: as ``look``.
        """
        place = self.look(key)
        if place.found is None:
            place.close()
            raise ObjectMissing(f"{key} is not on node {self.name}")
        return place.found
