"""A node that is an object store, through obstore: ``s3://bucket?…`` or ``memory://``.

Object ``bucket/key`` of ours is the object ``bucket/key`` of the store.

**Publishing.** An upload is atomic here, so there is no temporary name: what is not finished is not visible.
The source is looked at again before an upload is finished. A small object whose name was free is created with
``If-None-Match``; a multipart upload cannot carry that condition, so there the name is looked at once more
before the upload is finished.

**Verification.** S3 checks every part against the SHA-256 that is sent with it. "readback" fetches the finished
object as well; if it differs, it is deleted (unless somebody else has written it meanwhile) and the copy fails.

**Aborted uploads.** A worker that is killed leaves the parts of a multipart upload behind. They are invisible but
cost space: give the bucket a lifecycle rule that removes incomplete uploads.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NoReturn

import obstore
from obstore import exceptions as refused

from workers.storage.errors import (
    CopyCorrupt,
    NameRefused,
    NodeUnreachable,
    ObjectMissing,
    SourceChanged,
    StorageError,
    TargetChanged,
)
from workers.storage.keys import ObjectKey
from workers.storage.node import Incoming, Node, OpenObject, Ticket, Verify, Version

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RANGE_BYTES: Final = 4 << 20
#: Below this an upload is one request.
SINGLE_PUT_BYTES: Final = 8 << 20
_PART_BYTES: Final = 8 << 20
_MAX_PARTS: Final = 9_000  # S3 takes 10,000
_PARTS_IN_FLIGHT: Final = 2  # each is held in memory


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store says about an object."""

    version: Version
    e_tag: str | None


