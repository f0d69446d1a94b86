"""A transaction without a single record, over partitions of one's choice: it leaves its marker in each of them.

In:  a transactional id, partitions, a group, and how it is to end. Out: Kafka has ended it so, or an exception.

Markers are written by producer id, so this is how a transaction that Kafka has forgotten is brought to its end. No
client offers it: librdkafka makes a partition part of a transaction only with a record, which others would have to
read. So these are the four requests themselves, sent with aiokafka one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from schemas.errors import KafkaUnreachable
from schemas.topics import Partition
from streams.clients import KafkaRefused, aiokafka_config
from streams.settings import Settings

#: Long after we have given up: if Kafka ended it for us, in the middle, that would be an abort. No worker's own transaction
#: has it, so the coordinator's log shows whose one is.
EMPTY_TIMEOUT_MS: Final = 60_000
#: aiokafka's own limit is longer than ours, and would be used up by one broker that does not answer.
_ONE_ANSWER_MS: Final = 2_000
_CLOSING_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
#: Codes that say "ask again": the coordinator loads or moves, the markers of the last transaction are on their way, or
#: nothing was tried because of another partition in the same request.
_PASSING: Final = frozenset({3, 14, 15, 16, 51, 55})

_Codes = Callable[[Any], Iterable[int]]


class EmptyTransactions:
    """Those of one transactional id, which is ours until somebody else takes it. For the event loop that made it."""

    def __init__(self, coordinator: _Coordinator, producer: tuple[str, int, int]) -> None:
        self._coordinator = coordinator
        self._producer = producer

    async def end(self, partitions: Iterable[Partition], *, group: str | None, commit: bool) -> None:
        """One over these partitions; with a ``group`` over its partition of the offsets topic, though no offset is sent.

        Raises:
            KafkaUnreachable: no end in time: Kafka will abort it, and with it what it was to end, as far as it got.
            KafkaRefused: the id was taken by somebody else meanwhile, or this user may not do it.
        """
        numbers: dict[str, list[int]] = defaultdict(list)
        for topic, number in partitions:
            numbers[topic].append(number)
        if not numbers and group is None:
            return
        # The offsets first: should it stop half-way, an abort of them repeats work, and one of records alone would lose it.
        if group is not None:
            await self._coordinator.ask(AddOffsetsToTxnRequest(*self._producer, group), _one_code)
        if numbers:
            request = AddPartitionsToTxnRequest(*self._producer, list(numbers.items()))
            await self._coordinator.ask(request, _each_code)
        await self._coordinator.ask(EndTxnRequest(*self._producer, commit), _one_code)


@contextlib.asynccontextmanager
async def taken_over(
    settings: Settings, transactional_id: str, *, timeout_s: float
) -> AsyncIterator[EmptyTransactions]:
    """Take the id from whoever has it; what is open under it is aborted. ``timeout_s`` is for each answer.

    Raises:
        KafkaUnreachable: no answer in time. KafkaRefused: this user may not do it.
    """
    coordinator = _Coordinator(settings, transactional_id, timeout_s)
    try:
        made = await coordinator.ask(InitProducerIdRequest(transactional_id, EMPTY_TIMEOUT_MS), _one_code)
        yield EmptyTransactions(coordinator, (transactional_id, made.producer_id, made.producer_epoch))
    finally:
        await coordinator.close()


class _Coordinator:
    """Whoever coordinates one transactional id: found again, and asked again, until it answers."""

    def __init__(self, settings: Settings, transactional_id: str, timeout_s: float) -> None:
        self._settings = settings
        self._id = transactional_id
        self._timeout_s = timeout_s
        self._client: Any = None
        self._node: int | None = None

    async def ask(self, request: Any, codes: _Codes) -> Any:
        """Its answer, without errors.

        Raises:
            KafkaUnreachable: none in time. KafkaRefused: an error that does not pass.
        """
        pause_s, deadline = _FIRST_PAUSE_S, time.monotonic() + self._timeout_s
        # Each step has its own limit as well: aiokafka's close() may swallow the one cancellation that a time-out brings.
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    answer = await self._try(request)
            except (KafkaError, OSError, TimeoutError) as error:
                if (code := getattr(error, "errno", None)) in _FINAL:
                    raise self._refused(code) from error
                # A new client: this one may still know a broker that is gone by now.
                await self.close()
            else:
                found = set(codes(answer)) - {0}
                if not found:
                    return answer
                if final := found - _PASSING:
                    raise self._refused(min(final))
                self._node = None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise KafkaUnreachable(self._settings.bootstrap_servers(), self._timeout_s)

    async def close(self) -> None:
        """Give back the connections. A broker that does not say goodbye in time is left."""
        client, self._client, self._node = self._client, None, None
        if client is not None:
            with contextlib.suppress(TimeoutError, OSError):
                await asyncio.wait_for(client.close(), _CLOSING_S)

    async def _try(self, request: Any) -> Any:
        if self._client is None:
            config = aiokafka_config(self._settings)
            client = self._client = AIOKafkaClient(**config, request_timeout_ms=_ONE_ANSWER_MS)
            await client.bootstrap()
        if self._node is None:
            if self._client.get_random_node() is None:
                raise OSError("the cluster names no broker")  # one that has just started, for a moment
            self._node = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, self._id)
        return await self._client.send(self._node, request, group=ConnectionGroup.COORDINATION)

    def _refused(self, code: int) -> KafkaRefused:
        error = for_code(code)
        return KafkaRefused(
            f"Kafka refused to end a transaction of {self._id}: code {code}, {error.__name__}: {error.description}"
        )


#: What finding the coordinator may raise and waiting does not change: not authorised for the id, the group or the cluster.
_FINAL: Final = frozenset({30, 31, 53})


def _one_code(answer: Any) -> Iterable[int]:
    return (answer.error_code,)


def _each_code(answer: Any) -> Iterable[int]:
    return (code for _, partitions in answer.errors for _, code in partitions)
