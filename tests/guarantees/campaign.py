"""Jobs are scheduled at a steady rate while a storm goes over brokers and workers; then everything is judged.

In:  a seed and a length. Out: the evidence, and the verdict on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import DeliveryFailed, KafkaUnreachable
from streams.clients import admin_config
from streams.embedded import EmbeddedCluster
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings, load_settings
from tests.guarantees.crew import Crew
from tests.guarantees.evidence import (
    FINAL,
    Accepted,
    Evidence,
    Trouble,
    decode,
    read_doubts,
    read_runs,
    read_schemas,
    read_topics,
)
from tests.guarantees.pulse import pulse
from tests.guarantees.redrives import Redrives
from tests.guarantees.silence import read_words, silences
from tests.guarantees.storm import Fault, Kind, storm
from tests.guarantees.traffic import Order, orders
from tests.guarantees.verdict import LONG_MINUTES
from tests.support.waiting import eventually

FEWEST: Final = 3
MOST: Final = 6
_PREFIX: Final = "g."
_HEALTHY_S: Final = 90.0
#: Beside six workers that want to run on two cores.
_BROKER_START_S: Final = 300.0
#: Jobs that were in flight at two kills run alone, half a minute each at the most: that is how long nothing else may end.
_NO_MORE_ENDS_S: Final = 150.0
_LAST_JOBS_S: Final = 2_400.0
#: Of a long campaign, when its storm is over and nothing is left of it.
_CALM_S: Final = 420.0
_CALM_PAUSE_S: Final = (14.0, 18.0)
_CALM: Final = (Kind.WORKER_KILL, Kind.WORKER_LEAVE, Kind.WORKER_JOIN)

Progress = Callable[[str], None]


class Phase(NamedTuple):
    """A part of a campaign: its traffic begins, and stops, and everything comes to its end.

    Attributes:
        seed: decides which jobs there are.
        far: of so many, the first ones, some wait for minutes.
        faults: one after another.
        seconds: how long both last.
    """

    seed: int
    far: int
    faults: Iterator[Fault]
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does."""

    seed: int
    seconds: float
    #: Enough that 5,000 a minute are accepted though producers wait while brokers are away.
    jobs_per_s: float = 130.0
    partitions: int = 12
    long_s: float = 30.0
    pause_s: tuple[float, float] = (1.0, 5.0)
    only: Collection[Kind] = tuple(Kind)

    def phases(self) -> Iterator[Phase]:
        """One storm. After a long one, when all that it has left is done, only workers come and go: what a takeover takes is to be
        seen where nothing else is wrong.

        Jobs that wait for minutes are those of a long storm's first half, so that its end does not wait for them.
        """
        is_long = self.seconds >= LONG_MINUTES * 60
        far = round(self.seconds * self.jobs_per_s / 2) if is_long else 0
        calm_s = _CALM_S if is_long else 0.0
        faults = storm(self.seed, pause_s=self.pause_s, only=self.only)
        yield Phase(self.seed, far, faults, self.seconds - calm_s)
        if calm_s:
            yield Phase(self.seed + 1, 0, storm(self.seed, pause_s=_CALM_PAUSE_S, only=_CALM), calm_s)


@dataclass(slots=True)
class _Ledger:
    """What the producer was told."""

    accepted: list[Accepted] = field(default_factory=list)
    #: Calls that said that nothing was sent at all; no job has an id then.
    unreachable: int = 0
    not_written: list[str] = field(default_factory=list)
    perhaps_written: list[str] = field(default_factory=list)
    redrives: Redrives = field(default_factory=Redrives)


