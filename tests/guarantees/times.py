"""How long partitions stood still. Pure.

In:  the evidence. Out: the longest of each kind, in seconds.

A partition of a job topic stands still between two starts of jobs that were scheduled to it. The figures are only as fine as
its traffic: with three jobs a second one that never stops shows half a second or more.

- ``standstill_s``: at all, whatever the storm did.
- ``takeover_s``: from a kill -9 to the next start in each partition of the killed one.
- ``leave_s``: the same from the exit of one that was told to leave.
- ``rebalance_s``: from the last start at one worker to the first at another, where nobody was killed, frozen or away.
- ``takeover_in_trouble_s`` and ``leave_in_trouble_s``: where a broker was away or Kafka was started again meanwhile; after a
  leave also where one of those that stayed was dead or frozen, and had not been missed yet: it may have been given partitions.
- ``takeovers``, ``leaves`` and so on: how many each of those is the longest of.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, TypeAlias

from tests.guarantees.evidence import Evidence, Life, Run
from tests.guarantees.lives import Lives

Place: TypeAlias = tuple[str, int]

#: A member that is killed or frozen is given up after a session, and what it had moves a moment later.
_AFTERMATH_NS: Final = 15_000_000_000
#: The session of the campaign's brokers, and a heartbeat or two.
_MISSED_AFTER_NS: Final = 8_000_000_000


def measure(evidence: Evidence) -> Mapping[str, float]:
    """Each figure by its name."""
    starts = _starts(evidence)
    times = {place: [run.start_ns for run in runs] for place, runs in starts.items()}
    began, stopped = evidence.traffic_ns
    figures = dict.fromkeys(
        (
            "takeover_s",
            "leave_s",
            "takeover_in_trouble_s",
            "leave_in_trouble_s",
            "standstill_s",
            "rebalance_s",
        ),
        0.0,
    )

    def at_least(name: str, seconds: float) -> None:
        figures[name] = max(figures[name], round(seconds, 2))

    for at in times.values():
        inside = [began, *(one for one in at if began <= one <= stopped), stopped]
        at_least("standstill_s", max(later - earlier for earlier, later in pairwise(inside)) / 1e9)
    brokers_away = [(one.start_ns, one.end_ns) for one in evidence.troubles if one.kind != "worker_freeze"]
    members_away = [
        *((one.start_ns, one.end_ns) for one in evidence.troubles if one.kind == "worker_freeze"),
        *((one.end_ns, one.end_ns) for one in evidence.lives if one.end not in ("left", "stays")),
    ]
    members_away = [(start_ns, end_ns + _MISSED_AFTER_NS) for start_ns, end_ns in members_away]
    for life in evidence.lives:
        if life.end not in ("killed", "left") or not began <= life.end_ns <= stopped:
            continue
        owned = _owned(evidence, life)
        gaps_s = [_gap_s(life, at, stopped) for (_, number), at in times.items() if number in owned]
        gap_s = max(gaps_s, default=0.0)
        troubles = brokers_away + (members_away if life.end == "left" else [])
        troubled = any(
            start_ns < life.end_ns + gap_s * 1e9 and end_ns > life.end_ns for start_ns, end_ns in troubles
        )
        in_trouble = "_in_trouble" if troubled else ""
        one, many = ("leave", "leaves") if life.end == "left" else ("takeover", "takeovers")
        at_least(f"{one}{in_trouble}_s", gap_s)
        figures[f"{many}{in_trouble}"] = figures.get(f"{many}{in_trouble}", 0) + bool(gaps_s)
    bad_times, lives = _bad_times(evidence), Lives(evidence.lives)
    for runs in starts.values():
        for before, after in pairwise(run for run in runs if began <= run.start_ns <= stopped):
            if lives.life_of(before) != lives.life_of(after) and not any(
                bad < after.start_ns and before.start_ns < over for bad, over in bad_times
            ):
                at_least("rebalance_s", (after.start_ns - before.start_ns) / 1e9)
    return figures


def _starts(evidence: Evidence) -> Mapping[Place, list[Run]]:
    """The runs of each partition's jobs, by their starts; those that waited on a retry topic come from where they began."""
    starts: dict[Place, list[Run]] = {}
    place_of: dict[str, Place] = {}
    for record in evidence.topics.jobs:
        if record.delivery == 0 and not record.topic.startswith(("jobs.retry.", "jobs.dlq")):
            place = place_of[record.job_id] = (record.topic, record.partition)
            starts.setdefault(place, [])
    for run in evidence.runs:
        if run.job_id in place_of:
            starts[place_of[run.job_id]].append(run)
    return starts


def _bad_times(evidence: Evidence) -> list[tuple[int, int]]:
    """When something was wrong, or had been a moment before."""
    troubles = [(one.start_ns, one.end_ns + _AFTERMATH_NS) for one in evidence.troubles]
    return troubles + [
        (one.end_ns, one.end_ns + _AFTERMATH_NS) for one in evidence.lives if one.end not in ("left", "stays")
    ]


def _gap_s(life: Life, starts: list[int], stopped: int) -> float:
    """From the end of an owner to the next start in one of its partitions."""
    place = bisect_right(starts, life.end_ns)
    following = starts[place] if place < len(starts) else stopped
    return (following - life.end_ns) / 1e9


def _owned(evidence: Evidence, life: Life) -> tuple[int, ...]:
    """The partitions of its last report before it was told to go, or died."""
    last: tuple[int, ...] = ()
    start_ms = _wall_ms(evidence, life.start_ns)
    end_ms = _wall_ms(evidence, life.told_ns or life.end_ns)
    for report in evidence.topics.reports:
        if report.worker.partition(".")[0] == life.worker and start_ms <= report.written_ms <= end_ms:
            last = report.partitions
    return last


def _wall_ms(evidence: Evidence, at_ns: int) -> float:
    """A time of the monotonic clock on the wall, by the run nearest to it: the clock on the wall may be set meanwhile."""
    nearest = min(evidence.runs, key=lambda run: abs(run.start_ns - at_ns))
    return nearest.start_ms + (at_ns - nearest.start_ns) / 1e6
