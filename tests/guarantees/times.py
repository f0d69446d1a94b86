"""How long partitions stood still. Pure.

In:  the evidence. Out: the longest of each kind, in seconds.

A partition of a job topic stands still between two starts of jobs that were scheduled to it. The figures are only as fine as
its traffic: with three jobs a second one that never stops shows half a second or more.

- ``standstill_s``: at all, whatever the storm did.
- ``takeover_s``: from a kill -9 to the next start in each partition of the killed one.
- ``leave_s``: the same from the exit of one that was told to leave. Both end where something went wrong, if their time was up by then.
- ``rebalance_s``: from the last start at one worker to the first at another, where nobody was killed, frozen or away.
- ``takeover_in_trouble_s`` and ``leave_in_trouble_s``: where, before its time was up, something was wrong or had been a moment
  before: a broker was away, Kafka stood still, or another worker was dead, frozen or told to leave, and may have been given
  partitions all the same; or where the partition lagged behind before its owner went, so that whoever has it goes on being late.
- ``takeover_after_trouble_s`` and ``leave_after_trouble_s``: how much of one of those nothing explains.
- ``takeovers``, ``leaves`` and so on: how many each of those is the longest of.

A takeover begins when there is something to take: a partition in which no job waits stands still for no reason of ours. One
that waits for its key does not count, for half-minute jobs may be before it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

from tests.guarantees.evidence import Evidence, Life, Run
from tests.guarantees.lives import Lives
from tests.guarantees.verdict import LEAVE_S, MISSED_AFTER_S, TAKEOVER_S

Partition: TypeAlias = tuple[str, int]
#: From when to when, in nanoseconds of the monotonic clock.
Span: TypeAlias = tuple[float, float]

#: A member that is killed or frozen is given up after a session, and what it had moves a moment later.
_AFTERMATH_NS: Final = 15_000_000_000
_MISSED_AFTER_NS: Final = round(MISSED_AFTER_S * 1e9)
#: A partition whose next job has waited for longer than this lags behind.
_LAGS_NS: Final = round(LEAVE_S * 1e9)
#: A quiet time that is shorter explains itself: whoever was about to take a partition over in it had to begin anew.
_TAKEOVER_NS: Final = round(TAKEOVER_S * 1e9)


def measure(evidence: Evidence) -> Mapping[str, float]:
    """Each figure by its name."""
    starts = _starts(evidence)
    times = {place: [run.start_ns for run in runs] for place, runs in starts.items()}
    figures = dict.fromkeys(
        (
            "takeover_s",
            "leave_s",
            "takeover_in_trouble_s",
            "leave_in_trouble_s",
            "takeover_after_trouble_s",
            "leave_after_trouble_s",
            "standstill_s",
            "rebalance_s",
        ),
        0.0,
    )

    def at_least(name: str, seconds: float) -> None:
        figures[name] = max(figures[name], round(seconds, 2))

    for began, stopped in evidence.traffic_ns:
        for at in times.values():
            inside = [began, *(one for one in at if began <= one <= stopped), stopped]
            at_least("standstill_s", max(later - earlier for earlier, later in pairwise(inside)) / 1e9)
    queues = _Queues(evidence)
    for life in evidence.lives:
        until_ns = _traffic_stops(evidence, life.end_ns)
        if life.end not in ("killed", "left") or until_ns is None:
            continue
        owned = _owned(evidence, life)
        gaps = [
            (gap, queues.lagged(place, life.told_ns or life.end_ns, life.end_ns))
            for place, at in times.items()
            if place[1] in owned and (gap := queues.gap(place, life.end_ns, _next(at, life.end_ns, until_ns)))
        ]
        one, many, bar_s = (
            ("leave", "leaves", LEAVE_S) if life.end == "left" else ("takeover", "takeovers", TAKEOVER_S)
        )
        troubles = _troubles(evidence, life)
        longest_s, most = 0.0, many
        for (since, until), lagged in gaps:
            gap_s = (until - since) / 1e9
            in_time = since + min(gap_s, bar_s) * 1e9
            troubled = lagged or any(start < in_time and since < end for start, end in troubles)
            in_trouble = "_in_trouble" if troubled else ""
            # What went wrong after its time was up says nothing of it.
            at_peace_s = (
                min(start for start, _ in (*troubles, (until, until)) if start >= since) - since
            ) / 1e9
            at_least(f"{one}{in_trouble}_s", gap_s if troubled else min(gap_s, at_peace_s))
            if troubled:
                at_least(f"{one}_after_trouble_s", _quiet_ns((since, until), troubles) / 1e9)
            if gap_s > longest_s:
                longest_s, most = gap_s, f"{many}{in_trouble}"
        figures[most] = figures.get(most, 0) + bool(gaps)
    bad_times, lives = _bad_times(evidence), Lives(evidence.lives)
    for runs in starts.values():
        under_traffic = [run for run in runs if _traffic_stops(evidence, run.start_ns) is not None]
        for before, after in pairwise(under_traffic):
            if _traffic_stops(evidence, before.start_ns) != _traffic_stops(evidence, after.start_ns):
                continue
            if lives.life_of(before) != lives.life_of(after) and not any(
                bad < after.start_ns and before.start_ns < over for bad, over in bad_times
            ):
                at_least("rebalance_s", (after.start_ns - before.start_ns) / 1e9)
    return figures


def _traffic_stops(evidence: Evidence, at_ns: int) -> int | None:
    """When the traffic ends in which this happened; None: there was none then."""
    return next((stopped for began, stopped in evidence.traffic_ns if began <= at_ns <= stopped), None)


def _starts(evidence: Evidence) -> Mapping[Partition, list[Run]]:
    """The runs of each partition's jobs, by their starts; those that waited on a retry topic come from where they began."""
    starts: dict[Partition, list[Run]] = {}
    place_of: dict[str, Partition] = {}
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


