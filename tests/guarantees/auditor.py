"""Compare what was promised with what happened. Pure.

In:  the evidence. Out: counts of everything that must not be, with the cases by name.

A *life* of a job begins when it is scheduled or redriven. A *run* is one call of its handler. What a worker says about itself
is used where nobody else can say it: which partitions it owned (``times``), and, as a reason why a run had no outcome, that it did not know
what became of a commit or cancelled a run (``explanations``), or said nothing any more (``silence``).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import Final

from tests.guarantees.evidence import FINAL, Evidence, JobRecord, Run, Status, Trouble
from tests.guarantees.explanations import Explanations
from tests.guarantees.lives import Lives
from tests.guarantees.times import measure
from tests.guarantees.verdict import Verdict

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
#: A process that is stopped cannot have lost its partitions sooner: the session of the campaign's brokers, less a heartbeat.
FENCED_AFTER_NS: Final = 4_500_000_000
#: Times are set by what a worker knows of its broker's clock: from answers, so it is late by the quickest of them, which in its
#: first seconds on a busy machine may be that much.
_CLOCKS_MS: Final = 1_000
_YOUNG_NS: Final = 5_000_000_000
#: Later they agree to that.
_CLOCKS_KNOWN_MS: Final = 100
_PRIORITIES: Final = frozenset({"critical", "high", "normal", "low"})
#: So many deaths make a job a dead letter.
_DEATHS: Final = 3
#: Ends of a worker process that count as its death.
_DIED: Final = frozenset({"killed", "stood still"})
#: A run says when it began, and so does the outcome that tells of it: that far apart they are of two runs.
_SAME_RUN_MS: Final = 10_000


def judge(evidence: Evidence) -> Verdict:
    """Everything at once."""
    verdict = Verdict(
        seed=evidence.seed,
        minutes=evidence.minutes,
        accepted=len(evidence.accepted),
        faults=sum(evidence.faults.values()),
        faults_by_kind=dict(evidence.faults),
        stood_still=len(evidence.stood_still),
        refused=evidence.refused,
        doubtful=evidence.doubtful,
        redriven=len(evidence.redriven),
        redrive_calls=evidence.redrive_calls,
        redrive_calls_failed=evidence.redrive_calls_failed,
    )
    for case in evidence.ended_by_themselves:
        verdict.ended.add(case)
    told = _Told(evidence)
    children = _look_at_ends(evidence, verdict)
    _look_at_letters(evidence, verdict)
    _look_at_lineages(evidence, verdict, children)
    _look_at_successors(evidence, verdict)
    _look_at_transitions(evidence, verdict)
    _look_at_contents(evidence, verdict)
    _look_at_starts(evidence, verdict)
    _look_at_places(evidence, verdict)
    _look_at_fences(evidence, verdict)
    _look_at_keys(evidence, verdict)
    _look_at_order(evidence, verdict, told)
    _look_at_runs(evidence, verdict, told)
    _look_at_kills(evidence, verdict)
    for name, figure in measure(evidence).items():
        setattr(verdict, name, figure)
    return verdict


def _look_at_ends(evidence: Evidence, verdict: Verdict) -> set[str]:
    """Every accepted job, and every child of one that succeeded, has the end that it was made for. Out: the children.

    So does each that was redriven, in its newest life. A job of which its producer could not tell whether it was accepted has an
    end if it stands in Kafka.
    """
    wanted: dict[str, str | None] = {job.job_id: job.expected for job in evidence.accepted}
    attempts = {job.job_id: job.attempts for job in evidence.accepted if job.attempts}
    children: set[str] = set()
    for statuses in evidence.topics.statuses.values():
        for status in statuses:
            if status.state == "succeeded" and status.output:
                for child in json.loads(status.output).get("children", ()):
                    wanted[child] = "succeeded"
                    children.add(child)
    verdict.children = len(children)
    newest: Counter[str] = Counter()
    # A life that a status tells of has begun, whether or not its record stands.
    for job_id, statuses in evidence.topics.statuses.items():
        newest[job_id] = max((status.redrives for status in statuses), default=0)
    for record in evidence.topics.jobs:
        newest[record.job_id] = max(newest[record.job_id], record.redrives)
        if record.job_id not in wanted and not record.parent:
            wanted[record.job_id] = None
            verdict.doubtful_standing += 1
            if record.job_id in (evidence.not_written or ()):
                verdict.illegal.add(f"{record.job_id} stands, and its producer said that it was not written")
            elif evidence.perhaps_written is not None and record.job_id not in evidence.perhaps_written:
                verdict.illegal.add(f"{record.job_id} stands, and nobody has scheduled it")
    for job_id in evidence.redriven:
        if not newest[job_id]:
            verdict.lost.add(f"{job_id} was redriven, and has no new life")
    ends: Counter[str] = Counter()
    for job_id, expected in wanted.items():
        last = [
            status
            for status in evidence.topics.statuses.get(job_id, ())
            if status.state in FINAL and status.redrives >= newest[job_id]
        ]
        if not last:
            verdict.lost.add(f"{job_id} in life {newest[job_id]}" if newest[job_id] else job_id)
            continue
        ends[last[-1].state] += 1
        if last[-1].error_type == "worker_lost" and _was_interrupted(evidence, job_id, newest[job_id]):
            verdict.condemned.add(job_id)
        elif expected is not None and last[-1].state != expected:
            verdict.illegal.add(f"{job_id} is {last[-1].state} ({last[-1].error_type}), and not {expected}")
        elif last[-1].attempt != attempts.get(job_id, last[-1].attempt):
            verdict.illegal.add(
                f"{job_id} is {last[-1].state} after {last[-1].attempt} attempts, and not {attempts[job_id]}"
            )
    for record in evidence.topics.jobs:
        if record.parent and record.job_id not in children:
            verdict.illegal.add(f"{record.job_id} is a child of {record.parent}, which does not tell of it")
    verdict.final = dict(ends)
    return children


def _look_at_letters(evidence: Evidence, verdict: Verdict) -> None:
    """Who failed is a dead letter, in that life, and nobody else is."""
    letters = Counter(
        (record.job_id, record.redrives) for record in evidence.topics.jobs if record.topic == "jobs.dlq"
    )
    failed = {
        (job_id, status.redrives)
        for job_id, statuses in evidence.topics.statuses.items()
        for status in statuses
        if status.state == "failed"
    }
    for job_id, life in sorted(failed - letters.keys()):
        verdict.lost.add(f"{job_id} failed in life {life}, and there is no dead letter of it")
    for job_id, life in sorted(letters.keys() - failed):
        verdict.illegal.add(f"{job_id} is a dead letter of life {life}, and did not fail in it")
    for (job_id, life), count in letters.items():
        if count > 1:
            verdict.forked.add(f"{job_id} has {count} dead letters of life {life}")


def _was_interrupted(evidence: Evidence, job_id: str, newest_life: int) -> bool:
    """Whether three processes that had run the job in its newest life were killed, the last one during its last run, beside which
    nothing else ran there, or while it was not yet awake again after a freeze. Who is only frozen wakes up and says so: nobody is condemned for that.

    A run that came to its end in between had no outcome that anybody could know of: that this has a reason is looked at on its own.
    """
    lives = Lives(evidence.lives)
    runs = [run for run in evidence.runs if run.job_id == job_id and run.redrives == newest_life]
    deaths = {life for run in runs if (life := lives.life_of(run)).end in _DIED}
    if len(deaths) < _DEATHS:
        return False
    last = max(runs, key=lambda run: run.start_ns)
    life = lives.life_of(last)
    frozen = any(
        trouble.pid == life.pid
        and trouble.start_ns < (last.end_ns or life.end_ns)
        and last.start_ns < trouble.end_ns
        for trouble in evidence.troubles
    )
    if life.end not in _DIED or not (frozen or last.end_ns is None):
        return False
    return not any(
        run is not last and run.pid == life.pid and run.start_ns < life.end_ns <= (run.end_ns or life.end_ns)
        for run in evidence.runs
        if lives.life_of(run) == life
    )


def _look_at_lineages(evidence: Evidence, verdict: Verdict, children: Collection[str]) -> None:
    """One end in a life, one outcome of each delivery, one record of each.

    Only a producer may have written a job twice, whose first answer was lost; what workers write stands once.
    """
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
            if not dead and (delivery > 0 or job_id in children):
                verdict.forked.add(
                    f"{job_id} of delivery {delivery} was written {len(records)} times by workers"
                )


def _look_at_successors(evidence: Evidence, verdict: Verdict) -> None:
    """A record behind the first one was led to: by an outcome that put the job off, by a redrive, or by a hop to its time."""
    told: dict[str, dict[int, str]] = {
        job_id: {
            status.delivery: status.state for status in statuses if status.state not in ("pending", "running")
        }
        for job_id, statuses in evidence.topics.statuses.items()
    }
    standing: dict[str, dict[int, str]] = defaultdict(dict)
    redriven: set[tuple[str, int]] = set()
    for record in evidence.topics.jobs:
        if record.topic != "jobs.dlq":
            standing[record.job_id][record.delivery] = record.topic
    for job_id, statuses in evidence.topics.statuses.items():
        lives = {status.redrives for status in statuses}
        for life in lives - {0}:
            redriven.add((job_id, min(status.delivery for status in statuses if status.redrives == life)))
    for job_id, records in standing.items():
        outcomes = told.get(job_id, {})
        for delivery in records:
            before = records.get(delivery - 1)
            was_put_off = outcomes.get(delivery - 1) in ("retrying", "scheduled")
            is_hop = (
                before is not None and before.startswith("jobs.retry.") and outcomes.get(delivery - 1) is None
            )
            if delivery and not (was_put_off or is_hop or (job_id, delivery) in redriven):
                verdict.forked.add(f"{job_id}: nothing led to its delivery {delivery} on {records[delivery]}")
        for delivery, state in outcomes.items():
            if state in ("retrying", "scheduled") and delivery + 1 not in records:
                verdict.lost.add(f"{job_id} was put off in delivery {delivery}, and no record follows")


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
            if before is not None and same_life:
                _compare(before, status, verdict)
            elif status.attempt != 1:
                verdict.illegal.add(
                    f"{job_id}: {status.state} in attempt {status.attempt} of life {status.redrives}, and none before it"
                )
            before = status


def _compare(before: Status, status: Status, verdict: Verdict) -> None:
    """Two states of one life, one after the other: deliveries rise, and so do attempts, by one for each retry."""
    was_put_off = before.state in ("retrying", "scheduled")
    if status.delivery < before.delivery or (
        was_put_off and status.state == "running" and status.delivery == before.delivery
    ):
        verdict.illegal.add(
            f"{status.job_id}: {status.state} in delivery {status.delivery} "
            f"after {before.state} in {before.delivery}"
        )
    elif status.delivery > before.delivery or not was_put_off:
        expected = before.attempt + (before.state == "retrying")
        if status.attempt != expected:
            verdict.illegal.add(f"{status.job_id}: attempt {status.attempt}, and not {expected}")


def _look_at_contents(evidence: Evidence, verdict: Verdict) -> None:
    """All records of a job have the value that its first one has: workers and redrives hand on what they were given."""
    contents: dict[str, set[int]] = defaultdict(set)
    for record in evidence.topics.jobs:
        contents[record.job_id].add(record.content)
    for job_id, found in contents.items():
        if len(found) > 1:
            verdict.altered.add(f"{job_id} has {len(found)} values")


def _look_at_starts(evidence: Evidence, verdict: Verdict) -> None:
    """No run begins before its time: the one that the producer named, or the one to which the run before put it off.

    A handler that has asked for a time has written that down itself.
    """
    lives = Lives(evidence.lives)
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
            is_young = told_of.start_ns - lives.life_of(told_of).start_ns < _YOUNG_NS
            tolerance_ms = _CLOCKS_MS if is_young else _CLOCKS_KNOWN_MS
            if told_of.asked_ms is not None and status.not_before_ms < told_of.asked_ms - tolerance_ms:
                verdict.early.add(
                    f"{job_id} is to run {told_of.asked_ms - status.not_before_ms} ms before what it has asked for"
                )
            for run in starts[job_id]:
                if run.start_ns > told_of.end_ns and run.start_ms < status.not_before_ms:
                    verdict.early.add(
                        f"{job_id} began {status.not_before_ms - run.start_ms} ms before its time, "
                        f"{(run.start_ns - told_of.end_ns) / 1e6:.0f} ms after it was put off"
                    )

    for record in evidence.topics.jobs:
        if not record.topic.startswith("jobs.retry."):
            continue
        for run in starts[record.job_id]:
            if record.written_ms < run.start_ms < record.not_before_ms:
                verdict.early.add(
                    f"{record.job_id} began {record.not_before_ms - run.start_ms} ms before the time that stands "
                    f"at {record.topic}/{record.partition}/{record.offset}"
                )


def _look_at_places(evidence: Evidence, verdict: Verdict) -> None:
    """A job without a key stays in the partition of its first record: retries, delays and redrives keep the number.

    Whose partition that is has the job: in another one somebody else could have it at the same time. Where a key must lie is
    looked at with the order of its jobs. All stay on the topic of their priority, and what is told of one is told in one place.
    """
    for record in evidence.topics.jobs:
        priority = record.topic.removeprefix("jobs.")
        if priority in _PRIORITIES and priority != record.priority:
            verdict.illegal.add(
                f"{record.job_id} has priority {record.priority}, and stands on {record.topic}"
            )
    for job_id, statuses in evidence.topics.statuses.items():
        if len(places := {status.partition for status in statuses}) > 1:
            verdict.illegal.add(f"{job_id} is told of in partitions {sorted(places)}, which have no order")
    records = [one for one in evidence.topics.jobs if one.key is None and one.topic != "jobs.dlq"]
    first: dict[str, set[int]] = defaultdict(set)
    for record in records:
        if not record.delivery:
            first[record.job_id].add(record.partition)
    for record in records:
        if record.delivery and record.partition not in first[record.job_id]:
            verdict.illegal.add(
                f"{record.job_id}: its delivery {record.delivery} stands at {record.topic}/{record.partition}, "
                f"and its first one in {sorted(first[record.job_id])}"
            )


def _look_at_fences(evidence: Evidence, verdict: Verdict) -> None:
    """Who runs a job later has no lower fence: else storage that compares them would refuse the one that owns the job."""
    for job_id, runs in _by_job(evidence.runs).items():
        for before, after in pairwise(runs):
            if after.fence < before.fence:
                verdict.illegal.add(
                    f"{job_id}: fence {before.fence} at {before.worker}, and then {after.fence} at {after.worker}"
                )


def _by_job(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda one: one.start_ns):
        found[run.job_id].append(run)
    return found


def _look_at_keys(evidence: Evidence, verdict: Verdict) -> None:
    """No two runs of one key at the same time; the key is the one that the producer has written, or the job's id."""
    ends = Lives(evidence.lives)
    keys = {record.job_id: record.key for record in evidence.topics.jobs}
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        key = keys.get(run.job_id, run.key)
        if key != run.key:
            verdict.illegal.add(f"{run.job_id} was told the key {run.key}, and has {key}")
        by_key[run.job_id if key is None else key].append(run)
    for key, runs in by_key.items():
        for first, second in _pairs_that_overlap(runs, ends):
            frozen = _covering(evidence.troubles, first, second)
            end_ns = ends.end_of(first)
            elsewhere = ends.life_of(first) != ends.life_of(second)
            is_fenced = elsewhere and first.fence < second.fence
            if frozen is not None and is_fenced and end_ns <= frozen.end_ns + REMAINDER_NS:
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
            and trouble.start_ns + FENCED_AFTER_NS < second.start_ns < trouble.end_ns + REMAINDER_NS
        ):
            return trouble
    return None


