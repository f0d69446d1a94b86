"""Replication: copy one object from the node that has it to the nodes that should.

In:  a ``ReplicationJob``. Out: a result that says how each target stands; what was copied is verified.

**Success.** Every target is served, one that fails does not stop the others. With ``replication_factor`` 0 the job
succeeds when all targets hold the object; with n > 0 it succeeds when at least n of them do (the output still
names those that do not). Otherwise it fails with each failed target's reason, and is retried if the failures
that could pass would be enough to reach the number. A rerun copies only what is missing.

**Source.** ``source_node``, or else the first configured node that is no target and has the object. If none has it,
but some node could not be asked, the job fails with ``NodeUnreachable``: unknown is not missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, get_args

import structlog

from schemas import Job
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Success
from workers.storage.copying import CopyOrder, CopyReport, Overwrite, TargetResult, copy_opened
from workers.storage.errors import (
    MESSAGE_LIMIT,
    InvalidKey,
    InvalidReplication,
    NodeUnreachable,
    ObjectMissing,
    StorageError,
    UnknownNode,
    public_message,
)
from workers.storage.keys import ObjectKey, object_key
from workers.storage.node import Node, OpenObject, Ticket, Verify
from workers.storage.nodes import NodeRegistry
from workers.worker import Worker

log = structlog.get_logger("rustfs_workers.replication")

#: Jobs that one worker process copies at the same time; more wait for a thread.
DEFAULT_THREADS: Final = 16

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass
class ReplicationJob(Job):
    """Copy one object to other nodes.

    Attributes:
        source_path: ``bucket/key``; a leading "/" is tolerated.
        target_nodes: names of the nodes that should hold it.
        replication_factor: how many of them must; 0 means all.
        source_node: where to read; None means the first node that has it and is no target.
        expected_sha256: hash that the source must have; another one is a permanent failure.
        expected_size: size in bytes that it must have, likewise.
        overwrite: what to do with a target that holds something: "if_different" replaces it unless it is the
            same, "never" leaves it and counts another content as a failure, "always" copies again.
        verify: how a fresh copy is checked: "readback" reads every byte again, "hash" hashes the bytes on
            their way, "size" only compares sizes.
    """

    job_type = "replication"
    schema_file = "replication"

    source_path: str
    target_nodes: list[str]
    replication_factor: int = 0
    source_node: str | None = None
    expected_sha256: str | None = None
    expected_size: int | None = None
    overwrite: str = "if_different"
    verify: str = "readback"

    def ordering_key(self) -> str | None:
        """The object: two jobs about it never run at the same time."""
        try:
            return str(object_key(self.source_path))
        except InvalidKey:
            return None  # accepted here, refused by the worker, where everybody can see it


@dataclass(frozen=True, slots=True)
class Plan:
    """A replication job that makes sense.

    Attributes:
        key: the object.
        targets: names in lower case, in the job's order.
        wanted: how many of them must hold it.
        source_node: name in lower case, or None.
        sha256: expected hash in lower case, or None.
        size: expected size, or None.
    """

    key: ObjectKey
    targets: tuple[str, ...]
    wanted: int
    source_node: str | None
    sha256: str | None
    size: int | None
    overwrite: Overwrite
    verify: Verify


def plan_of(job: ReplicationJob) -> Plan:
    """Check a job's fields against each other. Pure.

    Raises:
        InvalidKey: ``source_path`` names no object.
        InvalidReplication: anything else contradicts itself.
    """
    key = object_key(job.source_path)
    targets = tuple(name.lower() for name in job.target_nodes)
    source = job.source_node.lower() if job.source_node else None
    if not targets:
        raise InvalidReplication("target_nodes is empty; name the nodes that should hold the object")
    if len(set(targets)) != len(targets):
        raise InvalidReplication("target_nodes names a node twice; one copy would count as two")
    if source in targets:
        raise InvalidReplication(f"source_node {source} is a target too; a node is no replica of itself")
    if not 0 <= job.replication_factor <= len(targets):
        raise InvalidReplication(
            f"replication_factor is {job.replication_factor} with {len(targets)} target_nodes; "
            "use 0 (all of them) up to their number"
        )
    if job.expected_sha256 is not None and not _SHA256.fullmatch(job.expected_sha256):
        raise InvalidReplication("expected_sha256 must be 64 hexadecimal digits")
    if job.expected_size is not None and job.expected_size < 0:
        raise InvalidReplication("expected_size must not be negative")
    overwrite, verify = job.overwrite, job.verify
    if overwrite not in get_args(Overwrite):
        raise InvalidReplication(
            f"overwrite is {overwrite[:40]!r}; use one of {', '.join(get_args(Overwrite))}"
        )
    if verify not in get_args(Verify):
        raise InvalidReplication(f"verify is {verify[:40]!r}; use one of {', '.join(get_args(Verify))}")
    return Plan(
        key=key,
        targets=targets,
        wanted=job.replication_factor or len(targets),
        source_node=source,
        sha256=job.expected_sha256.lower() if job.expected_sha256 else None,
        size=job.expected_size,
        overwrite=overwrite,  # type: ignore[arg-type]
        verify=verify,  # type: ignore[arg-type]
    )


def result_of(report: CopyReport, wanted: int) -> JobResult:
    """What a run's report means for its job. Pure."""
    failed = {name: target for name, target in report.targets.items() if target.state == "FAILED"}
    complete = len(report.targets) - len(failed)
    if complete >= wanted:
        return Success(output_of(report))
    hopeful = sum(target.retryable for target in failed.values())
    types = {target.error_type for target in failed.values()}
    share = (MESSAGE_LIMIT - 60) // len(failed)
    reasons = "; ".join(_reason(name, target, share) for name, target in failed.items())
    return Failed(
        public_message(f"{complete} of {wanted} copies complete; {reasons}"),
        retryable=complete + hopeful >= wanted,
        error_type=str(types.pop()) if len(types) == 1 else "TargetsFailed",
    )


