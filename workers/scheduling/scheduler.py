"""Which job starts next: priorities with a guaranteed share, order within a key, and what must wait.

In:  messages that arrived. Out: the next message to start, or None.

Pure state without I/O, for the event loop, except what says "Any thread", and ``arrived``, which the poll thread counts
before it hands messages over: what is on its way to the event loop must count as waiting, too.

A message waits here in one of six places: in its priority's buffer; ``parked`` until its partition has
committed that it may start; behind its key, while another job with that key runs; for a place in the process
pool, or in the sandbox if it was unfinished at two deaths of an owner (``workers.scheduling.pool_places``); in ``alone``, with its key, if it
cannot be run there and must run beside nothing else (those and all others take turns, ``workers.scheduling.time_share``); or, with its key, in
``accused``, because an owner was lost while it ran alone (``workers.liveness.verdicts``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import accumulate

from schemas.topics import PRIORITIES, JobPriority
from workers.message import Message
from workers.offsets import ALONE_AFTER, SANDBOX_UNTIL, PartitionState
from workers.scheduling.key_locks import KeyLocks
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.time_share import HURRIED_ABOVE, OTHERS_FIRST_MS, TimeShare, alone_ms
from workers.scheduling.turns import Turns


def _deaths(message: Message) -> int:
    suspect = message.part.suspects.get(message.offset)
    return 0 if suspect is None else suspect.deaths


class Scheduler:
    """The messages that wait for a handler."""

    def __init__(
        self,
        *,
        weights: Mapping[JobPriority, int] | None = None,
        strict: bool = False,
        max_wait_ms: Mapping[JobPriority, int] | None = None,
        pool: PoolPlaces | None = None,
        sandbox: PoolPlaces | None = None,
        pool_keeps_apart: bool = False,
        others_first_ms: int = OTHERS_FIRST_MS,
    ) -> None:
        self._buffers: dict[JobPriority, deque[Message]] = {p: deque() for p in PRIORITIES}
        self._in_order = tuple(self._buffers.values())
        self._turns = Turns(self._buffers, weights=weights, strict=strict, max_wait_ms=max_wait_ms)
        self._parked: dict[PartitionState, deque[Message]] = {}
        self._keys = KeyLocks()
        #: None: no job needs a process.
        self._pool = pool
        #: None: who was unfinished at two deaths runs alone.
        self._sandbox = sandbox
        #: What runs in a process of the pool anyway needs no other one, if it was unfinished at two deaths.
        self._pool_keeps_apart = pool_keeps_apart
        self._pools = tuple(places for places in (pool, sandbox) if places is not None)
        self._held_back = (self._keys.behind, *(places.queued for places in self._pools))
        self._alone: deque[Message] = deque()
        self._share = TimeShare(others_first_ms)
        #: Those that wait for their verdict; in the order of their turns.
        self.accused: dict[Message, None] = {}
        #: The message that runs beside nothing else, until it ends or has survived long enough.
        self.isolated: Message | None = None
        #: Those before it that go on: beside them the next one may run where many wait, see ``workers.scheduling.time_share``.
        self._survivors: set[Message] = set()
        #: The one before, until a commit says that it runs alone no longer.
        self._was_isolated: Message | None = None
        #: A message waits for a commit that nobody has been asked for; who asks sets it back.
        self.needs_commit = False
        #: Threads that go on though their job has ended: whoever runs beside them may die of what they do.
        self.strays = 0
        #: Messages taken and not done.
        self.running = 0
        # Each number has one writer (poll thread, event loop), so none is lost between them.
        self.arrived = dict.fromkeys(PRIORITIES, 0)
        self.arrived_bytes = dict.fromkeys(PRIORITIES, 0)
        self._departed = dict.fromkeys(PRIORITIES, 0)
        self._departed_bytes = dict.fromkeys(PRIORITIES, 0)

    def __len__(self) -> int:
        return sum(self.waiting(priority) for priority in PRIORITIES)

    def waiting(self, priority: JobPriority) -> int:
        """Messages of this priority that have arrived and not started. Any thread."""
        return self.arrived[priority] - self._departed[priority]

    def startable(self, priority: JobPriority) -> int:
        """Those of them that wait neither behind their key nor for a process: they must not keep others from being fetched."""
        return self.waiting(priority) - sum(held.count[priority] for held in self._held_back)

    def room(self, ahead: int) -> dict[JobPriority, int]:
        """How many that arrive now are among the next ``ahead`` to start, about. Any thread.

        For each priority behind those that are at least as urgent: a backlog of others is in nobody's way.
        """
        before = accumulate(map(self.startable, PRIORITIES))
        return {priority: ahead - count for priority, count in zip(PRIORITIES, before, strict=True)}

    def waiting_bytes(self, priority: JobPriority) -> int:
        """What all that wait hold in memory. Any thread."""
        return self.arrived_bytes[priority] - self._departed_bytes[priority]

    def startable_bytes(self, priority: JobPriority) -> int:
        """What those of them hold that wait neither behind their key nor for a process. Any thread."""
        return self.waiting_bytes(priority) - sum(held.bytes[priority] for held in self._held_back)

    def held_back_bytes(self, part: PartitionState) -> int:
        """What those of one partition hold that wait behind their key or for a process. Any thread."""
        return sum(held.bytes_of(part) for held in self._held_back)

    def upcoming(self, count: int) -> list[Message]:
        """About the next ``count`` that start, if nothing but a commit is in their way. Any thread.

        Read while the event loop goes on: each line is copied in one step of CPython's, and what is missed asks by itself.
        """
        found: list[Message] = []
        parked = list(self._parked.values())
        for queue in parked:
            # Each partition's share: they are what comes first of it.
            found += list(queue)[: -(-count // len(parked))]
        # Who waits behind the key of one of them, or for a process, would each ask for a commit of their own.
        found += self._keys.next_behind(found, count)
        for pool in self._pools:
            found += pool.ahead(1 + count // 4)
        return found + self._turns.ahead(count - len(found)) if len(found) < count else found

    def note_arrived(self, messages: Iterable[Message]) -> None:
        """Count what is on its way to ``add``. For the poll thread."""
        for message in messages:
            if message.priority is not None:
                self.arrived[message.priority] += 1
                self.arrived_bytes[message.priority] += message.size

    def add(self, messages: Iterable[Message]) -> None:
        """Messages from job topics, in the order of their partitions."""
        for message in messages:
            priority = message.priority
            assert priority is not None  # noqa: S101 - retry records do not come here
            if message.lost_worker:
                # At once: out of a buffer it comes only at the others' turn, and one of its key that must run alone
                # would start before it.
                self._accuse(message)
            elif (
                self._must_run_alone(message)
                and not self._buffers[priority]
                and message.part not in self._parked
            ):
                if self._keys.acquire(message):
                    self._alone.append(message)
            else:
                self._buffers[priority].append(message)

    def acquit(self, message: Message) -> None:
        """The verdict lets it start again, alone if it still has to; it keeps its key."""
        del self.accused[message]
        message.lost_worker = False
        assert message.priority is not None  # noqa: S101
        if self._must_run_alone(message):
            self._first_alone(message)
        else:
            self._buffers[message.priority].appendleft(message)
        if not self._isolating():
            # Who was heard of may have been others' owner too: they would wait, to run alone, for all that runs, perhaps for hours.
            self._sort_out()

    def bury(self, message: Message) -> None:
        """One of the accused will not be started any more: its key is free."""
        del self.accused[message]
        self._forget(message)

    def take(self, now_ms: int) -> Message | None:
        """The next message to start; its key is locked until ``done``. None: nothing can start now."""
        if self._isolating():
            if self.isolated is None:
                self._name_ahead(now_ms)
            return None
        for pool in self._pools:
            if pool.can_admit:
                # Half-minute innocents may have all places of the sandbox: hundreds of others, behind the key of one that waits
                # for a place, would wait for all of them.
                held_up_by = self._keys.held_up_by if pool is self._sandbox else None
                for admitted in reversed(pool.admit(now_ms, held_up_by=held_up_by)):
                    assert admitted.priority is not None  # noqa: S101
                    self._buffers[admitted.priority].appendleft(admitted)
        if self._alone and self._is_turn_of_alone(now_ms):
            message = self._take_alone(now_ms)
            if message is not None or self._alone or self._isolating():
                return message
            # None of them is left: their partitions are lost, or their owners were heard of.
        elif self._share.is_open and not self._alone:
            self._share.close(now_ms)  # else the hours until the next one would count as its turn
        message = self._take_in_turn(now_ms)
        if message is None and self._alone:
            return self._take_alone(now_ms)  # it is the turn of others, and none of them can start
        return message

    def _take_in_turn(self, now_ms: int) -> Message | None:
        while True:
            buffer = self._turns.choose(now_ms)
            if buffer is None:
                return None
            message = buffer.popleft()
            part = message.part
            if not part.may_run:
                self._forget(message)
            elif self._comes_after_parked(message) or part.is_beyond_reach(message.offset):
                # Without its key: others may need it to bring this one into reach.
                self._park(message)
            elif not self._keys.acquire(message):
                pass  # it waits behind its key
            elif self._must_run_alone(message):
                # Not before: one of its key that came earlier may still have been in the buffer. With its key: those after it
                # wait for that, and keep nobody else of their partition.
                self._alone.append(message)
            elif self._queue_for_process(message):
                part.hold(message.offset)  # it waits for a process, and keeps its key
            elif part.start(message.offset):
                self._start(message)
                return message
            else:
                self._park(message)  # it keeps its key: no later one of the same key may overtake it

    def _comes_after_parked(self, message: Message) -> bool:
        """Whether it would overtake within its partition. One that comes before them may be what they wait for."""
        parked = self._parked.get(message.part) if self._parked else None
        return parked is not None and message.offset > parked[0].offset

    def _queue_for_process(self, message: Message) -> bool:
        """Give it its place if it needs a process: one that may kill, in one where nothing else runs. True: it waits for that."""
        if not (message.part.suspects and self._is_for_sandbox(message)):
            if self._sandbox is not None:
                # While it waited, for its commit or for a place, an owner was heard of that it was suspected of: it is as any
                # other.
                self._sandbox.leave(message)
            if message.sandboxed:
                message.sandboxed = False
                self._leave_pool(message)
            return self._pool is not None and self._pool.queue_unless_free(message)
        apart = self._apart(message)
        assert apart is not None  # noqa: S101
        if apart.queue_unless_free(message):
            return True
        message.sandboxed = True
        # A death of its worker counts all the same: it may reach beyond its process.
        message.part.join(message.offset)
        return False

    def _is_for_sandbox(self, message: Message) -> bool:
        """Whether it was unfinished at two deaths, and is to run in a process of its own because of that."""
        return ALONE_AFTER <= _deaths(message) < SANDBOX_UNTIL and self._apart(message) is not None

    def _apart(self, message: Message) -> PoolPlaces | None:
        """Where it can be run in a process of its own."""
        if self._sandbox is not None and not message.kept_out and self._sandbox.needs(message):
            return self._sandbox
        if self._pool_keeps_apart and self._pool is not None and self._pool.needs(message):
            return self._pool
        return None

    def _must_run_alone(self, message: Message) -> bool:
        suspects = message.part.suspects
        if not suspects or message.offset not in suspects or message.lost_worker:
            return False
        return suspects[message.offset].deaths >= ALONE_AFTER and not self._is_for_sandbox(message)

    def _further_deaths(self, message: Message) -> int:
        """At how many deaths it was unfinished beyond those because of which it runs alone."""
        first = ALONE_AFTER if self._apart(message) is None else SANDBOX_UNTIL
        return max(_deaths(message) - first, 0)

    def done(self, message: Message) -> None:
        """A taken message is finished or was cancelled: its key is free for the next one in line."""
        self.running -= 1
        self._survivors.discard(message)
        self._leave_pool(message)
        self._no_longer_alone(message)
        self._unlock(message)

    def put_back(self, message: Message) -> None:
        """A taken message that was cancelled while its partition is still ours: it starts again, and keeps its key.

        One that ran alone and has given up its turn goes behind all that wait for theirs.
        """
        self.running -= 1
        self._survivors.discard(message)
        self._leave_pool(message)
        assert message.priority is not None  # noqa: S101
        self._departed[message.priority] -= 1
        self._departed_bytes[message.priority] -= message.size
        if message.sandboxed:
            message.sandboxed = False
            message.part.join(message.offset, joined=False)
        was_isolated = self.isolated is message
        # Until it starts again, a commit must not say any longer that it runs alone: if Kafka does not answer and this worker
        # has to end meanwhile, the job has not killed it.
        self._no_longer_alone(message)
        if not self._must_run_alone(message):
            self._buffers[message.priority].appendleft(message)
            return
        message.part.join(message.offset, joined=False)
        if was_isolated:
            self._was_isolated = None  # it is named, and comes first: nobody else starts before it
            self._alone.appendleft(message)
        else:
            self._alone.append(message)

    def survived(self) -> None:
        """The isolated message has run long enough without killing the process, or cannot run now: others may start again."""
        if self.isolated is not None:
            self.isolated.part.join(self.isolated.offset)
            self._survivors.add(self.isolated)
            self._no_longer_alone(self.isolated)

    def has_survived(self, age_ms: int) -> bool:
        """Whether the isolated message has run long enough. False if none is isolated."""
        message = self.isolated
        if message is None:
            return False
        further = self._further_deaths(message)
        return age_ms > alone_ms(further, hurried=self._is_hurried)

    def leave(self, message: Message) -> None:
        """A message that arrived and will not be added: its partition was lost while it waited elsewhere."""
        self._count_out(message)

    def unpark(self) -> None:
        """Start limits have moved: what was parked gets another chance, in its old order."""
        parked, self._parked = self._parked, {}
        for messages in parked.values():
            for message in reversed(messages):
                assert message.priority is not None  # noqa: S101
                self._buffers[message.priority].appendleft(message)

    def purge(self, parts: set[PartitionState]) -> int:
        """Forget everything that waits and belongs to these partitions. Returns how many."""
        dropped: list[Message] = []
        for message in [one for one in self.accused if one.part in parts]:
            del self.accused[message]
            dropped.append(message)
        for buffer in (*self._in_order, self._alone):
            dropped += [message for message in buffer if message.part in parts]
            kept = [message for message in buffer if message.part not in parts]
            buffer.clear()
            buffer.extend(kept)
        for part in parts:
            dropped += self._parked.pop(part, ())
        for pool in self._pools:
            dropped += pool.purge(parts)
        dropped += self._keys.purge(parts)
        for message in dropped:
            self._forget(message)
        return len(dropped)

    @property
    def has_ready(self) -> bool:
        """Whether ``take`` might give a message."""
        return not self._isolating() and (
            any(self._in_order)
            or (bool(self._alone) and not self._in_the_way())
            or any(pool.can_admit for pool in self._pools)
        )

    @property
    def has_parked(self) -> bool:
        """Whether messages wait for a commit; also for one that takes back that another runs alone."""
        return bool(self._parked) or bool(self._alone) or self._was_isolated is not None

    def turn_is_due(self, now_ms: int) -> bool:
        """Whether, with time, somebody may start who was held back by those that run alone, or they themselves."""
        return bool(self._alone) and self._share.is_due(now_ms)

    def _is_turn_of_alone(self, now_ms: int) -> bool:
        # Once a commit may say that it runs alone, a death of anybody else would be charged to it.
        if self._first_is_named():
            return True
        return self._share.holds_back(now_ms, running=self._in_the_way(), others=any(self._in_order))

    @property
    def _is_hurried(self) -> bool:
        return len(self._alone) > HURRIED_ABOVE

    @property
    def _is_beside_survivors(self) -> bool:
        """Whether one of them may start beside those that have survived and go on."""
        return bool(self._survivors) and self._is_hurried

    def _next_alone(self) -> Message | None:
        """The next of them. One with further deaths waits for survivors to end, and does not keep the others behind it."""
        first = None
        for message in self._alone:
            if not message.part.may_run:
                continue
            if not self._is_beside_survivors or not self._further_deaths(message):
                return message
            first = first or message
        return first

    def _in_the_way(self) -> int:
        """How many have to end before the next of those that must run alone may start."""
        message = self._next_alone()
        if message is None or not self._is_beside_survivors or self._further_deaths(message):
            return self.running
        return self.running - len(self._survivors)

    def _take_alone(self, now_ms: int) -> Message | None:
        """One of those that were unfinished at two deaths, when nothing else runs and a commit has said so.

        Beside a survivor or a stray thread no commit says it: at its worker's death it would be accused of what those did.
        """
        self._sort_out()
        message = None if self._isolating() else self._next_alone()
        if message is None or self._in_the_way():
            return None
        part = message.part
        if self.running or self.strays:
            part.join(message.offset)
        else:
            if part.alone != message.offset:
                part.name_alone(message.offset)
            if part.committed_alone != message.offset:
                return None
        if not part.start(message.offset):
            return None
        self._alone.remove(message)
        if self._pool is not None:
            self._pool.seize(message)
        self._start(message)
        self._share.started(now_ms)
        self.isolated = message
        return message

    def _name_ahead(self, now_ms: int) -> None:
        """The commit that says of one that it runs alone no longer says of the next one that it does: one commit for each."""
        if self._alone and not (self.running or self.strays) and self._is_turn_of_alone(now_ms):
            message = self._next_alone()
            if message is not None and message.part.alone != message.offset:
                message.part.name_alone(message.offset)

    def _sort_out(self) -> None:
        """Forget those of them whose partition is lost; those whose owners were heard of meanwhile are as any others.

        No map would name one of these: nothing would ever start again.
        """
        for message in reversed([one for one in self._alone if not self._must_run_alone(one)]):
            self._alone.remove(message)
            if not message.part.may_run:
                self._forget(message)
                continue
            if message.offset in (message.part.alone, message.part.committed_alone):
                message.part.name_alone(None)
                self._was_isolated = message
            assert message.priority is not None  # noqa: S101
            self._buffers[message.priority].appendleft(message)
        for message in [one for one in self._alone if not one.part.may_run]:
            self._alone.remove(message)
            self._forget(message)

    def _accuse(self, message: Message) -> None:
        """It waits for its verdict with its key, so that those after it wait as well; or behind its key until then."""
        if not message.part.may_run:
            self._forget(message)
            return
        self._line_up_before(message)
        if self._keys.acquire(message):
            self.accused[message] = None

    def _line_up_before(self, message: Message) -> None:
        """Those of its key that stand before it in its partition ask for that now: it would run before them.

        They had ended when it ran, and their outcome was not committed when its worker died.
        """
        priority, part = message.priority, message.part
        assert priority is not None  # noqa: S101
        waiting = [self._buffers[priority]]
        if part in self._parked:
            waiting.append(self._parked[part])
        if message.key is None or not any(waiting):
            return
        earlier = [one for some in waiting for one in some if one.part is part and one.key == message.key]
        behind = {one for one in sorted(earlier, key=lambda one: one.offset) if not self._keys.acquire(one)}
        if not behind:
            return
        for some in waiting:
            kept = [one for one in some if one not in behind]
            some.clear()
            some.extend(kept)
        if not waiting[-1]:
            self._parked.pop(part, None)

    def _first_alone(self, message: Message) -> None:
        """It has waited for its key or its verdict: before the others, but behind the one that a commit may name by now."""
        self._alone.insert(1 if self._first_is_named() else 0, message)

    def _first_is_named(self) -> bool:
        """Whether a commit may say that the first of them runs alone: planned, or not taken back yet."""
        if not self._alone:
            return False
        first = self._alone[0]
        part = first.part
        return part.may_run and first.offset in (part.alone, part.committed_alone)

    def _no_longer_alone(self, message: Message) -> None:
        if message.part.alone == message.offset:
            message.part.name_alone(None)
        if self.isolated is message:
            self.isolated, self._was_isolated = None, message

    def _isolating(self) -> bool:
        """Whether a message runs alone, or a commit still says so: a death now would be charged to it, whoever caused it.

        Forgets the one before as soon as a commit has taken that back.
        """
        if self.isolated is not None:
            return True
        before = self._was_isolated
        if before is not None:
            part = before.part
            if part.may_run and part.committed_alone == before.offset:
                return True
            self._was_isolated = None
        return False

    def _start(self, message: Message) -> None:
        assert message.priority is not None  # noqa: S101
        self._departed[message.priority] += 1
        self._departed_bytes[message.priority] += message.size
        self.running += 1

    def _park(self, message: Message) -> None:
        parked = self._parked.get(message.part)
        if parked is None:
            parked = self._parked[message.part] = deque()
            self.needs_commit = True
        parked.append(message)

    def _unlock(self, message: Message) -> None:
        """Its key is free for the next one in line whose partition is still ours."""
        following = self._keys.release(message)
        while following is not None and not following.part.may_run:
            self._count_out(following)
            following = self._keys.release(following)
        if following is None:
            return
        assert following.priority is not None  # noqa: S101
        if following.lost_worker:
            self.accused[following] = None
        elif self._must_run_alone(following):
            self._first_alone(following)  # it waited behind an accused one
        else:
            self._buffers[following.priority].appendleft(following)

    def _forget(self, message: Message) -> None:
        """A waiting message whose partition is lost: another worker will get it."""
        self._count_out(message)
        self._unlock(message)  # it may hold its key already, handed over and not started

    def _count_out(self, message: Message) -> None:
        self._leave_pool(message)
        assert message.priority is not None  # noqa: S101
        self._departed[message.priority] += 1
        self._departed_bytes[message.priority] += message.size

    def _leave_pool(self, message: Message) -> None:
        for pool in self._pools:
            pool.leave(message)
