"""The parent of several worker processes: who is started again, when, and what the end looks like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.commands.worker import _child_command
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


def test_wrong_usage_is_not_tried_again(child: Child) -> None:
    child.look()
    assert child.dies_after(0, code=2) == 2
    assert child.process is None


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


def exits(code: int) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({code})"]


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


@pytest.mark.timeout(30)
def test_wrong_usage_of_one_ends_all_with_its_code() -> None:
    assert supervise(2, lambda index: exits(2) if index else SLEEPS) == 2


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
