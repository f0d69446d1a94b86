"""The parent of several worker processes: who is started again, when, and what the end looks like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import eventually
from workers.commands.worker import _child_command
from workers.parent_death import HOPELESS
from workers.supervisor import _look_after, _Slot, pause_before_restart, supervise

pytestmark = pytest.mark.worker_coordination


class FakeProcess:
    """A child whose end the test decides."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        self.command = command
        self.code: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Child:
    """One place, with a clock that the test moves."""

    def __init__(self) -> None:
        self.slot = _Slot(3)
        self.now = 1_000.0

    def look(self, *, stopping: bool = False) -> int | None:
        return _look_after(self.slot, lambda index: ["worker", str(index)], self.now, stopping=stopping)

    @property
    def process(self) -> Any:
        return self.slot.process

    def dies_after(self, seconds: float, code: int = 1) -> int | None:
        self.now += seconds
        self.process.code = code
        return self.look()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    return Child()


@given(st.integers(1, 10_000))
def test_pauses_grow_and_end_at_half_a_minute(deaths: int) -> None:
    assert 1 <= pause_before_restart(deaths) <= pause_before_restart(deaths + 1) <= 30


def test_the_first_pauses_double() -> None:
    assert [pause_before_restart(deaths) for deaths in range(1, 7)] == [1, 2, 4, 8, 16, 30]


def test_a_child_is_started_with_its_number(child: Child) -> None:
    assert child.look() is None
    assert child.process.command == ["worker", "3"]


def test_a_child_that_runs_is_left_alone(child: Child) -> None:
    child.look()
    before = child.process
    child.now += 5_000
    assert child.look() is None
    assert child.process is before


def test_a_child_that_dies_is_started_again_after_its_pause(child: Child) -> None:
    child.look()
    assert child.dies_after(0, code=-9) == -9
    assert child.process is None
    child.now += 0.9
    child.look()
    assert child.process is None
    child.now += 0.1
    child.look()
    assert child.process is not None


def pause_after(child: Child, lived_s: float) -> float:
    child.dies_after(lived_s)
    pause = child.slot.restart_at - child.now
    child.now = child.slot.restart_at
    child.look()
    return pause


def test_one_that_keeps_dying_waits_longer_and_one_that_lived_starts_afresh(child: Child) -> None:
    child.look()
    assert [pause_after(child, 5) for _ in range(4)] == [1, 2, 4, 8]
    assert pause_after(child, 61) == 1
    assert pause_after(child, 60) == 2


def test_what_is_useless_is_not_tried_again(child: Child) -> None:
    child.look()
    assert child.dies_after(0, code=HOPELESS) == HOPELESS
    assert child.process is None


def test_a_job_that_ends_its_process_as_wrong_usage_does_is_no_reason_to_stop(child: Child) -> None:
    child.look()
    child.dies_after(0, code=2)
    child.now += 1
    child.look()
    assert child.process is not None


def test_nobody_is_started_while_all_stop(child: Child) -> None:
    child.look()
    child.process.code = 0
    assert child.look(stopping=True) == 0
    child.now += 100
    child.look(stopping=True)
    assert child.process is None
    assert child.slot.deaths == 0


def test_the_first_signal_asks_and_the_second_one_ends(child: Child) -> None:
    child.look()
    for signals in (0, 1, 1, 2, 2, 3):
        child.slot.tell(signals)
    assert child.process.signals == [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]


def test_a_child_that_is_gone_is_told_nothing(child: Child) -> None:
    child.slot.tell(1)
    child.look()
    child.process.code = 1
    child.slot.tell(1)
    assert child.process.signals == []


# --- with real processes ---------------------------------------------------------------------------------------

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_a_child_is_being_started_reaches_it_as_well(number: int, code: int) -> None:
    """Else the parent would wait for a child that nobody has told."""

    def command(index: int) -> list[str]:
        if index == 1:
            os.kill(os.getpid(), number)
        return SLEEPS

    before = signal.getsignal(signal.SIGTERM)
    assert supervise(3, command) == code
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGINT, signal.SIGTERM), 130)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_who_is_told_twice_says_that_it_was_no_drain(
    tmp_path: Path, signals: tuple[int, int], code: int
) -> None:
    def watch() -> None:
        for number, sign in zip(signals, ("started", "draining"), strict=True):
            eventually((tmp_path / sign).exists, 30, "the child is that far")
            os.kill(os.getpid(), number)

    watching = threading.Thread(target=watch)
    watching.start()
    assert supervise(1, lambda _: [sys.executable, "-c", DRAINS, str(tmp_path)]) == code
    watching.join()
    assert not (tmp_path / "drained").exists()


@pytest.mark.timeout(30)
def test_wrong_usage_of_one_ends_all() -> None:
    wrong = [sys.executable, "-m", "workers", "worker", "--no-such-option"]
    assert supervise(2, lambda index: wrong if index else SLEEPS) == 2


#: A worker that takes its time to drain, and says when it is told to.
DRAINS = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from workers import WorkerConfig, running
from workers.parent_death import end_with_parent

class Manager:
    left_behind = 0
    failed = None
    config = WorkerConfig(worker_id="w", drain_timeout=timedelta(seconds=20))
    async def start(self): Path(sys.argv[1], "started").touch()
    async def wait(self): await asyncio.Event().wait()
    async def shutdown(self, timeout=None):
        Path(sys.argv[1], "draining").touch()
        while not Path(sys.argv[1], "go").exists():
            await asyncio.sleep(0.01)
        Path(sys.argv[1], "drained").touch()

end_with_parent()
sys.exit(asyncio.run(running.run_until_signal(Manager())))
"""


@pytest.mark.timeout(60)
def test_a_service_manager_that_tells_all_processes_does_not_cost_the_drain(tmp_path: Path) -> None:
    """systemd's ``KillMode=control-group`` sends SIGTERM to parent and children: each child is told twice."""
    pids: list[int] = []

    def watch() -> None:
        eventually((tmp_path / "started").exists, 30, "the child has started")
        pids.extend(child.pid for child in psutil.Process().children())
        os.kill(os.getpid(), signal.SIGTERM)
        eventually((tmp_path / "draining").exists, 30, "the parent has told it")
        os.kill(pids[-1], signal.SIGTERM)
        (tmp_path / "go").touch()

    watching = threading.Thread(target=watch)
    watching.start()
    assert supervise(1, lambda _: [sys.executable, "-c", DRAINS, str(tmp_path)]) == 0
    watching.join()
    assert (tmp_path / "drained").exists()


def test_a_module_of_the_users_with_a_name_of_ours_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "schemas.py").write_text("raise SystemExit(9)\n")
    done = subprocess.run(
        [*_child_command(0, "w", None, []), "--help"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0


def test_a_machine_that_is_short_of_processes_costs_the_others_nothing(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error here would end all that run, without a drain."""

    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    child.look()
    monkeypatch.setattr(subprocess, "Popen", full)
    assert child.dies_after(100) == 1
    child.now += 60
    assert child.look() is None
    assert child.process is None
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    assert child.look() is None
    assert child.process is None, "it waits before it tries again"
    child.now += 60
    child.look()
    assert child.process is not None


def test_one_that_cannot_be_started_at_all_is_an_error(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "python")

    monkeypatch.setattr(subprocess, "Popen", missing)
    with pytest.raises(FileNotFoundError):
        child.look()
