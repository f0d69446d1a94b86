"""How a download is shown: bars on a terminal, plain lines elsewhere and above the bars of a command. Always on stderr.

In:  sizes and received bytes, from several threads. Out: what a person reads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

#: A plain line each time this share of the whole has arrived.
_STEP = 0.25


class Progress(Protocol):
    """Takes the bytes that arrived. Safe to call from several threads."""

    def __call__(self, received_bytes: int) -> None:
        """Count these bytes."""


@contextmanager
def shown(what: str, total_bytes: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """Show the progress of one download of several files."""
    out = sys.stderr if stream is None else stream
    alone = out.isatty() and not _has_bars(out)
    shower = _bar(what, total_bytes, out) if alone else _lines(what, total_bytes, out)
    with shower as progress:
        yield progress


def _has_bars(out: TextIO) -> bool:
    """Whether somebody draws bars there now: others would overwrite them, while rich puts lines above them."""
    from rich.file_proxy import FileProxy

    return isinstance(out, FileProxy)


@contextmanager
def _bar(what: str, total_bytes: int, out: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=out)) as bars:
        task = bars.add_task(what, total=total_bytes)

        def progress(received_bytes: int) -> None:
            bars.advance(task, received_bytes)

        yield progress


@contextmanager
def _lines(what: str, total_bytes: int, out: TextIO) -> Iterator[Progress]:
    lock = threading.Lock()
    received = 0
    told = 0

    def progress(received_bytes: int) -> None:
        nonlocal received, told
        with lock:
            received += received_bytes
            quarter = int(received / total_bytes / _STEP) if total_bytes else 0
            if quarter > told:
                told = quarter
                _say(f"{what}: {megabytes(received)} of {megabytes(total_bytes)}", out)

    _say(f"{what}: {megabytes(total_bytes)}, once", out)
    yield progress


def _say(line: str, out: TextIO) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: the download has another one
        print(line, file=out, flush=True)


def megabytes(size_bytes: int) -> str:
    """A size as people read it."""
    return f"{size_bytes / 1_000_000:.1f} MB"
