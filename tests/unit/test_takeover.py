"""What an heir does until it knows its partitions: ask again, and end what a dead predecessor left open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.errors import GroupNotInitialised, KafkaUnreachable
from schemas.offsetmap import EMPTY_MAP, OffsetMap
from schemas.topics import Partition
from streams.settings import Settings, load_settings
from tests.support.waiting import eventually
from workers.committing.forgotten import ForgottenTransactions
from workers.consuming import takeover
from workers.consuming.takeover import CommittedOffsets

pytestmark = pytest.mark.worker_coordination

PLACES: list[Partition] = [("t.jobs.high", 0), ("t.jobs.low", 0)]
TIER = "t.jobs.retry.1s"
OURS = "t.worker.me.0"


def error(code: int, *, fatal: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "made up", fatal=fatal))


@dataclass
class Answer:
    """A partition as the consumer returns it."""

    place: Partition
    offset: int
    metadata: str | None
    error: KafkaError | None = None

    @property
    def topic(self) -> str:
        return self.place[0]

    @property
    def partition(self) -> int:
        return self.place[1]


class FakeConsumer:
    """Gives the answers that are laid down, one after another; the last one again and again."""

    def __init__(self, *answers: Exception | list[Any]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def committed(self, wanted: list[TopicPartition], timeout: float) -> list[Any]:
        self.asked += 1
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, Exception):
            raise now
        return now


class FakeProducer:
    def __init__(self, transactional_id: str, heir: Heir) -> None:
        self.transactional_id = transactional_id
        self.heir = heir

    def init_transactions(self, timeout_s: float) -> None:
        self.heir.ended.append(self.transactional_id)
        if self.heir.fenced:
            raise error(KafkaError._FENCED)

    def purge(self, *, in_flight: bool) -> None:
        """Nothing is ever under way."""

    def __len__(self) -> int:
        return 0

    def __del__(self) -> None:
        self.heir.ended_in.append(threading.current_thread().name)


class Noted(ForgottenTransactions):
    """Notes for which ids it was asked to end what Kafka has forgotten."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, lambda: 2)
        self.ended: list[str] = []
        self.fault: Exception | None = None
        self.writers: list[str] | Exception = []

    def who_wrote_offsets(self) -> list[str]:
        if isinstance(self.writers, Exception):
            raise self.writers
        return self.writers

    def end(self, transactional_id: str, hanging: set[Partition] | None = None) -> bool:
        self.ended.append(transactional_id)
        if self.fault is not None:
            raise self.fault
        return True


class Heir:
    """A worker that takes over; what the unstable read shows is laid down by transactional id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: list[str] = []
        #: The threads in which producers came to their ends.
        self.ended_in: list[str] = []
        self.fenced = False
        self.owners: dict[Partition, str] = {}
        self.unstable_reads = 0
        self.unreadable: Exception | None = None
        make: Callable[[str], Any] = lambda name: FakeProducer(name, self)  # noqa: E731
        settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="t.")
        self.forgotten = Noted(settings)
        self.offsets = CommittedOffsets(settings, make, own_transactional_id=OURS, forgotten=self.forgotten)
        monkeypatch.setattr(takeover, "committed_offsets", self._read)
        monkeypatch.setattr(takeover, "_PAUSE_S", 0.0)

    def _read(
        self, settings: Any, group: str, wanted: list[Partition], *, timeout_s: float, stable: bool
    ) -> Any:
        assert not stable
        self.unstable_reads += 1
        if self.unreadable is not None:
            raise self.unreadable
        return {
            place: (3, OffsetMap(3, start_limit=3, transactional_id=self.owners.get(place, "")).metadata())
            for place in wanted
        }

    def take(self, consumer: Any) -> dict[Partition, OffsetMap]:
        return self.offsets.for_assignment(consumer, PLACES)


@pytest.fixture
def heir(monkeypatch: pytest.MonkeyPatch) -> Heir:
    return Heir(monkeypatch)


GOOD = [Answer(place, 5 + number, EMPTY_MAP) for number, place in enumerate(PLACES)]
HELD_BACK = [error(KafkaError._TIMED_OUT), error(KafkaError.UNSTABLE_OFFSET_COMMIT)]


def test_offset_and_map_come_from_one_read(heir: Heir) -> None:
    consumer = FakeConsumer(GOOD)
    found = heir.take(consumer)
    assert {place: each.offset for place, each in found.items()} == {PLACES[0]: 5, PLACES[1]: 6}
    assert (consumer.asked, heir.ended) == (1, []), "nobody's transaction is touched without need"


def test_producers_that_took_a_dead_owners_id_end_elsewhere(heir: Heir) -> None:
    """The end of one may take long, and the poll thread's group would wait for it."""
    heir.owners = {PLACES[0]: "t.worker.dead.0"}
    heir.take(FakeConsumer(HELD_BACK[0], GOOD))
    assert heir.ended == ["t.worker.dead.0"]
    eventually(lambda: heir.ended_in == ["end of a producer"], 10, "it ends in a thread of its own")


