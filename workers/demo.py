"""The demo: real files, replicated between three storage nodes by jobs on a real Kafka.

In:  a folder of files. Out: what was copied, checked by hashes that the demo computes itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sysconfig
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import structlog

from schemas import Backoff, JobPriority, JobStatus
from schemas.errors import PipelineError, SettingsError
from streams.clients import check_reachable
from streams.embedded import has_a_name_for_java, running_broker
from streams.embedded.jars import default_cache, missing_jars
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings, load_settings
from workers.builtin import replication_worker
from workers.config import WorkerConfig
from workers.handlers.replication import ReplicationJob
from workers.manager import WorkerManager
from workers.progress import Progress
from workers.running import run_interruptible
from workers.storage import StorageError, object_key
from workers.temporary import deleted_afterwards, forgotten_afterwards, temporary_kafka

log = structlog.get_logger("rustfs_workers.demo")

BUCKET: Final = "demo"
TARGETS: Final = ("node-2", "node-3")
MISSING: Final = "there-is-no-such-object"
_MARKER: Final = ".rustfs-workers-demo"
_URGENT: Final = 5
#: Nobody wants to watch a job wait.
_BACKOFF: Final = Backoff(base=timedelta(milliseconds=300), cap=timedelta(seconds=1))
_RETRIES: Final = 2
#: Of Python's library: what others have installed, and what Python makes by itself.
_NOT_PYTHONS: Final = frozenset({"site-packages", "__pycache__"})
_FILES_NAMED: Final = 10


@dataclass
class Objects:
    """What became an object, and what could not."""

    keys: dict[str, int] = field(default_factory=dict)
    #: Why, and which files.
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file that is no object of the demo."""
        # A name that is no UTF-8, or has a line break, cannot be printed as it is.
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(path))
        self.left_out.setdefault(reason, []).append(shown)


class WrongFolder(SettingsError):
    """A folder that was named cannot be used for this."""


@dataclass(frozen=True)
class DemoReport:
    """What the demo prints."""

    objects: int
    replicated: int
    dead_letters: int
    bytes: int
    seconds: float
    jobs_per_s: float
    verified: bool
    left_out: dict[str, list[str]]
    dead_letter: dict[str, Any] | None
    topic_prefix: str
    #: Whether its topics are in the demo's own Kafka, which can be started again.
    is_kept: bool

    @property
    def succeeded(self) -> bool:
        """Every copy is there and right, and the one job that could not succeed is a dead letter."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is not as it should be, if anything."""
        if not self.verified:
            return f"{self.objects - self.replicated:,} of {self.objects:,} objects are not on all nodes as they should be"
        if self.dead_letters != 1:
            return f"there should be one dead letter, there are {self.dead_letters:,}"
        return None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "objects": self.objects,
            "replicated": self.replicated,
            "dead_letters": self.dead_letters,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "jobs_per_s": round(self.jobs_per_s, 1),
            "verified": self.verified,
            "left_out": {reason: len(paths) for reason, paths in self.left_out.items()},
            "left_out_files": {reason: paths[:_FILES_NAMED] for reason, paths in self.left_out.items()},
        }


def default_source() -> Path:
    """The standard library of the running Python: thousands of real files that are always there."""
    return Path(sysconfig.get_path("stdlib"))


@contextmanager
def prepared_directory(directory: Path) -> Iterator[None]:
    """The demo's directory, made anew, or emptied if an earlier demo made it; nobody else's for so long.

    Raises:
        WrongFolder: it holds something else, which the demo will not touch. PipelineError: a demo runs there now.
    """
    if directory.exists() and not directory.is_dir():
        raise WrongFolder(f"--dir {directory} is no directory")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / _MARKER).exists():
        raise WrongFolder(f"--dir {directory} is not empty and not the demo's own; choose another")
    # Files that nobody else may read are copied into it.
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / _MARKER).open("a", encoding="utf-8") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"a demo runs in --dir {directory} now; choose another") from None
        except OSError as error:
            raise PipelineError(
                f"cannot lock --dir {directory}: {error.strerror}; choose one on a local disk"
            ) from error
        if running_broker(directory / "kafka") is not None:
            raise PipelineError(
                f"a Kafka runs in --dir {directory} now: `rustfs-workers kafka stop --data-dir {directory / 'kafka'}` ends it"
            )
        if not marker.tell():
            marker.write("made by rustfs-workers demo; removed and filled anew by each one\n")
            marker.flush()
        for name in ("node-1", *TARGETS, "kafka"):
            shutil.rmtree(directory / name, ignore_errors=True)
        for name in ("node-1", *TARGETS):
            (directory / name).mkdir(mode=0o700)
        yield


