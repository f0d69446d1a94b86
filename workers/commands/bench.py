"""``rustfs-workers bench``: measure a deployment, to know its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.console import directory_for_a_while, emit, errors_in_one_line, keep_logs_quiet, take_for_ctrl_c

if TYPE_CHECKING:
    from streams.settings import Settings
    from workers.progress import Progress

app = typer.Typer(
    help="""Measure, on topics of their own that are deleted afterwards.

    On the cluster of KAFKA_BOOTSTRAP_SERVERS, else on the Kafka that runs here (`up`, `kafka start`), else on one that is started
    for it.

    \b
    Examples:
      rustfs-workers bench throughput --jobs 50000
      rustfs-workers bench latency --rate 50 --seconds 20 --json
    """,
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(short_help="Jobs per second, taken in and run.")
def throughput(
    jobs: Annotated[int, typer.Option(metavar="N", min=1000, help="Jobs to run.")] = 50_000,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Worker processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Jobs per second, taken in and run, and the share of what Kafka and Avro alone would do.

    What those would do (the floor) is measured with one process, however many workers there are, and with the Avro library alone:
    a worker writes the statuses of plain successes in a quicker way of its own.

    \b
    Examples:
      rustfs-workers bench throughput
      rustfs-workers bench throughput --jobs 200000 --workers 4 --json
    """
    with _bench() as (settings, progress):
        from workers.bench.throughput import throughput as measure

        result = measure(settings, jobs, workers, progress)
    _print(result, as_json=as_json)


@app.command(short_help="Milliseconds from schedule_job to the handler.")
def latency(
    rate: Annotated[float, typer.Option(metavar="N", min=1, max=1000, help="Jobs per second.")] = 50,
    seconds: Annotated[float, typer.Option(metavar="S", min=1, max=3600, help="How long.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Milliseconds from the call of schedule_job to the handler's first line.

    \b
    Examples:
      rustfs-workers bench latency
      rustfs-workers bench latency --rate 200 --seconds 60 --json
    """
    with _bench() as (settings, progress):
        from workers.bench.latency import latency as measure

        result = measure(settings, rate, seconds, progress)
    _print(result, as_json=as_json)


@app.command(short_help="How punctual delayed jobs start.")
def delay(
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, max=100_000, help="Jobs to delay, all of them within half a minute."
        ),
    ] = 600,
    as_json: AsJson = False,
) -> None:
    """How late jobs with delays from 1 s to 30 s begin, and how many begin early (none should). Takes a minute.

    \b
    Examples:
      rustfs-workers bench delay
      rustfs-workers bench delay --jobs 10000 --json
    """
    with _bench() as (settings, progress):
        from workers.bench.delay import delay as measure

        result = measure(settings, jobs, progress=progress)
    _print(result, as_json=as_json)


@app.command(short_help="How soon critical jobs start behind many low ones.")
def priority(
    backlog: Annotated[
        int,
        typer.Option(metavar="N", min=1000, help="Low jobs that wait, and that one worker is working on."),
    ] = 100_000,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Critical jobs.")] = 200,
    rate: Annotated[
        float, typer.Option(metavar="N", min=1, max=1000, help="Critical jobs per second.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Milliseconds from schedule_job to the handler's first line for critical jobs, while low ones keep the worker busy.

    The low jobs must last longer than the critical ones: more of these, or fewer a second, need a larger backlog.
    The default is a short look of two seconds; the second example looks for ten, and usually finds slower starts.

    \b
    Examples:
      rustfs-workers bench priority
      rustfs-workers bench priority --backlog 400000 --rate 20 --json
    """
    with _bench() as (settings, progress):
        from workers.bench.priority import priority as measure

        result = measure(settings, backlog, jobs, rate, progress)
    _print(result, as_json=as_json)


@contextmanager
def _bench() -> Iterator[tuple[Settings, Progress]]:
    """What every bench needs: its own deployment, and somebody to tell how far it is."""
    from workers.progress import shown

    with errors_in_one_line():
        keep_logs_quiet()
        # Its topics are deleted, or the Kafka that it started is stopped, and its files are removed.
        take_for_ctrl_c()
        with shown() as progress, _deployment(progress) as settings:
            yield settings, progress


@contextmanager
def _deployment(progress: Progress) -> Iterator[Settings]:
    """A prefix of its own on the given cluster, else on the Kafka that runs here, else on one that is started for this."""
    from contextlib import ExitStack
    from uuid import uuid4

    from schemas.errors import KafkaUnreachable
    from streams.clients import check_reachable
    from streams.embedded import running_broker
    from streams.settings import load_settings
    from workers.temporary import deleted_afterwards, forgotten_afterwards, remove_directory, temporary_kafka

    prefix = f"bench-{uuid4().hex[:8]}."
    settings = load_settings(topic_prefix=prefix)
    with ExitStack() as stack:
        try:
            found = load_settings(topic_prefix=prefix, kafka_bootstrap_servers=settings.bootstrap_servers())
            check_reachable(found)
        except KafkaUnreachable:
            # The address of one that was killed may have been left here.
            if settings.kafka_bootstrap_servers or running_broker(settings.data_dir / "kafka") is not None:
                raise
            settings.check_for_embedded()
            directory = directory_for_a_while("rustfs-workers-bench-")
            stack.callback(remove_directory, directory)
            broker = stack.enter_context(temporary_kafka(directory, progress))
            stack.enter_context(forgotten_afterwards(settings))
            found = load_settings(topic_prefix=prefix, kafka_bootstrap_servers=broker.bootstrap_servers)
        else:
            stack.enter_context(deleted_afterwards(found))
        yield found


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
    else:
        width = max(map(len, result))
        for name, value in result.items():
            typer.echo(
                f"{name:>{width}}  {value:,}" if isinstance(value, int) else f"{name:>{width}}  {value}"
            )
