"""``rustfs-workers kafka``: an Apache Kafka of one's own, in the foreground or in the background."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from workers.console import INTERRUPTED, emit, errors_in_one_line, say

app = typer.Typer(
    help="A real Apache Kafka on this machine, reachable from this machine alone.", no_args_is_help=True
)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of its data; default: kafka, below the data_dir setting.")
]
Port = Annotated[int | None, typer.Option(min=1, max=65_535, help="Port; default: a free one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(port: Port = None, data_dir: DataDir = None) -> None:
    """Run Kafka in the foreground until Ctrl-C.

    \b
    Examples:
      rustfs-workers kafka run
      rustfs-workers kafka run --port 9092 --data-dir /srv/kafka
    """
    with errors_in_one_line():
        import signal
        import threading

        from streams.embedded import (
            BrokerConfig,
            BrokerStartError,
            EmbeddedBroker,
            forget_address,
            write_address,
        )

        directory = _directory(data_dir)
        stop = threading.Event()
        received: list[int] = []

        def on_signal(number: int, _frame: object) -> None:
            received.append(number)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        broker = EmbeddedBroker(BrokerConfig(directory, port))
        with broker:
            write_address(directory, broker.bootstrap_servers)
            typer.echo(f"Kafka ready at {broker.bootstrap_servers}")
            try:
                while not stop.wait(0.5):
                    if not broker.alive:
                        raise BrokerStartError("Kafka ended by itself", broker.log_path, broker.log_end())
            finally:
                forget_address(directory, broker.bootstrap_servers)
        if received and received[0] == signal.SIGINT:
            raise SystemExit(INTERRUPTED)


@app.command()
def start(port: Port = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Start Kafka in the background; other commands find it by themselves.

    \b
    Examples:
      rustfs-workers kafka start
      rustfs-workers kafka start --json
    """
    with errors_in_one_line():
        from streams.embedded import BrokerConfig, start_background

        given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        if given:
            say(f"KAFKA_BOOTSTRAP_SERVERS is set: {given} is used, and nothing is started")
            return
        state = start_background(BrokerConfig(_directory(data_dir), port))
        if as_json:
            emit({"address": state.address, "pid": state.pid})
        else:
            typer.echo(f"Kafka ready at {state.address}")


@app.command()
def stop(data_dir: DataDir = None) -> None:
    """Stop the Kafka in the background.

    \b
    Example:
      rustfs-workers kafka stop
    """
    with errors_in_one_line():
        from streams.embedded import stop_background

        say("Kafka stopped" if stop_background(_directory(data_dir)) else "no Kafka runs in the background")


@app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Say whether a Kafka runs in the background; exit code 1 if none does.

    \b
    Examples:
      rustfs-workers kafka status
      rustfs-workers kafka status --json
    """
    with errors_in_one_line():
        from streams.embedded import running_broker

        directory = _directory(data_dir)
        state = running_broker(directory)
        if as_json:
            emit(
                {"running": state is not None, "address": state and state.address, "pid": state and state.pid}
            )
        elif state is None:
            say(f"no Kafka runs in the background on {directory}")
        else:
            typer.echo(f"Kafka runs at {state.address} (process {state.pid})")
        if state is None:
            raise SystemExit(1)


def _directory(data_dir: Path | None) -> Path:
    from streams.settings import load_settings

    return data_dir if data_dir is not None else load_settings().data_dir / "kafka"
