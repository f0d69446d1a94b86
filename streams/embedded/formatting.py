"""What makes an empty directory a node's, as `kafka-storage format` does it, without the JVM of its own that that takes.

In:  a log directory, whose cluster, and which node of it. Out: the two files that a first start looks for.

    bootstrap.checkpoint  the versions of the features that a new cluster begins with: the same for every one
    meta.properties       cluster and node; the directory is formatted as soon as it is there

`bootstrap.checkpoint` beside this file was written by the Kafka of `jars.sha256`; a test compares both files with those
that its tool writes.
"""

from __future__ import annotations

import base64
import os
import uuid
from importlib.resources import files
from pathlib import Path
from typing import Final

from streams.embedded.errors import ANOTHER_DIRECTORY, DataDirUnusable
from streams.embedded.state import write_whole

_META: Final = "meta.properties"
_BOOTSTRAP: Final = "bootstrap.checkpoint"


def is_formatted(log_dir: Path) -> bool:
    """Whether it is a node's already."""
    return (log_dir / _META).exists()


def format_directory(log_dir: Path, cluster_id: str, node_id: int) -> None:
    """Make it a node's. What is half done (we were killed) is done again.

    Raises:
        DataDirUnusable: it cannot be written.
    """
    versions = files("streams.embedded").joinpath(_BOOTSTRAP).read_bytes()
    try:
        log_dir.mkdir(exist_ok=True)
        with (log_dir / _BOOTSTRAP).open("wb") as file:
            file.write(versions)
            file.flush()
            # A machine that loses its power must not leave the second file without this one.
            os.fsync(file.fileno())
    except OSError as error:
        raise DataDirUnusable(f"cannot write to {log_dir}: {error}; {ANOTHER_DIRECTORY}") from error
    facts = {"cluster.id": cluster_id, "directory.id": new_id(), "node.id": str(node_id), "version": "1"}
    write_whole(log_dir / _META, "".join(f"{name}={value}\n" for name, value in facts.items()))


def new_id() -> str:
    """One that nobody else has, in Kafka's form: 22 characters, the first no dash, or commands take it for an option."""
    while (found := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return found
