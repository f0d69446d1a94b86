"""A worker dies in the middle of a transaction: its heir ends it, and runs again what it had not finished, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import JobStatus
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import Settings
from tests.support import kafka_proxy
from tests.support.deployments import settings_for
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import Fails, Note, Waits
from tests.support.kafka_proxy import Action, KafkaProxy, Request
from tests.support.proxied import proxied_broker
from tests.support.transaction_requests import read_end_txn
from tests.support.waiting import eventually
from tests.support.workers import all_final, runs, workers

pytestmark = [pytest.mark.distributed, pytest.mark.integration]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaProxy]:
    """Before a broker that looks once a minute for transactions that have lasted too long; Kafka's own default is ten seconds."""
    slow = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "60000"}
    with proxied_broker(tmp_path_factory.mktemp("slow"), slow) as proxy:
        yield proxy


@pytest.fixture
def settings(proxy: KafkaProxy, tmp_path: Path) -> Settings:
    settings = settings_for(proxy, "dead.", tmp_path)
    provision(settings)
    return settings


class NoEnd:
    """Keeps a worker's transactions open once they have written jobs; all of it but the end has passed."""

    def __init__(self, worker: str) -> None:
        self._name = worker
        self._with_jobs = False
        self.open = False

    def __call__(self, request: Request) -> Action:
        if request.api == kafka_proxy.PRODUCE and self._name.encode() in request.frame:
            self._with_jobs |= b".jobs.normal" in request.frame
        end = read_end_txn(request)
        if end is None or not self._with_jobs or not end.transactional_id.endswith(self._name):
            return Action.PASS
        self.open = True
        return Action.SWALLOW


def test_the_heir_ends_the_open_transaction_and_runs_what_was_not_finished(
    proxy: KafkaProxy, settings: Settings, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    proxy.on_request = end = NoEnd("worker.victim.0")
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        victim = start("victim")
        # On each partition the lowest one stays unfinished: what is finished behind it stands in the map.
        long = producer.schedule_jobs(Waits(until=str(go)) for _ in range(6))
        done = producer.schedule_jobs(Note(text=str(n)) for n in range(60))
        all_final(settings, done, 40)
        open_ones = producer.schedule_jobs(Fails(times=1) for _ in range(6))
        eventually(lambda: end.open, 30, "a transaction with retries waits for its end")
        victim.kill()
        heir = start("heir")
        eventually(lambda: heir.said("partitions assigned"), 60, "the heir has the partitions")
        go.touch()
        all_final(settings, [*long, *open_ones], 60)
        (assigned,) = [event for event in heir.events() if event["event"] == "partitions assigned"]
        assert heir.said("ended the open transaction of a dead worker")
        # Without it whatever comes behind in that partition waits for the broker's next look, a minute later.
        assert assigned["seconds"] < 20
        assert heir.terminate() == 0
    started = Counter(run["id"] for run in runs(tmp_path) if run["what"] in {"run", "started"})
    assert {job_id: started[job_id] for job_id in done} == dict.fromkeys(done, 1)
    assert {job_id: started[job_id] for job_id in long} == dict.fromkeys(long, 2)
    final = assert_exactly_once(settings, [*long, *done, *open_ones])
    assert set(final.values()) == {JobStatus.SUCCEEDED}
