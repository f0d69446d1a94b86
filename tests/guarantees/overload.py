"""More jobs than the workers can do, for minutes, and then a backlog of a million: memory, priorities, loss.

    python -m tests.guarantees.overload --minutes 5 --backlog 1000000 --json

1. One worker shows how many jobs of a fiftieth of a second it drains.
2. Producers send twice as many for ``--minutes``, at low priority; urgent jobs come in between, twenty a second.
3. They fill the backlog up as fast as they can, and Kafka stands still for some seconds meanwhile.
4. They stop. The worker recovers by itself; memory and urgent jobs are watched until then.

Then everything is counted from Kafka's own records. Exit code 1 if something broke; ``broken`` says what.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from schemas import JobPriority
from streams.committed import committed_offsets
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.producer import JobProducer
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings, load_settings
from tests.guarantees.evidence import FINAL, decode, read_raw, read_schemas
from tests.guarantees.overload_jobs import Work
from tests.support.waiting import eventually
from tests.support.workers import WorkerUnderTest, workers
from workers.bench.jobs import STAMPS_VARIABLE, StampJob
from workers.bench.percentile import percentile
from workers.bench.stamps import parse
from workers.logs import configure_logging

_PREFIX: Final = "o."
_IMPORTS: Final = ("--import", "tests.guarantees.overload_jobs", "--import", "workers.bench.jobs")
_PROBES_PER_S: Final = 20.0
_MIB: Final = 1024 * 1024
#: So much that a producer's queue is full within a second or two of Kafka's standing still.
_CONTENT: Final = bytes(2048)
#: Shorter than a worker's lease: nobody is given up because of it, nor gives up.
_STANDS_STILL_S: Final = 4.0
#: The producer reads tens of thousands a second.
_QUIET_S: Final = 0.3
#: After it the producers' queues hold tens of megabytes, which urgent jobs stand behind.
_CATCHES_UP_NS: Final = 5_000_000_000
#: Of a broker that cannot start all at once, and of an operating system that counts pages.
_FLAT_MIB: Final = 8.0
#: For a moment: a fetch of all partitions, and seconds of outcomes that Kafka does not take.
SURGE_MIB: Final = 32.0
_URGENT_P99_MS: Final = 250.0
_FEWEST_SAMPLES: Final = 20
#: Of what was planned, at least.
_AS_PLANNED: Final = 0.9
#: Jobs of one call.
_CALL: Final = 20_000
#: What a producer may read from its source before its queue of 100,000 is full, and is told so.
QUEUE: Final = 150_000
#: What tells that partitions have moved, or might have.
_MOVES: Final = ("partitions assigned", "partitions released", "partitions lost")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an overload does."""

    seconds: float = 300.0
    backlog: int = 1_000_000
    #: Times the drain rate.
    factor: float = 2.0
    measure_s: float = 5.0


