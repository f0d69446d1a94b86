"""`demo` and `up` where no Kafka is needed: what they refuse, what they say, and how they end."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn, Self

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import PipelineError
from streams.embedded import BrokerConfig
from streams.settings import Settings, load_settings
from tests.support.commands import invoke as run
from workers.commands.up import with_a_name_of_its_own
from workers.demo import DemoReport, Objects

pytestmark = [pytest.mark.job_processing, pytest.mark.usefixtures("somewhere_else")]


def test_the_demo_makes_no_directory_in_what_it_must_not_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    result = run("demo", "--source", str(tmp_path))
    assert result.exit_code == 2
    assert "give --dir a folder outside of it" in result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_demo_takes_all_files_of_a_folder_that_is_named_be_it_pythons_own_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    for name in ("os.py", "site-packages/others.py", "__pycache__/os.pyc"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).touch()
    taken: list[list[str]] = []

    def on(_: Settings, __: Path, objects: Objects, *___: object, **____: object) -> NoReturn:
        taken.append(sorted(objects.keys))
        raise PipelineError("seen enough")

    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    monkeypatch.setattr("workers.demo.default_source", lambda: library)
    monkeypatch.setattr("workers.demo.check_reachable", lambda _: None)
    monkeypatch.setattr("workers.demo.deleted_afterwards", nullcontext)
    monkeypatch.setattr("workers.demo._on", on)

    for arguments in ([], ["--source", str(library)]):
        assert run("demo", *arguments, "--dir", str(tmp_path / "demo")).stderr.endswith("seen enough\n")

    assert taken == [["os.py"], ["__pycache__/os.pyc", "os.py", "site-packages/others.py"]]


def test_up_looks_at_the_nodes_before_it_starts_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", "ftp://host/dir")
    monkeypatch.setattr("streams.embedded.EmbeddedBroker", lambda _: pytest.fail("Kafka was started"))

    result = run("up")

    assert result.exit_code == 2
    assert result.stderr.startswith("error: node n1: ftp://host/dir has an unknown scheme")


def test_a_demo_that_fails_says_why_and_that_it_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    report = DemoReport(
        objects=3, replicated=2, dead_letters=1, bytes=6, seconds=0.5, jobs_per_s=6.0, verified=False, left_out={},
        dead_letter=None, topic_prefix="demo.", is_kept=False,
    )  # fmt: skip
    monkeypatch.setattr("workers.demo.run_demo", lambda *_: report)

    result = run("demo", "--json")

    assert result.exit_code == 1
    assert result.stderr == "error: 1 of 3 objects are not on all nodes as they should be\n"
    assert json.loads(result.stdout)["verified"] is False


@pytest.mark.parametrize(
    "arguments", [["demo", "--json"], ["bench", "latency", "--json"]], ids=["demo", "bench"]
)
@pytest.mark.parametrize(
    ("set_to", "logged"),
    [
        ({}, ["warning"]),
        ({"LOG_LEVEL": "debug"}, ["debug", "info", "warning"]),
        ({"LOG_LEVEL": "info"}, ["info", "warning"]),
        ({"LOG_LEVEL": "error"}, []),
    ],
    ids=["as it is", "debug", "info", "error"],
)
def test_demo_and_bench_log_as_the_settings_say_and_nothing_below_warnings_unless_they_do(
    arguments: list[str], set_to: dict[str, str], logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Settings) -> NoReturn:
        log = structlog.get_logger("test")
        for level in ("debug", "info", "warning"):
            log.log(logging.getLevelNamesMapping()[level.upper()], "it is busy")
        raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))

    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    monkeypatch.setenv("RUSTFS_WORKERS_LOG_FORMAT", "json")
    for name, value in set_to.items():
        monkeypatch.setenv(f"RUSTFS_WORKERS_{name}", value)
    monkeypatch.setattr("streams.clients.check_reachable", refuse)
    monkeypatch.setattr("workers.demo.check_reachable", refuse)

    result = run(*arguments)

    *lines, error = map(json.loads, result.stderr.splitlines())
    assert [(line["level"], line["event"]) for line in lines] == [(level, "it is busy") for level in logged]
    assert error["level"] == "error"
    assert error["event"].startswith("Kafka does not answer")
    assert (result.exit_code, result.stdout) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "missing"], "--source missing is no directory"),
        (["--source", "empty", "--dir", "new"], "has no file that could become an object"),
        (["--source", "files", "--dir", "files"], "is not empty and not the demo's own"),
        (["--source", "files", "--dir", "files/inside"], "which must not change"),
        (["--source", "outside/files", "--dir", "outside"], "which is emptied first"),
        (["--source", "files", "--dir", "files/one"], "is no directory"),
        (["--source", "files", "--dir", "new/\udcff"], "is no UTF-8"),
    ],
)
def test_the_demo_refuses_directories_that_are_not_its_own(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    for directory in ("empty", "files", "outside/files"):
        (tmp_path / directory).mkdir(parents=True)
    for file in ("files/one", "outside/files/one"):
        (tmp_path / file).write_text("1")
    (tmp_path / "outside" / ".rustfs-workers-demo").write_text("an earlier demo's")
    if said == "is not empty and not the demo's own":
        arguments = ["--source", "empty", "--dir", "files"]
    if said == "is no directory":
        arguments = ["--source", "empty", "--dir", "files/one"]

    result = run("demo", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert (tmp_path / "files" / "one").read_text() == "1"
    assert (tmp_path / "outside" / "files" / "one").read_text() == "1"


def test_the_demo_does_not_fetch_kafka_into_the_files_that_it_must_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `--source ~`, where the cache is."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "one").write_text("1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / ".cache"))

    result = run("demo", "--source", "files", "--dir", "new")

    assert result.exit_code == 2
    assert f"--source files holds {files}/.cache/" in result.stderr
    assert "XDG_CACHE_HOME" in result.stderr
    assert [path.name for path in files.rglob("*")] == ["one"]


def test_a_worker_beside_others_on_the_kafka_of_this_machine_has_a_name_of_its_own() -> None:
    """`up` works under the host's: two of one name take each other for a process that has been replaced, and one ends."""
    plain, named = load_settings(), load_settings(worker_id="rack4")
    assert with_a_name_of_its_own(plain).worker_id == f"{plain.worker_id}-{os.getpid()}"
    assert with_a_name_of_its_own(named).worker_id == "rack4"


