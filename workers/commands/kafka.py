"""``rustfs-workers kafka``: an Apache Kafka of one's own, in the foreground or in the background.

In:  a port and a directory, or none. Out: the address on stdout; errors in one line on stderr.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from workers.console import (
    FAILED,
    directory_named,
    emit,
    ended_by_signals,
    errors_in_one_line,
    read_settings,
    say,
)

if TYPE_CHECKING:
    from streams.settings import Settings

app = typer.Typer(
    help="""A real Apache Kafka, reachable from this machine alone.

    \b
    Examples:
      rustfs-workers kafka start
      rustfs-workers kafka status
      rustfs-workers kafka stop
    """,
    no_args_is_help=True,
)

#: How often to look whether the broker, another process, still runs.
_LOOK_S: Final = 0.5

DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory of its data; default: kafka, below the data_dir setting.",
        parser=directory_named,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        metavar="PORT", min=1, max=65_535, help="Default: the last one, if it is free, else a free one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(port: Port = None, data_dir: DataDir = None, *, as_json: AsJson = False) -> None:
    """Run Kafka in the foreground until Ctrl-C.

    \b
    Examples:
      rustfs-workers kafka run
      rustfs-workers kafka run --json
      rustfs-workers kafka run --port 9092 --data-dir /srv/kafka
    """
    with errors_in_one_line(), ended_by_signals():
        from streams.embedded import BrokerConfig, EmbeddedBroker

        settings = read_settings()
        given = settings.kafka_bootstrap_servers
        with EmbeddedBroker(BrokerConfig(_directory(data_dir, settings), port)) as broker:
            # First, since whoever waits for the line on stdout may end us as soon as it is there.
            if given and given != broker.bootstrap_servers:
                say(
                    f"{_source_of_address(settings)} is set: the other commands use the Kafka at {given}, not this one"
                )
            elif _directory(data_dir, settings).absolute() != _directory(None, settings):
                say(f"for the other commands: export KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}")
            if as_json:
                emit({"running": True, "address": broker.bootstrap_servers, "pid": broker.pid})
            else:
                typer.echo(f"Kafka ready at {broker.bootstrap_servers}")
            while True:
                time.sleep(_LOOK_S)
                broker.check()


@app.command()
def start(port: Port = None, data_dir: DataDir = None, *, as_json: AsJson = False) -> None:
    """Start Kafka in the background.

    The other commands find it by themselves, unless --data-dir is given: then name it to them with
    KAFKA_BOOTSTRAP_SERVERS. It runs until `kafka stop`, with the user's data kept.

    \b
    Examples:
      rustfs-workers kafka start
      rustfs-workers kafka start --json
    """
    with errors_in_one_line():
        from streams.embedded import BrokerConfig, start_background

        settings = read_settings()
        given = settings.kafka_bootstrap_servers
        if given:
            say(
                f"{_source_of_address(settings)} is set: the Kafka at {given} is used, and nothing is started"
                + (f"; --port {port} is for one of our own" if port is not None else "")
            )
            if as_json:
                emit({"running": None, "address": given, "pid": None})
            return
        directory = _directory(data_dir, settings)
        state = start_background(BrokerConfig(directory, port))
        if as_json:
            emit({"running": True, "address": state.address, "pid": state.pid})
        else:
            typer.echo(f"Kafka ready at {state.address}")
        if directory.absolute() != _directory(None, settings):
            say(f"for the other commands: export KAFKA_BOOTSTRAP_SERVERS={state.address}")


@app.command()
def stop(data_dir: DataDir = None) -> None:
    """Stop the Kafka in the background.

    \b
    Example:
      rustfs-workers kafka stop
    """
    with errors_in_one_line():
        from streams.embedded import stop_background

        directory = _directory(data_dir, read_settings())
        if stop_background(directory):
            say("Kafka stopped")
        else:
            say(f"no Kafka runs on {directory}")


@app.command()
def status(data_dir: DataDir = None, *, as_json: AsJson = False) -> None:
    """Say whether a Kafka runs; exit code 1 if none does.

    \b
    Examples:
      rustfs-workers kafka status
      rustfs-workers kafka status --json
    """
    with errors_in_one_line():
        from streams.embedded import running_broker

        settings = read_settings()
        directory = _directory(data_dir, settings)
        state = running_broker(directory)
        given = settings.kafka_bootstrap_servers
        if given and (state is None or given != state.address):
            say(f"{_source_of_address(settings)} is set: the other commands use the Kafka at {given}")
        if as_json:
            address, pid = (state.address, state.pid) if state is not None else (None, None)
            emit({"running": state is not None, "address": address, "pid": pid, "data_dir": str(directory)})
        elif state is None:
            say(f"no Kafka runs on {directory}")
        else:
            place = (
                "in the background" if state.owner is None else f"in the foreground of process {state.owner}"
            )
            typer.echo(f"Kafka runs at {state.address} (process {state.pid}, {place}) on {directory}")
        if state is None:
            raise SystemExit(FAILED)


def _source_of_address(settings: Settings) -> str:
    return settings._sources.get("kafka_bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS")


def _directory(given: Path | None, settings: Settings) -> Path:
    from streams.settings import ADDRESS_FILE

    return given if given is not None else (settings.data_dir / ADDRESS_FILE).parent
