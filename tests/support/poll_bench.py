"""A poll thread without its thread: each round is called for, on a consumer that does what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.headers import Delivery, build
from schemas.offsetmap import OffsetMap
from schemas.topics import Partition
from tests.support.messages import TOPICS, committed, job_value
from workers.committing.counters import Counters
from workers.committing.holdings import Holdings
from workers.consuming.assignments import Assignments
from workers.consuming.duplicates import DuplicateWindow
from workers.consuming.flow_control import FlowControl
from workers.consuming.look_back import LookBack
from workers.consuming.poller import Poller
from workers.liveness.lease import Lease
from workers.liveness.survivors import Signs
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.delay import Delays
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler

#: Broker time of every assignment.
ASSIGNED_MS = 1_000
#: A time that is never past.
LATER_MS = 4_000_000_000_000
HEADERS = build(Delivery(job_type="test"))
JOB_ID = "01a20bd1-1946-743e-922d-c32f1fd9b001"


@dataclass
class FakeRecord:
    """A record, or an error, as the consumer returns it."""

    place: Partition
    at: int
    content: bytes | None = None
    problem: KafkaError | None = None
    timestamp_ms: int = LATER_MS

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> Any:
        return HEADERS

    def timestamp(self) -> tuple[int, int]:
        return (1, self.timestamp_ms)

    def error(self) -> KafkaError | None:
        return self.problem


def job_of(offset: int) -> str:
    """The job of the record that ``records`` puts there."""
    return f"{offset:08x}{JOB_ID[8:]}"


def records(place: Partition, *offsets: int, job_id: str = JOB_ID, size: int = 0) -> list[FakeRecord]:
    """Each is another job, if ``job_id`` is not given."""
    return [
        FakeRecord(place, at, job_value(job_id if job_id != JOB_ID else job_of(at)) + bytes(size))
        for at in offsets
    ]


class FakeConsumer:
    def __init__(self, steps: list[str]) -> None:
        self.steps = steps
        self.coming: deque[FakeRecord] = deque()
        self.generation = 0
        self.joined = 0
        self.paused: set[Partition] = set()
        self.assigned: dict[Partition, int] = {}
        self.positions: dict[Partition, int] = {}
        #: What the group does while more is taken, once.
        self.meanwhile: Callable[[], None] = lambda: None

    def poll(self, timeout_s: float) -> FakeRecord | None:
        return self.coming.popleft() if self.coming else None

    def consume(self, count: int, timeout_s: float) -> list[FakeRecord]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return [self.coming.popleft() for _ in range(min(count, len(self.coming)))]

    def consumer_group_metadata(self) -> int:
        self.steps.append("metadata")
        self.generation += 1
        return self.generation

    def memberid(self) -> str:
        return f"member-{self.joined}"

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.steps.append("subscribe")
        self.joined += 1

    def unsubscribe(self) -> None:
        self.steps.append("unsubscribe")

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused |= {(tp.topic, tp.partition) for tp in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused -= {(tp.topic, tp.partition) for tp in places}

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        return [
            TopicPartition(tp.topic, tp.partition, self.positions.get((tp.topic, tp.partition), -1001))
            for tp in places
        ]

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.steps.append("assign")
        self.assigned |= {(tp.topic, tp.partition): tp.offset for tp in places}

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        self.steps.append("unassign")
        for tp in places:
            del self.assigned[tp.topic, tp.partition]
            self.paused.discard((tp.topic, tp.partition))


class LastCommit:
    """Is made at once, or after so many waits; remembers how long somebody would have waited for it."""

    def __init__(self, after: int = 0) -> None:
        self.waited_s: list[float] = []
        self._after = after

    def wait(self, timeout_s: float) -> bool:
        self.waited_s.append(timeout_s)
        return len(self.waited_s) > self._after


class FakeCommitter:
    def __init__(self, bench: Bench) -> None:
        self.last_commit = LastCommit()
        self.bench = bench
        self.counters = Counters()
        self.nudges = 0
        self.pending_bytes = 0
        self.ahead = 3

    def nudge(self) -> None:
        self.nudges += 1

    def release(self, parts: Iterable[PartitionState], *, clean: bool = True) -> LastCommit:
        self.bench.note("last commit" if clean else "last commit without a flag", parts)
        return self.last_commit


class WatchedHoldings(Holdings):
    """Tells what was asked; what is under way, a test says."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(threading.Lock())
        self.bench = bench
        #: Set: no transaction is under way for what comes back.
        self.settles = threading.Event()
        self.settles.set()
        #: Set: none is on its way, or in doubt, of what is to be let go.
        self.nothing_on_its_way = threading.Event()
        self.nothing_on_its_way.set()
        self.asked_for: list[set[Partition]] = []

    def free(self, places: Collection[Partition]) -> threading.Event:
        self.bench.steps.append("free" if self.nothing_on_its_way.is_set() else "not free")
        return self.nothing_on_its_way

    def let_go(self, places: Collection[Partition]) -> threading.Event:
        self.asked_for.append(set(places))
        if self.nothing_on_its_way.is_set():
            return super().let_go(places)
        self.bench.steps.append("cannot be let go")
        return self.nothing_on_its_way

    def settled(self, places: Collection[Partition]) -> threading.Event:
        self.bench.steps.append("settled")
        return self.settles


