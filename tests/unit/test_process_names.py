"""What a handler process can import, and what is said of the rest."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest

import workers
from schemas.errors import JobTypeError, PipelineError
from schemas.job import _declared
from tests.support import process_jobs as jobs
from tests.support.process_pool import pool_of
from workers.context import WorkerContext
from workers.execution.process_names import search_path
from workers.execution.processes import NotStarted, ProcessPool
from workers.execution.sandbox import Sandbox
from workers.results import Snooze, Success
from workers.worker import Handlers, Worker

pytestmark = pytest.mark.job_processing


def make_pool(*what: Any) -> ProcessPool:
    handlers = Handlers()
    for one in what:
        handlers.register(one)
    return ProcessPool(1, handlers)


def test_a_directory_with_a_package_of_our_name_stands_behind_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--import`` puts the working directory first, for this process that has loaded ours already."""
    for name in ("workers/__init__.py", "other/schemas.py", "harmless/jobs.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit(9)\n")
    theirs = [str(tmp_path / "harmless"), str(tmp_path), str(tmp_path / "other")]
    monkeypatch.setattr(sys, "path", [*theirs, *sys.path])

    path = search_path()

    ours = path.index(str(Path(workers.__file__).parents[1]))
    assert path[0] == theirs[0]
    assert path[ours + 1 : ours + 3] == theirs[1:]
    boot = "import sys; sys.path[:] = sys.argv[1:]; import workers.execution.process_child"
    assert subprocess.run([sys.executable, "-c", boot, *path], check=False).returncode == 0


def test_a_class_inside_a_function_is_refused() -> None:
    with jobs.nested() as hidden, pytest.raises(JobTypeError, match=r"Hidden .* in a module of its own"):
        make_pool(hidden)


def test_a_class_of_the_main_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.Answers, "__module__", "__main__")
    with pytest.raises(JobTypeError, match=r"__main__\.Answers .* not in the program's main file"):
        make_pool(jobs.Answers)


def test_the_job_class_of_a_worker_has_to_be_importable_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.Weighed, "__module__", "__main__")
    with pytest.raises(JobTypeError, match=r"__main__\.Weighed"):
        make_pool(jobs.Scales)


def test_an_instance_made_with_arguments_is_refused_when_it_is_registered() -> None:
    """A process would make one with other arguments, its defaults, and say nothing."""
    handlers = Handlers()
    with pytest.raises(JobTypeError, match="this Scales was made with arguments"):
        handlers.register(jobs.Scales("kg"))
    with pytest.raises(JobTypeError, match="this ScalesWithArguments was made with arguments"):
        handlers.register(jobs.ScalesWithArguments("g", precision=2))
    assert len(handlers) == 0
    handlers.register(jobs.Scales())


def test_only_workers_that_run_in_processes_have_to_be_made_again() -> None:
    @dataclass(frozen=True)
    class Local(Worker):
        worker_type = "child_weighed"
        unit: str

        async def process_job(self, job: Any, context: WorkerContext) -> None:
            return None

    handlers = Handlers()
    handlers.register(Local("g"))
    assert len(handlers) == 1


def test_a_worker_without_a_constructor_takes_no_arguments() -> None:
    class Bare(Worker):
        worker_type = "child_weighed"

    unexpected: Any = "g"
    with pytest.raises(TypeError, match="takes no arguments"):
        Bare(unexpected)


def test_a_factory_that_no_process_can_import_is_refused() -> None:
    with pytest.raises(JobTypeError, match="<lambda> runs in a process"):
        make_pool(lambda: jobs.Scales("kg"))
    with pytest.raises(JobTypeError, match="<lambda> runs in a process"):
        make_pool(partial(lambda unit: jobs.Scales(f"k{unit}"), "g"))


def test_arguments_that_json_does_not_hold_are_refused_and_not_named() -> None:
    secrets: list[Any] = [object(), ("hunter", "2"), {1: "hunter2"}, float("nan")]
    for secret in secrets:
        with pytest.raises(JobTypeError, match="arguments that JSON does not hold") as refused:
            make_pool(partial(jobs.Scales, secret))
        assert "hunter" not in str(refused.value)


async def test_a_process_makes_its_worker_with_the_function_that_was_registered() -> None:
    async with pool_of(jobs.kitchen_scales) as running:
        result = await running.run(jobs.Weighed(3))
    assert isinstance(result, Success)
    assert result.output is not None
    assert result.output["weight"] == "3 kg"


