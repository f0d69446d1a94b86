"""``rustfs-workers``: the commands, put together. Each imports what it needs when it is called, so help comes at once."""

from __future__ import annotations

from typing import Any, Final

import typer

from workers.commands import about, bench, demo, dlq, jobs, kafka, topics
from workers.commands.up import up
from workers.commands.worker import worker

_GROUPS: Final = {
    "jobs": jobs.app,
    "dlq": dlq.app,
    "topics": topics.app,
    "kafka": kafka.app,
    "bench": bench.app,
    "schemas": about.schemas_app,
    "config": about.config_app,
}
#: Flags that nobody gave are False. Typer leaves them None otherwise, and loads pydantic to make that of it: a tenth
#: of a second for each `--help`.
_NOT_ASKED: Final[dict[str, Any]] = {
    **dict.fromkeys(("help", "install_completion", "show_completion"), False),
    **{name: {"help": False} for name in (*_GROUPS, "version")},
}

app = typer.Typer(
    name="rustfs-workers",
    help="Background jobs for an object store, on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: it comes in half the time, and examples stay on lines of their own, to be copied.
    rich_markup_mode=None,
    context_settings={"default_map": _NOT_ASKED},
)
app.command()(demo.demo)
app.command()(up)
app.command()(worker)
app.command()(jobs.submit)
for name, group in _GROUPS.items():
    app.add_typer(group, name=name)
app.command()(about.version)


def main() -> None:
    """Entry point of the console script."""
    app()
