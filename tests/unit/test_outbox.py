"""One producer for all threads of a process: what is sent, in which order, and what happens when it fails."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas import ids
from schemas.errors import DeliveryFailed, InvalidJob, KafkaUnreachable
from schemas.ids import new_job_id
from schemas.records import STATUS
from schemas.topics import JobPriority
from streams import outbox as outbox_module
from streams.outbox import Outbox
from streams.outgoing import OutgoingJob
from streams.producer import JobProducer
from streams.queue import JobQueue, WrongEventLoop
from streams.settings import load_settings
from streams.tickets import Ticket
from tests.support.fake_producers import Broker, FakeProducer, Waited
from tests.support.jobs import Note
from tests.support.messages import TOPICS
from tests.support.waiting import eventually

pytestmark = pytest.mark.job_processing


def test_a_producer_from_before_a_fork_refuses_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are not there: a job would never be sent, and its caller wait for ever."""
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), unreachable_after_s=0.1)
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    with pytest.raises(DeliveryFailed, match="before a fork"):
        outbox.prepare()
    with pytest.raises(DeliveryFailed, match="before a fork"), outbox.bulk():
        pass


def test_a_record_that_meets_the_closing_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1"))
    producer = outbox.producer()

    class Late:
        """Hands a record over after the outbox has closed, as a thread may that was held up in between."""

        def produce(self, *args: Any, **kwargs: Any) -> None:
            outbox.close(0)
            producer.produce(*args, **kwargs)

        def __len__(self) -> int:
            return len(producer)

        def __getattr__(self, name: str) -> Any:
            return getattr(producer, name)

    finished = threading.Event()
    ticket = Ticket(finished.set)
    monkeypatch.setattr(outbox, "_producer", Late())
    assert outbox.produce("t", b"k", b"v", 0, ticket)
    ticket.seal(1)
    assert finished.wait(20), "nobody tells that it was not sent"
    assert (len(ticket.unacknowledged), len(ticket.unacknowledged.perhaps_written)) == (1, 1)
    with pytest.raises(DeliveryFailed, match="closed"):
        outbox.produce("t", b"k", b"v", 0, ticket)


# --- one producer for all threads -----------------------------------------------------------------------


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(ids, "_turn", 7)  # where the turns begin anew, one partition may come twice
    monkeypatch.setattr(outbox_module, "Producer", broker.producer)
    return broker


@pytest.fixture
def outbox(broker: Broker) -> Iterator[Outbox]:
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix))
    yield outbox
    for producer in broker.producers:
        producer.report()
    outbox.close(60)


def job(number: int = 0, *, ordered: bool = False) -> OutgoingJob:
    key = b"%d" % number
    return OutgoingJob(new_job_id(), TOPICS.jobs[JobPriority.LOW], key, b"", [], 0, ordered)


def test_reports_are_served_without_anybody_asking(outbox: Outbox, broker: Broker) -> None:
    waited = Waited()
    for number in range(3):
        assert outbox.send(job(number), waited.ticket)
        outbox.serve()
    waited.seal(3)
    broker.producers[0].report()
    assert waited.finished()
    assert waited.ticket.unacknowledged.error() is None


