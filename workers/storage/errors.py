"""What can go wrong on a storage node, by name.

The class name is the error type that a dead letter is filed under; the base says whether a later run can
help. Messages are safe to publish: one line, at most 512 characters, secrets masked.

    StorageError
    ├── ObjectMissing        the object is not there (yet)                       retry
    ├── NodeUnreachable      root absent, connection refused, I/O error …        retry
    ├── NodeFull             no space or quota left                              retry
    ├── CopyCorrupt          what was read back is not what was written          retry
    ├── TargetChanged        somebody else wrote the target meanwhile            retry
    ├── SourceChanged        the source changed while it was read                retry, whole job
    ├── Stopped              the run was cancelled between two steps             retry, whole job
    ├── SourceCorrupt        the source is not what the job expects              permanent, whole job
    ├── UnknownNode          no node of that name is configured                  permanent
    ├── InvalidKey           a source path that is no ``bucket/key``             permanent
    ├── InvalidReplication   targets, factor or modes that make no sense         permanent
    ├── NameRefused          the node cannot store such a name                   permanent
    ├── SymlinkRefused       a symbolic link stands in the object's way          permanent
    ├── NotAnObject          a directory or a device has the object's name       permanent
    ├── AccessDenied         the node's file permissions forbid it               permanent
    └── TargetExists         overwrite is "never" and the target differs         permanent
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from schemas.errors import PermanentError, PipelineError, SettingsError, TransientError
from workers.redaction import redact

#: Longest message of a storage error, in characters.
MESSAGE_LIMIT: Final = 512

_SECRET_VARIABLES: Final = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def public_message(text: str) -> str:
    """An error text that may be published: one line, masked, at most 512 characters."""
    line = " ".join(text.split())
    line = redact(line, (os.environ.get(name, "") for name in _SECRET_VARIABLES))
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


class NodeConfigError(SettingsError):
    """A node's name or URL cannot be used."""


class StorageError(PipelineError):
    """Base of what a node or a copy between nodes can report."""

    def __init__(self, message: str) -> None:
        super().__init__(public_message(message))

    @property
    def name(self) -> str:
        """The error type that people see and filter by."""
        return type(self).__name__

    @property
    def retryable(self) -> bool:
        """Whether a later run may succeed with nobody changing the job or the settings."""
        return not isinstance(self, PermanentError)


class ObjectMissing(StorageError, TransientError):
    """The object is not there. It may come: events can arrive before the data."""


class NodeUnreachable(StorageError, TransientError):
    """The node gives no usable answer. What it holds is unknown, which is not the same as nothing."""


class NodeFull(StorageError, TransientError):
    """No space or quota is left on the node."""


class CopyCorrupt(StorageError, TransientError):
    """The copy, read back, differs from what was sent. It was not published, or removed again."""


class TargetChanged(StorageError, TransientError):
    """Somebody else wrote or removed the target between our look and our write."""


class WholeJobError(StorageError):
    """Not one target's failure: no target can be served in this run."""


class SourceChanged(WholeJobError, TransientError):
    """The source was overwritten, truncated or removed while it was being read."""


class Stopped(WholeJobError, TransientError):
    """The run was cancelled; nothing was published after that was noticed."""


class SourceCorrupt(WholeJobError, PermanentError):
    """Size or hash of the source is not what the job says; nothing was copied."""


class UnknownNode(StorageError, PermanentError):
    """No node of this name is configured on this worker."""

    def __init__(self, node: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        variable = re.sub(r"[^A-Z0-9_.-]", "", node.upper())[:64] or "<NAME>"
        # An environment variable's name cannot hold "-" or ".": such nodes are named in the file only.
        where = (
            f"set RUSTFS_WORKERS_NODES__{variable} to its URL"
            if re.fullmatch(r"[A-Z0-9_]+", variable)
            else "add it under [nodes] in rustfs-workers.toml"
        )
        super().__init__(f"node {node[:64]!r} is not known (known: {names}); {where}")


class InvalidKey(StorageError, PermanentError):
    """The path does not name an object: ``bucket/key``."""


class InvalidReplication(StorageError, PermanentError):
    """The job's own fields contradict each other."""


class NameRefused(StorageError, PermanentError):
    """The node's file system or service cannot store an object of this name."""


class SymlinkRefused(StorageError, PermanentError):
    """A symbolic link stands in the object's path; following it could leave the node."""


class NotAnObject(StorageError, PermanentError):
    """Something else has the object's name, or a file stands where a directory is needed."""


class AccessDenied(StorageError, PermanentError):
    """The permissions of a file or directory forbid it."""


class TargetExists(StorageError, PermanentError):
    """The target holds something else and the job says never to overwrite."""
