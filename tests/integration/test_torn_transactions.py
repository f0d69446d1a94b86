"""Kafka commits a part of a transaction and aborts the rest: only what is missing is written, and nothing runs again.

So it was seen after kill -9 of the broker that coordinates it, if it is started again before the others have missed it.
Here the markers that it sends then come from the test, and the worker's own request does not arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient

from schemas import JobStatus
from streams.clients import admin_config
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from tests.support import kafka_proxy
from tests.support.deployments import settings_for
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import Fails, Note, Parent
from tests.support.kafka_proxy import Action, KafkaProxy, Request
from tests.support.proxied import proxied_broker
from tests.support.stray_markers import commit_in
from tests.support.transaction_requests import EndTxn, read_end_txn
from tests.support.waiting import eventually
from tests.support.workers import runs
from workers import WorkerConfig, WorkerManager
from workers.committing import transactions

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]

LIMIT = timedelta(seconds=40)
OFFSETS = "__consumer_offsets"
#: Of ten that fail once, four that fail for good, and five with two children each.
JOBS = 10 + 4 + 5 + 5 * 2
RUNS = 10 + JOBS


@pytest.fixture(scope="module")
def kafka_behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaProxy]:
    with proxied_broker(tmp_path_factory.mktemp("torn")) as proxy:
        yield proxy


@pytest.fixture
def settings(kafka_behind_proxy: KafkaProxy, tmp_path: Path) -> Iterator[Settings]:
    settings = settings_for(kafka_behind_proxy, f"t-{uuid4().hex[:8]}.", tmp_path)
    provision(settings)
    yield settings
    kafka_behind_proxy.pass_everything()


@dataclass
class Tear:
    """Does it to the first commit after something was written to a topic with ``wanted`` in its name."""

    proxy: KafkaProxy
    wanted: bytes
    committed: dict[str, int]
    seen: bool = False
    torn: EndTxn | None = None

    def __call__(self, request: Request) -> Action:
        if request.api == kafka_proxy.PRODUCE and b".worker." in request.frame:
            self.seen |= self.wanted in request.frame
        end = read_end_txn(request)
        if end is None or not end.commit or not self.seen or self.torn:
            return Action.PASS
        self.torn = end
        commit_in(self.proxy.broker_port, end, self.committed)
        return Action.SWALLOW


def topics_of(settings: Settings, part: str) -> list[str]:
    topics = settings.topics
    return {
        "statuses": [topics.status],
        "records": [*topics.consumed, topics.dlq],
        "offsets": [OFFSETS],
        "statuses and offsets": [topics.status, OFFSETS],
        "records and offsets": [*topics.consumed, topics.dlq, OFFSETS],
    }[part]


@pytest.mark.parametrize(
    ("part", "written"),
    [
        ("statuses", "jobs.normal"),
        ("records", "jobs.normal"),
        ("offsets", "jobs.normal"),
        ("statuses and offsets", "jobs.dlq"),
        ("records and offsets", "jobs.dlq"),
    ],
)
async def test_the_rest_of_a_torn_transaction_is_written_once(
    kafka_behind_proxy: KafkaProxy,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    written: str,
) -> None:
    monkeypatch.setenv("RFW_TEST_LOG", str(tmp_path / "runs.jsonl"))
    monkeypatch.setattr(transactions, "COMMIT_TIMEOUT_S", 1.0)  # nobody answers: no need to wait for ten
    known = AdminClient(admin_config(settings)).list_topics(timeout=10).topics
    async with JobQueue.connect(settings) as queue:
        ids = [await queue.schedule_job(Fails(times=1)) for _ in range(10)]
        ids += [await queue.schedule_job(Fails(times=9, permanent=True)) for _ in range(4)]
        ids += [await queue.schedule_job(Parent(children=2)) for _ in range(5)]
        tear = Tear(
            kafka_behind_proxy,
            written.encode(),
            {topic: len(known[topic].partitions) for topic in topics_of(settings, part) if topic in known},
        )
        kafka_behind_proxy.on_request = tear
        manager = WorkerManager(WorkerConfig(worker_id="w"), settings).register(Fails, Note, Parent)
        async with manager:
            process = manager.process
            for job_id in ids:
                await queue.wait(job_id, LIMIT)
            # Their ends may be seen before their children, and before the worker knows of it.
            await asyncio.to_thread(
                eventually,
                lambda: len(runs(tmp_path)) >= RUNS and process.events.get("torn_transactions"),
                40,
                "the rest was written, and what it led to has run",
            )
    events = process.events
    assert tear.torn is not None
    assert events["torn_transactions"] == 1
    assert "unverified_commits" not in events
    final = assert_exactly_once(settings, ids)
    assert len(final) == JOBS
    assert sum(state is JobStatus.FAILED for state in final.values()) == 4
    assert len(runs(tmp_path)) == RUNS, "what had ended did not run again"
