"""Hears every line of a client's librdkafka, whatever the program does with its logging.

A lost connection that was made again, and a heartbeat that was not answered, leave no other trace than such a line, and
guarantees hang on both. ``logging.disable()``, or ``dictConfig()``, which turns off the loggers that it does not name,
in a module of a user's jobs must not make a worker deaf.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


class ClientLog(logging.Logger):
    """For ``logger`` in a client's configuration; known by no name, so that it goes with its client.

    Args:
        hear: gets each line, in the thread that polls the client.
        onward: gets it as well, if it wants lines of that level.
    """

    def __init__(self, hear: Callable[[str], None], onward: logging.Logger | None = None) -> None:
        super().__init__(f"{onward.name if onward else 'rustfs_workers'}.client", logging.DEBUG)
        self._hear = hear
        self._onward = onward

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - it is called so in logging
        """Always."""
        return True

    def _log(self, level: int, msg: object, args: Any, **more: Any) -> None:  # type: ignore[override]
        # First of all: the making of records is the program's as well.
        self._hear(str(msg) % args if args else str(msg))
        if self._onward is not None and self._onward.isEnabledFor(level):
            super()._log(level, msg, args, **more)

    def handle(self, record: logging.LogRecord) -> None:
        """A line that goes onward."""
        if self._onward is not None:
            self._onward.handle(record)


class ConnectionWatch:
    """Notices, from librdkafka's own log, that a connection was lost while a transaction was open.

    librdkafka retries an EndTxn by itself and then reports success; the straggler can still arrive later, inside the next
    transaction of the same epoch. This is the only trace that it leaves. For one producer: librdkafka keeps repeated lines
    to itself, so whoever has heard one between two transactions makes a new producer.
    """

    def __init__(self) -> None:
        self.lost = False
        #: Connections that were there and are lost; those that could not be made are none.
        self.times = 0
        self.logger = ClientLog(self.hear)

    def hear(self, line: str) -> None:
        """One line of librdkafka's log."""
        if "FAIL" in line or "Disconnected" in line or "REQTMOUT" in line:
            self.lost = True
            self.times += "Connect to " not in line
