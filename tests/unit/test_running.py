"""The end of a worker's process: its exit code, and that it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.worker_coordination

#: A manager that is told to stop at once, or fails, and leaves handlers behind that nobody can end.
PROGRAM = """
import asyncio, gc, os, signal, sys, threading
from schemas.errors import KafkaUnreachable
from datetime import timedelta
from workers import WorkerConfig, running

class Manager:
    left_behind = 2
    failed = ZeroDivisionError() if "fails later" in sys.argv else None
    config = WorkerConfig(worker_id="w", drain_timeout=timedelta(seconds=1))
    async def start(self):
        assert gc.get_freeze_count() > 1_000  # else the collector goes through all modules while jobs wait
        threading.Thread(target=threading.Event().wait).start()
        asyncio.create_task(deaf())
    async def wait(self):
        if "fails" in sys.argv:
            raise KafkaUnreachable("nowhere", 1)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        await asyncio.Event().wait()
    async def shutdown(self, timeout=None):
        pass

async def deaf():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

# Whoever runs the tests may do it under nohup.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
running._LAST_S = 0.1
sys.exit(asyncio.run(running.run_until_signal(Manager())))
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("SIGTERM", 0),
        ("SIGHUP", 0),
        ("SIGINT", 130),
        ("fails", 3),
        pytest.param("SIGTERM, fails later", 1, id="fails while it drains"),
        pytest.param("SIGINT, fails later", 1, id="fails while it drains after Ctrl-C"),
    ],
)
def test_handlers_that_nobody_can_end_do_not_keep_the_process(how: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *how.split(", ")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    assert ("nowhere" in ended.stdout + ended.stderr) == (how == "fails")


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop() -> None:
    heard = "os.kill(os.getpid(), getattr(signal, sys.argv[1]))"
    assert heard in PROGRAM
    program = PROGRAM.replace(heard, f"{heard}; os.kill(os.getpid(), signal.SIGINT)")
    ended = subprocess.run(
        [sys.executable, "-c", program, "SIGHUP", "nohup"], capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 130, "only the second signal was heard"


def test_who_asks_once_more_after_the_drain_does_not_keep_the_command_from_tidying_up() -> None:
    """``up`` stops its Kafka then, and takes back the address that other commands would look for it at."""
    waits = "threading.Thread(target=threading.Event().wait).start()\n        asyncio.create_task(deaf())"
    assert waits in PROGRAM
    end = "sys.exit(asyncio.run(running.run_until_signal(Manager())))"
    assert end in PROGRAM
    more = "; ".join(f"os.kill(os.getpid(), signal.{name})" for name in ("SIGTERM", "SIGINT", "SIGHUP"))
    tidy = f"code = asyncio.run(running.run_until_signal(Manager(), last_s=60))\n{more}\nprint('tidied up')\nsys.exit(code)"
    program = PROGRAM.replace(waits, "pass").replace(end, tidy)
    ended = subprocess.run(
        [sys.executable, "-c", program, "SIGTERM"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["tidied up"]), ended.stderr


@pytest.mark.parametrize(("signals", "code"), [(1, 128 + 15), (2, 128 + 15)])
def test_a_handler_that_holds_the_event_loop_does_not_keep_the_process_from_stopping(
    signals: int, code: int
) -> None:
    """Once: within the time that running jobs get. Twice: at once."""
    waits = "await asyncio.Event().wait()\n    async def shutdown"
    assert waits in PROGRAM
    holds = "time.sleep(1000)"
    more = "; ".join(["os.kill(os.getpid(), signal.SIGTERM)"] * (signals - 1)) or "pass"
    program = PROGRAM.replace(waits, f"{more}; import time; {holds}\n    async def shutdown")
    ended = subprocess.run(
        [sys.executable, "-c", program, "SIGTERM"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code
    assert ("a handler holds the event loop" in ended.stdout + ended.stderr) == (signals == 1)


#: Handlers run in the main thread, in which a signal's handler runs as well: between any two lines of theirs.
INTERRUPTED_AT_WORK = """
import asyncio, os, signal, sys
from workers.console import take_for_ctrl_c
from workers.running import run_interruptible

async def handler():
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        sum(range(1000))
    except BaseException:
        print("its failure")

async def main():
    await handler()
    try:
        await asyncio.Event().wait()
    finally:
        print("drained")

# Whoever runs the tests may do it under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
take_for_ctrl_c()
try:
    run_interruptible(main())
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(signal.SIGTERM) is signal.default_int_handler)
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_a_handler_runs_is_the_commands_and_no_failure_of_the_handlers(how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_WORK, how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.splitlines() == ["drained", "interrupted", "True"], ended.stderr
