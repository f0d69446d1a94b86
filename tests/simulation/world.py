"""Everything at once: a broker, workers, jobs and faults, in an order that a seed chooses.

In:  a seed. Out: what broke, if anything did.
"""

from __future__ import annotations

import contextlib
import random
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from schemas.codec import Codec
from schemas.offsetmap import EMPTY_MAP, parse
from schemas.topics import PRIORITIES, Partition, Topics
from streams.outgoing import JobOptions, Rules, plan
from tests.simulation.hub import Hub, Killed
from tests.simulation.judge import Judge
from tests.simulation.request_faults import RequestFaults
from tests.simulation.sim_executor import Execution
from tests.simulation.sim_jobs import SimJob
from tests.simulation.sim_worker import SimWorker
from workers.liveness.survivors import CUT_OFF, Signs
from workers.offsets import MAX_REACH
from workers.scheduling.time_share import HURRIED_ABOVE
from workers.testing import MemoryKafka
from workers.testing.memory_group import Member
from workers.testing.memory_log import CommittedOffset
from workers.worker import Handlers

BEGIN_MS: Final = 1_700_000_000_000
#: Steps of the storm, and how many more may pass until everything is done.
STORM: Final = 1_200
PATIENCE: Final = 20_000
_LOOK_EVERY: Final = 50
_JOBS: Final = 32
#: What happens to a worker, or to the world.
_EVENTS: Final = (
    *("kill", "kill", "freeze", "freeze", "cut", "cut", "recover", "recover", "leave"),
    *("fence", "forget", "start", "wait"),
)
_MOVES: Final = ("leave", "start", "start", "wait")
#: What keeps a worker from hearing of its group for a while.
_ABSENCES: Final = frozenset({"freeze", "cut", "forget", "outage", "lost"})
#: Of all of Kafka, each while one runs that must run alone: those are few in a storm, so they come after it as well.
_OUTAGES: Final = 3
_NAMES: Final = ("w0", "w1", "w2")


class Weather(NamedTuple):
    """How bad a storm is."""

    #: The share of steps at which something happens to a worker.
    events: float
    #: The share of a client's requests that get lost, or their answers.
    losses: float


#: Of the transactions that could be torn, so many are forgotten instead; in the first worlds that is so in one of four.
_FORGETS: Final = 0.3
_FIRST: Final = 600
_FORGETTING: Final = 4
#: One in so many worlds is of the kind in which partitions move.
_MOVING: Final = 16
#: All of these are as well, with a Kafka that tears what it is to commit.
_TEARING: Final = range(600, 680)
#: They take turns: what goes wrong at a lost answer, or when a partition moves in between, is rare in weather of one kind.
_WEATHERS: Final = (Weather(0.03, 0.02), Weather(0.03, 0.2), Weather(0.1, 0.02))


