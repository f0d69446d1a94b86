"""The replication handler on real directories and in-memory nodes, as a worker process calls it."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import obstore
import pytest
from structlog.testing import capture_logs

from tests.support.storage_nodes import LARGE, SMALL, Disks, both_sizes, context, failure, job, success
from workers.handlers import replication
from workers.handlers.replication import ReplicationJob, ReplicationWorker
from workers.results import Failed, JobResult
from workers.storage import CopyOrder, CopyReport, Node, NodeRegistry, ObjectKey, Ticket, object_key
from workers.storage.copying import TargetResult
from workers.storage.node import OpenObject
from workers.storage.object_node import ObjectNode, Stat
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@pytest.fixture
def worker(disks: Disks) -> Iterator[ReplicationWorker]:
    worker = ReplicationWorker(disks.registry)
    yield worker
    worker.close()


def states(result: JobResult) -> dict[str, str]:
    return {name: target["state"] for name, target in success(result)["targets"].items()}


@both_sizes
async def test_an_object_is_copied_to_all_targets(disks: Disks, worker: ReplicationWorker, size: int) -> None:
    content = os.urandom(size)
    disks.put("n1", "bucket/key", content)
    run = context()
    output = success(await worker.process_job(job(), run))
    assert output == {
        "copied": 2,
        "already_ok": 0,
        "bytes": 2 * size,
        "sha256": sha256(content).hexdigest(),
        "targets": {name: {"state": "COMPLETED", "error": None} for name in ("n2", "n3")},
    }
    assert disks.get("n2", "bucket/key") == disks.get("n3", "bucket/key") == content
    assert run.metrics == {"bytes_copied": 2 * size}


async def test_a_rerun_copies_nothing_and_counts_nothing(disks: Disks, worker: ReplicationWorker) -> None:
    disks.put("n1", "bucket/key", os.urandom(SMALL))
    await worker.process_job(job(), context())
    run = context()
    output = success(await worker.process_job(job(), run))
    assert (output["copied"], output["already_ok"], output["bytes"]) == (0, 2, 0)
    assert run.metrics == {}


async def test_an_empty_object_is_an_object(disks: Disks, worker: ReplicationWorker) -> None:
    disks.put("n1", "bucket/empty", b"")
    output = success(await worker.process_job(job("bucket/empty"), context()))
    assert (output["copied"], output["bytes"]) == (2, 0)
    assert output["sha256"] == sha256(b"").hexdigest()
    assert disks.get("n2", "bucket/empty") == b""


@pytest.mark.parametrize("name", ["with space", "a+b", "ü", "h#1", "per%20cent"])
async def test_unusual_names_arrive_unchanged_on_directories_and_stores(disks: Disks, name: str) -> None:
    registry = NodeRegistry({**disks.urls, "m": "memory://"})
    worker = ReplicationWorker(registry)
    disks.put("n1", f"bucket/{name}", name.encode())
    success(await worker.process_job(job(f"bucket/{name}", ("n2", "m")), context()))
    assert [path.name for path in disks.path("n2", "bucket").iterdir()] == [name]
    assert bytes(obstore.get(store_of(registry.node("m")), f"bucket/{name}").bytes()) == name.encode()
    worker.close()


def store_of(node: Node) -> Any:
    assert isinstance(node, ObjectNode)
    return node.store


@both_sizes
async def test_memory_nodes_are_sources_and_targets(size: int) -> None:
    registry = NodeRegistry({"m1": "memory://", "m2": "memory://", "m3": "memory://"})
    worker = ReplicationWorker(registry)
    content = os.urandom(size)
    obstore.put(store_of(registry.node("m1")), "bucket/key", content)
    result = await worker.process_job(job(targets=("m2", "m3")), context())
    assert states(result) == {"m2": "COMPLETED", "m3": "COMPLETED"}
    assert bytes(obstore.get(store_of(registry.node("m3")), "bucket/key").bytes()) == content
    assert states(await worker.process_job(job(targets=("m2", "m3")), context()))["m2"] == "ALREADY_OK"
    worker.close()


async def test_a_missing_source_is_retried(worker: ReplicationWorker) -> None:
    result = failure(await worker.process_job(job(), context()))
    assert result == Failed(
        "bucket/key is on none of the nodes n1", retryable=True, error_type="ObjectMissing"
    )


async def test_a_missing_source_on_a_named_node_is_retried(disks: Disks, worker: ReplicationWorker) -> None:
    disks.put("n2", "bucket/key", b"elsewhere")
    result = failure(await worker.process_job(job(targets=("n3",), source_node="n1"), context()))
    assert (result.error_type, result.retryable) == ("ObjectMissing", True)


async def test_the_first_node_that_has_the_object_is_the_source(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.put("n2", "bucket/key", b"from n2")
    success(await worker.process_job(job(targets=("n3",)), context()))
    assert disks.get("n3", "bucket/key") == b"from n2"


async def test_an_object_that_may_be_on_a_silent_node_is_not_called_missing(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.path("n1", "").rmdir()
    result = failure(await worker.process_job(job(targets=("n3",)), context()))
    assert (result.error_type, result.retryable) == ("NodeUnreachable", True)
    assert "may be on n1" in result.reason


@pytest.mark.parametrize(
    ("fields", "result", "holds"),
    [
        pytest.param({}, "NodeUnreachable", b"newer", id="what stands may be newer"),
        pytest.param({"overwrite": "always"}, "NodeUnreachable", b"newer", id="whatever is asked for"),
        pytest.param({"expected_sha256": sha256(b"older").hexdigest()}, None, b"older", id="it is what was meant"),
        pytest.param({"expected_sha256": sha256(b"newer").hexdigest()}, "NodeUnreachable", b"newer", id="it is not"),
        pytest.param({"expected_size": 9}, "NodeUnreachable", b"newer", id="nor by its size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 300_000])
async def test_while_a_node_that_is_asked_first_is_silent_nothing_newer_is_replaced(
    disks: Disks, worker: ReplicationWorker, size: int, fields: dict[str, Any], result: str | None, holds: bytes
) -> None:  # fmt: skip
    """It may have the newest one. Once it answers, the job goes on."""
    if size > 1 and "expected_sha256" in fields:
        whole = {"older": b"older" * size, "newer": b"newer" * size}
        name = "older" if fields["expected_sha256"] == sha256(b"older").hexdigest() else "newer"
        fields = {"expected_sha256": sha256(whole[name]).hexdigest()}
    disks.path("n1", "").rmdir()
    disks.put("n2", "bucket/key", b"older" * size)
    disks.put("n3", "bucket/key", b"newer" * size)
    ended = await worker.process_job(job(targets=("n3",), **fields), context())
    if result is None:
        success(ended)
    else:
        failed = failure(ended)
        assert (failed.error_type, failed.retryable) == (result, True)
        assert "n1 would be asked first" in failed.reason
    assert disks.get("n3", "bucket/key") == holds * size


async def test_a_node_with_a_directory_of_the_objects_name_is_not_silent(
    disks: Disks, worker: ReplicationWorker
) -> None:
    """It has no such object, for sure; taken for one that may, the targets would never get the newer one."""
    disks.put("n1", "bucket/key/below", b"another object")
    disks.put("n2", "bucket/key", b"newer")
    disks.put("n3", "bucket/key", b"older")
    success(await worker.process_job(job(targets=("n3",)), context()))
    assert disks.get("n3", "bucket/key") == b"newer"


async def test_a_free_name_is_given_what_there_is_though_a_node_is_silent(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.path("n1", "").rmdir()
    disks.put("n2", "bucket/key", b"older")
    success(await worker.process_job(job(targets=("n3",)), context()))
    assert disks.get("n3", "bucket/key") == b"older"


async def test_an_object_behind_a_link_is_refused_and_not_called_missing(
    disks: Disks, worker: ReplicationWorker, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    disks.path("n1", "bucket").mkdir()
    disks.path("n1", "bucket/key").symlink_to(tmp_path / "secret")
    result = failure(await worker.process_job(job(), context()))
    assert (result.error_type, result.retryable) == ("SymlinkRefused", False)
    assert disks.get("n2", "bucket/key") is None


async def test_an_object_that_another_node_is_about_to_get_is_waited_for_whatever_the_first_one_has_instead(
    disks: Disks, worker: ReplicationWorker, tmp_path: Path
) -> None:
    """The event came before the data. One node's fault of its own must not make it a dead letter at once."""
    disks.path("n1", "bucket").symlink_to(tmp_path)
    early = failure(await worker.process_job(job(targets=("n3",)), context()))
    assert (early.error_type, early.retryable) == ("ObjectMissing", True)
    assert "not on n2" in early.reason
    assert "n1 cannot give it" in early.reason
    disks.put("n2", "bucket/key", b"from n2")
    success(await worker.process_job(job(targets=("n3",)), context()))
    assert disks.get("n3", "bucket/key") == b"from n2"


