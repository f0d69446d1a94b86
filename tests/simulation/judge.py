"""What must hold in every order of events. The simulation knows more than an auditor can: it has seen everything.

In:  starts, ends, deaths, and what stands in Kafka. Out: what broke.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from schemas.codec import peek_id
from schemas.errors import PipelineError, WireError
from schemas.headers import parse as parse_headers
from schemas.offsetmap import MAX_OWNERS, OffsetMap, Suspect, parse
from schemas.records import StatusChange, decode_status
from tests.simulation.sim_jobs import SimJob

if TYPE_CHECKING:
    from schemas.topics import Partition
    from tests.simulation.sim_executor import Execution
    from tests.simulation.sim_worker import SimWorker
    from tests.simulation.world import World
    from workers.testing.memory_group import ConsumerGroup
    from workers.testing.memory_log import StoredRecord

#: Deaths of its workers after which a job that kills is found.
DEATHS = 3

#: What a worker that ended by an error of nobody's making is called.
CRASHED: Final = "crashed"

#: More deaths than anybody can count.
_NEVER: Final = MAX_OWNERS + 1
#: So many make a job a dead letter.
_DEATHS: Final = 3
#: So long after its death an owner is missed at the latest, Kafka being away for twenty seconds.
_MISSED_MS: Final = 30_000


class Judge:
    """Of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.broken: list[str] = []
        #: Member ids by incarnation.
        self.members: dict[str, str] = {}
        self._jobs: dict[bytes, SimJob] = {}
        self._not_before: dict[bytes, int] = {}
        self._runs: dict[tuple[bytes, int], list[tuple[SimWorker, Execution]]] = defaultdict(list)
        self._by_key: dict[bytes, list[tuple[SimWorker, Execution]]] = defaultdict(list)
        self._may_be_condemned: set[bytes] = set()
        #: What was committed of a partition when an owner of it was lost, or may be taken for it, and when that was.
        self._losses: list[tuple[str, Partition, OffsetMap, int]] = []
        #: Jobs of which a status may come after what follows from it.
        self._told_late: set[bytes] = set()
        self._first_starts: dict[tuple[str, int, bytes], int] = {}
        self._deaths: Counter[bytes] = Counter()
        #: How often it began beside one that had survived: nothing says then which of them killed.
        self._beside: Counter[bytes] = Counter()
        #: How often a lone death of it was taken for no proof.
        self.doubted: Counter[bytes] = Counter()
        #: Runs of what had run before, explained ones as well.
        self.reexecuted = 0

    @property
    def accepted_count(self) -> int:
        """Jobs so far."""
        return len(self._jobs)

    def accepted(self, job_id: str, job: SimJob, not_before_ms: int) -> None:
        """Its producer has its answer."""
        self._jobs[job_id.encode()] = job
        self._not_before[job_id.encode()] = not_before_ms

    def started(self, worker: SimWorker, execution: Execution) -> None:
        """A handler begins."""
        world, message, delivery = self._world, execution.message, execution.delivery
        job_id = message.job_id
        name = f"job {execution.job.number} (delivery {delivery.delivery}) at {message.where} by {worker.incarnation}"
        if execution.was_given_away:
            # By a coordinator that has forgotten whose it is: others may be ahead. What comes of this run is refused.
            self._runs[job_id, delivery.delivery].append((worker, execution))
            return
        if world.is_finished(execution):
            self.broken.append(f"rerun: {name} was finished already")
        due_ms = max(delivery.not_before_ms, self._not_before.get(job_id, 0))
        if world.now_ms < due_ms:
            self.broken.append(f"early: {name} by {due_ms - world.now_ms} ms")
        before = self._runs[job_id, delivery.delivery]
        for (other, earlier), until_ms in zip(before, _successions(before, world.now_ms), strict=True):
            self.reexecuted += 1
            if not (earlier.cut_short or _in_trouble(other, earlier, until_ms)):
                self.broken.append(
                    f"unexplained: {name} ran at {other.incarnation} before, and nothing was wrong"
                )
        before.append((worker, execution))
        if execution.job.kills:
            self._deaths[job_id] += 1
            # What its own process died of was not committed: its worker died as well.
            unsaid = sum(
                earlier.was_sandboxed and _in_trouble(other, earlier, until_ms)
                for (other, earlier), until_ms in zip(before, _successions(before, world.now_ms), strict=True)
            )
            if self._deaths[job_id] > DEATHS + self._beside[job_id] + self.doubted[job_id] + unsaid:
                self.broken.append(f"kills on: {name} has ended {self._deaths[job_id] - 1} processes before")
            is_isolated = worker._scheduler.isolated is message
            self._beside[job_id] += is_isolated and len(worker._executor.running) > 1
        if execution.job.order_key:
            self._check_key(worker, execution, name)

    def _check_key(self, worker: SimWorker, execution: Execution, name: str) -> None:
        message = execution.message
        key = message.key or b""
        runs = self._by_key[key]
        for other, earlier in runs:
            if earlier.ended_ms is not None or not other.is_alive:
                continue
            if other is worker or not _is_beyond_reach(other, earlier):
                self.broken.append(
                    f"overlap: {name} while job {earlier.job.number} runs at {other.incarnation}"
                )
        runs.append((worker, execution))
        if message.delivery.delivery == 0 and not self._not_before.get(message.job_id):
            line = (message.part.topic, message.part.partition, key)
            self._check_heir(line, execution, name)
            last = self._first_starts.get(line, -1)
            runs_before = self._runs[message.job_id, 0]
            if len(runs_before) == 1:
                if message.offset < last:
                    self.broken.append(f"order: {name} after offset {last}")
                self._first_starts[line] = max(last, message.offset)

    def _check_heir(self, line: tuple[str, int, bytes], execution: Execution, name: str) -> None:
        """Whoever begins a job, for the first time or again: none behind it in its line is finished, but for copies."""
        world, message = self._world, execution.message
        topic, number, key = line
        committed = parse(*world.kafka.group(world.topics.group).committed[topic, number])
        seen: set[bytes] = set()
        for record in world.kafka.log((topic, number)).records:
            if not record.is_visible or record.key != key or parse_headers(record.headers).delivery:
                continue
            job_id = peek_id(record.value)
            is_copy = job_id in seen
            seen.add(job_id)
            if (
                record.offset > message.offset
                and not is_copy
                and not self._not_before.get(job_id)
                and committed.is_finished(record.offset)
            ):
                self.broken.append(f"order: {name} after offset {record.offset} was finished")

    def ends(self, worker: SimWorker) -> None:
        """Whatever Kafka says it runs alone, or is about to say, may be taken for the one that kills.

        Not if nothing of it runs, and it has said so. Nor if it will be missed so late that Kafka must have been away, unless
        that has happened too often.
        """
        until = 0
        if not worker._executor.running and self._world.says_nothing_runs(worker):
            until = _NEVER if worker.has_said_so else MAX_OWNERS - 1
        self._suspect(worker, spared_until=until)

    def given_away(self, worker: SimWorker) -> None:
        """A coordinator has forgotten what it has: to its heirs it is lost, and it reports. The last death counts all the same."""
        self._suspect(worker, spared_until=MAX_OWNERS - 1)

    def _suspect(self, worker: SimWorker, *, spared_until: int) -> None:
        world = self._world
        for (topic, number), committed in world.kafka.group(world.topics.group).committed.items():
            part, stands = worker.assignments.parts.get((topic, number)), parse(*committed)
            # One that has lost it, and is about to get it back, is missed all the same: the last map is its own.
            if part is not None or (stands.incarnation == worker.incarnation and not stands.clean):
                self._losses.append((worker.incarnation, (topic, number), stands, world.now_ms))
            alone = {part.alone, part.committed_alone} - {None} if part is not None else set()
            suspects = stands.suspects
            alone |= {o for o, one in suspects.items() if one.alone == worker.incarnation}
            for offset in alone:
                assert offset is not None
                if suspects.get(offset, Suspect()).deaths < spared_until:
                    continue
                self._may_be_condemned.add(peek_id(world.kafka.log((topic, number)).records[offset].value))

    def _lost_owners(self, job_id: bytes) -> set[str]:
        """Those that may have had a record of this job, unfinished, when they were lost.

        What is written before they are missed is among that: a map says how far its owner may have gone on.
        """
        log = self._world.kafka.log
        return {
            incarnation
            for incarnation, place, committed, at_ms in self._losses
            for record in log(place).records[committed.offset :]
            if record.value
            and record.timestamp_ms < at_ms + _MISSED_MS
            and not committed.is_finished(record.offset)
            and peek_id(record.value) == job_id
        }

    def offsets_taken(self, group: ConsumerGroup, member_id: str, places: Iterable[Partition]) -> None:
        """Kafka has taken these of a member. Of what others have by then they bring its records beside those of the others."""
        others = [other for other in group.members.values() if other.member_id != member_id]
        for place in places:
            self.broken.extend(
                f"taken: offsets of {place} from {member_id}, and {other.member_id} has it"
                for other in others
                if place in other.owned
            )

    def forgotten(self, records: Iterable[StoredRecord]) -> None:
        """What these say is not to be seen before somebody has ended them: a retry may have run by then, and its news come first."""
        world = self._world
        self._told_late.update(
            decode_status(world.codec, record.value or b"").job_id.encode()
            for record in records
            if record.topic == world.topics.status
        )

    def failed(self, worker: SimWorker, error: BaseException) -> None:
        """A worker that ends by itself: it says why, or it is broken."""
        what = "failed" if isinstance(error, PipelineError) else CRASHED
        self.broken.append(f"{what}: {worker.incarnation}: {type(error).__name__}: {error}")

    def is_done(self) -> bool:
        """Whether every record of every job and retry topic is finished, and everything that was written can be read."""
        world = self._world
        for topic in (*world.topics.consumed, world.topics.status, world.topics.dlq):
            for number in range(world.partitions):
                log = world.kafka.log((topic, number))
                if log.stable_end < log.end:
                    return False  # behind the open transaction of one that has died
        committed = world.kafka.group(world.topics.group).committed
        for topic in world.topics.consumed:
            for number in range(world.partitions):
                log = world.kafka.log((topic, number))
                last = max((record.offset for record in log.records if record.is_visible), default=-1)
                if parse(*committed[topic, number]).offset <= last:
                    return False
        return True

    def unfinished(self) -> list[str]:
        """What waits for nobody knows what."""
        world = self._world
        committed = world.kafka.group(world.topics.group).committed
        return [
            f"stuck: {record.topic}/{record.partition}/{record.offset}"
            for topic in world.topics.consumed
            for record in world.kafka.records(topic)
            if not parse(*committed[topic, record.partition]).is_finished(record.offset)
        ][:5] or ["stuck: an open transaction"]

    def verdict(self) -> list[str]:
        """After everything is done: each job has one end, the right one."""
        world = self._world
        finals: dict[bytes, list[str]] = defaultdict(list)
        children = 0
        reasons: dict[bytes, str] = {}
        lives: dict[bytes, list[StatusChange]] = defaultdict(list)
        for record in world.kafka.records(world.topics.status):
            status = decode_status(world.codec, record.value or b"")
            lives[status.job_id.encode()].append(status)
            if status.state.final:
                finals[status.job_id.encode()].append(status.state.value)
                reasons[status.job_id.encode()] = status.error_type or ""
        for job_id, job in self._jobs.items():
            ends = finals.pop(job_id, [])
            name = f"job {job.number}, {job_id.decode()} ({job.expected}{', kills' if job.kills else ''})"
            condemned = reasons.get(job_id) == "worker_lost"
            children += 0 if condemned else job.children
            if not ends:
                self.broken.append(f"lost: {name} has no end")
            elif len(ends) > 1:
                self.broken.append(f"forked: {name} has {len(ends)} ends: {ends}")
            elif condemned and not job.kills and job_id not in self._may_be_condemned:
                self.broken.append(f"condemned: {name} never ran alone at a death")
            elif condemned and not job.kills and len(lost := self._lost_owners(job_id)) < _DEATHS:
                self.broken.append(f"condemned: {name} was unfinished at the deaths of {sorted(lost)} only")
            elif not condemned and (ends[0] != job.expected or job.kills):
                self.broken.append(f"wrong: {name} ended as {ends[0]}")
        for job_id, ends in finals.items():
            if len(ends) > 1:
                self.broken.append(f"forked: a child, {job_id!r}, has {len(ends)} ends")
        for job_id, statuses in lives.items():
            self._check_states(job_id, statuses)
        self._check_letters({job_id for job_id, all_ in lives.items() if all_[-1].state.value == "failed"})
        self._check_copies()
        if len(finals) != children:
            self.broken.append(f"children: {len(finals)} have an end, {children} were scheduled")
        return self.broken

    def _check_states(self, job_id: bytes, statuses: list[StatusChange]) -> None:
        """States follow each other, deliveries and attempts rise, and each outcome comes from a run of its delivery."""
        before: StatusChange | None = None
        for status in statuses:
            news = (
                f"{status.state.value} (delivery {status.delivery}, attempt {status.attempt}) of {job_id!r}"
            )
            attempt, put_off = 1, False
            if before is not None:
                put_off = before.state.value in ("retrying", "scheduled")
                attempt = before.attempt + (before.state.value == "retrying")
                if before.state.final:
                    self.broken.append(f"illegal: {news} after its end")
                elif status.delivery < before.delivery + put_off:
                    self.broken.append(f"illegal: {news} after delivery {before.delivery}")
            if status.attempt != attempt and job_id not in self._told_late:
                self.broken.append(f"illegal: {news}, and not attempt {attempt}")
            ran = [one for _, one in self._runs[job_id, status.delivery] if one.ended_ms is not None]
            if (
                status.state.value != "running"
                and status.error_type != "worker_lost"
                and all(one.cut_short for one in ran)
                and job_id in self._jobs
            ):
                self.broken.append(f"illegal: {news}, and no run of it came to that")
            before = status

    def _check_letters(self, failed: set[bytes]) -> None:
        """Who failed is a dead letter."""
        world = self._world
        letters: set[bytes] = set()
        for record in world.kafka.records(world.topics.dlq):
            with contextlib.suppress(WireError):  # a test's garbage
                letters.add(peek_id(record.value))
        for job_id in sorted(failed - letters):
            self.broken.append(f"lost: {job_id!r} failed, and there is no dead letter of it")

    def _check_copies(self) -> None:
        """No delivery stands twice, but for what a producer wrote twice itself."""
        world = self._world
        seen: Counter[tuple[bytes, int, bool]] = Counter()
        for topic in (*world.topics.consumed, world.topics.dlq):
            for record in world.kafka.records(topic):
                with contextlib.suppress(WireError):  # a test's garbage
                    delivery = parse_headers(record.headers).delivery
                    seen[peek_id(record.value), delivery, topic == world.topics.dlq] += 1
        for (job_id, delivery, is_letter), count in seen.items():
            if count > 1 and (delivery > 0 or is_letter):
                self.broken.append(f"forked: delivery {delivery} of {job_id!r} stands {count} times")


def _successions(runs: Sequence[tuple[SimWorker, Execution]], now_ms: int) -> list[int]:
    """When each run of a delivery was followed by the next owner's, in milliseconds; now, if it is the last one.

    One at a worker whose partition was given away follows nobody: it may begin while nothing is wrong with the owner.
    """
    until: list[int] = []
    for _, execution in reversed(runs):
        until.append(now_ms)
        if not execution.was_given_away:
            now_ms = execution.started_ms
    return until[::-1]


def _in_trouble(worker: SimWorker, execution: Execution, until_ms: int) -> bool:
    """Whether something happened to its worker that lets others run the job; what came after they had begun did not."""
    return (
        execution.began_in_trouble
        or execution.was_given_away
        or any(execution.started_ms <= at <= until_ms for at in worker.troubles)
    )


def _is_beyond_reach(worker: SimWorker, execution: Execution) -> bool:
    """Whether something keeps its worker from hearing that others run its jobs. Slowness does not: it cancels before it lets go."""
    return (
        execution.began_in_trouble
        or execution.was_given_away
        or any(at >= execution.started_ms for at in worker.absences)
    )
