"""The schema of a child job whose type the worker has not registered goes with the child, until it has arrived."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas import JobPriority
from schemas.codec import Codec
from schemas.errors import KafkaUnreachable
from schemas.headers import parse
from schemas.ids import new_job_id
from schemas.jobtype import job_type
from schemas.partitions import partition_of_id
from schemas.records import REPORT, STATUS
from schemas.wire import WireSchema
from streams.outgoing import Rules
from streams.registry import RegistryFailed
from streams.schemas_topic import schema_record
from tests.support.commit_bench import Bench, FakeProducer, Transaction, kafka_error
from tests.support.deployments import Sample, settings_for
from tests.support.messages import TOPICS, message
from workers.console import UNREACHABLE, exit_code
from workers.context import WorkerContext
from workers.execution.children import ChildJobs
from workers.outcome import Outcome, OutRecord
from workers.own_schemas import introduce

pytestmark = pytest.mark.job_processing

WIRE = job_type(Sample).wire
SCHEMA = (TOPICS.schemas, schema_record(WIRE)[1])


def child_of(codec: Codec | None = None, introduced: tuple[WireSchema, ...] = ()) -> OutRecord:
    plan = ChildJobs(Rules(codec or Codec(), TOPICS), introduced, now_ms=lambda: 0, partitions=lambda: 12)
    return plan(Sample(), JobPriority.LOW)[1]


def end(bench: Bench, offset: int, *children: OutRecord) -> None:
    """A job with these children ends."""
    bench.emit(Outcome(message(bench.part, offset), None, children))
    bench.tick()


def written(bench: Bench) -> list[list[tuple[str, Any]]]:
    return [[(sent.topic, sent.value) for sent in done.records] for done in bench.kafka.committed]


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
    plan = ChildJobs(Rules(Codec(), TOPICS), now_ms=lambda: broker_ms, partitions=lambda: 12)
    _, child = plan(Sample(), JobPriority.LOW, delay=timedelta(seconds=20))
    assert parse(child.headers).not_before_ms == broker_ms + 20_000


def test_a_child_lies_where_a_producer_would_put_it_that_schedules_it_again() -> None:
    """Elsewhere another worker would run it a second time, and nobody would say so."""
    plan = ChildJobs(Rules(Codec(), TOPICS), now_ms=lambda: 0, partitions=lambda: 12)
    ids = [new_job_id() for _ in range(30)]
    children = [plan(Sample(), JobPriority.LOW, job_id=job_id)[1] for job_id in ids]
    assert [child.partition for child in children] == [partition_of_id(job_id, 12) for job_id in ids]
    _, keyed = plan(Sample(), JobPriority.LOW, key="bucket/a")
    assert keyed.partition == -1, "its key decides, by each client's murmur2"


async def test_an_event_loop_does_not_wait_for_the_registry_that_a_child_needs() -> None:
    asked_in: list[threading.Thread] = []

    class Down:
        def prefix(self, schema: WireSchema) -> bytes:
            asked_in.append(threading.current_thread())
            raise RegistryFailed(f"{schema.full_name}: no answer")

    planner = ChildJobs(Rules(Codec(Down()), TOPICS), now_ms=lambda: 0, partitions=lambda: 12)
    context = WorkerContext(job_id="1", job_type="parent", priority=JobPriority.LOW, planner=planner)
    for _ in range(2):
        with pytest.raises(RegistryFailed):
            await context.schedule(Sample())
    assert len(asked_in) == 2
    assert threading.current_thread() not in asked_in
    assert context.end() == ()


def test_a_schema_goes_once_with_the_first_child_of_its_type() -> None:
    bench = Bench()
    child = child_of()
    end(bench, 0, child, child)
    end(bench, 1, child)
    sent = (child.topic, child.value)
    assert written(bench) == [[SCHEMA, sent, sent], [sent]]


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True)),
        ("commit", kafka_error(KafkaError._TIMED_OUT, retriable=True)),
    ],
    ids=["aborted", "ambiguous"],
)
def test_a_schema_goes_again_unless_its_transaction_was_committed_for_sure(
    step: str, answer: Exception
) -> None:
    bench = Bench()
    bench.kafka.fault(step, answer)
    child = child_of()
    end(bench, 0, child)
    end(bench, 1, child)
    sent = (child.topic, child.value)
    assert written(bench) == [[SCHEMA, sent], [sent]]


@pytest.mark.parametrize("then", ["nothing", "stale"])
def test_a_schema_goes_again_if_only_the_child_was_kept(then: str) -> None:
    """Of a torn transaction: nobody could read the child otherwise."""
    bench = Bench()
    child = child_of()

    def tear(producer: FakeProducer) -> Exception:
        kept = [sent for sent in producer.open.records if sent.topic == child.topic]
        bench.kafka.land(Transaction(kept, producer.open.offsets))
        return kafka_error(KafkaError._TIMED_OUT, retriable=True)

    bench.kafka.fault("commit", tear)
    if then == "stale":
        bench.kafka.fault("offsets", lambda _: None)
        bench.kafka.fault("offsets", kafka_error(KafkaError.ILLEGAL_GENERATION, abort=True))
    end(bench, 0, child)
    end(bench, 1)
    sent = (child.topic, child.value)
    assert written(bench)[:2] == [[sent], [SCHEMA]], "with the next map"


def test_a_schema_that_kafka_refuses_does_not_spoil_what_comes_next() -> None:
    bench = Bench()
    refusal = kafka_error(KafkaError.MSG_SIZE_TOO_LARGE, abort=True)
    bench.kafka.refuse = lambda one: refusal if SCHEMA[0] in {sent.topic for sent in one.records} else None
    end(bench, 0, child_of())
    end(bench, 1)
    assert written(bench)[-1] == []
    assert bench.stored.offset == 2


def test_a_worker_that_cannot_say_what_it_writes_does_not_start(tmp_path: Path) -> None:
    settings = settings_for("127.0.0.1:1", "p.", tmp_path)
    with pytest.raises(KafkaUnreachable, match=r"no Kafka broker answered at 127\.0\.0\.1:1") as refusal:
        introduce(settings, [STATUS, REPORT], timeout_s=0.5)
    assert exit_code(refusal.value) == UNREACHABLE, "who supervises it is to try again"
