"""What a child knows of its parent: it drains when that is gone (Linux only), and only that ends it where it is supervised.

In:  the environment that the parent gave. Out: SIGTERM for this process at its parent's death.

The child asks for it itself, first thing in ``main``: a function that runs between fork and exec may deadlock where the
parent has threads, and a producer has some.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

_VARIABLE: Final = "_RUSTFS_WORKERS_PARENT"
_SUPERVISED: Final = "_RUSTFS_WORKERS_SUPERVISED"
_PR_SET_PDEATHSIG: Final = 1
#: What a supervised child ends with where starting it again is useless. Not 2, which any job may end its process with.
HOPELESS: Final = 78

_is_supervised = False


def environment_of_a_child(
    environment: dict[str, str] | None = None, *, supervised: bool = False
) -> dict[str, str]:
    """What to give to a child that shall end with us; on top of ``environment``, or of our own.

    ``supervised``: we start it again when it has died, and end it by force when it is told to stop for the second time.
    """
    given = dict(os.environ if environment is None else environment)
    if supervised:
        given[_SUPERVISED] = "1"
    return {**given, _VARIABLE: str(os.getpid())}


def is_supervised() -> bool:
    """Whether a parent of ours starts this process again, and ends it.

    A second SIGTERM is then the first one once more: systemd tells all processes of a service at once.
    """
    return _is_supervised


def end_with_parent() -> None:
    """Be told when the parent is gone, if it asked for that; end at once if it is gone already."""
    global _is_supervised  # noqa: PLW0603 - as of the process, so it is said once
    # Children of ours have another parent.
    parent = os.environ.pop(_VARIABLE, "")
    _is_supervised = bool(os.environ.pop(_SUPERVISED, ""))
    if not parent.isdecimal() or sys.platform != "linux":
        return
    import ctypes  # only here: it takes a while, and every command would pay for it

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os._exit(0)
