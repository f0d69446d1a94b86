"""How far a long command is: bars on a terminal, one plain line for each stage elsewhere. Always on stderr.

In:  a stage, how much of it is done, and of how much. Out: what a person reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from workers.console import say
from workers.logs import coloured

#: Called with the stage's name, what is done, and the whole.
Progress = Callable[[str, int, int], None]

#: Drawing holds the interpreter for milliseconds, which a bench would count as the workers' own.
_DRAWN_PER_S: Final = 2


def unseen(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


@contextmanager
def shown() -> Iterator[Progress]:
    """Show the stages of one command, each from its first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    terminal = sys.stderr.isatty()
    bars = Bars(
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, no_color=not coloured(sys.stderr)),
        disable=not terminal,
        refresh_per_second=_DRAWN_PER_S,
    )
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
            if not terminal:
                say(f"{what} …")
        bars.update(tasks[what], completed=done, total=total)

    with bars:
        yield progress
