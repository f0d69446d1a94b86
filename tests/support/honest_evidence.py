"""Evidence in which nothing is wrong, small enough to be known by heart; tests of the auditor plant into it what is to be found."""

from __future__ import annotations

from dataclasses import replace

from tests.guarantees.evidence import Accepted, Evidence, JobRecord, Life, Report, Run, Status, Topics

S = 1_000_000_000
#: Second 0 of the monotonic clock, on the wall.
WALL_MS = 1_800_000_000_000


def record(job_id: str, offset: int, **facts: object) -> JobRecord:
    plain = JobRecord(job_id, "jobs.low", 0, offset, 0, 0, 0, "k", "low", WALL_MS)
    return replace(plain, **facts)  # type: ignore[arg-type]


def ran(job_id: str, start_s: float, end_s: float | None, worker: str = "a.0", **facts: object) -> Run:
    end_ns = None if end_s is None else round(end_s * S)
    run = Run(
        job_id, "t", "low", "k", 1, 0, 0, worker, 10 if worker == "a.0" else 20, round(start_s * S),
        WALL_MS + round(start_s * 1000), end_ns, None if end_s is None else "ended",
    )  # fmt: skip
    return replace(run, **facts)  # type: ignore[arg-type]


def said(job_id: str, state: str, at_s: float, offset: int, worker: str = "a.0", **facts: object) -> Status:
    at_ms = WALL_MS + round(at_s * 1000)
    plain = Status(job_id, 0, offset, state, 0, 0, 1, worker, at_ms, at_ms, None, None, None)
    return replace(plain, **facts)  # type: ignore[arg-type]


def honest() -> Evidence:
    """Three jobs of one key run one after another at worker a, which is killed at second 10; the fourth runs at b."""
    names = ["one", "two", "three", "four"]
    return Evidence(
        topics=Topics(
            jobs=[record(name, offset) for offset, name in enumerate(names)],
            statuses={
                **{name: [said(name, "succeeded", n + 1.5, n)] for n, name in enumerate(names[:3])},
                "four": [said("four", "succeeded", 13.5, 3, "b.0")],
            },
            reports=[Report("a.0", WALL_MS + 9_000, (0,)), Report("b.0", WALL_MS + 9_000, ())],
        ),
        runs=[
            *(ran(name, n + 1, n + 1.5) for n, name in enumerate(names[:3])),
            ran("four", 9.5, None),
            ran("four", 13, 13.5, "b.0", fence=1),
        ],
        lives=[Life("a", 10, 0, 10 * S, "killed"), Life("b", 20, 0, 30 * S, "stays")],
        troubles=[],
        accepted=[Accepted(name, "t", "succeeded", "low", None) for name in names],
        traffic_ns=[(0, 20 * S)],
        faults={"worker_kill": 1},
        not_written=[],
        perhaps_written=[],
    )


def bury(e: Evidence, name: str) -> None:
    e.topics.jobs.append(record(name, len(e.topics.jobs), topic="jobs.dlq"))


def retried(not_before_s: float, offset: int = 0) -> JobRecord:
    due_ms = WALL_MS + round(not_before_s * 1000)
    return record(
        "two", offset, topic="jobs.retry.1s", delivery=1, not_before_ms=due_ms, written_ms=WALL_MS + 2_600
    )


def retry(e: Evidence, *others: Status, due_s: float = 3.5, **facts: object) -> None:
    """Job two fails in its first run, at 2.5, and succeeds in its second, at 3.9."""
    e.topics.jobs += [retried(due_s), record("two", 9, delivery=2)]
    e.topics.statuses["two"] = [
        said("two", "retrying", 2.5, 7, not_before_ms=WALL_MS + 3_500, started_ms=WALL_MS + 2_000),
        *others,
        replace(said("two", "succeeded", 3.9, 9, delivery=2, attempt=2), **facts),  # type: ignore[arg-type]
    ]
    e.runs.append(ran("two", 3.9, 3.95, attempt=e.topics.statuses["two"][-1].attempt))


def redrive(e: Evidence, *others: Status) -> None:
    """Job two has failed, is given a new life at 4, and succeeds in it at 5.5."""
    bury(e, "two")
    e.topics.statuses["two"] = [
        said("two", "failed", 2.5, 7, started_ms=WALL_MS + 2_000),
        said("two", "pending", 4, 8, "", redrives=1, delivery=1),
        said("two", "succeeded", 5.5, 9, redrives=1, delivery=1, started_ms=WALL_MS + 5_000),
        *others,
    ]
    e.topics.jobs.append(record("two", 9, redrives=1, delivery=1))
    e.runs.append(ran("two", 5, 5.5, redrives=1))
    e.redriven = ["two"]
