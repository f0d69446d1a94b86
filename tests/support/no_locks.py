"""A file system on which nothing can be locked, as some network file systems are."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest


def take_locks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``flock`` fails until the test ends."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