def _look_at_order(evidence: Evidence, verdict: Verdict, told: _Told) -> None:
    """Jobs of one key and priority begin in the order of their records; what waited for a time is another matter.

    Twice: by their first runs, and by the runs that counted, for an heir has to begin in order as well.
    """
    first_start: dict[str, int] = {}
    for run in evidence.runs:
        first_start.setdefault(run.job_id, run.start_ns)
    counted = {
        job_id: run.start_ns
        for job_id, pairs in told.pairs.items()
        for status, run in pairs
        if status.delivery == 0 and run is not None
    }
    queues: dict[tuple[str, str], list[JobRecord]] = defaultdict(list)
    partitions: dict[str, set[int]] = defaultdict(set)
    for record in evidence.topics.jobs:
        if record.key is not None and record.topic != "jobs.dlq":
            partitions[record.key].add(record.partition)
    for key, numbers in partitions.items():
        if len(numbers) > 1:
            verdict.order.add(
                f"{key}: stands in partitions {sorted(numbers)}, so that two workers can have it"
            )
    for record in evidence.topics.jobs:
        if (
            record.key is not None
            and record.delivery == 0
            and record.topic != "jobs.dlq"
            and not record.not_before_ms
        ):
            queues[record.topic, record.key].append(record)
    for (_, key), records in queues.items():
        if len(partitions[key]) > 1:
            continue
        records.sort(key=lambda one: one.offset)
        for began in (first_start, counted):
            latest = 0
            for job_id in dict.fromkeys(record.job_id for record in records):
                at = began.get(job_id, latest)
                if at < latest:
                    verdict.order.add(
                        f"{key}: {job_id} began {(latest - at) / 1e6:.1f} ms before one that was scheduled earlier"
                    )
                latest = max(latest, at)


