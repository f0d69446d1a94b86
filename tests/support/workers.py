"""Real worker processes for integration tests, and what they wrote down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from schemas import JobStatus
from streams.reader import JobFilter, JobReader
from streams.settings import Settings
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]

#: For ``start``: who was unfinished at two deaths runs alone in the worker, as jobs do that no other process can make.
NO_SANDBOX: Final = {"RUSTFS_WORKERS_SANDBOX_SIZE": "0"}


class WorkerUnderTest:
    """One ``rustfs-workers worker`` process."""

    def __init__(
        self, settings: Settings, directory: Path, worker_id: str, *arguments: str, **environment: str
    ) -> None:
        self.log_file = directory / "runs.jsonl"
        self.stderr_file = directory / f"{worker_id}.stderr"
        self._arguments = arguments
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUSTFS_WORKERS_", "KAFKA_"))},
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers(),
            "RUSTFS_WORKERS_TOPIC_PREFIX": settings.topic_prefix,
            "RUSTFS_WORKERS_PARTITIONS": str(settings.partitions),
            "RUSTFS_WORKERS_DATA_DIR": str(settings.data_dir),
            "RUSTFS_WORKERS_WORKER_ID": worker_id,
            "RUSTFS_WORKERS_LOG_FORMAT": "json",
            "RFW_TEST_LOG": str(self.log_file),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> WorkerUnderTest:
        with self.stderr_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "workers",
                    "worker",
                    "--import",
                    "tests.support.jobs",
                    *self._arguments,
                ],
                env=self._environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self, timeout_s: float = 45) -> int:
        """SIGTERM, and wait for the drain to end."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def said(self, event: str) -> bool:
        """Whether it has logged this event."""
        return any(line.get("event") == event for line in self.events())

    def reason(self) -> str:
        """Why its command ended: the last line of its log."""
        last = self.events()[-1]
        assert last["level"] == "error", last
        return str(last["event"])

    def events(self) -> list[dict[str, Any]]:
        lines = []
        for line in self.stderr_file.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": line})
        return lines


#: Starts a worker: its id, arguments of the command, variables of its environment.
Start = Callable[..., WorkerUnderTest]


@contextmanager
def workers(settings: Settings, directory: Path) -> Iterator[Start]:
    """A function that starts workers; all of them are ended afterwards."""
    started: list[WorkerUnderTest] = []

    def start(worker_id: str, *arguments: str, **environment: str) -> WorkerUnderTest:
        worker = WorkerUnderTest(settings, directory, worker_id, *arguments, **environment).start()
        started.append(worker)
        return worker

    try:
        yield start
    finally:
        for worker in started:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
                worker.process.wait(10)


def runs(directory: Path) -> list[dict[str, Any]]:
    """What handlers wrote down so far."""
    file = directory / "runs.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def all_final(settings: Settings, ids: list[str], timeout_s: float) -> dict[str, JobStatus]:
    """Wait until these jobs are final; the states of all that are."""
    reader = JobReader(settings)

    def look() -> dict[str, JobStatus] | None:
        known = {
            info.id: info.status for info in reader.list_jobs(JobFilter(limit=None)) if info.status.final
        }
        return known if all(job_id in known for job_id in ids) else None

    try:
        found = eventually(look, timeout_s, f"{len(ids)} jobs final")
        assert isinstance(found, dict)
        return found
    finally:
        reader.close()
