"""A process in which no Python runs any more ends, with its threads' places on stderr; another one is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.worker_coordination

WATCHED = """
import ctypes, os, threading, time
from workers.watchdog import watchdog
{before}
def work():
    {work}
with watchdog({limit_s}, look_s=0.05):
    thread = threading.Thread(target=work, name="poll")
    thread.start()
    thread.join()
print("went on")
"""
#: Keeps the interpreter's lock.
LOCKED = "ctypes.PyDLL(None).sleep({s})"


def run(work: str, limit_s: float, before: str = "") -> subprocess.CompletedProcess[str]:
    code = WATCHED.format(work=work, limit_s=limit_s, before=before)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_in_which_no_python_runs_ends_and_says_where() -> None:
    done = run(LOCKED.format(s=40), 0.5)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Timeout (0:00:00.5" in done.stderr
    assert '"<string>", line 6 in work' in done.stderr


def test_it_ends_as_well_where_nobody_could_read_that() -> None:
    done = run(LOCKED.format(s=40), 0.5, before="os.close(2)")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_one_that_goes_on_is_left_alone_however_long_a_handler_takes() -> None:
    done = run("time.sleep(4)", 3)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_the_timer_is_its_own_again_after_somebody_else_has_stopped_it() -> None:
    work = "import faulthandler; faulthandler.cancel_dump_traceback_later(); time.sleep(1); " + LOCKED.format(
        s=40
    )
    assert run(work, 3).returncode == 1
