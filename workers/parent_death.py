"""A child that drains when the process that started it is gone, however that came. Linux only.

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
_PR_SET_PDEATHSIG: Final = 1


def environment_of_a_child(environment: dict[str, str] | None = None) -> dict[str, str]:
    """What to give to a child that shall end with us; on top of ``environment``, or of our own."""
    return {**(os.environ if environment is None else environment), _VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Be told when the parent is gone, if it asked for that; end at once if it is gone already."""
    # Children of ours have another parent.
    parent = os.environ.pop(_VARIABLE, "")
    if not parent.isdecimal() or sys.platform != "linux":
        return
    import ctypes  # only here: it takes a while, and every command would pay for it

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os._exit(0)
