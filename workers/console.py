"""What every command does alike: data on stdout, everything else on stderr, errors in one line, exit codes.

0 ok · 1 failed · 2 wrong usage · 3 Kafka cannot be reached · 130 ended by Ctrl-C
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import (
    JobRefused,
    JobTypeError,
    KafkaUnreachable,
    PipelineError,
    SettingsError,
    WorkerIdTaken,
)
from workers.lean import import_structlog
from workers.logs import LogStream, coloured, configure_logging, is_json

if TYPE_CHECKING:
    from streams.settings import Settings

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

#: Characters of a table's last column that a terminal must have room for.
_LAST_COLUMN: Final = 20


def read_settings(**given: Any) -> Settings:
    """The settings, with logging set up as they say. Values given here win; None means "not given".

    Raises:
        SettingsError: one of them is wrong.
    """
    from streams.settings import load_settings

    settings = load_settings(**given)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def keep_logs_quiet() -> None:
    """Logging for a command whose bars say how far it is: nothing below warnings, unless the settings name a level.

    Raises:
        SettingsError: one of them is wrong.
    """
    from streams.settings import load_settings

    settings = load_settings()
    level = settings.log_level if "log_level" in settings._sources else "warning"
    configure_logging(level, settings.log_format)


def emit(record: Mapping[str, Any]) -> None:
    """One JSON object on a line of stdout, for programs and for terminals: what does not print is escaped."""
    try:
        text = json.dumps(record, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        record = _finite(record)
        text = json.dumps(record, ensure_ascii=False, default=str)
    if not text.isprintable():
        # JSON allows them as they are. But some end a line for many programs, and others drive a terminal.
        text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another locale's stdout, or a lone surrogate: the same in ASCII
        text = json.dumps(record, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN, and Python writes them all the same: here they are text."""
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def say(text: str) -> None:
    """A line for people, on stderr, if it takes one."""
    stream = LogStream(sys.stderr)
    for line in text.split("\n"):
        stream.write(_on_a_line(line) + "\n")
    stream.flush()


def say_error(text: str) -> None:
    """Why a command ends: a line for people, or one of the log where that is for programs."""
    if is_json():
        import structlog

        structlog.get_logger("rustfs_workers.command").error(text)
    else:
        say(f"error: {text}")


