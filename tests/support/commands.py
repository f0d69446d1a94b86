"""The command line as a user has it: other processes, a directory of their own, nothing of the tests' environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import ReturnLoggerFactory
from typer.testing import CliRunner, Result

from streams.settings import Settings
from tests.support.waiting import eventually
from tests.support.workers import ROOT
from workers import console
from workers.cli import app


def invoke(*arguments: str) -> Result:
    """A command within this process, with the environment of the test."""
    return CliRunner().invoke(app, list(arguments), prog_name="rustfs-workers")


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        """Stdout as JSON objects, one a line; fails if anything else is on it."""
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """Runs ``rustfs-workers`` in a directory, with these settings and no others."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("RUSTFS_WORKERS_", "KAFKA_", "SCHEMA_REGISTRY_"))
            },
            "PYTHONPATH": str(ROOT),
            **environment,
        }

    @classmethod
    def on(cls, settings: Settings, directory: Path, **environment: str) -> CommandLine:
        """For this deployment."""
        return cls(
            directory,
            {
                "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers(),
                "RUSTFS_WORKERS_TOPIC_PREFIX": settings.topic_prefix,
                "RUSTFS_WORKERS_PARTITIONS": str(settings.partitions),
                "RUSTFS_WORKERS_DATA_DIR": str(settings.data_dir),
                **environment,
            },
        )

    def __call__(self, *arguments: str, timeout_s: float = 90) -> Finished:
        done = subprocess.run(
            self._command(arguments),
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def here(self, *arguments: str) -> Finished:
        """The same within this process, in a tenth of the time. Logs are dropped; errors still are on stderr."""

        def without_logs(*_: object) -> None:
            # Loggers that the program caches would go on writing to the runner's stderr.
            structlog.configure(logger_factory=ReturnLoggerFactory(), cache_logger_on_first_use=False)

        cleared = {name: None for name in os.environ if name.startswith(("RUSTFS_WORKERS_", "KAFKA_"))}
        with pytest.MonkeyPatch.context() as patch, chdir(self.directory):
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(console, "configure_logging", without_logs)
            try:
                done = CliRunner().invoke(app, list(arguments), env={**cleared, **self.environment})
            finally:
                structlog.reset_defaults()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Finished(done.exit_code, done.stdout, done.stderr)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Running]:
        """The command in the background; killed in the end if it has not ended by then."""
        out, err = self.directory / f"{arguments[0]}.out", self.directory / f"{arguments[0]}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                self._command(arguments),
                cwd=self.directory,
                env=self.environment,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            yield Running(process, out, err)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(10)

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "workers", *arguments]


@dataclass(frozen=True)
class Running:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def wait_for(self, text: str, timeout_s: float = 90) -> None:
        """Until it has said this on stderr."""

        def said() -> bool:
            assert self.process.poll() is None or text in self.err.read_text(), self.err.read_text()[-3000:]
            return text in self.err.read_text()

        eventually(said, timeout_s, f"{text!r} on stderr")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, or another signal."""
        self.process.send_signal(number)

    def end(self, timeout_s: float = 60) -> Finished:
        """Wait for its end."""
        code = self.process.wait(timeout_s)
        return Finished(code, self.out.read_text(), self.err.read_text())
