"""``rustfs-workers topics``: create what the system needs on Kafka, and check that it is still right."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.console import (
    FAILED,
    counted,
    emit,
    errors_in_one_line,
    read_settings,
    say,
    while_somebody_reads,
)

app = typer.Typer(
    help="""The topics and the group of a deployment.

    \b
    Examples:
      rustfs-workers topics create
      rustfs-workers topics check --json
    """,
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line; the summary last.")]


@app.command()
def create(as_json: AsJson = False) -> None:
    """Create what is missing, and check the rest.

    Refuses, with what to do, where a topic exists with settings that would break a guarantee.

    \b
    Examples:
      rustfs-workers topics create
      RUSTFS_WORKERS_PARTITIONS=24 rustfs-workers topics create --json
    """
    with errors_in_one_line():
        from streams.clients import check_reachable
        from streams.provision import provision

        settings = read_settings()
        check_reachable(settings)
        report = provision(settings)
        for warning in report.warnings:
            say(f"warning: {warning}")
        if as_json:
            emit(
                {
                    "created": list(report.created),
                    "existing": list(report.existing),
                    "group_initialised": report.group_initialised,
                    "replication_factor": report.replication_factor,
                }
            )
        else:
            factor = report.replication_factor
            copies = "one copy" if factor == 1 else f"{factor} copies"
            say(
                f"{counted(len(report.created), 'topic')} created with {copies} of each partition, "
                f"{len(report.existing)} were there and are right"
            )


@app.command()
def check(as_json: AsJson = False) -> None:
    """Say what is not as it must be, and what to do.

    Changes nothing. Exit code 1 if something breaks a guarantee.

    \b
    Examples:
      rustfs-workers topics check
      rustfs-workers topics check --json
    """
    with errors_in_one_line():
        from streams.clients import check_reachable
        from streams.provision import check as look
        from streams.topic_rules import Level

        settings = read_settings()
        check_reachable(settings)
        findings = look(settings)
        errors = sum(finding.level is Level.ERROR for finding in findings)
        with while_somebody_reads():
            for finding in findings:
                if as_json:
                    emit(
                        {
                            "level": finding.level.name.lower(),
                            "subject": finding.subject,
                            "fact": finding.fact,
                            "remedy": finding.remedy,
                        }
                    )
                else:
                    typer.echo(f"{finding.level.name.lower():>8}  {finding}")
            if as_json:
                emit({"findings": len(findings), "errors": errors})
        if errors:
            raise SystemExit(FAILED)
