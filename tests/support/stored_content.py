"""Something to write to a node, and the way there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256

from workers.storage import Node, ObjectKey, Ticket, object_key
from workers.storage.node import Incoming, Verify

KEY = object_key("bucket/a/key")


class Content(Incoming):
    """Something to write, with hooks at the two moments that matter."""

    def __init__(
        self,
        content: bytes,
        *,
        written: Callable[[], None] = lambda: None,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self.content = content
        self.size = len(content)
        self.whole = content if self.size <= 1 << 20 else None
        self._written = written
        self._publish = publish

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size, 1 << 20):
            yield self.content[start : start + (1 << 20)]
        self._written()

    def sha256(self) -> str:
        return sha256(self.content).hexdigest()

    def checked(self) -> None:
        """Whoever waits for it goes on waiting."""

    def before_publish(self) -> None:
        self._publish()


def write(
    node: Node,
    incoming: Incoming,
    key: ObjectKey = KEY,
    *,
    verify: Verify = "readback",
    ticket: Ticket | None = None,
) -> None:
    place = node.look(key)
    try:
        place.write(incoming, ticket or Ticket("job-1", 1), verify=verify)
    finally:
        place.close()
