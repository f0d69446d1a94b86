"""The jars that Kafka runs from: found in the cache or downloaded, and checked before they are run.

In:  the pinned list `jars.sha256` beside this file, a cache directory. Out: a class path whose every jar has
the pinned sha256, or an error that says what to do.

jgo downloads them: it reads the proxies of the environment and the repositories of the user's jgo.conf. The
list of jars is pinned, so nothing is resolved at run time.
"""

from __future__ import annotations

import configparser
import contextlib
import errno
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import platformdirs

from streams.embedded import progress
from streams.embedded.errors import DataDirUnusable, JarMismatch, JarsUnavailable

KAFKA_VERSION: Final = "4.3.1"
#: Small files, mostly: waiting for answers takes longer than the bytes.
_DOWNLOADS_AT_ONCE: Final = 8
#: Where files lie until they are whole.
_DOWNLOAD: Final = ".download-"
_OLD_S: Final = 24 * 3600
_READ_TIMEOUT_S: Final = 30
#: Connections break; a third failure is no accident.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file of Maven Central."""

    group: str
    artifact: str
    version: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """Its name, there and in the cache."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        """Its name in Maven Central."""
        return f"{self.group}:{self.artifact}:{self.version}"


def pinned_jars() -> tuple[Jar, ...]:
    """The list that this version was tested with."""
    return parse_pins(files("streams.embedded").joinpath("jars.sha256").read_text("utf-8"))


def parse_pins(text: str) -> tuple[Jar, ...]:
    """Lines of sha256, bytes and group:artifact:version; `#` begins a comment."""
    jars = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            sha256, size, coordinate = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256, int(size)))
    return tuple(jars)


def default_cache() -> Path:
    """Where the jars are kept, for all data directories of this user.

    Raises:
        DataDirUnusable: the user has no home directory.
    """
    try:
        return platformdirs.user_cache_path("rustfs-workers") / f"kafka-{KAFKA_VERSION}"
    except RuntimeError as error:
        raise DataDirUnusable(
            "this user has no home directory to keep Kafka's jars in; set XDG_CACHE_HOME or HOME"
        ) from error


def missing_jars(cache: Path, jars: Sequence[Jar] | None = None) -> list[Jar]:
    """Those that ``class_path`` would download."""
    jars = pinned_jars() if jars is None else jars
    return [jar for jar in jars if not (cache / jar.file_name).is_file()]


def class_path(cache: Path | None = None, jars: Sequence[Jar] | None = None) -> list[Path]:
    """The checked jars, in a fixed order; what is missing is downloaded first. Blocks.

    Safe to call in several processes at once: each writes files under names of its own and renames them.

    Shows the download on stderr.

    Raises:
        JarsUnavailable: a jar is missing and cannot be downloaded.
        JarMismatch: a jar's bytes are not the pinned ones.
        DataDirUnusable: the cache directory cannot be written.
    """
    cache = default_cache() if cache is None else cache
    jars = pinned_jars() if jars is None else jars
    if missing := missing_jars(cache, jars):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _fetch(missing, cache)
        except OSError as error:
            raise DataDirUnusable(
                f"cannot write Kafka's jars to {cache}: {error}; XDG_CACHE_HOME names another place for them"
            ) from error
    # Every time, not only after the download: the files are run, and hashing all of them takes 0.1 s.
    for jar in jars:
        path = cache / jar.file_name
        _check(jar, path, where=str(path), remedy=f"delete {path} and start again to download it anew")
    return [cache / jar.file_name for jar in jars]


def _check(jar: Jar, path: Path, *, where: str, remedy: str) -> None:
    found = _sha256(path)
    if found != jar.sha256:
        raise JarMismatch(jar.file_name, jar.sha256, found, where, remedy)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_old_downloads(cache: Path) -> None:
    """What downloads have left that were killed; one takes minutes."""
    for left in cache.glob(f"{_DOWNLOAD}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left)


def _fetch(missing: Sequence[Jar], cache: Path) -> None:
    """Download, check, and only then move into the cache: what lies there is whole."""
    total = sum(jar.size_bytes for jar in missing)
    _remove_old_downloads(cache)
    with (
        # Whoever was in the middle of a file when the others gave up may still write it.
        tempfile.TemporaryDirectory(dir=cache, prefix=_DOWNLOAD, ignore_cleanup_errors=True) as scratch,
        progress.shown(f"Downloading Apache Kafka {KAFKA_VERSION}", total) as show,
    ):
        ended = threading.Event()

        def show_unless_ended(received_bytes: int) -> None:
            if ended.is_set():  # Ctrl-C, or another file cannot be had: do not wait for the rest of this one
                raise _Ended
            show(received_bytes)

        try:
            download = _downloader(Path(scratch), show_unless_ended)
        except configparser.Error as error:
            why = f"jgo.conf cannot be read: {_in_short(error)}"
            raise JarsUnavailable("anything", why, len(missing), cache) from error

        def fetch(jar: Jar) -> None:
            try:
                path = download(jar)
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors, jgo's own RuntimeErrors
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the network is innocent
                raise JarsUnavailable(jar.file_name, _in_short(error), len(missing), cache) from error
            _check(
                jar,
                path,
                where="the download",
                remedy="something on the way from Maven Central changes files: try another network or mirror",
            )
            path.replace(cache / jar.file_name)

        try:
            _for_each(missing, fetch, ended)
        finally:
            ended.set()


def _for_each(jars: Sequence[Jar], fetch: Callable[[Jar], None], ended: threading.Event) -> None:
    """Several at a time, in threads that nobody waits for: one that gets no answer would hold back Ctrl-C."""
    todo: SimpleQueue[Jar] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for jar in jars:
        todo.put(jar)

    def work() -> None:
        while not ended.is_set():
            try:
                jar = todo.get_nowait()
            except Empty:
                return
            try:
                fetch(jar)
            except BaseException as error:  # noqa: BLE001 - whoever waits raises it
                done.put(error)
            else:
                done.put(None)

    for number in range(min(_DOWNLOADS_AT_ONCE, len(jars))):
        threading.Thread(target=work, name=f"kafka-jars-{number}", daemon=True).start()
    for _ in jars:
        error = done.get()
        if error is not None:
            raise error


class _Ended(Exception):
    """The download is given up."""


def _downloader(scratch: Path, show: progress.Progress) -> Callable[[Jar], Path]:
    # 0.2 s, and only needed when something is missing.
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def progress_of_one_file(_name: str, _total: int) -> Iterator[progress.Progress]:
        yield show

    users = GlobalSettings.load()
    maven = MavenContext(
        resolver=PythonResolver(progress_callback=progress_of_one_file),
        repo_cache=scratch,
        # A mirror that the user has configured comes first.
        remote_repos={**users.repositories, "central": users.repositories.get("central", MAVEN_CENTRAL_URL)},
        timeout=_READ_TIMEOUT_S,
    )

    # What Maven has on this machine already, if it is the same: what is damaged there is downloaded.
    local = users.repo_cache

    def download(jar: Jar) -> Path:
        artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        target = scratch / jar.file_name
        have = local / artifact.component.path_prefix / jar.file_name
        if have.is_file() and _sha256(have) == jar.sha256:
            target.write_bytes(have.read_bytes())
            show(jar.size_bytes)
            return target
        for tries_left in reversed(range(_TRIES)):
            try:
                return artifact.resolve()
            except OSError:
                if not tries_left:
                    raise
                # jgo writes in place, and takes what is there for whole.
                (scratch / artifact.component.path_prefix / jar.file_name).unlink(missing_ok=True)
        raise AssertionError  # the last try has returned or raised

    return download


def _in_short(error: BaseException) -> str:
    """One line of it; requests wraps urllib3's reason, which wraps the system's, so it may be long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"  # noqa: PLR2004 - a line that can be read
