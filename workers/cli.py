"""``rustfs-workers``: the commands, put together. Each imports what it needs when it is called, so help comes at once."""

from __future__ import annotations

import typer

from workers.commands.worker import worker

app = typer.Typer(
    name="rustfs-workers",
    help="Background jobs for an object store, on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(worker)


@app.callback()
def _root() -> None:
    """Background jobs for an object store, on Apache Kafka."""


def main() -> None:
    """Entry point of the console script."""
    app()