class _Told:
    """Which run each outcome tells of, and which runs no outcome tells of."""

    def __init__(self, evidence: Evidence) -> None:
        self.runs: dict[str, list[Run]] = defaultdict(list)
        for run in evidence.runs:
            self.runs[run.job_id].append(run)
        #: Job to its outcomes, in their order, each with its run.
        self.pairs: dict[str, list[tuple[Status, Run | None]]] = {}
        self.left: dict[str, list[Run]] = {job_id: list(runs) for job_id, runs in self.runs.items()}
        for job_id, statuses in evidence.topics.statuses.items():
            left = self.left.get(job_id, [])
            pairs = self.pairs[job_id] = []
            for status in statuses:
                if status.state in ("running", "pending") or (
                    status.state == "scheduled" and not status.worker
                ):
                    continue
                # Who buries a job as lost has not run it.
                told_of = None if status.error_type == "worker_lost" else _run_of(status, left)
                if told_of is not None:
                    left.remove(told_of)
                pairs.append((status, told_of))


def _look_at_runs(evidence: Evidence, verdict: Verdict, told: _Told) -> None:
    """Each outcome comes from a run, and each run led to an outcome, or there is a reason why it did not."""
    for job_id, pairs in told.pairs.items():
        for status, told_of in pairs:
            if status.error_type != "worker_lost" and (told_of is None or told_of.how != "ended"):
                verdict.illegal.add(f"{job_id} is said to be {status.state}, and no run of it came to that")
    reasons: Counter[str] = Counter()
    explain = Explanations(evidence)
    for job_id, left in told.left.items():
        ends = [(status, run) for status, run in told.pairs.get(job_id, ()) if run is not None]
        for run in left:
            verdict.reexecuted += 1
            later = [one for one in told.runs[job_id] if one.start_ns > run.start_ns]
            reason = explain(run, later[0] if later else None)
            # Whatever happened: it began after the one that was its life's end, or whose retry had been written.
            if _is_over(run, ends):
                reason = None
            if reason is None:
                verdict.unexplained.add(
                    f"{job_id} ({run.type}) at {run.worker}, {run.how or 'no end'}, had no outcome"
                )
            else:
                reasons[reason] += 1
    verdict.reasons = dict(reasons)


