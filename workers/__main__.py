"""The console script ``rustfs-workers``, and ``python -m workers``.

What must be right before anything is imported: the standard streams, whose death ends us, and what Ctrl-C means.
"""

from __future__ import annotations

import io
import os
import sys

from workers.parent_death import HOPELESS, end_with_parent, is_supervised

#: ``workers.console`` has it as well, which is not imported before it is needed.
_USAGE = 2


def main() -> None:
    """Run the command that the arguments name."""
    _mend_standard_streams()
    end_with_parent()
    try:
        from workers.cli import app  # takes a fifth of a second, in which Ctrl-C may come

        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit as end:
        # Typer calls it a failure that the reader of help or of a version has gone (`… | head`).
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(0) from None
        if is_supervised() and end.code == _USAGE:
            raise SystemExit(HOPELESS) from None
        raise
    except OSError as error:  # a full disk behind stdout, where a command does nothing but write
        from workers.console import end_if_stdout_is_lost

        end_if_stdout_is_lost(error)
        raise


def _mend_standard_streams() -> None:
    """Those that were closed lead nowhere: else the next socket gets their number, and logs are written to it.

    A locale's stdout that lacks a character gets it as an escape.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        os.set_inheritable(spare, True)
    os.close(spare)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