def output_of(report: CopyReport) -> dict[str, Any]:
    """The output of a successful run, as it is kept with the job's status."""
    copied = report.count("COMPLETED")
    return {
        "copied": copied,
        "already_ok": report.count("ALREADY_OK"),
        "bytes": copied * report.size,
        "sha256": report.sha256,
        "targets": {
            name: {"state": target.state, "error": target.error} for name, target in report.targets.items()
        },
    }


def _reason(name: str, target: TargetResult, limit: int) -> str:
    text = f"{name[:64]}: {target.error_type}: {target.error}"
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


class ReplicationWorker(Worker):
    """Runs replication jobs, each in one thread of a small pool of its own.

    Files of a few KiB take well under a millisecond; what costs is handing them from thread to thread, so a small
    object between local nodes makes one hop and no more.

    Args:
        nodes: where objects live.
        threads: how many jobs copy at the same time.
    """

    worker_type = "replication"

    def __init__(self, nodes: NodeRegistry, *, threads: int = DEFAULT_THREADS) -> None:
        self._nodes = nodes
        self._threads = threads

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="replication")

    async def process_job(self, job: ReplicationJob, context: WorkerContext) -> JobResult:
        """Copy the object.

        If this call is cancelled, the thread stops at its next step and publishes nothing more.
        """
        given_up = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self.replicate, job, context, given_up)
        except asyncio.CancelledError:
            given_up.set()
            raise

    async def health_check(self) -> bool:
        """Whether at least one node answers (or none is configured). Names the silent ones in the log."""
        silent = await asyncio.to_thread(self._nodes.unreachable)
        for node, reason in silent.items():
            log.warning("node unreachable", node=node, reason=reason)
        return len(silent) < len(self._nodes) or not self._nodes

    def close(self) -> None:
        """Let the pool's threads end; running copies finish."""
        self._pool.shutdown(wait=False)
        del self._pool

    def replicate(
        self, job: ReplicationJob, context: WorkerContext, given_up: threading.Event | None = None
    ) -> JobResult:
        """The same, blocking, in the calling thread. Failures are results, not exceptions."""

        def stopped() -> bool:
            return context.cancelled or (given_up is not None and given_up.is_set())

        try:
            plan = plan_of(job)
            report = self._copy(plan, context, stopped)
        except StorageError as error:
            return Failed(str(error), retryable=error.retryable, error_type=error.name)
        copied = report.count("COMPLETED")
        if copied:
            context.update_metrics("bytes_copied", copied * report.size)
        for name, target in report.targets.items():
            if target.state == "FAILED":
                log.warning(
                    "copy failed",
                    job_id=context.job_id,
                    object=str(plan.key),
                    node=name,
                    error_type=target.error_type,
                    error=target.error,
                )
        return result_of(report, plan.wanted)

    def _copy(self, plan: Plan, context: WorkerContext, stopped: Any) -> CopyReport:
        targets: dict[str, Node] = {}
        refused: dict[str, TargetResult] = {}
        for name in plan.targets:
            try:
                targets[name] = self._nodes.node(name)
            except UnknownNode as error:
                refused[name] = TargetResult.failed(error)
        order = CopyOrder(
            key=plan.key,
            ticket=Ticket(context.job_id, context.fence),
            expected_sha256=plan.sha256,
            expected_size=plan.size,
            overwrite=plan.overwrite,
            verify=plan.verify,
            stopped=stopped,
            progress=context.progress,
        )
        with self._source(plan) as (node, source):
            report = copy_opened(order, source, targets, local=node.local)
        if refused:
            results = {name: refused.get(name) or report.targets[name] for name in plan.targets}
            report = CopyReport(report.size, report.sha256, results)
        return report

    @contextlib.contextmanager
    def _source(self, plan: Plan) -> Iterator[tuple[Node, OpenObject]]:
        node, source = find_source(self._nodes, plan)
        with source:
            yield node, source


def find_source(nodes: NodeRegistry, plan: Plan) -> tuple[Node, OpenObject]:
    """Open the object where it is; the caller closes it.

    Raises:
        ObjectMissing: every node that could have it answers that it does not.
        NodeUnreachable: nobody has it, but not everybody could be asked.
        UnknownNode: ``source_node`` is not configured.
        InvalidReplication: all nodes are targets.
        StorageError: a node has something else under its name.
    """
    if plan.source_node is not None:
        node = nodes.node(plan.source_node)
        return node, node.open(plan.key)
    candidates = [name for name in nodes if name not in plan.targets]
    if not candidates:
        raise InvalidReplication(
            "every configured node is a target, so there is none to copy from; configure the node that has the object"
        )
    unknown: dict[str, StorageError] = {}
    for name in candidates:
        node = nodes.node(name)
        try:
            return node, node.open(plan.key)
        except ObjectMissing:
            continue
        except StorageError as error:
            unknown[name] = error
    if not unknown:
        raise ObjectMissing(f"{plan.key} is on none of the nodes {', '.join(candidates)}")
    raise _unclear(plan.key, unknown)


def _unclear(key: ObjectKey, unknown: Mapping[str, StorageError]) -> StorageError:
    """Nobody has it for sure. An outage may hide it; else the first node's answer says what is wrong."""
    for error in unknown.values():
        if error.retryable:
            return NodeUnreachable(f"{key} was not found, but may be on {', '.join(unknown)}: {error}")
    return next(iter(unknown.values()))
