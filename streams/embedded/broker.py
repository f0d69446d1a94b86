"""One broker process: a real Apache Kafka in KRaft mode, broker and controller in one, loopback only.

In:  a data directory. Out: a broker that answers, or an error with the end of its log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
import structlog

from streams.embedded.errors import BrokerNotRunning, BrokerStartError, BrokerStartTimeout, PortInUse
from streams.embedded.formatting import format_directory, is_formatted, new_id
from streams.embedded.jars import class_path
from streams.embedded.java import find_java
from streams.embedded.properties import Node, render, server_properties
from streams.embedded.state import (
    DirectoryLock,
    RunningBroker,
    clear_state,
    free_port,
    is_free,
    last_port,
    listens,
    started_s,
    write_state,
    write_whole,
)

log = structlog.get_logger("rustfs_workers.embedded")

_LOG_LINES: Final = 30
#: Kafka says nothing of a full disk when its log is on it.
_LITTLE_SPACE_BYTES: Final = 1024 * 1024
#: Below the data directory, in which Kafka runs. In a list of directories a comma separates, and a properties file is
#: Latin-1: the whole path may hold what Kafka would take for another one.
_LOG_DIR: Final = Path("data")
#: Somebody else may take a free port between our look and the broker's start.
_STARTS: Final = 3
_PORT_TAKEN: Final = "Address already in use"
#: How often to look whether the broker, another process, listens or has ended.
_LOOK_S: Final = 0.05
#: What a JVM that was killed may still take to be gone.
_MARGIN_S: Final = 10.0
#: With two cores the optimising compiler takes more from the broker, and from us, than it gives back at
#: first: 1,900,000 records into a fresh broker took 3.9 s of its CPU time with it and 2.3 s without;
#: transactions of 300 records ran at 31,000 and 39,000 records/s in the first seconds, at 65,000 and 54,000 a
#: minute later.
_FEW_CORES: Final = 2


@dataclass(frozen=True)
class BrokerConfig:
    """Where a broker lives.

    Attributes:
        data_dir: its directory; made if it is not there.
        port: none takes a free one: that of the last start, if nobody has it.
        heap_mb: limit of the JVM's heap in MiB; the process takes some 250 MiB more at most.
        extra: settings of the broker that win over ours.
        detached: whether it outlives the process that starts it.
        node_id: which of `nodes` this one is.
        nodes: all nodes of the cluster and their ports; empty for one node alone. All of them must be
            started at about the same time: none answers before most of them are there.
        cluster_id: the same for all nodes of a cluster, in Kafka's form (22 characters); none makes one up.
    """

    data_dir: Path
    port: int | None = None
    heap_mb: int = 1024
    extra: Mapping[str, str] = field(default_factory=dict)
    detached: bool = False
    node_id: int = 1
    nodes: tuple[Node, ...] = ()
    cluster_id: str | None = None


class EmbeddedBroker:
    """A broker of our own. Also a context manager.

    Blocks, so from asyncio call it in a thread; any thread will do, one at a time. Unless it is detached, the
    broker stops when this process ends, however that happens. Ctrl-C on the terminal does not reach it.
    """

    def __init__(self, config: BrokerConfig) -> None:
        # The broker runs in its data directory: a relative path would mean another place there.
        self.config = replace(config, data_dir=config.data_dir.absolute())
        self._lock: DirectoryLock | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._process: psutil.Process | None = None
        self._node: Node | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Its address, "127.0.0.1:port".

        Raises:
            BrokerNotRunning: it has not been started.
        """
        return self._running_node().address

    @property
    def port(self) -> int:
        """The port it listens on; raises as `bootstrap_servers` does."""
        return self._running_node().port

    @property
    def pid(self) -> int:
        """The broker's process; raises as `bootstrap_servers` does."""
        if self._process is None:
            raise BrokerNotRunning
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and _lives(self._process)

    @property
    def log_path(self) -> Path:
        """Its log: warnings and errors since its last start. The log before that has `.1` at its end."""
        return self.config.data_dir / "broker.log"

    def log_end(self) -> list[str]:
        """The last lines of its log."""
        try:
            lines = self.log_path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
            free_bytes = shutil.disk_usage(self.config.data_dir).free
        except OSError as error:
            return [f"(cannot be read: {error})"]
        if not lines and free_bytes < _LITTLE_SPACE_BYTES:
            return [f"(nothing; its disk is full: {free_bytes:,} bytes are free)"]
        return lines

    def check(self) -> None:
        """For whoever waits for something that only a living broker can bring.

        Raises:
            BrokerStartError: it has ended; the message has the end of its log.
        """
        if not self.alive:
            raise BrokerStartError("Kafka ended by itself", self.log_path, self.log_end())

    def start(self, timeout_s: float = 60.0) -> None:
        """Start it, and wait until it answers. Does nothing if it runs.

        The first start on a machine downloads Kafka and shows that on stderr; `timeout_s` begins after it.

        Raises:
            JarsUnavailable, JarMismatch, JavaMissing: what it needs cannot be had.
            DataDirInUse: another broker runs on the directory; the message names it.
            DataDirUnusable: the directory cannot be written, or holds something else.
            PortInUse: somebody listens on the port that was asked for.
            BrokerStartError: it ended; the message has the end of its log.
            BrokerStartTimeout: it does not answer in time; the same.
        """
        if self.alive:
            return
        if self._lock is not None:  # it has ended by itself
            self.stop()
        # First what is known at once: nobody downloads for a directory that cannot be used.
        self._lock = DirectoryLock(self.config.data_dir)
        try:
            jars, java = class_path(), find_java()
            began = time.monotonic()
            deadline = began + timeout_s
            self._start_on_a_free_port(self._java_command(java, jars), deadline, timeout_s)
            write_state(self.config.data_dir, self._state())
            if self.config.detached:
                # Not before others can find it: whoever kills us until then would leave a broker that nobody can stop.
                self._end_guardian("leave it alone", 0)
        except BaseException:
            # Ctrl-C included: nothing of it is left behind.
            self._end(0)
            raise
        if self.config.detached:
            self._lock.hand_over()
        seconds = round(time.monotonic() - began, 2)
        log.debug("broker started", address=self.bootstrap_servers, pid=self.pid, seconds=seconds)

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop it in order, and by force after `timeout_s`. Does nothing if it does not run."""
        self._end(timeout_s)

    def kill(self) -> None:
        """End it at once, as `kill -9` does. It can be started again on what it left."""
        self._end(0)

    def __enter__(self) -> Self:
        """Start it with the default time limit."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _start_on_a_free_port(self, command: list[str], deadline: float, timeout_s: float) -> None:
        for attempt in range(1, _STARTS + 1):
            self._node, nodes = self._choose_node()
            properties = self._write_properties(self._node, nodes)
            if not is_formatted(self._log_dir):
                format_directory(self._log_dir, self.config.cluster_id or new_id(), self._node.node_id)
            self._spawn([*command, "kafka.Kafka", str(properties)])
            try:
                self._wait_until_it_answers(self._node, deadline, timeout_s)
            except BrokerStartTimeout:
                raise
            except BrokerStartError as error:
                ours_to_choose = self.config.port is None and not self.config.nodes
                taken = any(_PORT_TAKEN in line for line in error.lines)
                if attempt == _STARTS or not (ours_to_choose and taken):
                    raise
                self._end_process(0)
            else:
                return

    def _choose_node(self) -> tuple[Node, tuple[Node, ...]]:
        config = self.config
        if config.nodes:
            return next(node for node in config.nodes if node.node_id == config.node_id), config.nodes
        if config.port is not None and not is_free(config.port):
            raise PortInUse(config.port)
        port = config.port if config.port is not None else free_port(last_port(config.data_dir))
        node = Node(config.node_id, port, free_port(not_these=(port,)))
        return node, (node,)

    @property
    def _log_dir(self) -> Path:
        return self.config.data_dir / _LOG_DIR

    def _write_properties(self, node: Node, nodes: tuple[Node, ...]) -> Path:
        path = self.config.data_dir / "server.properties"
        write_whole(path, render(server_properties(node, nodes, _LOG_DIR, self.config.extra)))
        return path

    def _java_command(self, java: Path, jars: list[Path]) -> list[str]:
        few_cores = (os.cpu_count() or 1) <= _FEW_CORES
        return [
            str(java),
            f"-Xmx{self.config.heap_mb}m",
            # One core's worth of collector: the others are for the broker, and for us.
            "-XX:+UseSerialGC",
            # With the defaults the second compiler's absence shrinks the code cache, and a collection of everything
            # for its sake stops the broker for 0.1 s some ten seconds after the start; two more for the classes before.
            "-XX:ReservedCodeCacheSize=240m",
            "-XX:MetaspaceSize=96m",
            *(["-XX:TieredStopAtLevel=1"] if few_cores else []),
            "-XX:+ExitOnOutOfMemoryError",
            # No shared memory file in the temporary directory.
            "-XX:-UsePerfData",
            # Newer runtimes warn about what the compression libraries do.
            "--enable-native-access=ALL-UNNAMED",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={files('streams.embedded').joinpath('log4j2.properties')}",
            "-cp",
            os.pathsep.join(map(str, jars)),
        ]

    def _spawn(self, command: list[str]) -> None:
        assert self._lock is not None  # noqa: S101 - taken by start
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_name("broker.log.1"))
        pid_reader, pid_writer = os.pipe()
        guardian = [sys.executable, "-I", "-S", str(files("streams.embedded").joinpath("guardian.py"))]
        options = ["--parent", os.getpid(), "--pid-fd", pid_writer, "--lock-fd", self._lock.fileno()]
        if self.config.detached:
            options.append("--detach")
        with os.fdopen(pid_reader) as said:
            try:
                with self.log_path.open("wb") as out:
                    self._guardian = subprocess.Popen(
                        [*guardian, *map(str, options), "--", *command],
                        stdin=subprocess.PIPE,
                        # Nothing is left to be flushed into the pipe of a guardian that is gone.
                        bufsize=0,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=self.config.data_dir,
                        env=_environment(),
                        pass_fds=(pid_writer, self._lock.fileno()),
                        # Ctrl-C on the terminal ends us first, and we end the broker in order.
                        start_new_session=True,
                    )
            finally:
                os.close(pid_writer)
            pid = said.readline().strip()
        # It may have ended already: whoever waits for it finds out.
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(int(pid)) if pid else None

    def _wait_until_it_answers(self, node: Node, deadline: float, timeout_s: float) -> None:
        while not (listens(node.port) and self._listens_itself(node) and _serves(node.address, deadline)):
            if not self.alive:
                lines = self.log_end()
                raise BrokerStartError("Kafka ended while it started", self.log_path, lines)
            if time.monotonic() > deadline:
                what = f"Kafka does not answer on {node.address} within {timeout_s:.0f} s"
                raise BrokerStartTimeout(what, self.log_path, self.log_end())
            time.sleep(_LOOK_S)

    def _listens_itself(self, node: Node) -> bool:
        """Somebody else may have taken the port after our look: ours has then yet to find out, and would end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = self._process.net_connections("tcp") if self._process is not None else []
            return any(s.status == psutil.CONN_LISTEN and s.laddr.port == node.port for s in sockets)
        return False

    def _running_node(self) -> Node:
        if self._node is None or self._process is None:
            raise BrokerNotRunning
        return self._node

    def _state(self) -> RunningBroker:
        owner = None if self.config.detached else os.getpid()
        return RunningBroker(self.pid, self.port, started_s(psutil.Process(self.pid)), owner)

    def _end(self, timeout_s: float) -> None:
        pid = self._process.pid if self._process is not None else None
        lock, self._lock = self._lock, None
        try:
            self._end_process(timeout_s)
            self._node = None
            if pid is not None:
                clear_state(self.config.data_dir, pid)
        finally:
            if lock is not None:
                lock.release()

    def _end_process(self, timeout_s: float) -> None:
        process, self._process = self._process, None
        if self._guardian is not None:
            self._end_guardian(str(timeout_s), timeout_s)
        if process is None or not _lives(process):
            return
        # Detached, or its guardian is gone.
        with contextlib.suppress(psutil.NoSuchProcess):
            if timeout_s > 0:
                process.terminate()
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(timeout_s)
            if _lives(process):
                log.warning("broker is killed", pid=process.pid, waited_s=timeout_s)
                process.kill()
                process.wait(_MARGIN_S)

    def _end_guardian(self, last_word: str, timeout_s: float) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        with guardian:  # closes the pipe, reaps it
            assert guardian.stdin is not None  # noqa: S101 - a pipe
            with contextlib.suppress(BrokenPipeError):
                guardian.stdin.write(f"{last_word}\n".encode())
            try:
                guardian.wait(timeout_s + _MARGIN_S)
            except subprocess.TimeoutExpired:
                guardian.kill()


def _environment() -> dict[str, str]:
    """Ours, and names of files in UTF-8: with LC_ALL=C Java finds none that is not ASCII."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _serves(address: str, deadline: float) -> bool:
    """Whether the broker answers a first request; the port alone is open a little earlier."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=max(0.1, min(5.0, deadline - time.monotonic()))).brokers)
    except KafkaException:
        return False
