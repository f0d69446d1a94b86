"""``rustfs-workers dlq``: find out why jobs failed, and give them a new life."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.console import (
    FAILED,
    USAGE,
    counted,
    details,
    emit,
    errors_in_one_line,
    read_settings,
    say,
    say_error,
    table,
    while_somebody_reads,
)

app = typer.Typer(
    help="""Dead letters: jobs that failed for good.

    \b
    Examples:
      rustfs-workers dlq list --error ObjectMissing
      rustfs-workers dlq redrive --type replication --rate 50
    """,
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line; the summary last.")]
JobType = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those of this job type.")]
ErrorType = Annotated[
    str | None,
    typer.Option("--error", metavar="ERROR", help="Only those with this error type, as `dlq list` shows it."),
]


@app.command("list")
def list_(
    job_type: JobType = None,
    error_type: ErrorType = None,
    redriven: Annotated[bool, typer.Option(help="Those that were given a new life, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first.

    \b
    Examples:
      rustfs-workers dlq list
      rustfs-workers dlq list --type replication --error ObjectMissing --json
    """
    with errors_in_one_line():
        from streams.dead_letters import DeadLetterFilter, list_dead_letters

        which = DeadLetterFilter(job_type=job_type, error_type=error_type, include_redriven=redriven)
        rows = [
            {**letter.to_json(), **({"redriven": letter.redriven} if redriven else {})}
            for letter in list_dead_letters(read_settings(), which, with_fields=False)
        ]
        if as_json:
            for row in rows:
                emit(row)
            emit({"dead_letters": len(rows)})
            return
        which_ones = ["redriven"] if redriven else []
        table(rows, ["id", "type", "error_type", "attempt", "failed_at", *which_ones, "error_message"])
        say(counted(len(rows), "dead letter"))


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dlq list` shows it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show one dead letter: its headers, its fields, its very bytes.

    \b
    Examples:
      rustfs-workers dlq show 01a20bee-31e9-7596-9025-062d10b97714
      rustfs-workers dlq show rustfs.jobs.dlq/3/17 --json
    """
    with errors_in_one_line():
        from streams.dead_letters import DeadLetterFilter, list_dead_letters

        which = DeadLetterFilter(ids=frozenset({letter_id}), include_redriven=True)
        found = list_dead_letters(read_settings(), which)
        if not found:
            say_error(f"no dead letter {letter_id}; `rustfs-workers dlq list` shows them all")
            raise SystemExit(FAILED)
        record = found[-1].to_full_json()
        if as_json:
            emit(record)
            return
        headers = dict(record.pop("headers"))
        details({**record, "headers": headers})


@app.command()
def redrive(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Which ones, by id.")] = None,
    job_type: JobType = None,
    error_type: ErrorType = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0.01, help="At most so many jobs a second.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give dead letters a new life.

    The same bytes are run again, with attempts counted from one. A dead letter gets a new life only once; a job that
    fails again is a new one.

    \b
    Examples:
      rustfs-workers dlq redrive 01a20bee-31e9-7596-9025-062d10b97714
      rustfs-workers dlq redrive --type replication --error NodeUnreachable --dry-run
      rustfs-workers dlq redrive --all --rate 50
    """
    with errors_in_one_line():
        from streams.dead_letters import DeadLetterFilter
        from streams.redrive import redrive as run

        if not (ids or job_type or error_type or every):
            say_error("say which: ids, --type, --error or --all; --dry-run shows what would be done")
            raise SystemExit(USAGE)
        if ids and every:
            say_error("say ids or --all, not both; --all takes all that wait")
            raise SystemExit(USAGE)
        which = DeadLetterFilter(
            ids=frozenset(ids) if ids else None, job_type=job_type, error_type=error_type
        )
        done = 0

        def count(so_far: int) -> None:
            nonlocal done
            done = so_far

        try:
            report = run(read_settings(), which, dry_run=dry_run, rate=rate, after_batch=count)
        except KeyboardInterrupt:
            if not dry_run:
                say(
                    f"interrupted: at least {counted(done, 'job')} got a new life; run it again for what is left"
                )
            raise
        with while_somebody_reads():
            if as_json:
                for job_id in report.redriven:
                    emit({"id": job_id, "redriven": not dry_run})
                emit(
                    {
                        "redriven": 0 if dry_run else len(report.redriven),
                        "matching": len(report.redriven),
                        "refused": [letter.id for letter in report.refused],
                        "not_waiting": list(report.not_waiting),
                        "not_matching": list(report.not_matching),
                        "dry_run": dry_run,
                    }
                )
            else:
                said = "would get a new life" if dry_run else "got a new life"
                say(f"{counted(len(report.redriven), 'job')} {said}")
                for letter in report.refused:
                    if not letter.can_run:
                        why = "holds no job that could run"
                    elif letter.unclear:
                        why = "may have a new life already: its job's last status cannot be read here (SCHEMA_REGISTRY_URL?)"
                    else:
                        why = "is too large to be written again"
                    say(
                        f"refused: {letter.id} {why} ({letter.error_type}); "
                        f"`rustfs-workers dlq show {letter.id}` shows its bytes"
                    )
                for job_id in report.not_waiting:
                    say(f"not waiting: {job_id} is no dead letter, or was redriven before")
                for job_id in report.not_matching:
                    say(f"not matching: {job_id} waits, and --type or --error leaves it out")
        # Who asks for all means those that can run; who names one wants to know.
        if report.not_waiting or report.not_matching or (ids and report.refused):
            raise SystemExit(FAILED)