def run(plan: Plan, directory: Path, progress: Progress) -> Evidence:
    """Everything, from an empty directory to the evidence. Bounded in time."""
    progress("starting three brokers")
    with EmbeddedCluster(directory / "kafka") as cluster:
        settings = load_settings(
            kafka_bootstrap_servers=cluster.bootstrap_servers,
            topic_prefix=_PREFIX,
            partitions=plan.partitions,
            data_dir=directory / "data",
        )
        provision(settings)
        crew, ledger = Crew(settings, directory), _Ledger()
        weather = _Weather(settings, cluster, crew)
        traffic_ns: list[tuple[int, int]] = []
        with pulse(settings) as stalls:
            try:
                for _ in range(FEWEST + 1):
                    crew.join()
                crew.wait_until_started()
                for phase in plan.phases():
                    traffic_ns.append(_under_fire(plan, phase, settings, weather, crew, ledger, progress))
                    progress("waiting for the last jobs")
                    _wait_for_ends(settings, ledger, crew, progress)
            finally:
                crew.close()
        progress("reading everything")
        topics, runs = read_topics(cluster.bootstrap_servers, _PREFIX), read_runs(crew.runs_directory)
        silent = silences(crew.lives, read_words(directory), runs, topics.reports)
        silent_pids = {one.pid for one in silent}
        return Evidence(
            seed=plan.seed,
            minutes=plan.seconds / 60,
            ended_by_themselves=crew.ended_by_themselves,
            stood_still=[*crew.stood_still, *(one.worker for one in crew.lives if one.pid in silent_pids)],
            refused=ledger.unreachable + len(ledger.not_written),
            doubtful=len(ledger.perhaps_written),
            not_written=ledger.not_written,
            perhaps_written=ledger.perhaps_written,
            redriven=ledger.redrives.redriven,
            redrive_calls=ledger.redrives.calls,
            redrive_calls_failed=ledger.redrives.failed_calls,
            topics=topics,
            runs=runs,
            lives=crew.lives,
            troubles=[*crew.troubles, *weather.troubles, *stalls.found, *silent],
            accepted=ledger.accepted,
            traffic_ns=traffic_ns,
            faults=dict(weather.faults),
            doubts=read_doubts(directory),
        )


def _under_fire(
    plan: Plan,
    phase: Phase,
    settings: Settings,
    weather: _Weather,
    crew: Crew,
    ledger: _Ledger,
    progress: Progress,
) -> tuple[int, int]:
    """From when to when there was traffic."""
    stop = weather.stop = threading.Event()
    began_ns = time.monotonic_ns()
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            asyncio.run(_traffic(plan, phase, settings, ledger, stop))
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            failures.append(error)
            stop.set()

    def redrive() -> None:
        try:
            ledger.redrives.keep_on(settings, ledger.accepted, phase.seed, stop)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=work, name=work.__name__) for work in (produce, redrive)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + phase.seconds
        for fault in phase.faults:
            if not weather.wait(min(fault.pause_s, deadline - time.monotonic())):
                break
            if time.monotonic() >= deadline:
                break
            weather.strike(fault)
            progress(f"{len(ledger.accepted):,} jobs accepted, {weather.faults.total()} faults")
        weather.clear()
    except BaseException:
        stop.set()  # Ctrl-C: nobody waits for more jobs, nor for brokers that are to be well again
        crew.close()
        for thread in threads:
            thread.join()
        raise
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return began_ns, time.monotonic_ns()


class _Due(NamedTuple):
    """The end of something that lasts."""

    at_s: float
    #: No two are alike, so that none is compared by what it does.
    number: int
    what: Callable[[], None]
    of_broker: bool


