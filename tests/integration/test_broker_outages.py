"""A broker that is new, and one that dies and comes back: what provisioning and producers make of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from schemas.errors import KafkaUnreachable, NoBroker
from schemas.jobtype import job_type
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.embedded.properties import Node
from streams.embedded.state import free_port
from streams.producer import JobProducer
from streams.provision import ProvisionReport, provision
from streams.queue import JobQueue
from streams.settings import Settings
from tests.support.deployments import Sample, count_all, settings_for
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.distributed, pytest.mark.thorough]

#: Longer than a reconnect takes on a busy machine.
PATIENCE = timedelta(seconds=3)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """One that has never run: no group and no transaction has a coordinator yet."""
    with (
        memory_directory(tmp_path / "kafka") as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512)) as broker,
    ):
        yield broker


@pytest.fixture
def settings(broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    return settings_for(broker.bootstrap_servers, "new.", tmp_path)


def kill(broker: EmbeddedBroker) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    eventually(lambda: not broker.alive, 10, "the broker is dead")


def bring_back(broker: EmbeddedBroker) -> None:
    broker.stop()  # it holds its directory until it is told
    broker.start()


def knows_of_the_loss(producer: JobProducer) -> None:
    eventually(
        lambda: not producer.outbox.ready_for(job_type(Sample).wire), 20, "the producer knows of the loss"
    )


def refusal_of(producer: JobProducer) -> type[Exception]:
    with pytest.raises(KafkaUnreachable) as refused:
        producer.schedule_job(Sample())
    return type(refused.value)


def has_given_up(producer: JobProducer) -> bool:
    """Looks for news of it: librdkafka tells whoever looks."""
    return not producer.outbox.ready_for(job_type(Sample).wire) and producer.outbox._broken


def together(count: int, call: Callable[[], object]) -> list[object]:
    """What so many threads got, results or errors, that started at once."""
    outcomes: list[object] = []
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait()
        try:
            outcomes.append(call())
        except Exception as error:  # noqa: BLE001 - compared by the test
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return outcomes


def test_a_new_cluster_is_set_up_by_whoever_comes_first(settings: Settings) -> None:
    """Coordinators are still loading, and move from "not me" to "here"; nobody hangs, nobody crashes."""
    reports = together(3, lambda: provision(settings))
    initialised = [report.group_initialised for report in reports if isinstance(report, ProvisionReport)]
    assert sorted(initialised) == [False, False, True], reports


def test_threads_learn_of_a_lost_broker_before_they_send_and_go_on_when_it_is_back(
    broker: EmbeddedBroker, settings: Settings
) -> None:
    provision(settings)
    with JobProducer(settings, unreachable_after=PATIENCE) as producer:
        producer.schedule_job(Sample())
        kill(broker)
        knows_of_the_loss(producer)
        began = time.monotonic()
        outcomes = together(12, lambda: producer.schedule_job(Sample()))
        assert [type(outcome) for outcome in outcomes] == [KafkaUnreachable] * 12
        # In turn they would take thirty-six.
        assert time.monotonic() - began < 12
        bring_back(broker)
        producer.schedule_job(Sample())
    assert count_all(settings) == 2, "what was refused was not sent later"


def test_who_answers_in_a_brokers_place_is_no_broker_and_ends_no_producer(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path
) -> None:
    """A controller has taken the port. librdkafka gives up for good when it hears one; whoever asks later finds Kafka again."""
    provision(settings)
    port = broker.port
    with JobProducer(settings, unreachable_after=PATIENCE) as producer:
        producer.schedule_job(Sample())
        kill(broker)
        broker.stop()
        with (
            memory_directory(tmp_path / "other") as directory,
            EmbeddedBroker(
                BrokerConfig(directory, heap_mb=512, nodes=(Node(1, free_port(), controller_port=port),))
            ),
        ):
            outcomes = [refusal_of(producer)]  # of the one that has known Kafka
            for _ in range(3):
                outcomes.append(refusal_of(producer))  # of a new one
                eventually(
                    partial(has_given_up, producer), 20, "it has met the controller, and given up for good"
                )
            assert NoBroker in outcomes
        broker.config = replace(broker.config, port=port)
        broker.start()
        producer.schedule_job(Sample())
    assert count_all(settings) == 2, "what was refused was not sent later"


async def test_tasks_learn_of_a_lost_broker_together_and_leave_the_loop_its_threads(
    broker: EmbeddedBroker, settings: Settings
) -> None:
    await asyncio.to_thread(provision, settings)
    async with JobQueue.connect(settings, unreachable_after=PATIENCE) as queue:
        await queue.schedule_job(Sample())
        await asyncio.to_thread(kill, broker)
        await asyncio.to_thread(knows_of_the_loss, queue._producer)
        waiting = asyncio.gather(*(queue.schedule_job(Sample()) for _ in range(200)), return_exceptions=True)
        await asyncio.wait_for(asyncio.to_thread(int), 2)
        outcomes = await asyncio.wait_for(waiting, 12)
        assert {type(outcome) for outcome in outcomes} == {KafkaUnreachable}
        await asyncio.to_thread(bring_back, broker)
        await queue.schedule_job(Sample())
    assert await asyncio.to_thread(count_all, settings) == 2
