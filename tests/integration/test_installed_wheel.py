"""A user's own package, run by the installed wheel in a place that knows nothing of the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from streams.settings import Settings
from tests.support.commands import CommandLine
from tests.support.waiting import eventually
from tests.support.workers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

JOBS = '''
import os
import threading
from dataclasses import dataclass

from workers import Job, Success, Worker


def where() -> Success:
    return Success({"pid": os.getpid(), "thread": threading.current_thread().name})


@dataclass
class Fetch(Job):
    """Waits for others: runs in the event loop."""

    job_type = "test_wheel_async"
    name: str

    async def execute(self, context):
        return where()


@dataclass
class Read(Job):
    """Blocks: runs in a thread."""

    job_type = "test_wheel_thread"
    name: str

    def execute(self, context):
        return where()


@dataclass
class Render(Job):
    """Computes: runs in a process of its own."""

    job_type = "test_wheel_process"
    execution = "process"
    name: str

    def execute(self, context):
        return where()


@dataclass
class Measure(Job):
    """Handled by a worker that has something to work with."""

    job_type = "test_wheel_worker"
    name: str


class Measures(Worker):
    worker_type = "test_wheel_worker"

    async def process_job(self, job, context):
        return where()
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a virtual environment with the wheel, and this environment's packages for its dependencies."""
    uv = os.environ.get("UV") or shutil.which("uv")  # `uv run` says where it is, on PATH or not
    if uv is None:
        problem = "uv, which builds the wheel, is not on PATH: pip install uv"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    place = tmp_path_factory.mktemp("installed")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
    }

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [uv, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    run("build", "--quiet", "--wheel", "--out-dir", str(place / "dist"), str(ROOT))
    run("venv", "--quiet", "--python", sys.executable, str(place / "venv"))
    python = place / "venv" / "bin" / "python"
    (wheel,) = (place / "dist").glob("*.whl")
    run("pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python), str(wheel))
    (site,) = (place / "venv").glob("lib/python*/site-packages")
    # A directory that is named in a .pth file is searched, but its own .pth files, one of which may name the source
    # tree, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.mark.timeout(300)
def test_the_installed_wheel_runs_async_thread_and_process_jobs_of_a_users_package(
    provisioned: Settings, installed: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "my_package").mkdir(parents=True)
    (project / "my_package" / "__init__.py").touch()
    (project / "my_package" / "jobs.py").write_text(JOBS)
    environment = CommandLine.on(provisioned, project, RUSTFS_WORKERS_LOG_FORMAT="json").environment
    del environment["PYTHONPATH"]

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(installed / command[0]), *command[1:]],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    imports = run(
        "python",
        "-c",
        "import schemas, streams, workers as w; print(*[m.__file__ for m in (schemas, streams, w)])",
    )
    assert all(Path(file).is_relative_to(installed.parent) for file in imports.split())
    assert str(ROOT) not in run("python", "-c", "import sys; print(*sys.path)").split()

    log = project / "worker.err"
    with log.open("wb") as stderr:
        worker = subprocess.Popen(
            [str(installed / "rustfs-workers"), "worker", "--import", "my_package.jobs"],
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        ids = {
            kind: json.loads(
                run(
                    "rustfs-workers",
                    "submit",
                    f"test_wheel_{kind}",
                    f"name={kind}",
                    "--import",
                    "my_package.jobs",
                )
            )["id"]
            for kind in ("async", "thread", "process", "worker")
        }

        def final() -> dict[str, dict[str, Any]] | None:
            assert worker.poll() is None, log.read_text()[-3000:]
            *rows, _ = map(json.loads, run("rustfs-workers", "jobs", "list", "--json").splitlines())
            done = {row["id"]: row for row in rows if row["finished_at"]}
            return done if len(done) == len(ids) else None

        rows = eventually(final, 90, "all jobs are final")
        assert {row["status"] for row in rows.values()} == {"succeeded"}, rows
        outputs = {
            kind: json.loads(run("rustfs-workers", "jobs", "show", job_id, "--json"))["output"]
            for kind, job_id in ids.items()
        }
        assert outputs["async"] == outputs["worker"] == {"pid": worker.pid, "thread": "MainThread"}
        assert outputs["thread"]["pid"] == worker.pid
        assert outputs["thread"]["thread"] != "MainThread"
        assert outputs["process"]["pid"] != worker.pid
        worker.terminate()
        assert worker.wait(60) == 0, log.read_text()[-3000:]
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait(10)
