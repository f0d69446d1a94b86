"""A node that is an object store, through obstore: ``s3://bucket?…`` or ``memory://``.

Object ``bucket/key`` of ours is the object ``bucket/key`` of the store.

**Publishing.** An upload is atomic here, so there is no temporary name: what is not finished is not visible.
The source is looked at again before an upload is finished. A small object whose name was free is created with
``If-None-Match``; a multipart upload and a replacement cannot carry a condition that every service
understands, so there the name is looked at once more just before the upload is finished.

**Verification.** S3 checks every part against the SHA-256 that is sent with it. The finished object is visible
when its size is looked at and "readback" fetches it; if it differs, it is deleted (unless somebody else is seen to
have written it meanwhile), and the copy fails. What it has replaced is gone then. A worker that is killed in between, or a
store that stops answering, leaves an object that nobody has verified; the job's next run compares it with the source.

**Aborted uploads.** A worker that is killed leaves the parts of a multipart upload behind. They are invisible
but cost space: give the bucket a lifecycle rule that removes incomplete uploads.

**Content alone.** Content type, user metadata and tags are neither compared nor copied: a new object has the service's defaults.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, NoReturn

import obstore
from obstore import exceptions as refused

from workers.storage.errors import (
    CopyCorrupt,
    NameRefused,
    NodeUnreachable,
    SourceChanged,
    StorageError,
    TargetChanged,
)
from workers.storage.keys import ObjectKey
from workers.storage.node import Incoming, Node, OpenObject, Place, Ticket, Verify, Version

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RANGE_BYTES: Final = 4 << 20
#: Below this an upload is one request.
SINGLE_PUT_BYTES: Final = 8 << 20
_PART_BYTES: Final = 8 << 20
_MAX_PARTS: Final = 9_000  # S3 takes 10,000
_PARTS_IN_FLIGHT: Final = 2  # each is held in memory
#: S3's own word; the library has no error of its own for it.
_NO_BUCKET: Final = "NoSuchBucket"


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store says about an object."""

    version: Version
    e_tag: str | None


class ObjectNode(Node):
    """An object store as a node."""

    waits_for = "network"

    def __init__(self, name: str, store: ObjectStore) -> None:
        self.name = name
        self.store = store
        self._has_bucket = False

    def look(self, key: ObjectKey) -> ObjectPlace:
        """Look what the name holds; see ``Node.look``. One request."""
        return ObjectPlace(self, key)

    def stat(self, key: ObjectKey) -> Stat | None:
        """Size and tag of what the name holds; None if it is free.

        Raises:
            StorageError: see ``workers.storage.errors``.
        """
        try:
            meta = obstore.head(self.store, str(key))
        except FileNotFoundError:
            self._look_for_bucket()
            return None
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self.failed(error, key)
        self._has_bucket = True
        e_tag = meta["e_tag"]
        return Stat(Version(meta["size"], (e_tag, meta["last_modified"], meta["version"])), e_tag)

    def _look_for_bucket(self) -> None:
        """Once: without a bucket there is no object either, and S3 answers in the same way. A state that is unknown is not "missing"."""
        if self._has_bucket:
            return
        try:
            next(iter(obstore.list(self.store, chunk_size=1)), None)
        except Exception as error:
            # Who may not list goes on with what the object's own request said.
            if isinstance(error, FileNotFoundError) or _NO_BUCKET in str(error):
                raise NodeUnreachable(f"node {self.name}: its bucket does not exist") from error
            return
        self._has_bucket = True

    def check(self) -> None:
        """List one name; see ``Node.check``."""
        try:
            next(iter(obstore.list(self.store, chunk_size=1)), None)
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self.failed(error, None)

    def failed(self, error: Exception, key: ObjectKey | None) -> NoReturn:
        """Name what the library has raised.

        Raises:
            StorageError: always.
        """
        if isinstance(error, StorageError):
            raise error
        where = f"{key} on node {self.name}" if key else f"node {self.name}"
        # The first lines are for people; what follows is the library's own structure.
        text = str(error).split("Debug source:", maxsplit=1)[0]
        match error:
            case refused.AlreadyExistsError() | refused.PreconditionError():
                raise TargetChanged(f"{where} was written by somebody else meanwhile") from error
            case refused.InvalidPathError() | ValueError():
                raise NameRefused(f"{where}: the store refuses this name ({text})") from error
            case _:
                # Also for refused credentials: S3 says "forbidden" instead of "not found" to some, and a
                # wrong key stops every job of the node, which is an outage and no property of this object.
                raise NodeUnreachable(f"{where}: {text or type(error).__name__}") from error


