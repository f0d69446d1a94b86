"""The network loses the end of a transaction, or its answer, or brings it too late: each outcome stands once all the same.

A proxy between a worker and Kafka does it to the very transaction that carries retries and children.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from schemas import JobStatus
from streams.producer import JobProducer
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from tests.support import kafka_proxy
from tests.support.deployments import settings_for
from tests.support.exactly_once import assert_exactly_once
from tests.support.heartbeats import read_heartbeat
from tests.support.jobs import Fails, Note, Parent
from tests.support.kafka_proxy import Action, Answer, KafkaProxy, Request
from tests.support.proxied import proxied_broker
from tests.support.transaction_requests import (
    error_code,
    numbers_of_offsets,
    offset_error_codes,
    read_end_txn,
)
from tests.support.waiting import eventually
from tests.support.workers import all_final, runs, workers
from workers import WorkerConfig, WorkerManager
from workers.committing import transactions

pytestmark = [pytest.mark.distributed, pytest.mark.integration]

#: What must not pass so that only the part which is named by the key is there.
KEPT_BACK = {
    kafka_proxy.PRODUCE: {
        kafka_proxy.ADD_OFFSETS_TO_TXN,
        kafka_proxy.TXN_OFFSET_COMMIT,
        kafka_proxy.END_TXN,
    },
    kafka_proxy.TXN_OFFSET_COMMIT: {kafka_proxy.PRODUCE, kafka_proxy.END_TXN},
}
LIMIT = timedelta(seconds=40)
#: Two of Kafka's errors: of an old epoch, one of them by its older name.
FENCED_EPOCHS = {47, 90}


@pytest.fixture(scope="module")
def kafka_behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaProxy]:
    with proxied_broker(tmp_path_factory.mktemp("lossy")) as proxy:
        yield proxy


@pytest.fixture
def proxy(kafka_behind_proxy: KafkaProxy) -> Iterator[KafkaProxy]:
    yield kafka_behind_proxy
    kafka_behind_proxy.pass_everything()


@pytest.fixture
def settings(proxy: KafkaProxy, tmp_path: Path) -> Settings:
    settings = settings_for(proxy, f"l-{uuid4().hex[:8]}.", tmp_path)
    provision(settings)
    return settings


def carries_jobs(request: Request) -> bool:
    """Written by a worker for a job topic: retries that are due soon, and children."""
    return (
        request.api == kafka_proxy.PRODUCE
        and b".worker." in request.frame
        and b".jobs.normal" in request.frame
    )


@dataclass
class Loss:
    """Does it to the first commit after retries or children were written."""

    request: Action
    answer: Action
    jobs_seen: bool = False
    chosen: list[Request] = field(default_factory=list)

    def on_request(self, request: Request) -> Action:
        self.jobs_seen |= carries_jobs(request)
        end = read_end_txn(request)
        if end is None or not end.commit or not self.jobs_seen or self.chosen:
            return Action.PASS
        self.chosen.append(request)
        return self.request

    def on_answer(self, answer: Answer) -> Action:
        return self.answer if answer.request in self.chosen else Action.PASS


@pytest.mark.parametrize(
    ("to_kafka", "from_kafka"),
    [
        pytest.param(Action.CUT, Action.PASS, id="connection cut before the commit arrived"),
        pytest.param(Action.PASS, Action.CUT, id="connection cut after it arrived"),
        pytest.param(Action.PASS, Action.SWALLOW, id="answer lost"),
        pytest.param(Action.SWALLOW, Action.PASS, id="commit lost"),
    ],
)
async def test_whether_it_was_committed_is_read_from_kafka_and_only_the_rest_is_written_again(
    proxy: KafkaProxy,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to_kafka: Action,
    from_kafka: Action,
) -> None:
    monkeypatch.setenv("RFW_TEST_LOG", str(tmp_path / "runs.jsonl"))
    monkeypatch.setattr(transactions, "COMMIT_TIMEOUT_S", 2.0)  # nobody answers: no need to wait for ten
    loss = Loss(to_kafka, from_kafka)
    proxy.on_request, proxy.on_answer = loss.on_request, loss.on_answer
    async with JobQueue.connect(settings) as queue:
        ids = [await queue.schedule_job(Fails(times=1)) for _ in range(10)]
        ids += [await queue.schedule_job(Parent(children=2)) for _ in range(5)]
        manager = WorkerManager(WorkerConfig(worker_id="w"), settings).register(Fails, Note, Parent)
        async with manager:
            for job_id in ids:
                assert (await queue.wait(job_id, LIMIT)).status is JobStatus.SUCCEEDED
            events = manager.process.events
        assert len(loss.chosen) == 1
        assert events["ambiguous_commits"] >= 1
        assert "fenced" not in events
    final = assert_exactly_once(settings, ids)
    assert len(final) == 10 + 5 + 5 * 2
    assert set(final.values()) == {JobStatus.SUCCEEDED}
    assert len(runs(tmp_path)) == 10 * 2 + 5 + 5 * 2, "what was committed did not run again"


class Straggler:
    """Keeps the end of a worker's transaction back and breaks its connection, so that librdkafka sends it once more.

    Once ``armed`` it lets one part of the next transaction through and keeps the others back: the straggler's place is
    behind that part. ``after``: records that worker wrote, or the offsets that go with them.
    """

    def __init__(self, worker: str, after: int) -> None:
        self._name = worker.encode()
        self._after = after
        self._with_jobs = False
        self.kept: Request | None = None
        self.is_due = False
        self.armed = False
        self.has_its_place = False

    def on_request(self, request: Request) -> Action:
        if self._name not in request.frame:
            return Action.PASS
        self._with_jobs |= self.is_due and carries_jobs(request)
        if self.armed:
            return Action.SWALLOW if request.api in KEPT_BACK[self._after] else Action.PASS
        if self.kept is None and self._with_jobs and request.api == kafka_proxy.END_TXN:
            self.kept = request
            return Action.CUT
        return Action.PASS

    def on_answer(self, answer: Answer) -> Action:
        request = answer.request
        if self.armed and self._name in request.frame and request.api == self._after:
            self.has_its_place |= self._after == kafka_proxy.TXN_OFFSET_COMMIT or carries_jobs(request)
        return Action.PASS


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(kafka_proxy.PRODUCE, id="between records and their offsets"),
        pytest.param(kafka_proxy.TXN_OFFSET_COMMIT, id="between offsets and their records"),
    ],
)
@pytest.mark.parametrize(
    "idle_losses",
    [
        pytest.param(0, id="the first connection that is lost"),
        pytest.param(2, id="the third one, of which librdkafka says nothing", marks=pytest.mark.thorough),
    ],
)
def test_a_commit_that_comes_late_ends_no_later_transaction(
    proxy: KafkaProxy, settings: Settings, tmp_path: Path, after: int, idle_losses: int
) -> None:
    """Under the same epoch it would commit one part without the other. Who then dies has forked its jobs, or lost them."""
    straggler = Straggler("worker.victim.0", after)
    proxy.on_request, proxy.on_answer = straggler.on_request, straggler.on_answer
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        victim = start("victim")
        ids = []
        for _ in range(idle_losses):
            ids.append(producer.schedule_job(Note()))
            all_final(settings, ids, 40)
            eventually(lambda: proxy.quiet_s(kafka_proxy.END_TXN) > 1.5, 20, "nothing is under way")
            proxy.close_connection_of(kafka_proxy.END_TXN)
        straggler.is_due = True
        ids += producer.schedule_jobs(Fails(times=1) for _ in range(6))
        all_final(settings, ids, 40)
        assert straggler.kept is not None
        straggler.armed = True
        ids += producer.schedule_jobs(Fails(times=1) for _ in range(6))
        eventually(lambda: straggler.has_its_place, 20, "half a transaction is open")
        end = read_end_txn(straggler.kept)
        answer = proxy.deliver_late(straggler.kept)
        victim.kill()
        proxy.pass_everything()
        heir = start("heir")
        all_final(settings, ids, 60)
        assert end is not None
        assert end.commit
        assert error_code(answer) in FENCED_EPOCHS
        assert heir.terminate() == 0
    assert set(assert_exactly_once(settings, ids).values()) == {JobStatus.SUCCEEDED}


@dataclass
class LateOffsets:
    """Keeps back the first offsets that a worker sends of a partition which it has been asked to give up."""

    worker: bytes
    partitions: int
    is_due: bool = False
    member_id: str = ""
    keeps: frozenset[int] | None = None
    kept_back: Request | None = None

    def on_answer(self, answer: Answer) -> Action:
        if answer.request.api == kafka_proxy.CONSUMER_GROUP_HEARTBEAT:
            heartbeat = read_heartbeat(answer)
            self.member_id = (
                self.member_id or heartbeat.member_id
            )  # the worker's, which is alone until it is due
            of_the_worker = heartbeat.member_id == self.member_id
            if self.is_due and of_the_worker and 0 < heartbeat.partitions < self.partitions:
                self.keeps = heartbeat.numbers
        return Action.PASS

    def on_request(self, request: Request) -> Action:
        is_it = request.api == kafka_proxy.TXN_OFFSET_COMMIT and self.worker in request.frame
        if not is_it or self.keeps is None or self.kept_back is not None:
            return Action.PASS
        if numbers_of_offsets(request) <= self.keeps:
            return Action.PASS
        self.kept_back = request
        return Action.SWALLOW


@pytest.mark.thorough
def test_partitions_are_not_given_up_while_offsets_of_them_are_on_the_way(
    proxy: KafkaProxy, settings: Settings, tmp_path: Path
) -> None:
    """For longer than a release may take. A member that is asked for more keeps its epoch: Kafka would take them, late as they are."""
    late = LateOffsets(b"worker.slow.0", settings.partitions * len(settings.topics.consumed))
    proxy.on_request, proxy.on_answer = late.on_request, late.on_answer
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        slow = start("slow")
        ids = producer.schedule_jobs(Note(text=str(number)) for number in range(10))
        all_final(settings, ids, 40)
        late.is_due = True
        heir = start("heir")

        def is_kept_back() -> bool:
            ids.extend(producer.schedule_jobs(Fails(times=1) for _ in range(3)))
            return late.kept_back is not None

        eventually(is_kept_back, 60, "it is asked to give partitions up, and commits", pause_s=0.1)
        eventually(lambda: slow.said("partitions released"), 60, "it has given them up")
        assert late.kept_back is not None
        answer = proxy.deliver_late(late.kept_back)
        said = [line["event"] for line in slow.events()]
        assert said.index("commit without a clear answer") < said.index("partitions released")
        codes = offset_error_codes(answer)
        assert codes, "it had offsets"
        assert codes <= FENCED_EPOCHS, "a new producer was there before that"
        final = all_final(settings, ids, 60)
        assert heir.terminate() == slow.terminate() == 0
    assert set(final.values()) == {JobStatus.SUCCEEDED}
    assert_exactly_once(settings, ids)
