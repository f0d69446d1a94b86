"""What a Kafka remembers of how it started, so that the ones that a test run starts after it need half the processor time.

In:  the Java and the jars of the embedded Kafka. Out: an environment in which every broker starts from Java's AOT cache
(JEP 483 and 514, Java 25), those of commands included.

The file lies beside the jars and is made once, by a rehearsal. Java itself compares it with its own version, the jars
and its options at each start, and starts without it if anything differs. So everything that goes wrong here makes
starts slow and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import Final

import pytest

from streams.embedded import BrokerConfig, EmbeddedBroker, EmbeddedKafkaError
from streams.embedded.jars import class_path, default_cache
from streams.embedded.java import find_java

VARIABLE: Final = "JAVA_TOOL_OPTIONS"
_PREFIX: Final = "quick-start-"
_SUFFIX: Final = ".aot"
#: Java assembles the file when the rehearsal's broker has ended, in seconds of both cores.
_ASSEMBLY_LIMIT_S: Final = 120.0
#: A file that was damaged would be run; and what Java thinks of single methods is not for a broker's log.
_USE: Final = ("-XX:+VerifySharedSpaces", "-Xlog:aot*=off", "-Xlog:aot+codecache*=off")


def use(patch: pytest.MonkeyPatch, file: Path) -> None:
    """From here on, if the file is there and the developer has no options of his own for Java."""
    if file.is_file() and VARIABLE not in os.environ:
        patch.setenv(VARIABLE, shlex.join([f"-XX:AOTCache={file}", *_USE]))


def rehearsed(directory: Path) -> Path:
    """The file of this Java and these jars, made now if nobody has. Blocks for a quarter of a minute then.

    It is not there afterwards if it cannot be made: with an older Java, on a full disk, in a directory of somebody else.
    """
    file = place()
    try:
        with (file.parent / "quick-start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file() and VARIABLE not in os.environ:
                _rehearse(file, directory)
    except (EmbeddedKafkaError, OSError):
        pass
    return file


def place() -> Path:
    """Where the file of this Java, these jars and these options is, or would be."""
    java, jars = find_java(), class_path()
    command = EmbeddedBroker(BrokerConfig(Path()))._java_command(java, jars)
    # Paths and the size of the heap do not matter to it.
    options = [option for option in command if option.startswith(("-XX", "-Xs", "--"))]
    facts = [_identity(file) for file in (java.resolve(), *jars)]
    digest = hashlib.sha256(repr((options, facts)).encode()).hexdigest()
    return default_cache() / f"{_PREFIX}{digest[:16]}{_SUFFIX}"


def _rehearse(file: Path, directory: Path) -> None:
    broker = EmbeddedBroker(BrokerConfig(directory, heap_mb=512))
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=_PREFIX) as scratch:
        made = Path(scratch) / file.name
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, shlex.join([f"-XX:AOTCacheOutput={made}"]))
            broker.start()
        broker.stop(_ASSEMBLY_LIMIT_S)
        made.replace(file)
        for other in file.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
            if other != file:
                other.unlink()  # of another Java, or other jars; whoever uses it at this moment goes on


def _identity(file: Path) -> tuple[str, int, int]:
    """By its name alone, not its path: virtual environments hold the same Java under many paths."""
    found = file.stat()
    return file.name, found.st_size, found.st_mtime_ns
