"""Replication: copy one object from the node that has it to the nodes that should.

In:  a ``ReplicationJob``. Out: a result that says how each target stands; what was copied is verified.

**Success.** Every target is served, one that fails does not stop the others. With ``replication_factor`` 0
the job succeeds when all targets hold the object; with n > 0 it succeeds when at least n of them do (the
output still names those that do not). Otherwise it fails with each failed target's reason, and is retried if
the failures that could pass would be enough to reach the number. A rerun copies only what is missing.

**Source.** ``source_node``, or else the first configured node that is no target and has the object. If none
has it, but some node could not be asked, the job fails with ``NodeUnreachable``: unknown is not missing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, NamedTuple, get_args

import structlog

from schemas import Job
from schemas.backoff import Backoff
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Success
from workers.storage.copying import CopyOrder, CopyReport, Overwrite, TargetResult, copy_opened
from workers.storage.crew import Crew
from workers.storage.errors import (
    MESSAGE_LIMIT,
    InvalidKey,
    InvalidReplication,
    NameRefused,
    NodeUnreachable,
    ObjectMissing,
    SourceCorrupt,
    StorageError,
    UnknownNode,
    public_message,
)
from workers.storage.keys import ObjectKey, object_key
from workers.storage.node import Node, OpenObject, Ticket, Verify
from workers.storage.nodes import NAME_LIMIT, NodeRegistry
from workers.storage.standstills import Standstills
from workers.worker import Worker

log = structlog.get_logger("rustfs_workers.replication")

#: Most jobs that one worker process copies at the same time; more wait for a thread.
DEFAULT_THREADS: Final = 16
#: A copy between quick nodes that takes longer no longer holds up the others.
PATIENCE: Final = timedelta(milliseconds=10)
#: A copy without a single step for so long hangs in a node, and is tried again later.
STANDSTILL: Final = timedelta(minutes=5)

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
#: Characters that all errors together may take in a job's output.
_OUTPUT_ERRORS: Final = 2_800
#: More would not fit into a job's output.
_MAX_TARGETS: Final = 64
_OVERWRITES: Final = get_args(Overwrite)
_VERIFIES: Final = get_args(Verify)


@dataclass
class ReplicationJob(Job):
    """Copy one object to other nodes.

    Attributes:
        source_path: ``bucket/key``; a leading "/" is tolerated.
        target_nodes: names of the nodes that should hold it.
        replication_factor: how many of them must; 0 means all.
        source_node: where to read; None means the first node that has it and is no target. While one that would be asked before it
            gives no answer, nothing that stands on a target is replaced, unless it has the expected hash.
        expected_sha256: hash that the source must have; another one is a permanent failure.
        expected_size: size in bytes that it must have, likewise.
        overwrite: what to do with a target that holds something: "if_different" replaces it unless it is the
            same, "never" leaves it and counts another content as a failure, "always" copies again.
        verify: how a fresh copy is checked: "readback" reads every byte again, "hash" hashes the bytes on
            their way, "size" only compares sizes.
    """

    job_type = "replication"
    schema_file = "replication"
    #: A node that is started again is away for minutes: half an hour or so of tries.
    max_retries = 10
    backoff = Backoff(cap=timedelta(minutes=10))
    #: An object may be terabytes, and wait for a thread; one that makes no progress is given up much sooner (``STANDSTILL``).
    timeout = timedelta(hours=24)

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
    if len(targets) > _MAX_TARGETS:
        raise InvalidReplication(f"target_nodes names {len(targets)} nodes; use at most {_MAX_TARGETS}")
    # Each stands in the output, and only so much has room there; unknown ones as well.
    if any(len(name.encode(errors="replace")) > NAME_LIMIT for name in targets):
        raise InvalidReplication(
            f"target_nodes has an entry longer than a node's name can be ({NAME_LIMIT} bytes); "
            "are the names joined by commas?"
        )
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
    if overwrite not in _OVERWRITES:
        raise InvalidReplication(f"overwrite is {overwrite[:40]!r}; use one of {', '.join(_OVERWRITES)}")
    if verify not in _VERIFIES:
        raise InvalidReplication(f"verify is {verify[:40]!r}; use one of {', '.join(_VERIFIES)}")
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
    """The output of a successful run, as it is kept with the job's status; at most 16 KiB."""
    copied = report.count("COMPLETED")
    share = _OUTPUT_ERRORS // max(report.count("FAILED"), 1)
    return {
        "copied": copied,
        "already_ok": report.count("ALREADY_OK"),
        "bytes": copied * report.size,
        "sha256": report.sha256,
        "targets": {
            name: {"state": target.state, "error": target.error and _cut(target.error, share)}
            for name, target in report.targets.items()
        },
    }


