"""Nodes that hang: their copies are given up, those to others go on, and nobody else is suspected."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.storage_nodes import Disks, context, failure, job, success
from workers.handlers import replication
from workers.handlers.replication import ReplicationJob, ReplicationWorker
from workers.results import JobResult, Snooze
from workers.storage import Node, ObjectKey
from workers.storage.errors import NodeUnreachable
from workers.storage.node import OpenObject

pytestmark = pytest.mark.job_processing


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@contextmanager
def hanging(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ObjectKey]]:
    """Whoever opens an object there waits until the block ends. Gives those that were asked for."""
    release, asked = threading.Event(), list[ObjectKey]()

    def hang(key: ObjectKey) -> OpenObject:
        asked.append(key)
        release.wait(60)
        raise NodeUnreachable(f"{node.name} hung")

    monkeypatch.setattr(node, "open", hang)
    try:
        yield asked
    finally:
        release.set()


async def test_a_copy_that_makes_no_step_is_given_up_and_tried_again_later(disks: Disks) -> None:
    """A node that hangs in the system: nothing there ends by itself, and its job would have a slot and its key for ever."""
    disks.put("n1", "bucket/key", b"content")
    release = threading.Event()
    worker = ReplicationWorker(disks.registry, standstill=timedelta(milliseconds=50))

    def hang(*_: object) -> None:
        release.wait(60)

    worker.replicate = hang  # type: ignore[method-assign,assignment]
    try:
        result = failure(await worker.process_job(job(), context()))
    finally:
        release.set()
        worker.close()
    assert (result.retryable, result.error_type) == (True, "NodeUnreachable")
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling(), "whoever runs it goes on"


async def test_copies_to_a_node_that_hangs_are_snoozed_and_those_between_others_go_on(disks: Disks) -> None:
    """Else each would have a thread and a place of the worker for minutes, and in the end all of them.

    Nor do they use up their attempts: a mount that hangs over night would make dead letters of them all.
    """
    disks.put("n1", "bucket/key", b"x")
    worker = ReplicationWorker(disks.registry, standstill=timedelta(seconds=0.2))
    release = threading.Event()
    replicate = worker.replicate
    begun = 0

    def hangs_on_n2(one: ReplicationJob, *more: Any) -> JobResult:
        nonlocal begun
        if "n2" in one.target_nodes:
            begun += 1
            release.wait(60)
        return replicate(one, *more)

    worker.replicate = hangs_on_n2  # type: ignore[method-assign,assignment]
    try:
        many = [worker.process_job(job(targets=("n2", "n3")), context()) for _ in range(4)]
        hung = [failure(result) for result in await asyncio.gather(*many)]
        success(await worker.process_job(job(targets=("n3",)), context()))
        at_once = [await worker.process_job(job(targets=("N2", "n3")), context()) for _ in range(20)]
        success(await worker.process_job(job(targets=("n3",)), context()))
    finally:
        release.set()
        worker.close()
    assert {(result.error_type, result.retryable) for result in hung} == {("NodeUnreachable", True)}
    for result in at_once:
        assert isinstance(result, Snooze)
        assert result.delay == timedelta(seconds=0.2)
        assert "node n1 or n2 or n3 hangs" in result.reason
    assert begun == 4


async def test_a_node_that_hangs_where_an_object_is_looked_for_is_named_and_no_other(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copies had to do with healthy nodes as well: were those suspected, nothing would go on between them."""
    disks.put("n1", "bucket/here", b"x")
    worker = ReplicationWorker(disks.registry, standstill=timedelta(seconds=0.2))
    with hanging(disks.registry.node("n2"), monkeypatch) as asked:
        many = [worker.process_job(job("bucket/there", ("n3",)), context()) for _ in range(4)]
        hung = [failure(result) for result in await asyncio.gather(*many)]
        success(await worker.process_job(job("bucket/here", ("n3",)), context()))
        passed_over = failure(await worker.process_job(job("bucket/there", ("n3",)), context()))
        success(await worker.process_job(job("bucket/here", ("n3",)), context()))
    worker.close()
    assert {result.reason for result in hung} == {
        "node n2 hangs: no step of a copy within 0 s; look at its mount or network"
    }
    assert passed_over.reason.startswith("bucket/there was not found, but may be on n2: node n2 hangs")
    assert passed_over.retryable
    assert len(asked) == 4


async def test_a_node_that_hangs_and_is_asked_first_is_passed_over_where_another_has_the_object(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands is not replaced meanwhile, since that one may have something newer."""
    for node in ("n1", "n2"):
        disks.put(node, "bucket/key", b"x")
    worker = ReplicationWorker(disks.registry, standstill=timedelta(seconds=0.2))
    with hanging(disks.registry.node("n1"), monkeypatch) as asked:
        many = [worker.process_job(job(targets=("n3",)), context()) for _ in range(4)]
        assert {failure(result).error_type for result in await asyncio.gather(*many)} == {"NodeUnreachable"}
        success(await worker.process_job(job(targets=("n3",)), context()))
        named = await worker.process_job(job(targets=("n3",), source_node="n1"), context())
        disks.put("n3", "bucket/key", b"other")
        replaced = failure(await worker.process_job(job(targets=("n3",)), context()))
    worker.close()
    assert isinstance(named, Snooze)
    assert "n1 would be asked first" in replaced.reason
    assert disks.get("n3", "bucket/key") == b"other"
    assert len(asked) == 4


async def test_a_job_that_cannot_be_says_nothing_of_a_node_that_hangs(disks: Disks) -> None:
    worker = ReplicationWorker(disks.registry, standstill=timedelta(seconds=60))
    for _ in range(4):
        worker._standstills.stood_still({"n2"}, 0.0)
    wrong = job(targets=("n3",), source_node="n2", replication_factor=2)
    try:
        assert failure(await worker.process_job(wrong, context())).error_type == "InvalidReplication"
        assert isinstance(await worker.process_job(job(targets=("n2",)), context()), Snooze)
    finally:
        worker.close()


async def test_a_large_copy_whose_node_hangs_in_a_write_is_given_up(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader waits for room, and asks all the time whether to stop: that is no step."""
    disks.put("n1", "bucket/key", os.urandom(16 << 20))
    release = threading.Event()

    def hang(*_: object) -> int:
        release.wait(60)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", hang)
    worker = ReplicationWorker(disks.registry, standstill=timedelta(seconds=2))
    try:
        async with asyncio.timeout(30):
            result = failure(await worker.process_job(job(), context()))
    finally:
        release.set()
        worker.close()
    assert (result.retryable, result.error_type) == (True, "NodeUnreachable")


async def test_who_makes_steps_or_waits_for_a_thread_may_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(replication, "time", clock)
    pulse = replication._Pulse(60.0, frozenset())
    with pulse:
        clock.now_s += 1_000.0
        pulse._look()
        assert not pulse.has_stopped, "it has not begun"
        for _ in range(3):
            pulse.step()
            clock.now_s += 59.0
            pulse._look()
            assert not pulse.has_stopped
        clock.now_s += 2.0
        pulse._look()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
    assert pulse.has_stopped
