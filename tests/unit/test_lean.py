"""Processes of our own start without rich, and whoever wants it has it all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.job_processing


def outcome_of(program: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_a_handlers_process_does_not_load_rich_and_a_handler_may() -> None:
    program = """
import sys
from workers.lean import import_structlog
import_structlog()
import structlog, workers.execution.process_child
print("rich" in sys.modules)
import rich.console
print(rich.console.Console.__name__)
"""
    assert outcome_of(program).split() == ["False", "Console"]


def test_a_handlers_process_does_not_load_what_reads_settings() -> None:
    """There is one for each processor, and each would have pydantic's megabytes."""
    program = """
import sys
import workers.execution.process_child
print("pydantic" in sys.modules)
"""
    assert outcome_of(program) == "False"


def test_a_command_that_works_does_not_load_it_either() -> None:
    program = """
import sys
from workers.console import errors_in_one_line
with errors_in_one_line():
    import workers.manager, workers.builtin
print("rich" in sys.modules)
"""
    assert outcome_of(program) == "False"


def test_a_program_that_has_loaded_it_keeps_it() -> None:
    program = """
import sys
import rich
from workers.lean import import_structlog
import_structlog()
print(sys.modules["rich"] is rich, "structlog" in sys.modules)
"""
    assert outcome_of(program).split() == ["True", "False"]
