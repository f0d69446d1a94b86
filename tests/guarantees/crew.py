"""Real worker processes that come, go, freeze and die.

Each start, end and freeze is noted with its time on the monotonic clock. For one thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streams.settings import Settings
from tests.guarantees.evidence import Life, Trouble
from tests.guarantees.silence import SILENT_S
from tests.support.waiting import eventually
from workers.watchdog import LIMIT_S

ROOT: Final = Path(__file__).resolve().parents[2]
#: A drain may take thirty seconds; one that stands still is ended by its own watchdog.
_LEAVE_S: Final = LIMIT_S + 30
_LOOK_S: Final = 0.2
_START_S: Final = 120.0  # on a machine that starts three brokers meanwhile
#: The exit code of a command that found no Kafka.
_NO_KAFKA: Final = 3
_STARTED: Final = '"event": "worker started"'
#: What Python says when a watchdog ends its process.
_STOOD_STILL: Final = "Timeout (0:"
#: What a process has written last shows all that it may be running, and files that nobody has written to for so long nothing.
_TAIL_BYTES: Final = 32 * 1024
_FRESH_S: Final = 60.0
#: Between a watchdog's last sign of life and the moment in which its process stood still.
_ROUND_NS: Final = 2_000_000_000


@dataclass(slots=True)
class _Worker:
    """One running worker process."""

    name: str
    process: subprocess.Popen[bytes]
    started_ns: int
    frozen_ns: int | None = None
    told_ns: int | None = None
    #: Waits for its exit, of one that was told to leave: a look in passing would find it late, and its leave short.
    exit_watch: threading.Thread | None = None
    exited_ns: int | None = None
    #: How often one of its name had started before it.
    starts_before: int = 0


class Crew:
    """The worker processes of a campaign.

    Args:
        settings: the deployment.
        directory: for what handlers and workers write.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._directory = directory
        self._runs = directory / "runs"
        self._runs.mkdir()
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUSTFS_WORKERS_", "KAFKA_"))},
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers(),
            "RUSTFS_WORKERS_TOPIC_PREFIX": settings.topic_prefix,
            "RUSTFS_WORKERS_PARTITIONS": str(settings.partitions),
            "RUSTFS_WORKERS_DATA_DIR": str(settings.data_dir),
            "RUSTFS_WORKERS_LOG_FORMAT": "json",
            # Less than the longest jobs take: a drain that has to cancel belongs to the storm.
            "RUSTFS_WORKERS_DRAIN_TIMEOUT_S": "5",
            "RFW_GUARANTEES_LOG": str(self._runs),
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
        }
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        self._names = 0
        self.lives: list[Life] = []
        self.troubles: list[Trouble] = []
        #: Worker processes that ended by themselves, or did not end when they were told to.
        self.ended_by_themselves: list[str] = []
        #: Those that were ended by their watchdogs, because librdkafka stood still.
        self.stood_still: list[str] = []

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def runs_directory(self) -> Path:
        """Where handlers write."""
        return self._runs

    def join(self, name: str | None = None) -> None:
        """One more worker; under a name of its own, or that of one that is gone."""
        if name is None:
            self._names += 1
            name = f"w{self._names}"
        log = self._directory / f"{name}.stderr"
        log.touch()
        starts_before = log.read_text().count(_STARTED)
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "workers", "worker"),
                    *("--import", "tests.guarantees.jobs", "--worker-id", name),
                ],
                env=self._environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self._workers.append(_Worker(name, process, time.monotonic_ns(), starts_before=starts_before))

    def kill(self, pick: int) -> str | None:
        """kill -9 for one that is not frozen, of those with a handler running if there is any; its name."""
        busy = at_work(self._runs)
        worker = self._one_of(pick, [one for one in self._workers if one.process.pid in busy])
        worker = worker or self._one_of(pick)
        if worker is None:
            return None
        # One that has written nothing for long may stand still: SIGABRT kills it as well, and its log ends with where each of
        # its threads stood (PYTHONFAULTHANDLER).
        if self._is_silent(worker):
            worker.process.send_signal(signal.SIGABRT)
            worker.process.wait()
        worker.process.kill()
        killed_ns = time.monotonic_ns()
        worker.process.wait()
        self._gone(worker, "killed", killed_ns)
        return worker.name

    def leave(self, pick: int) -> str | None:
        """Tell one that is not frozen to drain and leave; its name. Others go on meanwhile."""
        worker = self._one_of(pick)
        if worker is None:
            return None
        worker.told_ns = time.monotonic_ns()
        worker.process.terminate()
        worker.exit_watch = threading.Thread(target=_note_exit, args=(worker,), daemon=True)
        worker.exit_watch.start()
        self._workers.remove(worker)
        self._leaving.append(worker)
        return worker.name

    def freeze(self, pick: int) -> str | None:
        """SIGSTOP for one that is not frozen; its name, for ``thaw``."""
        worker = self._one_of(pick)
        if worker is None:
            return None
        worker.process.send_signal(signal.SIGSTOP)
        worker.frozen_ns = time.monotonic_ns()
        return worker.name

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        for worker in self._workers:
            if worker.name == name and worker.frozen_ns is not None:
                worker.process.send_signal(signal.SIGCONT)
                self.troubles.append(
                    Trouble("worker_freeze", worker.frozen_ns, time.monotonic_ns(), worker.process.pid)
                )
                worker.frozen_ns = None

    def look(self) -> None:
        """Note who is gone; nobody goes without having been told, nor with another exit code than 0."""
        for worker in list(self._leaving):
            if worker.exited_ns is not None:
                self._leaving.remove(worker)
                code = worker.process.returncode
                # Or told before it could listen, or before it had found its Kafka.
                if code == 0 or (code in (-signal.SIGTERM, _NO_KAFKA) and not self._has_started(worker)):
                    self._gone(worker, "left", worker.exited_ns)
                else:
                    self._failed(worker)
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            if self._failed(worker):
                self.join(worker.name)

    def _failed(self, worker: _Worker) -> bool:
        """Note how it ended by itself. Whether a supervisor would start it again, and all is well."""
        end_ns, code = worker.exited_ns or time.monotonic_ns(), worker.process.returncode
        said = self._log(worker).read_text()
        stood_still = code == 1 and _STOOD_STILL in said[said.rfind(_STARTED) :]
        self._gone(worker, "stood still" if stood_still else "failed", end_ns)
        if stood_still:
            since_ns = end_ns - round(LIMIT_S * 1e9) - _ROUND_NS
            self.troubles.append(Trouble("worker_freeze", since_ns, end_ns, worker.process.pid))
            self.stood_still.append(worker.name)
        elif code != _NO_KAFKA or self._has_started(worker):
            self.ended_by_themselves.append(f"{worker.name}: exit code {code}")
            return False
        return True

    def wait_until_started(self) -> None:
        """Until everybody works."""

        def all_work() -> bool:
            self.look()
            return all(map(self._has_started, self._workers))

        eventually(all_work, _START_S, "all workers have started", pause_s=0.1)

    def _has_started(self, worker: _Worker) -> bool:
        return self._log(worker).read_text().count(_STARTED) > worker.starts_before

    def _is_silent(self, worker: _Worker) -> bool:
        """Whether it has worked, and neither it nor its handlers have written anything for long."""
        files = [self._log(worker), *self._runs.glob(f"runs-{worker.process.pid}-*.jsonl")]
        last = max(file.stat().st_mtime for file in files)
        return self._has_started(worker) and time.time() - last > SILENT_S

    def _log(self, worker: _Worker) -> Path:
        return self._directory / f"{worker.name}.stderr"

    def wait_for_leavers(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until everybody who was told to leave has left; one that does not is ended, and that is told."""
        for worker in list(self._leaving):
            assert worker.exit_watch is not None
            deadline = time.monotonic() + _LEAVE_S
            while worker.exit_watch.is_alive() and time.monotonic() < deadline:
                worker.exit_watch.join(_LOOK_S)
                meanwhile()
            if worker.exited_ns is None:
                # Its log ends with where each of its threads stands: PYTHONFAULTHANDLER.
                worker.process.send_signal(signal.SIGABRT)
                worker.exit_watch.join()
                self._leaving.remove(worker)
                self._gone(worker, "failed", time.monotonic_ns())
                self.ended_by_themselves.append(f"{worker.name}: has not left within {_LEAVE_S} s")
        self.look()

    def close(self) -> None:
        """End all that are left, by force."""
        for worker in list(self._workers):
            self.thaw(worker.name)
        now_ns = time.monotonic_ns()
        for worker in (*self._workers, *self._leaving):
            worker.process.kill()
            worker.process.wait()
            self.lives.append(
                Life(worker.name, worker.process.pid, worker.started_ns, now_ns, "stays", worker.told_ns)
            )
        self._workers.clear()
        self._leaving.clear()

    def _one_of(self, pick: int, among: Iterable[_Worker] | None = None) -> _Worker | None:
        awake = [w for w in (self._workers if among is None else among) if w.frozen_ns is None]
        return awake[pick % len(awake)] if awake else None

    def _gone(self, worker: _Worker, end: str, end_ns: int) -> None:
        self.lives.append(
            Life(worker.name, worker.process.pid, worker.started_ns, end_ns, end, worker.told_ns)
        )
        if worker in self._workers:
            self._workers.remove(worker)


def at_work(runs: Path) -> set[int]:
    """The worker processes in which, or in a process of which, a handler runs now, by what handlers have written."""
    fresh = time.time() - _FRESH_S
    found: set[int] = set()
    for file in runs.glob("runs-*.jsonl"):
        if file.stat().st_mtime < fresh:
            continue
        with file.open("rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            lines = stream.read().split(b"\n")
        running: dict[str, int] = {}
        for line in lines[:-1]:  # behind the last one nothing is complete
            if not line.startswith(b"{"):
                continue  # the first one may have been cut
            said = json.loads(line)
            if said["say"] == "start":
                running[said["run"]] = said["pid"]
            else:
                running.pop(said["run"], None)
        found.update(running.values())
    return found


def _note_exit(worker: _Worker) -> None:
    worker.process.wait()
    worker.exited_ns = time.monotonic_ns()