def _reason(name: str, target: TargetResult, limit: int) -> str:
    return _cut(f"{name[:64]}: {target.error_type}: {target.error}", limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


class ReplicationWorker(Worker):
    """Runs replication jobs, each in one thread.

    Files of a few KiB take well under a millisecond, less than handing them from thread to thread: they go
    through one thread, one after the other, which takes next to no time of the event loop. Whatever takes
    longer than ``PATIENCE``, and every job that has to do with a node across the network or one that flushes
    to the disk, runs beside the others.

    Args:
        nodes: where objects live.
        threads: how many jobs copy at the same time.
    """

    worker_type = "replication"

    def __init__(
        self, nodes: NodeRegistry, *, threads: int = DEFAULT_THREADS, standstill: timedelta = STANDSTILL
    ) -> None:
        self._nodes = nodes
        self._standstill_s = standstill.total_seconds()
        self._standstills = Standstills(self._standstill_s)
        self._quick = Crew(threads, patience=PATIENCE, name="replication")
        self._slow = Crew(threads, patience=timedelta(0), name="replication-slow")

    async def process_job(self, job: ReplicationJob, context: WorkerContext) -> JobResult:
        """Copy the object.

        If this call is cancelled, or makes no step for ``STANDSTILL``, the copy stops at its next step and publishes nothing more.
        While a node lets one copy after the other stand still, those to it fail at once, but for one now and then.
        """
        nodes = self._nodes_of(job)
        seconds = round(self._standstill_s)
        if hanging := self._standstills.hanging(nodes, time.monotonic()):
            names = " or ".join(sorted(hanging))
            reason = (
                f"node {names} hangs: copies make no step within {seconds} s; look at its mount or network"
            )
            return Failed(reason, retryable=True, error_type=NodeUnreachable.__name__)
        pulse = _Pulse(self._standstill_s)

        def replicate(given_up: Callable[[], bool]) -> JobResult:
            pulse.beat()
            return self.replicate(job, context, given_up, pulse.beat)

        crew = self._quick if self._is_quick(job) else self._slow
        try:
            with pulse:
                result = await crew.run(replicate)
        except asyncio.CancelledError:
            if not pulse.has_stopped:
                raise
            self._standstills.stood_still(nodes, time.monotonic())
            reason = f"no step of the copy within {seconds} s: a node hangs; look at the mounts and networks of those that it names"
            return Failed(reason, retryable=True, error_type=NodeUnreachable.__name__)
        self._standstills.went_on(nodes)
        return result

    async def health_check(self) -> bool:
        """Whether at least one node answers (or none is configured). Names the silent ones in the log."""
        silent = await asyncio.to_thread(self._nodes.unreachable)
        for node, reason in silent.items():
            log.warning("node unreachable", node=node, reason=reason)
        return len(silent) < len(self._nodes) or not self._nodes

    def close(self) -> None:
        """Let the threads end; running copies finish, and a job that comes later gets new ones."""
        self._quick.close()
        self._slow.close()

    def replicate(
        self,
        job: ReplicationJob,
        context: WorkerContext,
        given_up: Callable[[], bool] = lambda: False,
        step: Callable[[], None] = lambda: None,
    ) -> JobResult:
        """The same, blocking, in the calling thread. Failures are results, not exceptions.

        ``given_up`` is asked whether to stop; ``step`` is called as the copy makes its way.
        """

        def stopped() -> bool:
            return context.cancelled or given_up()

        try:
            plan = plan_of(job)
            report = self._copy(plan, context, stopped, step)
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

    def _is_quick(self, job: ReplicationJob) -> bool:
        # Without a source any node may have to be asked, and the one across the network be down.
        sources = (job.source_node,) if job.source_node else self._nodes
        names = (*job.target_nodes, *sources)
        return all(self._nodes.is_quick(name) for name in names)

    def _nodes_of(self, job: ReplicationJob) -> set[str]:
        """Those that a copy has to do with first: its targets, and where its source is looked for."""
        targets = {name.lower() for name in job.target_nodes}
        asked_first = job.source_node or next((name for name in self._nodes if name not in targets), "")
        return {*targets, asked_first.lower()}

    def _copy(
        self, plan: Plan, context: WorkerContext, stopped: Callable[[], bool], step: Callable[[], None]
    ) -> CopyReport:
        targets: dict[str, Node] = {}
        unknown: dict[str, TargetResult] = {}
        for name in plan.targets:
            try:
                targets[name] = self._nodes.node(name)
            except UnknownNode as error:
                unknown[name] = TargetResult.failed(error)
        if not targets:
            return CopyReport(0, None, unknown)
        source = find_source(self._nodes, plan)
        with source.object as opened:
            order = CopyOrder(
                key=plan.key,
                ticket=Ticket(context.job_id, context.fence),
                expected_sha256=plan.sha256,
                expected_size=plan.size,
                overwrite=plan.overwrite,
                # What has the wanted hash is what was meant, whoever else has something.
                doubt=source.doubt if plan.sha256 is None else None,
                verify=plan.verify,
                stopped=stopped,
                step=step,
                progress=context.progress,
            )
            try:
                report = copy_opened(order, opened, targets)
            except SourceCorrupt as error:
                if source.doubt is None:
                    raise
                raise NodeUnreachable(f"{error}; {source.doubt}") from error
        if unknown:
            results = {name: unknown.get(name) or report.targets[name] for name in plan.targets}
            report = replace(report, targets=results)
        return report


class _Pulse:
    """Ends the task in which it is entered if the work, once it has begun, makes no step for too long."""

    def __init__(self, limit_s: float) -> None:
        self.has_stopped = False
        self._limit_s = limit_s
        self._last: float | None = None

    def beat(self) -> None:
        """A step. Any thread."""
        self._last = time.monotonic()

    def __enter__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._timer = self._loop.call_later(self._limit_s, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self.has_stopped and self._task is not None:
            self._task.uncancel()

    def _look(self) -> None:
        # Who waits for a thread has not begun.
        left_s = self._limit_s if self._last is None else self._last + self._limit_s - time.monotonic()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        elif self._task is not None:
            self.has_stopped = True
            self._task.cancel()


class Source(NamedTuple):
    """Where an object is copied from.

    Attributes:
        object: open; whoever has this closes it.
        doubt: which nodes that are asked before this one could not say what they have, and why; None: all of them could.
    """

    object: OpenObject
    doubt: str | None = None


def find_source(nodes: NodeRegistry, plan: Plan) -> Source:
    """Open the object on the first node that has it, in the order of the settings.

    Raises:
        ObjectMissing: no node has it now, and at least one may still get it: events arrive before the data.
        NodeUnreachable: nobody has it, but not everybody could be asked.
        UnknownNode: ``source_node`` is not configured.
        InvalidReplication: all nodes are targets.
        StorageError: each node has something else under its name.
    """
    if plan.source_node is not None:
        return Source(nodes.node(plan.source_node).open(plan.key))
    candidates = [name for name in nodes if name not in plan.targets]
    if not candidates:
        raise InvalidReplication(
            "every configured node is a target, so there is none to copy from; "
            "configure the node that has the object"
        )
    unclear: dict[str, StorageError] = {}
    missing: list[str] = []
    for name in candidates:
        try:
            return Source(nodes.node(name).open(plan.key), _doubt(unclear))
        except ObjectMissing:
            missing.append(name)
        except StorageError as error:
            unclear[name] = error
    if not unclear:
        raise ObjectMissing(f"{plan.key} is on none of the nodes {', '.join(candidates)}")
    # Nobody has it for sure. An outage may hide it, or it is still to come; else the first node's answer says what is wrong.
    for answer in unclear.values():
        if answer.retryable:
            raise NodeUnreachable(f"{plan.key} was not found, but may be on {', '.join(unclear)}: {answer}")
    name, answer = next(iter(unclear.items()))
    if missing:
        raise ObjectMissing(f"{plan.key} is not on {', '.join(missing)}, and {name} cannot give it: {answer}")
    raise answer


def _doubt(unclear: Mapping[str, StorageError]) -> str | None:
    """Who may have the object all the same: an unknown state is not the same as none."""
    may_have_it = {name: error for name, error in unclear.items() if not isinstance(error, NameRefused)}
    if not may_have_it:
        return None
    first = next(iter(may_have_it.values()))
    return f"{', '.join(may_have_it)} would be asked first, and cannot say what is there: {first}"
