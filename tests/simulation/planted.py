"""Bugs, planted one at a time: the simulation has to find each of them, or it proves nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

from schemas.headers import Delivery
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap, Suspect
from streams.client_log import ConnectionWatch
from tests.simulation.sim_executor import SimExecutor
from tests.simulation.sim_threads import OffsetsAtOnce, SimEvent, SimHoldings
from tests.simulation.sim_worker import SimWorker
from workers.committing.commit import Committer
from workers.committing.holdings import Holdings
from workers.committing.recovery import Recovery
from workers.committing.router import Router
from workers.committing.standing import Standing
from workers.committing.torn import Left
from workers.committing.transactions import Transactions
from workers.consuming.assignments import Assignments
from workers.consuming.duplicates import DuplicateWindow
from workers.liveness.lease import Lease
from workers.liveness.survivors import CUT_OFF
from workers.liveness.verdicts import Verdicts
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome
from workers.process import WorkerProcess
from workers.results import Success
from workers.scheduling.delay import Delays
from workers.scheduling.key_locks import KeyLocks
from workers.scheduling.scheduler import Scheduler

Plant = Callable[[], Any]

#: What each of them does to jobs, in the judge's words: one that merely ends its worker would be found without any judge.
BREAKS: Final[dict[str, frozenset[str]]] = {}
PLANTED: Final[dict[str, Plant]] = {}


def _breaks(*findings: str) -> Callable[[Plant], Plant]:
    """A bug, and the findings of which one has to give it away."""

    def plant(made: Plant) -> Plant:
        name = made.__name__.removeprefix("_")
        PLANTED[name], BREAKS[name] = made, frozenset(findings)
        return made

    return plant


@_breaks("lost")
@contextlib.contextmanager
def _offsets_before_records() -> Iterator[None]:
    """Offsets are committed in a transaction of their own, then the records."""
    write = Transactions.write

    def torn(self: Transactions, outcomes: list[Outcome], offsets: Any) -> None:
        if offsets and outcomes:
            write(self, [], offsets)
            write(self, outcomes, [])
        else:
            write(self, outcomes, offsets)

    with patch.object(Transactions, "write", torn):
        yield


@_breaks("forked")
def _no_fence() -> Any:
    """The newest metadata are sent, not those of the assignment: what has been given away meanwhile is committed."""

    def send(self: OffsetsAtOnce, producer: Any, offsets: Any, _metadata: Any, _timeout_s: float) -> None:
        consumer = self.worker._poller._consumer
        assert consumer is not None
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())

    return patch.object(OffsetsAtOnce, "send", send)


@_breaks("forked")
def _last_assignment_proves_all() -> Any:
    """With new partitions the old ones are taken for ours as well, though a coordinator may have forgotten them meanwhile."""
    plan = Committer._plan

    def trusts(self: Committer, *arguments: Any) -> Any:
        for part in self._holdings.parts:
            part.metadata = self._membership.metadata
        return plan(self, *arguments)

    return patch.object(Committer, "_plan", trusts)


@_breaks("taken", "forked")
def _refused_is_tried_with_newer() -> Any:
    """Refused metadata are renewed at once, before a partition that was taken from us has been given up."""

    look = Assignments.look_at_group

    def renews(self: Assignments, consumer: Any) -> None:
        for part in self.parts.values():
            part.metadata = consumer.consumer_group_metadata()
        look(self, consumer)

    return patch.object(Assignments, "look_at_group", renews)


@_breaks("forked")
@contextlib.contextmanager
def _comes_back_too_soon() -> Iterator[None]:
    """Who loses a partition and gets it back reads what is committed while its own last transaction is on its way, and commits that.

    One of both is harmless: right before the commit there is a look at whether all of it is still ours.
    """

    def settled(_self: SimHoldings, _places: Any) -> threading.Event:
        done = threading.Event()
        done.set()
        return done

    with (
        patch.object(SimHoldings, "settled", settled),
        patch.object(SimHoldings, "may_commit", lambda _self: True),
    ):
        yield


@_breaks("lost")
def _no_retry() -> Any:
    """A run that failed leaves no retry record."""
    settle = Router.settle

    def drops(self: Router, run: Any, result: Any, rules: Any) -> Outcome:
        outcome = settle(self, run, result, rules)
        if outcome.state is JobStatus.RETRYING:
            return Outcome(outcome.message, outcome.status, (), outcome.counts_as)
        return outcome

    return patch.object(Router, "settle", drops)


@_breaks("lost")
def _no_letter() -> Any:
    """A job that has failed for good leaves no dead letter."""
    settle = Router.settle

    def drops(self: Router, run: Any, result: Any, rules: Any) -> Outcome:
        outcome = settle(self, run, result, rules)
        return replace(outcome, records=()) if outcome.state is JobStatus.FAILED else outcome

    return patch.object(Router, "settle", drops)


@_breaks("illegal")
def _hops_count() -> Any:
    """Each time that a job is published again counts as an attempt."""
    follow = Delivery.next

    def counts(self: Delivery, **changes: Any) -> Delivery:
        made = follow(self, **changes)
        return replace(made, attempt=made.attempt + 1)

    return patch.object(Delivery, "next", counts)


@_breaks("rerun")
def _cancelled_is_done() -> Any:
    """A run that was cancelled is taken for one that succeeded."""
    cancel = SimExecutor.cancel

    def done(self: SimExecutor, parts: set[PartitionState]) -> None:
        ended = [one for one in self.running if one.message.part in parts]
        for one in ended:
            self._worker._committer.emit(
                self._worker._router.settle(self._run(one), Success(), one.decoded.limits)
            )
        cancel(self, parts)

    return patch.object(SimExecutor, "cancel", done)


@_breaks("order")
@contextlib.contextmanager
def _interrupted_go_last() -> Iterator[None]:
    """What was running at a death begins again behind the others of its key."""
    add, start, acquire = Scheduler.add, Scheduler._start, KeyLocks.acquire
    ran: set[bytes] = set()
    behind: set[Message] = set()
    of_keys: dict[KeyLocks, Scheduler] = {}

    def find(self: Scheduler, messages: Iterable[Message]) -> None:
        of_keys[self._keys] = self
        add(self, messages)

    def note(self: Scheduler, message: Message) -> None:
        ran.add(message.job_id)
        start(self, message)

    def goes_last(self: KeyLocks, message: Message) -> bool:
        suspect = message.part.suspects.get(message.offset)
        if message.job_id in ran and suspect and suspect.deaths == 1 and message not in behind:
            assert message.priority is not None
            behind.add(message)
            of_keys[self]._buffers[message.priority].append(message)
            return False
        return acquire(self, message)

    with (
        patch.object(Scheduler, "add", find),
        patch.object(Scheduler, "_start", note),
        patch.object(KeyLocks, "acquire", goes_last),
    ):
        yield


@_breaks("early")
def _clock_ahead() -> Any:
    """Broker time is guessed, and the guess is a little ahead."""
    return patch.object(SimWorker, "now_ms", lambda self: self.world.now_ms + 400)


@_breaks("early")
def _believes_its_producers() -> Any:
    """A delay ends by the clock of whoever asked for it."""

    def at_its_word(self: Delivery, _ms: int) -> Delivery:
        return replace(self, delay_ms=0)

    return patch.object(Delivery, "counted_from", at_its_word)


@_breaks("early")
def _holds_nothing() -> Any:
    """What waits for less than a second starts at once."""
    hold_until = Delays.hold_until
    return patch.object(Delays, "hold_until", lambda self, message, _due_ms: hold_until(self, message, 0))


@_breaks("condemned")
def _suspects_everybody() -> Any:
    """Whatever was running at a death is taken for the one that kills."""

    def left_behind(prior: OffsetMap, *, unclean: bool) -> dict[int, Suspect]:
        unfinished = [o for o in range(prior.offset, prior.start_limit) if o not in prior.finished]
        return {o: Suspect((prior.incarnation,), prior.incarnation) for o in unfinished if unclean}

    return patch("workers.offsets._left_behind", left_behind)


@_breaks("stuck")
def _suspects_among_others() -> Any:
    """Suspects run beside others, so that nobody knows which of them kills."""
    return patch.object(Scheduler, "_must_run_alone", lambda _self, _message: False)


@_breaks("forked")
def _says_it_twice() -> Any:
    """Each outcome is written twice."""
    emit = Committer.emit

    def twice(self: Committer, outcome: Outcome) -> None:
        emit(self, outcome)
        if outcome.message is not None:
            emit(self, outcome)

    return patch.object(Committer, "emit", twice)


@_breaks("forked")
def _keeps_what_is_lost() -> Any:
    """A partition that is taken from us stays ours, in our eyes."""
    forget = Assignments._forget

    def forgets_nothing(self: Assignments, places: Any) -> None:
        states = [self.parts.get(place) for place in places]
        forget(self, places)
        for state in states:
            if state is not None:
                state.owned = True

    return patch.object(Assignments, "_forget", forgets_nothing)


@_breaks("lost")
def _wrong_watermark() -> Any:
    """The committed offset is one past the highest finished record, not the lowest unfinished one."""
    plan = PartitionState.plan

    def leaps(self: PartitionState, finished: Any, **options: Any) -> Any:
        done = set(finished)
        if done:
            done |= set(range(self.base, max(done)))
        return plan(self, done, **options)

    return patch.object(PartitionState, "plan", leaps)


@_breaks("forked")
def _blind_replay() -> Any:
    """After an ambiguous commit everything is written again, without a look at what stands."""

    def recover(self: Recovery, outcomes: list[Outcome], _began_ms: int) -> tuple[Left, bool]:
        self._transactions.renew()
        return Left(missing=outcomes), True

    return patch.object(Recovery, "recover", recover)


@_breaks("lost")
def _trusts_offsets() -> Any:
    """After an ambiguous commit the offsets speak for the records: a part that Kafka has kept is not looked for."""
    return patch.object(Standing, "visible", lambda _self, _written, _since_ms: None)


@_breaks("lost")
def _acknowledged_is_forever() -> Any:
    """What Kafka has acknowledged is never looked at again, though its coordinator may have died before it had told everybody."""
    return patch.object(Recovery, "remember", lambda *_: None)


@_breaks("forked")
def _trusts_success() -> Any:
    """A commit that was reported as done counts, whatever happened to the connection meanwhile."""
    return patch.object(ConnectionWatch, "hear", lambda _self, _line: None)


@_breaks("taken", "forked", "rerun", "illegal")
def _lets_go_of_what_is_on_the_way() -> Any:
    """Whoever gives partitions up does not wait for the end of a transaction with offsets of them."""

    def at_once(self: SimHoldings, places: Any) -> SimEvent:
        with self.lock:
            self._kept.become(self._doubtful)
        return SimEvent(self.worker, Holdings.let_go(self, places))

    return patch.object(SimHoldings, "let_go", at_once)


@_breaks("forked")
def _lets_go_of_what_is_in_doubt() -> Any:
    """Whoever gives partitions up does not wait until it is known what Kafka has kept of a commit, and what it has not is written."""
    return patch.object(Holdings, "doubt", lambda _self, _parts: None)


@_breaks("taken", "forked", "rerun")
def _sends_what_is_others() -> Any:
    """Nobody looks, right before offsets are sent, whether all of them are of partitions that are still ours."""

    def always(self: Holdings) -> bool:
        with self.lock:
            self._kept.become(self._doubtful | self._unsettled.parts)
        return True

    return patch.object(Holdings, "may_send", always)


@_breaks("overlap")
def _no_key_lock() -> Any:
    """Jobs of one key start whenever it is their turn."""
    return patch.object(KeyLocks, "acquire", lambda _self, _message: True)


@_breaks("kills on")
def _starts_beyond_the_map() -> Any:
    """Jobs start before a committed map says so: their death leaves no trace."""

    def start(self: PartitionState, offset: int) -> bool:
        self.started = max(self.started, offset + 1)
        return not self.releasing

    return patch.object(PartitionState, "start", start)


@_breaks("kills on")
def _forgets_suspects() -> Any:
    """A new owner does not look at what the dead one may have been running."""
    return patch("workers.offsets._left_behind", lambda _prior, *, unclean: {})


@_breaks("rerun")
def _runs_what_is_finished() -> Any:
    """The map of what is finished is not looked at when records arrive."""
    delivered = PartitionState.note_delivered

    def all_news(self: PartitionState, offset: int) -> bool:
        fresh = offset >= self.top
        delivered(self, offset)
        return fresh and offset >= self.base

    return patch.object(PartitionState, "note_delivered", all_news)


@_breaks("stuck")
def _no_gaps() -> Any:
    """Markers of transactions are waited for like records."""
    delivered = PartitionState.note_delivered

    def without(self: PartitionState, offset: int) -> bool:
        gaps = list(self.gaps)
        news = delivered(self, offset)
        self.gaps = gaps
        return news

    return patch.object(PartitionState, "note_delivered", without)


@_breaks("kills on", "condemned")
def _starts_whom_the_map_holds() -> Any:
    """Who waited behind its key starts while the committed map says that it waits."""
    start = PartitionState.start

    def careless(self: PartitionState, offset: int) -> bool:
        self.barred = frozenset()
        return start(self, offset)

    return patch.object(PartitionState, "start", careless)


@_breaks("lost")
def _same_delivery_again() -> Any:
    """A job that is published again keeps its delivery number: its successor is taken for a copy."""

    def follow(self: Delivery, **changes: Any) -> Delivery:
        return replace(self, **changes)

    return patch.object(Delivery, "next", follow)


@_breaks("unexplained")
def _no_copies() -> Any:
    """A record that stands twice is run twice."""
    return patch.object(DuplicateWindow, "is_copy", lambda _self, _message, **_: False)


@_breaks("rerun", "unexplained")
def _wakes_up_unaware() -> Any:
    """A process that was frozen goes on as if nothing had been."""
    return patch.object(Lease, "holds", property(lambda _self: True))


@_breaks("condemned")
def _every_lone_death_is_a_proof() -> Any:
    """Whoever ran alone is taken for the one that kills, though Kafka was away when its worker ended."""
    return patch.object(Verdicts, "_is_proven", lambda *_: True)


@_breaks("condemned")
@contextlib.contextmanager
def _apart_after_one_death() -> Iterator[None]:
    """Who was unfinished at one death runs apart already, and is a dead letter at the second."""
    with patch("workers.offsets.ALONE_AFTER", 1), patch("workers.scheduling.scheduler.ALONE_AFTER", 1):
        yield


@_breaks("condemned")
def _cut_off_without_a_word() -> Any:
    """A worker that has cancelled everything does not say so in its reports."""
    state = WorkerProcess._state

    def silent(self: WorkerProcess, said: str) -> str:
        found = state(self, said)
        return said if found == CUT_OFF else found

    return patch.object(WorkerProcess, "_state", silent)


@_breaks("stuck")
def _maps_only_beside_ends() -> Any:
    """A map is committed only where a job has ended: what waits for a later start limit waits for ever."""
    plan = Committer._plan

    def careless(self: Committer, outcomes: Any, released: Any) -> Any:
        kept, plans = plan(self, outcomes, released)
        if not any(outcome.message for outcome in kept):
            return kept, {}
        return kept, plans

    return patch.object(Committer, "_plan", careless)


@_breaks("unexplained")
def _release_without_a_word() -> Any:
    """What ended just before a revocation is not committed any more."""

    def hasty(_self: Committer, _parts: Any, **_: Any) -> Any:
        done = threading.Event()
        done.set()
        return done

    return patch.object(Committer, "release", hasty)
