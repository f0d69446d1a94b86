"""Directories in memory, for what a Kafka writes in tests.

A deployment begins with sixty partitions, each of which waits for the disk several times: on a disk that takes three times
the time, and three times the processor. What is tested outlives processes, not machines, so memory is as good.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

#: A temporary file system in memory on every Linux; other systems have none.
PLACE: Final = Path("/dev/shm")  # noqa: S108 - each directory below it is made for its owner alone
_PREFIX: Final = "rustfs-workers-tests-"
#: What three processes and a cluster write takes a part of it. In a container the place may be tiny.
_ENOUGH_BYTES: Final = 6 * 1024**3


@contextmanager
def memory_directory(otherwise: Path, place: Path = PLACE) -> Iterator[Path]:
    """A new directory, removed in the end; ``otherwise`` where there is not memory enough."""
    if not _has_room(place):
        yield otherwise
        return
    _tidy_up(place)
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _has_room(place: Path) -> bool:
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return False
    return min(free, psutil.virtual_memory().available) >= _ENOUGH_BYTES and os.access(place, os.W_OK)


def _tidy_up(place: Path) -> None:
    """What a test run that was killed has left would stay in memory."""
    for left in place.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