class Bench:
    """A poller of one event loop. ``steps`` says what was asked for, and what was true of the partitions then."""

    def __init__(
        self,
        *,
        high: int = 10,
        low: int = 4,
        partitions: int | None = None,
        pool: PoolPlaces | None = None,
    ) -> None:
        self.steps: list[str] = []
        self.delivered: list[Message] = []
        self.failures: list[BaseException] = []
        self.refusals: list[PipelineError] = []
        self.purged: list[set[PartitionState]] = []
        self.stored: dict[Partition, OffsetMap | Exception] = {}
        #: When owners that were lost have reported last; and about whom that was asked.
        self.heard: dict[str, int] = {}
        self.asked: list[Mapping[str, int]] = []
        #: Of every partition; None: Kafka does not tell.
        self.log_start: int | None = 0
        self.log_end: int | None = 1_000_000
        #: Something runs on every partition, whoever has asked it to end.
        self.runs_on = False
        self.consumer = FakeConsumer(self.steps)
        self.committer = FakeCommitter(self)
        self.holdings = WatchedHoldings(self)
        self.scheduler = Scheduler(pool=pool)
        self.delays = Delays()
        #: By the lease's clock.
        self.time_s = 0.0
        self.lease = Lease(5.0, lambda: self.time_s)
        consumer: Any = self.consumer
        committer: Any = self.committer
        committed_offsets: Any = self
        look_back, copies = LookBack(self._log_starts), DuplicateWindow()
        flow = FlowControl(
            topics=TOPICS,
            committer=committer,
            scheduler=self.scheduler,
            delays=self.delays,
            high=high,
            low=low,
            now_ms=lambda: ASSIGNED_MS,
        )
        self.assignments = Assignments(
            topics=TOPICS,
            committed=committed_offsets,
            committer=committer,
            holdings=self.holdings,
            look_back=look_back,
            lease=self.lease,
            loop=asyncio.get_running_loop(),
            incarnation="me",
            transactional_id="t.worker.me",
            revoke_timeout_s=3.0,
            now_ms=lambda: ASSIGNED_MS,
            signs=self._signs,
            log_ends=self._log_ends,
            release=self._release,
            purge=self.purged.append,
            runs_on=lambda _: self.runs_on,
            memories=(look_back, copies, flow),
            on_failure=self.failures.append,
            on_refusal=self.refusals.append,
        )
        self.assignments.partition_count = partitions
        self.poller = Poller(
            make_consumer=lambda _: consumer,
            assignments=self.assignments,
            flow=flow,
            look_back=look_back,
            copies=copies,
            topics=TOPICS,
            committer=committer,
            scheduler=self.scheduler,
            delays=self.delays,
            lock=self.holdings.lock,
            deliver=self.delivered.extend,
            on_failure=self.failures.append,
            lease=self.lease,
        )

    def note(self, step: str, parts: Iterable[PartitionState]) -> None:
        """A step, with what was true of the partitions meanwhile."""
        states = {("ours" if part.owned else "lost") + " releasing" * part.releasing for part in parts}
        self.steps.append(f"{step} ({', '.join(sorted(states))})")

    async def _release(self, parts: set[PartitionState], timeout_s: float) -> None:
        self.note(f"jobs end within {timeout_s:.0f} s", parts)

    def _log_starts(self, places: Iterable[Partition]) -> dict[Partition, int]:
        if self.log_start is None:
            raise KafkaUnreachable("nowhere", 1)
        return dict.fromkeys(places, self.log_start)

    def _log_ends(self, places: Iterable[Partition]) -> dict[Partition, int]:
        if self.log_end is None:
            raise KafkaUnreachable("nowhere", 1)
        return dict.fromkeys(places, self.log_end)

    def _signs(self, losses: Mapping[str, int]) -> Signs:
        self.asked.append(losses)
        return Signs(self.heard)

    def for_assignment(self, consumer: Any, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        """What is committed, as ``CommittedOffsets`` reads it."""
        self.steps.append("read")
        found = {}
        for place in places:
            stored = self.stored.get(place, committed())
            if isinstance(stored, Exception):
                raise stored
            found[place] = stored
        return found

    def assign(self, *places: Partition) -> list[PartitionState]:
        """The group gives us these; the first commit opens their first thousand records."""
        self.assignments.on_assign(self.consumer, [TopicPartition(*place) for place in places])  # type: ignore[arg-type]
        parts = [self.assignments.parts[place] for place in places]
        for part in parts:
            part.committed(part.plan(()))
            part.start_limit = part.base + 1_000
        self.steps.clear()
        self.committer.nudges = 0
        return parts

    async def revoke(self, *places: Partition) -> None:
        await asyncio.to_thread(self.assignments.on_revoke, *self._leaving(places))

    async def lose(self, *places: Partition) -> None:
        await asyncio.to_thread(self.assignments.on_lost, *self._leaving(places))

    def _leaving(self, places: Iterable[Partition]) -> tuple[Any, list[TopicPartition]]:
        return self.consumer, [TopicPartition(*place) for place in places]

    def round(self, *arriving: FakeRecord) -> list[Message]:
        """One round of the thread; what it handed over."""
        self.consumer.coming.extend(arriving)
        before = len(self.delivered)
        self.poller._round(self.consumer)  # type: ignore[arg-type]
        return self.delivered[before:]


async def change(bench: Bench, what: str, ours: Partition, more: Partition) -> None:
    """``more`` comes (``assign``), or ``ours`` is given up (``revoke``) or lost (``lose``)."""
    match what:
        case "assign":
            bench.assign(more)
        case "revoke":
            await bench.revoke(ours)
        case "lose":
            await bench.lose(ours)
        case _:
            raise ValueError(what)


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The poll thread's; ``now_s`` moves it."""
    clock = SimpleNamespace(now_s=100.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr("workers.consuming.poller.time", clock)
    monkeypatch.setattr("workers.consuming.assignments.time", clock)
    monkeypatch.setattr("workers.consuming.group_metadata.time", clock)
    return clock
