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
    )
