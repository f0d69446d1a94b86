"""Bars on a terminal: they go to stderr, and stdout stays data."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest

from streams.embedded.progress import shown as download_shown
from tests.support.workers import ROOT

pytestmark = pytest.mark.job_processing

PROGRAM = """
from workers.progress import shown
with shown() as progress:
    for done in range(11):
        progress("replicating", done, 10)
print("{}")
"""

#: The first demo on a machine: Kafka is downloaded while it is started.
DOWNLOAD = """
from streams.embedded import progress as download
from workers.progress import shown
with shown() as progress:
    progress("starting Kafka", 0, 1)
    with download.shown("Downloading Kafka", 2_000_000) as received:
        received(500_000)
        received(1_500_000)
    progress("starting Kafka", 1, 1)
"""


def on_a_terminal(program: str) -> tuple[bytes, str]:
    """What the program has written to stdout, and to the terminal that its stderr is."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=30,
            check=True,
        )
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # how Linux says that this was all
            while more := os.read(ours, 65_536):
                drawn += more
        return done.stdout, drawn.decode()
    finally:
        os.close(ours)


def test_a_command_draws_bars_on_the_terminal_and_nothing_on_stdout() -> None:
    out, drawn = on_a_terminal(PROGRAM)
    assert out == b"{}\n"
    assert "replicating" in drawn
    assert "10/10" in drawn


def test_a_download_within_a_command_is_told_in_lines_above_the_bars_of_that() -> None:
    """Two that draw on one terminal overwrite each other."""
    out, drawn = on_a_terminal(DOWNLOAD)
    assert out == b""
    # Each begins by erasing the bars, which are drawn below it again.
    for line in ("2.0 MB, once", "0.5 MB of 2.0 MB", "2.0 MB of 2.0 MB"):
        assert f"\x1b[2KDownloading Kafka: {line}" in drawn
    assert drawn.rindex("Downloading Kafka") < drawn.rindex("starting Kafka")
    assert "1/1" in drawn


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_a_download_draws_a_bar_on_a_terminal() -> None:
    out = Terminal()
    with download_shown("Kafka", 2_000_000, out) as progress:
        progress(500_000)
        progress(1_500_000)
    assert "Kafka" in out.getvalue()
    assert "2.0/2.0 MB" in out.getvalue()


class Full(io.StringIO):
    """As stderr is if its disk is full, or its reader gone."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_download_goes_on_where_nobody_reads_of_it() -> None:
    with download_shown("Downloading Kafka", 2_000_000, Full()) as received:
        received(1_000_000)
        received(1_000_000)
