"""Logs: one event a line on stderr, each with the name of the worker that says it.

In:  a level and a form. Out: structlog and the standard library's logging, set up for a whole process.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any, Final, TextIO

#: What stands on every line of this process.
_NAMES: Final[dict[str, str]] = {}


def name_lines(**names: str) -> None:
    """From now on every line of this process bears these: several processes write into the same file, or terminal.

    An event that has such a field of its own keeps it.
    """
    _NAMES.update(names)


def _named(_logger: object, _method: str, event: Any) -> Any:
    for name, value in _NAMES.items():
        event.setdefault(name, value)
    return event


class LogStream:
    """Where logs go: a full disk, or a reader that is gone, costs their lines, and never the work that they tell of.

    Without it an error of the stream would be raised in whatever logs: it failed jobs, and made workers deaf to SIGTERM.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; as the standard library's logging, there is nobody left to be told of the rest."""
        try:
            self._stream.write(text)
        except OSError:
            _forgive(self._stream)
        return len(text)

    def flush(self) -> None:
        """As ``write``."""
        try:
            self._stream.flush()
        except OSError:
            _forgive(self._stream)


@cache
def _forgive(stream: TextIO) -> None:
    """Python writes what is left in the buffer once more at its end, and exits with 120 if it cannot: then it goes nowhere."""

    def at_the_end() -> None:
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    atexit.register(at_the_end)


def is_json() -> bool:
    """Whether the log has been set up for programs."""
    if "structlog" not in sys.modules:
        return False
    import structlog

    return isinstance(structlog.get_config()["processors"][-1], structlog.processors.JSONRenderer)


def configure_logging(level: str = "info", form: str = "console") -> None:
    """One event a line on stderr; ``json`` for programs, ``console`` for people (colours only on a terminal)."""
    import structlog  # a fifth of a second: help and version do without

    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = structlog.processors.JSONRenderer()
    if form == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=coloured(sys.stderr))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(LogStream(sys.stderr)),  # type: ignore[arg-type]  # print() asks no more
        cache_logger_on_first_use=True,
    )
    # Lines of libraries look like ours: a program that reads JSON finds nothing else.
    handler = logging.StreamHandler(LogStream(sys.stderr))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                _named,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.format_exc_info,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # What librdkafka tries again by itself is no news.
    logging.getLogger("rustfs_workers.librdkafka").setLevel(logging.ERROR)


def coloured(stream: Any) -> bool:
    """Whether people look at this stream, and want colours."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR")