def counted(number: int, what: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def exit_code(error: BaseException) -> int:
    """The code that stands for this error."""
    match error:
        case KafkaUnreachable():
            return UNREACHABLE
        case SettingsError() | JobRefused() | JobTypeError() | WorkerIdTaken():
            return USAGE
        case KeyboardInterrupt():
            return INTERRUPTED
        case _:
            return FAILED


def directory_named(text: str) -> Path:
    """A directory that somebody has named on the command line, ``~`` spelled out; it need not be there.

    Raises:
        typer.BadParameter: the text is empty, as that of a variable that is not set, or names a file, or something that cannot
            be looked at or entered.
    """
    import typer

    if not text:
        raise typer.BadParameter("it is empty; '.' is the directory that you are in.")
    try:
        path = Path(text).expanduser()
        if path.is_file():
            raise typer.BadParameter(f"{text!r} is no directory.")
        if path.is_dir() and not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except RuntimeError:
        raise typer.BadParameter(
            f"{text!r:.80} names the home of a user who is not known here; './~…' is a directory of that name."
        ) from None
    except OSError as error:
        raise typer.BadParameter(f"{text!r:.80}: {error.strerror}; name another one.") from error
    return path


def place_for_temporary() -> Path:
    """Where temporary directories are made.

    Raises:
        PipelineError: there is no such place.
    """
    import tempfile

    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise PipelineError(f"{error.strerror}; TMPDIR names a place for one") from error


def directory_for_a_while(prefix: str) -> Path:
    """A new temporary directory.

    Raises:
        PipelineError: it cannot be made.
    """
    import tempfile

    place = place_for_temporary()
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise PipelineError(
            f"no directory can be made in {place}: {error.strerror}; TMPDIR names another place"
        ) from error


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error that has a name is a line on stderr and an exit code; one that has none is a bug, and shows its trace."""
    import_structlog()  # before the command's own modules do
    from confluent_kafka import KafkaException

    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(INTERRUPTED) from error
    except PipelineError as error:
        say_error(str(error))
        if isinstance(error, KafkaUnreachable):
            _say_why_not_let_in()
        raise SystemExit(exit_code(error)) from error
    except KafkaException as error:
        raise SystemExit(_say_what_kafka_says(error)) from error
    except OSError as error:
        end_if_stdout_is_lost(error)
        if error.filename is None:
            raise
        say_error(f"{error.filename}: {error.strerror}")
        raise SystemExit(FAILED) from error


def _say_why_not_let_in() -> None:
    """A broker that refuses a password looks like one that is away."""
    from streams.clients import why_not_let_in
    from streams.settings import load_settings

    try:
        reason = why_not_let_in(load_settings())
    except PipelineError:
        return  # there is no address, and that has been said
    if reason is not None:
        say_error(f"{reason}; look at the settings named kafka_ in `rustfs-workers config show`")


def end_if_stdout_is_lost(error: OSError) -> None:
    """Exit if this is about where data goes: its reader is gone, or its disk is full."""
    if isinstance(error, BrokenPipeError):  # `… | head` has seen enough
        _write_no_more()
        raise SystemExit(OK) from error
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a write
        _write_no_more()
        say_error(f"{error.strerror}; nothing more can be written")
        raise SystemExit(FAILED) from error


@contextmanager
def while_somebody_reads() -> Iterator[None]:
    """Data goes to stdout in here. If its reader is gone (``… | head``), what comes after still decides how the command ends."""
    try:
        yield
    except BrokenPipeError:
        _write_no_more()


def _write_no_more() -> None:
    """What is still buffered would be written at the end, and complained about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that ask a command to end. A terminal that is closed sends SIGHUP; under ``nohup`` that is ignored, and stays so."""
    closed = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *closed)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """For tidying up: whoever presses Ctrl-C again is not heard until it is done. For the main thread."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_for_ctrl_c() -> None:
    """From now on SIGTERM and a closed terminal raise KeyboardInterrupt, so that a command leaves nothing behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)


class _Ended(BaseException):
    """A signal asked us to end. Like KeyboardInterrupt it passes through everything that handles errors."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, Ctrl-C and a closed terminal end the block once; while it cleans up, further ones are not heard.

    Exit codes: 130 after Ctrl-C, else 0.
    """
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise _Ended

    before = {number: signal.signal(number, on_signal) for number in ending_signals()}
    try:
        yield
    except _Ended:
        if received[0] == signal.SIGINT:
            raise SystemExit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_what_kafka_says(error: Any) -> int:
    """What librdkafka finds by itself has a number below zero: nobody answered. The rest is a broker's answer."""
    fact = error.args[0]
    if fact.name() == "_INVALID_ARG":  # nobody was asked: a certificate, say, that is none
        say_error(f"{fact.str()}; look at the settings named kafka_ in `rustfs-workers config show`")
        return USAGE
    if fact.code() < 0:
        say_error(
            f"Kafka does not answer: {fact.str()}; look whether it runs. "
            "KAFKA_BOOTSTRAP_SERVERS names another one; without it `rustfs-workers up` starts one"
        )
        return UNREACHABLE
    say_error(f"Kafka refused: {fact.str()} ({fact.name()})")
    return FAILED


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table for people, on stdout. Only the last column is ever cut, and only on a terminal."""
    from rich.cells import cell_len
    from rich.console import Console

    cells = [
        ["" if row.get(name) is None else _on_a_line(str(row[name])) for name in columns] for row in rows
    ]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    fixed = sum(widths[:-1]) + 2 * len(widths[:-1])
    console = Console(no_color=not coloured(sys.stdout))
    # Not console.is_terminal, which FORCE_COLOR makes true of a pipe: what is piped is read by a program.
    # An id that is cut is of no use: a narrow terminal wraps the lines instead.
    room = console.width - fixed if sys.stdout.isatty() else 0
    most = room if room >= _LAST_COLUMN else widths[-1]
    # Not with rich's own table: a millisecond a row, and dead letters come by the hundred thousand.
    for number, (*front, last) in enumerate([[*columns], *cells]):
        padded = [text + " " * (width - cell_len(text)) for text, width in zip(front, widths, strict=False)]
        line = "  ".join([*padded, _cut(last, most)]).rstrip()
        sys.stdout.write(f"\x1b[1m{line}\x1b[0m\n" if number == 0 and coloured(sys.stdout) else line + "\n")
    sys.stdout.flush()


def _cut(text: str, most: int) -> str:
    """At most so many columns of a terminal, with "…" where something is missing."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= most else set_cell_size(text, most - 1) + "…"


def details(record: Mapping[str, Any]) -> None:
    """Everything about one thing, for people, on stdout: a fact a line; what is empty is left out."""
    facts = [(_on_a_line(name), text) for name, text in _facts(record, "")]
    width = max((len(name) for name, _ in facts), default=0)
    for name, text in facts:
        first, *more = text.splitlines() or [""]
        sys.stdout.write(f"{name:>{width}}  {_on_a_line(first)}\n")
        for line in more:
            sys.stdout.write(f"{'':>{width}}  {_on_a_line(line)}\n")
    sys.stdout.flush()


def _facts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    match value:
        case None | "" | []:
            return
        case Mapping():
            for key, item in value.items():
                yield from _facts(item, f"{name}.{key}" if name else str(key))
        case [Mapping(), *_]:
            for number, item in enumerate(value, 1):
                yield from _facts(item, f"{name}.{number}")
        case str():
            yield name, value
        case _:
            yield name, json.dumps(value, ensure_ascii=False, default=str)


def _on_a_line(text: str) -> str:
    """What others wrote, as a terminal may have it: a line break would end the row, and worse is done by escapes.

    Whatever does not print (controls, changes of direction, lone surrogates) is shown as Python writes it.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
