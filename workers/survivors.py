"""Owners that were taken for dead and have been heard of since: frozen for a while, or cut off from Kafka.

In:  incarnations and when each was lost. Out: when they reported last, if that was later.

A lost session looks like a death, and nobody can tell the difference until the process is heard of again. So a loss
counts against the records that were unfinished, and is taken back before it has a consequence: before one of
them runs alone, or is dead-lettered as the one that kills.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from confluent_kafka import KafkaException, Message

from schemas.codec import Codec
from schemas.errors import PipelineError, WireError
from schemas.records import decode_report
from streams.scan import scan, since
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.survivors")

_ANSWER_S: Final = 5.0
#: A process that ends without a drain says so until it is gone: that it still speaks is no sign of life.
_ENDED: Final = "stopped"


def last_heard(settings: Settings, codec: Codec, losses: Mapping[str, int]) -> dict[str, int]:
    """When each of these incarnations reported last, as far as that was after its loss. Blocks, ten seconds at most.

    Args:
        settings: where the reports are.
        codec: reads them.
        losses: incarnation to the time of its loss. All times are milliseconds of broker time.

    Whoever is not found in time counts as dead, and so does everybody if the reports cannot be read.
    """
    heard: dict[str, int] = {}
    names = {incarnation.encode(): at for incarnation, at in losses.items() if at}
    if not names:
        return heard

    def look(message: Message) -> None:
        value = message.value() or b""
        written_ms = message.timestamp()[1]
        for name, lost_ms in names.items():
            if name in value and written_ms > lost_ms and _speaks(codec, value, name.decode()):
                heard[name.decode()] = written_ms

    reports = settings.topics.reports
    try:
        found = scan(settings, [reports], look, timeout_s=_ANSWER_S, start=since(min(names.values())))
    except (PipelineError, KafkaException) as error:
        log.warning(
            "reports not to be read: lost owners count as dead", owners=sorted(losses), error=str(error)
        )
        return heard
    log.info("lost owners looked for", owners=sorted(losses), alive=sorted(heard), complete=found.complete)
    return heard


def _speaks(codec: Codec, value: bytes, incarnation: str) -> bool:
    try:
        report = decode_report(codec, value)
    except WireError:
        return False
    return report.incarnation == incarnation and report.state != _ENDED
