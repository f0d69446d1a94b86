"""The parts of the demo that need no Kafka: what becomes an object, what does not, and what it leaves alone."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, Self

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from structlog.testing import capture_logs

from schemas.errors import KafkaUnreachable, PipelineError, SettingsError
from schemas.records import STATUS
from streams.clients import registry_client
from streams.embedded import BrokerConfig
from streams.registry import RegistryFailed, build_codec
from streams.settings import ADDRESS_FILE, Settings, load_settings
from tests.support.no_locks import take_locks_away
from workers import demo, temporary
from workers.commands import bench
from workers.commands.bench import _deployment
from workers.demo import (
    MISSING,
    DemoReport,
    Objects,
    _replicate,
    gather,
    missing_object,
    prepared_directory,
    verify,
)

pytestmark = pytest.mark.job_processing


def ignore(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def test_what_cannot_become_an_object_is_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, node = tmp_path / "source", tmp_path / "node"
    (source / "sub" / "__pycache__").mkdir(parents=True)
    (source / "site-packages").mkdir()
    for name in (
        "a.txt",
        "sub/b.txt",
        "sub/__pycache__/c.pyc",
        "site-packages/d.py",
        "secret",
        "long here",
        "line\nbreak",
    ):
        (source / name).write_text(name)
    (source / "link").symlink_to("a.txt")
    (source / "dead link").symlink_to("nowhere")
    (source / "folder link").symlink_to("sub")
    os.mkfifo(source / "pipe")
    Path(os.fsdecode(os.fsencode(source) + b"/bad\xff")).write_text("no UTF-8")

    original = shutil.copyfile

    def copyfile(origin: Path, target: Path) -> None:
        # Permissions do not stop root, who runs the tests in a container.
        if origin.name == "secret":
            raise PermissionError(13, "Permission denied", str(origin))
        if origin.name == "long here":  # on another file system, or below a longer path
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(target))
        original(origin, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)

    found = gather(source, node, ignore, without={"site-packages", "__pycache__"})

    assert found.keys == {"a.txt": 5, "sub/b.txt": 9}
    assert {reason: sorted(map(os.path.basename, paths)) for reason, paths in found.left_out.items()} == {
        "symbolic link": ["dead link", "folder link", "link"],
        "no regular file": ["pipe"],
        "not readable (Permission denied)": ["secret"],
        "a node refuses the name": ["bad\\udcff", "line\\nbreak", "long here"],
    }
    assert sorted(path.name for path in node.rglob("*") if path.is_file()) == ["a.txt", "b.txt"]
    everything = gather(source, node, ignore)
    assert everything.keys.keys() - found.keys.keys() == {"sub/__pycache__/c.pyc", "site-packages/d.py"}


def test_a_folder_that_may_be_listed_and_not_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, node = tmp_path / "source", tmp_path / "node"
    (source / "shut").mkdir(parents=True)
    for name in ("a", "shut/b"):
        (source / name).write_text(name)
    lstat = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        # Permissions do not stop root, who runs the tests in a container.
        if path.parent.name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    found = gather(source, node, ignore)
    assert found.keys == {"a": 1}
    assert found.left_out == {"not readable (Permission denied)": [str(source / "shut" / "b")]}


def test_nobody_else_may_look_into_what_the_demo_copies(tmp_path: Path) -> None:
    with prepared_directory(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    with prepared_directory(there):
        assert {path.stat().st_mode & 0o777 for path in there.iterdir() if path.is_dir()} == {0o700}


def test_verify_finds_the_objects_that_are_the_same_everywhere(tmp_path: Path) -> None:
    for node in ("node-1", "node-2", "node-3"):
        (tmp_path / node / "demo").mkdir(parents=True)
        for name in ("same", "other", "missing"):
            (tmp_path / node / "demo" / name).write_text(name)
    (tmp_path / "node-3" / "demo" / "other").write_text("OTHER")
    (tmp_path / "node-2" / "demo" / "missing").unlink()

    assert verify(tmp_path, {"same": 4, "other": 5, "missing": 7}, ignore) == ["same"]


def test_the_demo_empties_only_directories_that_it_made(tmp_path: Path) -> None:
    with prepared_directory(tmp_path / "new"):
        (tmp_path / "new" / "node-1" / "demo").mkdir()
        (tmp_path / "new" / "notes.txt").write_text("somebody's")
        with (
            pytest.raises(PipelineError, match=r"a demo runs in --dir .* now; choose another"),
            prepared_directory(tmp_path / "new"),
        ):
            pass
        assert (tmp_path / "new" / "node-1" / "demo").exists()

    with prepared_directory(tmp_path / "new"):
        assert list((tmp_path / "new" / "node-1").iterdir()) == []
    assert (tmp_path / "new" / "notes.txt").exists()
    (tmp_path / "taken" / "node-1").mkdir(parents=True)
    with (
        pytest.raises(PipelineError, match="not the demo's own; choose another"),
        prepared_directory(tmp_path / "taken"),
    ):
        pass
    assert (tmp_path / "taken" / "node-1").exists()


def report(*, replicated: int = 3, dead_letters: int = 1) -> DemoReport:
    return DemoReport(
        objects=3,
        replicated=replicated,
        dead_letters=dead_letters,
        bytes=6,
        seconds=0.5,
        jobs_per_s=6.0,
        verified=replicated == 3,
        left_out={"symbolic link": [f"/source/{number}" for number in range(12)]},
        dead_letter=None,
        topic_prefix="demo.",
        is_kept=False,
    )


def test_the_report_succeeds_only_if_every_copy_and_the_dead_letter_are_there() -> None:
    assert report().succeeded
    assert report(replicated=2).problem == "1 of 3 objects are not on all nodes as they should be"
    assert report(dead_letters=0).problem == "there should be one dead letter, there are 0"
    assert report().to_json()["left_out"] == {"symbolic link": 12}
    assert len(report().to_json()["left_out_files"]["symbolic link"]) == 10


def test_a_full_disk_is_no_unreadable_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def copyfile(origin: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(origin), None, str(target))

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").touch()
    monkeypatch.setattr(shutil, "copyfile", copyfile)

    with pytest.raises(PipelineError, match=r"no room for .*No space left on device; choose another --dir"):
        gather(tmp_path / "source", tmp_path / "node", ignore)


@pytest.fixture
def _ctrl_c_is_heard() -> Iterator[None]:
    """Whatever the runner of the tests has made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_a_second_ctrl_c_does_not_leave_a_kafka_or_its_directory_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first one ended what ran; who cannot wait for the tidying up presses it again."""
    tidied = []

    class Broker:
        def __init__(self, config: BrokerConfig) -> None:
            pass

        def start(self) -> None:
            pass

        def stop(self) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            tidied.append("kafka")

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        tidied.append(path.name)

    monkeypatch.setattr(temporary, "EmbeddedBroker", Broker)
    monkeypatch.setattr(shutil, "rmtree", rmtree)

    with pytest.raises(KeyboardInterrupt), temporary.temporary_kafka(tmp_path, ignore):
        signal.raise_signal(signal.SIGINT)
    temporary.remove_directory(tmp_path)
    monkeypatch.undo()

    assert tidied == ["kafka", tmp_path.name]
    with pytest.raises(KeyboardInterrupt):  # afterwards it is heard as before
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _named_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that only the settings file names, and no other Kafka to be had."""
    for name in list(os.environ):
        if name.upper().startswith(("RUSTFS_WORKERS_", "KAFKA_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    Path("rustfs-workers.toml").write_text('kafka_bootstrap_servers = "kafka-1:9092"\n')

    def start(*_: object) -> NoReturn:
        pytest.fail("a Kafka of its own was started")

    for module in (demo, temporary):
        monkeypatch.setattr(module, "temporary_kafka", start)


@pytest.mark.usefixtures("_named_in_a_file")
def test_a_demo_uses_the_cluster_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []
    ran: list[Settings] = []
    deleted: list[Settings] = []
    monkeypatch.setattr(demo, "check_reachable", asked.append)
    monkeypatch.setattr(demo, "provision", ran.append)
    monkeypatch.setattr(demo, "verify", lambda _, keys, *__: list(keys))
    monkeypatch.setattr(temporary, "delete_deployment", deleted.append)

    async def replicate(*_: object) -> tuple[float, list[object]]:
        return 1.0, []

    monkeypatch.setattr(demo, "_replicate", replicate)
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__OTHER", "file:///srv/other")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").touch()

    monkeypatch.setenv("RUSTFS_WORKERS_DATA_DIR", str(tmp_path / "dir"))  # as the one before has asked for

    done = demo.run_demo(tmp_path / "source", tmp_path / "dir", ignore)

    assert not done.is_kept, "its topics are gone: no command could look at the dead letter"
    assert [settings.kafka_bootstrap_servers for settings in (*asked, *ran, *deleted)] == ["kafka-1:9092"] * 3
    assert [set(settings.nodes) for settings in ran] == [{"node-1", "node-2", "node-3"}]


@pytest.mark.usefixtures("_named_in_a_file")
def test_a_bench_uses_the_cluster_that_a_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[Settings] = []
    monkeypatch.setattr("streams.clients.check_reachable", lambda _: None)
    monkeypatch.setattr(temporary, "delete_deployment", deleted.append)

    with _deployment(ignore) as settings:
        assert settings.kafka_bootstrap_servers == "kafka-1:9092"
        assert settings.topic_prefix.startswith("bench-")

    assert deleted == [settings]


def test_a_bench_uses_the_kafka_that_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one beside it would share the processor with it, and be empty."""
    monkeypatch.setenv("RUSTFS_WORKERS_DATA_DIR", str(tmp_path))
    (tmp_path / ADDRESS_FILE).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ADDRESS_FILE).write_text("127.0.0.1:9\n")
    asked: list[Settings] = []
    deleted: list[Settings] = []
    monkeypatch.setattr("streams.clients.check_reachable", asked.append)
    monkeypatch.setattr(temporary, "delete_deployment", deleted.append)
    with _deployment(ignore) as settings:
        assert settings.kafka_bootstrap_servers == "127.0.0.1:9"
    assert asked == deleted == [settings]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SchemaRegistryClient:
    """Somebody's own, with a schema of theirs in it; Kafka is started for the run alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "mock://theirs")
    client = registry_client(load_settings())
    monkeypatch.setattr("streams.registry.registry_client", lambda _: client)
    build_codec(load_settings(topic_prefix="theirs.")).prefix(STATUS)

    @contextmanager
    def temporary_kafka(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(bootstrap_servers="127.0.0.1:1", check=lambda: None)

    for module in (demo, temporary):
        monkeypatch.setattr(module, "temporary_kafka", temporary_kafka)
    return client


def register(settings: Settings, client: SchemaRegistryClient) -> None:
    build_codec(settings).prefix(STATUS)
    assert len(client.get_subjects()) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_demo_on_a_kafka_of_its_own_leaves_nothing_in_a_registry(
    registry: SchemaRegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    def on(settings: Settings, *_: object, **__: object) -> DemoReport:
        register(settings, registry)
        if fails:
            raise PipelineError("as expected")
        return report()

    monkeypatch.setattr(demo, "_on", on)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").touch()

    with pytest.raises(PipelineError, match="as expected") if fails else nullcontext():
        demo.run_demo(tmp_path / "source", tmp_path / "dir", ignore)

    assert registry.get_subjects() == ["theirs.jobs.status-rustfs.status.StatusChange"]


def test_a_bench_on_a_kafka_of_its_own_leaves_nothing_in_a_registry(registry: SchemaRegistryClient) -> None:
    with _deployment(ignore) as settings:
        register(settings, registry)
    assert registry.get_subjects() == ["theirs.jobs.status-rustfs.status.StatusChange"]


@pytest.mark.usefixtures("registry")
def test_a_registry_that_fails_in_the_end_is_named_and_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Settings) -> NoReturn:
        raise RegistryFailed("it is away")

    monkeypatch.setattr(temporary, "forget_subjects", fail)
    with capture_logs() as lines, _deployment(ignore) as settings:
        pass
    assert [(line["prefix"], line["error"]) for line in lines] == [(settings.topic_prefix, "it is away")]


@pytest.fixture
def _ends_at_no_signal() -> Iterator[None]:
    """Whoever runs the tests would end with what they are about, or ignores it, as under nohup."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_named_in_a_file", "_ends_at_no_signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["sigterm", "closed terminal"])
def test_a_bench_that_is_told_to_end_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    deleted: list[Settings] = []
    monkeypatch.setattr("streams.clients.check_reachable", lambda _: None)
    monkeypatch.setattr(temporary, "delete_deployment", deleted.append)
    monkeypatch.setattr(bench, "keep_logs_quiet", lambda: None)

    with pytest.raises(SystemExit) as ended, bench._bench() as (settings, _):
        signal.raise_signal(number)

    assert ended.value.code == 130
    assert deleted == [settings]


@pytest.mark.usefixtures("_named_in_a_file", "_ends_at_no_signal")
def test_under_nohup_a_closed_terminal_is_no_reason_to_end_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.clients.check_reachable", lambda _: None)
    monkeypatch.setattr(temporary, "delete_deployment", lambda _: None)
    monkeypatch.setattr(bench, "keep_logs_quiet", lambda: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with bench._bench():
        signal.raise_signal(signal.SIGHUP)


def test_a_demo_looks_at_the_settings_and_at_kafka_before_it_copies_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").touch()
    for variable, value, error in (
        ("RUSTFS_WORKERS_PARTITIONS", "0", SettingsError),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", KafkaUnreachable),
        ("KAFKA_SECURITY_PROTOCOL", "SSL", SettingsError),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(error):
                demo.run_demo(tmp_path / "source", tmp_path / "dir", ignore)
        assert not (tmp_path / "dir" / "node-1" / "demo").exists()


@pytest.mark.parametrize("there", [[], [MISSING], [MISSING, f"{MISSING}-", "a"], [f"{MISSING}/inside"]])
def test_the_object_that_does_not_exist_does_not_exist(there: list[str]) -> None:
    """Whatever the files under --source are called."""
    name = missing_object(dict.fromkeys(there, 1))
    assert name.startswith(MISSING)
    assert not any(key == name or key.startswith(f"{name}/") for key in there)


def test_a_file_system_without_locks_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_locks_away(monkeypatch)
    with (
        pytest.raises(PipelineError, match="No locks available; choose one on a local disk"),
        prepared_directory(tmp_path / "new"),
    ):
        pass


class Orphaned:
    """A manager whose Kafka has died: its worker fails while it is shut down for that."""

    def __init__(self, *_: object) -> None:
        self.process = SimpleNamespace(counters={})
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def register(self, what: object) -> None:
        pass

    async def wait(self) -> None:
        await asyncio.shield(self.failure)

    async def shutdown(self, *_: object) -> None:
        if not self.failure.done():
            self.failure.set_exception(KafkaUnreachable("nowhere", 1))
        for _turn in range(5):  # whoever is in wait() has heard of it
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()


async def test_what_follows_from_the_death_of_its_kafka_is_not_complained_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command has one line for it; asyncio would add a trace for a task whose error nobody has taken."""

    @asynccontextmanager
    async def connect(_: Settings) -> AsyncIterator[Any]:
        async def schedule(*_: object, **__: object) -> None:
            pass

        yield SimpleNamespace(schedule_jobs=schedule, schedule_job=schedule)

    lives = iter([True, False])

    def check() -> None:
        if not next(lives):
            raise PipelineError("Kafka ended by itself")

    monkeypatch.setattr(demo, "JobQueue", SimpleNamespace(connect=connect))
    monkeypatch.setattr(demo, "WorkerManager", Orphaned)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))

    with pytest.raises(PipelineError, match="Kafka ended by itself"):
        await _replicate(Settings(), Objects({"a": 1}), ignore, check)

    gc.collect()
    assert complaints == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