def test_a_record_that_comes_while_the_serving_thread_lies_down_is_seen(
    outbox: Outbox, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_IDLE_LOOK_S", 1_000)
    waited = Waited()

    def comes() -> None:
        outbox.send(job(), waited.ticket)
        outbox.serve()
        waited.seal(1)
        broker.producers[0].report()

    broker.after_idle_look = comes
    outbox.producer()
    assert waited.finished()


def test_a_full_queue_takes_nothing_and_says_so(outbox: Outbox, broker: Broker) -> None:
    broker.refusals = [BufferError("full")]
    ticket = Ticket(lambda: None)
    assert not outbox.send(job(), ticket)
    assert broker.records == []
    assert outbox.send(job(), ticket)


def test_a_schema_waits_for_room_in_the_queue(outbox: Outbox, broker: Broker) -> None:
    """Whoever waits for the report of what was never handed over waits for ever, with the lock of all others."""
    broker.refusals = [BufferError("full")] * 3
    outbox.prepare(STATUS)
    assert [topic for topic, _, _ in broker.records] == [TOPICS.schemas]


def test_a_queue_that_stays_full_is_named(outbox: Outbox, broker: Broker) -> None:
    outbox._delivery_timeout_s = 0.2
    broker.refusals = [BufferError("full")] * 1_000
    with pytest.raises(DeliveryFailed, match=r"found no room in the queue within 0\.2 s"):
        outbox.prepare(STATUS)
    broker.refusals = []
    outbox.prepare(STATUS)


def test_the_key_places_what_has_an_order_and_the_rest_takes_turns(outbox: Outbox, broker: Broker) -> None:
    outbox.prepare()
    ticket = Ticket(lambda: None)
    for number in range(6):
        outbox.send(job(number), ticket)
    outbox.send(job(ordered=True), ticket)
    assert Counter(partition for _, _, partition in broker.records[:6]) == {0: 2, 1: 2, 2: 2}
    assert [partition for _, _, partition in broker.records[6:]] == [-1]


def placed(broker: Broker, job_id: str) -> set[int]:
    return {partition for _, key, partition in broker.records if key == job_id.encode()}


async def test_a_job_that_is_scheduled_again_under_its_id_goes_where_the_first_went(broker: Broker) -> None:
    """Only there it is known for a copy. The first may have been sent by any of the ways, and by another process."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    broker.acknowledges = True
    with JobProducer(settings) as producer:
        made = producer.schedule_jobs(Note() for _ in range(10))
        made += [producer.schedule_job(Note()) for _ in range(5)]
        made += [producer.schedule_job(Note(), job_id=str(uuid4())) for _ in range(5)]
    queue = JobQueue(JobProducer(settings), timedelta(seconds=30))
    queue._outbox.prepare()
    made += [await queue.schedule_job(Note()) for _ in range(5)]
    for job_id in made:
        await queue.schedule_job(Note(), job_id=job_id)
    await queue.close()
    with JobProducer(settings) as other:
        for job_id in made:
            other.schedule_job(Note(), JobPriority.HIGH, timedelta(seconds=5), job_id=job_id)
    assert [len(placed(broker, job_id)) for job_id in made] == [1] * 25
    assert {partition for job_id in made for partition in placed(broker, job_id)} == {0, 1, 2}


@pytest.mark.parametrize("wrong", [(Note(), []), (Note(), "high"), (Note(),), (Note(), JobPriority.HIGH, 3)])
def test_what_is_no_pair_of_job_and_priority_is_refused_by_name(broker: Broker, wrong: Any) -> None:
    broker.acknowledges = True
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    with (
        JobProducer(settings) as producer,
        pytest.raises(InvalidJob, match="a pair of a job and a JobPriority"),
    ):
        producer.schedule_jobs([wrong])


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.schedule_job(Note()),
        lambda queue: queue.schedule_jobs([Note()]),
        lambda queue: queue.list_jobs(),
        lambda queue: queue.get_job("x"),
        lambda queue: queue.get_statistics(),
        lambda queue: queue.wait("x"),
        lambda queue: queue.retry_job("x"),
        lambda queue: queue.close(),
    ],
)
async def test_a_queue_of_another_event_loop_refuses_before_anything_is_sent(
    broker: Broker, call: Callable[[JobQueue], Coroutine[Any, Any, Any]]
) -> None:
    """Handed over and then refused, the job would be scheduled a second time by whoever tries again."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    broker.acknowledges = True
    queue = JobQueue(JobProducer(settings), timedelta(seconds=30))
    queue._outbox.prepare()
    with pytest.raises(WrongEventLoop, match="connect a queue in each event loop"):
        await asyncio.to_thread(asyncio.run, call(queue))
    assert broker.records == []
    await queue.schedule_job(Note())
    await queue.close()


def test_a_queue_whose_event_loop_has_ended_can_be_closed_in_another_one(broker: Broker) -> None:
    """A test that has a loop for each of its parts, or a program that lost its first one, would keep threads and connections."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    broker.acknowledges = True

    async def connect() -> JobQueue:
        queue = JobQueue(JobProducer(settings), timedelta(seconds=30))
        queue._outbox.prepare()
        await queue.schedule_job(Note())
        return queue

    queue = asyncio.run(connect())
    asyncio.run(queue.close())
    with pytest.raises(DeliveryFailed, match="closed"):
        queue._outbox.prepare()


def test_many_jobs_of_a_bulk_go_in_runs_to_one_partition(broker: Broker) -> None:
    broker.acknowledges = True
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    with JobProducer(settings) as producer:
        made = producer.schedule_jobs(Note() for _ in range(1024 + 3 * 64))
    partitions = [partition for job_id in made for partition in placed(broker, job_id)]
    assert all(first != second for first, second in pairwise(partitions[:1024]))
    runs = [set(partitions[start : start + 64]) for start in range(1024, len(partitions), 64)]
    assert [len(run) for run in runs] == [1, 1, 1]
    assert set().union(*runs) == {0, 1, 2}


def test_who_has_scheduled_many_learns_which_of_them_are_not_there(broker: Broker) -> None:
    """Else all would be scheduled again, and most would run twice; or none, and some would be lost."""
    broker.acknowledges = True
    broker.errors = {
        3: KafkaError.MSG_SIZE_TOO_LARGE,
        5: KafkaError._PURGE_QUEUE,
    }  # the first record is a schema
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    with JobProducer(settings) as producer, pytest.raises(DeliveryFailed) as failed:
        producer.schedule_jobs(Note() for _ in range(6))
    keys = [key for _, key, _ in broker.records]
    assert [job_id.encode() for job_id in failed.value.sent] == keys[1:], "all, in their order"
    assert failed.value.not_written == (repr(keys[2]),)
    assert failed.value.perhaps_written == (repr(keys[4]),)


def test_a_refusal_amid_many_says_what_went_before_it_and_what_of_that_is_not_there(broker: Broker) -> None:
    broker.acknowledges = True
    broker.errors = {3: KafkaError.MSG_SIZE_TOO_LARGE}
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix)
    with JobProducer(settings) as producer, pytest.raises(InvalidJob) as refused:
        producer.schedule_jobs([Note(), Note(), Note(text=5), Note()])  # type: ignore[arg-type]
    keys = [key for _, key, _ in broker.records]
    assert [job_id.encode() for job_id in refused.value.sent] == keys[1:]
    failed = refused.value.__cause__
    assert isinstance(failed, DeliveryFailed)
    assert failed.not_written == (repr(keys[2]),)


def test_a_schema_is_acknowledged_before_the_first_job_and_sent_once(outbox: Outbox, broker: Broker) -> None:
    assert not outbox.ready_for(STATUS)
    outbox.prepare(STATUS)
    assert outbox.ready_for(STATUS)
    outbox.prepare(STATUS)
    assert [topic for topic, _, _ in broker.records] == [TOPICS.schemas]
    assert broker.counted == 1, "counts are trusted for a while"


def test_a_schema_that_is_not_acknowledged_is_sent_again_and_no_job_before_it(
    outbox: Outbox, broker: Broker
) -> None:
    broker.schema_error = KafkaError._MSG_TIMED_OUT
    with pytest.raises(DeliveryFailed, match="so no job was sent"):
        outbox.prepare(STATUS)
    assert not outbox.ready_for(STATUS)
    broker.schema_error = None
    outbox.prepare(STATUS)
    assert len(broker.records) == 2


def test_a_partition_that_is_gone_makes_it_count_again(outbox: Outbox, broker: Broker) -> None:
    outbox.prepare()
    broker.refusals = [KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))]
    with pytest.raises(DeliveryFailed, match="nothing was sent"):
        outbox.send(job(), Ticket(lambda: None))
    outbox.prepare()
    assert broker.counted == 2


def test_a_fatal_error_costs_the_producer_and_no_report(outbox: Outbox, broker: Broker) -> None:
    """What is in flight learns its fate from the old one; what comes next goes through a new one."""
    before, after = Waited(), Waited()
    outbox.send(job(1), before.ticket)
    before.seal(1)
    broken = broker.producers[0]
    broken.break_down()
    outbox.serve()
    eventually(lambda: outbox._broken, 5, "the serving thread has heard of it")
    outbox.send(job(2), after.ticket)
    after.seal(1)
    assert len(broker.producers) == 2
    outbox.serve()
    broken.report(KafkaError._FATAL)
    broker.producers[1].report()
    assert before.finished()
    assert after.finished()
    assert (len(before.ticket.unacknowledged), len(after.ticket.unacknowledged)) == (1, 0)


def test_a_fatal_error_while_a_schema_is_published_stops_nobody(outbox: Outbox, broker: Broker) -> None:
    """Who publishes holds the lock until the report is there, and both come through the same thread."""
    waited = Waited()
    outbox.send(job(), waited.ticket)
    waited.seal(1)
    broken = broker.producers[0]
    with outbox._lock:
        broken.break_down()
        outbox.serve()
        eventually(lambda: outbox._broken, 5, "the serving thread has heard of it")
        broken.report()
        assert waited.finished()
    outbox.producer()
    assert len(broker.producers) == 2


def test_a_fatal_error_is_nobodys_exception(outbox: Outbox, broker: Broker) -> None:
    """Whoever looks for news meets it: a caller that asks whether it may send, or a bulk that waits for reports."""
    outbox.prepare()
    looks: list[Callable[[], object]] = [outbox._look, partial(outbox.ready_for, STATUS), outbox.prepare]
    for number, look in enumerate(looks, start=1):
        broker.producers[-1].break_down()
        look()
        outbox.prepare()
        assert len(broker.producers) == number + 1
    with outbox.bulk() as serve:
        broker.producers[-1].break_down()
        serve(0)
    outbox.prepare()
    assert len(broker.producers) == 5


def test_an_old_producers_fatal_error_does_not_cost_the_new_one(outbox: Outbox, broker: Broker) -> None:
    waited = Waited()
    outbox.send(job(), waited.ticket)
    waited.seal(1)
    old = broker.producers[0]
    outbox._broken = True
    outbox.prepare()
    old.break_down()
    outbox.serve()
    old.report()
    assert waited.finished()
    outbox.send(job(2), Ticket(lambda: None))
    assert len(broker.producers) == 2


def time_out(outbox: Outbox, producer: FakeProducer, ticket: Waited) -> None:
    ticket.seal(1)
    outbox.serve()
    producer.report(KafkaError._MSG_TIMED_OUT)
    assert ticket.finished()
    outbox.doubt(ticket.ticket)


def test_a_producer_that_hears_nothing_is_replaced_before_the_next_call(
    outbox: Outbox, broker: Broker
) -> None:
    outbox.prepare()
    lost, also_lost, after = Waited(), Waited(), Waited()
    for number, waited in enumerate((lost, also_lost)):
        outbox.send(job(number), waited.ticket)
    deaf = broker.producers[0]
    time_out(outbox, deaf, lost)
    outbox.prepare()
    assert len(broker.producers) == 2
    time_out(outbox, deaf, also_lost)
    outbox.prepare()
    assert len(broker.producers) == 2, "it was sent through the old one"
    outbox.send(job(3), after.ticket)
    after.seal(1)
    outbox.serve()
    broker.producers[1].report()
    assert after.finished()
    assert not after.ticket.unacknowledged


def test_jobs_that_nobody_waited_for_show_it_as_well(broker: Broker) -> None:
    producer = JobProducer(load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix))
    producer.schedule_job(Note(text="lost"), wait=False)
    broker.producers[0].report(KafkaError._MSG_TIMED_OUT)
    with pytest.raises(DeliveryFailed):
        producer.flush()
    producer.schedule_job(Note(text="sent"), wait=False)
    assert len(broker.producers) == 2
    broker.producers[1].report()
    producer.close()


def test_whoever_finds_no_broker_is_replaced_before_it_is_said_again(outbox: Outbox, broker: Broker) -> None:
    broker.away = True
    for made in (1, 2, 3):
        with pytest.raises(KafkaUnreachable):
            outbox.prepare()
        assert len(broker.producers) == made
    broker.away = False
    outbox.prepare()
    outbox.prepare()
    assert len(broker.producers) == 4


def test_a_record_that_is_refused_costs_no_producer(outbox: Outbox, broker: Broker) -> None:
    outbox.prepare()
    refused = Waited()
    outbox.send(job(), refused.ticket)
    refused.seal(1)
    outbox.serve()
    broker.producers[0].report(KafkaError.INVALID_RECORD)
    assert refused.finished()
    outbox.doubt(refused.ticket)
    outbox.prepare()
    assert len(broker.producers) == 1


def test_an_ordinary_error_changes_nothing(outbox: Outbox, broker: Broker) -> None:
    outbox.prepare()
    broker.producers[0].on_error(KafkaError(KafkaError._TRANSPORT))
    outbox.prepare()
    outbox.send(job(), Ticket(lambda: None))
    assert (len(broker.producers), broker.counted) == (1, 1)


def test_after_the_loss_of_all_brokers_it_asks_before_it_sends_but_not_in_the_middle_of_a_call(
    outbox: Outbox, broker: Broker
) -> None:
    outbox.prepare()
    broker.producers[0].on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    broker.away = True
    outbox.prepare(under_way=True)
    for _ in range(2):
        with pytest.raises(KafkaUnreachable):
            outbox.prepare()
    broker.away = False
    outbox.prepare()
    outbox.prepare()
    assert broker.counted == 4, "once it has answered, it is trusted again"


def test_closing_waits_for_what_is_on_its_way(broker: Broker) -> None:
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix))
    ticket = Ticket(lambda: None)
    outbox.send(job(), ticket)
    ticket.seal(1)
    broker.producers[0].report()
    outbox.close(60)
    assert (ticket.finished, len(ticket.unacknowledged)) == (True, 0)
    with pytest.raises(DeliveryFailed, match="closed"):
        outbox.send(job(), ticket)


def test_closing_gives_up_in_the_end_and_says_what_is_not_acknowledged(broker: Broker) -> None:
    outbox = Outbox(load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix))
    ticket = Ticket(lambda: None)
    outbox.send(job(), ticket)
    ticket.seal(1)
    outbox.close(0)
    assert ticket.finished
    assert "perhaps written" in str(ticket.unacknowledged.error()), (
        "its broker may have it, and have died before it said so"
    )


def test_a_job_that_could_not_be_handed_over_does_not_keep_whoever_flushes_waiting(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the last one, and no report will ever come of it."""
    producer = JobProducer(load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix=TOPICS.prefix))
    handing_over, flushing = threading.Event(), threading.Event()

    def fails(*_: object) -> None:
        handing_over.set()
        assert flushing.wait(20)
        raise DeliveryFailed("the queue stayed full")

    monkeypatch.setattr(producer, "_send", fails)

    def schedule() -> None:
        with pytest.raises(DeliveryFailed):
            producer.schedule_job(Note(), wait=False)

    def flush() -> None:
        producer.flush()

    other = threading.Thread(target=schedule)
    other.start()
    assert handing_over.wait(20)
    waiting = threading.Thread(target=flush, daemon=True)
    waiting.start()
    eventually(lambda: bool(producer._settled._waiters), 20, "it waits")  # type: ignore[attr-defined]
    flushing.set()
    other.join(20)
    waiting.join(20)
    assert not waiting.is_alive()
