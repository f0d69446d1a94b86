"""Bars on a terminal: they go to stderr, and stdout stays data."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

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


def test_a_command_draws_bars_on_the_terminal_and_nothing_on_stdout() -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=30,
            check=True,
        )
        os.close(theirs)
        drawn = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
    assert done.stdout == b"{}\n"
    assert "replicating" in drawn
    assert "10/10" in drawn


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
