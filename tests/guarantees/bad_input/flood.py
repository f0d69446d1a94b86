"""Bad records on every topic, good jobs in between, a real worker; then everything is judged.

In:  a plan, a deployment with its topics. Out: a ``Verdict``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas.jobtype import job_type
from schemas.topics import TIERS, JobPriority, Partition, Topics
from streams.clients import admin_config, producer_config
from streams.committed import committed_offsets
from streams.jobinfo import RecordPlace
from streams.producer import JobProducer
from streams.scan import LATEST, informed_admin, offsets
from streams.schemas_topic import publish_schemas
from streams.settings import Settings
from tests.guarantees.bad_input.forge import Bad, Forge
from tests.guarantees.bad_input.jobs import SAMPLES, Nobodys
from tests.guarantees.bad_input.kinds import RARE, any_kind, make
from tests.guarantees.bad_input.others import HEADERS, Passed, kinds_by_topic, make_other
from tests.guarantees.bad_input.waiters import waiting
from tests.support.jobs import Note
from tests.support.waiting import eventually
from tests.support.workers import Start, WorkerUnderTest

IMPORT: Final = "tests.guarantees.bad_input.jobs"
WORKER: Final = "w"
_FLUSH_S: Final = 120.0
#: Of a thousand bad records: how many stand where. The rest is for job topics.
_ON_OTHER_TOPICS: Final = {"status": 80, "dlq": 60, "schemas": 30, "reports": 60, "commands": 20}
_ON_FAST_TIERS: Final = 120
_ON_AGED_TIERS: Final = 30
_ON_SLOW_TIERS: Final = 10
_GOOD_EVERY: Final = 25
#: One of so many on the other topics has headers that are bad.
_BAD_HEADERS_OF: Final = 10
_OUTLASTS_MS: Final = 3_600_000
_AGE_MS: Final = _OUTLASTS_MS // 2

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flood consists of."""

    seed: int
    records: int
    #: Retry topics whose delay is waited for. On longer ones records are so old that they are due at once, and on the longest
    #: ones they are held, as they must be.
    longest_delay_ms: int = 5_000
    rare_each: int = 1
    timeout_s: float = 1_200.0

    def fast_tiers(self, topics: Topics) -> list[str]:
        """Those that are waited for."""
        return [topics.retry[tier] for tier in TIERS if tier.delay_ms <= self.longest_delay_ms]

    def aged_tiers(self, topics: Topics) -> list[str]:
        """Those whose records come with a time that has passed."""
        rest = {*self.fast_tiers(topics), *self.slow_tiers(topics)}
        return [name for name in topics.retry.values() if name not in rest]

    @staticmethod
    def slow_tiers(topics: Topics) -> list[str]:
        """Those whose delay outlasts any flood."""
        return [topics.retry[tier] for tier in TIERS if tier.delay_ms >= _OUTLASTS_MS]


@dataclass(frozen=True, slots=True)
class Written:
    """A record of ours, and where Kafka has put it."""

    record: Bad
    place: RecordPlace
    is_copy: bool = False

    @property
    def topic(self) -> str:
        return self.place[0]


@dataclass(slots=True)
class Flood:
    """Everything that was written, and how long it took."""

    written: list[Written] = field(default_factory=list)
    passed: list[tuple[Passed, RecordPlace]] = field(default_factory=list)
    good: list[str] = field(default_factory=list)
    #: What somebody who waited for good jobs was told of each.
    heard: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    produced_s: float = 0.0
    settled_s: float = 0.0

    @property
    def records(self) -> int:
        """Bad ones."""
        return len(self.written) + len(self.passed)


