"""The workers that come with the project, made from the settings."""

from __future__ import annotations

from streams.settings import Settings
from workers.handlers.replication import ReplicationWorker
from workers.storage import NodeRegistry
from workers.worker import Worker


def builtin_workers(settings: Settings) -> list[Worker]:
    """One of each; a job for a node that the settings do not name fails with an error that says so."""
    return [ReplicationWorker(NodeRegistry(settings.nodes))]
