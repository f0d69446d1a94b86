"""A broker that stays when the command that started it is gone.

In:  a data directory. Out: started, or stopped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import structlog

from streams.embedded.broker import BrokerConfig, EmbeddedBroker
from streams.embedded.errors import BrokerHasOwner, BrokerNotStopped, DataDirInUse
from streams.embedded.state import (
    RunningBroker,
    clear_state,
    locked,
    process_of,
    read_state,
    refuse_other_port,
    running_broker,
)

log = structlog.get_logger("rustfs_workers.embedded")


def start_background(config: BrokerConfig, timeout_s: float = 60.0) -> RunningBroker:
    """Start a broker that outlives us; the one that serves this directory already, if there is one. Blocks.

    Raises:
        What `EmbeddedBroker.start` raises; DataDirInUse too if the one that serves has another port than was asked for.
    """
    found = running_broker(config.data_dir)
    if found is not None:
        refuse_other_port(config.data_dir, found, config.port)
        return found
    EmbeddedBroker(replace(config, detached=True)).start(timeout_s)
    started = read_state(config.data_dir)
    assert started is not None  # noqa: S101 - start wrote it
    return started


def stop_background(data_dir: Path, timeout_s: float = 20.0) -> bool:
    """Stop the background broker in order, by force after `timeout_s`. False: none runs. Blocks.

    Raises:
        BrokerHasOwner: it runs in the foreground of another process, which would take its end for a failure.
        BrokerNotStopped: it cannot be ended.
    """
    state = read_state(data_dir)
    process = process_of(state) if state is not None else None
    if state is None or process is None or _is_free(data_dir):
        _tidy_up(data_dir, state)
        return False
    if state.owner is not None and psutil.pid_exists(state.owner):
        raise BrokerHasOwner(state.pid, state.owner)
    for end, limit_s in ((process.terminate, timeout_s), (process.kill, 10.0)):
        try:
            end()
            process.wait(limit_s)
        except psutil.NoSuchProcess:
            break
        except psutil.AccessDenied as error:
            raise BrokerNotStopped(state.pid, "it belongs to another user: stop it as that one") from error
        except psutil.TimeoutExpired:
            log.warning("broker does not stop", pid=state.pid, waited_s=limit_s)
        if process_of(state) is None:
            break
    else:
        raise BrokerNotStopped(state.pid)
    _tidy_up(data_dir, state)
    return True


def _is_free(data_dir: Path) -> bool:
    """Whether no broker has the directory: after a crash of the machine its number may be somebody else's by now."""
    try:
        with locked(data_dir):
            return True
    except DataDirInUse:
        return False


def _tidy_up(data_dir: Path, state: RunningBroker | None) -> None:
    """Take back what the ended broker had said, unless the next one starts at this moment: it writes anew."""
    if state is None:
        return
    try:
        with locked(data_dir):
            clear_state(data_dir, state.pid)
    except DataDirInUse:
        log.debug("another broker starts", data_dir=str(data_dir))
