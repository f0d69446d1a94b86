"""A broker that stays when the command that started it is gone, and the file that says where it is.

In:  a data directory. Out: started, found, stopped.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from schemas.errors import PipelineError
from streams.embedded.broker import BrokerConfig, EmbeddedBroker, listens

_STATE_FILE: Final = "broker.json"
_ADDRESS_FILE: Final = "address"


@dataclass(frozen=True)
class RunningBroker:
    """A broker that runs in the background. The start time defends against a pid that was used again."""

    pid: int
    port: int
    started: float

    @property
    def address(self) -> str:
        """Its bootstrap servers."""
        return f"127.0.0.1:{self.port}"


def start_background(config: BrokerConfig, timeout_s: float = 60.0) -> RunningBroker:
    """Start a broker that outlives us; the one that runs already, if there is one.

    Raises:
        EmbeddedKafkaError: it cannot be started; the message says why.
    """
    found = running_broker(config.data_dir)
    if found is not None:
        return found
    broker = EmbeddedBroker(replace(config, detached=True))
    broker.start(timeout_s)
    state = RunningBroker(broker.pid, broker.port, psutil.Process(broker.pid).create_time())
    _write(config.data_dir / _STATE_FILE, json.dumps(asdict(state)))
    write_address(config.data_dir, state.address)
    return state


def running_broker(data_dir: Path) -> RunningBroker | None:
    """The background broker of this directory, if its process lives and listens."""
    try:
        state = RunningBroker(**json.loads((data_dir / _STATE_FILE).read_text("utf-8")))
        process = psutil.Process(state.pid)
        if abs(process.create_time() - state.started) > 1 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
        return None
    return state if listens(state.port) else None


def stop_background(data_dir: Path, timeout_s: float = 20.0) -> bool:
    """Stop the background broker in order. False: none runs.

    Raises:
        PipelineError: it does not end.
    """
    state = running_broker(data_dir)
    if state is None:
        return False
    process = psutil.Process(state.pid)
    process.terminate()
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired as error:
        raise PipelineError(f"Kafka (process {state.pid}) did not stop within {timeout_s:.0f} s") from error
    (data_dir / _STATE_FILE).unlink(missing_ok=True)
    forget_address(data_dir, state.address)
    return True


def write_address(data_dir: Path, address: str) -> None:
    """Leave the address where other commands look for it."""
    _write(data_dir / _ADDRESS_FILE, address + "\n")


def forget_address(data_dir: Path, address: str) -> None:
    """Take the address back, unless somebody else's stands there by now."""
    path = data_dir / _ADDRESS_FILE
    try:
        if path.read_text("utf-8").strip() == address:
            path.unlink()
    except FileNotFoundError:
        pass


def _write(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, "utf-8")
    scratch.replace(path)
