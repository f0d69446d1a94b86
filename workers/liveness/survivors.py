"""Owners that were taken for dead: who of them has been heard of since, and whose place is taken.

In:  incarnations and when each was lost. Out: signs of life, and of death.

A lost session looks like a death, and nobody can tell the difference until the process is heard of again: it may have been
frozen for a while, or cut off from Kafka. So a loss counts against the records that were unfinished, and is taken back
before it has a consequence: before one of them runs alone, or is dead-lettered as the one that kills.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from confluent_kafka import KafkaException, Message

from schemas.codec import Codec
from schemas.errors import PipelineError, WireError
from schemas.records import WorkerReport, decode_report
from streams.scan import scan, since
from streams.settings import Settings
from workers.liveness.report_times import ReportTimes

log = structlog.get_logger("rustfs_workers.survivors")

_ANSWER_S: Final = 5.0
#: A process that ends without a drain says so until it is gone: that it still speaks is no sign of life. Nor has a job ended it.
_ENDED: Final = "stopped"
#: The last word of one that has drained. Nothing ran any more, so it did not die of a job, though its last commit, which would
#: have said the same, did not reach a Kafka that was away just then.
LEFT: Final = "left"
#: Kafka had not answered for so long that everything was cancelled, and nothing has started since.
CUT_OFF: Final = "cut_off"
#: Its last words are so much older than its loss at the most: the session that had to run out, and a slow takeover.
_LAST_WORDS_MS: Final = 120_000
#: What others report so long before and after a loss tells whether Kafka was there.
_RECENT_MS: Final = 15_000


@dataclass(frozen=True, slots=True)
class Signs:
    """What the reports say of lost owners."""

    #: Incarnation to the time of a report that it made after its loss: it was alive. One that left in order counts as heard then.
    heard: Mapping[str, int]
    #: Under their names others report since, and only one process can have a name: they are gone.
    replaced: frozenset[str] = frozenset()
    #: False: some reports were not to be had in time, or cannot be read, so that nothing was heard of somebody means nothing.
    complete: bool = True
    #: Incarnation to when it made its last report before its loss, if something may have run then.
    last: Mapping[str, int] = field(default_factory=dict)
    #: Their last reports say that Kafka did not answer, and nothing ran: no job has ended them.
    at_rest: frozenset[str] = frozenset()
    #: From when to when Kafka did not take somebody's reports.
    outages: tuple[tuple[int, int], ...] = ()


class ReportFold:
    """What all reports together say of lost owners. Pure state, for one look at them.

    Args:
        codec: reads them.
        lost: incarnation to the time of its loss, none of them 0.
        lease_ms: see ``signs_of_life``.
    """

    def __init__(self, codec: Codec, lost: Mapping[str, int], lease_ms: int) -> None:
        self._codec = codec
        self._lost = lost
        self._lease_ms = lease_ms
        self._names = {name: name.encode() for name in lost}
        # Hundreds of workers send hundreds of reports a second: those that tell nothing are not decoded.
        self._around = frozenset(lost.values()) if lease_ms else frozenset[int]()
        self._heard: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._at_rest: set[str] = set()
        self._replaced: set[str] = set()
        #: Key of reports to the lost ones that have reported under it.
        self._places: dict[bytes | None, set[str]] = {}
        self._times = ReportTimes()
        #: Lost ones that a later report names which we cannot read, being of another release, say: they may be alive.
        self.unreadable: set[str] = set()
        self.passed_over = 0

    def note(self, worker: bytes | None, value: bytes, written_ms: int) -> None:
        """One report, in the order of the topic: its key, its bytes, and when the broker has written it."""
        named = next((name for name, written in self._names.items() if written in value), None)
        is_one_of_theirs = named is not None or worker in self._places
        if not is_one_of_theirs and not any(abs(written_ms - at) < _RECENT_MS for at in self._around):
            return
        try:
            report = decode_report(self._codec, value)
        except WireError:
            self.passed_over += 1
            if named is not None and written_ms > self._lost[named]:
                self.unreadable.add(named)
            return
        self._times.note(report.incarnation, report.at, written_ms)
        if not is_one_of_theirs:
            return
        here = self._places.setdefault(worker, set())
        self._replaced.update(here - {report.incarnation})
        if report.incarnation in self._lost:
            here.add(report.incarnation)
            self._replaced.discard(report.incarnation)
            self._note_own(report, written_ms)

    def signs(self, *, complete: bool) -> Signs:
        """Of what has been noted; ``complete``: that is all there is."""
        return Signs(
            self._heard,
            frozenset(self._replaced),
            complete and not self.unreadable - self._heard.keys(),
            {name: self._times.made_ms(name, made_ms) for name, made_ms in self._last.items()},
            frozenset(self._at_rest),
            self._times.outages(self._lease_ms) if self._lease_ms else (),
        )

    def _note_own(self, report: WorkerReport, written_ms: int) -> None:
        """A report of a lost one."""
        name, lost_ms = report.incarnation, self._lost[report.incarnation]
        if report.state in (CUT_OFF, _ENDED):
            self._last.pop(name, None)
            # One that ends by itself may have been ended by its job, as often as it comes back.
            if report.state == CUT_OFF:
                self._at_rest.add(name)
        elif written_ms <= lost_ms:
            self._last[name] = report.at
            self._at_rest.discard(name)
        if report.state == LEFT:
            self._heard[name] = max(written_ms, lost_ms + 1)
        elif written_ms > lost_ms and report.state != _ENDED:
            self._heard[name] = written_ms


def signs_of_life(settings: Settings, codec: Codec, losses: Mapping[str, int], lease_ms: int = 0) -> Signs:
    """What became of these incarnations. Blocks, twenty seconds at most.

    Args:
        settings: where the reports are.
        codec: reads them.
        losses: incarnation to the time of its loss. All times are milliseconds of broker time; 0: nobody knows any more.
        lease_ms: a worker without an answer for so long cancels everything; 0: outages do not matter.
    """
    lost = {incarnation: at for incarnation, at in losses.items() if at}
    if not lost:
        return Signs({})
    fold = ReportFold(codec, lost, lease_ms)

    def look(message: Message) -> None:
        fold.note(message.key(), message.value() or b"", message.timestamp()[1])

    start = since(max(min(lost.values()) - _LAST_WORDS_MS, 0))
    try:
        found = scan(settings, [settings.topics.reports], look, timeout_s=_ANSWER_S, start=start)
    except (PipelineError, KafkaException) as error:
        log.warning("reports not to be read: nobody knows who lives", owners=sorted(losses), error=str(error))
        return Signs({}, complete=False)
    signs = fold.signs(complete=found.complete)
    log.info(
        "lost owners looked for",
        owners=sorted(losses),
        alive=sorted(signs.heard),
        replaced=sorted(signs.replaced),
        unreadable=sorted(fold.unreadable),
        passed_over=fold.passed_over or None,
        complete=found.complete,
    )
    return signs
