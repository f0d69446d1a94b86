"""``rustfs-workers demo``: see the whole thing work, in a minute, with nothing but Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.console import FAILED, configure_logging, emit, errors_in_one_line, say


def demo(
    source: Annotated[
        Path | None, typer.Option(help="Folder of files to replicate; default: Python's own library.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Where the demo's nodes are; default: a temporary one, removed in the end."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replicate real files between three storage nodes with jobs on a real Kafka, and watch one job fail.

    \b
    Examples:
      rustfs-workers demo
      rustfs-workers demo --source ~/Pictures --dir /tmp/demo
      rustfs-workers demo --json
    """
    with errors_in_one_line():
        import shutil
        import tempfile

        from workers.demo import default_source, run_demo
        from workers.progress import shown

        configure_logging("warning")
        where = directory or Path(tempfile.mkdtemp(prefix="rustfs-workers-demo-"))
        try:
            with shown() as progress:
                report = run_demo((source or default_source()).expanduser(), where.expanduser(), progress)
        finally:
            if directory is None:
                shutil.rmtree(where, ignore_errors=True)
        if as_json:
            emit(report.to_json())
        else:
            _print(report.to_json(), report.dead_letter, directory)
        if not report.succeeded:
            say("error: not every copy is there and right")
            raise SystemExit(FAILED)


def _print(summary: dict[str, object], letter: dict[str, object] | None, directory: Path | None) -> None:
    echo = typer.echo
    echo(
        f"{summary['objects']} objects on node-1, {summary['replicated']} of them verified on node-2 and node-3 by SHA-256"
    )
    echo(f"{summary['bytes']:,} bytes copied, {summary['jobs_per_s']} jobs/s, {summary['seconds']} s")
    left_out = summary["left_out"]
    if isinstance(left_out, dict) and left_out:
        echo("left out: " + ", ".join(f"{count} x {reason}" for reason, count in left_out.items()))
    if letter is not None:
        echo("")
        echo("One job named an object that does not exist. It was retried, and is now a dead letter:")
        echo(f"  {letter['id']}  {letter['error_type']}: {letter['error_message']}")
        echo("In a deployment of yours look at such jobs with `rustfs-workers dlq list` and `dlq show ID`,")
        echo("and give them a new life with `rustfs-workers dlq redrive ID`.")
    if directory is not None:
        echo(f"The nodes' files are in {directory}")
