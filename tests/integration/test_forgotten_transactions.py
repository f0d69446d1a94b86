"""Kafka has decided a transaction and told not everybody: it is brought to the end that was decided, in every partition."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Message

from schemas import JobPriority, JobStatus
from schemas.errors import KafkaUnreachable
from schemas.offsetmap import OffsetMap
from streams import empty_transaction
from streams.committed import committed_offsets
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.producer import JobProducer
from streams.provision import provision
from streams.scan import scan
from streams.settings import Settings
from streams.transaction_log import Step, last_decisions, read_entries
from tests.support.deployments import read_all, settings_for
from tests.support.forgotten import UNVERIFIED, forget
from tests.support.jobs import Note
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually
from tests.support.workers import all_final, runs, workers
from workers.committing import forgotten
from workers.committing.forgotten import ForgottenTransactions

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One that lets a producer write outside of its transaction."""
    with (
        memory_directory(tmp_path_factory.mktemp("forgetful")) as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512, extra=UNVERIFIED)) as broker,
    ):
        yield broker


@pytest.fixture
def deployment(broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    settings = settings_for(broker, f"f-{uuid4().hex[:8]}.", tmp_path)
    provision(settings)
    return settings


def in_status(settings: Settings, *, read_committed: bool) -> list[Message]:
    """What a reader of the status topic gets within a second, complete or not."""
    found: list[Message] = []
    scan(settings, [settings.topics.status], found.append, timeout_s=1, read_committed=read_committed)
    return found


@pytest.mark.parametrize("committed", [True, False])
async def test_the_end_is_the_one_that_was_decided_for_offsets_and_records(
    deployment: Settings, *, committed: bool
) -> None:
    settings, name = deployment, f"{deployment.topic_prefix}worker.dead"
    place = (settings.topics.jobs[JobPriority.LOW], 1)
    before = committed_offsets(settings, settings.topics.group, [place], timeout_s=5)
    given = {place: (7, OffsetMap(7, start_limit=7).metadata())}
    record = (settings.topics.status, 2, b"value")
    await forget(settings, name, given, [record], committed=committed, before={place: before[place]})
    with pytest.raises(KafkaUnreachable):
        committed_offsets(settings, settings.topics.group, [place], timeout_s=1)
    assert len(in_status(settings, read_committed=True)) == int(committed), "the second one is held back"
    assert len(in_status(settings, read_committed=False)) == 2

    await asyncio.to_thread(ForgottenTransactions(settings, lambda: settings.partitions).end, name)

    after = committed_offsets(settings, settings.topics.group, [place], timeout_s=5)
    assert after[place] == (given[place] if committed else before[place])
    assert len(read_all(settings, settings.topics.status)) == (2 if committed else 0)
    assert {message.value() for message in read_all(settings, *settings.topics.consumed)} == set()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("before", ["AddPartitionsToTxnRequest", "EndTxnRequest"])
async def test_an_heir_that_dies_half_way_undoes_the_offsets_so_that_nothing_is_lost(
    deployment: Settings, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Kafka aborts what the dead one had begun, and that is a decision as well: the next heir keeps to it."""
    settings, name = deployment, f"{deployment.topic_prefix}worker.dead"
    place = (settings.topics.jobs[JobPriority.LOW], 1)
    stands = committed_offsets(settings, settings.topics.group, [place], timeout_s=5)
    given = {place: (7, OffsetMap(7, start_limit=7).metadata())}
    await forget(
        settings, name, given, [(settings.topics.status, 2, b"value")], committed=True, before=stands
    )

    def killed(*_: object) -> None:
        raise _Killed

    end = ForgottenTransactions(settings, lambda: settings.partitions).end
    with monkeypatch.context() as patch:
        patch.setattr(empty_transaction, before, killed)
        with pytest.raises(_Killed):
            await asyncio.to_thread(end, name)
    monkeypatch.setattr(forgotten, "_JUST_BEGUN_MS", 0)  # it began long ago
    assert await asyncio.to_thread(end, name)
    assert committed_offsets(settings, settings.topics.group, [place], timeout_s=5) == stands
    # Of its own records the later is visible only where its partition was not part of what was aborted.
    visible = len(read_all(settings, settings.topics.status))
    assert visible == (2 if before == "AddPartitionsToTxnRequest" else 1)


async def test_where_the_log_says_nothing_of_an_id_nothing_is_done(deployment: Settings) -> None:
    assert read_entries(deployment, "nobody", timeout_s=10) == []
    await asyncio.to_thread(ForgottenTransactions(deployment, lambda: deployment.partitions).end, "nobody")
    assert read_entries(deployment, "nobody", timeout_s=10) == []


async def test_the_log_says_what_a_producer_has_done(deployment: Settings) -> None:
    name = f"{deployment.topic_prefix}worker.\N{SNOWMAN}"
    place = (deployment.topics.jobs[JobPriority.LOW], 1)
    stands = committed_offsets(deployment, deployment.topics.group, [place], timeout_s=5)
    await forget(deployment, name, stands, [(deployment.topics.dlq, 0, b"x")], committed=True)
    entries = read_entries(deployment, name, timeout_s=10)
    steps = [entry.step for entry in entries]
    assert steps[0] is Step.EMPTY
    assert steps[-2:] == [Step.PREPARE_COMMIT, Step.COMPLETE_COMMIT]
    decided = last_decisions(entries)
    assert decided.pop((deployment.topics.dlq, 0)) is True
    ((topic, _), commit), *none = decided.items()
    assert (topic, commit, none) == ("__consumer_offsets", True, [])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("committed", [True, False])
def test_an_heir_runs_what_was_not_committed_and_nothing_else(
    deployment: Settings, tmp_path: Path, *, committed: bool
) -> None:
    settings, priority = deployment, JobPriority.NORMAL
    name = f"{settings.topic_prefix}worker.dead"
    places = [(settings.topics.jobs[priority], number) for number in range(settings.partitions)]
    with JobProducer(settings) as producer:
        finished = producer.schedule_jobs(Note(text=str(number)) for number in range(20))
        # A worker's first commit of a partition, before it runs anything: it names itself.
        before = {place: (0, OffsetMap(0, transactional_id=name).metadata()) for place in places}
        held = Counter(
            (message.topic() or "", message.partition() or 0) for message in read_all(settings, places[0][0])
        )
        given = {
            place: (
                held[place],
                OffsetMap(held[place], start_limit=held[place], transactional_id=name).metadata(),
            )
            for place in places
        }
        asyncio.run(forget(settings, name, given, committed=committed, before=before))
        new = producer.schedule_jobs(Note(text=str(number)) for number in range(20))
        with workers(settings, tmp_path) as start:
            heir = start("heir")
            assert set(all_final(settings, new, 90).values()) == {JobStatus.SUCCEEDED}
            assert heir.said("ended whatever Kafka may have forgotten")
            assert heir.terminate() == 0
    expected = new if committed else [*finished, *new]
    assert sorted(run["id"] for run in runs(tmp_path)) == sorted(expected)


@pytest.mark.timeout(180)
def test_what_hangs_in_a_topic_is_noticed_and_ended_though_its_author_is_long_gone(
    deployment: Settings, tmp_path: Path
) -> None:
    """Its offsets are settled, so nobody who takes the partition over meets it; its record would never be read."""
    settings, name = deployment, f"{deployment.topic_prefix}worker.dead"
    record = (settings.topics.jobs[JobPriority.NORMAL], 1, b"nobody can read this")
    with workers(settings, tmp_path) as start:
        worker = start("w")
        eventually(lambda: worker.said("partitions assigned"), 60, "it has joined")
        asyncio.run(forget(settings, name, {}, [record], committed=True))
        dead = eventually(
            lambda: len(read_all(settings, settings.topics.dlq)) == 2, 90, "both are dead letters"
        )
        assert dead
        assert worker.said("a transaction hangs")
        assert worker.terminate() == 0
