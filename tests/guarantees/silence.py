"""Workers that stood still by themselves until the storm killed them. Pure.

In:  what was heard of each worker: lines of its log, starts and ends of its runs, its reports. Out: a ``worker_freeze`` for each that was
silent before its end.

librdkafka can stand still with the interpreter's lock, and with it the whole process (``workers.watchdog`` ends such a one after two
minutes). A living worker is never silent for as long as here: it reports each second, and without Kafka it says, a lease later, that it
cancels everything, and then whom it cannot reach.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.guarantees.evidence import Life, Report, Run, Trouble

#: Twice the lease of the campaign's workers, and a second.
SILENT_S: Final = 10.0


def read_words(directory: Path) -> dict[str, list[int]]:
    """When each worker wrote a line, whatever it said, in milliseconds of the wall clock, in order."""
    words: dict[str, list[int]] = {}
    for file in sorted(directory.glob("*.stderr")):
        said = words[file.stem] = []
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # Java, Python's traces, and lines that were cut off
                said.append(round(datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() * 1000))
        said.sort()
    return words


def silences(
    lives: Iterable[Life],
    words: Mapping[str, Sequence[int]],
    runs: Sequence[Run],
    reports: Iterable[Report],
) -> list[Trouble]:
    """From the last sign of each killed worker to its end, where that is too long."""
    if not runs:
        return []
    wall_ns = runs[0].start_ms * 1_000_000 - runs[0].start_ns
    heard: dict[str, list[int]] = {
        name: [at_ms * 1_000_000 - wall_ns for at_ms in said] for name, said in words.items()
    }
    for report in reports:
        heard.setdefault(_name(report.worker), []).append(report.made_ms * 1_000_000 - wall_ns)
    for run in runs:
        heard.setdefault(_name(run.worker), []).extend(
            at_ns for at_ns in (run.start_ns, run.end_ns) if at_ns is not None
        )
    for signs in heard.values():
        signs.sort()
    found = []
    for life in lives:
        signs = heard.get(life.worker, [])
        last = bisect_right(signs, life.end_ns) - 1
        # One that has said nothing yet is still starting, or waits for Kafka to.
        if life.end != "killed" or last < 0 or signs[last] < life.start_ns:
            continue
        if life.end_ns - signs[last] >= SILENT_S * 1e9:
            found.append(Trouble("worker_freeze", signs[last], life.end_ns, life.pid))
    return found


def _name(worker_id: str) -> str:
    return worker_id.partition(".")[0]