def test_the_name_of_a_worker_is_the_hosts_only_where_a_cluster_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []

    def supervise(_count: int, command: Callable[[int], list[str]]) -> int:
        arguments = command(0)
        names.append(arguments[arguments.index("--worker-id") + 1])
        return 0

    monkeypatch.setattr("streams.scan.require_topics", lambda _: None)
    monkeypatch.setattr("workers.supervisor.supervise", supervise)
    assert run("worker", "--processes", "2").exit_code == 0
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert run("worker", "--processes", "2").exit_code == 0
    host = load_settings().worker_id
    assert names == [f"{host}-{os.getpid()}", host]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)],
    ids=["sigterm", "closed terminal", "ctrl-c"],
)
def test_an_up_that_is_told_to_end_while_it_starts_takes_its_kafka_along(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    did: list[str] = []

    class Broker:
        def __init__(self, _: BrokerConfig) -> None:
            pass

        def __enter__(self) -> Self:
            did.append("started")
            return self

        def __exit__(self, *_: object) -> None:
            signal.raise_signal(number)  # once more: it is not heard
            did.append("stopped")

    def check_reachable(_: Settings) -> None:
        signal.raise_signal(number)
        did.append("went on")

    monkeypatch.setattr("streams.embedded.EmbeddedBroker", Broker)
    monkeypatch.setattr("streams.clients.check_reachable", check_reachable)
    monkeypatch.setattr("streams.provision.provision", lambda _: pytest.fail("it went on"))
    # Whoever runs the tests would end with them, or ignores them, as under nohup.
    before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        ended = run("up")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

    assert did == ["started", "stopped"]
    assert ended.exit_code == code
