"""``rustfs-workers bench``: measure a deployment, to know its size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.console import configure_logging, emit, errors_in_one_line

if TYPE_CHECKING:
    from streams.settings import Settings

app = typer.Typer(help="Measure, on topics of their own that are deleted afterwards.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def throughput(
    jobs: Annotated[int, typer.Option(min=1000, help="Jobs to run.")] = 50_000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Jobs per second, taken in and run, and the share of what Kafka and Avro alone would do.

    \b
    Examples:
      rustfs-workers bench throughput
      rustfs-workers bench throughput --jobs 200000 --workers 4 --json
    """
    with errors_in_one_line(), _deployment() as settings:
        from workers.bench.throughput import throughput as measure

        _print(measure(settings, jobs, workers), as_json=as_json)


@app.command()
def latency(
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Jobs per second.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Milliseconds from the call of schedule_job to the handler's first line.

    \b
    Examples:
      rustfs-workers bench latency
      rustfs-workers bench latency --rate 200 --seconds 60 --json
    """
    with errors_in_one_line(), _deployment() as settings:
        from workers.bench.latency import latency as measure

        _print(measure(settings, rate, seconds), as_json=as_json)


@contextmanager
def _deployment() -> Iterator[Settings]:
    """A prefix of its own on the given cluster, or on a Kafka that is started for this."""
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path
    from uuid import uuid4

    from streams.embedded import BrokerConfig, EmbeddedBroker
    from streams.settings import load_settings
    from workers.demo import delete_topics

    configure_logging("warning")
    prefix = f"bench-{uuid4().hex[:8]}."
    with ExitStack() as stack:
        if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
            settings = load_settings(topic_prefix=prefix)
            stack.callback(delete_topics, settings)
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rustfs-workers-bench-")))
            broker = stack.enter_context(EmbeddedBroker(BrokerConfig(directory)))
            settings = load_settings(topic_prefix=prefix, kafka_bootstrap_servers=broker.bootstrap_servers)
        yield settings


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
    else:
        for name, value in result.items():
            typer.echo(f"{name:>16}  {value:,}" if isinstance(value, int) else f"{name:>16}  {value}")
