"""Who runs a Kafka in a data directory, and where: a lock, a state file, an address file.

In:  a data directory. Out: at most one broker in it, found by every other process.

    lock         held by the broker itself, which inherits the descriptor: it ends when the broker does
    broker.json  pid, port and start time of the broker that serves
    address      host:port in plain text, for whoever only wants to connect
    port         the port of the last start: the next one takes it again if it is free
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from streams.embedded.errors import ANOTHER_DIRECTORY, DataDirInUse, DataDirUnusable
from streams.embedded.properties import HOST

_STATE_FILE: Final = "broker.json"
_ADDRESS_FILE: Final = "address"
_LOCK_FILE: Final = "lock"
_PORT_FILE: Final = "port"
#: Below the ports of outgoing connections: one of these could take ours between our look and the start.
_PORTS: Final = range(20_000, 32_000)
_ALL_PORTS: Final = range(1, 65_536)
#: What may stand in a directory that nobody has locked yet: a copy of a broker's data, an empty disk.
_NOT_FOREIGN: Final = {"data", "lost+found", _STATE_FILE, _ADDRESS_FILE, _PORT_FILE}
#: They are computed from the machine's start, which the system tells in whole seconds.
_START_TIME_TOLERANCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that serves.

    Attributes:
        pid: its process.
        port: where it listens.
        started: when its process began, in seconds since the machine did: a pid may be used again.
        owner: the process that stops it when that ends itself; none if it was started in the background.
    """

    pid: int
    port: int
    started: float
    owner: int | None = None

    @property
    def address(self) -> str:
        """Its bootstrap servers."""
        return f"{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether its process lives (and is not another one with its pid)."""
        return process_of(self) is not None


def running_broker(data_dir: Path) -> RunningBroker | None:
    """The broker of this directory, if its process lives and listens."""
    state = read_state(data_dir)
    return state if state is not None and state.alive and listens(state.port) else None


def refuse_other_port(data_dir: Path, running: RunningBroker, port: int | None) -> None:
    """Whoever asked for a port gets that one, or an error.

    Raises:
        DataDirInUse: the broker that runs has another one.
    """
    if port is not None and port != running.port:
        raise DataDirInUse(data_dir, f"the Kafka at {running.address} (process {running.pid})")


def process_of(state: RunningBroker) -> psutil.Process | None:
    """The process that the state speaks of, if it lives."""
    try:
        process = psutil.Process(state.pid)
        # A container without an init process keeps the dead as zombies.
        dead = process.status() == psutil.STATUS_ZOMBIE
        other = abs(started_s(process) - state.started) > _START_TIME_TOLERANCE_S
    except psutil.NoSuchProcess:
        return None
    return None if dead or other else process


def started_s(process: psutil.Process) -> float:
    """When it began, in seconds since the machine did: the clock may be set meanwhile, by a first look at NTP, say."""
    return process.create_time() - psutil.boot_time()