async def test_handlers_of_other_kinds_need_no_importing() -> None:
    class Local(Worker):
        worker_type = "child_weighed"

        def __init__(self, unit: str) -> None:
            self.unit = unit

        async def process_job(self, job: Any, context: WorkerContext) -> None:
            return None

    handlers = Handlers()
    handlers.register(Local("g"))
    sandbox = Sandbox(2, handlers)
    assert sandbox.types == frozenset()
    with pytest.raises(NotStarted):
        await sandbox.run(next(iter(handlers)), b"", None, on_start=lambda: None)  # type: ignore[arg-type]
    await sandbox.close()


MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from schemas import Job

@dataclass
class Own(Job):
    job_type = "child_own"
    execution = "process"
    number: int = 0

    def execute(self, context):
        return {"number": self.number}
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Path]]:
    """A user's package that only this process's ``sys.path`` leads to."""
    package = tmp_path / "site" / "own_jobs_of_a_user"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    file = package / "kinds.py"
    file.write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    module = import_module("own_jobs_of_a_user.kinds")
    yield module, file
    for name in [name for name in sys.modules if name.startswith("own_jobs_of_a_user")]:
        del sys.modules[name]
    _declared.pop("child_own", None)


async def test_the_child_finds_what_the_worker_found(
    own_module: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the worker's search path; a package of the working directory with one of our names is not in the way."""
    module, _ = own_module
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise RuntimeError('somebody else')", "utf-8")
    monkeypatch.chdir(tmp_path)
    async with pool_of(module.Own) as running:
        assert await running.run(module.Own(4)) == Success({"number": 4})


async def test_a_worker_need_not_import_its_job_class(own_module: tuple[Any, Path]) -> None:
    """The child imports both, as the worker did."""
    module, file = own_module
    file.with_name("hands.py").write_text(
        textwrap.dedent("""
            from workers.worker import Worker

            class Hands(Worker):
                worker_type = "child_own"
                execution = "process"

                def process_job(self, job, context):
                    return {"by": "hands"}
        """),
        "utf-8",
    )
    invalidate_caches()
    async with pool_of(import_module("own_jobs_of_a_user.hands").Hands) as running:
        assert await running.run(module.Own()) == Success({"by": "hands"})


async def test_what_a_child_cannot_import_is_an_error_at_the_start(own_module: tuple[Any, Path]) -> None:
    module, file = own_module
    file.write_text("import no_such_library", "utf-8")
    async with pool_of(module.Own) as running:
        with pytest.raises(JobTypeError, match="No module named 'no_such_library'"):
            await running.pool.start()
        assert not running.pool._all


async def test_what_a_child_cannot_import_because_the_system_is_short_of_something_may_pass(
    own_module: tuple[Any, Path],
) -> None:
    module, file = own_module
    file.write_text("raise OSError(24, 'Too many open files')", "utf-8")
    async with pool_of(module.Own) as running:
        with pytest.raises(PipelineError, match="Too many open files") as refused:
            await running.pool.start()
        assert not isinstance(refused.value, JobTypeError)


async def test_a_worker_that_a_child_cannot_make_because_the_system_is_short_of_something_may_pass(
    own_module: tuple[Any, Path],
) -> None:
    _, file = own_module
    hands = file.with_name("short_of_files.py")
    hands.write_text(
        textwrap.dedent("""
            from workers.worker import Worker

            class Hands(Worker):
                worker_type = "child_own"
                execution = "process"
        """),
        "utf-8",
    )
    invalidate_caches()
    async with pool_of(import_module("own_jobs_of_a_user.short_of_files").Hands) as running:
        with hands.open("a", encoding="utf-8") as source:
            source.write("    def __init__(self):\n        raise OSError(24, 'Too many open files')\n")
        with pytest.raises(PipelineError, match="Too many open files") as refused:
            await running.pool.start()
        assert not isinstance(refused.value, JobTypeError)


async def test_a_job_whose_process_does_not_start_is_snoozed(own_module: tuple[Any, Path]) -> None:
    """The job has not failed; and not every job tries again at once."""
    module, file = own_module
    file.write_text("import os; os._exit(9)", "utf-8")
    async with pool_of(module.Own) as running:
        snooze = await running.run(module.Own())
        assert isinstance(snooze, Snooze)
        assert "ended with exit code 9" in snooze.reason
        file.write_text(MODULE, "utf-8")
        assert await running.run(module.Own()) == snooze
        assert running.started == []
        running.pool._pause = (time.monotonic(), "")
        assert await running.run(module.Own(1)) == Success({"number": 1})


async def test_code_that_changed_since_the_worker_started_is_refused(own_module: tuple[Any, Path]) -> None:
    """Its bytes would be read as other fields."""
    module, file = own_module
    file.write_text(MODULE.replace("number: int", "number: str").replace("= 0", "= ''"), "utf-8")
    async with pool_of(module.Own) as running:
        with pytest.raises(JobTypeError, match="'child_own' has changed since the worker started"):
            await running.pool.start()