class _Pen:
    """Writes records, and notes where they stand."""

    def __init__(self, settings: Settings, flood: Flood) -> None:
        self._flood = flood
        # As somebody else's producer: no limit of ours, and what is too large is compressed.
        limits = {"message.max.bytes": 50_000_000, "queue.buffering.max.kbytes": 262_144}
        self._producer = Producer({**producer_config(settings), **limits})
        self._refused: list[str] = []

    def write(self, bad: Bad, topic: str, *, is_copy: bool = False, at_ms: int = 0) -> None:
        def note(place: RecordPlace) -> None:
            self._flood.written.append(Written(bad, place, is_copy))

        self._put(
            topic, bad.partition, bad.key, bad.value, bad.headers, note, timestamp=at_ms or bad.timestamp_ms
        )
        self._flood.kinds[bad.kind] += 1

    def pass_over(self, passed: Passed, topic: str, partition: int) -> None:
        def note(place: RecordPlace) -> None:
            self._flood.passed.append((passed, place))

        self._put(topic, partition, passed.key, passed.value, passed.headers, note)
        self._flood.kinds[passed.kind] += 1

    def close(self) -> None:
        assert self._producer.flush(_FLUSH_S) == 0
        assert self._refused == [], self._refused[:5]

    def _put(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Any,
        note: Callable[[RecordPlace], None],
        *,
        timestamp: int = 0,
    ) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._refused.append(f"{topic}: {error}")
                return
            number, offset = message.partition(), message.offset()
            assert number is not None and offset is not None  # noqa: PT018
            note((topic, number, offset))

        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition, on_delivery=delivered, timestamp=timestamp, headers=headers
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return


def run(plan: Plan, settings: Settings, start: Start, progress: Progress) -> tuple[Flood, WorkerUnderTest]:
    """Write everything while a worker works, and wait until it has all come to an end.

    Raises:
        AssertionError: it has not, in time.
    """
    forge = Forge(plan.seed, settings.partitions)
    known = [*(schema for schema, _ in forge.strangers), job_type(Nobodys).wire]
    publish_schemas(settings, known, timeout_s=20)
    _configure(settings, settings.topics.jobs.values(), "message.timestamp.after.max.ms", str(2**63 - 1))
    _configure(settings, plan.aged_tiers(settings.topics), "message.timestamp.type", "CreateTime")
    worker = start(WORKER, "--import", IMPORT)
    flood = Flood()
    with waiting(settings, plan.timeout_s) as flood.heard:
        began = time.monotonic()
        _write(plan, settings, forge, flood, progress)
        flood.produced_s = time.monotonic() - began
        progress(f"{flood.records:,} bad records and {len(flood.good):,} good jobs written")
        _wait_until_settled(plan, settings, worker, progress)
        flood.settled_s = time.monotonic() - began
    _configure(settings, plan.aged_tiers(settings.topics), "message.timestamp.type", "LogAppendTime")
    return flood, worker


