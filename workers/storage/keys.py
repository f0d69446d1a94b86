"""What an object is called, from a job's ``source_path`` to a place on a node. Pure.

In:  ``bucket/key``, as people and events write it (one leading "/" is tolerated).
Out: an ``ObjectKey`` whose parts are safe below a node's root, or ``InvalidKey``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from workers.storage.errors import InvalidKey

#: Our own corner of a node: temporary copies, quarantine, probes. No object lives below it.
RESERVED: Final = ".rfw"
#: Longest key in bytes of UTF-8, the limit of S3.
KEY_LIMIT_BYTES: Final = 1024

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """One object, the same on every node.

    Attributes:
        bucket: first part of its path.
        key: the rest, with "/" inside.
        directories: what leads to it below a node's root.
        name: its last part.
    """

    bucket: str
    key: str
    directories: tuple[str, ...] = field(init=False, compare=False, repr=False)
    name: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        *directories, name = self.key.split("/")
        object.__setattr__(self, "directories", (self.bucket, *directories))
        object.__setattr__(self, "name", name)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"


def object_key(source_path: str) -> ObjectKey:
    """The bucket and key that a path names.

    Raises:
        InvalidKey: it has no key, an empty, "." or ".." part, a control character, more than 1,024 bytes,
            or lies in the reserved ``.rfw``.
    """
    bucket, slash, key = source_path.removeprefix("/").partition("/")
    if not (slash and bucket and key):
        raise _invalid(source_path, "is not bucket/key")
    if _CONTROL.search(source_path):
        raise _invalid(source_path, "has a control character")
    parts = (bucket, *key.split("/"))
    for part in parts:
        if part in {"", ".", ".."}:
            raise _invalid(source_path, f"has a part {part!r}; parts between slashes must be names")
    if _is_reserved(bucket) or _is_reserved(parts[1]):
        raise _invalid(source_path, f"lies in {RESERVED}/, which is reserved for temporary copies")
    try:
        bucket.encode()
        size = len(key.encode())
    except UnicodeEncodeError:
        raise _invalid(source_path, "is not valid Unicode") from None
    if size > KEY_LIMIT_BYTES:
        raise _invalid(source_path, f"has a key of {size:,} bytes; the limit is {KEY_LIMIT_BYTES:,}")
    return ObjectKey(bucket, key)


def _is_reserved(part: str) -> bool:
    # Compared as a case-insensitive file system would.
    return unicodedata.normalize("NFKC", part).casefold() == RESERVED


def _invalid(source_path: str, why: str) -> InvalidKey:
    return InvalidKey(f"source_path {source_path[:120]!a} {why}")
