"""How a transaction that Kafka has forgotten is ended: as the coordinator's log says, each partition its own way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from schemas.errors import KafkaUnreachable
from streams.clients import KafkaRefused
from streams.settings import load_settings
from streams.transaction_log import Entry, Step, TransactionLogUnreadable
from workers import blocking
from workers.committing import forgotten
from workers.committing.forgotten import ForgottenTransactions

pytestmark = pytest.mark.worker_coordination

SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="t.")
STATUS, RETRY, OFFSETS = ("t.jobs.status", 0), ("t.jobs.retry.1s", 1), ("__consumer_offsets", 9)
NAME = "t.worker.dead"


def entry(step: Step, *places: tuple[str, int], age_s: float = 60.0, timeout_s: float = 5.0) -> Entry:
    at_ms = round((time.time() - age_s) * 1000)
    return Entry(1, 0, step, frozenset(places), at_ms, round(timeout_s * 1000))


COMMITTED = [
    entry(Step.EMPTY),
    entry(Step.ONGOING, STATUS, OFFSETS),
    entry(Step.PREPARE_COMMIT, STATUS, OFFSETS),
    entry(Step.COMPLETE_COMMIT),
]


class Kafka:
    """The log is laid down, as it is before and after the id was taken over; what is ended is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Entry] | Exception = []
        self.added: list[Entry] = [entry(Step.EMPTY, age_s=0.0)]
        self.fault: Exception | None = None
        self.taken = 0
        self.unwilling = ""
        self.ended: list[tuple[bool, list[tuple[str, int]], str | None]] = []
        monkeypatch.setattr(forgotten, "read_entries", self._read)
        monkeypatch.setattr(forgotten, "taken_over", self._take)
        self.others: dict[str, list[Entry]] = {}
        monkeypatch.setattr(forgotten, "read_all_entries", self._read_all)

    def _read(self, settings: Any, transactional_id: str, *, timeout_s: float) -> list[Entry]:
        if transactional_id in self.others:
            return self.others[transactional_id]
        assert transactional_id == NAME
        if isinstance(self.log, Exception):
            raise self.log
        return [*self.log, *self.added] if self.taken else self.log

    def _read_all(self, settings: Any, prefix: str, *, timeout_s: float) -> dict[str, list[Entry]]:
        assert prefix == "t."
        assert isinstance(self.log, list)
        return {**self.others, NAME: self.log}

    @contextlib.asynccontextmanager
    async def _take(self, settings: Any, transactional_id: str, *, timeout_s: float) -> AsyncIterator[Kafka]:
        if transactional_id == self.unwilling:
            raise KafkaRefused("it is somebody else's")
        assert transactional_id in {NAME, "t.dlq-redrive"}
        self.taken += 1
        yield self

    def end_now(self) -> None:
        ForgottenTransactions(SETTINGS, lambda: 2).end(NAME)

    async def end(self, partitions: Any, *, group: str | None, commit: bool) -> None:
        if self.fault is not None:
            raise self.fault
        if partitions or group:
            self.ended.append((commit, list(partitions), group))


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


def test_what_was_committed_is_committed(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.end_now()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


def test_what_was_aborted_is_aborted(kafka: Kafka) -> None:
    kafka.log = [entry(Step.PREPARE_ABORT, STATUS, OFFSETS), entry(Step.COMPLETE_ABORT)]
    kafka.end_now()
    assert kafka.ended == [(False, [STATUS], SETTINGS.topics.group)]


def test_each_partition_gets_the_end_of_its_own_last_transaction(kafka: Kafka) -> None:
    kafka.log = [*COMMITTED, entry(Step.PREPARE_ABORT, RETRY), entry(Step.COMPLETE_ABORT)]
    kafka.end_now()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group), (False, [RETRY], None)]


def test_who_has_never_written_anything_is_left_alone(kafka: Kafka) -> None:
    kafka.end_now()
    assert kafka.ended == []


@pytest.mark.parametrize(("last", "commit"), [(Step.COMPLETE_COMMIT, True), (Step.COMPLETE_ABORT, False)])
def test_where_compaction_has_left_the_last_step_alone_it_speaks_for_every_partition(
    kafka: Kafka, last: Step, *, commit: bool
) -> None:
    kafka.log = [entry(last)]
    kafka.end_now()
    ((ended, partitions, group),) = kafka.ended
    assert (ended, group) == (commit, SETTINGS.topics.group)
    topics = SETTINGS.topics
    written = (*topics.consumed, topics.dlq, topics.status)
    everything = [(topic, number) for topic in written for number in range(2)]
    assert partitions == sorted([*everything, (topics.schemas, 0)])


def test_where_the_log_cannot_be_read_everything_is_aborted(kafka: Kafka) -> None:
    """Nobody could ever work on otherwise."""
    kafka.log = TransactionLogUnreadable("not yours to read")
    kafka.end_now()
    ((commit, partitions, group),) = kafka.ended
    assert (commit, group) == (False, SETTINGS.topics.group)
    assert {STATUS, RETRY} < set(partitions)


@pytest.mark.parametrize("age_s", [1.0, -1.0], ids=["", "by a clock that is behind"])
def test_a_transaction_that_has_just_begun_is_left_to_whoever_began_it(kafka: Kafka, age_s: float) -> None:
    """Another heir's, on its way to end the same: taking its id would abort that."""
    kafka.log = [*COMMITTED, entry(Step.ONGOING, STATUS, OFFSETS, age_s=age_s)]
    kafka.end_now()
    assert (kafka.taken, kafka.ended) == (0, [])


