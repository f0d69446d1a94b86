"""Copies of one object from node n1 to n2 and n3, and nodes that meddle with them."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.storage_nodes import Disks, MeddledNode
from workers.storage import CopyOrder, CopyReport, Node, Ticket, copy_object, object_key
from workers.storage.copying import TargetResult

ORDER = CopyOrder(object_key("bucket/key"), Ticket("job-1", 1))
COMPLETED, ALREADY_OK = TargetResult("COMPLETED"), TargetResult("ALREADY_OK")


def copy(
    disks: Disks, order: CopyOrder = ORDER, *, n2: Node | None = None, n3: Node | None = None
) -> CopyReport:
    """From n1 to n2 and n3, or to the nodes given in their place."""
    targets = {"n2": n2 or disks.registry.node("n2"), "n3": n3 or disks.registry.node("n3")}
    return copy_object(order, disks.registry.node("n1"), targets)


def meddle(disks: Disks, node: str, **hooks: Callable[[], None]) -> MeddledNode:
    return MeddledNode(disks.registry.node(node), **hooks)


def no_leftovers(disks: Disks) -> bool:
    return all(disks.temporary(node) == [] for node in ("n1", "n2", "n3"))
