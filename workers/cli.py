"""``rustfs-workers``: the commands, put together. Each imports what it needs when it is called, so help comes at once."""

from __future__ import annotations

import typer

from workers.commands import about, bench, demo, dlq, jobs, kafka, topics
from workers.commands.up import up
from workers.commands.worker import worker

app = typer.Typer(
    name="rustfs-workers",
    help="Background jobs for an object store, on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(up)
app.command()(worker)
app.command()(jobs.submit)
app.add_typer(jobs.app, name="jobs")
app.add_typer(dlq.app, name="dlq")
app.add_typer(topics.app, name="topics")
app.add_typer(kafka.app, name="kafka")
app.add_typer(bench.app, name="bench")
app.add_typer(about.schemas_app, name="schemas")
app.add_typer(about.config_app, name="config")
app.command()(about.version)


def main() -> None:
    """Entry point of the console script."""
    app()
