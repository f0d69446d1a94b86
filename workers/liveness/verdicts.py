"""Jobs whose worker was lost while they ran alone: each waits for the verdict whether that worker is dead.

In:  accused messages, and what the reports say. Out: each is buried as ``worker_lost``, or starts again.

Who dies alone was killed by what it ran; but a frozen worker looks dead as well, and wakes up a moment later. So the job
waits, with its key, until its worker is heard of, or another one has taken its name, or nothing was heard for so long
that it must be dead. While nobody can read the reports, nobody is judged. The same goes for the owners that were lost before: where it
takes their deaths to make three, each of them is waited for as well.

And a worker from which Kafka was away has cancelled the job, and could not say so: whatever ended it then, it may not have been
the job. A Kafka that has been started gives everybody a new session, so the loss is noticed late, compared with the last
report; one that was only frozen has taken others' reports late. Such a job runs alone once more. Where nothing says that Kafka
was away, nor that it was there, its sixth death counts: of a worker that was the only one nobody can tell more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any, Final

import structlog

from schemas.offsetmap import MAX_OWNERS
from workers.blocking import in_thread
from workers.liveness.survivors import Signs
from workers.message import Message
from workers.offsets import ALONE_AFTER, PartitionState
from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.verdicts")

_LOOK_EVERY_S: Final = 3.0
#: Looks at the reports that did not come to an end in time: so many, and they never will.
_LOOKS_IN_VAIN: Final = 10
#: So many make a job a dead letter: those after which it runs alone, and one in which it did.
_DEATHS: Final = ALONE_AFTER + 1


class Verdicts:
    """For the event loop; the reports are read in a thread.

    Args:
        scheduler: holds the accused.
        lock: of the partitions' states.
        signs: reads the reports; blocks.
        now_ms: broker time.
        patience_ms: since the loss; a worker that is silent for so long is dead.
        noticed_ms: so long before the loss was the last report at the most if Kafka was there all the time.
        acquitted: the message may start; it is with the scheduler again.
        buried: the message is to be dead-lettered; the scheduler has forgotten it.
        doubted: the message has to run alone once more; it is with the scheduler again.
        on_failure: called with an error of our own.
        look_every_s: between two looks at the reports.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        lock: Lock,
        signs: Callable[[Mapping[str, int]], Signs],
        now_ms: Callable[[], int],
        patience_ms: int,
        noticed_ms: Callable[[], int],
        acquitted: Callable[[Message], None],
        buried: Callable[[Message], None],
        doubted: Callable[[Message], None],
        on_failure: Callable[[BaseException], None],
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._signs = signs
        self._now_ms = now_ms
        self._patience_ms = patience_ms
        self._noticed_ms = noticed_ms
        self._acquitted = acquitted
        self._buried = buried
        self._doubted = doubted
        self._on_failure = on_failure
        self._look_every_s = look_every_s
        self._open: set[Message] = set()
        #: Looks at all reports that came to no end, of each.
        self._in_vain: Counter[Message] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self._stopped = False

    def expect(self, messages: Iterable[Message]) -> None:
        """These are on their way to the scheduler."""
        if self._stopped:
            return
        for message in messages:
            owner, lost_ms = message.part.charge(message.offset)
            log.warning(
                "job waits: its worker was lost while it ran alone, and is given time to be heard of",
                job_id=message.job_id_text,
                at=message.where,
                owner=owner,
                seconds=max((lost_ms + self._patience_ms - self._now_ms()) / 1000, 0),
            )
            self._open.add(message)
        # A watch that has returned is told of as ended a moment later: nobody would look for who comes in between.
        if self._open and (self._watch is None or self._watch.done()):
            self._watch = asyncio.get_running_loop().create_task(self._look(), name="verdicts")
            self._watch.add_done_callback(self._ended)

    def purge(self, parts: set[PartitionState]) -> None:
        """Forget those of these partitions: their next owner waits for the rest of the time."""
        for message in [message for message in self._open if message.part in parts]:
            self._close(message)

    async def stop(self) -> None:
        """Judge nobody any more, whoever still comes."""
        self._stopped = True
        self._open.clear()
        self._in_vain.clear()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))

    async def _look(self) -> None:
        while self._open:
            losses, began_ms = self._losses(), self._now_ms()
            signs = await in_thread(self._signs, losses)
            # Those that still wait for their turn, or behind their key, are judged when they have it: in their order.
            for message in [one for one in self._scheduler.accused if one in self._open]:
                # Who has come in the meantime: nobody has looked for its worker yet.
                if message.part.charge(message.offset)[0] in losses:
                    self._judge(message, signs, began_ms)
            if self._open:
                await asyncio.sleep(self._look_every_s)

    def _losses(self) -> dict[str, int]:
        losses: dict[str, int] = {}
        for message in self._open:
            owner, lost_ms = message.part.charge(message.offset)
            for one, at in ((owner, lost_ms), *_earlier(message).items()):
                losses[one] = min(at, losses.get(one, at))
        return losses

    def _judge(self, message: Message, signs: Signs, began_ms: int) -> None:
        part = message.part
        owner, lost_ms = part.charge(message.offset)
        silent_ms = began_ms - lost_ms
        if not owner or signs.heard.get(owner, 0) > lost_ms:
            with self._lock:
                part.absolve((owner,))
                part.dirty = True
            self._close(message)
            self._scheduler.acquit(message)
            self._acquitted(message)
        elif not signs.complete:
            self._in_vain[message] += 1
            if self._in_vain[message] >= _LOOKS_IN_VAIN:
                # It was lost so long ago that nobody can read all that was reported since. The next loss will be a young one.
                log.warning("reports cannot be read to their end: no proof", at=message.where, owner=owner)
                self._doubt(message)
        elif owner in signs.replaced or silent_ms >= self._patience_ms:
            alive = {one for one, at in _earlier(message).items() if signs.heard.get(one, 0) > at}
            if alive:
                with self._lock:
                    part.absolve(alive)
                    part.dirty = True
            deaths = part.suspects[message.offset].deaths
            unsure = [
                one
                for one, at in _earlier(message).items()
                if one not in signs.replaced and began_ms - at < self._patience_ms
            ]
            if unsure and deaths - len(unsure) < _DEATHS:
                return
            if (not alive or deaths >= _DEATHS) and self._is_proven(message, owner, lost_ms, signs):
                self._close(message)
                self._scheduler.bury(message)
                self._buried(message)
            else:
                self._doubt(message)

    def _doubt(self, message: Message) -> None:
        self._close(message)
        with self._lock:
            message.part.doubt(message.offset)
        self._scheduler.acquit(message)
        self._doubted(message)

    def _close(self, message: Message) -> None:
        self._open.discard(message)
        del self._in_vain[message]

    def _is_proven(self, message: Message, owner: str, lost_ms: int, signs: Signs) -> bool:
        """Whether the death was its doing: not while Kafka was away; where that is unknown, from the sixth death on."""
        last_ms = signs.last.get(owner)
        away = [(begin, end) for begin, end in signs.outages if begin < lost_ms and end > (last_ms or 0)]
        if not away and owner not in signs.at_rest:
            if last_ms is not None and lost_ms - last_ms <= self._noticed_ms():
                return True
            if message.part.suspects[message.offset].deaths >= MAX_OWNERS:
                return True
        log.warning(
            "a death that is no proof: Kafka may have been away when the job's worker died",
            job_id=message.job_id_text,
            at=message.where,
            owner=owner,
            last_report_s_before=None if last_ms is None else (lost_ms - last_ms) / 1000,
            reports_late_by_s=[(end - begin) / 1000 for begin, end in away],
        )
        return False

    def _ended(self, watch: asyncio.Task[Any]) -> None:
        if self._watch is watch:
            self._watch = None
        if not watch.cancelled() and (error := watch.exception()) is not None:
            self._on_failure(error)


def _earlier(message: Message) -> dict[str, int]:
    """The owners that were lost before the last one, and when, where that is known."""
    part = message.part
    suspect = part.suspects.get(message.offset)
    if suspect is None:
        return {}  # with another one of its partition all that it was charged with has been taken back
    losses = ((one, part.losses.get(one, 0)) for one in suspect.owners if one != suspect.alone)
    return {one: at for one, at in losses if at}
