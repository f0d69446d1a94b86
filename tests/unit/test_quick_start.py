"""The tests' own help: whatever is wrong with it, a Kafka starts, only slower."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streams.embedded import EmbeddedBroker, JavaMissing
from tests.support import quick_start
from tests.support.quick_start import VARIABLE, rehearsed, use


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have begun to use it."""
    monkeypatch.delenv(VARIABLE, raising=False)


def placed(monkeypatch: pytest.MonkeyPatch, file: Path) -> Path:
    monkeypatch.setattr(quick_start, "place", lambda: file)
    return file


def test_a_directory_that_takes_no_file_means_a_plain_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    file = placed(monkeypatch, tmp_path / "file" / "quick-start-1.aot")
    assert rehearsed(tmp_path) == file
    use(monkeypatch, file)
    assert VARIABLE not in os.environ


def test_a_rehearsal_that_fails_means_a_plain_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(monkeypatch, tmp_path / "quick-start-1.aot")

    def fail(broker: EmbeddedBroker) -> None:
        assert "AOTCacheOutput" in os.environ[VARIABLE]
        raise JavaMissing("it is of last year")

    monkeypatch.setattr(EmbeddedBroker, "start", fail)
    use(monkeypatch, rehearsed(tmp_path))
    assert VARIABLE not in os.environ
    assert {path.name for path in tmp_path.iterdir()} == {"quick-start.lock"}


def test_what_one_process_has_made_the_others_use_and_nobody_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = placed(monkeypatch, tmp_path / "a directory" / "quick-start-2.aot")
    file.parent.mkdir()
    (file.parent / "quick-start-1.aot").touch()

    def start(broker: EmbeddedBroker) -> None:
        (option,) = os.environ[VARIABLE].split("-XX:AOTCacheOutput=")[1:]
        Path(option.strip("'")).write_text("once")

    monkeypatch.setattr(EmbeddedBroker, "start", start)
    for _ in range(2):
        rehearsed(tmp_path)
        monkeypatch.setattr(EmbeddedBroker, "start", lambda _: pytest.fail("again"))
    assert [path.name for path in file.parent.glob("*.aot")] == [file.name]
    use(monkeypatch, file)
    assert f"'-XX:AOTCache={file}'" in os.environ[VARIABLE]
    assert file.read_text() == "once"


def test_a_developer_s_own_options_for_java_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = placed(monkeypatch, tmp_path / "quick-start-1.aot")
    monkeypatch.setenv(VARIABLE, "-verbose")
    monkeypatch.setattr(EmbeddedBroker, "start", lambda _: pytest.fail("no rehearsal with options of others"))
    rehearsed(tmp_path)
    file.touch()
    use(monkeypatch, file)
    assert os.environ[VARIABLE] == "-verbose"
