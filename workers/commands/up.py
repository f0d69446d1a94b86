"""``rustfs-workers up``: everything that exists so far, in one go, until Ctrl-C."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from workers.console import ended_by_signals, errors_in_one_line, read_settings, say

if TYPE_CHECKING:
    from streams.settings import Settings

#: Whoever starts a second `up` for another project expects a Kafka of its own.
ONE_GROUP: Final = (
    "using the Kafka that another command has started here: workers there and this one are one group, and each needs the job types "
    "of all; for a project of its own set RUSTFS_WORKERS_TOPIC_PREFIX, or RUSTFS_WORKERS_DATA_DIR for a Kafka of its own"
)
#: After the worker, its Kafka is stopped.
_LAST_S: Final = 30.0


def up(
    port: Annotated[
        int | None, typer.Option(metavar="PORT", min=1, max=65_535, help="Kafka's port; default: a free one.")
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="Module with job types and workers of your own; repeatable."
        ),
    ] = None,
    worker_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Name of the worker; default: the host's, beside another `up` one of its own."
        ),
    ] = None,
) -> None:
    """Run Kafka, topics and one worker until Ctrl-C.

    With KAFKA_BOOTSTRAP_SERVERS set, that Kafka is used and none is started. While it runs, the other commands
    find its Kafka by themselves; another `up` uses it as well, and adds its worker.

    \b
    Examples:
      rustfs-workers up
      RUSTFS_WORKERS_NODES__N1=file:///srv/n1 rustfs-workers up --port 9092
      KAFKA_BOOTSTRAP_SERVERS=kafka-1:9092 rustfs-workers up --import my_package.jobs
    """
    # Until the worker hears signals itself: a Kafka that was started by then is stopped, and its address taken back.
    with errors_in_one_line(), ended_by_signals():
        from contextlib import ExitStack

        from streams.clients import check_reachable
        from streams.embedded import (
            BrokerConfig,
            EmbeddedBroker,
            refuse_other_port,
            running_broker,
        )
        from streams.provision import provision
        from workers.builtin import builtin_workers
        from workers.config import WorkerConfig
        from workers.imports import import_modules
        from workers.manager import WorkerManager
        from workers.running import run, run_until_signal

        settings = read_settings(worker_id=worker_id)
        # Before Kafka is started: a node's URL, say, may be wrong.
        handlers = [*builtin_workers(settings), *import_modules(imports or [], to_run=True)]
        with ExitStack() as stack:
            broker: EmbeddedBroker | None = None
            if settings.kafka_bootstrap_servers is not None:
                if port is not None:
                    say(
                        f"--port {port} is for a Kafka of our own; the given one is used, and none is started"
                    )
            else:
                settings.check_for_embedded()
                directory = settings.data_dir / "kafka"
                running = running_broker(directory)
                if running is not None:
                    refuse_other_port(directory, running, port)
                    settings = with_a_name_of_its_own(settings)
                    say(ONE_GROUP)
                else:
                    # It writes its address, for the other commands, and takes it back.
                    broker = stack.enter_context(EmbeddedBroker(BrokerConfig(directory, port)))
            check_reachable(settings)
            say(f"Kafka ready at {settings.bootstrap_servers()}")
            for warning in provision(settings).warnings:
                say(f"warning: {warning}")

            def check() -> None:
                if broker is not None:
                    broker.check()

            async def main() -> int:
                manager = WorkerManager(WorkerConfig.from_settings(settings), settings)
                manager.register(*handlers)
                return await run_until_signal(
                    manager,
                    lambda: say("worker ready; Ctrl-C drains and ends"),
                    check,
                    last_s=_LAST_S,
                )

            code = run(main)
        raise SystemExit(code)


def with_a_name_of_its_own(settings: Settings) -> Settings:
    """For one that joins a Kafka which is there already: who has started it may run a worker with the host's name.

    Two of the same name would take each other for a process that has been replaced. A name that was given is kept.
    """
    if "worker_id" in settings._sources:
        return settings
    return settings.model_copy(update={"worker_id": f"{settings.worker_id}-{os.getpid()}"})