class World:
    """One run.

    Args:
        seed: decides everything.
    """

    session_ms = 6_000

    def __init__(self, seed: int) -> None:
        self.weather = _WEATHERS[seed % len(_WEATHERS)]
        #: In some worlds partitions move most of the time, one after the other, while Kafka takes long to answer.
        self.is_on_the_move = seed % _MOVING == _MOVING - 1 or seed in _TEARING
        #: In some of these Kafka often keeps only a part of what is committed of partitions that are asked for.
        self.tears = seed in _TEARING
        #: In some others Kafka forgets what it has decided, and idle connections are lost.
        #: Which share of its decisions: in the first worlds, in which planted bugs are looked for, a few of them do, and often.
        self.forgets = 0.0 if self.tears else _FORGETS
        if seed < _FIRST:
            self.forgets = 0.0
            if seed % _FORGETTING == _FORGETTING - 1 and not self.is_on_the_move:
                self.forgets, self.weather = 0.8, max(_WEATHERS, key=lambda one: one.losses)
        self.partitions = 4 if self.is_on_the_move else 2
        #: In every other world two that must run alone are many: one that kills is found one death later.
        self.is_hurried = seed % 2 == 1
        #: Hardly anything may end before what stands in front of it has.
        self.is_narrow = seed % 5 == 1
        #: In a third of them who was unfinished at two deaths has a process of its own, in the others it runs alone.
        self.has_sandbox = seed // 2 % 3 == 0
        self.rng = random.Random(seed)
        self.now_ms = BEGIN_MS
        self.hub = Hub()
        self.topics = Topics("t.")
        self.codec = Codec()
        self.handlers = Handlers()
        self.handlers.register(SimJob)
        self.rules = Rules(self.codec, self.topics, "simulation")
        self.is_storm = True
        #: Faults at Kafka's side come for a while, and then not: else nothing would ever get through.
        self.kafka = MemoryKafka(now_ms=lambda: self.now_ms, on_step=self._step_of_client, polls_wait=False)
        if self.is_on_the_move:
            self._ask_in_portions()
            self._watch_offsets()
        for name in (*self.topics.consumed, self.topics.dlq, self.topics.status):
            self.kafka.create_topic(name, self.partitions)
        self.kafka.create_topic(self.topics.schemas)
        places = [(name, number) for name in self.topics.consumed for number in range(self.partitions)]
        self.kafka.commit(self.topics.group, {place: CommittedOffset(0, EMPTY_MAP) for place in places})
        self.workers: dict[str, SimWorker] = {}
        self.dead: list[SimWorker] = []
        self._incarnations = 0
        self._frozen_ms: dict[str, int] = {}
        self._last_sign: dict[str, int] = {}
        self._left: set[str] = set()
        #: Of reports that Kafka has acknowledged; without those of who may run nothing.
        self._last_report: dict[str, int] = {}
        self._at_rest: set[str] = set()
        self._away_until = 0
        self._outages_left = _OUTAGES
        self._outages: list[tuple[int, int]] = []
        self._doomed: tuple[SimWorker, int] | None = None
        self._names: dict[str, str] = {}
        self._request_faults = RequestFaults(self)
        self._snoozed: Counter[bytes] = Counter()
        self.faults: Counter[str] = Counter()
        self.judge = Judge(self)

    # --- driving ----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Storm, then calm until everything is done; what broke."""
        with self._driving():
            return self._storm() or self._calm()

    def calm(self) -> list[str]:
        """Without a storm."""
        self.is_storm = False
        with self._driving():
            return self._calm()

    @contextlib.contextmanager
    def _driving(self) -> Iterator[None]:
        with _simulated_time(self):
            for name in _NAMES:
                self._start(name)
            try:
                yield
            finally:
                self.is_storm = False
                for worker in [*self.workers.values(), *self.dead]:
                    worker.is_alive = False
                    worker.bury()

    def _storm(self) -> list[str]:
        # Where partitions move, many jobs come just then: a move matters to what has ended, and is not committed yet.
        bursts, jobs_each = (_JOBS // 2, 8) if self.is_on_the_move else (_JOBS, 1)
        jobs_at = sorted(self.rng.randrange(STORM) for _ in range(bursts))
        for step in range(STORM):
            while jobs_at and jobs_at[0] <= step:
                jobs_at.pop(0)
                for _ in range(jobs_each):
                    self._schedule()
                if self.is_on_the_move:
                    self._something_happens()
            if self.rng.random() < self.weather.events:
                self._something_happens()
            self._step()
            if self.judge.broken:
                break
        return self.judge.broken

    def _calm(self) -> list[str]:
        self.is_storm = False
        self._doomed = None
        self._return()
        for worker in self.workers.values():
            self._recover(worker)
        for step in range(PATIENCE):
            if not self.workers:
                self._start(_NAMES[0])
            self._step()
            if self.judge.broken:
                return self.judge.broken
            if step % _LOOK_EVERY == 0 and self.judge.is_done():
                return self.judge.verdict()
        return self.judge.unfinished()

    def _step(self) -> None:
        self.now_ms += self.rng.choice((0, 1, 5, 20, 60))
        if not self.is_storm and self.rng.random() < 0.01:
            self.now_ms += 1_000  # what waits for a time shall not take for ever
        if self.is_away and self.now_ms >= self._away_until:
            self._return()
        if self._doomed is not None and self.now_ms >= self._doomed[1] and not self._doomed[0].must_live:
            self.kill(self._doomed[0])
            self._doomed = None
        if not self.is_away:
            self.kafka.expire_transactions()
            self._request_faults.end_what_hangs()
            self._expire_sessions()
        self._restart_the_dead()
        ready = [step for worker in self.workers.values() for step in worker.ready]
        if ready:
            # Some get many turns in a row: the others are slow.
            step = self.rng.choice(ready)
            with contextlib.suppress(Killed):
                for _ in range(self.rng.choice((1, 1, 1, 4, 12))):
                    step()
        for worker in list(self.workers.values()):
            if worker.is_alive and not worker.is_frozen:
                self._last_sign[worker.incarnation] = self.now_ms
                if not worker.is_cut_off:
                    self._report_of(worker)
            if worker.failure.error is not None:
                self.judge.failed(worker, worker.failure.error)
                self.kill(worker)
            elif worker.has_left:
                self._gone(worker)

    def _report_of(self, worker: SimWorker) -> None:
        said = worker.reported()
        worker.has_said_so = worker._cut_off.is_cut_off
        if said == CUT_OFF:
            self._last_report.pop(worker.incarnation, None)
            self._at_rest.add(worker.incarnation)
        else:
            self._last_report[worker.incarnation] = self.now_ms
            self._at_rest.discard(worker.incarnation)

    def says_nothing_runs(self, worker: SimWorker) -> bool:
        """Whether it has cancelled everything, and has been able to say so, or Kafka is away."""
        return worker._cut_off.is_cut_off and (self.is_away or worker.has_said_so)

    def _ask_in_portions(self) -> None:
        """A member is asked for one number, and for the rest as soon as it has given that up: it keeps its epoch meanwhile."""
        group = self.kafka.group(self.topics.group)
        all_at_once = group.to_revoke

        def to_revoke(member: Member, held: set[Partition]) -> set[Partition]:
            places = all_at_once(member, held)
            if places and self.is_storm and self.rng.random() < 0.8:
                first = min(number for _, number in places)
                return {place for place in places if place[1] == first}
            return places

        group.to_revoke = to_revoke  # type: ignore[method-assign]

    def _watch_offsets(self) -> None:
        """Whoever sends offsets that Kafka takes is looked at."""
        group = self.kafka.group(self.topics.group)
        check_member = group.check_member

        def check(member_id: str, epoch: int, places: Iterable[Partition]) -> None:
            sent = list(places)
            check_member(member_id, epoch, sent)
            self.judge.offsets_taken(group, member_id, sent)

        group.check_member = check  # type: ignore[method-assign]

    def _something_happens(self) -> None:
        worker = self.rng.choice([*self.workers.values()] or [None])
        what = self.rng.choice(_MOVES if self.is_on_the_move else _EVENTS)
        match what:
            case "start":
                self._start_missing()
            case "wait":
                self.now_ms += self.rng.choice((500, 3_000, 8_000))
            case _ if worker is None or worker.must_live:
                pass
            case "kill":
                self.kill(worker)
            case "freeze" if not worker.is_frozen:
                self.trouble(worker, "freeze")
                worker.is_frozen = True
                self._frozen_ms[worker.incarnation] = self.now_ms
            case "cut" if not worker.is_cut_off:
                self.trouble(worker, "cut")
                worker.is_cut_off = True
                self._frozen_ms[worker.incarnation] = self.now_ms
            case "recover":
                self._recover(worker)
            case "fence" if worker.incarnation in self.judge.members:
                self.kafka.fence(self.topics.group, self.judge.members[worker.incarnation])
            case "forget" if worker.incarnation in self.judge.members:
                self.trouble(worker, "forget")
                self.judge.given_away(worker)
                self.kafka.forget_assignment(self.topics.group, self.judge.members[worker.incarnation])
            case "leave" if worker._leave_thread is None and not worker.is_frozen:
                self.trouble(worker, "leave")
                if worker.is_cut_off:
                    self.judge.ends(worker)  # it cannot say that it leaves in order
                worker.leave()

    @property
    def is_away(self) -> bool:
        """Whether Kafka answers nobody."""
        return self._away_until > 0

    def _outage(self, doomed: SimWorker) -> None:
        """Kafka is away, and this worker ends meanwhile, or soon after."""
        if (
            self._outages_left == 0
            or self.is_away
            or self.is_on_the_move
            or any(worker.must_live for worker in self.workers.values())
        ):
            return
        self._outages_left -= 1
        rng, now_ms = self.rng, self.now_ms
        self._away_since = now_ms
        self._away_until = now_ms + rng.choice((2_000, 7_000, 20_000))
        for worker in self.workers.values():
            self.trouble(worker, "outage")
            worker.is_cut_off = True
        # Anywhere, or just when it is told that Kafka is back.
        self._doomed = (
            doomed,
            rng.choice((now_ms + rng.randrange(25_000), self._away_until + rng.randrange(200))),
        )

    def _return(self) -> None:
        """If it was started it has nobody's last heartbeat: whoever it knows as a member has a session from now on."""
        if self.is_away and self.rng.random() < 0.5:
            self._frozen_ms = dict.fromkeys(self._frozen_ms, self.now_ms)
        elif self.is_away:  # it was only frozen; others' reports show it
            self._outages.append((self._away_since, self.now_ms))
        self._away_until = 0
        for worker in self.workers.values():
            if not worker.is_frozen:
                self._recover(worker)

    def _schedule(self) -> None:
        rng, number = self.rng, self.judge.accepted_count
        kind = rng.choice(
            ("plain", "plain", "keyed", "keyed", "keyed", "fails", "delayed", "kills", "long", "other")
        )
        job = SimJob(number)
        delay = None
        if kind == "keyed" or rng.random() < 0.2:
            job.order_key = rng.choice("ab")
        match kind:
            case "fails":
                job.fails, job.permanent = rng.choice((1, 2, -1)), rng.random() < 0.2
            case "delayed":
                delay = timedelta(milliseconds=rng.choice((300, 1_200, 7_000)))
            case "kills":
                job.kills = not self.is_on_the_move and rng.random() < 0.3
            case "long":
                job.runs_for_ms = rng.choice((500, 5_000))
            case "other":
                job.snoozes, job.children, job.skips = rng.randrange(2), rng.randrange(3), rng.random() < 0.3
        options = JobOptions(
            priority=rng.choices(PRIORITIES, (1, 1, 5, 2))[0], delay=delay, job_id=self.new_id()
        )
        skew_ms = rng.choice((0, 0, -9_000, 9_000))  # of the producer's clock
        made = plan(job, options, self.now_ms + skew_ms, self.rules)
        for _ in range(2 if rng.random() < 0.03 else 1):  # a producer whose first answer was lost
            self.kafka.append(made.topic, -1, made.key, made.value, made.headers)
        self.judge.accepted(
            made.job_id, job, 0 if delay is None else self.now_ms + delay // timedelta(milliseconds=1)
        )

    def new_id(self) -> str:
        """Of a job: by the seed, like everything else."""
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    # --- workers ----------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        self._incarnations += 1
        incarnation = f"{name}i{self._incarnations}"
        self._names[incarnation] = name
        self._last_sign[incarnation] = self.now_ms
        self.workers[name] = SimWorker(self, name, incarnation)
        self.workers[name].is_cut_off = self.is_away

    def _start_missing(self) -> None:
        missing = [name for name in _NAMES if name not in self.workers]
        if missing:
            self._start(self.rng.choice(missing))

    def _restart_the_dead(self) -> None:
        if len(self.workers) < 2 and self.rng.random() < 0.05:
            self._start_missing()

    def kill(self, worker: SimWorker) -> None:
        """kill -9."""
        if not worker.is_alive:
            return
        self.trouble(worker, "kill")
        self.judge.ends(worker)
        worker.die()
        del self.workers[worker.slot]
        self.dead.append(worker)
        self._frozen_ms[worker.incarnation] = self.now_ms

    def _gone(self, worker: SimWorker) -> None:
        worker.is_alive = False
        del self.workers[worker.slot]
        self.dead.append(worker)
        self._frozen_ms[worker.incarnation] = self.now_ms - self.session_ms  # it has said so
        if not worker.is_cut_off:
            self._left.add(worker.incarnation)  # in its last report

    def _recover(self, worker: SimWorker) -> None:
        worker.is_frozen, worker.is_cut_off = False, self.is_away
        self._frozen_ms.pop(worker.incarnation, None)

    def trouble(self, worker: SimWorker, kind: str) -> None:
        self.faults[kind] += 1
        worker.troubles.append(self.now_ms)
        if kind in _ABSENCES:
            worker.absences.append(self.now_ms)

    def _expire_sessions(self) -> None:
        for incarnation, since_ms in list(self._frozen_ms.items()):
            if self.now_ms - since_ms >= self.session_ms:
                del self._frozen_ms[incarnation]
                member = self.judge.members.get(incarnation)
                if member is not None:
                    self.kafka.expire_session(self.topics.group, member)

    def started(self, worker: SimWorker, execution: Execution) -> None:
        """A handler begins. Some end their process."""
        self.judge.started(worker, execution)
        if execution.job.kills and execution.message.sandboxed:
            worker._executor.dies_in_sandbox(execution)
        elif execution.job.kills:
            self.kill(worker)
        elif worker._scheduler.isolated is execution.message and self.rng.random() < 0.2:
            self._outage(worker)

    def finish(self, worker: SimWorker, execution: Execution) -> None:
        """A handler returns."""
        job_id = execution.message.job_id
        snoozed = self._snoozed[job_id]
        self._snoozed[job_id] += snoozed < execution.job.snoozes
        worker._executor.finish(execution, snoozed)

    def signs(self, losses: Mapping[str, int]) -> Signs:
        """What the reports would say."""
        alive = {self._names[one.incarnation]: one.incarnation for one in self.workers.values()}
        return Signs(
            {one: self._last_sign[one] for one, at in losses.items() if self._last_sign.get(one, 0) > at}
            | {one: at + 1 for one, at in losses.items() if one in self._left},
            frozenset(
                one for one in losses if one in self._names and alive.get(self._names[one], one) != one
            ),
            last={one: self._last_report[one] for one in losses if one in self._last_report},
            at_rest=frozenset(self._at_rest),
            outages=tuple(self._outages),
        )

    # --- clients and their faults -------------------------------------------------------------------------------

    def producer(self, worker: SimWorker, transactional_id: str) -> Any:
        """Of this worker."""
        made: Any = self.kafka.producer(transactional_id, timeout_ms=5_000)
        made.owner = worker
        return made

    def consumer(self, worker: SimWorker) -> Any:
        """Of this worker."""
        made: Any = self.kafka.consumer(self.topics.group)
        made.owner = worker
        self.judge.members[worker.incarnation] = made.memberid()
        return made

    def check(self, worker: SimWorker) -> None:
        """Raises Killed if it is dead."""
        if not worker.is_alive:
            raise Killed

    def _step_of_client(self, step: str, client: Any) -> None:
        self.on_step(step, client.owner, client)

    def on_step(self, step: str, worker: SimWorker, client: Any = None) -> None:
        """Before each call to Kafka: others may run, and things go wrong."""
        self.check(worker)
        if self.rng.random() < (0.05 if step == "produce" else 0.5):
            worker.pause()
        if not self.is_storm:
            return
        if self.rng.random() < 0.002 and not worker.must_live:
            self.kill(worker)
            raise Killed
        self._request_faults.meet(step, worker, client)

    def is_finished(self, execution: Execution) -> bool:
        """Whether Kafka shows this record as finished already."""
        part = execution.message.part
        committed = self.kafka.group(self.topics.group).committed[part.topic, part.partition]
        return parse(*committed).is_finished(execution.message.offset)


@contextlib.contextmanager
def _simulated_time(world: World) -> Iterator[None]:
    """The modules that look at the clock themselves see the world's."""
    clock = SimpleNamespace(
        monotonic=lambda: world.now_ms / 1000,
        time_ns=lambda: world.now_ms * 1_000_000,
    )
    with (
        patch("workers.committing.commit.time", clock),
        patch("workers.committing.recovery.time", clock),
        patch("workers.consuming.poller.time", clock),
        patch("workers.consuming.assignments.time", clock),
        patch("workers.consuming.group_metadata.time", clock),
        patch("workers.process.time", clock),
        # Few jobs wait here: nobody would ever be held.
        patch("workers.scheduling.key_locks.KEY_AHEAD", 1),
        patch("workers.scheduling.scheduler.HURRIED_ABOVE", 1 if world.is_hurried else HURRIED_ABOVE),
        patch("workers.offsets.MAX_REACH", 3 if world.is_narrow else MAX_REACH),
    ):
        yield
