"""Bring one object from the node that has it to the nodes that should.

In:  a ``CopyOrder`` (which object, from where, how checked) and the nodes. Out: a ``CopyReport`` that says, for
each target, whether the copy is complete and why not; or a ``StorageError`` if no target could be served.

Everything here blocks; a run belongs to one thread. Running it again does only what is missing.

1. The source is opened and its version remembered.
2. Every target is looked at. The same content is left alone (sizes first, then the content itself: bytes for
   small objects, SHA-256 of both sides for large ones; time stamps and etags are never believed). A name that is a
   hard link to the source, or to another target, is no copy and is replaced by one.
3. Where something is missing, a new copy is written beside its place, checked, and published in one step, unless
   the source has changed in between.
4. The source is looked at once more: if it changed, what was published is a complete copy of an old version, and
   the run fails so that the next one replaces it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal

from schemas.errors import PermanentError
from workers.storage.errors import (
    ObjectMissing,
    SourceChanged,
    SourceCorrupt,
    Stopped,
    StorageError,
    TargetExists,
    WholeJobError,
    public_message,
)
from workers.storage.fanout import fan_out
from workers.storage.keys import ObjectKey
from workers.storage.node import SMALL_BYTES, Incoming, Node, OpenObject, Ticket, Verify

#: When a target that holds something is replaced.
Overwrite = Literal["if_different", "never", "always"]
State = Literal["COMPLETED", "ALREADY_OK", "FAILED"]

#: From this size on, progress is reported.
PROGRESS_BYTES: Final = 64 << 20
_PROGRESS_STEP_BYTES: Final = 16 << 20


def _never() -> bool:
    return False


def _silent(done: int, total: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """What shall be copied, and how.

    Attributes:
        key: the object.
        ticket: in whose name copies are written.
        expected_sha256: hash that the source must have, lower-case hex; None accepts any.
        expected_size: size that it must have.
        overwrite: when a target that holds something else, or the same, is replaced.
        verify: how a fresh copy is checked.
        stopped: asked between any two pieces; True ends the run with ``Stopped``.
        progress: called with (bytes done, bytes in all) for objects over 64 MiB.
    """

    key: ObjectKey
    ticket: Ticket
    expected_sha256: str | None = None
    expected_size: int | None = None
    overwrite: Overwrite = "if_different"
    verify: Verify = "readback"
    stopped: Callable[[], bool] = _never
    progress: Callable[[int, int], None] = _silent


@dataclass(frozen=True, slots=True)
class TargetResult:
    """How one target stands after the run.

    Attributes:
        state: "COMPLETED" was copied and checked by this run, "ALREADY_OK" held the same content before it.
        error: why it failed.
        error_type: the error's short name.
        retryable: whether a later run may succeed.
    """

    state: State
    error: str | None = None
    error_type: str | None = None
    retryable: bool = False

    @classmethod
    def failed(cls, error: Exception) -> TargetResult:
        """The result of a target that failed with this error."""
        if isinstance(error, StorageError):
            return cls("FAILED", str(error), error.name, error.retryable)
        # Not one of ours, so nothing is known about the next run: let it try.
        text = public_message(f"{type(error).__name__}: {error}")
        return cls("FAILED", text, type(error).__name__, not isinstance(error, PermanentError))


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What one run has done.

    Attributes:
        size: of the object, in bytes.
        sha256: of its content, in hex; None if it was not read to its end.
        targets: node name to result.
    """

    size: int
    sha256: str | None
    targets: Mapping[str, TargetResult] = field(default_factory=dict)

    def count(self, state: State) -> int:
        """How many targets are in this state."""
        return sum(target.state == state for target in self.targets.values())


class _Small(Incoming):
    """A small object on its way: all of it is in memory."""

    def __init__(self, content: bytes, digest: str, before_publish: Callable[[], None]) -> None:
        self.whole = content
        self.size = len(content)
        self._digest = digest
        self._before_publish = before_publish

    def chunks(self) -> Iterator[bytes]:
        assert self.whole is not None  # noqa: S101 - for the type checker
        yield self.whole

    def sha256(self) -> str:
        return self._digest

    def before_publish(self) -> None:
        self._before_publish()