class _Weather:
    """Makes faults, and sees that each of them ends. One broker is in trouble at a time. For one thread."""

    def __init__(self, settings: Settings, cluster: EmbeddedCluster, crew: Crew) -> None:
        self._settings = settings
        self._cluster = cluster
        self._crew = crew
        #: Set when it is to end at once.
        self.stop = threading.Event()
        self._later: list[_Due] = []
        self._order = itertools.count()
        self.faults: Counter[str] = Counter()
        self.troubles: list[Trouble] = []

    def wait(self, seconds: float) -> bool:
        """Let time go by, and end what is due. False: it has been stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._end_what_is_due()
            due_in = self._later[0].at_s - time.monotonic() if self._later else left
            if self.stop.wait(min(max(due_in, 0.01), left, 0.5)):
                return False
            self._crew.look()
        self._end_what_is_due()
        return True

    def strike(self, fault: Fault) -> None:
        """One fault; what lasts is ended later."""
        crew, kind = self._crew, fault.kind
        if kind is Kind.WORKER_LEAVE and len(crew) <= FEWEST:
            kind = Kind.WORKER_JOIN
        elif kind is Kind.WORKER_JOIN and len(crew) >= MOST:
            kind = Kind.WORKER_LEAVE
        happened = True
        match kind:
            case Kind.WORKER_KILL:
                name = crew.kill(fault.pick)
                happened = name is not None
                # Every second one comes back under its old name, as a supervisor would start it.
                self._after(fault.lasts_s, lambda: crew.join(name if fault.pick % 2 else None))
            case Kind.WORKER_FREEZE:
                name = crew.freeze(fault.pick)
                happened = name is not None
                self._after(fault.lasts_s, lambda: crew.thaw(name or ""))
            case Kind.WORKER_LEAVE:
                happened = crew.leave(fault.pick) is not None
            case Kind.WORKER_JOIN:
                crew.join()
            case Kind.ROLLING_RESTART:
                for _ in range(len(crew)):
                    name = crew.leave(0)
                    if name is not None:
                        crew.wait_for_leavers(self._end_what_is_due)
                        crew.join(name)
                        self._end_what_is_due()
            case Kind.BROKER_KILL:
                self._lose_broker(self._broker(fault.pick), fault)
            case Kind.TRANSACTION_LEADER_KILL:
                self._lose_broker(self._leader_of_transactions(fault.pick), fault)
            case Kind.BROKER_FREEZE:
                self._freeze_broker(self._broker(fault.pick), fault)
            case Kind.KAFKA_RESTART:
                self._wait_until_healthy()
                began_ns = time.monotonic_ns()
                self._cluster.stop()
                self._cluster.start(timeout_s=_BROKER_START_S)
                self._wait_until_healthy()
                self.troubles.append(Trouble("kafka_restart", began_ns, time.monotonic_ns()))
        if happened:
            self.faults[kind.value] += 1

    def clear(self) -> None:
        """End everything that still lasts."""
        while self._later:
            heapq.heappop(self._later).what()
        self._crew.wait_for_leavers()
        self._wait_until_healthy()

    def _after(self, seconds: float, what: Callable[[], None], *, of_broker: bool = False) -> None:
        heapq.heappush(self._later, _Due(time.monotonic() + seconds, next(self._order), what, of_broker))

    def _end_what_is_due(self) -> None:
        while self._later and self._later[0].at_s <= time.monotonic():
            heapq.heappop(self._later).what()

    def _broker(self, pick: int) -> int:
        nodes = self._cluster.node_ids
        return nodes[pick % len(nodes)]

    def _leader_of_transactions(self, pick: int) -> int:
        """Who leads one partition of the transaction state topic."""
        self._wait_until_healthy()
        known = AdminClient(admin_config(self._settings)).list_topics("__transaction_state", timeout=30)
        partitions = known.topics["__transaction_state"].partitions
        return int(partitions[pick % len(partitions)].leader)

    def _lose_broker(self, node_id: int, fault: Fault) -> None:
        self._wait_until_healthy()
        began_ns = time.monotonic_ns()
        self._cluster[node_id].kill()

        def start() -> None:
            self._cluster[node_id].start(timeout_s=_BROKER_START_S)
            self._wait_until_healthy()
            self.troubles.append(Trouble(fault.kind.value, began_ns, time.monotonic_ns()))

        self._after(fault.lasts_s, start, of_broker=True)

    def _freeze_broker(self, node_id: int, fault: Fault) -> None:
        self._wait_until_healthy()
        began_ns = time.monotonic_ns()
        pid = self._cluster[node_id].pid
        os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            os.kill(pid, signal.SIGCONT)
            self._wait_until_healthy()
            self.troubles.append(Trouble(fault.kind.value, began_ns, time.monotonic_ns()))

        self._after(fault.lasts_s, go_on, of_broker=True)

    def _wait_until_healthy(self) -> None:
        """Every partition has all its copies again: only then may the next broker go."""
        self._end_broker_troubles()
        eventually(self._healthy, _HEALTHY_S, "the brokers are well", pause_s=0.1)

    def _healthy(self) -> bool:
        try:
            topics = AdminClient(admin_config(self._settings)).list_topics(timeout=5).topics
        except KafkaException:
            return False  # none of them answers yet
        return all(
            len(partition.isrs) == len(partition.replicas) and partition.leader >= 0
            for topic in topics.values()
            for partition in topic.partitions.values()
        )

    def _end_broker_troubles(self) -> None:
        """Wait until the last of them has come to its end, as the storm says; at once, if it has been stopped."""
        while of_brokers := [due for due in self._later if due.of_broker]:
            first = min(of_brokers)
            if not self.wait(first.at_s - time.monotonic()):
                self._later.remove(first)
                heapq.heapify(self._later)
                first.what()


async def _traffic(
    plan: Plan, phase: Phase, settings: Settings, ledger: _Ledger, stop: threading.Event
) -> None:
    """Jobs at a steady rate, whatever the brokers do; a call that waits does not hold up the next one."""
    async with JobQueue.connect(settings, source="campaign") as queue, asyncio.TaskGroup() as calls:
        began = time.monotonic()
        for number, order in enumerate(orders(phase.seed, long_s=plan.long_s, far=phase.far)):
            if stop.is_set():
                break
            # The pace: each job has its moment, however long the calls before it take.
            await asyncio.sleep(max(began + number / plan.jobs_per_s - time.monotonic(), 0))
            # One that ends in any other way than those it knows ends the campaign: its job would be nobody's.
            calls.create_task(_schedule(queue, order, ledger))


async def _schedule(queue: JobQueue, order: Order, ledger: _Ledger) -> None:
    called_ms = time.time_ns() // 1_000_000
    try:
        job_id = await queue.schedule_job(order.job, order.priority, order.delay)
    except KafkaUnreachable:
        ledger.unreachable += 1
        return
    except DeliveryFailed as error:
        ledger.not_written += error.not_written
        ledger.perhaps_written += error.perhaps_written
        return
    due_ms = None if order.delay is None else called_ms + order.delay // timedelta(milliseconds=1)
    ledger.accepted.append(
        Accepted(
            job_id,
            type(order.job).job_type,
            order.job.expected,
            order.priority.value,
            due_ms,
            order.job.attempts,
        )
    )


def _wait_for_ends(settings: Settings, ledger: _Ledger, crew: Crew, progress: Progress) -> None:
    """Until each life of every accepted job and its children is over, or nothing ends any more; what never ends is the auditor's to find."""
    left = {_JobLife(job.job_id, 0) for job in ledger.accepted}
    all_over: set[_JobLife] = set()
    began = last_end = time.monotonic()
    with _following(settings) as news:
        while left and (now := time.monotonic()) < min(last_end + _NO_MORE_ENDS_S, began + _LAST_JOBS_S):
            crew.look()
            before = len(left)
            begun, over = news()
            # A child's end can be read before its parent's, which stands in another partition.
            all_over |= over
            left = (left | begun) - all_over
            if len(left) < before:
                last_end = now
                progress(f"{len(left):,} jobs left")
    if left:
        for line in _who_owns_what(settings):
            progress(line)


