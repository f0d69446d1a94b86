"""What happens to whoever ends a forgotten transaction while Kafka does not answer: a named error, in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.errors import KafkaConnectionError, TransactionalIdAuthorizationFailed

from schemas.errors import KafkaUnreachable
from streams import empty_transaction
from streams.clients import KafkaRefused
from streams.empty_transaction import EmptyTransactions, taken_over
from streams.settings import Settings, load_settings

pytestmark = pytest.mark.worker_coordination

#: Long enough for a loaded machine to tell "in time" from "when aiokafka gives up", which is 40 s.
SOON_S = 10.0


def at(port: int) -> Settings:
    return load_settings(kafka_bootstrap_servers=f"127.0.0.1:{port}")


@pytest_asyncio.fixture
async def silent_port() -> AsyncIterator[int]:
    """Somebody who takes connections and says nothing."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def take(settings: Settings) -> None:
    async with taken_over(settings, "somebody", timeout_s=0.5):
        raise AssertionError("nobody can have given it")


async def test_nobody_there_is_said_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(KafkaUnreachable):
        await take(at(1))
    assert time.monotonic() - began < SOON_S


async def test_somebody_who_says_nothing_is_said_in_time(silent_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(KafkaUnreachable):
        await take(at(silent_port))
    assert time.monotonic() - began < SOON_S


class Answer:
    def __init__(self, code: int = 0) -> None:
        self.error_code = code
        self.producer_id, self.producer_epoch = 7, 3
        self.errors = [("t", [(0, code), (1, 0)])]


class FakeClient:
    """Gives the answers that are laid down; an exception is raised."""

    answers: list[Any]
    sent: list[str]
    finding: list[Any]

    def __init__(self, **_: Any) -> None:
        pass

    async def bootstrap(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def get_random_node(self) -> int | None:
        node = self.finding.pop(0) if self.finding else 1
        if isinstance(node, Exception):
            raise node
        return node

    async def coordinator_lookup(self, *_: Any) -> int:
        return 1

    async def send(self, node: int, request: Any, **_: Any) -> Any:
        self.sent.append(type(request).__name__.removesuffix("Request"))
        answer = self.answers.pop(0) if self.answers else Answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.answers, FakeClient.sent, FakeClient.finding = [], [], []
    monkeypatch.setattr(empty_transaction, "AIOKafkaClient", FakeClient)
    return FakeClient


async def with_it(then: Callable[[EmptyTransactions], Any], timeout_s: float = 5.0) -> None:
    async with taken_over(at(1), "somebody", timeout_s=timeout_s) as ours:
        await then(ours)


async def end_both(ours: EmptyTransactions) -> None:
    await ours.end([("t", 0), ("t", 1)], group="g", commit=True)


async def test_offsets_are_added_to_the_transaction_before_records(client: type[FakeClient]) -> None:
    """If it stops half-way, an abort of the offsets alone repeats work; one of the records alone would lose it."""
    await with_it(end_both)
    assert client.sent == ["InitProducerId", "AddOffsetsToTxn", "AddPartitionsToTxn", "EndTxn"]


async def test_nothing_to_end_is_no_transaction(client: type[FakeClient]) -> None:
    await with_it(lambda ours: ours.end([], group=None, commit=True))
    assert client.sent == ["InitProducerId"]


@pytest.mark.parametrize(
    "passing", [Answer(51), Answer(14), Answer(16), ConnectionResetError(), KafkaConnectionError()]
)
async def test_what_passes_is_asked_again(client: type[FakeClient], passing: Any) -> None:
    client.answers = [Answer(), passing]
    await with_it(end_both)
    assert client.sent.count("AddOffsetsToTxn") == 2


@pytest.mark.parametrize(("place", "code"), [(1, 47), (2, 90), (3, 47)])
async def test_who_was_fenced_meanwhile_ends_nothing(client: type[FakeClient], place: int, code: int) -> None:
    client.answers = [*[Answer()] * place, Answer(code)]
    with pytest.raises(KafkaRefused, match=f"code {code}"):
        await with_it(end_both)


async def test_a_user_who_may_not_is_told_so_at_once(client: type[FakeClient]) -> None:
    client.finding = [TransactionalIdAuthorizationFailed()]
    with pytest.raises(KafkaRefused, match="53"):
        await with_it(end_both)
    assert client.sent == []


async def test_a_cluster_that_names_no_broker_yet_is_asked_again(client: type[FakeClient]) -> None:
    """aiokafka ends in an assertion there."""
    client.finding = [None, 1]
    await with_it(end_both)
    assert client.sent[-1] == "EndTxn"