def copy_object(order: CopyOrder, source_node: Node, targets: Mapping[str, Node]) -> CopyReport:
    """Bring the object to every target; see the module's text.

    Raises:
        ObjectMissing: the source node does not have it.
        SourceChanged: it changed during the run.
        SourceCorrupt: it is not what the order expects; nothing was copied.
        Stopped: ``order.stopped`` said so.
        StorageError: the source cannot be read.
    """
    with source_node.open(order.key) as source:
        return copy_opened(order, source, targets, local=source_node.local)


def copy_opened(
    order: CopyOrder, source: OpenObject, targets: Mapping[str, Node], *, local: bool
) -> CopyReport:
    """The same for a source that is open already. ``local``: it is on a local node."""
    size = source.version.size
    if order.expected_size is not None and size != order.expected_size:
        raise SourceCorrupt(
            f"the source of {order.key} has {size:,} bytes, the job expects {order.expected_size:,}"
        )
    run = _Run(order, source, targets, one_by_one=local and all(node.local for node in targets.values()))
    try:
        run.look_at_targets()
        run.copy_small() if size <= SMALL_BYTES else run.copy_large()
        source.check_unchanged()
    finally:
        run.close()
    return CopyReport(size, run.digest, {name: run.results[name] for name in targets})


class _Run:
    """One pass over the targets."""

    def __init__(
        self, order: CopyOrder, source: OpenObject, targets: Mapping[str, Node], *, one_by_one: bool
    ) -> None:
        self.order = order
        self.source = source
        self.targets = targets
        # Small objects between local nodes: a thread per target costs more than it gains.
        self.one_by_one = one_by_one and source.version.size <= SMALL_BYTES
        self.found: dict[str, OpenObject] = {}
        self.results: dict[str, TargetResult] = {}
        self.digest: str | None = None
        self._seen = 0
        self._told = 0

    def close(self) -> None:
        for found in self.found.values():
            found.close()

    def look_at_targets(self) -> None:
        """Open what the targets hold now; ``results`` has those that cannot be asked."""

        def look(name: str) -> None:
            try:
                self.found[name] = self.targets[name].open(self.order.key)
            except ObjectMissing:
                pass  # that is what this job is for

        self._settle(self._each(look, self.targets))

    def copy_small(self) -> None:
        """Read the source whole, compare it with each target, write where it differs."""
        content = self.source.read()
        self.digest = sha256(content).hexdigest()
        self._check_digest(self.digest)
        incoming = _Small(content, self.digest, self._before_publish)
        places = self._places()

        def bring(name: str) -> None:
            if self._may_be_same(name, places) and _holds(self.found[name], content):
                self.results[name] = TargetResult("ALREADY_OK")
                return
            self._write(name, incoming)

        self._settle(self._each(bring, self._open_targets()))

    def copy_large(self) -> None:
        """Hash both sides where sizes agree; then read the source once for all that need it."""
        places = self._places()
        same_size = [name for name in self._open_targets() if self._may_be_same(name, places)]
        if same_size:
            self._compare(same_size)
        writes: dict[str, Callable[[Incoming], None]] = {}
        for name in self._open_targets():
            try:
                self._check_overwrite(name)
            except TargetExists as error:
                self.results[name] = TargetResult.failed(error)
            else:
                writes[name] = lambda incoming, name=name: self._write(name, incoming)  # type: ignore[misc]
        if not writes:
            return
        self._seen = self._told = 0
        digest, errors = fan_out(
            self.source,
            writes,
            on_chunk=self._on_chunk,
            check_digest=self._check_digest,
            before_publish=self._before_publish,
        )
        self.digest = digest or self.digest
        self._settle(errors)

    def _compare(self, names: list[str]) -> None:
        digests: dict[str, str] = {}

        def hash_of(name: str) -> None:
            opened = self.found[name] if name else self.source
            digest = sha256()
            for chunk in opened.chunks():
                if self.order.stopped():
                    raise Stopped(f"the run was cancelled while {self.order.key} was being compared")
                digest.update(chunk)
            digests[name] = digest.hexdigest()

        # "" is no node's name: the source.
        errors = self._each(hash_of, ["", *names])
        source_error = errors.pop("")
        if source_error is not None:
            raise source_error
        self.digest = digests[""]
        self._check_digest(self.digest)
        # A target that changed while it was compared is simply not the same: it is written.
        self._settle({name: error for name, error in errors.items() if isinstance(error, Stopped)})
        for name in names:
            if digests.get(name) == self.digest:
                self.results[name] = TargetResult("ALREADY_OK")

    def _write(self, name: str, incoming: Incoming) -> None:
        self._check_overwrite(name)
        self.targets[name].write(
            self.order.key,
            incoming,
            self.order.ticket,
            verify=self.order.verify,
            overwrite=name in self.found,
        )
        self.results[name] = TargetResult("COMPLETED")

    def _check_overwrite(self, name: str) -> None:
        if name in self.found and self.order.overwrite == "never":
            raise TargetExists(
                f"node {name} holds something else under {self.order.key}; overwrite is 'never'"
            )

    def _may_be_same(self, name: str, places: Mapping[str, bool]) -> bool:
        found = self.found.get(name)
        return (
            found is not None
            and self.order.overwrite != "always"
            and found.version.size == self.source.version.size
            and places[name]
        )

    def _places(self) -> dict[str, bool]:
        """For each target that holds something: whether its bytes lie at a place of their own."""
        taken = {self.source.version.place}
        own = {}
        for name, found in self.found.items():
            place = found.version.place
            own[name] = place is None or place not in taken
            taken.add(place)
        return own

    def _open_targets(self) -> list[str]:
        return [name for name in self.targets if name not in self.results]

    def _on_chunk(self, size: int) -> None:
        self._check_stopped()
        self._seen += size
        total = self.source.version.size
        if total > PROGRESS_BYTES and self._seen - self._told >= _PROGRESS_STEP_BYTES:
            self._told = self._seen
            self.order.progress(self._seen, total)

    def _check_digest(self, digest: str) -> None:
        expected = self.order.expected_sha256
        if expected is not None and digest != expected:
            raise SourceCorrupt(
                f"the source of {self.order.key} has the SHA-256 {digest}, the job expects {expected}"
            )

    def _before_publish(self) -> None:
        self._check_stopped()
        self.source.check_unchanged()

    def _check_stopped(self) -> None:
        if self.order.stopped():
            raise Stopped(f"the run was cancelled; {self.order.key} was not published")

    def _settle(self, errors: Mapping[str, Exception | None]) -> None:
        """Keep each target's failure; a failure of the source or the run is everybody's."""
        for name, error in errors.items():
            if error is None:
                continue
            if isinstance(error, WholeJobError):
                raise error
            self.results[name] = TargetResult.failed(error)

    def _each(
        self, function: Callable[[str], None], names: Mapping[str, Node] | list[str]
    ) -> dict[str, Exception | None]:
        """Call the function for every name, side by side unless that costs more than it gains."""
        errors: dict[str, Exception | None] = {}

        def call(name: str) -> None:
            try:
                function(name)
            except Exception as error:  # noqa: BLE001 - becomes this target's result
                errors[name] = error
            else:
                errors[name] = None

        if self.one_by_one or len(names) == 1:
            for name in names:
                call(name)
            return errors
        threads = [
            threading.Thread(target=call, args=(name,), name=f"copy-{name}", daemon=True) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors


def _holds(target: OpenObject, content: bytes) -> bool:
    try:
        return target.read() == content
    except SourceChanged:
        # It is the target that is being written by somebody else: not the same, as far as we know.
        return False
