"""What becomes of a worker of the campaign that does not do as it is told: an error would throw away the evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guarantees import crew as crew_module
from tests.guarantees.crew import Crew, at_work
from tests.support.deployments import settings_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.distributed

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
FAILS_TO_LEAVE = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}));"
    "sys.stderr.write({said!r}); print(flush=True); time.sleep(60)"
)
STARTED = '"event": "worker started"\n'
STANDS_STILL = (
    'import faulthandler, sys, time; sys.stderr.write(\'"event": "worker started"\\n\');'
    "faulthandler.dump_traceback_later(0.1, exit=True); print(flush=True); time.sleep(60)"
)

MakeCrew = Callable[[str], Crew]


@pytest.fixture
def crew_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCrew]:
    """A crew with one worker that does not do what a worker does."""
    monkeypatch.setattr(crew_module, "_LEAVE_S", 0.5)
    crew = Crew(settings_for("127.0.0.1:1", "none.", tmp_path), tmp_path)
    start: Any = subprocess.Popen

    def make(program: str) -> Crew:
        def popen(_command: list[str], **options: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-X", "faulthandler", "-c", program]
            process: subprocess.Popen[bytes] = start(
                command, stdout=subprocess.PIPE, stderr=options["stderr"]
            )
            assert process.stdout is not None
            with process.stdout as ready:
                ready.readline()
            return process

        monkeypatch.setattr(subprocess, "Popen", popen)
        crew.join()
        return crew

    yield make
    crew.close()


def test_one_that_does_not_leave_is_ended_and_told_of(crew_of: MakeCrew, tmp_path: Path) -> None:
    crew = crew_of(DEAF)
    assert crew.leave(0) == "w1"
    crew.wait_for_leavers()
    assert crew.ended_by_themselves == ["w1: has not left within 0.5 s"]
    assert [(life.worker, life.end) for life in crew.lives] == [("w1", "failed")]
    assert "Fatal Python error: Aborted" in (tmp_path / "w1.stderr").read_text()


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (0, STARTED, []),
        (5, STARTED, ["w1: exit code 5"]),
        (3, STARTED, ["w1: exit code 3"]),
        pytest.param(3, "", [], id="before it had found its Kafka"),
    ],
)
def test_one_that_leaves_with_an_error_is_told_of(
    crew_of: MakeCrew, monkeypatch: pytest.MonkeyPatch, code: int, said: str, told: list[str]
) -> None:
    monkeypatch.setattr(crew_module, "_LEAVE_S", 30.0)
    crew = crew_of(FAILS_TO_LEAVE.format(code=code, said=said))
    crew.leave(0)
    crew.wait_for_leavers()
    assert crew.ended_by_themselves == told
    assert [(life.worker, life.end) for life in crew.lives] == [("w1", "failed" if told else "left")]


def test_one_that_its_watchdog_has_ended_is_counted_and_started_again(crew_of: MakeCrew) -> None:
    crew = crew_of(STANDS_STILL)

    def told_of() -> bool:
        crew.look()
        return crew.stood_still == ["w1"]

    eventually(told_of, 30, "its end is seen")
    assert (len(crew), crew.ended_by_themselves) == (1, [])
    assert [(life.worker, life.end) for life in crew.lives] == [("w1", "stood still")]
    assert [trouble.kind for trouble in crew.troubles] == ["worker_freeze"]


def test_who_runs_a_handler_is_seen_in_what_handlers_write(tmp_path: Path) -> None:
    """A kill that meets nobody at work proves little."""

    def write(process: int, *said: tuple[str, str, int]) -> Path:
        file = tmp_path / f"runs-{process}-1.jsonl"
        lines = [json.dumps({"say": what, "run": run, "pid": pid}) + "\n" for what, run, pid in said]
        file.write_text("".join(lines))
        return file

    write(1, ("start", "a", 1), ("end", "a", 1))
    write(2, *[("start", "b", 2), ("end", "b", 2)] * 1000, ("start", "c", 2))
    write(31, ("start", "d", 3))  # a process of the third worker's
    stale = write(4, ("start", "e", 4))
    os.utime(stale, (0, 0))
    with write(5, ("start", "f", 5), ("end", "f", 5)).open("a") as cut_off:
        cut_off.write('{"say": "start", "run": "g"')
    assert at_work(tmp_path) == {2, 3}


def test_of_several_the_one_at_work_is_killed(crew_of: MakeCrew, tmp_path: Path) -> None:
    crew = crew_of(DEAF)
    crew.join()
    busy = crew._workers[1].process.pid
    (crew.runs_directory / "runs-1-1.jsonl").write_text(
        json.dumps({"say": "start", "run": "a", "pid": busy}) + "\n"
    )
    assert crew.kill(0) == "w2"
    assert crew.kill(0) == "w1", "nobody is at work any more"


@pytest.mark.parametrize("silent", [True, False])
def test_one_that_has_been_silent_for_long_is_killed_so_that_it_says_where_it_stands(
    crew_of: MakeCrew, tmp_path: Path, *, silent: bool
) -> None:
    crew = crew_of(FAILS_TO_LEAVE.format(code=0, said=STARTED))
    log = tmp_path / "w1.stderr"
    eventually(lambda: STARTED in log.read_text(), 30, "it has started")
    if silent:
        os.utime(log, (0, 0))
    assert crew.kill(0) == "w1"
    assert ("Fatal Python error: Aborted" in log.read_text()) == silent
    assert [(life.worker, life.end) for life in crew.lives] == [("w1", "killed")]
