"""The workers that come with the project, and how another process makes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.settings import Settings, load_settings
from tests.support.process_pool import Told
from workers import ReplicationJob
from workers.builtin import builtin_workers
from workers.execution.sandbox import Sandbox
from workers.results import Success
from workers.storage import NodeConfigError
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing


def settings_with(**nodes: str) -> Settings:
    return load_settings(kafka_bootstrap_servers="127.0.0.1:1", nodes=nodes)


def handlers_of(settings: Settings) -> Handlers:
    handlers = Handlers()
    for worker in builtin_workers(settings):
        handlers.register(worker)
    return handlers


async def test_a_replication_that_may_kill_its_process_runs_in_another_one(tmp_path: Path) -> None:
    """Alone in the worker, one that kills after hours would stop all others for as long, each time, and never be found."""
    settings = settings_with(**{name: (tmp_path / name).as_uri() for name in ("n1", "n2")})
    source = tmp_path / "n1/bucket/a.bin"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"what there is")
    (tmp_path / "n2").mkdir()
    handlers = handlers_of(settings)
    sandbox = Sandbox(1, handlers)
    job = ReplicationJob(source_path="bucket/a.bin", target_nodes=["n2"])
    handler = handlers.get(job.job_type)
    assert handler is not None
    envelope = {"id": "j", "type": job.job_type, "priority": "normal", "created_at": 0, "source": ""}
    body = handler.job_type.wire.encode(handler.job_type.to_record(job, envelope))
    try:
        result = await sandbox.run(handler, body, Told(job), on_start=lambda: None)
    finally:
        await sandbox.close()
    assert isinstance(result, Success)
    assert (tmp_path / "n2/bucket/a.bin").read_bytes() == b"what there is"


def test_what_is_in_this_processes_memory_is_not_to_be_found_in_another_one() -> None:
    assert Sandbox(1, handlers_of(settings_with(n1="memory://"))).types == frozenset()


def test_a_node_that_cannot_be_used_is_named() -> None:
    """Before anything is registered, and before a Kafka is started."""
    with pytest.raises(NodeConfigError, match="unknown scheme"):
        builtin_workers(settings_with(n1="gopher://n1"))
