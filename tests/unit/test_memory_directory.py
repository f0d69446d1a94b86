"""Where the tests' Kafkas write: into memory if there is enough, and nothing stays there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.memory_directory import memory_directory

PLENTY = 2**40


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=PLENTY))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=PLENTY))


def test_a_directory_is_new_and_gone_afterwards(tmp_path: Path) -> None:
    with memory_directory(Path("otherwise"), tmp_path) as one, memory_directory(Path("o"), tmp_path) as two:
        assert {one, two} == set(tmp_path.iterdir())
        (one / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_has_left_goes_and_what_others_use_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    names = [f"rustfs-workers-tests-{ended.pid}-a", f"rustfs-workers-tests-{os.getpid()}-b", "somebody-else"]
    for name in names:
        (tmp_path / name).mkdir()
    with memory_directory(Path("otherwise"), tmp_path) as directory:
        assert {path.name for path in tmp_path.iterdir()} == {*names[1:], directory.name}


@pytest.mark.parametrize("scarce", ["shutil.disk_usage", "psutil.virtual_memory"])
def test_with_little_memory_it_is_the_other_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    monkeypatch.setattr(scarce, lambda *_: SimpleNamespace(free=2**26, available=2**26))
    with memory_directory(Path("otherwise"), tmp_path) as directory:
        assert directory == Path("otherwise")
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_none_it_is_the_other_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with memory_directory(Path("otherwise"), tmp_path / "none") as directory:
        assert directory == Path("otherwise")