@dataclass(slots=True)
class Found:
    """What happened."""

    drain_per_s: float = 0.0
    #: While too many come: how many are sent, and how many the worker still gets done.
    sent_per_s: float = 0.0
    done_per_s: float = 0.0
    #: What the two are to be apart, and how many are to wait in the end.
    factor: float = 0.0
    backlog: int = 0
    accepted: int = 0
    urgent: int = 0
    most_waiting: int = 0
    #: Jobs that a producer went on to read from its source when Kafka stood still, until its queue was full; and those that it
    #: left there until Kafka went on.
    read_ahead: int = 0
    held_back: int = 0
    worker_mib: list[float] = field(default_factory=list)
    producer_mib: list[float] = field(default_factory=list)
    #: Samples of memory before the backlog was filled up, and before the producers stopped: nothing may grow meanwhile.
    steady: int = 0
    filled: int = 0
    urgent_p50_ms: float = 0.0
    urgent_p99_ms: float = 0.0
    moves: int = 0
    recovery_s: float = 0.0
    lost: int = 0
    forked: int = 0
    final: dict[str, int] = field(default_factory=dict)

    def growth(self, samples: list[float]) -> float:
        """From the second tenth of the time (the first is for warming up) to the last."""
        tenth = self.steady // 10
        steady = samples[: self.steady]
        return median(steady[-tenth:]) - median(steady[tenth : 2 * tenth]) if tenth else 0.0

    def growth_filled(self) -> float:
        """Of the worker, from the time before the backlog was filled up to the second half of that."""
        filling = self.worker_mib[self.steady : self.filled]
        return self._growth_since_steady(filling[len(filling) // 2 :])

    def growth_recovering(self) -> float:
        """Of the worker, from the time before the backlog was filled up to the last tenth of everything."""
        recovering = self.worker_mib[self.filled :]
        return self._growth_since_steady(recovering[-max(len(recovering) // 10, 1) :])

    def surge(self) -> float:
        """Of the worker, at its highest: what is on its way for a moment (fetches, what a Kafka that stands still does not take)."""
        return max(self.worker_mib, default=0.0) - self._steady_mib()

    def _growth_since_steady(self, samples: list[float]) -> float:
        return median(samples) - self._steady_mib() if samples else 0.0

    def _steady_mib(self) -> float:
        """Before the backlog was filled up."""
        before = self.worker_mib[self.steady - self.steady // 10 : self.steady]
        return median(before) if before else max(self.worker_mib, default=0.0)

    def broken(self) -> list[str]:
        """Whatever should not be."""
        worker, producer = self.growth(self.worker_mib), self.growth(self.producer_mib)
        filled, recovering = self.growth_filled(), self.growth_recovering()
        apart = self.sent_per_s / max(self.done_per_s, 1.0)
        wrong = {
            f"{self.lost} jobs are lost": self.lost,
            f"{self.forked} jobs have more than one end": self.forked,
            f"ends: {self.final}": set(self.final) != {"succeeded"},
            f"partitions moved {self.moves} times": self.moves,
            f"the worker grew by {worker:.0f} MiB": worker > _FLAT_MIB,
            f"the worker grew by {filled:.0f} MiB while the backlog was filled": filled > _FLAT_MIB,
            f"the worker grew by {recovering:.0f} MiB while it recovered": recovering > _FLAT_MIB,
            f"the worker held {self.surge():.0f} MiB more for a moment": self.surge() > SURGE_MIB,
            f"the producer grew by {producer:.0f} MiB": producer > _FLAT_MIB,
            f"memory was looked at {self.steady} times only": self.steady < _FEWEST_SAMPLES,
            "memory was not looked at while the backlog was filled": self.filled <= self.steady,
            "memory was not looked at while it recovered": len(self.worker_mib) <= self.filled,
            f"only {self.urgent} urgent jobs came": self.urgent < _PROBES_PER_S,
            "no producer had to wait while Kafka stood still": self.held_back == 0,
            f"urgent jobs began after {self.urgent_p99_ms} ms": self.urgent_p99_ms > _URGENT_P99_MS,
            f"only {apart:.1f} times what was done was sent": apart < _AS_PLANNED * self.factor,
            f"only {self.most_waiting:,} waited": self.most_waiting < _AS_PLANNED * self.backlog,
            f"a producer read {self.read_ahead:,} ahead": self.read_ahead > QUEUE,
        }
        return [what for what, is_so in wrong.items() if is_so]

    def to_json(self) -> dict[str, Any]:
        """The report's last line."""
        return {
            "drain_per_s": round(self.drain_per_s),
            "sent_per_s": round(self.sent_per_s),
            "done_per_s": round(self.done_per_s),
            "accepted": self.accepted,
            "urgent": self.urgent,
            "most_waiting": self.most_waiting,
            "read_ahead": self.read_ahead,
            "held_back": self.held_back,
            "worker_peak_mib": round(max(self.worker_mib, default=0.0), 1),
            "worker_growth_mib": round(self.growth(self.worker_mib), 1),
            "worker_growth_filled_mib": round(self.growth_filled(), 1),
            "worker_growth_recovering_mib": round(self.growth_recovering(), 1),
            "worker_surge_mib": round(self.surge(), 1),
            "producer_peak_mib": round(max(self.producer_mib, default=0.0), 1),
            "producer_growth_mib": round(self.growth(self.producer_mib), 1),
            "urgent_p50_ms": self.urgent_p50_ms,
            "urgent_p99_ms": self.urgent_p99_ms,
            "moves": self.moves,
            "recovery_s": round(self.recovery_s, 1),
            "lost": self.lost,
            "forked": self.forked,
            "final": self.final,
            "broken": self.broken(),
        }


def run(plan: Plan, directory: Path, progress: Any) -> Found:
    """Everything, on a Kafka and with a worker of its own. Bounded in time."""
    with EmbeddedBroker(BrokerConfig(directory / "kafka")) as broker:
        settings = load_settings(
            kafka_bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=_PREFIX,
            partitions=12,
            data_dir=directory / "data",
        )
        provision(settings)
        stamps = directory / "stamps"
        stamps.touch()
        with workers(settings, directory) as start:
            worker = start("w", *_IMPORTS, **{STAMPS_VARIABLE: str(stamps)})
            eventually(lambda: worker.said("partitions assigned"), 60, "the worker has partitions")
            found = _Overload(plan, settings, broker, worker, stamps, progress).run()
        progress("counting")
        _count(settings, found)
        return found


class _Overload:
    """The four steps."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        broker: EmbeddedBroker,
        worker: WorkerUnderTest,
        stamps: Path,
        progress: Any,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._broker = broker
        self._worker = worker
        self._stamps = stamps
        self._progress = progress
        self._low = [(settings.topics.jobs[JobPriority.LOW], number) for number in range(settings.partitions)]
        self._found = Found(factor=plan.factor, backlog=plan.backlog)
        #: Low jobs that a producer has read from its source, and that Kafka has acknowledged.
        self._read = self._acknowledged = 0
        #: From when to when Kafka took nothing.
        self._stood_still = [0, 0]

    def run(self) -> Found:
        """All of them."""
        found, plan = self._found, self._plan
        with JobProducer(self._settings, source="overload") as producer:
            found.drain_per_s = self._measure(producer)
            self._progress(f"drains {found.drain_per_s:,.0f} jobs/s")
            moves_before = self._moves()
            with self._urgent_ones(), self._samples():
                self._send_too_many(producer)
                found.steady = len(found.worker_mib)
                self._fill_up(producer)
                found.filled = len(found.worker_mib)
                found.most_waiting = self._waiting()
                self._progress(f"{found.most_waiting:,} jobs wait")
                began = time.monotonic()
                eventually(
                    self._is_drained,
                    60 + 3 * max(found.most_waiting, plan.backlog) / found.drain_per_s,
                    "everything is done",
                    pause_s=1,
                )
                found.recovery_s = time.monotonic() - began
        found.moves = self._moves() - moves_before
        found.accepted = self._acknowledged
        return found

    def _measure(self, producer: JobProducer) -> float:
        """Jobs a second that the worker drains, while it has more than enough."""
        self._send(producer, int(self._plan.measure_s * 6_000))
        eventually(lambda: self._done() > 0, 30, "the worker works", pause_s=0.01)
        before, began = self._done(), time.monotonic()
        threading.Event().wait(self._plan.measure_s)
        return (self._done() - before) / (time.monotonic() - began)

    def _send_too_many(self, producer: JobProducer) -> None:
        per_s = self._plan.factor * self._found.drain_per_s
        done_before, read_before = self._done(), self._read
        began = time.monotonic()

        def paced() -> Iterator[Work]:
            for number in itertools.count():
                ahead = number / per_s - (time.monotonic() - began)
                if ahead > 0.01:  # a pace, not a wait for something
                    threading.Event().wait(ahead)
                if time.monotonic() - began > self._plan.seconds:
                    return
                self._read += 1
                yield Work(number, _CONTENT)

        # A call returns the ids of its jobs: those of one call for all of them would be a hundred megabytes of the caller's own.
        jobs = paced()
        while ids := producer.schedule_jobs(itertools.islice(jobs, _CALL), JobPriority.LOW):
            self._acknowledged += len(ids)
        took_s = time.monotonic() - began
        self._found.sent_per_s = (self._read - read_before) / took_s
        self._found.done_per_s = (self._done() - done_before) / took_s

    def _fill_up(self, producer: JobProducer) -> None:
        """As fast as Kafka takes them; it stands still after a while, and whatever it cannot take must wait."""
        missing = max(self._plan.backlog - self._waiting(), 200_000)
        before = self._read

        def freeze() -> None:
            eventually(lambda: self._read - before > missing // 10, 60, "it has begun", pause_s=0.001)
            os.kill(self._broker.pid, signal.SIGSTOP)
            frozen_at, self._stood_still[0] = self._read, time.time_ns()
            try:
                eventually(
                    self._reads_no_more,
                    _STANDS_STILL_S,
                    "a producer that nobody takes records from reads no more",
                )
                self._found.read_ahead = self._read - frozen_at
                self._found.held_back = missing - (self._read - before)
            finally:
                os.kill(self._broker.pid, signal.SIGCONT)
                self._stood_still[1] = time.time_ns() + _CATCHES_UP_NS

        with _thread(freeze):
            self._send(producer, missing)

    def _reads_no_more(self) -> bool:
        before = self._read
        threading.Event().wait(_QUIET_S)
        return self._read == before

    def _send(self, producer: JobProducer, count: int) -> None:
        def counted() -> Iterator[Work]:
            for number in range(count):
                self._read += 1
                yield Work(number, _CONTENT)

        self._acknowledged += len(producer.schedule_jobs(counted(), JobPriority.LOW))

    @contextmanager
    def _urgent_ones(self) -> Iterator[None]:
        stop = threading.Event()
        called: dict[int, int] = {}

        async def schedule() -> None:
            async with (
                JobQueue.connect(self._settings, source="overload") as queue,
                asyncio.TaskGroup() as calls,
            ):
                for number in itertools.count():
                    if stop.is_set():
                        return
                    called[number] = time.time_ns()
                    calls.create_task(queue.schedule_job(StampJob(number), JobPriority.CRITICAL))
                    await asyncio.sleep(1 / _PROBES_PER_S)  # the pace

        with _thread(lambda: asyncio.run(schedule())):
            try:
                yield
            finally:
                stop.set()
        eventually(lambda: len(parse(self._stamps.read_text())) == len(called), 60, "urgent jobs are done")
        began = parse(self._stamps.read_text())
        frozen, thawed = self._stood_still
        waited_ms = sorted(
            (began[number].reached_ns - at) / 1e6
            for number, at in called.items()
            if began[number].reached_ns < frozen or at > thawed
        )
        self._found.urgent = len(called)
        self._found.urgent_p50_ms = round(percentile(waited_ms, 50), 1)
        self._found.urgent_p99_ms = round(percentile(waited_ms, 99), 1)

    @contextmanager
    def _samples(self) -> Iterator[None]:
        """Of memory, each half second, while it is too much."""
        stop = threading.Event()
        worker, producer = psutil.Process(self._worker.pid), psutil.Process()

        def look() -> None:
            while not stop.wait(0.5):
                self._found.worker_mib.append(worker.memory_info().rss / _MIB)
                self._found.producer_mib.append(producer.memory_info().rss / _MIB)
                if len(self._found.worker_mib) % 20 == 0:
                    self._progress(
                        f"{self._read:,} sent, worker {self._found.worker_mib[-1]:.0f} MiB, "
                        f"producer {self._found.producer_mib[-1]:.0f} MiB"
                    )

        with _thread(look):
            try:
                yield
            finally:
                stop.set()

    def _done(self) -> int:
        committed = committed_offsets(
            self._settings, self._settings.topics.group, self._low, timeout_s=20, stable=False
        )
        return sum(offset for offset, _ in committed.values())

    def _waiting(self) -> int:
        return self._acknowledged - self._done()

    def _is_drained(self) -> bool:
        process = self._worker.process
        if process is not None and process.poll() is not None:
            raise AssertionError(
                f"the worker ended by itself, with {process.returncode}: {self._worker.events()[-1]}"
            )
        return self._waiting() <= 0

    def _moves(self) -> int:
        return sum(event.get("event") in _MOVES for event in self._worker.events())


@contextmanager
def _thread(work: Any) -> Iterator[None]:
    """``work`` beside what follows; what it raises is raised here."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _count(settings: Settings, found: Found) -> None:
    """What stands in Kafka: which jobs, and how each ended."""
    address, topics = settings.bootstrap_servers(), settings.topics
    schemas = read_schemas(address, topics.prefix)
    ends: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for record in read_raw(address, [topics.status]):
        status = decode(schemas, record.value())
        if status["state"] in FINAL:
            ends[str(status["job_id"])] += 1
            states[status["state"]] += 1
    standing = {
        str(decode(schemas, record.value())["id"]) for record in read_raw(address, topics.jobs.values())
    }
    found.lost = len(standing - ends.keys()) + max(found.accepted + found.urgent - len(standing), 0)
    found.forked = sum(count > 1 for count in ends.values())
    found.final = dict(states)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.guarantees.overload", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long too many jobs come")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="how many wait in the end")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    arguments = parser.parse_args()
    configure_logging("warning")
    began = time.monotonic()

    def progress(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:7.1f} s  {text}\n")

    with tempfile.TemporaryDirectory(prefix="rustfs-workers-overload-") as directory:
        found = run(Plan(arguments.minutes * 60, arguments.backlog), Path(directory), progress)
    report = found.to_json()
    if arguments.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for name, value in report.items():
            sys.stdout.write(f"{name:>20}  {value}\n")
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