async def test_no_source_is_left_when_all_nodes_are_targets(worker: ReplicationWorker) -> None:
    result = failure(await worker.process_job(job(targets=("n1", "n2", "n3")), context()))
    assert (result.error_type, result.retryable) == ("InvalidReplication", False)


async def test_an_unknown_target_is_named_with_the_setting_to_add(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.put("n1", "bucket/key", b"x")
    result = failure(await worker.process_job(job(targets=("n2", "n9")), context()))
    assert (result.error_type, result.retryable) == ("UnknownNode", False)
    assert "known: n1, n2, n3" in result.reason
    assert "RUSTFS_WORKERS_NODES__N9" in result.reason
    assert disks.get("n2", "bucket/key") == b"x"


async def test_an_unknown_source_is_named_with_the_setting_to_add(worker: ReplicationWorker) -> None:
    result = failure(await worker.process_job(job(source_node="n9"), context()))
    assert (result.error_type, result.retryable) == ("UnknownNode", False)
    assert "RUSTFS_WORKERS_NODES__N9" in result.reason


@pytest.mark.parametrize(
    "path", ["bucket/../../etc/passwd", "//etc/passwd", "bucket//x", "a/b\nc", ".rfw/tmp/x", "x"]
)
async def test_a_bad_path_is_a_permanent_failure(worker: ReplicationWorker, path: str) -> None:
    result = failure(await worker.process_job(job(path), context()))
    assert (result.error_type, result.retryable) == ("InvalidKey", False)


async def test_one_of_two_targets_unreachable_fails_the_job_and_not_the_other_copy(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.put("n1", "bucket/key", b"x")
    disks.path("n2", "").rmdir()
    with capture_logs() as logs:
        result = failure(await worker.process_job(job(), context("job-7")))
    assert (result.error_type, result.retryable) == ("NodeUnreachable", True)
    assert result.reason.startswith("1 of 2 copies complete (n3); n2: NodeUnreachable: node n2: ")
    assert disks.get("n3", "bucket/key") == b"x"
    assert [(log["event"], log["job_id"], log["node"]) for log in logs] == [("copy failed", "job-7", "n2")]


async def test_one_copy_is_enough_where_one_is_wanted(disks: Disks, worker: ReplicationWorker) -> None:
    disks.put("n1", "bucket/key", b"x")
    disks.path("n2", "").rmdir()
    result = await worker.process_job(job(replication_factor=1), context())
    assert states(result) == {"n2": "FAILED", "n3": "COMPLETED"}


async def test_a_source_that_is_not_as_expected_is_a_permanent_failure(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.put("n1", "bucket/key", b"x")
    for expected in ({"expected_size": 2}, {"expected_sha256": "0" * 64}):
        result = failure(await worker.process_job(job(**expected), context()))
        assert (result.error_type, result.retryable) == ("SourceCorrupt", False)
    assert disks.get("n2", "bucket/key") is None
    digest = sha256(b"x").hexdigest().upper()
    success(await worker.process_job(job(expected_sha256=digest, expected_size=1), context()))


async def test_everything_that_the_job_asks_for_reaches_the_copy(
    disks: Disks, worker: ReplicationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[CopyOrder] = []

    def copied(order: CopyOrder, source: OpenObject, targets: Mapping[str, Node]) -> CopyReport:
        orders.append(order)
        return CopyReport(1, None, dict.fromkeys(targets, TargetResult("COMPLETED")))

    monkeypatch.setattr(replication, "copy_opened", copied)
    disks.put("n1", "bucket/key", b"x")
    asked: dict[str, Any] = {
        "expected_sha256": sha256(b"x").hexdigest(),
        "expected_size": 1,
        "overwrite": "never",
        "verify": "size",
    }
    await worker.process_job(job(**asked), context("job-7", 5))
    (order,) = orders
    assert {name: getattr(order, name) for name in asked} == asked
    assert order.key == object_key("bucket/key")
    assert order.ticket.temporary_name().startswith("job-7.5.")


def test_a_cancelled_context_ends_the_run(disks: Disks, worker: ReplicationWorker) -> None:
    disks.put("n1", "bucket/key", os.urandom(LARGE))
    run = context()
    run.cancelled = True
    result = failure(worker.replicate(job(), run))
    assert (result.error_type, result.retryable) == ("Stopped", True)
    assert disks.get("n2", "bucket/key") is None


async def test_a_cancelled_call_publishes_nothing_and_has_let_go(
    disks: Disks, worker: ReplicationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the cancellation arrives at the caller, the thread is done with the object."""
    disks.put("n1", "bucket/key", os.urandom(SMALL))
    writing, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    write, replicate = os.write, worker.replicate

    def write_slowly(file: int, content: bytes) -> int:
        if len(content) == SMALL:
            writing.set()
            go_on.wait(10)
        return write(file, content)

    def replicate_and_tell(*arguments: Any) -> JobResult:
        try:
            return replicate(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(worker, "replicate", replicate_and_tell)
    monkeypatch.setattr(os, "write", write_slowly)
    call = asyncio.create_task(worker.process_job(job(), context()))
    await asyncio.to_thread(writing.wait, 10)
    call.cancel()
    asyncio.get_running_loop().call_later(0.01, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
    assert disks.get("n2", "bucket/key") is disks.get("n3", "bucket/key") is None
    assert disks.temporary("n2") == []


async def test_large_and_slow_jobs_do_not_hold_up_small_ones(
    disks: Disks, worker: ReplicationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.put("n1", "bucket/stuck", os.urandom(SMALL))
    disks.put("n1", "bucket/key", b"x")
    stuck, go_on = threading.Event(), threading.Event()
    write = os.write

    def write_slowly(file: int, content: bytes) -> int:
        if len(content) == SMALL:
            stuck.set()
            go_on.wait(10)
        return write(file, content)

    monkeypatch.setattr(os, "write", write_slowly)
    first = asyncio.create_task(worker.process_job(job("bucket/stuck"), context("job-1")))
    await asyncio.to_thread(stuck.wait, 10)
    success(await worker.process_job(job(), context("job-2")))
    assert not first.done()
    go_on.set()
    success(await first)


async def test_jobs_that_may_have_to_ask_a_silent_store_do_not_hold_up_local_ones(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They name no source, so every node may be asked."""
    disks.put("n1", "bucket/key", b"x")
    asked, go_on = threading.Semaphore(0), threading.Event()
    stat = ObjectNode.stat

    def stat_slowly(self: ObjectNode, key: ObjectKey) -> Stat | None:
        asked.release()
        go_on.wait(30)
        return stat(self, key)

    monkeypatch.setattr(ObjectNode, "stat", stat_slowly)
    worker = ReplicationWorker(NodeRegistry({"store": "memory://", **disks.urls}), threads=2)
    waiting = [asyncio.create_task(worker.process_job(job(), context(f"job-{n}"))) for n in range(2)]
    for _ in waiting:
        await asyncio.to_thread(asked.acquire)
    async with asyncio.timeout(10):
        success(await worker.process_job(job(source_node="n1"), context("job-3")))
    assert not any(task.done() for task in waiting)
    go_on.set()
    for result in await asyncio.gather(*waiting):
        success(result)
    worker.close()


async def test_the_worker_is_healthy_while_a_node_answers(disks: Disks, worker: ReplicationWorker) -> None:
    disks.path("n1", "").rmdir()
    disks.path("n2", "").rmdir()
    with capture_logs() as logs:
        assert await worker.health_check()
    assert [log["node"] for log in logs] == ["n1", "n2"]
    disks.path("n3", "").rmdir()
    with capture_logs():
        assert not await worker.health_check()


async def test_a_worker_without_nodes_is_healthy() -> None:
    worker = ReplicationWorker(NodeRegistry({}))
    assert await worker.health_check()
    result = failure(await worker.process_job(job(), context()))
    assert (result.error_type, result.retryable) == ("UnknownNode", False)
    assert "known: none" in result.reason
    worker.close()


def test_the_worker_can_be_registered_for_its_job_type(worker: ReplicationWorker) -> None:
    handlers = Handlers()
    handlers.register(worker)
    handler = handlers.get("replication")
    assert handler is not None
    assert handler.execution == "async"
    assert handler.job_type.cls is ReplicationJob


async def test_a_run_of_an_older_owner_leaves_the_newer_ones_copy_alone(
    disks: Disks, worker: ReplicationWorker
) -> None:
    disks.put("n1", "bucket/key", b"x")
    newer = disks.put("n2", f".rfw/tmp/{Ticket('job-1', 9).temporary_name()}", b"being written")
    success(await worker.process_job(job(), context(fence=8)))
    assert newer.exists()
    success(await worker.process_job(job(), context(fence=9)))
    assert not newer.exists()


KILLED = """
import os, sys
from tests.support.storage_nodes import context
from workers.handlers.replication import ReplicationJob, ReplicationWorker
from workers.storage import NodeRegistry

real = os.link

def link(*args, **options):
    if sys.argv[1] == "before":
        os._exit(9)
    real(*args, **options)
    os._exit(9)

os.link = link
registry = NodeRegistry(dict(argument.split("=", 1) for argument in sys.argv[2:]))
ReplicationWorker(registry).replicate(ReplicationJob("bucket/key", ["n2", "n3"]), context(fence=4))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_run_killed_at_its_publication_leaves_nothing_behind_after_the_rerun(
    disks: Disks, worker: ReplicationWorker, moment: str
) -> None:
    content = os.urandom(SMALL)
    disks.put("n1", "bucket/key", content)
    urls = [f"{name}={url}" for name, url in disks.urls.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(KILLED), moment, *urls, cwd=Path(__file__).parents[2]
    )
    assert await process.wait() == 9
    assert len(disks.temporary("n2")) == 1
    assert (disks.get("n2", "bucket/key") is None) is (moment == "before")
    # n3 was not reached; the killed run's copy on n2 is found by its job's id
    result = await worker.process_job(job(), context(fence=5))
    expected = "COMPLETED" if moment == "before" else "ALREADY_OK"
    assert states(result) == {"n2": expected, "n3": "COMPLETED"}
    assert disks.get("n2", "bucket/key") == disks.get("n3", "bucket/key") == content
    assert disks.temporary("n2") == disks.temporary("n3") == []


async def test_a_worker_that_was_closed_works_again(disks: Disks, worker: ReplicationWorker) -> None:
    """A program's next manager may have the same instance."""
    disks.put("n1", "bucket/key", b"content")
    for _ in range(2):
        success(await worker.process_job(job(), context()))
        worker.close()
        worker.close()
