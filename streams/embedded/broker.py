"""One broker process: Apache Kafka in KRaft mode, broker and controller in one, on loopback.

In:  a data directory. Out: a broker that answers, or the end of its log and why it does not.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from uuid import uuid4

import structlog

from streams.embedded.errors import BrokerStartError, BrokerStartTimeout, DataDirInUse
from streams.embedded.jars import class_path
from streams.embedded.java import find_java

log = structlog.get_logger("rustfs_workers.embedded")

_HOST: Final = "127.0.0.1"
_LOG_LINES: Final = 30

#: What makes a single node complete, and a killed worker noticed within seconds instead of a minute.
SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    # An empty group's offsets would expire after a week, and a week's jobs would run again.
    "offsets.retention.minutes": "2147483647",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    # How often the broker looks for transactions of dead workers (default 10 s).
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "16777216",
}

_LOG4J: Final = """\
status = error
appender.console.type = Console
appender.console.name = STDOUT
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = STDOUT
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""


@dataclass(frozen=True)
class BrokerConfig:
    """Where a broker lives.

    Attributes:
        data_dir: its directory; made if it is not there.
        port: None takes a free one.
        heap_mb: memory for the JVM's heap.
        extra: broker settings that win over ours.
        detached: True lets it outlive the process that started it.
    """

    data_dir: Path
    port: int | None = None
    heap_mb: int = 1024
    extra: Mapping[str, str] = field(default_factory=dict)
    detached: bool = False


class EmbeddedBroker:
    """A broker of our own. Also a context manager. Blocks; for one thread at a time.

    Unless it is detached it dies with the thread that called ``start`` (on Linux, even by kill -9).
    """

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Its address."""
        return f"{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """Its log."""
        return self.config.data_dir / "broker.log"

    def start(self, timeout_s: float = 60.0) -> None:
        """Start, and wait until it answers.

        Raises:
            JarsUnavailable, JarMismatch, JavaMissing: what it needs cannot be had.
            DataDirInUse: another broker runs on the directory.
            BrokerStartError: it died, or (BrokerStartTimeout) did not answer in time.
        """
        directory = self.config.data_dir
        directory.mkdir(parents=True, exist_ok=True)
        jars, runtime = os.pathsep.join(map(str, class_path())), str(find_java())
        self._lock = _lock(directory)
        try:
            self.port = self.config.port or _free_port()
            controller_port = _free_port()
            properties = self._write_properties(controller_port)
            command = self._command(runtime, jars)
            if not (directory / "data" / "meta.properties").exists():
                self._format(command, properties)
            with self.log_path.open("wb") as out:
                self._process = subprocess.Popen(
                    [*command, "kafka.Kafka", str(properties)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C on the terminal ends us first, and we end the broker in order.
                    start_new_session=True,
                    # The lock is the broker's, too: it lasts as long as one of us lives.
                    pass_fds=(self._lock.fileno(),),
                    preexec_fn=None if self.config.detached else _dies_with(os.getpid()),
                )
            self._wait_until_it_answers(timeout_s)
        except BaseException:
            self.stop()
            raise
        log.debug("broker started", address=self.bootstrap_servers, pid=self.pid)

    def stop(self, timeout_s: float = 15.0) -> None:
        """End it in order; by force after ``timeout_s``. Harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                log.warning("broker did not stop in time and is killed", pid=process.pid)
                process.kill()
                process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_end(self) -> list[str]:
        """The last lines of its log."""
        try:
            return self.log_path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
        except OSError as error:
            return [f"(no log: {error})"]

    def _write_properties(self, controller_port: int) -> Path:
        settings = {
            **SETTINGS,
            "controller.quorum.bootstrap.servers": f"{_HOST}:{controller_port}",
            "listeners": f"PLAINTEXT://{_HOST}:{self.port},CONTROLLER://{_HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{_HOST}:{self.port}",
            "log.dirs": str(self.config.data_dir / "data"),
            **self.config.extra,
        }
        path = self.config.data_dir / "server.properties"
        lines = (f"{name}={value}".replace("\\", "\\\\") for name, value in settings.items())
        path.write_text("\n".join(lines) + "\n", "utf-8")
        (self.config.data_dir / "log4j2.properties").write_text(_LOG4J, "utf-8")
        return path

    def _command(self, runtime: str, jars: str) -> list[str]:
        return [
            runtime,
            f"-Xmx{self.config.heap_mb}m",
            # Two cores: the small collector and a shared archive of classes start fastest.
            "-XX:+UseSerialGC",
            "-Xshare:auto",
            # Newer runtimes warn about what the compression libraries do.
            "--enable-native-access=ALL-UNNAMED",
            f"-Dlog4j2.configurationFile={self.config.data_dir / 'log4j2.properties'}",
            "-cp",
            jars,
        ]

    def _format(self, command: list[str], properties: Path) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *command,
                "kafka.tools.StorageTool",
                "format",
                "--cluster-id",
                cluster_id,
                "--config",
                str(properties),
                "--standalone",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".splitlines()
            raise BrokerStartError(
                "the data directory cannot be formatted", self.log_path, said[-_LOG_LINES:]
            )

    def _wait_until_it_answers(self, timeout_s: float) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - just started
        deadline = time.monotonic() + timeout_s
        while not listens(self.port):
            code = process.poll()
            if code is not None:
                raise BrokerStartError(f"Kafka ended with exit code {code}", self.log_path, self.log_end())
            if time.monotonic() > deadline:
                raise BrokerStartTimeout(
                    f"Kafka did not answer within {timeout_s:.0f} s", self.log_path, self.log_end()
                )
            time.sleep(0.05)  # another process: there is nothing to wait on but its port


def listens(port: int) -> bool:
    """Whether something answers on this port of ours."""
    try:
        with socket.create_connection((_HOST, port), 0.5):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _lock(directory: Path) -> IO[str]:
    path = directory / "lock"
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise DataDirInUse(directory, f"process {holder or 'unknown'}") from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _dies_with(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return in_child
