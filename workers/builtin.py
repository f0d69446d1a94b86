"""The workers that come with the project, made from the settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final

from streams.settings import Settings
from workers.handlers.replication import ReplicationWorker
from workers.storage import NodeRegistry
from workers.worker import Worker

_ONLY_HERE: Final = "memory:"


def builtin_workers(settings: Settings) -> list[Worker | Callable[[], Worker]]:
    """One of each, to register; a job for a node that the settings do not name fails with an error that says so.

    Another process can make them again, for jobs that may kill theirs. What is in memory would not be there.

    Raises:
        NodeConfigError: a node cannot be used.
    """
    nodes = dict(settings.nodes)
    here = replication_worker(nodes)
    if any(url.startswith(_ONLY_HERE) for url in nodes.values()):
        return [here]
    return [functools.partial(replication_worker, nodes)]


def replication_worker(nodes: Mapping[str, str]) -> ReplicationWorker:
    """With these nodes: name to URL.

    Raises:
        NodeConfigError: one of them cannot be used.
    """
    return ReplicationWorker(NodeRegistry(nodes))
