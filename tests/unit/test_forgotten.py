"""How a transaction that Kafka has forgotten is ended: as the coordinator's log says, each partition its own way."""

from __future__ import annotations

import time
from typing import Any

import pytest

from schemas.errors import KafkaUnreachable
from streams.settings import load_settings
from streams.transaction_log import Entry, Step, TransactionLogUnreadable
from workers import forgotten
from workers.forgotten import ForgottenTransactions

pytestmark = pytest.mark.worker_coordination

SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="t.")
STATUS, RETRY, OFFSETS = ("t.jobs.status", 0), ("t.jobs.retry.1s", 1), ("__consumer_offsets", 9)
NAME = "t.worker.dead"


def entry(step: Step, *places: tuple[str, int], age_s: float = 60.0) -> Entry:
    return Entry(1, 0, step, frozenset(places), round((time.time() - age_s) * 1000))


COMMITTED = [
    entry(Step.EMPTY),
    entry(Step.ONGOING, STATUS, OFFSETS),
    entry(Step.PREPARE_COMMIT, STATUS, OFFSETS),
    entry(Step.COMPLETE_COMMIT),
]


class Kafka:
    """The log is laid down; what is ended is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Entry] | Exception = []
        self.fault: Exception | None = None
        self.ended: list[tuple[bool, list[tuple[str, int]], str | None]] = []
        monkeypatch.setattr(forgotten, "read_entries", self._read)
        monkeypatch.setattr(forgotten, "end_empty_transaction", self._end)

    def _read(self, settings: Any, transactional_id: str, *, timeout_s: float) -> list[Entry]:
        assert transactional_id == NAME
        if isinstance(self.log, Exception):
            raise self.log
        return self.log

    async def _end(
        self,
        settings: Any,
        transactional_id: str,
        partitions: Any,
        *,
        group: str | None,
        commit: bool,
        **_: Any,
    ) -> None:
        assert transactional_id == NAME
        if self.fault is not None:
            raise self.fault
        self.ended.append((commit, list(partitions), group))

    def end(self) -> None:
        ForgottenTransactions(SETTINGS, lambda: 2).end(NAME)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


def test_what_was_committed_is_committed(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.end()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


def test_what_was_aborted_is_aborted(kafka: Kafka) -> None:
    kafka.log = [entry(Step.PREPARE_ABORT, STATUS, OFFSETS), entry(Step.COMPLETE_ABORT)]
    kafka.end()
    assert kafka.ended == [(False, [STATUS], SETTINGS.topics.group)]


def test_each_partition_gets_the_end_of_its_own_last_transaction(kafka: Kafka) -> None:
    kafka.log = [*COMMITTED, entry(Step.PREPARE_ABORT, RETRY), entry(Step.COMPLETE_ABORT)]
    kafka.end()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group), (False, [RETRY], None)]


def test_who_has_never_written_anything_is_left_alone(kafka: Kafka) -> None:
    kafka.end()
    assert kafka.ended == []


@pytest.mark.parametrize(("last", "commit"), [(Step.COMPLETE_COMMIT, True), (Step.COMPLETE_ABORT, False)])
def test_where_compaction_has_left_the_last_step_alone_it_speaks_for_every_partition(
    kafka: Kafka, last: Step, *, commit: bool
) -> None:
    kafka.log = [entry(last)]
    kafka.end()
    ((ended, partitions, group),) = kafka.ended
    assert (ended, group) == (commit, SETTINGS.topics.group)
    topics = SETTINGS.topics
    assert partitions == sorted(
        (topic, number) for topic in (*topics.consumed, topics.dlq, topics.status) for number in range(2)
    )


def test_where_the_log_cannot_be_read_everything_is_aborted(kafka: Kafka) -> None:
    """Then jobs run twice, where a commit could have lost them."""
    kafka.log = TransactionLogUnreadable("not yours to read")
    kafka.end()
    ((commit, partitions, group),) = kafka.ended
    assert (commit, group) == (False, SETTINGS.topics.group)
    assert {STATUS, RETRY} < set(partitions)


def test_a_transaction_that_has_just_begun_is_left_to_whoever_began_it(kafka: Kafka) -> None:
    """Another heir's, on its way to end the same: taking its id would abort that."""
    kafka.log = [*COMMITTED, entry(Step.ONGOING, STATUS, OFFSETS, age_s=1.0)]
    kafka.end()
    assert kafka.ended == []


def test_one_that_began_long_ago_is_nobodys_any_more(kafka: Kafka) -> None:
    kafka.log = [*COMMITTED, entry(Step.ONGOING, STATUS, age_s=7.0)]
    kafka.end()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


def test_what_could_not_be_ended_is_said(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.fault = KafkaUnreachable("127.0.0.1:1", 10.0)
    with pytest.raises(KafkaUnreachable):
        kafka.end()
