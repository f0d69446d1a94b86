"""A worker leaves while its last commit cannot be written: its last report says that nothing ran any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import JobStatus
from streams.producer import JobProducer
from streams.provision import provision
from tests.support.audit import audit
from tests.support.deployments import settings_for
from tests.support.jobs import Waits
from tests.support.kafka_proxy import END_TXN, Action, KafkaProxy, Request
from tests.support.proxied import proxied_broker
from tests.support.waiting import eventually
from tests.support.workers import NO_SANDBOX, all_final, runs, workers

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaProxy]:
    with proxied_broker(tmp_path_factory.mktemp("silent")) as proxy:
        yield proxy


def no_commits(request: Request) -> Action:
    return Action.SWALLOW if request.api == END_TXN else Action.PASS


@pytest.mark.timeout(300)
def test_a_job_that_ran_alone_in_a_worker_that_left_without_a_last_commit_is_no_killer(
    proxy: KafkaProxy, tmp_path: Path
) -> None:
    """Another process has its worker's name by then, as in each rolling restart; else that alone would condemn the job."""
    settings, go = settings_for(proxy, "words.", tmp_path), tmp_path / "go"
    provision(settings)
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        (job_id,) = producer.schedule_jobs([Waits(until=str(go), limit_s=300)])

        def runs_of(worker: str) -> int:
            return sum((run["what"], run["worker"]) == ("started", worker) for run in runs(tmp_path))

        for name in ("first", "second"):
            victim = start(name, **NO_SANDBOX)
            eventually(lambda: runs_of(f"{name}.0"), 60, "the job runs")  # noqa: B023 - called in its round
            victim.kill()
        leaver = start("leaver", RUSTFS_WORKERS_DRAIN_TIMEOUT_S="1", **NO_SANDBOX)
        eventually(lambda: runs_of("leaver.0"), 60, "the job runs alone")
        proxy.on_request = no_commits
        leaver.terminate()
        proxy.pass_everything()
        again = start("leaver", **NO_SANDBOX)
        eventually(lambda: runs_of("leaver.0") == 2, 90, "the job runs again")
        (assigned,) = [e for e in again.events() if e["event"] == "partitions assigned"][-1:]
        assert assigned["left_unclean_by"], "its last commit was not written"
        go.touch()
        assert all_final(settings, [job_id], 60) == {job_id: JobStatus.SUCCEEDED}
        assert audit(settings, [job_id]).forked == []
