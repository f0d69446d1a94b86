"""Compare what was promised with what happened. Pure.

In:  the evidence. Out: counts of everything that must not be, with the cases by name.

A *life* of a job begins when it is scheduled or redriven. A *run* is one call of its handler. What a worker reports
about itself is used in one place only, to know which partitions it owned.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.guarantees.evidence import FINAL, Evidence, JobRecord, Run, Status, Trouble
from tests.guarantees.lives import Lives
from tests.guarantees.times import measure

#: Written down here once more, not taken from the code that is judged: state to the states that may follow it in one life.
FOLLOWERS: Final = {
    None: {"pending", "scheduled", "running", "retrying", "succeeded", "failed", "skipped"},
    "pending": {"running", "scheduled", "retrying", "succeeded", "failed", "skipped"},
    "scheduled": {"running", "scheduled", "retrying", "succeeded", "failed", "skipped"},
    "retrying": {"running", "scheduled", "retrying", "succeeded", "failed", "skipped"},
    "running": {"running", "scheduled", "retrying", "succeeded", "failed", "skipped"},
}
#: What a fenced handler may go on for after its process wakes up.
REMAINDER_NS: Final = 1_500_000_000
#: An outcome waits that long for its commit: a tick and a transaction.
COMMIT_NS: Final = 2_000_000_000
#: The same while a broker is away: until the worker gives up, or is given up.
COMMIT_IN_TROUBLE_NS: Final = 30_000_000_000
#: So many deaths make a job a dead letter.
_DEATHS: Final = 3
_NAMED: Final = 20


@dataclass(slots=True)
class Finding:
    """Cases of one kind: how many, and some by name."""

    count: int = 0
    cases: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < _NAMED:
            self.cases.append(case)


@dataclass(slots=True)
class Verdict:
    """What the auditor has to say."""

    accepted: int = 0
    children: int = 0
    faults: int = 0
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    final: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    kills_in_flight: int = 0
    lost: Finding = field(default_factory=Finding)
    forked: Finding = field(default_factory=Finding)
    illegal: Finding = field(default_factory=Finding)
    early: Finding = field(default_factory=Finding)
    overlaps: Finding = field(default_factory=Finding)
    order: Finding = field(default_factory=Finding)
    unexplained: Finding = field(default_factory=Finding)
    #: Records that stand twice, by a torn transaction or a producer's second try: allowed, if one of them is passed over.
    copies: Finding = field(default_factory=Finding)
    #: Dead letters of jobs that killed nobody: their worker was killed or frozen, for the third time, while they ran alone.
    condemned: Finding = field(default_factory=Finding)
    reexecuted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    fenced_remainders: int = 0
    #: How long partitions stood still, and why: ``tests.guarantees.times``.
    takeover_s: float = 0.0
    leave_s: float = 0.0
    rebalance_s: float = 0.0
    takeover_in_trouble_s: float = 0.0
    leave_in_trouble_s: float = 0.0
    standstill_s: float = 0.0

    @property
    def broken(self) -> dict[str, list[str]]:
        """The guarantees that do not hold, with cases."""
        findings = {
            name: getattr(self, name)
            for name in ("lost", "forked", "illegal", "early", "overlaps", "order", "unexplained")
        }
        return {name: finding.cases for name, finding in findings.items() if finding.count}

    def to_json(self) -> dict[str, object]:
        """The report's last line."""
        return {
            name: value.count if isinstance(value, Finding) else value
            for name in self.__slots__
            if (value := getattr(self, name)) is not None
        }


def judge(evidence: Evidence) -> Verdict:
    """Everything at once."""
    verdict = Verdict(
        accepted=len(evidence.accepted),
        faults=sum(evidence.faults.values()),
        faults_by_kind=dict(evidence.faults),
    )
    _look_at_ends(evidence, verdict)
    _look_at_lineages(evidence, verdict)
    _look_at_transitions(evidence, verdict)
    _look_at_starts(evidence, verdict)
    _look_at_keys(evidence, verdict)
    _look_at_order(evidence, verdict)
    _look_at_runs(evidence, verdict)
    _look_at_kills(evidence, verdict)
    for name, figure in measure(evidence).items():
        setattr(verdict, name, figure)
    return verdict


def _look_at_ends(evidence: Evidence, verdict: Verdict) -> None:
    """Every accepted job, and every child of one that succeeded, has the end that it was made for."""
    wanted = {job.job_id: job.expected for job in evidence.accepted}
    for statuses in evidence.topics.statuses.values():
        for status in statuses:
            if status.state == "succeeded" and status.output:
                for child in json.loads(status.output).get("children", ()):
                    wanted[child] = "succeeded"
                    verdict.children += 1
    ends: Counter[str] = Counter()
    for job_id, expected in wanted.items():
        last = [status for status in evidence.topics.statuses.get(job_id, ()) if status.state in FINAL]
        if not last:
            verdict.lost.add(job_id)
            continue
        ends[last[-1].state] += 1
        if last[-1].error_type == "worker_lost" and _was_interrupted(evidence, job_id):
            verdict.condemned.add(job_id)
        elif last[-1].state != expected:
            verdict.illegal.add(f"{job_id} is {last[-1].state} ({last[-1].error_type}), and not {expected}")
    verdict.final = dict(ends)


