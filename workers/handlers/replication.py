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
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, NamedTuple, get_args

import structlog

from schemas import Job
from schemas.backoff import Backoff
from workers.context import WorkerContext
from workers.results import Failed, JobResult, Snooze, Success
from workers.storage.copying import CopyOrder, CopyReport, Overwrite, TargetResult, copy_opened
from workers.storage.crew import Crew
from workers.storage.errors import (
    MESSAGE_LIMIT,
    InvalidKey,
    InvalidReplication,
    NameRefused,
    NodeUnreachable,
    NotAnObject,
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
#: Characters of a failure's reason for the names of the targets that have their copy, and for the reason of one that has not.
_WHERE: Final = 160
_LEAST_REASON: Final = 40
#: Answers of a node that has no object of this name, for sure.
_CERTAINLY_NOT: Final = (NameRefused, NotAnObject)
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
        verify: how a fresh copy is checked: "readback" reads every byte again, "sha256" hashes the bytes on
            their way, "size" only compares sizes.
    """

    job_type = "replication"
    schema_file = "replication"
    #: A host whose disk is changed is away for an hour: so long, on average, do the tries go on. Full jitter halves each wait.
    max_retries = 14
    backoff = Backoff(cap=timedelta(minutes=30))
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
    complete = [name for name in report.targets if name not in failed]
    if len(complete) >= wanted:
        return Success(output_of(report))
    hopeful = sum(target.retryable for target in failed.values())
    types = {target.error_type for target in failed.values()}
    where = f" ({_cut(', '.join(complete), _WHERE)})" if complete else ""
    head = f"{len(complete)} of {wanted} copies complete{where}; "
    return Failed(
        public_message(head + _reasons(failed, MESSAGE_LIMIT - len(head))),
        retryable=len(complete) + hopeful >= wanted,
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


def _reasons(failed: Mapping[str, TargetResult], room: int) -> str:
    """Why each of these failed; where that many reasons do not fit, who failed of what."""
    share = room // len(failed) - len("; ")
    if share >= _LEAST_REASON:
        return "; ".join(
            _cut(f"{name}: {target.error_type}: {target.error}", share) for name, target in failed.items()
        )
    of_type: dict[str, list[str]] = {}
    for name, target in failed.items():
        of_type.setdefault(str(target.error_type), []).append(name)
    share = room // len(of_type) - len("; ")
    return "; ".join(_cut(f"{error}: {', '.join(names)}", share) for error, names in of_type.items())


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
        While a node lets one copy after the other stand still, those to it are snoozed, but for one now and then.
        """
        nodes, first = self._nodes_of(job)
        hanging = self._standstills.hanging(nodes, time.monotonic())
        if hanging and (job.source_node or hanging != {first}):
            # Nothing was tried, so no attempt is used up, however long the node hangs.
            return Snooze(timedelta(seconds=self._standstill_s), self._described(hanging))
        pulse = _Pulse(self._standstill_s, nodes, self._refuse_to_ask, passes_over=hanging)

        def replicate(given_up: Callable[[], bool]) -> JobResult:
            pulse.step()
            return self.replicate(job, context, given_up, pulse)

        crew = self._quick if self._is_quick(job) else self._slow
        try:
            with pulse:
                result = await crew.run(replicate)
        except asyncio.CancelledError:
            if not pulse.has_stopped:
                raise
            self._standstills.stood_still(pulse.waits_for, time.monotonic())
            reason = self._described(pulse.waits_for)
            return Failed(reason, retryable=True, error_type=NodeUnreachable.__name__)
        self._standstills.went_on(pulse.answered)
        return result

    def _refuse_to_ask(self, node: str, *, for_sure: bool) -> None:
        if for_sure or self._standstills.hanging({node}, time.monotonic()):
            raise NodeUnreachable(self._described({node}))

    def _described(self, hanging: AbstractSet[str]) -> str:
        names = " or ".join(sorted(hanging))
        return f"node {names} hangs: no step of a copy within {round(self._standstill_s)} s; look at its mount or network"

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
        way: Way | None = None,
    ) -> JobResult:
        """The same, blocking, in the calling thread. Failures are results, not exceptions.

        ``given_up`` is asked whether to stop; ``way`` is told how far the copy is.
        """

        def stopped() -> bool:
            return context.cancelled or given_up()

        try:
            plan = plan_of(job)
            report = self._copy(plan, context, stopped, way or Way())
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

    def _nodes_of(self, job: ReplicationJob) -> tuple[set[str], str]:
        """Those that a copy has to do with first: its targets, and where its source is looked for, which comes once more."""
        targets = {name.lower() for name in job.target_nodes}
        asked_first = job.source_node or next((name for name in self._nodes if name not in targets), "")
        return {*targets, asked_first.lower()}, asked_first.lower()

    def _copy(self, plan: Plan, context: WorkerContext, stopped: Callable[[], bool], way: Way) -> CopyReport:
        targets: dict[str, Node] = {}
        unknown: dict[str, TargetResult] = {}
        for name in plan.targets:
            try:
                targets[name] = self._nodes.node(name)
            except UnknownNode as error:
                unknown[name] = TargetResult.failed(error)
        if not targets:
            return CopyReport(0, None, unknown)
        source = find_source(self._nodes, plan, way.asks)
        way.copies_to(targets)
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
                step=way.step,
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


