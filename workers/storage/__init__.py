"""Storage nodes and copying between them; knows nothing of jobs and Kafka.

``keys`` (what an object is called) → ``nodes`` (names and URLs to nodes) → ``node`` (what a node can do), its two
kinds ``file_node`` (with ``file_tree`` and ``file_place``) and ``object_node`` → ``copying`` (one object to its
targets) with ``fanout`` (a large one, read once) → ``errors`` (everything that can go wrong, by name). ``crew`` runs
all of that, which blocks, for an event loop; ``standstills`` says which node is left alone for a while, because it hangs.
"""

from workers.storage.copying import CopyOrder, CopyReport, TargetResult, copy_object
from workers.storage.errors import NodeConfigError, StorageError
from workers.storage.keys import ObjectKey, object_key
from workers.storage.node import Node, OpenObject, Ticket, Version
from workers.storage.nodes import NodeRegistry, parse_node_url

__all__ = [
    "CopyOrder",
    "CopyReport",
    "Node",
    "NodeConfigError",
    "NodeRegistry",
    "ObjectKey",
    "OpenObject",
    "StorageError",
    "TargetResult",
    "Ticket",
    "Version",
    "copy_object",
    "object_key",
    "parse_node_url",
]