def _who_owns_what(settings: Settings) -> Iterator[str]:
    """What the group's coordinator thinks: a line for each member, with what it has and what it should have."""
    admin = AdminClient(admin_config(settings))
    group = settings.topics.group
    described = admin.describe_consumer_groups([group], request_timeout=20)[group].result()
    yield f"group {described.state} coordinator {described.coordinator.id}"
    for member in described.members:
        has = sorted({part.partition for part in member.assignment.topic_partitions})
        target = member.target_assignment.topic_partitions if member.target_assignment else []
        yield f"{member.client_id} {member.member_id} has {has}, should have {sorted({p.partition for p in target})}"


class _JobLife(NamedTuple):
    """A job's life, by number."""

    job_id: str
    redrives: int


@contextlib.contextmanager
def _following(settings: Settings) -> Iterator[Callable[[], tuple[set[_JobLife], set[_JobLife]]]]:
    """A function that gives the lives, redriven and of children, that have begun since it was called last, and all that ended."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers(),
            "group.id": "campaign",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    topic = settings.topics.status
    known = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in known])
    schemas = read_schemas(settings.bootstrap_servers(), settings.topic_prefix)

    def news() -> tuple[set[_JobLife], set[_JobLife]]:
        begun: set[_JobLife] = set()
        over: set[_JobLife] = set()
        for message in consumer.consume(2000, 1.0):
            if message.error() is None:
                status = decode(schemas, message.value())
                life = _JobLife(str(status["job_id"]), int(status["redrives"]))
                if status["state"] in FINAL:
                    over.add(life)
                    if status["state"] == "succeeded" and status["output"]:
                        children = json.loads(status["output"]).get("children", ())
                        begun |= {_JobLife(child, 0) for child in children}
                elif status["state"] == "pending" and life.redrives:
                    begun.add(life)
        return begun, over

    try:
        yield news
    finally:
        consumer.close()