def gather(source: Path, node: Path, progress: Progress, *, without: Collection[str] = ()) -> Objects:
    """Copy the files under ``source`` into the node, as objects of the bucket. Never changes ``source``.

    Args:
        source: the folder.
        node: the node's directory.
        progress: told how far it is.
        without: folders of these names are not looked into.

    Raises:
        PipelineError: the disk of the node is full.
    """
    found = Objects()
    files = list(_walk(source, found, without))
    for number, path in enumerate(files):
        name = path.relative_to(source).as_posix()
        try:
            object_key(f"{BUCKET}/{name}")
        except StorageError:
            found.leave_out("a node refuses the name", path)
            continue
        target = node / BUCKET / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # that is no property of the file
                raise PipelineError(
                    f"no room for {path} in {node}: {error.strerror}; choose another --dir"
                ) from error
            refused = error.errno in (errno.ENAMETOOLONG, errno.EILSEQ)
            found.leave_out(
                "a node refuses the name" if refused else f"not readable ({error.strerror})", path
            )
            with contextlib.suppress(OSError):  # of a name that cannot be made either
                target.unlink()
            continue
        found.keys[name] = target.stat().st_size
        if number % 100 == 0:
            progress("copying files into node-1", number, len(files))
    progress("copying files into node-1", len(files), len(files))
    return found


def verify(directory: Path, keys: dict[str, int], progress: Progress) -> list[str]:
    """Those that have the same SHA-256 on all three nodes, computed here and now."""
    right: list[str] = []
    for number, key in enumerate(keys):
        hashes = {_sha256(directory / node / BUCKET / key) for node in ("node-1", *TARGETS)}
        if len(hashes) == 1 and None not in hashes:
            right.append(key)
        if number % 100 == 0:
            progress("verifying", number, len(keys))
    progress("verifying", len(keys), len(keys))
    return right


def check_place_for_temporary(source: Path, temporary: Path) -> None:
    """The demo's own directory, which nobody has named, would not lie in what must not change.

    Raises:
        WrongFolder: it would.
    """
    if temporary.resolve().is_relative_to(source.resolve()):
        raise WrongFolder(
            f"--source {source} holds {temporary}, where the demo's nodes would be; give --dir a folder outside of it"
        )


def run_demo(source: Path | None, directory: Path, progress: Progress) -> DemoReport:
    """The whole demo. Blocks; starts and stops a Kafka of its own unless the settings name one.

    Args:
        source: the folder of files; None: Python's own library, without what others have put there.
        directory: where the nodes are.
        progress: told how far it is.

    Raises:
        WrongFolder: one of the two cannot be used. PipelineError: why it cannot be run.
    """
    without = _NOT_PYTHONS if source is None else frozenset[str]()
    if source is None:
        source = default_source()
    if not source.is_dir():
        raise WrongFolder(f"--source {source} is no directory; name a folder of files")
    if not has_a_name_for_java(directory):
        raise WrongFolder(f"--dir {str(directory)!a} is no UTF-8; choose another")
    if directory.resolve().is_relative_to(source.resolve()):
        raise WrongFolder(
            f"--dir {directory} lies inside of --source {source}, which must not change; choose another"
        )
    if source.resolve().is_relative_to(directory.resolve()):
        raise WrongFolder(
            f"--source {source} lies inside of --dir {directory}, which is emptied first; choose another --dir"
        )
    where: dict[str, Any] = {"topic_prefix": f"demo-{uuid4().hex[:8]}.", "worker_id": "demo"}
    settings = _with_own_nodes(load_settings(**where), directory)
    given = settings.kafka_bootstrap_servers is not None
    if given:
        check_reachable(settings)
    else:
        settings.check_for_embedded()
        _check_cache(source)
    with prepared_directory(directory):
        objects = gather(source, directory / "node-1", progress, without=without)
        if not objects.keys:
            raise WrongFolder(f"--source {source} has no file that could become an object; choose another")
        if given:
            with deleted_afterwards(settings):
                return _on(settings, directory, objects, progress, is_kept=False)
        with temporary_kafka(directory / "kafka", progress) as broker, forgotten_afterwards(settings):
            settings = load_settings(
                **where, kafka_bootstrap_servers=broker.bootstrap_servers, data_dir=directory
            )
            settings = _with_own_nodes(settings, directory)
            return _on(settings, directory, objects, progress, broker.check, is_kept=True)


def _check_cache(source: Path) -> None:
    """Kafka's jars are fetched to a place that nobody has named, which may be what must not change: somebody's home, say."""
    cache = default_cache()
    if cache.resolve().is_relative_to(source.resolve()) and missing_jars(cache):
        raise WrongFolder(
            f"--source {source} holds {cache}, where Kafka would be fetched to, and must not change; "
            "run the demo without --source once, or set XDG_CACHE_HOME to a place outside of it"
        )


