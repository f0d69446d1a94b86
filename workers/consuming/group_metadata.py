"""Which metadata of the group a commit is sent with: those of the last assignment, and newer ones only after refusals.

In:  what the poll thread learns from its consumer, and what the commit thread says of refusals.
Out: metadata for new partitions, and now and then newer ones for those that we still have.

Kafka refuses offsets whose metadata are of a generation that it does not know any more. That is our fence: metadata
taken anew at a refusal would pass, with a partition that somebody else has by now.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from workers.liveness.lease import Lease

#: Newer metadata wait for this share of the lease, at most so many seconds: a heartbeat or two have been answered by then.
_TOLD_WITHIN: Final = 0.5
_TOLD_WITHIN_S: Final = 10.0
#: Longer than a transaction takes to be tried again.
_STILL_REFUSED_S: Final = 20.0


class GroupMetadata:
    """``current`` may be read from any thread; ``refused`` is for the commit thread, the rest for the poll thread."""

    def __init__(self, lease: Lease) -> None:
        #: From the last assignment, or offered since; None before the first.
        self.current: Any = None
        self._lease = lease
        #: Partitions have changed, or there is something newer, since the last call of ``refused``.
        self.changed = threading.Event()
        #: When Kafka refused the metadata of a partition of ours; and newer ones, with the time from which they have to wait.
        self._refused_at = -math.inf
        self._newer: tuple[float, Any] | None = None
        #: Those that have waited long enough, until the commit thread takes them.
        self._offered: Any = None

    def take(self, consumer: Consumer) -> None:
        """An assignment has come: its partitions are committed with the metadata as they are now."""
        self.current = consumer.consumer_group_metadata()

    def partitions_changed(self) -> None:
        """What was refused is another question now."""
        self._refused_at, self._newer, self._offered = -math.inf, None, None
        self.changed.set()

    def refused(self, timeout_s: float) -> Any:
        """Kafka refuses metadata of ours. Wait until partitions have changed or newer metadata may be tried, or for ``timeout_s``.

        Returns those, or None. For one thread. Returns at once if there was a change since the last call.
        """
        self._refused_at = time.monotonic()
        self.changed.wait(timeout_s)
        self.changed.clear()
        offered, self._offered = self._offered, None
        return offered

    def look_for_newer(self, consumer: Consumer, now: float) -> None:
        """After refusals: if nothing is taken from us for as long as that takes to be told, newer metadata can be tried.

        Those from before that time: with newer ones would come what has not been told yet. A Kafka older than 4.3 wants them
        after every change of the group; a later one if it has forgotten a partition, and given it to us again.
        """
        if now - self._refused_at > _STILL_REFUSED_S:
            self._newer = None
        elif self._newer is None:
            self._newer = now, consumer.consumer_group_metadata()
        elif now - self._newer[0] > min(_TOLD_WITHIN * self._lease.seconds, _TOLD_WITHIN_S):
            self.current = self._offered = self._newer[1]
            self._refused_at, self._newer = -math.inf, None
            self.changed.set()