class ObjectPlace(Place):
    """A name in a store, and what it held at the look."""

    def __init__(self, node: ObjectNode, key: ObjectKey) -> None:
        self._node = node
        self._key = key
        stat = node.stat(key)
        self.found: RemoteObject | None = None if stat is None else RemoteObject(node, key, stat)

    def write(
        self,
        incoming: Incoming,
        ticket: Ticket,
        *,
        verify: Verify,
    ) -> None:
        """Store an object; see ``Place.write``."""
        try:
            e_tag = self._put(incoming) if incoming.size <= SINGLE_PUT_BYTES else self._upload(incoming)
            self._verify(incoming, verify, e_tag)
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._node.failed(error, self._key)

    def keep(self, ticket: Ticket) -> None:
        """There are no temporary names."""

    def close(self) -> None:
        """Nothing is held open."""

    def _put(self, incoming: Incoming) -> str | None:
        content = incoming.whole if incoming.whole is not None else b"".join(incoming.chunks())
        incoming.before_publish()
        if self.found is not None:
            self._check_same()
        mode: Literal["create", "overwrite"] = "create" if self.found is None else "overwrite"
        return obstore.put(self._node.store, str(self._key), content, mode=mode, use_multipart=False)["e_tag"]

    def _upload(self, incoming: Incoming) -> str | None:
        async def parts() -> AsyncIterator[bytes]:
            # Raising in here aborts the upload.
            for chunk in incoming.chunks():
                yield chunk
            incoming.before_publish()
            self._check_same()

        async def upload() -> str | None:
            done = await obstore.put_async(
                self._node.store,
                str(self._key),
                parts(),
                use_multipart=True,
                chunk_size=max(_PART_BYTES, incoming.size // _MAX_PARTS),
                max_concurrency=_PARTS_IN_FLIGHT,
            )
            return done["e_tag"]

        # A loop of this thread's own. The blocking call cannot take its parts from other blocking calls: the
        # library panics when it is entered a second time from inside.
        return asyncio.run(upload())

    def _verify(self, incoming: Incoming, verify: Verify, e_tag: str | None) -> None:
        stat = self._node.stat(self._key)
        if stat is None or (e_tag is not None and stat.e_tag not in {None, e_tag}):
            raise self._taken()
        copy = RemoteObject(self._node, self._key, stat)
        same = stat.version.size == incoming.size
        try:
            if same and verify == "readback":
                digest = sha256()
                for chunk in copy.chunks():
                    digest.update(chunk)
                    incoming.checked()
                same = digest.hexdigest() == incoming.sha256()
            if not same:
                # Another writer's object stays, unless it comes between this look and the delete, which takes no condition.
                copy.check_unchanged()
        except SourceChanged as error:
            raise self._taken() from error
        if not same:
            obstore.delete(self._node.store, str(self._key))
            raise CopyCorrupt(
                f"the copy of {self._key} on node {self._node.name} differs from what was written to it"
            )

    def _check_same(self) -> None:
        """Somebody else's object must not be replaced unseen."""
        now = self._node.stat(self._key)
        before = None if self.found is None else self.found.version
        if (None if now is None else now.version) != before:
            raise self._taken()

    def _taken(self) -> TargetChanged:
        return TargetChanged(f"{self._key} on node {self._node.name} was written by somebody else meanwhile")


class RemoteObject(OpenObject):
    """One version of an object in the store; read in ranges, each bound to that version's tag."""

    def __init__(self, node: ObjectNode, key: ObjectKey, stat: Stat) -> None:
        self._node = node
        self._key = key
        self.version = stat.version
        self._e_tag = stat.e_tag

    def read(self) -> bytes:
        """The whole content; see ``OpenObject.read``."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces; see ``OpenObject.chunks``."""
        size = self.version.size
        for start in range(0, size, RANGE_BYTES):
            end = min(start + RANGE_BYTES, size)
            chunk = self._fetch(start, end)
            if len(chunk) != end - start:
                raise self._changed()
            yield chunk

    def check_unchanged(self) -> None:
        """Compare with what the name holds now; see ``OpenObject.check_unchanged``. One request."""
        now = self._node.stat(self._key)
        if now is None or now.version != self.version:
            raise self._changed()

    def close(self) -> None:
        """Nothing is held open."""

    def _fetch(self, start: int, end: int) -> bytes:
        options: obstore.GetOptions = {"range": (start, end)}
        if self._e_tag is not None:
            options["if_match"] = self._e_tag
        try:
            return builtins.bytes(obstore.get(self._node.store, str(self._key), options=options).bytes())
        except (FileNotFoundError, refused.PreconditionError) as error:
            raise self._changed() from error
        except Exception as error:  # noqa: BLE001 - every kind of refusal gets its name
            self._node.failed(error, self._key)

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{self._key} on node {self._node.name} changed while it was read")
