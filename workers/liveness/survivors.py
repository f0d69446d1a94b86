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


def signs_of_life(settings: Settings, codec: Codec, losses: Mapping[str, int], lease_ms: int = 0) -> Signs:
    """What became of these incarnations. Blocks, twenty seconds at most.

    Args:
        settings: where the reports are.
        codec: reads them.
        losses: incarnation to the time of its loss. All times are milliseconds of broker time; 0: nobody knows any more.
        lease_ms: a worker without an answer for so long cancels everything; 0: outages do not matter.
    """
    heard: dict[str, int] = {}
    last: dict[str, int] = {}
    replaced: set[str] = set()
    at_rest: set[str] = set()
    lost = {incarnation: at for incarnation, at in losses.items() if at}
    if not lost:
        return Signs(heard)
    places: dict[bytes | None, set[str]] = {}
    #: Lost ones that a later report names which we cannot read, being of another release, say: they may be alive.
    unreadable: set[str] = set()
    passed_over = 0
    times = ReportTimes()
    # Hundreds of workers send hundreds of reports a second: those that tell nothing are not decoded.
    around = frozenset(lost.values()) if lease_ms else frozenset[int]()

    def look(message: Message) -> None:
        nonlocal passed_over
        value, worker, written_ms = message.value() or b"", message.key(), message.timestamp()[1]
        named = next((name for name in lost if name.encode() in value), None)
        is_near = any(abs(written_ms - at) < _RECENT_MS for at in around)
        if named is None and worker not in places and not is_near:
            return
        report = _report(codec, value)
        if report is None:
            passed_over += 1
            if named is not None and written_ms > lost[named]:
                unreadable.add(named)
            return
        times.note(report.incarnation, report.at, written_ms)
        if named is None and worker not in places:
            return
        here = places.setdefault(worker, set())
        replaced.update(here - {report.incarnation})
        if report.incarnation in lost:
            here.add(report.incarnation)
            replaced.discard(report.incarnation)
            lost_ms = lost[report.incarnation]
            if report.state in (CUT_OFF, _ENDED):
                last.pop(report.incarnation, None)
                # One that ends by itself may have been ended by its job, as often as it comes back.
                if report.state == CUT_OFF:
                    at_rest.add(report.incarnation)
            elif written_ms <= lost_ms:
                last[report.incarnation] = report.at
                at_rest.discard(report.incarnation)
            if report.state == LEFT:
                heard[report.incarnation] = max(written_ms, lost_ms + 1)
            elif written_ms > lost_ms and report.state != _ENDED:
                heard[report.incarnation] = written_ms

    start = since(max(min(lost.values()) - _LAST_WORDS_MS, 0))
    try:
        found = scan(settings, [settings.topics.reports], look, timeout_s=_ANSWER_S, start=start)
    except (PipelineError, KafkaException) as error:
        log.warning("reports not to be read: nobody knows who lives", owners=sorted(losses), error=str(error))
        return Signs({}, complete=False)
    log.info(
        "lost owners looked for",
        owners=sorted(losses),
        alive=sorted(heard),
        replaced=sorted(replaced),
        unreadable=sorted(unreadable),
        passed_over=passed_over or None,
        complete=found.complete,
    )
    return Signs(
        heard,
        frozenset(replaced),
        found.complete and not unreadable - heard.keys(),
        {incarnation: times.made_ms(incarnation, made_ms) for incarnation, made_ms in last.items()},
        frozenset(at_rest),
        times.outages(lease_ms) if lease_ms else (),
    )


def _report(codec: Codec, value: bytes) -> WorkerReport | None:
    try:
        return decode_report(codec, value)
    except WireError:
        return None
