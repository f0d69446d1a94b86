"""What ``--import`` finds in a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from schemas import job
from schemas.errors import SettingsError
from workers.imports import import_modules

pytestmark = pytest.mark.job_processing

THUMBS = """
from dataclasses import dataclass
from schemas import Job
from workers import Worker

@dataclass
class ThumbJob(Job):
    job_type = "test_imports_thumb"
    path: str

    async def execute(self): ...

class ThumbWorker(Worker):
    worker_type = "test_imports_other"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "import_me").mkdir()
    (tmp_path / "import_me" / "thumbs.py").write_text(THUMBS)
    (tmp_path / "import_me" / "__init__.py").write_text("from .thumbs import ThumbJob, ThumbWorker\n")
    (tmp_path / "import_me_elsewhere.py").write_text("from import_me import ThumbJob, ThumbWorker\n")
    yield tmp_path
    job._declared.pop("test_imports_thumb", None)  # other tests look at all declared types
    for name in [name for name in sys.modules if name.startswith("import_me")]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_a_package_gives_what_it_has_from_its_own_modules() -> None:
    """A job that is declared there is accepted by `submit`: without a handler it would wait, and fail."""
    with capture_logs() as lines:
        found = import_modules(["import_me"], to_run=True)
    assert sorted(cls.__name__ for cls in found) == ["ThumbJob", "ThumbWorker"]
    assert lines == []


@pytest.mark.usefixtures("package")
def test_who_has_nothing_of_its_own_to_run_is_named() -> None:
    with capture_logs() as lines:
        assert import_modules(["import_me_elsewhere"], to_run=True) == []
        assert import_modules(["import_me_elsewhere"]) == []
    assert [line["module"] for line in lines] == ["import_me_elsewhere"], "and only by who wants to run it"


def test_a_working_directory_that_has_been_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left").mkdir()
    monkeypatch.chdir(tmp_path / "left")
    (tmp_path / "left").rmdir()
    with pytest.raises(
        SettingsError, match=r"^--import my_jobs: .* has been removed; enter one that is there$"
    ):
        import_modules(["my_jobs"])
    assert import_modules([]) == []
