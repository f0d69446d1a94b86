"""What every command does alike: data on stdout, everything else on stderr, errors in one line, exit codes.

0 ok · 1 failed · 2 wrong usage · 3 Kafka cannot be reached · 130 ended by Ctrl-C
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from schemas.errors import (
    InvalidJob,
    JobTypeError,
    KafkaUnreachable,
    PipelineError,
    SettingsError,
    UnknownJobType,
)

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130


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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # librdkafka's own lines: what it retries by itself is no news.
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("rustfs_workers.librdkafka").setLevel(logging.ERROR)


def coloured(stream: Any) -> bool:
    """Whether people look at this stream, and want colours."""
    import os

    return bool(stream.isatty()) and not os.environ.get("NO_COLOR")


def emit(record: Mapping[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def exit_code(error: BaseException) -> int:
    """The code that stands for this error."""
    match error:
        case KafkaUnreachable():
            return UNREACHABLE
        case SettingsError() | UnknownJobType() | InvalidJob() | JobTypeError():
            return USAGE
        case KeyboardInterrupt():
            return INTERRUPTED
        case _:
            return FAILED


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error that has a name is a line on stderr and an exit code; one that has none is a bug, and shows its trace."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(INTERRUPTED) from error
    except PipelineError as error:
        say(f"error: {error}")
        raise SystemExit(exit_code(error)) from error
    except KafkaException as error:
        say(f"error: Kafka says: {error.args[0]}")
        raise SystemExit(FAILED) from error
    except BrokenPipeError as error:  # `… | head` has seen enough
        sys.stderr.close()
        raise SystemExit(OK) from error


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]] | list[str]) -> None:
    """A table for people, on stdout, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    names = list(columns)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        shown.add_column(name, overflow="fold" if name == "id" else "ellipsis", no_wrap=True)
    for row in rows:
        shown.add_row(*(("" if row.get(name) is None else str(row.get(name))) for name in names))
    Console(no_color=not coloured(sys.stdout), width=None if sys.stdout.isatty() else 200).print(shown)
