"""``rustfs-workers demo``: see the whole thing work, in a minute, with nothing but Python."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final

import typer

from workers.console import (
    FAILED,
    counted,
    directory_for_a_while,
    directory_named,
    emit,
    errors_in_one_line,
    keep_logs_quiet,
    place_for_temporary,
    say_error,
    take_for_ctrl_c,
    while_somebody_reads,
)

if TYPE_CHECKING:
    from workers.demo import DemoReport

#: Files of each kind that are named, of those that could not become objects.
_NAMED: Final = 3


def demo(
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=directory_named,
            help="Folder of files to replicate; default: Python's own library.",
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            parser=directory_named,
            help="Where the demo's nodes are; default: a temporary one, removed in the end.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """See it work: real files, copied by jobs on a real Kafka.

    The files under --source become objects of one storage node, and jobs replicate them to two others. One job names
    an object that does not exist: it is retried, and becomes a dead letter. Every copy is checked by SHA-256. SOURCE
    is never changed.

    \b
    Examples:
      rustfs-workers demo
      rustfs-workers demo --source ~/Pictures --dir /tmp/demo
      rustfs-workers demo --json
    """
    with errors_in_one_line():
        from workers.demo import check_place_for_temporary, default_source, run_demo
        from workers.progress import shown
        from workers.temporary import remove_directory

        keep_logs_quiet()
        # The Kafka that it started is stopped, and its files are removed.
        take_for_ctrl_c()
        if directory is None:
            # Before it is made: even that would change SOURCE.
            check_place_for_temporary(source or default_source(), place_for_temporary())
        where = directory or directory_for_a_while("rustfs-workers-demo-")
        try:
            with shown() as progress:
                report = run_demo(source, where, progress)
        finally:
            if directory is None:
                remove_directory(where)
        with while_somebody_reads():
            if as_json:
                emit(report.to_json())
            else:
                _print(report, directory)
        if not report.succeeded:
            say_error(report.problem or "not everything was verified")
            raise SystemExit(FAILED)


def _print(report: DemoReport, directory: Path | None) -> None:
    echo = typer.echo
    echo(
        f"{counted(report.objects, 'object')} on node-1, {report.replicated:,} verified on node-2 and node-3 by SHA-256"
    )
    echo(f"{report.bytes:,} bytes copied in {report.seconds:.1f} s, {report.jobs_per_s:,.0f} jobs/s")
    for reason, paths in report.left_out.items():
        more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
        echo(f"left out, {reason}: {', '.join(paths[:_NAMED])}{more}")
    letter = report.dead_letter
    if letter is not None:
        echo("")
        echo(
            f"One job named an object that does not exist. It ran {letter['attempt']} times, and is a dead letter now:"
        )
        echo(f"  {letter['id']}  {letter['error_type']}: {letter['error_message']}")
        if directory is not None and report.is_kept:
            echo("Look at it, and give it a new life, with these commands:")
            echo(f"  export RUSTFS_WORKERS_DATA_DIR={quote(str(directory.resolve()))}")
            echo(f"  export RUSTFS_WORKERS_TOPIC_PREFIX={report.topic_prefix}")
            # As the README's first command starts it, or from a virtual environment that is activated.
            program = "uv run rustfs-workers" if "UV_RUN_RECURSION_DEPTH" in os.environ else "rustfs-workers"
            for command in (
                "kafka start",
                f"dlq show {letter['id']}",
                f"dlq redrive {letter['id']}",
                "kafka stop",
            ):
                echo(f"  {program} {command}")
        else:
            kept = (
                " (`--dir DIR` keeps it, where the demo has a Kafka of its own)" if directory is None else ""
            )
            echo(f"It is gone with the demo's topics{kept}.")
            echo("In a deployment of yours such jobs are shown by")
            echo(
                "`rustfs-workers dlq list` and `dlq show ID`, and `rustfs-workers dlq redrive ID` gives them a new life."
            )
    if directory is not None:
        echo(f"The nodes' files are in {directory}")