@pytest.mark.parametrize("held_back", HELD_BACK, ids=str)
def test_a_dead_owners_transaction_is_ended_once_and_the_read_repeated(
    heir: Heir, held_back: Exception
) -> None:
    heir.owners = {PLACES[0]: "t.worker.dead.0", PLACES[1]: "t.worker.dead.1"}
    consumer = FakeConsumer(held_back, held_back, held_back, GOOD)
    assert set(heir.take(consumer)) == set(PLACES)
    assert consumer.asked == 4
    assert sorted(heir.ended) == ["t.worker.dead.0", "t.worker.dead.1"]
    assert heir.forgotten.ended == [], "Kafka has not had the time to end it itself"


def test_its_own_transactional_id_and_that_of_nobody_are_left_alone(heir: Heir) -> None:
    """Our own producer ends what the process before us left open; taking its id here would fence it."""
    heir.owners = {PLACES[0]: OURS}
    heir.take(FakeConsumer(HELD_BACK[0], GOOD))
    assert heir.ended == []


def test_another_heir_may_have_been_quicker(heir: Heir) -> None:
    heir.owners = {PLACES[0]: "t.worker.dead.0"}
    heir.fenced = True
    assert set(heir.take(FakeConsumer(HELD_BACK[0], GOOD))) == set(PLACES)


