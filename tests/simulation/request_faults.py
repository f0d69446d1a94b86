"""What goes wrong with single requests to Kafka: lost, late, slow, half done.

In:  a step of a client, before it is taken. Out: an exception, as the client would get it, or what it finds later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException

if TYPE_CHECKING:
    from tests.simulation.sim_worker import SimWorker
    from tests.simulation.world import World

#: Where a late request to end a transaction would do the most harm.
_HURT_BY_STRAGGLERS: Final = frozenset({"produce", "offsets", "commit", "read", "init"})
#: How long Kafka takes there to answer, at times: for longer than a release waits for its last commit, and less than the offsets' limit.
_SLOW_S: Final = (0.5, 4.5)
#: Before which of a transaction's requests: its offsets come when its partitions are somebody else's, or when they are not to be sent.
_SLOW_STEPS: Final = frozenset({"begin", "offsets"})

#: What is forgotten is found out and ended after so long.
_HANGS_FOR_MS: Final = 20_000


class RequestFaults:
    """Those of one world; its seed decides."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stragglers: list[tuple[str, int, int, bool]] = []
        #: Whose last transaction Kafka has forgotten, and since when.
        self._forgotten_ms: dict[SimWorker, int] = {}
        #: Those of them that have not heard yet that their coordinator is gone.
        self._deaf: set[SimWorker] = set()

    def meet(self, step: str, worker: SimWorker, client: Any) -> None:
        """Raises KafkaException if it has no answer."""
        world, rng = self._world, self._world.rng
        if world.is_on_the_move and step in _SLOW_STEPS and (world.tears or not worker.is_torn):
            self._may_be_slow(step, worker)
        if worker in self._deaf and (step == "commit" or (step == "offsets" and rng.random() < 0.5)):
            self._deaf.discard(worker)
            world.trouble(worker, "coordinator lost")
            worker.lose_connection()
            raise _error(KafkaError._TIMED_OUT, retriable=True, abort=step == "offsets")
        if self._stragglers and step in _HURT_BY_STRAGGLERS and rng.random() < 0.2:
            self._deliver_straggler()
        if world.tears and step == "commit" and self._is_leaving(worker) and rng.random() < 0.5:
            self._fault(step, worker, client)
        if rng.random() < world.weather.losses:
            self._fault(step, worker, client)

    def _may_be_slow(self, step: str, worker: SimWorker) -> None:
        """Most of the time where it matters: at what is sent of partitions that are to be given up."""
        if worker.is_torn:  # the rest comes when its partitions have long been asked for
            worker.pause_until(lambda: False, max(_SLOW_S))
        elif self._world.rng.random() < (0.6 if self._is_leaving(worker) else 0.05):
            self._world.trouble(worker, "slow " + step)
            worker.pause_until(lambda: False, self._world.rng.choice(_SLOW_S))

    def _fault(self, step: str, worker: SimWorker, client: Any) -> None:
        match step:
            case "offsets":
                self._world.trouble(worker, "offsets")
                worker.lose_connection()
                raise _error(KafkaError._TIMED_OUT, retriable=True, abort=True)
            case "commit" if self._can_be_torn(worker) and self._world.rng.random() < 0.4:
                share = self._world.rng.choice((0.2, 0.5, 0.8))
                if self._world.forgets and self._world.rng.random() < self._world.forgets:
                    self._forget(worker, client, share)
                    return
                self._world.trouble(worker, "torn")
                worker.lose_connection()
                worker.is_torn = True
                self._world.kafka.tear(
                    client.transactional_id,
                    client.producer_id,
                    client.epoch,
                    lambda _: self._world.rng.random() < share,
                )
                if self._world.tears and self._is_leaving(worker):  # who lets go has waited for long then
                    worker.pause_until(lambda: False, self._world.rng.choice(_SLOW_S))
                raise _error(KafkaError._TIMED_OUT, retriable=True)
            case "commit":  # the request is lost, or arrives when nobody expects it any more
                self._world.trouble(worker, "commit lost")
                worker.lose_connection()
                self._straggle(client, commit=True)
                raise _error(KafkaError._TIMED_OUT, retriable=True)
            case "committed":
                self._world.trouble(worker, "answer lost")
                worker.lose_connection()
                if self._world.rng.random() < 0.5:
                    raise _error(KafkaError._TIMED_OUT, retriable=True)
                # librdkafka has asked again, and got its answer; the first request is still on its way.
                self._straggle(client, commit=True)
            case "poll" if self._world.forgets and self._world.rng.random() < 0.02:
                self._world.trouble(worker, "connection lost")
                worker.lose_connection()
            case "abort":
                self._world.trouble(worker, "abort lost")
                worker.lose_connection()
                raise _error(KafkaError._TIMED_OUT, retriable=True)

    def _forget(self, worker: SimWorker, client: Any, share: float) -> None:
        """Its coordinator is killed when it has decided: its answer is on its way, and not each partition will ever hear of it.

        The connection is lost with it; that is heard of while the next transaction is under way, before its end.
        """
        self._world.faults["forgotten"] += 1
        self._forgotten_ms[worker] = self._world.now_ms
        worker.is_half_told = True
        # The group's offsets are told: an heir who finds them open takes the id, and that is another story.
        self._world.kafka.forget(
            client.transactional_id,
            client.producer_id,
            client.epoch,
            lambda place: isinstance(place, str) or self._world.rng.random() < share,
        )
        self._deaf.add(worker)
        self._world.judge.forgotten(self._world.kafka.forgotten(client.transactional_id))

    def end_what_hangs(self) -> None:
        """As whoever looks after hanging transactions does."""
        for worker, since_ms in list(self._forgotten_ms.items()):
            if self._world.now_ms - since_ms > _HANGS_FOR_MS or not worker.is_alive:
                del self._forgotten_ms[worker]
                self._deaf.discard(worker)
                # What its own abort has undone before that is still for it to write.
                self._world.kafka.end_forgotten(worker._producer_id)

    @staticmethod
    def _is_leaving(worker: SimWorker) -> bool:
        """Whether a partition with offsets in its transaction is to be given up."""
        return any(part.releasing for part in worker.holdings.unsettled)

    def _can_be_torn(self, worker: SimWorker) -> bool:
        """Whether it will be there to write the rest: whoever has its partitions next cannot know of it."""
        member = self._world.kafka.group(self._world.topics.group).members.get(
            self._world.judge.members[worker.incarnation]
        )
        keeps_all = member is not None and not (member.fenced or worker.is_cut_off or worker.is_forgotten)
        owned = all(part.owned for part in worker.holdings.unsettled)
        return keeps_all and owned and worker._leave_thread is None

    def _straggle(self, client: Any, *, commit: bool) -> None:
        self._stragglers.append((client.transactional_id, client.producer_id, client.epoch, commit))

    def _deliver_straggler(self) -> None:
        late = self._stragglers.pop(self._world.rng.randrange(len(self._stragglers)))
        transactional_id, producer_id, epoch, commit = late
        try:
            self._world.kafka.end_transaction(transactional_id, producer_id, epoch, commit=commit)
        except KafkaException:
            self._world.faults["straggler refused"] += 1
        else:
            self._world.faults["straggler"] += 1


def _error(code: int, *, retriable: bool = False, abort: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "made up", retriable=retriable, txn_requires_abort=abort))