def _is_over(run: Run, ends: Iterable[tuple[Status, Run]]) -> bool:
    """Whether it began after one that was told of, when nobody had to run that any more."""
    of_life = [(status, end) for status, end in ends if end.redrives == run.redrives]
    finals = [end for status, end in of_life if status.state in FINAL]
    retried = [end for status, end in of_life if status.state == "retrying" and end.attempt == run.attempt]
    return any(those and all(run.start_ns > end.start_ns for end in those) for those in (finals, retried))


def _run_of(status: Status, runs: list[Run]) -> Run | None:
    """The run that an outcome tells of."""
    candidates = [
        run
        for run in runs
        if (run.worker, run.attempt, run.redrives) == (status.worker, status.attempt, status.redrives)
    ]
    if not candidates:
        return None
    began = status.started_ms or status.at_ms
    found = min(candidates, key=lambda run: abs(run.start_ms - began))
    is_another = status.started_ms is not None and abs(found.start_ms - began) > _SAME_RUN_MS
    return None if is_another else found


def _look_at_kills(evidence: Evidence, verdict: Verdict) -> None:
    """How many workers were killed under fire, and how many of them while a handler of theirs was running."""
    lives = Lives(evidence.lives)
    for life in evidence.lives:
        if life.end != "killed" or not any(
            began <= life.end_ns <= stopped for began, stopped in evidence.traffic_ns
        ):
            continue
        verdict.kills += 1
        verdict.kills_in_flight += any(
            run.start_ns < life.end_ns <= lives.end_of(run) and lives.life_of(run) == life
            for run in evidence.runs
        )