class Way:
    """Told by a copy how far it is, in the copy's thread. This one does nothing with it."""

    def asks(self, node: str) -> None:
        """The object is about to be opened there.

        Raises:
            NodeUnreachable: better not.
        """

    def copies_to(self, targets: Collection[str]) -> None:
        """The node that was asked last has it, and from there it goes to these."""

    def step(self) -> None:
        """The copy has come a bit further."""


class _Pulse(Way):
    """Ends the task in which it is entered if the work, once it has begun, makes no step for too long.

    Attributes:
        has_stopped: it was ended.
        waits_for: nodes, one of which the copy waits for.
        answered: if the copy has come to an end, all these have let it go on.
    """

    def __init__(
        self,
        limit_s: float,
        nodes: AbstractSet[str],
        refuse: Callable[..., None] = lambda *_, **__: None,
        *,
        passes_over: AbstractSet[str] = frozenset(),
    ) -> None:
        self.has_stopped = False
        self.waits_for: AbstractSet[str] = frozenset(nodes)
        self.answered: AbstractSet[str] = frozenset()
        self._limit_s = limit_s
        self._last: float | None = None
        self._refuse = refuse
        self._passes_over = passes_over
        self._asks_first = True

    def asks(self, node: str) -> None:
        was_looked_at, self._asks_first = self._asks_first, False
        if not was_looked_at or node in self._passes_over:
            self._refuse(node, for_sure=node in self._passes_over)
        self.waits_for = frozenset({node})
        self.answered |= self.waits_for
        self.step()

    def copies_to(self, targets: Collection[str]) -> None:
        self.waits_for |= frozenset(targets)
        self.answered |= self.waits_for
        self.step()

    def step(self) -> None:
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


def find_source(nodes: NodeRegistry, plan: Plan, asks: Callable[[str], None] = lambda _: None) -> Source:
    """Open the object on the first node that has it, in the order of the settings.

    ``asks`` is told whose answer is waited for; a node is passed over where it raises NodeUnreachable.

    Raises:
        ObjectMissing: no node has it now, and at least one may still get it: events arrive before the data.
        NodeUnreachable: nobody has it, but not everybody could be asked.
        UnknownNode: ``source_node`` is not configured.
        InvalidReplication: all nodes are targets.
        StorageError: each node has something else under its name.
    """
    if plan.source_node is not None:
        asks(plan.source_node)
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
            asks(name)
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
    may_have_it = {name: error for name, error in unclear.items() if not isinstance(error, _CERTAINLY_NOT)}
    if not may_have_it:
        return None
    first = next(iter(may_have_it.values()))
    return f"{', '.join(may_have_it)} would be asked first, and cannot say what is there: {first}"
