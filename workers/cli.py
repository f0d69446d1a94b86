"""``rustfs-workers``: the commands, put together. Each imports what it needs when it is called, so help comes at once."""

from __future__ import annotations

from typing import Annotated, Any, Final

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
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: it comes in half the time, and examples stay on lines of their own, to be copied.
    rich_markup_mode=None,
    context_settings={"default_map": _NOT_ASKED, "help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer hands it over so
    if asked:
        about.version()
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show versions and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Background jobs for an object store, on Apache Kafka.

    \b
    Examples:
      rustfs-workers demo                   see it work, with nothing but Python
      rustfs-workers up                     Kafka and a worker on this machine
      rustfs-workers submit replication source_path=bucket/a.bin target_nodes=n2
      rustfs-workers jobs list
    """


app.command()(demo.demo)
app.command()(up)
app.command()(worker)
app.command()(jobs.submit)
for name, group in _GROUPS.items():
    app.add_typer(group, name=name)
app.command()(about.version)
