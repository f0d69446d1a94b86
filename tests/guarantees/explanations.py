"""Why a run may have had no outcome. Pure.

In:  a run, the next one of its job, what befell workers and Kafka, and what workers said of their commits. Out: a reason, or None: nothing explains it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import Final

from tests.guarantees.evidence import CANCELS, DOUBTS, Doubt, Evidence, Life, Run
from tests.guarantees.lives import Lives

#: An outcome waits that long for its commit: for the transaction before its own, and for its own. Each takes up to 1.6 s on two
#: cores that have other things to do: seen in the log of a worker whose broker was killed during the second one.
COMMIT_NS: Final = 4_000_000_000
#: The same after a broker was away: until the worker has a producer again (one try takes up to 15 s), or is given up.
COMMIT_IN_TROUBLE_NS: Final = 20_000_000_000
#: Until a worker says so if a commit has no clear answer: it looks for up to 40 s what is visible of the one before.
_DOUBT_MS: Final = 45_000
#: A transaction that the partition's next owner has overtaken: it says so when it has given up its offsets (7 s), its end or its
#: abort (10 s each).
_GIVEN_UP_MS: Final = 27_000
#: Lines that speak of no partition, and may come as late as that: of a look that takes so long.
_OF_A_LOOK: Final = frozenset(
    {
        "commit without a clear answer",
        "what is committed cannot be read yet",
        "what is visible of a transaction cannot be read yet",
    }
)
#: From a change of the group, or what looks like one, until a member is asked for partitions: another one may be waited for that
#: has no answer (60 s).
_REBALANCE_NS: Final = 75_000_000_000
#: From the line that a worker writes when it cancels a run until that ends: a handler in a thread looks now and then.
_CANCEL_MS: Final = 10_000
#: From when a worker has a run to when its handler says that it begins, perhaps in a process that is made for it.
_BEGINS_MS: Final = 2_000
#: A handler's process may take up a job that it was given before its worker was killed, and it is killed a moment after it.
_OUTLIVES_NS: Final = 1_000_000_000
#: Between two readings of two clocks.
_CLOCKS_MS: Final = 100
#: Ends of a worker process that let its runs go without one.
_CUT_SHORT: Final = frozenset({"killed", "left", "stood still"})


class Explanations:
    """Why a run may have had no outcome.

    Whose outcome was refused has lost its partition: whoever runs the job next has a higher fence. An owner that keeps its
    partition keeps what has ended, whatever happens to Kafka, and begins again only what it had to cancel; that may have ended in
    a process of its own, while its worker was frozen and could not read the result.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._lives = Lives(evidence.lives)
        self._troubles = evidence.troubles
        #: When members came, were told to go, or went.
        self._changes_ns = sorted(
            at_ns
            for life in evidence.lives
            for at_ns in (life.start_ns, life.end_ns, life.told_ns)
            if at_ns is not None
        )
        self._doubts: dict[str, list[Doubt]] = defaultdict(list)
        self._cancels: dict[str, list[Doubt]] = defaultdict(list)
        for doubt in sorted(evidence.doubts, key=lambda one: one.at_ms):
            if doubt.event in DOUBTS:
                self._doubts[doubt.worker].append(doubt)
            elif doubt.event in CANCELS:
                self._cancels[doubt.worker].append(doubt)
        #: One number for all topics on which a job stands.
        self._partitions = {record.job_id: record.partition for record in evidence.topics.jobs}

    def __call__(self, run: Run, following: Run | None) -> str | None:
        """``following``: the next run of the same job, if there is one."""
        life = self._lives.life_of(run)
        moved = following is None or following.fence > run.fence
        if run.how == "cancelled":
            return self._of_cancelled(run, life, moved=moved)
        if not moved:
            return "frozen" if self._ended_beside_a_frozen_worker(run, life) else None
        #: Those that are left at the end of a campaign are killed, whatever they are at.
        over = life.end == "stays" and following is None
        if run.end_ns is None:
            # Who leaves has ended or cancelled what runs in it, and killed what runs beside it.
            cut_short = life.end in _CUT_SHORT and (run.apart or life.end != "left")
            return "killed" if over else life.end if cut_short else None
        return self._of_ended(run, run.end_ns, life, following, over=over)

    def _of_ended(
        self, run: Run, end_ns: int, life: Life, following: Run | None, *, over: bool
    ) -> str | None:
        if over and end_ns > life.end_ns - COMMIT_NS:
            return "killed before its commit"
        if self._was_frozen(run, life):
            return "frozen"
        in_trouble = self._was_in_trouble(end_ns)
        patience_ns = COMMIT_IN_TROUBLE_NS if in_trouble else COMMIT_NS
        last_start_ns = life.end_ns + (_OUTLIVES_NS if run.apart else 0)
        if life.end == "killed" and run.start_ns <= last_start_ns and life.end_ns <= end_ns + patience_ns:
            return "killed before its commit"
        # Somewhere a broker is away most of the time: this very worker has to have met it.
        return "broker away" if in_trouble and self._had_doubts(run, end_ns, life, following) else None

    def _of_cancelled(self, run: Run, life: Life, *, moved: bool) -> str | None:
        end_ns = run.end_ns or life.end_ns
        if life.told_ns is not None and life.told_ns <= end_ns:
            return "cancelled: told to leave"
        if self._was_frozen(run, life, wait_ns=0):
            return "cancelled: frozen"
        # In a storm something is wrong somewhere most of the time: this very worker has to have said that it cancels this one.
        if not self._said_that_it_cancels(run, end_ns, life):
            return None
        if moved and self._has_group_changed(end_ns):
            return "cancelled: moved"
        return "cancelled: broker away" if self._was_in_trouble(end_ns) else None

    def _has_group_changed(self, end_ns: int) -> bool:
        """Whether there was any reason to move a partition just before: a member that came or went, or may have been missed."""
        first = bisect_left(self._changes_ns, end_ns - _REBALANCE_NS)
        return bisect_right(self._changes_ns, end_ns) > first or any(
            trouble.start_ns < end_ns < trouble.end_ns + _REBALANCE_NS for trouble in self._troubles
        )

    def _was_frozen(self, run: Run, life: Life, *, wait_ns: int = COMMIT_NS) -> bool:
        """Whether its process was frozen while it ran, or while its outcome waited for a commit. What is cancelled waits for none."""
        return any(
            trouble.kind == "worker_freeze"
            and trouble.pid == life.pid
            and trouble.start_ns < (run.end_ns or life.end_ns) + wait_ns
            and run.start_ns < trouble.end_ns
            for trouble in self._troubles
        )

    def _ended_beside_a_frozen_worker(self, run: Run, life: Life) -> bool:
        return run.end_ns is not None and any(
            trouble.kind == "worker_freeze"
            and trouble.pid == life.pid
            and trouble.start_ns < run.end_ns < trouble.end_ns
            for trouble in self._troubles
        )

    def _had_doubts(self, run: Run, end_ns: int, life: Life, following: Run | None) -> bool:
        """Whether its process did not know what became of a commit that could have had this outcome, or has lost its partition.

        While the outcome was pending: since the run's end, and before the next owner of its partition has begun with the job.
        """

        end_ms = _wall_ms(run, end_ns)
        until_ms = end_ms + _DOUBT_MS
        if following is not None:
            until_ms = min(until_ms, following.start_ms + _GIVEN_UP_MS)
        # Who is frozen meanwhile says it when it wakes up: its own time has stood still.
        frozen_ms = self._frozen_ms(life, end_ns)
        unnamed_until_ms = end_ms + COMMIT_IN_TROUBLE_NS // 1_000_000 + frozen_ms
        until_ms = min(until_ms + frozen_ms, _wall_ms(run, life.end_ns))
        said = self._doubts[run.worker.partition(".")[0]]
        number = self._partitions.get(run.job_id)
        first = bisect_left(said, end_ms, key=lambda one: one.at_ms)
        last = bisect_right(said, until_ms, key=lambda one: one.at_ms)
        return any(
            number in one.partitions
            or (not one.partitions and (one.event in _OF_A_LOOK or one.at_ms <= unnamed_until_ms))
            for one in said[first:last]
        )

    def _said_that_it_cancels(self, run: Run, end_ns: int, life: Life) -> bool:
        """Whether its process has written, just before its end and after its beginning, that it cancels this job, or everything."""
        end_ms = _wall_ms(run, end_ns)
        since_ms = max(end_ms - _CANCEL_MS, run.start_ms - _BEGINS_MS, _wall_ms(run, life.start_ns))
        said = self._cancels[run.worker.partition(".")[0]]
        first = bisect_left(said, since_ms, key=lambda one: one.at_ms)
        last = bisect_right(said, end_ms + _CLOCKS_MS, key=lambda one: one.at_ms)
        return any(one.job_id in ("", run.job_id) for one in said[first:last])

    def _frozen_ms(self, life: Life, since_ns: int) -> int:
        """How long its process was frozen after that, by a freeze that began before it had to have said so."""
        return (
            sum(
                trouble.end_ns - max(trouble.start_ns, since_ns)
                for trouble in self._troubles
                if trouble.kind == "worker_freeze"
                and trouble.pid == life.pid
                and trouble.start_ns < since_ns + _DOUBT_MS * 1_000_000
                and since_ns < trouble.end_ns
            )
            // 1_000_000
        )

    def _was_in_trouble(self, end_ns: int) -> bool:
        return any(
            trouble.kind != "worker_freeze"
            and trouble.start_ns < end_ns + COMMIT_NS
            and end_ns < trouble.end_ns + COMMIT_IN_TROUBLE_NS
            for trouble in self._troubles
        )


def _wall_ms(run: Run, at_ns: int) -> int:
    """That moment by the clock on the wall."""
    return run.start_ms + (at_ns - run.start_ns) // 1_000_000
