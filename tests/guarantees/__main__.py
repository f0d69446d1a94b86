"""``python -m tests.guarantees``: a campaign, and its verdict as the last line.

Exit code 1 if a guarantee does not hold, or a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.campaign import Plan, run
from tests.guarantees.evidence import load, save
from tests.guarantees.storm import Kind
from tests.guarantees.verdict import Verdict
from tests.support.quick_start import rehearsed, use
from workers.logs import configure_logging


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.guarantees", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides jobs and faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the storm lasts")
    parser.add_argument("--rate", type=float, default=130.0, help="jobs a second")
    parser.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(1.0, 5.0),
        metavar=("LEAST", "MOST"),
        help="seconds of quiet between two faults",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[kind.value for kind in Kind],
        default=[kind.value for kind in Kind],
        metavar="KIND",
        help=f"these kinds of faults, no others: {', '.join(kind.value for kind in Kind)}",
    )
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, which stay there")
    parser.add_argument(
        "--judge", type=Path, metavar="FILE", help="only judge the evidence that an earlier one has kept"
    )
    parser.add_argument("--json", action="store_true", help="the verdict as one line of JSON, last on stdout")
    arguments = parser.parse_args()
    configure_logging("warning")
    began = time.monotonic()

    def progress(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:7.1f} s  {text}\n")

    plan = Plan(
        arguments.seed,
        arguments.minutes * 60,
        arguments.rate,
        pause_s=(arguments.pause[0], arguments.pause[1]),
        only=[Kind(name) for name in arguments.only],
    )
    if arguments.judge is not None:
        verdict = judge(load(arguments.judge))
        return _tell(verdict, as_json=arguments.json)
    with tempfile.TemporaryDirectory(prefix="rustfs-workers-guarantees-") as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as rehearsal:
            # Brokers start dozens of times, and are to leave the processor to what is tested.
            use(patch, rehearsed(Path(rehearsal)))
            evidence = run(plan, directory, progress)
        if arguments.keep is not None:
            save(evidence, directory / "evidence.json")
        verdict = judge(evidence)
    return _tell(verdict, as_json=arguments.json)


def _tell(verdict: Verdict, *, as_json: bool) -> int:
    for name, cases in verdict.broken.items():
        for case in cases:
            sys.stderr.write(f"{name}: {case}\n")
    for missed in verdict.missed:
        sys.stderr.write(f"bar: {missed}\n")
    for case in verdict.copies.cases:
        sys.stderr.write(f"copy: {case}\n")
    report = verdict.to_json()
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for name, value in report.items():
            sys.stdout.write(f"{name:>20}  {value}\n")
    return 1 if verdict.broken or verdict.missed else 0


if __name__ == "__main__":
    sys.exit(main())
