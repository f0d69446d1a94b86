"""Storage nodes for tests: directories to look into, and nodes that interfere at a chosen moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas import JobPriority
from workers.context import WorkerContext
from workers.handlers.replication import ReplicationJob
from workers.results import Failed, JobResult, Success
from workers.storage import Node, NodeRegistry, ObjectKey, Ticket
from workers.storage.node import SMALL_BYTES, Incoming, Place, Verify

#: Sizes on both sides of everything that is decided by size, and of a chunk.
SMALL = 3_000
LARGE = SMALL_BYTES + (1 << 20) + 7
both_sizes = pytest.mark.parametrize("size", [SMALL, LARGE])


class Disks:
    """Three empty file nodes n1, n2, n3 as directories.

    Attributes:
        registry: has them under their names.
    """

    def __init__(self, base: Path, options: str = "") -> None:
        self.base = base
        for name in ("n1", "n2", "n3"):
            (base / name).mkdir()
        self.urls = {name: f"file://{base / name}{options}" for name in ("n1", "n2", "n3")}
        self.registry = NodeRegistry(self.urls)

    def path(self, node: str, key: str) -> Path:
        return self.base / node / key

    def put(self, node: str, key: str, content: bytes) -> Path:
        path = self.path(node, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        change(path, content)
        return path

    def get(self, node: str, key: str) -> bytes | None:
        path = self.path(node, key)
        return path.read_bytes() if path.exists() else None

    def temporary(self, node: str) -> list[Path]:
        """What lies in the node's directory for temporary copies."""
        directory = self.base / node / ".rfw/tmp"
        return sorted(directory.iterdir()) if directory.exists() else []


def change(path: Path, content: bytes) -> None:
    """Write a file in place; its time moves on even where the file system's clock is coarse."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(content)
    after = path.stat().st_mtime_ns
    if after <= before:
        os.utime(path, ns=(before + 1, before + 1))


def context(job_id: str = "job-1", fence: int = 1) -> WorkerContext:
    return WorkerContext(
        job_id=job_id, job_type="replication", priority=JobPriority.NORMAL, fence=fence, worker_id="w.0"
    )


def job(path: str = "bucket/key", targets: tuple[str, ...] = ("n2", "n3"), **fields: Any) -> ReplicationJob:
    return ReplicationJob(source_path=path, target_nodes=list(targets), **fields)


def success(result: JobResult) -> Mapping[str, Any]:
    assert isinstance(result, Success), result
    assert result.output is not None
    return result.output


def failure(result: JobResult) -> Failed:
    assert isinstance(result, Failed), result
    assert len(result.reason) <= 512
    return result


def open_files() -> int:
    """Of this process."""
    return len(list(Path("/dev/fd").iterdir()))


def nothing() -> None:
    """Does not interfere."""


class MeddledNode(Node):
    """Another node, with something that happens while an object is being written there.

    Args:
        node: the real one.
        looked: called when what is there has been opened.
        written: called when all bytes have been written and nothing has been verified yet.
        before: called before the write begins.
        published: called when the write is complete.
    """

    def __init__(
        self,
        node: Node,
        *,
        looked: Callable[[], None] = nothing,
        written: Callable[[], None] = nothing,
        before: Callable[[], None] = nothing,
        published: Callable[[], None] = nothing,
    ) -> None:
        self.name = node.name
        self.waits_for = node.waits_for
        self.node = node
        self.looked = looked
        self.written = written
        self.before = before
        self.published = published

    def look(self, key: ObjectKey) -> Place:
        place = _MeddledPlace(self, self.node.look(key))
        self.looked()
        return place

    def check(self) -> None:
        self.node.check()


class _MeddledPlace(Place):
    def __init__(self, meddler: MeddledNode, place: Place) -> None:
        self._meddler = meddler
        self._place = place
        self.found = place.found

    def write(self, incoming: Incoming, ticket: Ticket, *, verify: Verify) -> None:
        self._meddler.before()
        self._place.write(_MeddledIncoming(self._meddler, incoming), ticket, verify=verify)
        self._meddler.published()

    def keep(self, ticket: Ticket) -> None:
        self._place.keep(ticket)

    def close(self) -> None:
        self._place.close()


class _MeddledIncoming(Incoming):
    def __init__(self, meddler: MeddledNode, incoming: Incoming) -> None:
        self._meddler = meddler
        self._incoming = incoming
        self.size = incoming.size
        self.whole = incoming.whole

    def chunks(self) -> Iterator[bytes]:
        yield from self._incoming.chunks()
        self._meddler.written()

    def sha256(self) -> str:
        return self._incoming.sha256()

    def checked(self) -> None:
        self._incoming.checked()

    def before_publish(self) -> None:
        self._incoming.before_publish()