def test_if_the_maps_cannot_be_had_now_it_goes_on_asking(heir: Heir) -> None:
    heir.unreadable = KafkaUnreachable("127.0.0.1:1", 2.0)
    assert set(heir.take(FakeConsumer(HELD_BACK[0], HELD_BACK[0], GOOD))) == set(PLACES)
    assert heir.unstable_reads == 2


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is held back has been so for too long."""
    monkeypatch.setattr(takeover, "PATIENCE_S", -9.0)


@pytest.mark.usefixtures("at_once")
def test_what_kafka_itself_does_not_end_in_time_is_ended_for_whose_partitions_we_get_and_for_us(
    heir: Heir,
) -> None:
    heir.owners = {PLACES[0]: "t.worker.dead.0", (TIER, 1): "t.worker.alive.0"}
    consumer = FakeConsumer(HELD_BACK[0], HELD_BACK[0], GOOD)
    assert set(heir.take(consumer)) == set(PLACES)
    assert heir.forgotten.ended == ["t.worker.dead.0", OURS]


@pytest.mark.usefixtures("at_once")
def test_if_it_was_none_of_them_everybody_is_suspected(heir: Heir) -> None:
    """Whoever owned any partition may have left it, not just those that we are given."""
    heir.owners = {PLACES[0]: "t.worker.dead.0", (TIER, 1): "t.worker.dead.1"}
    consumer = FakeConsumer(*HELD_BACK * 2, GOOD)
    assert set(heir.take(consumer)) == set(PLACES)
    assert heir.forgotten.ended[2:] == ["t.worker.dead.0", "t.worker.dead.1", OURS]


@pytest.mark.usefixtures("at_once")
def test_one_that_stands_in_no_map_is_suspected_then_as_well(heir: Heir) -> None:
    """A worker that died in its first transaction, or provisioning."""
    heir.owners = {PLACES[0]: "t.worker.dead.0"}
    heir.forgotten.writers = ["t.worker.gone", "t.worker.dead.0", "t.provision"]
    assert set(heir.take(FakeConsumer(*HELD_BACK * 2, GOOD))) == set(PLACES)
    assert heir.forgotten.ended[2:] == ["t.worker.dead.0", OURS, "t.worker.gone", "t.provision"]


@pytest.mark.usefixtures("at_once")
def test_where_nobody_says_who_else_has_written_those_who_are_known_are_asked(heir: Heir) -> None:
    heir.owners = {PLACES[0]: "t.worker.dead.0"}
    heir.forgotten.writers = KafkaUnreachable("127.0.0.1:1", 6.0)
    assert set(heir.take(FakeConsumer(*HELD_BACK * 2, GOOD))) == set(PLACES)
    assert heir.forgotten.ended[2:] == ["t.worker.dead.0", OURS]


@pytest.mark.usefixtures("at_once")
def test_one_that_cannot_be_ended_now_stops_no_other(heir: Heir) -> None:
    heir.owners = {PLACES[0]: "t.worker.dead.0", PLACES[1]: "t.worker.dead.1"}
    heir.forgotten.fault = KafkaUnreachable("127.0.0.1:1", 10.0)
    assert set(heir.take(FakeConsumer(HELD_BACK[0], HELD_BACK[0], GOOD))) == set(PLACES)
    assert heir.forgotten.ended == ["t.worker.dead.0", "t.worker.dead.1", OURS]


@pytest.mark.usefixtures("at_once")
def test_a_coordinator_that_is_away_is_no_sign_of_anything_forgotten(heir: Heir) -> None:
    """It looks the same from here: the read does not come back in time."""
    heir.owners = {PLACES[0]: "t.worker.alive.0"}
    heir.unreadable = KafkaUnreachable("127.0.0.1:1", 2.0)
    assert set(heir.take(FakeConsumer(*HELD_BACK * 3, GOOD))) == set(PLACES)
    assert heir.forgotten.ended == []


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError._TRANSPORT,
    ],
)
def test_a_coordinator_that_moves_is_waited_for_and_costs_nobody_a_producer(heir: Heir, code: int) -> None:
    heir.owners = {PLACES[0]: "t.worker.alive.0"}
    assert set(heir.take(FakeConsumer(error(code), error(code), GOOD))) == set(PLACES)
    assert heir.ended == []


def test_an_error_of_one_partition_is_an_error(heir: Heir) -> None:
    """It comes with no offset, which must not be taken for one that has expired."""
    partly = [GOOD[0], Answer(PLACES[1], -1001, None, KafkaError(KafkaError.NOT_COORDINATOR))]
    found = heir.take(FakeConsumer(partly, GOOD))
    assert found[PLACES[1]].offset == 6


@pytest.mark.parametrize(
    "final", [error(KafkaError.GROUP_AUTHORIZATION_FAILED), error(KafkaError._FATAL, fatal=True)]
)
def test_what_waiting_does_not_change_is_raised(heir: Heir, final: Exception) -> None:
    with pytest.raises(KafkaException):
        heir.take(FakeConsumer(final))


def test_it_does_not_ask_for_ever(heir: Heir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "_LIMIT_S", -1.0)
    with pytest.raises(KafkaUnreachable):
        heir.take(FakeConsumer(HELD_BACK[0]))


@pytest.mark.parametrize(("offset", "metadata"), [(-1001, None), (5, None), (5, "9;later")])
def test_without_an_offset_and_a_map_that_it_understands_it_does_not_start(
    heir: Heir, offset: int, metadata: str | None
) -> None:
    with pytest.raises(GroupNotInitialised, match=r"t\.jobs\.low/0"):
        heir.take(FakeConsumer([GOOD[0], Answer(PLACES[1], offset, metadata)]))
