"""A small process between us and the broker: if we die, however that happens, it stops the broker.

In:  a command, the pid of whoever wants it, a descriptor to say the command's pid to, and a lock to hand on.
Out: the exit code of the command (128 + n if signal n ended it).

It is run as a file by a bare interpreter (`python -I -S guardian.py …`), so it imports nothing of ours. It
stops the command when its standard input says so or ends, when its parent is gone, or on SIGTERM. A command that
is to outlive us is left alone only when its parent says so: a parent that dies before has told nobody of it.

Why not `PR_SET_PDEATHSIG` alone: that fires when the *thread* ends that started the process, kills instead of
stopping in order, and exists on Linux only; and `preexec_fn`, which it needs, may deadlock in a process with
threads. The guardian has one thread, so here it is safe: it sees to the guardian's own death.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys

#: How often to look whether the parent lives: a fork of it may keep our standard input open.
_LOOK_S = 1.0
_GRACE_S = 15.0
_LEAVE_ALONE = b"leave it alone\n"
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Start the command; stay beside it unless it is to be left alone."""
    arguments = _arguments()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    asked: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked.append(received))

    child = subprocess.Popen(
        arguments.command,
        stdin=subprocess.DEVNULL,
        pass_fds=(arguments.lock_fd,),
        start_new_session=arguments.detach,
        # Safe here: we have one thread, see above.
        preexec_fn=None if arguments.detach else _die_with_parent,
    )
    os.write(arguments.pid_fd, f"{child.pid}\n".encode())
    os.close(arguments.pid_fd)
    # The command holds the lock now, and is to hold it alone: who sees it end may take the lock at once.
    os.close(arguments.lock_fd)

    while child.poll() is None:
        readable, _, _ = select.select([0, wake], [], [], _LOOK_S)
        if wake in readable:
            os.read(wake, 512)
        if 0 in readable:
            said = os.read(0, 64)
            if said == _LEAVE_ALONE:
                child.returncode = 0  # on purpose: no warning about that
                return 0
            return _stop(child, _grace(said))
        if asked or os.getppid() != arguments.parent:
            return _stop(child, _GRACE_S)
    return _exit_code(child)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guardian")
    parser.add_argument("--detach", action="store_true", help="the command may be left alone later")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--pid-fd", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    arguments.command = arguments.command[1:]  # without the "--"
    return arguments


def _grace(said: bytes) -> float:
    """Seconds to stop in, as the parent wrote them; it closed the pipe without a word if it died."""
    with contextlib.suppress(ValueError):
        return float(said)
    return _GRACE_S


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> int:
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return _exit_code(child)


def _exit_code(child: subprocess.Popen[bytes]) -> int:
    code = child.returncode
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
