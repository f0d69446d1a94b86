"""What becomes of a worker of the campaign that does not do as it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guarantees import crew as crew_module
from tests.guarantees.crew import Crew
from tests.support.deployments import settings_for

pytestmark = pytest.mark.distributed

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def test_one_that_does_not_leave_is_ended_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error would throw away the evidence of an hour."""
    monkeypatch.setattr(crew_module, "_LEAVE_S", 0.1)
    crew = Crew(settings_for("127.0.0.1:1", "none.", tmp_path), tmp_path)
    start = subprocess.Popen

    def deaf(_command: list[str], **options: object) -> subprocess.Popen[bytes]:
        process = start(
            [sys.executable, "-X", "faulthandler", "-c", DEAF],
            stdout=subprocess.PIPE,
            stderr=options["stderr"],
        )  # type: ignore[call-overload]
        assert process.stdout is not None
        with process.stdout as ready:
            ready.readline()
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr(subprocess, "Popen", deaf)
    crew.join()
    assert crew.leave(0) == "w1"
    crew.wait_for_leavers()
    assert crew.ended_by_themselves == ["w1: has not left within 0.1 s"]
    assert [(life.worker, life.end) for life in crew.lives] == [("w1", "failed")]
    assert "Fatal Python error: Aborted" in (tmp_path / "w1.stderr").read_text()