def _troubles(evidence: Evidence, life: Life) -> list[Span]:
    """What may hold up whoever gets the partitions of this one, for as long as it can be felt."""
    others = [one for one in evidence.lives if one is not life]
    return [
        *(
            (one.start_ns, one.end_ns + (_MISSED_AFTER_NS if one.kind == "worker_freeze" else _AFTERMATH_NS))
            for one in evidence.troubles
        ),
        *((one.end_ns, one.end_ns + _MISSED_AFTER_NS) for one in others if one.end not in ("left", "stays")),
        # It starts nothing any more, and has what it was given until its drain is over.
        *((one.told_ns, one.end_ns) for one in others if one.told_ns is not None),
    ]


def _quiet_ns(gap: Span, troubles: Iterable[Span]) -> float:
    """How long nothing was wrong in it, nor had been a moment before, in stretches that are long enough for a takeover."""
    quiet, at = 0.0, gap[0]
    for start, end in sorted((*troubles, (gap[1], gap[1]))):
        stretch = min(start, gap[1]) - at
        if stretch >= _TAKEOVER_NS:
            quiet += stretch
        at = max(at, end)
    return quiet


def _next(starts: list[int], at_ns: int, stopped: int) -> int:
    """The next start in a partition."""
    place = bisect_right(starts, at_ns)
    return starts[place] if place < len(starts) else stopped


class _Queues:
    """Since when something waits in each partition, at any time: what may start at once, and what was cut short."""

    def __init__(self, evidence: Evidence) -> None:
        self._last: dict[Partition, list[float]] = {}
        self._since: dict[Partition, list[float]] = {}
        #: Of what may start at once: when it first did, and since when it had waited.
        self._heads: dict[Partition, list[tuple[int, float]]] = defaultdict(list)
        if not evidence.runs:
            return
        clock = _Clock(evidence.runs)
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        put_off: set[str] = set()
        for run in evidence.runs:
            if run.asked_ms is not None:
                put_off.add(run.job_id)
            if run.attempt == 1 and not run.redrives:
                first.setdefault(run.job_id, run.start_ns)
                last[run.job_id] = run.start_ns
        found: dict[Partition, list[tuple[float, float]]] = defaultdict(list)
        for record in evidence.topics.jobs:
            job_id = record.job_id
            if record.delivery or record.not_before_ms or job_id in put_off:
                continue
            # One with a key may wait for that: it counts from its first run on.
            since = clock.monotonic_ns(record.written_ms) if record.key is None else first.get(job_id)
            if since is not None:
                found[record.topic, record.partition].append((last.get(job_id, math.inf), since))
            if since is not None and record.key is None and job_id in first:
                self._heads[record.topic, record.partition].append((first[job_id], since))
        for heads in self._heads.values():
            heads.sort()
        for place, pairs in found.items():
            pairs.sort()
            self._last[place] = [began for began, _ in pairs]
            self._since[place] = list(accumulate((since for _, since in reversed(pairs)), min))[::-1]

    def gap(self, place: Partition, end_ns: int, next_ns: int) -> Span | None:
        """How long what waits there has waited since its owner's end until the next start; None if nothing waits."""
        last = self._last.get(place, [])
        behind = bisect_right(last, end_ns)
        since = self._since[place][behind] if behind < len(last) else math.inf
        return (max(end_ns, since), next_ns) if since < next_ns else None

    def lagged(self, place: Partition, told_ns: int, end_ns: int) -> bool:
        """Whether what came first after its owner's end had waited for long before that was told to go."""
        heads = self._heads.get(place, [])
        head = bisect_right(heads, (end_ns, math.inf))
        return head < len(heads) and told_ns - heads[head][1] > _LAGS_NS


class _Clock:
    """Times on the wall as those of the monotonic clock, by the run nearest to them: the clock on the wall may be set meanwhile."""

    def __init__(self, runs: Collection[Run]) -> None:
        self._pairs = sorted((run.start_ms, run.start_ns) for run in runs)

    def monotonic_ns(self, wall_ms: int) -> float:
        """Needs one run at least."""
        place = min(bisect_left(self._pairs, (wall_ms, 0)), len(self._pairs) - 1)
        start_ms, start_ns = self._pairs[place]
        return start_ns + (wall_ms - start_ms) * 1e6


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
