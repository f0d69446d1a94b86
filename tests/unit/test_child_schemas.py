"""The schema of a child job whose type the worker has not registered goes with the child, until it has arrived."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas import JobPriority
from schemas.codec import Codec
from schemas.errors import PipelineError
from schemas.headers import Delivery, build, parse
from schemas.jobtype import job_type
from schemas.offsetmap import OffsetMap
from schemas.records import REPORT, STATUS
from schemas.topics import Topics
from schemas.wire import WireSchema
from streams.outgoing import Rules
from streams.schemas_topic import schema_record
from tests.support.deployments import Sample, settings_for
from tests.support.events import job_value
from workers.children import ChildJobs
from workers.commit import Committer
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome, OutRecord
from workers.own_schemas import introduce
from workers.router import Router

pytestmark = pytest.mark.job_processing

TOPICS = Topics("p.")
WIRE = job_type(Sample).wire


def child_of(codec: Codec | None = None, introduced: tuple[WireSchema, ...] = ()) -> OutRecord:
    plan = ChildJobs(Rules(codec or Codec(), TOPICS), introduced, now_ms=lambda: 0)
    return plan(Sample(), JobPriority.LOW)[1]


class TransactionLog:
    """A producer that notes what it is given; ``answers`` are the ends of its transactions."""

    def __init__(self, *answers: KafkaError | None) -> None:
        self.answers = list(answers)
        self.open: list[tuple[str, Any]] = []
        self.committed: list[list[tuple[str, Any]]] = []
        self.aborted: list[list[tuple[str, Any]]] = []

    def init_transactions(self, _: float) -> None: ...
    def begin_transaction(self) -> None:
        self.open = []

    def poll(self, _: float) -> None: ...

    def produce(self, topic: str, value: Any, *_: Any, **__: Any) -> None:
        self.open.append((topic, value))

    def commit_transaction(self, _: float) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise KafkaException(answer)
        self.committed.append(self.open)

    def abort_transaction(self, _: float) -> None:
        self.aborted.append(self.open)


class Group:
    metadata = None

    def refresh(self, timeout_s: float) -> None: ...


def committer_of(producer: TransactionLog) -> Committer:
    make: Any = lambda logger: producer  # noqa: E731
    committer = Committer(
        make_producer=make,
        membership=Group(),
        read_back=lambda parts: {part: OffsetMap(0) for part in parts},
        codec=Codec(),
        router=Router(TOPICS),
        worker_name="w",
        lock=threading.Lock(),
        tick_ms=20,
        on_committed=lambda: None,
        on_failure=lambda error: None,
    )
    committer._transactions.renew()
    return committer


def parent_of(*records: OutRecord) -> Outcome:
    topic = TOPICS.jobs[JobPriority.LOW]
    part = PartitionState(
        topic, 0, OffsetMap(0), incarnation="i", transactional_id="t", lock=threading.Lock()
    )
    raw = build(Delivery("test_sample"))
    message = Message(part, 0, None, job_value(Sample()), raw, 1, JobPriority.LOW, None)
    return Outcome(message, None, records)


def test_only_types_that_readers_may_not_know_bring_their_schema() -> None:
    class Numbered:
        def prefix(self, schema: WireSchema) -> bytes:
            return b"\0\0\0\0\7"

    assert child_of().schema is WIRE
    assert child_of(introduced=(WIRE,)).schema is None
    assert child_of(Codec(Numbered())).schema is None, "the codec has registered it"


def test_the_delay_of_a_child_begins_by_the_brokers_clock() -> None:
    """By a local one that is ten seconds behind it would end ten seconds early."""
    broker_ms = 1_900_000_000_000
    plan = ChildJobs(Rules(Codec(), TOPICS), now_ms=lambda: broker_ms)
    _, child = plan(Sample(), JobPriority.LOW, delay=timedelta(seconds=20))
    assert parse(child.headers).not_before_ms == broker_ms + 20_000


def test_a_schema_goes_once_with_the_first_child_of_its_type() -> None:
    producer = TransactionLog()
    committer = committer_of(producer)
    child = child_of()
    committer._commit(None, [parent_of(child, child), parent_of(child)], set())
    committer._commit(None, [parent_of(child)], set())
    schema = (TOPICS.schemas, schema_record(WIRE)[1])
    assert producer.committed == [
        [schema, *[(child.topic, child.value)] * 3],
        [(child.topic, child.value)],
    ]


@pytest.mark.parametrize(
    "answer",
    [
        KafkaError(KafkaError.ILLEGAL_GENERATION, "stale", False, False, True),
        KafkaError(KafkaError._TIMED_OUT, "ambiguous", False, True, False),
    ],
    ids=["aborted", "ambiguous"],
)
def test_a_schema_goes_again_unless_its_transaction_was_committed_for_sure(answer: KafkaError) -> None:
    producer = TransactionLog(answer)
    committer = committer_of(producer)
    child = child_of()
    committer._commit(None, [parent_of(child)], set())
    schema = (TOPICS.schemas, schema_record(WIRE)[1])
    assert producer.committed == [[schema, (child.topic, child.value)]]
    committer._commit(None, [parent_of(child)], set())
    assert producer.committed[1:] == [[(child.topic, child.value)]]


def test_a_worker_that_cannot_say_what_it_writes_does_not_start(tmp_path: Path) -> None:
    settings = settings_for("127.0.0.1:1", "p.", tmp_path)
    with pytest.raises(PipelineError, match=r"p\.schemas: no Kafka broker answered"):
        introduce(settings, [STATUS, REPORT], timeout_s=0.5)
