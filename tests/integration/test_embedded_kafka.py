"""The embedded Kafka as a process: it starts, serves, stops, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it has no __all__

from streams.embedded import (
    BrokerConfig,
    BrokerHasOwner,
    BrokerStartError,
    BrokerStartTimeout,
    DataDirInUse,
    DataDirUnusable,
    EmbeddedBroker,
    Node,
    PortInUse,
    running_broker,
    start_background,
    stop_background,
)
from streams.embedded.formatting import format_directory, new_id
from streams.embedded.jars import class_path
from streams.embedded.java import find_java
from streams.embedded.state import DirectoryLock
from tests.support.quick_start import VARIABLE

pytestmark = [pytest.mark.integration, pytest.mark.distributed]

HEAP_MB = 256
LIMIT_S = 30
COMMAND = "import sys; from workers.commands.kafka import app; app(sys.argv[1:])"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that tests look at, started in a thread that has ended, as asyncio's threads may."""
    broker = EmbeddedBroker(config(tmp_path_factory.mktemp("broker")))
    starter = threading.Thread(target=broker.start)
    starter.start()
    starter.join()
    yield broker
    broker.stop()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data directory of the test's own, with nothing in it but what formatting leaves."""
    (tmp_path / "kafka").mkdir()
    format_directory(tmp_path / "kafka" / "data", new_id(), 1)
    return tmp_path / "kafka"


def config(directory: Path, **given: object) -> BrokerConfig:
    return BrokerConfig(directory, **{"heap_mb": HEAP_MB, **given})  # type: ignore[arg-type]


def wait_until_gone(pid: int) -> None:
    """The broker is not always our child: then psutil looks at it until it is gone."""
    try:
        psutil.Process(pid).wait(LIMIT_S)
    except psutil.NoSuchProcess:
        return
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def produce(address: str, topic: str, value: bytes) -> None:
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": address})
    producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(LIMIT_S) == 0
    assert errors == [None]


def first_value(address: str, topic: str) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(LIMIT_S)
        assert message is not None
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


def create_topic(address: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(LIMIT_S)


@contextmanager
def script(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line and process.stderr is not None:
        pytest.fail(f"it ended: {process.stderr.read()}")
    return line


def test_a_broker_starts_serves_stops_and_has_its_data_at_the_second_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start takes the first one's port, and less than 8 s of processor time, without the tests' help."""
    monkeypatch.delenv(VARIABLE, raising=False)
    broker = EmbeddedBroker(config(tmp_path))
    broker.start()
    try:
        first = broker.bootstrap_servers
        create_topic(first, "kept")
        produce(first, "kept", b"value")
        pid = broker.pid
    finally:
        broker.stop()
    wait_until_gone(pid)
    assert not broker.alive
    assert not (tmp_path / "address").exists()
    DirectoryLock(tmp_path).release()

    broker.start()
    try:
        used = psutil.Process(broker.pid).cpu_times()
        assert used.user + used.system < 8
        assert broker.bootstrap_servers == first
        assert first_value(first, "kept") == b"value"
    finally:
        broker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells which files a process has mapped")
def test_the_others_start_from_what_the_rehearsal_left(broker: EmbeddedBroker, quick_start: Path) -> None:
    """Java says nothing if it does not like the file: each start would take twice the processor time again."""
    if str(quick_start) not in os.environ.get(VARIABLE, ""):
        pytest.skip("there was no rehearsal: this Java cannot write such a file")
    assert str(quick_start) in {used.path for used in psutil.Process(broker.pid).memory_maps()}


def test_a_data_directory_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    directory = tmp_path / "Jürgen, 雪 #1"
    for _ in ("formatted", "found again"):
        with EmbeddedBroker(config(directory)):
            assert (directory / "data" / "meta.properties").is_file()
    assert list(tmp_path.iterdir()) == [directory]


def test_a_directory_is_formatted_as_kafka_s_own_tool_does_it(tmp_path: Path) -> None:
    """But for times and checksums in the one file, and for the directory's id, which is random, in the other."""
    broker = EmbeddedBroker(config(tmp_path, port=29092, node_id=3, nodes=(Node(3, 29092, 29093),)))
    cluster, ours, theirs = new_id(), tmp_path / "ours", tmp_path / "data"
    format_directory(ours, cluster, 3)

    properties = broker._write_properties(*broker._choose_node())
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(properties)]
    subprocess.run(
        [*broker._java_command(find_java(), class_path()), *tool],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )

    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert timeless(ours / "bootstrap.checkpoint") == timeless(theirs / "bootstrap.checkpoint")
    written, expected = facts_of(ours), facts_of(theirs)
    assert len(written.pop("directory.id")) == len(expected.pop("directory.id"))
    assert written == expected


def facts_of(directory: Path) -> dict[str, str]:
    """Of `meta.properties`."""
    lines = (directory / "meta.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def timeless(file: Path) -> list[bytes]:
    """Kafka's record batches without their checksums and times."""
    rest, batches = file.read_bytes(), []
    while rest:
        end = 12 + int.from_bytes(rest[8:12])
        batch, rest = rest[:end], rest[end:]
        batches.append(batch[:17] + batch[21:27] + batch[43:])
    return batches


def test_a_broker_outlives_the_thread_that_started_it(broker: EmbeddedBroker) -> None:
    create_topic(broker.bootstrap_servers, "alive")
    assert broker.alive


@pytest.mark.parametrize(
    "extra",
    [{"log.retention.hours": "a week"}, {"log.retention.hours": "1", "process.roles": "broker,zookeeper"}],
    ids=["a value that is no number", "a role that does not exist"],
)
def test_a_broker_that_cannot_be_set_up_gives_the_end_of_its_log(
    tmp_path: Path, extra: dict[str, str]
) -> None:
    broker = EmbeddedBroker(config(tmp_path, extra=extra))
    with pytest.raises(BrokerStartError, match=r"a week|zookeeper") as caught:
        broker.start()
    assert str(broker.log_path) in str(caught.value)
    assert not broker.alive
    DirectoryLock(tmp_path).release()


def test_a_broker_that_dies_while_it_starts_gives_the_end_of_its_log(directory: Path) -> None:
    """Its data are another node's: it finds out when it runs."""
    broker = EmbeddedBroker(config(directory, node_id=7))
    with pytest.raises(BrokerStartError, match=r"ended while it started[\s\S]*node id 7") as caught:
        broker.start()
    assert 0 < len(caught.value.lines) <= 30
    assert not broker.alive
    DirectoryLock(directory).release()


def test_a_broker_that_does_not_answer_in_time_is_ended(directory: Path) -> None:
    broker = EmbeddedBroker(config(directory))
    with pytest.raises(BrokerStartTimeout, match=r"does not answer on 127\.0\.0\.1:\d+ within 0 s"):
        broker.start(timeout_s=0)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(directory) in str(p.info["cmdline"])]
    DirectoryLock(directory).release()


def test_a_port_that_somebody_has_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} is in use"):
            EmbeddedBroker(config(tmp_path, port=port)).start()
    DirectoryLock(tmp_path).release()


