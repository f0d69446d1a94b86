"""The group's coordinator tells of a change of partitions once. A proxy loses that answer; the worker must find out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from streams.group_members import describe_member
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import Settings
from tests.support import kafka_proxy
from tests.support.deployments import settings_for
from tests.support.heartbeats import Heartbeat, read_heartbeat
from tests.support.jobs import Note
from tests.support.kafka_proxy import Action, Answer, KafkaProxy
from tests.support.proxied import proxied_broker
from tests.support.waiting import eventually
from tests.support.workers import WorkerUnderTest, all_final, workers

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]

#: Twelve partitions of four priorities and eight retry topics.
ALL = 12 * 12


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[KafkaProxy]:
    with proxied_broker(tmp_path / "kafka") as proxy:
        yield proxy


@pytest.fixture
def settings(proxy: KafkaProxy, tmp_path: Path) -> Settings:
    settings = settings_for(proxy, "lost.", tmp_path / "data", partitions=12)
    provision(settings)
    return settings


@dataclass
class Loser:
    """Loses the first answer that ``choose`` picks, and remembers what all of them said."""

    choose: Callable[[Heartbeat, bool], bool]
    lost: list[Heartbeat] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)

    def __call__(self, answer: Answer) -> Action:
        if answer.request.api != kafka_proxy.CONSUMER_GROUP_HEARTBEAT:
            return Action.PASS
        heartbeat = read_heartbeat(answer)
        same_epoch = self.epochs.get(heartbeat.member_id) == heartbeat.epoch
        self.epochs[heartbeat.member_id] = heartbeat.epoch
        if not self.lost and len(self.epochs) > 1 and self.choose(heartbeat, same_epoch):
            self.lost.append(heartbeat)
            return Action.SWALLOW
        return Action.PASS


def assigned(worker: WorkerUnderTest) -> set[int]:
    """Partitions that it has according to its log."""
    has: set[int] = set()
    for line in worker.events():
        if line.get("event") == "partitions assigned":
            has |= set(line["partitions"])
        elif line.get("event") in {"partitions released", "partitions lost"}:
            has -= set(line["partitions"])
    return has


def test_a_change_of_partitions_that_got_lost_is_found_out(
    proxy: KafkaProxy, settings: Settings, tmp_path: Path
) -> None:
    """Without the watch the second worker has nothing for five minutes: the first was told only once to give it its half."""
    proxy.on_answer = loser = Loser(lambda answer, same_epoch: same_epoch and 0 < answer.partitions < ALL)
    with workers(settings, tmp_path) as start, JobProducer(settings) as producer:
        one = start("one")
        eventually(lambda: assigned(one) == set(range(12)), 30, "the first worker has everything")
        two = start("two")
        eventually(lambda: loser.lost, 30, "an answer with a change is lost")
        eventually(lambda: len(assigned(one)) == len(assigned(two)) == 6, 60, "each has a half")
        assert assigned(one) | assigned(two) == set(range(12))
        again = (
            "the answer to a heartbeat was lost, and with it a change of partitions: joining the group again"
        )
        assert one.said(again) != two.said(again), "the one that did not hear joins again, the other need not"
        ids = producer.schedule_jobs(Note(text=str(number)) for number in range(100))
        all_final(settings, ids, 30)


def test_the_coordinator_tells_what_it_thinks_of_a_member(
    proxy: KafkaProxy, settings: Settings, tmp_path: Path
) -> None:
    proxy.on_answer = seen = Loser(lambda *_: False)
    group = settings.topics.group
    with workers(settings, tmp_path) as start:
        one = start("one")
        eventually(lambda: assigned(one) == set(range(12)), 30, "the first worker has everything")
        (member_id,) = seen.epochs
        member = asyncio.run(describe_member(settings, group, member_id))
        assert member is not None
        assert len(member.assigned) == ALL
        assert member.assigned == member.target
        assert {number for _, number in member.target} == set(range(12))
        assert asyncio.run(describe_member(settings, group, "nobody")) is None
        assert asyncio.run(describe_member(settings, "no.such.group", member_id)) is None
