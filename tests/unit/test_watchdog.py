"""A worker that stands still ends, with its threads' places on stderr; one that does not is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.worker_coordination

WATCHED = """
import ctypes, itertools, threading, time
from workers.watchdog import watchdog
count = itertools.count()
def work():
    {work}
with watchdog({rounds}, 0.5, look_s=0.05):
    thread = threading.Thread(target=work, name="poll")
    thread.start()
    thread.join()
print("went on")
"""


def run(work: str, rounds: str) -> subprocess.CompletedProcess[str]:
    code = WATCHED.format(work=work, rounds=rounds)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("work", "rounds"),
    [
        # A call that keeps the interpreter's lock: no Python runs any more, not even a signal's.
        pytest.param("ctypes.PyDLL(None).sleep(40)", "count.__next__", id="interpreter"),
        # The others go on.
        pytest.param("time.sleep(40)", "lambda: 7", id="poll thread"),
    ],
)
def test_a_process_that_stands_still_ends_and_says_where(work: str, rounds: str) -> None:
    done = run(work, rounds)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Timeout (0:00:00.5" in done.stderr
    assert '"<string>", line 6 in work' in done.stderr


def test_one_that_goes_on_is_left_alone_however_long_a_handler_takes() -> None:
    done = run("time.sleep(1.5)", "count.__next__")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