def test_a_port_that_another_broker_takes_meanwhile_is_not_taken_for_ours(
    broker: EmbeddedBroker, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two start with the same port at once: both have seen it free, one gets it."""
    monkeypatch.setattr("streams.embedded.broker.is_free", lambda _port: True)
    with pytest.raises(BrokerStartError, match=r"ended while it started[\s\S]*Address already in use"):
        EmbeddedBroker(config(directory, port=broker.port)).start()
    assert not (directory / "address").exists()
    DirectoryLock(directory).release()


def test_a_second_broker_on_the_directory_is_refused_by_name(broker: EmbeddedBroker) -> None:
    data_dir = broker.config.data_dir
    with pytest.raises(DataDirInUse) as caught:
        EmbeddedBroker(config(data_dir)).start()
    assert f"the Kafka at {broker.bootstrap_servers} (process {broker.pid})" in str(caught.value)
    assert broker.alive
    found = running_broker(data_dir)
    assert found is not None
    assert (found.address, found.owner) == (broker.bootstrap_servers, os.getpid())


def test_two_directories_run_side_by_side(broker: EmbeddedBroker, kafka: str) -> None:
    """As two test runs do, or two checkouts."""
    create_topic(broker.bootstrap_servers, "only-here")
    assert "only-here" not in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=LIMIT_S).topics


def test_a_killed_parent_leaves_no_broker_behind(directory: Path) -> None:
    text = """
import sys
from pathlib import Path
from streams.embedded import BrokerConfig, EmbeddedBroker
from workers.logs import configure_logging
configure_logging()
broker = EmbeddedBroker(BrokerConfig(Path(sys.argv[1]), heap_mb=256))
broker.start()
print(broker.pid, flush=True)
sys.stdin.read()
"""
    with script(text, directory) as parent:
        pid = int(line_of(parent))
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait(LIMIT_S)
        wait_until_gone(pid)
    DirectoryLock(directory).release()


def test_a_killed_guardian_takes_the_broker_with_it(directory: Path) -> None:
    broker = EmbeddedBroker(config(directory))
    broker.start()
    try:
        pid = broker.pid
        guardian = psutil.Process(pid).parent()
        assert guardian is not None
        assert guardian.ppid() == os.getpid()
        if sys.platform == "linux":
            guardian.kill()
            wait_until_gone(pid)
            assert not broker.alive
    finally:
        broker.stop()
    assert running_broker(directory) is None


def test_a_background_broker_outlives_its_starter_until_it_is_stopped(directory: Path) -> None:
    text = """
import sys
from pathlib import Path
from streams.embedded import BrokerConfig, start_background
from workers.logs import configure_logging
configure_logging()
print(start_background(BrokerConfig(Path(sys.argv[1]), heap_mb=256)).pid, flush=True)
"""
    with script(text, directory) as starter:
        pid = int(line_of(starter))
        assert starter.wait(LIMIT_S) == 0
    try:
        state = running_broker(directory)
        assert state is not None
        assert (state.pid, state.owner) == (pid, None)
        assert (directory / "address").read_text() == f"{state.address}\n"
        create_topic(state.address, "alive")
        assert start_background(config(directory)) == state, "the one that runs is used"
        with pytest.raises(DataDirInUse, match=rf"{state.address}.* kafka stop --data-dir {directory}`"):
            start_background(config(directory, port=state.port + 1))
        with pytest.raises(DataDirInUse, match=f"process {pid}"):
            EmbeddedBroker(config(directory)).start()
    finally:
        stopped = stop_background(directory)
    assert stopped
    wait_until_gone(pid)
    assert running_broker(directory) is None
    assert not (directory / "address").exists()
    assert not stop_background(directory)


def test_a_background_start_that_is_killed_leaves_no_broker_behind(directory: Path) -> None:
    text = """
import sys
from pathlib import Path
from streams.embedded import BrokerConfig, EmbeddedBroker, start_background

def stand_still(broker, *_):
    print(broker.pid, flush=True)
    sys.stdin.read()

EmbeddedBroker._wait_until_it_answers = stand_still
start_background(BrokerConfig(Path(sys.argv[1]), heap_mb=256))
"""
    with script(text, directory) as starter:
        pid = int(line_of(starter))
        starter.kill()
        starter.wait(LIMIT_S)
        wait_until_gone(pid)
    DirectoryLock(directory).release()


def test_a_broker_that_was_killed_is_not_running_and_can_be_started_again(directory: Path) -> None:
    killed = start_background(config(directory))
    os.kill(killed.pid, signal.SIGKILL)
    wait_until_gone(killed.pid)
    assert running_broker(directory) is None
    again = start_background(config(directory))
    try:
        assert again.pid != killed.pid
    finally:
        assert stop_background(directory)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_foreground_command_says_one_line_and_ends_in_order(
    directory: Path, number: signal.Signals, code: int
) -> None:
    with script(COMMAND, "run", "--data-dir", directory) as command:
        line = line_of(command)
        state = running_broker(directory)
        assert state is not None
        assert line == f"Kafka ready at {state.address}"
        with pytest.raises(BrokerHasOwner, match=f"foreground of process {command.pid}"):
            stop_background(directory)
        command.send_signal(number)
        out, err = command.communicate(timeout=LIMIT_S)
        # On stdout nothing more; and the others would not find it by themselves: it is not where they look.
        told = f"for the other commands: export KAFKA_BOOTSTRAP_SERVERS={state.address}\n"
        assert (command.returncode, out, err) == (code, "", told)
        wait_until_gone(state.pid)
    assert not (directory / "address").exists()


def test_the_foreground_command_says_what_the_others_use_and_when_the_broker_ends_by_itself(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    with script(COMMAND, "run", "--data-dir", directory) as command:
        line_of(command)
        state = running_broker(directory)
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        _, err = command.communicate(timeout=LIMIT_S)
        assert command.returncode == 1
        note, error = err.splitlines()[:2]
        assert note.endswith("the other commands use the Kafka at kafka.example:9092, not this one")
        assert error.startswith("error: Kafka ended by itself; the end of ")


def run_command(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, "RUSTFS_WORKERS_DATA_DIR": str(data_dir), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_background_commands_work_below_the_data_directory(tmp_path: Path, directory: Path) -> None:
    before = run_command(tmp_path, "status", "--json")
    assert before.returncode == 1
    assert json.loads(before.stdout)["running"] is False
    started = run_command(tmp_path, "start")
    try:
        state = running_broker(directory)
        assert state is not None, started.stderr
        assert (started.stdout, started.stderr) == (f"Kafka ready at {state.address}\n", "")
        elsewhere = run_command(tmp_path / "other", "start", "--data-dir", str(directory), "--json")
        assert json.loads(elsewhere.stdout)["pid"] == state.pid
        assert elsewhere.stderr == f"for the other commands: export KAFKA_BOOTSTRAP_SERVERS={state.address}\n"
        status = run_command(tmp_path, "status", "--json")
        assert status.returncode == 0
        assert json.loads(status.stdout) == {
            "running": True,
            "address": state.address,
            "pid": state.pid,
            "data_dir": str(directory),
        }
    finally:
        stopped = run_command(tmp_path, "stop")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "Kafka stopped\n")


def test_nothing_is_started_where_a_kafka_is_given(tmp_path: Path) -> None:
    given = run_command(tmp_path, "start", "--json", KAFKA_BOOTSTRAP_SERVERS="kafka.example:9092")
    assert given.returncode == 0
    assert json.loads(given.stdout)["address"] == "kafka.example:9092"
    assert "the Kafka at kafka.example:9092 is used" in given.stderr
    assert not (tmp_path / "kafka").exists()


def test_nothing_is_downloaded_for_a_directory_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.embedded.broker.class_path", lambda: pytest.fail("it was downloaded"))
    (tmp_path / "kafka").touch()
    with pytest.raises(DataDirUnusable):
        EmbeddedBroker(BrokerConfig(tmp_path / "kafka")).start()


def test_an_error_is_one_line_and_no_trace(tmp_path: Path) -> None:
    (tmp_path / "kafka").touch()
    refused = run_command(tmp_path, "start")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: cannot use {tmp_path}/kafka for Kafka's data")
    assert len(refused.stderr.splitlines()) == 1
