"""A transaction without a single record, over partitions of one's choice: it leaves its marker in each of them.

In:  a transactional id, partitions, a group, and how it is to end. Out: Kafka has ended it so, or an exception.

Markers are written by producer id, so this is how a transaction that Kafka has forgotten is brought to its end. No
client offers it: librdkafka makes a partition part of a transaction only with a record, which others would have to
read. So these are the four requests themselves, sent with aiokafka one after another.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
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
from streams.clients import TRANSACTION_TIMEOUT_MS, KafkaRefused, aiokafka_config
from streams.scan import Partition
from streams.settings import Settings

_PAUSE_S: Final = 0.02
#: Codes that say "ask again": the coordinator loads or moves, the markers of the last transaction are on their way, or
#: nothing was tried because of another partition in the same request.
_PASSING: Final = frozenset({3, 14, 15, 16, 51, 55})

_Codes = Callable[[Any], Iterable[int]]


async def end_empty_transaction(
    settings: Settings,
    transactional_id: str,
    partitions: Iterable[Partition],
    *,
    group: str | None,
    commit: bool,
    timeout_s: float,
) -> None:
    """Take the id from whoever has it, which aborts what is open, and end a transaction of its own. For an event loop.

    With a ``group`` its partition of the offsets topic becomes part of the transaction, though no offset is sent.

    Raises:
        KafkaUnreachable: no end within ``timeout_s``. What there is of the transaction will be aborted.
        KafkaRefused: the id was taken by somebody else meanwhile, or this user may not do it.
    """
    numbers: dict[str, list[int]] = defaultdict(list)
    for topic, number in partitions:
        numbers[topic].append(number)
    coordinator = _Coordinator(settings, transactional_id)
    try:
        async with asyncio.timeout(timeout_s):
            made = await coordinator.ask(
                InitProducerIdRequest(transactional_id, TRANSACTION_TIMEOUT_MS), _one_code
            )
            producer = (transactional_id, made.producer_id, made.producer_epoch)
            if numbers:
                await coordinator.ask(AddPartitionsToTxnRequest(*producer, list(numbers.items())), _each_code)
            if group is not None:
                await coordinator.ask(AddOffsetsToTxnRequest(*producer, group), _one_code)
            if numbers or group is not None:
                await coordinator.ask(EndTxnRequest(*producer, commit), _one_code)
    except TimeoutError as error:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error
    finally:
        await coordinator.close()


class _Coordinator:
    """Whoever coordinates one transactional id: found again, and asked again, until it answers."""

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        self._settings = settings
        self._id = transactional_id
        self._client: Any = None
        self._node: int | None = None

    async def ask(self, request: Any, codes: _Codes) -> Any:
        """Its answer, without errors. For ever: the caller has a time limit.

        Raises:
            KafkaRefused: an error that does not pass.
        """
        while True:
            try:
                if self._client is None:
                    client = self._client = AIOKafkaClient(**aiokafka_config(self._settings))
                    await client.bootstrap()
                if self._node is None:
                    self._node = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, self._id)
                answer = await self._client.send(self._node, request, group=ConnectionGroup.COORDINATION)
            except (KafkaError, OSError):
                # A new client: this one may still know a broker that is gone by now.
                await self.close()
            else:
                found = set(codes(answer)) - {0}
                if not found:
                    return answer
                if final := found - _PASSING:
                    error = for_code(min(final))
                    raise KafkaRefused(
                        f"Kafka refused an end of the transaction of {self._id}: {error.__name__}, {error.description}"
                    )
                self._node = None
            await asyncio.sleep(_PAUSE_S)

    async def close(self) -> None:
        """Give back the connections."""
        client, self._client, self._node = self._client, None, None
        if client is not None:
            await client.close()


def _one_code(answer: Any) -> Iterable[int]:
    return (answer.error_code,)


def _each_code(answer: Any) -> Iterable[int]:
    return (code for _, partitions in answer.errors for _, code in partitions)
