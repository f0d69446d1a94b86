"""Two processes with one worker id: each takes the transactional id from the other, for ever.

In:  the moments at which another producer took our id, and the reports of all workers. Out: the other one, if it
lives.

Being fenced once is ordinary: a successor that ends what it thinks a dead worker left open does it, and a transaction
that took too long looks the same. So it takes two within a minute and a report, written after that, by another
incarnation that means to stay. The one that began first goes on: both would leave if each left to the other.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.codec import Codec
from schemas.errors import PipelineError, WireError, WorkerIdTaken
from schemas.records import WorkerReport, decode_report
from streams.clients import admin_config, reader_config
from streams.scan import LATEST, offsets, partitions_of
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.rival")

WINDOW_S: Final = 60.0
#: Everybody reports once a second; a busy machine may be late.
PATIENCE_S: Final = 4.0
_ANSWER_S: Final = 5.0
#: What one that is gone has said last, or one that is about to go: it would be replaced by nobody if we left to it.
_LEAVING: Final = frozenset({"draining", "stopped", "left"})


class FenceCount:
    """Pure: whether being fenced has become a habit."""

    def __init__(self) -> None:
        self._last: float | None = None

    def again(self, now_s: float) -> bool:
        """Note that it happened. True: it happened before within a minute."""
        last, self._last = self._last, now_s
        return last is not None and now_s - last <= WINDOW_S


class RivalWatch:
    """Looks for the other one when being fenced has become a habit. ``fenced`` is for one thread.

    Args:
        find: the report of one that stays; blocks for seconds.
        leave_to: there is one. Called in a thread of its own.
    """

    def __init__(
        self, find: Callable[[], WorkerReport | None], leave_to: Callable[[WorkerReport], None]
    ) -> None:
        self._find = find
        self._leave_to = leave_to
        self._fences = FenceCount()
        self._looks = threading.Lock()

    def fenced(self) -> None:
        """Another producer took our transactional id. Once can be a mistake; twice, and somebody else lives by our name."""
        if self._fences.again(time.monotonic()) and not self._looks.locked():
            # Not in the caller's, the commit thread: it takes seconds, in which nobody's offsets would be answered.
            with contextlib.suppress(RuntimeError):  # the system has no thread left: the next time will do
                threading.Thread(target=self._look, name="rival", daemon=True).start()

    def _look(self) -> None:
        with self._looks:
            try:
                rival = self._find()
            except (PipelineError, KafkaException) as error:
                log.warning("fenced twice, and the reports cannot be read", error=str(error))
                return
            if rival is not None:
                self._leave_to(rival)


def goes_on(report: WorkerReport, started_ms: int, incarnation: str) -> bool:
    """Whether the one that reports so stays, and we, who began at ``started_ms``, have to leave."""
    if report.incarnation == incarnation or report.state in _LEAVING:
        return False
    return (report.started_at, report.incarnation) < (started_ms, incarnation)


def find_rival(
    settings: Settings,
    codec: Codec,
    name: str,
    incarnation: str,
    started_ms: int,
    *,
    patience_s: float = PATIENCE_S,
) -> WorkerReport | None:
    """A report of another incarnation of ``name`` that stays, written from now on; None if there is none in time. Blocks.

    ``started_ms``: when this one began, as its own reports say.

    Raises:
        PipelineError, KafkaException: the reports cannot be read.
    """
    admin = AdminClient(admin_config(settings))
    places = partitions_of(settings, admin, [settings.topics.reports], _ANSWER_S)
    ends = offsets(settings, admin, places, LATEST, timeout_s=_ANSWER_S)
    consumer = Consumer(reader_config(settings))
    try:
        consumer.assign([TopicPartition(topic, number, end) for (topic, number), end in ends.items()])
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            message = consumer.poll(left)
            if message is None or message.error() is not None or message.key() != name.encode():
                continue
            try:
                report = decode_report(codec, message.value() or b"")
            except WireError as error:
                log.info("unreadable report", error=str(error))
                continue
            if goes_on(report, started_ms, incarnation):
                return report
        return None
    finally:
        consumer.close()


def worker_id_taken(rival: WorkerReport, incarnation: str, host: str) -> WorkerIdTaken:
    """What to raise about it."""
    since = datetime.fromtimestamp(rival.started_at / 1000, UTC).isoformat(timespec="seconds")
    return WorkerIdTaken(
        f"worker id {rival.worker_id!r} is used by another process as well: incarnation {rival.incarnation} on "
        f"{rival.host}, running since {since}. This one (incarnation {incarnation} on {host}) stops, the other "
        "goes on; give each worker an id of its own with --worker-id or RUSTFS_WORKERS_WORKER_ID"
    )
