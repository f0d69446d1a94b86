"""Whole programs, written with the public names alone, each run as its user would run it.

Not here yet, since what they are about is not: ``JobQueue.cancel_job``, ``WorkerCluster`` with its events, and
``JobMonitor`` with ``AlertConfig``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.settings import Settings
from tests.support.commands import CommandLine
from tests.support.waiting import eventually
from tests.support.workers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

PROGRAMS = ROOT / "tests" / "seed_programs"


@contextmanager
def started(
    name: str, settings: Settings, directory: Path, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The program, in a directory of its own, told by the environment where Kafka is; killed if it does not end."""
    with subprocess.Popen(
        [sys.executable, "-u", str(PROGRAMS / f"{name}.py"), *arguments],
        cwd=directory,
        env=CommandLine.on(settings, directory, **environment).environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def run(name: str, settings: Settings, directory: Path, *arguments: str) -> list[str]:
    """What the program printed; it must succeed."""
    with started(name, settings, directory, *arguments) as program:
        out, _ = program.communicate(timeout=100)
        assert program.returncode == 0
    # structlog prints to stdout where a program has not set up its logs.
    return [line for line in out.splitlines() if not line.startswith("20")]


@pytest.mark.timeout(180)
def test_a_basic_worker_runs_the_built_in_job_types_until_ctrl_c(
    provisioned: Settings, tmp_path: Path
) -> None:
    """Nothing is registered: the workers that come with the project run, on the nodes of the settings."""
    (tmp_path / "n1" / "bucket").mkdir(parents=True)
    (tmp_path / "n2").mkdir()
    (tmp_path / "n1" / "bucket" / "important-file.txt").write_text("important")
    nodes = {f"RUSTFS_WORKERS_NODES__{name}": (tmp_path / name.lower()).as_uri() for name in ("N1", "N2")}
    command = CommandLine.on(provisioned, tmp_path)

    with started("basic_worker", provisioned, tmp_path, **nodes) as program:
        assert program.stdout is not None
        eventually(
            lambda: program.stdout is not None and program.stdout.readline() == "started\n", 60, "it started"
        )
        done = command.here(
            "submit", "replication", "source_path=bucket/important-file.txt", "target_nodes=n2"
        )
        assert done.code == 0
        copy = tmp_path / "n2" / "bucket" / "important-file.txt"
        eventually(copy.exists, 60, "the object is copied")
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=60)

    assert program.returncode == 0
    assert "shut down" in out.splitlines()
    assert copy.read_text() == "important"


def test_a_job_type_does_its_own_work(provisioned: Settings, tmp_path: Path) -> None:
    lines = run("job_definition", provisioned, tmp_path)

    assert lines[0].startswith("Scheduled replication job with ID: ")
    about_the_file = [line for line in lines[1:] if "important" in line]
    assert about_the_file == [
        "Starting replication job for: /bucket/important-file.txt",
        "Replicating /bucket/important-file.txt to node: node-2",
        "Replicating /bucket/important-file.txt to node: node-3",
    ]
    assert [line for line in lines if line.startswith("replication ")] == [
        "replication high succeeded 1",
        "replication low succeeded 1",
    ]
    assert lines.count("Replication job completed successfully") == 2


def test_a_custom_worker_handles_its_type_and_counts_what_it_did(
    provisioned: Settings, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    for name, age_days in (("a", 40), ("b", 31), ("new", 1)):
        file = tmp_path / "old" / name
        file.touch()
        then = file.stat().st_mtime - age_days * 86_400
        os.utime(file, (then, then))

    lines = run("custom_worker", provisioned, tmp_path, str(tmp_path))

    assert lines[:2] == ["healthy: True", "healthy elsewhere: False"]
    old, missing = (line for line in lines if line.startswith(("old: ", "missing: ")))
    assert old == "old: succeeded {'files_cleaned': 2.0}"
    assert missing.startswith("missing: failed {} [Errno 2] No such file or directory")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["new"]


def test_a_program_looks_at_the_queue_and_retries_what_failed(provisioned: Settings, tmp_path: Path) -> None:
    assert run("queue_management", provisioned, tmp_path) == [
        "Pending jobs: 4",
        "Retried jobs: 0",
        "Job statistics: 4 in all, 1 critical",
        "Pending jobs: 0",
        "Retried jobs: 4",
        "Job statistics: 4 in all, 1 critical",
        "Pending jobs: 0",
        "Retried jobs: 0",
        "Job statistics: 4 in all, 1 critical",
    ]