def _was_interrupted(evidence: Evidence, job_id: str) -> bool:
    """Whether the process of a job's last run was killed or frozen during it, and others of its runs were cut short as well."""
    runs = sorted((run for run in evidence.runs if run.job_id == job_id), key=lambda run: run.start_ns)
    if len(runs) < _DEATHS or any(run.how == "ended" for run in runs):
        return False
    last, life = runs[-1], Lives(evidence.lives).life_of(runs[-1])
    frozen = any(
        trouble.pid == life.pid
        and trouble.start_ns < (last.end_ns or life.end_ns)
        and last.start_ns < trouble.end_ns
        for trouble in evidence.troubles
    )
    return frozen or (last.end_ns is None and life.end == "killed")


def _look_at_lineages(evidence: Evidence, verdict: Verdict) -> None:
    """One end in a life, and one outcome of each delivery; a record that stands twice must have been passed over once."""
    for job_id, statuses in evidence.topics.statuses.items():
        ends = Counter(status.redrives for status in statuses if status.state in FINAL)
        outcomes = Counter(
            (status.redrives, status.delivery)
            for status in statuses
            if status.state not in ("pending", "running")
        )
        for life, count in ends.items():
            if count > 1:
                verdict.forked.add(f"{job_id} has {count} ends in life {life}")
        for (life, delivery), count in outcomes.items():
            if count > 1:
                verdict.forked.add(f"{job_id} has {count} outcomes of delivery {delivery} in life {life}")
    copies: dict[tuple[str, bool, int], list[JobRecord]] = defaultdict(list)
    for record in evidence.topics.jobs:
        copies[record.job_id, record.topic == "jobs.dlq", record.delivery].append(record)
    for (job_id, dead, delivery), records in copies.items():
        if len(records) > 1:
            places = ", ".join(f"{one.topic}/{one.partition}/{one.offset}" for one in records)
            verdict.copies.add(f"{job_id} of delivery {delivery} stands at {places}")
            if dead:
                verdict.forked.add(f"{job_id} has {len(records)} dead letters of delivery {delivery}")


def _look_at_transitions(evidence: Evidence, verdict: Verdict) -> None:
    for job_id, statuses in evidence.topics.statuses.items():
        before: Status | None = None
        for status in statuses:
            if before is not None and status.redrives < before.redrives:
                verdict.illegal.add(f"{job_id}: life {status.redrives} after life {before.redrives}")
            same_life = before is not None and status.redrives == before.redrives
            was = before.state if before is not None and same_life else None
            if status.state not in FOLLOWERS.get(was, set()):
                verdict.illegal.add(f"{job_id}: {status.state} after {was}")
            if before is not None and same_life and status.delivery < before.delivery:
                verdict.illegal.add(f"{job_id}: delivery {status.delivery} after {before.delivery}")
            before = status


def _look_at_starts(evidence: Evidence, verdict: Verdict) -> None:
    """No run begins before its time: the one that the producer named, or the one to which the run before put it off."""
    starts: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        starts[run.job_id].append(run)
    for job in evidence.accepted:
        for run in starts[job.job_id]:
            if job.due_ms is not None and run.start_ms < job.due_ms:
                verdict.early.add(f"{job.job_id} began {job.due_ms - run.start_ms} ms before its time")
    for job_id, statuses in evidence.topics.statuses.items():
        for status in statuses:
            if status.not_before_ms is None or status.state not in ("scheduled", "retrying"):
                continue
            told_of = _run_of(status, starts[job_id])
            if told_of is None or told_of.end_ns is None:
                continue
            for run in starts[job_id]:
                if run.start_ns > told_of.end_ns and run.start_ms < status.not_before_ms:
                    verdict.early.add(
                        f"{job_id} began {status.not_before_ms - run.start_ms} ms before its time, "
                        f"{(run.start_ns - told_of.end_ns) / 1e6:.0f} ms after it was put off"
                    )


def _look_at_keys(evidence: Evidence, verdict: Verdict) -> None:
    """No two runs of one key at the same time."""
    ends = Lives(evidence.lives)
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        if run.key is not None:
            by_key[run.key].append(run)
    for key, runs in by_key.items():
        for first, second in _pairs_that_overlap(runs, ends):
            frozen = _covering(evidence.troubles, first, second)
            end_ns = ends.end_of(first)
            if frozen is not None and end_ns <= frozen.end_ns + REMAINDER_NS:
                verdict.fenced_remainders += 1
            else:
                verdict.overlaps.add(
                    f"{key}: {second.job_id} began at {second.worker} "
                    f"{(end_ns - second.start_ns) / 1e6:.1f} ms before {first.job_id} ended at {first.worker}"
                )