def test_what_taking_the_id_over_has_aborted_stays_aborted(kafka: Kafka) -> None:
    """Its own last transaction was open: Kafka has decided that only now, and not as the log said before."""
    kafka.log = [*COMMITTED, entry(Step.ONGOING, RETRY, OFFSETS, age_s=60)]
    kafka.added = [entry(Step.PREPARE_ABORT, RETRY, OFFSETS), entry(Step.COMPLETE_ABORT), entry(Step.EMPTY)]
    kafka.end_now()
    assert kafka.ended == [(True, [STATUS], None), (False, [RETRY], SETTINGS.topics.group)]


def test_where_nothing_is_left_of_what_it_did_nothing_is_done(kafka: Kafka) -> None:
    kafka.log = [
        Entry(0, 0, Step.COMPLETE_COMMIT, frozenset(), 0)
    ]  # of a producer id that nobody can end any more
    kafka.end_now()
    assert kafka.ended == []


def test_a_log_that_cannot_be_read_now_decides_nothing(kafka: Kafka) -> None:
    kafka.log = KafkaUnreachable("127.0.0.1:1", 24.0)
    with pytest.raises(KafkaUnreachable):
        kafka.end_now()
    assert (kafka.taken, kafka.ended) == (0, [])


def test_one_that_began_long_ago_is_nobodys_any_more(kafka: Kafka) -> None:
    kafka.log = [*COMMITTED, entry(Step.ONGOING, STATUS, age_s=7.0)]
    kafka.end_now()
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


def test_what_could_not_be_ended_is_said(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.fault = KafkaUnreachable("127.0.0.1:1", 10.0)
    with pytest.raises(KafkaUnreachable):
        kafka.end_now()


# --- what hangs elsewhere -------------------------------------------------------------------------------------------


def end_where(*places: tuple[str, int]) -> bool:
    return ForgottenTransactions(SETTINGS, lambda: 2).end_where(set(places))


def test_who_wrote_what_hangs_is_found_in_the_log(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.others = {"t.worker.other": [entry(Step.PREPARE_COMMIT, RETRY), entry(Step.COMPLETE_COMMIT)]}
    assert end_where(STATUS)
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)], "and nobody else is asked for his id"


def test_one_author_who_cannot_be_ended_keeps_nobody_from_ending_the_others(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.others = {"t.worker.other": [entry(Step.PREPARE_COMMIT, STATUS), entry(Step.COMPLETE_COMMIT)]}
    kafka.unwilling = "t.worker.other"
    assert not end_where(STATUS), "to be tried again"
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


def test_what_hangs_and_is_nobodys_is_left_alone(kafka: Kafka) -> None:
    """A user's own producer may take its time."""
    kafka.log = COMMITTED
    assert end_where(RETRY)
    assert (kafka.taken, kafka.ended) == (0, [])


def test_a_redrive_that_kafka_has_forgotten_is_ended_as_well(kafka: Kafka) -> None:
    """Every reader of jobs would stand before it, for ever."""
    kafka.others = {
        "t.dlq-redrive": [entry(Step.PREPARE_COMMIT, RETRY), entry(Step.COMPLETE_COMMIT)],
        "t.other.worker.w": [entry(Step.PREPARE_COMMIT, RETRY)],  # of the deployment "t.other."
    }
    assert end_where(RETRY)
    assert kafka.ended == [(True, [RETRY], None)]


def test_whoever_has_written_offsets_is_known(kafka: Kafka) -> None:
    kafka.log = COMMITTED
    kafka.others = {
        "t.provision": [entry(Step.PREPARE_COMMIT, OFFSETS, age_s=5)],
        "t.worker.forwards": [entry(Step.PREPARE_COMMIT, RETRY)],
        "t.other.worker.w": [entry(Step.PREPARE_COMMIT, OFFSETS)],
    }
    assert ForgottenTransactions(SETTINGS, lambda: 2).who_wrote_offsets() == ["t.provision", NAME]


@pytest.mark.parametrize(
    ("places", "timeout_s"), [([STATUS], 5.0), ([], 60.0)], ids=["its author lives", "somebody ends it"]
)
def test_an_open_transaction_that_will_end_it_is_waited_for(
    kafka: Kafka, places: list[tuple[str, int]], timeout_s: float
) -> None:
    kafka.log = [*COMMITTED, entry(Step.ONGOING, *places, age_s=0.5, timeout_s=timeout_s)]
    assert not end_where(STATUS)
    assert (kafka.taken, kafka.ended) == (0, [])


def test_an_author_who_is_busy_elsewhere_does_not_end_it_by_himself(kafka: Kafka) -> None:
    kafka.log = [*COMMITTED, entry(Step.ONGOING, RETRY, age_s=0.5)]
    assert end_where(STATUS)
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]


async def test_where_all_threads_of_the_worker_end_something_none_waits_for_another(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waited for a thread of the same pool: nothing of the worker's ran in a thread any more, not even its drain."""
    kafka.log = COMMITTED
    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(blocking, "_threads", threads)
        await asyncio.wait_for(blocking.in_thread(kafka.end_now), 30)
    assert kafka.ended == [(True, [STATUS], SETTINGS.topics.group)]
