"""The tests' own help: what a run's Kafkas listen on is nobody else's, and free again when the run has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streams.embedded import state
from tests.support.ports import ports_of_its_own
from tests.support.workers import ROOT

pytestmark = pytest.mark.distributed

HOLDER = """
from streams.embedded.state import _PORTS
from tests.support.ports import ports_of_its_own
with ports_of_its_own() as ports:
    print(ports.start, ports.stop, _PORTS.start, flush=True)
    input()
"""


def test_no_two_have_a_port_in_common() -> None:
    with ports_of_its_own() as one, ports_of_its_own() as two:
        assert len({*state._PORTS, *one, *two}) == len(state._PORTS) + len(one) + len(two)


def test_the_ports_of_a_run_that_was_killed_are_free_again_and_none_is_what_kafka_takes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        start, stop, elsewhere = map(int, holder.stdout.readline().split())
        with ports_of_its_own() as ours:
            assert stop <= ours.start < ours.stop <= elsewhere
        holder.kill()
    with ports_of_its_own() as ours:
        assert ours == range(start, stop)


def test_where_no_file_can_be_locked_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(RuntimeError, match="end other test runs"), ports_of_its_own():
        pass