def _pairs_that_overlap(runs: list[Run], ends: Lives) -> Iterator[tuple[Run, Run]]:
    open_runs: list[Run] = []
    for run in runs:
        open_runs = [before for before in open_runs if ends.end_of(before) > run.start_ns]
        for before in open_runs:
            yield before, run
        open_runs.append(run)


def _covering(troubles: Iterable[Trouble], first: Run, second: Run) -> Trouble | None:
    """The freeze of the first one's process in which the second one began, or right after which."""
    for trouble in troubles:
        if (
            trouble.kind == "worker_freeze"
            and trouble.pid == first.pid
            and first.start_ns < trouble.end_ns
            and trouble.start_ns < second.start_ns < trouble.end_ns + REMAINDER_NS
        ):
            return trouble
    return None


def _look_at_order(evidence: Evidence, verdict: Verdict) -> None:
    """Jobs of one key and priority begin in the order of their records; what waited for a time is another matter."""
    first_start: dict[str, int] = {}
    for run in evidence.runs:
        first_start.setdefault(run.job_id, run.start_ns)
    queues: dict[tuple[str, int, str], list[JobRecord]] = defaultdict(list)
    for record in evidence.topics.jobs:
        if (
            record.key is not None
            and record.delivery == 0
            and record.topic != "jobs.dlq"
            and not record.not_before_ms
        ):
            queues[record.topic, record.partition, record.key].append(record)
    for (_, _, key), records in queues.items():
        latest = 0
        seen: set[str] = set()
        for record in sorted(records, key=lambda one: one.offset):
            began = first_start.get(record.job_id)
            if began is None or record.job_id in seen:
                continue
            seen.add(record.job_id)
            if began < latest:
                verdict.order.add(
                    f"{key}: {record.job_id} began {(latest - began) / 1e6:.1f} ms before one that was scheduled earlier"
                )
            latest = max(latest, began)


def _look_at_runs(evidence: Evidence, verdict: Verdict) -> None:
    """Each run led to an outcome, or there is a reason why it did not."""
    reasons: Counter[str] = Counter()
    explain = _Explanations(evidence)
    outcomes: dict[str, list[Status]] = {
        job_id: [
            status for status in statuses if status.worker and status.state not in ("running", "pending")
        ]
        for job_id, statuses in evidence.topics.statuses.items()
    }
    by_job: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        by_job[run.job_id].append(run)
    for job_id, runs in by_job.items():
        left = list(runs)
        for status in outcomes.get(job_id, ()):
            told_of = _run_of(status, left)
            if told_of is not None:
                left.remove(told_of)
        for run in left:
            verdict.reexecuted += 1
            reason = explain(run)
            if reason is None:
                verdict.unexplained.add(
                    f"{job_id} ({run.type}) at {run.worker}, {run.how or 'no end'}, had no outcome"
                )
            else:
                reasons[reason] += 1
    verdict.reasons = dict(reasons)


def _run_of(status: Status, runs: list[Run]) -> Run | None:
    """The run that an outcome tells of."""
    candidates = [run for run in runs if run.worker == status.worker and run.attempt == status.attempt]
    if not candidates:
        return None
    began = status.started_ms or status.at_ms
    return min(candidates, key=lambda run: abs(run.start_ms - began))


class _Explanations:
    """Why a run may have had no outcome."""

    def __init__(self, evidence: Evidence) -> None:
        self._lives = Lives(evidence.lives)
        self._troubles = evidence.troubles

    def __call__(self, run: Run) -> str | None:
        life = self._lives.life_of(run)
        end_ns = run.end_ns
        if end_ns is None:
            return "killed" if life.end in ("killed", "stays") else "left" if life.end == "left" else None
        if run.how == "cancelled":
            return "cancelled"
        if any(
            trouble.kind == "worker_freeze"
            and trouble.pid == life.pid
            and trouble.start_ns < end_ns + COMMIT_NS
            and run.start_ns < trouble.end_ns
            for trouble in self._troubles
        ):
            return "frozen"
        in_trouble = any(
            trouble.kind != "worker_freeze"
            and trouble.start_ns < end_ns + COMMIT_NS
            and run.start_ns < trouble.end_ns + COMMIT_IN_TROUBLE_NS
            for trouble in self._troubles
        )
        patience_ns = COMMIT_IN_TROUBLE_NS if in_trouble else COMMIT_NS
        if life.end == "killed" and end_ns <= life.end_ns <= end_ns + patience_ns:
            return "killed before its commit"
        return "broker away" if in_trouble else None


def _look_at_kills(evidence: Evidence, verdict: Verdict) -> None:
    """How many workers were killed under fire, and how many of them while a handler of theirs was running."""
    lives = Lives(evidence.lives)
    began, stopped = evidence.traffic_ns
    for life in evidence.lives:
        if life.end != "killed" or not began <= life.end_ns <= stopped:
            continue
        verdict.kills += 1
        verdict.kills_in_flight += any(
            run.start_ns < life.end_ns <= lives.end_of(run) and lives.life_of(run) == life
            for run in evidence.runs
        )
