"""The worker's threads, as the seed sees them: what would wait in one of them lets the others go on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition

from schemas.topics import Partition
from workers.committing.commit import Committer
from workers.committing.holdings import Holdings
from workers.consuming.assignments import Assignments
from workers.consuming.poller import Poller
from workers.liveness.verdicts import Verdicts
from workers.message import Message
from workers.offsets import PartitionState

if TYPE_CHECKING:
    from tests.simulation.sim_worker import SimWorker


class SimEvent:
    """An event whose wait lets others run."""

    def __init__(self, worker: SimWorker, event: threading.Event) -> None:
        self._worker = worker
        self._event = event

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        self._worker.pause_until(self._event.is_set, timeout_s)
        return self._event.is_set()


class SimCommitter(Committer):
    """Without its thread."""

    worker: SimWorker
    #: Transactions are divided into smaller ones.
    _depth = 0

    def release(self, parts: Iterable[PartitionState], *, clean: bool = True) -> Any:
        return SimEvent(self.worker, super().release(parts, clean=clean))

    def _commit(self, *arguments: Any, **options: Any) -> None:
        was_half_told = self.worker.is_half_told
        self._depth += 1
        super()._commit(*arguments, **options)
        self._depth -= 1
        if self._depth:
            return
        self.worker.is_torn = False
        if was_half_told and not self.worker.world.kafka.has_forgotten(self.worker._producer_id):
            self.worker.is_half_told = False

    def main(self) -> None:
        self._transactions.renew()
        while True:
            self._wake.clear()
            self._tick()
            self.worker.pause()


class SimHoldings(Holdings):
    """Whoever waits for what is under way lets it come to its end."""

    worker: SimWorker

    def settled(self, places: Collection[Partition]) -> Any:
        return SimEvent(self.worker, super().settled(places))

    def free(self, places: Collection[Partition]) -> Any:
        return SimEvent(self.worker, super().free(places))

    def let_go(self, places: Collection[Partition]) -> Any:
        return SimEvent(self.worker, super().let_go(places))


class SimPoller(Poller):
    """Without its thread."""

    worker: SimWorker

    def main(self) -> None:
        self._poll()
        assert self._consumer is not None
        self._assignments.leave(self._consumer)

    def _round(self, consumer: Any) -> None:
        super()._round(consumer)
        self.worker.pause()


class SimAssignments(Assignments):
    """Waits for nothing that the seed does not know of."""

    worker: SimWorker

    def _has_come(self, last: Any, places: list[Partition], timeout_s: float) -> bool:
        has_come = super()._has_come(last, places, timeout_s)
        if not has_come:
            self.worker.goes_without_a_word()
        return has_come

    def _lose(self, consumer: Any, lost: list[TopicPartition]) -> None:
        self.worker.world.trouble(self.worker, "lost")
        super()._lose(consumer, lost)

    def _in_loop(self, work: Any, _timeout_s: float) -> None:
        parts, timeout_s = work
        self.worker.turns.run()
        self.worker.pause_until(lambda: not self.worker._executor.runs_on(parts), timeout_s)
        self.worker._executor.cancel(parts)


class SimVerdicts(Verdicts):
    """Looks when the seed says so."""

    worker: SimWorker

    def expect(self, messages: Iterable[Message]) -> None:
        self._open.update(messages)

    def look(self) -> None:
        if self._open:
            began_ms = self.worker.now_ms()
            signs = self._signs(self._losses())
            for message in [one for one in self._scheduler.accused if one in self._open]:
                self._judge(message, signs, began_ms)


class OffsetsAtOnce:
    """Sends offsets in the commit thread itself."""

    def __init__(self, worker: SimWorker) -> None:
        self.worker = worker

    def send(self, producer: Any, offsets: list[TopicPartition], metadata: Any, timeout_s: float) -> None:
        producer.send_offsets_to_transaction(offsets, metadata, timeout_s)

    def close(self) -> None:
        """There is no thread."""