def read_state(data_dir: Path) -> RunningBroker | None:
    """What the state file says; none if there is none, or it cannot be read."""
    try:
        found = json.loads((data_dir / _STATE_FILE).read_text("utf-8"))
        owner = found["owner"]
        state = RunningBroker(
            int(found["pid"]),
            int(found["port"]),
            float(found["started"]),
            None if owner is None else int(owner),
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return state if state.pid > 0 and state.port in _ALL_PORTS else None


def write_state(data_dir: Path, state: RunningBroker) -> None:
    """Say that this broker serves, and where."""
    write_whole(data_dir / _STATE_FILE, json.dumps(asdict(state)) + "\n")
    write_whole(data_dir / _PORT_FILE, f"{state.port}\n")
    write_address(data_dir, state.address)


def clear_state(data_dir: Path, pid: int) -> None:
    """Take back what was said about the broker of this pid; another one's stays."""
    state = read_state(data_dir)
    if state is not None and state.pid == pid:
        forget_address(data_dir, state.address)
        (data_dir / _STATE_FILE).unlink(missing_ok=True)


def write_address(data_dir: Path, address: str) -> None:
    """Leave the address where other commands look for it."""
    write_whole(data_dir / _ADDRESS_FILE, address + "\n")


def forget_address(data_dir: Path, address: str) -> None:
    """Take the address back, unless somebody else's stands there by now."""
    path = data_dir / _ADDRESS_FILE
    with contextlib.suppress(FileNotFoundError):
        if path.read_text("utf-8").strip() == address:
            path.unlink()


def has_a_name_for_java(path: Path) -> bool:
    """Whether it is UTF-8: Java takes any other name for that of another directory."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class DirectoryLock:
    """The right to run a broker in a data directory. The broker inherits it: it lasts as long as that one."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock.

        Raises:
            DataDirInUse: somebody has it; the message says who.
            DataDirUnusable: the directory cannot be made or written, or holds something else.
        """
        if not has_a_name_for_java(data_dir):
            raise DataDirUnusable(
                f"{str(data_dir)!a} is no UTF-8, and Java finds no directory of that name; {ANOTHER_DIRECTORY}"
            )
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            if not (data_dir / _LOCK_FILE).exists():
                self._refuse_foreign(data_dir)
            self._file = (data_dir / _LOCK_FILE).open("a+")
        except OSError as error:
            raise DataDirUnusable(
                f"cannot use {data_dir} for Kafka's data: {error}; {ANOTHER_DIRECTORY}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder, serves = self._holder(data_dir)
            self._file.close()
            raise DataDirInUse(data_dir, holder, serves=serves) from error
        except OSError as error:
            # Some network file systems have no locks: nothing would keep two Kafkas from writing there.
            self._file.close()
            raise DataDirUnusable(
                f"cannot lock {data_dir} for Kafka's data: {error.strerror}; {ANOTHER_DIRECTORY}"
            ) from error
        try:
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n")
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # it tries to write once more
                self._file.close()
            raise DataDirUnusable(f"cannot write to {data_dir}: {error}; {ANOTHER_DIRECTORY}") from error

    def fileno(self) -> int:
        """The descriptor that the broker inherits."""
        return self._file.fileno()

    def hand_over(self) -> None:
        """Leave the lock to the broker alone."""
        self._file.close()

    def release(self) -> None:
        """Give the lock back, whoever else has inherited it (a forked child of ours may have)."""
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def _refuse_foreign(self, data_dir: Path) -> None:
        foreign = sorted({path.name for path in data_dir.iterdir()} - _NOT_FOREIGN)
        if foreign:
            raise DataDirUnusable(
                f"{data_dir} holds something else than Kafka's data ({foreign[0]}); {ANOTHER_DIRECTORY}"
            )

    def _holder(self, data_dir: Path) -> tuple[str, bool]:
        """Who it is, and whether that serves."""
        state = read_state(data_dir)
        if state is not None and state.alive:
            return f"the Kafka at {state.address} (process {state.pid})", True
        self._file.seek(0)
        pid = self._file.read().strip() or "unknown"
        return f"process {pid}, which is starting or stopping a Kafka there", False


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the directory for a moment."""
    lock = DirectoryLock(data_dir)
    try:
        yield
    finally:
        lock.release()


def last_port(data_dir: Path) -> int | None:
    """The port of the last start here: clients that are still there find the broker again."""
    try:
        port = int((data_dir / _PORT_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return port if port in _ALL_PORTS else None


def free_port(preferred: int | None = None, *, not_these: tuple[int, ...] = ()) -> int:
    """A port that nobody listens on, the preferred one if that is free."""
    candidates = [] if preferred is None else [preferred]
    candidates += random.sample(_PORTS, 200)
    return next(port for port in candidates if port not in not_these and is_free(port))


def is_free(port: int) -> bool:
    """Whether a broker could listen here now."""
    with socket.socket() as probe:
        # As Java does: connections of the last broker that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody accepts connections here."""
    try:
        with socket.create_connection((HOST, port), 0.5):
            return True
    except OSError:
        return False


def write_whole(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file, not even after the machine has lost its power.

    Raises:
        DataDirUnusable: it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may outlive what it names
        scratch.replace(path)
    except OSError as error:
        raise DataDirUnusable(f"cannot write {path}: {error}; {ANOTHER_DIRECTORY}") from error
