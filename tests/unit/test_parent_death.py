"""A child drains when its parent is gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from workers.parent_death import end_with_parent, environment_of_a_child

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death"),
]

CHILD = """
import os, signal
from workers.parent_death import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"drained\\n"), os._exit(0)))
end_with_parent()
print("ready", flush=True)
while True:
    signal.pause()
"""
PARENT = """
import os, signal, subprocess, sys
from workers.parent_death import environment_of_a_child
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment_of_a_child(), start_new_session=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_is_told_to_drain_when_its_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.stdin.close()
        assert parent.stdout.readline() == "drained\n"
        assert parent.stdout.read() == "", "and it is gone"


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = {**environment_of_a_child(), "_RUSTFS_WORKERS_PARENT": str(gone.pid)}
    ended = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, check=True)
    assert ended.stdout == b""


@pytest.mark.parametrize("given", [None, "", "no number"])
def test_who_was_not_asked_to_lives_on(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    if given is not None:
        monkeypatch.setenv("_RUSTFS_WORKERS_PARENT", given)
    end_with_parent()
    assert "_RUSTFS_WORKERS_PARENT" not in os.environ, "its own children have another parent"
