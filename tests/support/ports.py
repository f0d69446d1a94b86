"""Ports that no other process of any test run on this machine has, also where two runs have two checkouts.

In:  lock files in the temporary directory. Out: a block of ports, for as long as the process lives at most.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

#: Each begins a block. All end below those that a Kafka takes outside of tests, and far below those of outgoing connections.
_FIRST_PORTS: Final = range(12_000, 20_000, 250)


@contextmanager
def ports_of_its_own() -> Iterator[range]:
    """The first block that nobody has. The system frees it when the process ends, however that happens."""
    place = Path(tempfile.gettempdir())
    with ExitStack() as opened:
        for first in _FIRST_PORTS:
            try:
                # It stays there: if it were removed, two processes could each lock a file of this name.
                lock = opened.enter_context((place / f"rustfs-workers-tests-ports-{first}.lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another process has it, or another user has made the file
                continue
            yield range(first, first + _FIRST_PORTS.step)
            return
    raise RuntimeError(
        f"no block of ports can be locked in {place}: end other test runs, or name another place with TMPDIR"
    )