def _write(plan: Plan, settings: Settings, forge: Forge, flood: Flood, progress: Progress) -> None:
    topics, dice = settings.topics, forge.dice
    job_topics = list(topics.jobs.values())
    fast, aged, slow = plan.fast_tiers(topics), plan.aged_tiers(topics), plan.slow_tiers(topics)
    aged_ms = time.time_ns() // 1_000_000 - _AGE_MS
    others = kinds_by_topic(topics)
    by_name = dict(
        zip(
            _ON_OTHER_TOPICS,
            (topics.status, topics.dlq, topics.schemas, topics.reports, topics.commands),
            strict=True,
        )
    )
    one_partition = {topics.schemas, topics.reports, topics.commands}
    pen = _Pen(settings, flood)
    with JobProducer(settings) as producer:
        for number in range(plan.records):
            draw = dice.randrange(1_000)
            other = ""
            for name, share in _ON_OTHER_TOPICS.items():
                if draw < share:
                    other = by_name[name]
                    break
                draw -= share
            if other:
                partition = 0 if other in one_partition else dice.randrange(settings.partitions)
                headers = "" if dice.randrange(_BAD_HEADERS_OF) else "bad_headers"
                pen.pass_over(make_other(forge, dice.choice(others[other]), headers), other, partition)
            elif draw < _ON_FAST_TIERS:
                _write_one(pen, make(forge, any_kind(forge)), dice.choice(fast))
            elif draw < _ON_FAST_TIERS + _ON_AGED_TIERS:
                _write_one(pen, make(forge, any_kind(forge)), dice.choice(aged), at_ms=aged_ms)
            elif draw < _ON_FAST_TIERS + _ON_AGED_TIERS + _ON_SLOW_TIERS:
                pen.write(make(forge, any_kind(forge)), dice.choice(slow))
            else:
                _write_one(pen, make(forge, any_kind(forge)), dice.choice(job_topics))
            if number % _GOOD_EVERY == 0:
                job = Note(text=str(number)) if number % 2 else dice.choice(SAMPLES)
                flood.good += producer.schedule_jobs([job], dice.choice(tuple(JobPriority)))
            if number and number % 10_000 == 0:
                progress(f"{number:,} bad records written")
        for kind in RARE:
            for _ in range(plan.rare_each):
                _write_one(pen, make(forge, kind), dice.choice(job_topics))
        # Once at least, whatever the seed: each kind of record, and each kind of headers, on each of these topics.
        for topic, kinds in others.items():
            for other_kind in kinds:
                pen.pass_over(make_other(forge, other_kind), topic, 0)
            for headers in HEADERS:
                for _ in range(plan.rare_each):
                    pen.pass_over(make_other(forge, dice.choice(kinds), headers), topic, 0)
        pen.close()
        # Behind all of them, on each topic: whatever stops a partition stops these.
        for priority in JobPriority:
            flood.good += producer.schedule_jobs(
                [Note(text="last") for _ in range(settings.partitions * 4)], priority
            )


def _write_one(pen: _Pen, bad: Bad, topic: str, *, at_ms: int = 0) -> None:
    pen.write(bad, topic, at_ms=at_ms)
    if bad.twice:
        pen.write(bad, topic, is_copy=True, at_ms=at_ms)


def _wait_until_settled(plan: Plan, settings: Settings, worker: WorkerUnderTest, progress: Progress) -> None:
    """First the retry topics up to where they end now, then the job topics, to which those records have gone.

    (A job of a type that nobody knows comes back to a retry topic every few seconds, for a quarter of an hour.)
    """
    admin = informed_admin(settings, 10)
    deadline = time.monotonic() + plan.timeout_s
    topics = settings.topics
    for names in (plan.fast_tiers(topics) + plan.aged_tiers(topics), topics.jobs.values()):
        places = [(name, number) for name in names for number in range(settings.partitions)]
        ends = offsets(settings, admin, places, LATEST, timeout_s=20)
        told = time.monotonic()

        def is_settled(ends: Mapping[Partition, int] = ends) -> bool:
            nonlocal told
            assert worker.process is not None
            assert worker.process.poll() is None, worker.stderr_file.read_text()[-3_000:]
            left = sum(_unsettled(settings, ends).values())
            if left and time.monotonic() - told > 10:
                told = time.monotonic()
                progress(f"{left:,} records left")
            return not left

        eventually(is_settled, deadline - time.monotonic(), "every bad record is settled", pause_s=0.2)


def _unsettled(settings: Settings, ends: Mapping[Partition, int]) -> dict[Partition, int]:
    """How far the group is from these."""
    committed = committed_offsets(settings, settings.topics.group, ends, timeout_s=20)
    return {place: end - committed[place][0] for place, end in ends.items() if committed[place][0] < end}


def _configure(settings: Settings, names: Iterable[str], key: str, value: str) -> None:
    """A broker refuses what lies more than an hour ahead, and gives records of retry topics its own time, unless told otherwise."""
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    changes = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry]) for name in names]
    admin = AdminClient(admin_config(settings))
    for answer in admin.incremental_alter_configs(changes).values():
        answer.result(20)