class ObjectNode(Node):
    """An object store as a node."""

    local = False

    def __init__(self, name: str, store: ObjectStore) -> None:
        self.name = name
        self._store = store

    def open(self, key: ObjectKey) -> RemoteObject:
        """Open an object; see ``Node.open``. One request."""
        return RemoteObject(self, key, self.stat(key))

    def stat(self, key: ObjectKey) -> Stat:
        """Ask for size and tag.

        Raises:
            ObjectMissing: the store answers, and the object is not there.
            StorageError: see ``workers.storage.errors``.
        """
        try:
            meta = obstore.head(self._store, str(key))
        except FileNotFoundError as error:
            raise ObjectMissing(f"{key} is not on node {self.name}") from error
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._failed(error, key)
        e_tag = meta["e_tag"]
        return Stat(Version(meta["size"], (e_tag, meta["last_modified"], meta["version"])), e_tag)

    def fetch(self, key: ObjectKey, e_tag: str | None, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end`` of one version.

        Raises:
            SourceChanged: the name holds another version, or nothing.
            StorageError: see ``workers.storage.errors``.
        """
        if start == end:
            return b""
        options: obstore.GetOptions = {"range": (start, end)}
        if e_tag is not None:
            options["if_match"] = e_tag
        try:
            return builtins.bytes(obstore.get(self._store, str(key), options=options).bytes())
        except (FileNotFoundError, refused.PreconditionError) as error:
            raise SourceChanged(f"{key} on node {self.name} changed while it was read") from error
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._failed(error, key)

    def write(
        self,
        key: ObjectKey,
        incoming: Incoming,
        ticket: Ticket,
        *,
        verify: Verify,
        overwrite: bool,
    ) -> None:
        """Store an object; see ``Node.write``."""
        if incoming.size <= SINGLE_PUT_BYTES:
            e_tag = self._put(key, incoming, overwrite=overwrite)
        else:
            e_tag = self._upload(key, incoming, overwrite=overwrite)
        self._verify(key, incoming, verify, e_tag)

    def check(self) -> None:
        """List one name; see ``Node.check``."""
        try:
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._failed(error, None)

    def _put(self, key: ObjectKey, incoming: Incoming, *, overwrite: bool) -> str | None:
        content = incoming.whole if incoming.whole is not None else b"".join(incoming.chunks())
        incoming.before_publish()
        try:
            done = obstore.put(
                self._store,
                str(key),
                content,
                mode="overwrite" if overwrite else "create",
                use_multipart=False,
            )
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._failed(error, key)
        return done["e_tag"]

    def _upload(self, key: ObjectKey, incoming: Incoming, *, overwrite: bool) -> str | None:
        reason: list[BaseException] = []

        def parts() -> Iterator[bytes]:
            # Raising in here aborts the upload. obstore wraps what it gets, so the error itself is kept.
            try:
                yield from incoming.chunks()
                incoming.before_publish()
                if not overwrite and self._is_taken(key):
                    raise TargetChanged(f"{key} on node {self.name} was written by somebody else meanwhile")
            except BaseException as error:
                reason.append(error)
                raise

        try:
            done = obstore.put(
                self._store,
                str(key),
                parts(),
                use_multipart=True,
                chunk_size=max(_PART_BYTES, incoming.size // _MAX_PARTS),
                max_concurrency=_PARTS_IN_FLIGHT,
            )
        except Exception as error:
            if reason:
                raise reason[0] from error
            self._failed(error, key)
        return done["e_tag"]

    def _is_taken(self, key: ObjectKey) -> bool:
        try:
            self.stat(key)
        except ObjectMissing:
            return False
        return True

    def _verify(self, key: ObjectKey, incoming: Incoming, verify: Verify, e_tag: str | None) -> None:
        try:
            with self.open(key) as copy:
                if e_tag is not None and copy.e_tag is not None and copy.e_tag != e_tag:
                    raise SourceChanged("")
                same = copy.version.size == incoming.size
                if same and verify == "readback":
                    digest = sha256()
                    for chunk in copy.chunks():
                        digest.update(chunk)
                    same = digest.hexdigest() == incoming.sha256()
                if not same:
                    # Only what was seen to be wrong is removed; another writer's object stays.
                    copy.check_unchanged()
                    obstore.delete(self._store, str(key))
        except (SourceChanged, ObjectMissing) as error:
            raise TargetChanged(
                f"{key} on node {self.name} was written by somebody else meanwhile"
            ) from error
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._failed(error, key)
        if not same:
            raise CopyCorrupt(f"the copy of {key} on node {self.name} differs from what was written to it")

    def _failed(self, error: Exception, key: ObjectKey | None) -> NoReturn:
        where = f"{key} on node {self.name}" if key else f"node {self.name}"
        # The first lines are for people; what follows is the library's own structure.
        text = str(error).split("Debug source:")[0]
        match error:
            case refused.AlreadyExistsError() | refused.PreconditionError():
                raise TargetChanged(f"{where} was written by somebody else meanwhile") from error
            case refused.InvalidPathError() | ValueError():
                raise NameRefused(f"{where}: the store refuses this name ({text})") from error
            case _:
                # Also for refused credentials: S3 says "forbidden" instead of "not found" to some, and a
                # wrong key stops every job of the node, which is an outage and no property of this object.
                raise NodeUnreachable(f"{where}: {text or type(error).__name__}") from error


class RemoteObject(OpenObject):
    """One version of an object in the store; read in ranges, each bound to that version's tag."""

    def __init__(self, node: ObjectNode, key: ObjectKey, found: Stat) -> None:
        self._node = node
        self._key = key
        self.version = found.version
        self.e_tag = found.e_tag

    def read(self) -> bytes:
        """The whole content; see ``OpenObject.read``."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces; see ``OpenObject.chunks``."""
        size = self.version.size
        for start in range(0, size, RANGE_BYTES):
            end = min(start + RANGE_BYTES, size)
            chunk = self._node.fetch(self._key, self.e_tag, start, end)
            if len(chunk) != end - start:
                raise self._changed()
            yield chunk

    def check_unchanged(self) -> None:
        """Compare with what the name holds now; see ``OpenObject.check_unchanged``. One request."""
        try:
            now = self._node.stat(self._key)
        except ObjectMissing as error:
            raise self._changed() from error
        if now.version != self.version:
            raise self._changed()

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{self._key} on node {self._node.name} changed while it was read")
