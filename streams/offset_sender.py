"""``send_offsets_to_transaction`` that comes back.

In:  a producer with an open transaction, offsets, group metadata. Out: they are sent, or a ``KafkaException`` says why not.

librdkafka (2.16, issues 5456 and 5511) does not keep that call's time-out: where the group's coordinator dies while it is
under way and is dropped from the cluster's metadata, it waits for news of a broker that no longer exists. Such a call
cannot be interrupted, only left behind: so it is made in a thread of its own.

A call that was left behind may still send its offsets when a broker comes back. Its producer must be replaced by one with
the same transactional id before anything else is written: then Kafka refuses the late ones as those of an old epoch.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

#: What librdkafka may take beyond the time-out that it was given before it is taken for stuck.
_GRACE_S: Final = 1.0

_Call: TypeAlias = tuple[Producer, list[TopicPartition], Any, float]


class OffsetSender:
    """Makes the call for one thread at a time. Keeps its own thread from call to call, a new one after each loss."""

    def __init__(self, *, grace_s: float = _GRACE_S) -> None:
        self._grace_s = grace_s
        self._calls: SimpleQueue[_Call | None] | None = None
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def send(
        self, producer: Producer, offsets: list[TopicPartition], metadata: Any, timeout_s: float
    ) -> None:
        """Blocks for ``timeout_s`` and a second at most.

        Raises:
            KafkaException: what the call raised; or ``_TIMED_OUT``, and the producer must not be used again.
        """
        if self._calls is None:
            self._calls, self._ends = SimpleQueue(), SimpleQueue()
            threading.Thread(
                target=_serve, args=(self._calls, self._ends), name="send-offsets", daemon=True
            ).start()
        self._calls.put((producer, offsets, metadata, timeout_s))
        limit = timeout_s + self._grace_s
        try:
            error = self._ends.get(timeout=limit)
        except Empty:
            self.close()
            raise KafkaException(
                KafkaError(
                    KafkaError._TIMED_OUT,
                    f"sending offsets to the transaction did not return within {limit:g} s: left behind",
                )
            ) from None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread, as soon as its call has returned."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def send_offsets(producer: Producer, offsets: list[TopicPartition], metadata: Any, timeout_s: float) -> None:
    """The same once, for those who do it rarely.

    Raises:
        KafkaException: see ``OffsetSender.send``.
    """
    sender = OffsetSender()
    try:
        sender.send(producer, offsets, metadata, timeout_s)
    finally:
        sender.close()


def _serve(calls: SimpleQueue[_Call | None], ends: SimpleQueue[BaseException | None]) -> None:
    while (call := calls.get()) is not None:
        producer, offsets, metadata, timeout_s = call
        failure: BaseException | None = None
        try:
            producer.send_offsets_to_transaction(offsets, metadata, timeout_s)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            failure = error
        # Before anybody hears of it: an idle thread must not keep a producer alive that is replaced then.
        del call, producer, offsets, metadata
        ends.put(failure)
        del failure  # it goes round in a circle with this frame
