"""``rustfs-workers worker``: run jobs until told to stop."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workers.console import errors_in_one_line, read_settings


def worker(
    worker_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Name of this worker; the same after a restart, different from all others. "
            "Default: the host's; with the embedded Kafka a new one each time.",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Processes to run; a dead one is started again.")
    ] = 1,
    max_concurrent_jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Jobs that one process runs at a time; default: 64."),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="Module with job types and workers of your own; repeatable."
        ),
    ] = None,
    process_index: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C, then drain.

    A drain takes nothing new and lets running jobs end; what does not end in time is run again elsewhere.

    \b
    Examples:
      rustfs-workers worker
      rustfs-workers worker --worker-id rack4 --processes 4
      rustfs-workers worker --import my_package.jobs --max-concurrent-jobs 200
    """
    with errors_in_one_line():
        from streams.scan import require_topics

        settings = read_settings(worker_id=worker_id, max_concurrent_jobs=max_concurrent_jobs)
        require_topics(settings)
        if settings.kafka_bootstrap_servers is None:
            # On a Kafka of this machine: `up`, or who has started it, works under the host's name.
            from workers.commands.up import with_a_name_of_its_own

            settings = with_a_name_of_its_own(settings)
        if processes > 1:
            from workers.supervisor import supervise

            raise SystemExit(
                supervise(
                    processes,
                    lambda index: _child_command(
                        index, settings.worker_id, max_concurrent_jobs, imports or []
                    ),
                )
            )

        from workers.builtin import builtin_workers
        from workers.config import WorkerConfig
        from workers.imports import import_modules
        from workers.logs import name_lines
        from workers.manager import WorkerManager
        from workers.running import run, run_until_signal

        config = WorkerConfig.from_settings(settings, process=process_index or 0)
        name_lines(worker=config.name)

        async def main() -> int:
            manager = WorkerManager(config, settings)
            manager.register(*builtin_workers(settings), *import_modules(imports or [], to_run=True))
            return await run_until_signal(manager)

        raise SystemExit(run(main))


def _child_command(
    index: int, worker_id: str, max_concurrent_jobs: int | None, imports: list[str]
) -> list[str]:
    command = [
        sys.executable,
        # Nothing in the working directory is taken for one of our packages.
        "-P",
        "-m",
        "workers",
        "worker",
        "--process-index",
        str(index),
        "--worker-id",
        worker_id,
    ]
    if max_concurrent_jobs is not None:
        command += ["--max-concurrent-jobs", str(max_concurrent_jobs)]
    for name in imports:
        command += ["--import", name]
    return command
