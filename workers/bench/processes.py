"""The workers that a bench measures: processes of their own, as an operator would start them.

In:  a deployment and a number. Out: running workers; all of them are gone afterwards, however the bench ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from schemas.errors import PipelineError
from streams.settings import Settings
from workers.parent_death import environment_of_a_child

#: A worker's own drain is over after 30 s.
_DRAIN_S: Final = 40.0

#: Raises if a worker has ended by itself.
Check = Callable[[], None]


@contextmanager
def worker_processes(settings: Settings, count: int, **environment: str) -> Iterator[Check]:
    """``count`` workers that know the benches' jobs; call what it gives now and then while waiting for them."""
    variables = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers(),
        "RUSTFS_WORKERS_TOPIC_PREFIX": settings.topic_prefix,
        "RUSTFS_WORKERS_PARTITIONS": str(settings.partitions),
        "RUSTFS_WORKERS_LOG_LEVEL": "error",
        **environment,
    }
    # -P: nothing in the working directory is taken for one of our packages.
    command = [sys.executable, "-P", "-m", "workers", "worker", "--import", "workers.bench.jobs"]
    processes: list[subprocess.Popen[bytes]] = []

    def check() -> None:
        ended = [process.returncode for process in processes if process.poll() is not None]
        if ended:
            raise PipelineError(
                f"a worker process ended by itself, with exit code {ended[0]}; stderr has its reason"
            )

    try:
        for number in range(count):
            processes.append(
                subprocess.Popen(
                    [*command, "--worker-id", f"bench-{number}"],
                    env=environment_of_a_child(variables),
                    stdout=subprocess.DEVNULL,
                    # Ctrl-C reaches the bench alone, which then ends them; so does its own sudden death.
                    start_new_session=True,
                )
            )
        yield check
    finally:
        _end(processes)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Drain them, and wait; a second Ctrl-C kills them."""
    try:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(_DRAIN_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
            process.wait()
