"""``rustfs-workers submit`` and ``rustfs-workers jobs``: put jobs in, and see where they stand."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority
from workers.console import counted, details, emit, errors_in_one_line, read_settings, say, table

app = typer.Typer(
    help="""See where jobs stand.

    \b
    Examples:
      rustfs-workers jobs list --status retrying
      rustfs-workers jobs show 01a20bd1-1946-743e-922d-c32f1fd9b001
    """,
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line; the summary last.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Module that declares job types; repeatable."),
]


def submit(
    job_type: Annotated[str, typer.Argument(metavar="TYPE", help="Job type, such as replication.")],
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="The job's fields; lists with commas.")
    ] = None,
    priority: Annotated[JobPriority, typer.Option(help="How urgent it is.")] = JobPriority.NORMAL,
    delay: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Not before this time has passed: 500ms, 30s, 5m, 2h, 1d; up to 400d."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Ordering key; jobs of one key run one at a time.")
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Runs after the first; default: the type's.")
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="What one run may take: 30s, 5m, 2h; default: the type's."),
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            metavar="UUID", help="Its id, if a call before may have scheduled it; default: a new one."
        ),
    ] = None,
    imports: Imports = None,
    _as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as it does anyway.")] = False,
) -> None:
    """Schedule one job; prints its id once Kafka has it.

    \b
    Examples:
      rustfs-workers submit replication source_path=bucket/a.bin target_nodes=n2,n3 replication_factor=2
      rustfs-workers submit replication source_path=bucket/a.bin target_nodes=n2 --priority high --delay 30s
      rustfs-workers submit thumbnail source_path=bucket/a.jpg --import my_package.jobs
    """
    with errors_in_one_line():
        from schemas.errors import InvalidJob
        from schemas.ids import new_job_id
        from streams.producer import JobProducer
        from workers.builder import JobBuilder
        from workers.fields import duration
        from workers.handlers.replication import ReplicationJob, plan_of
        from workers.imports import import_modules
        from workers.storage.errors import StorageError

        settings = read_settings()
        # What a job's class says while its job is made is nobody's data.
        with redirect_stdout(sys.stderr):
            import_modules(imports or [])
            job = JobBuilder(job_type).parse(fields or []).build()
            if isinstance(job, ReplicationJob):
                try:
                    plan_of(job)
                except StorageError as error:  # a worker would only make a dead letter of it
                    raise InvalidJob(f"replication: {error}") from error
            wait = None if delay is None else duration(delay)
            limit = None if timeout is None else duration(timeout)
            # Made here, so that whoever interrupts this can repeat it without making a second job.
            if job_id is None:
                job_id = new_job_id()
            with JobProducer(settings) as producer:
                try:
                    scheduled = producer.schedule_job(
                        job, priority, wait, key=key, job_id=job_id, max_retries=max_retries, timeout=limit
                    )
                except KeyboardInterrupt:
                    say(f"interrupted: it may be scheduled, as {job_id}; to repeat it: --job-id {job_id}")
                    raise
        emit({"id": scheduled})


@app.command("list")
def list_(
    status: Annotated[JobStatus | None, typer.Option(help="Only those that stand there.")] = None,
    job_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only those of this type.")
    ] = None,
    priority: Annotated[JobPriority | None, typer.Option(help="Only those of this priority.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    \b
    Examples:
      rustfs-workers jobs list
      rustfs-workers jobs list --status failed --type replication --json
    """
    with errors_in_one_line():
        from streams.reader import PATIENCE_S, JobFilter, JobReader

        reader = JobReader(read_settings())
        which = JobFilter(status=status, job_type=job_type, priority=priority, limit=limit)
        try:
            found = reader.list_jobs(which, timeout_s=PATIENCE_S)
        finally:
            reader.close()
        rows = [info.to_json() for info in found]
        summary = {
            "jobs": len(rows),
            "total": found.total,
            "stale": found.stale,
            "unreadable": found.unreadable_count,
            "unreadable_at": [f"{one.topic}/{one.partition}/{one.offset}" for one in found.unreadable],
        }
        if as_json:
            for row in rows:
                emit(row)
            emit(summary)
            return
        table(rows, ["id", "type", "priority", "status", "attempt", "key", "worker", "created_at", "error"])
        say(f"{len(rows):,} of {counted(found.total, 'job')}")
        if found.stale:
            say(
                f"incomplete: after {PATIENCE_S:g} s there was more to read, so newer jobs and what became of these may be missing; "
                "`jobs show ID` finds each"
            )
        if found.unreadable_count:
            say(f"{counted(found.unreadable_count, 'record')} cannot be read; --json names the first ones")


@app.command()
def show(
    job_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `submit` printed it, or `jobs list` shows it.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show everything about one job.

    \b
    Examples:
      rustfs-workers jobs show 01a20bee-31e9-7596-9025-062d10b97714
      rustfs-workers jobs show 01a20bee-31e9-7596-9025-062d10b97714 --json
    """
    with errors_in_one_line():
        from streams.reader import JobReader

        reader = JobReader(read_settings())
        try:
            record = reader.get_job(job_id).to_full_json()
        finally:
            reader.close()
        if as_json:
            emit(record)
            return
        stale = record.pop("stale")
        details(record)
        if stale:
            say("stale: the end was not reached in time, so the job may have moved on")
        if record["status"] == JobStatus.FAILED:
            say(f"its dead letter: rustfs-workers dlq show {job_id}")