def _with_own_nodes(settings: Settings, directory: Path) -> Settings:
    """And no others: what the operator has configured beside them is none of the demo's business."""
    nodes = {name: (directory / name).resolve().as_uri() for name in ("node-1", *TARGETS)}
    return settings.model_copy(update={"nodes": nodes})


def _on(
    settings: Settings,
    directory: Path,
    objects: Objects,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
    *,
    is_kept: bool,
) -> DemoReport:
    provision(settings)
    seconds, dead = run_interruptible(_replicate(settings, objects, progress, check))
    right = verify(directory, objects.keys, progress)
    return DemoReport(
        objects=len(objects.keys),
        replicated=len(right),
        dead_letters=len(dead),
        bytes=sum(objects.keys[key] for key in right) * len(TARGETS),
        seconds=seconds,
        jobs_per_s=len(objects.keys) / seconds,
        verified=len(right) == len(objects.keys),
        left_out=objects.left_out,
        dead_letter=dead[0] if dead else None,
        topic_prefix=settings.topic_prefix,
        is_kept=is_kept,
    )


async def _replicate(
    settings: Settings, objects: Objects, progress: Progress, check: Callable[[], None]
) -> tuple[float, list[dict[str, Any]]]:
    """Schedule one job per object, run them, and wait until every one is final, or ``check`` raises."""
    async with JobQueue.connect(settings) as queue:
        manager = WorkerManager(WorkerConfig.from_settings(settings), settings)
        worker = replication_worker(settings.nodes)
        worker.backoff = _BACKOFF
        manager.register(worker)
        jobs = [
            (_job(key), JobPriority.HIGH if number < _URGENT else JobPriority.NORMAL)
            for number, key in enumerate(objects.keys)
        ]
        began = time.monotonic()
        await queue.schedule_jobs(jobs)
        await queue.schedule_job(_job(missing_object(objects.keys)), max_retries=_RETRIES)
        seconds = 0.0
        async with manager:
            failing = asyncio.create_task(manager.wait())
            try:
                while True:
                    counts = _final_counts(manager)
                    progress("replicating", counts["succeeded"], len(jobs))
                    if not seconds and counts["succeeded"] + counts["failed"] >= len(jobs):
                        seconds = time.monotonic() - began
                    if counts["succeeded"] + counts["failed"] + counts["skipped"] > len(jobs):
                        break
                    if failing.done():
                        failing.result()
                    try:
                        check()
                    except PipelineError:
                        await manager.shutdown(timedelta(0))  # nothing can be committed any more
                        raise
                    await asyncio.sleep(0.05)
            finally:
                # The worker of a Kafka that has died fails as well: asyncio would show a trace if nobody took its error.
                failing.cancel()
                await asyncio.gather(failing, return_exceptions=True)
    return seconds, await asyncio.to_thread(_dead_letters, settings)


def missing_object(keys: Collection[str]) -> str:
    """The name of an object that is not there."""
    name = MISSING
    while any(key.partition("/")[0] == name for key in keys):
        name += "-"
    return name


def _job(key: str) -> ReplicationJob:
    return ReplicationJob(
        source_path=f"{BUCKET}/{key}",
        source_node="node-1",
        target_nodes=list(TARGETS),
        replication_factor=len(TARGETS),
    )


def _final_counts(manager: WorkerManager) -> dict[str, int]:
    counts = {status.value: 0 for status in JobStatus}
    for (_, _, state), count in manager.process.counters.items():
        counts[state] += count
    return counts


def _dead_letters(settings: Settings) -> list[dict[str, Any]]:
    from streams.dead_letters import list_dead_letters

    return [letter.to_json() for letter in list_dead_letters(settings)]


def _walk(source: Path, found: Objects, without: Collection[str]) -> Iterator[Path]:
    for root, directories, files in os.walk(
        source, onerror=lambda error: found.leave_out("not readable", Path(str(error.filename)))
    ):
        here = Path(root)
        directories[:] = [
            name
            for name in sorted(directories)
            if name not in without and not _is_left_out(here / name, stat.S_ISDIR, found)
        ]
        for name in sorted(files):
            path = here / name
            if not _is_left_out(path, stat.S_ISREG, found):
                yield path


def _is_left_out(path: Path, is_right: Callable[[int], bool], found: Objects) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError as error:  # a folder may be listed and not entered
        found.leave_out(f"not readable ({error.strerror})", path)
        return True
    if stat.S_ISLNK(mode):
        found.leave_out("symbolic link", path)
    elif not is_right(mode):
        found.leave_out("no regular file", path)
    else:
        return False
    return True


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
