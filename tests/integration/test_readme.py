"""What the README tells people to type, typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import CommandLine
from tests.support.workers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.job_processing, pytest.mark.usefixtures("quick_start")]

README = (ROOT / "README.md").read_text("utf-8")


def program(name: str) -> str:
    """The block of Python whose first line names this file."""
    (found,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", README, re.DOTALL)
    return str(found)


def commands() -> list[list[str]]:
    """The arguments of those that follow the block with the job."""
    (block,) = re.findall(r"```sh\n(rustfs-workers up .*?)```", README, re.DOTALL)
    return [line.partition("#")[0].split()[1:] for line in str(block).splitlines()]


@pytest.mark.timeout(180)
def test_a_job_of_ones_own_as_the_readme_shows_it(tmp_path: Path) -> None:
    (tmp_path / "my_jobs.py").write_text(program("my_jobs.py"))
    # The one thing that is not as it stands there: nobody wants to wait for half a minute.
    schedule = program("schedule.py")
    assert "timedelta(seconds=30)" in schedule
    (tmp_path / "schedule.py").write_text(schedule.replace("timedelta(seconds=30)", "timedelta(seconds=1)"))
    settings = {"RUSTFS_WORKERS_DATA_DIR": str(tmp_path / "data"), "RUSTFS_WORKERS_PARTITIONS": "2"}
    command = CommandLine(tmp_path, settings)
    up, submit, show = commands()

    with command.running(*up) as running:
        running.wait_for("worker ready", 120)
        submitted = command(*submit)
        assert submitted.code == 0, submitted.err
        scheduled = subprocess.run(
            [sys.executable, "schedule.py"],
            cwd=tmp_path,
            env=command.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        shown = command(*show)
        running.interrupt()
        ended = running.end(60)

    assert scheduled.returncode == 0, scheduled.stderr
    assert "SUCCEEDED" in scheduled.stdout
    assert "'made': 'bucket/a.jpg'" in scheduled.stdout
    assert shown.code == 0, shown.err
    assert shown.out.count("thumbnail") == 2
    assert ended.code == 130, ended.err


def test_every_command_that_the_readme_lists_is_there(tmp_path: Path) -> None:
    (listed,) = re.findall(r"## Commands\n\n`rustfs-workers (.*?)`:", README, re.DOTALL)
    command = CommandLine(tmp_path, {})
    for entry in listed.replace("\n", " ").split("|"):
        group, *names = entry.split()
        for name in names[0].split("/") if names else [""]:
            done = command.here(*filter(None, (group, name)), "--help")
            assert done.code == 0, (group, name, done.err)
            assert "Example" in done.out, (group, name)
