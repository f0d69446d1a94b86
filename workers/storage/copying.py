"""Bring one object from the node that has it to the nodes that should.

In:  a ``CopyOrder`` (which object, from where, how checked) and the nodes. Out: a ``CopyReport`` that says,
for each target, whether the copy is complete and why not; or a ``StorageError`` if no target could be served.

Everything here blocks; a run belongs to one thread. Running it again does only what is missing.

1. The source is opened and its version remembered.
2. Every target is looked at. The same content is left alone: sizes first, then the content itself (bytes for
   small objects, SHA-256 of both sides for large ones); time stamps and etags are never believed. A name that
   is a hard link to the source, or to another target, is no copy and is replaced by one.
3. Where something is missing, a new copy is written and published in one step, unless the source has changed
   in between. A directory's copy is checked before that step; a store's after it, and removed if it is wrong.
4. Targets that were left alone are looked at once more if another one was written: where two nodes are one
   directory, the second copy has replaced the first.
5. The source is looked at once more: if it changed, what was published is a complete copy of an old version,
   and the run fails so that the next one replaces it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Final, Literal

from workers.storage.errors import (
    NodeUnreachable,
    SourceChanged,
    SourceCorrupt,
    Stopped,
    StorageError,
    TargetChanged,
    TargetExists,
    WholeJobError,
    public_message,
)
from workers.storage.fanout import fan_out
from workers.storage.keys import ObjectKey
from workers.storage.node import SMALL_BYTES, Incoming, Node, OpenObject, Place, Ticket, Verify

#: When a target that holds something is replaced.
Overwrite = Literal["if_different", "never", "always"]
State = Literal["COMPLETED", "ALREADY_OK", "FAILED"]

#: From this size on, progress is reported.
PROGRESS_BYTES: Final = 64 << 20
_PROGRESS_STEP_BYTES: Final = 16 << 20


def _never() -> bool:
    return False


def _unseen() -> None:
    """Nobody looks."""


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
        doubt: why some other node may have a newer object than the source; then nothing that stands is replaced. None: nobody may.
        verify: how a fresh copy is checked.
        stopped: asked between any two pieces, and while a node keeps the others waiting; True ends the run with ``Stopped``.
        step: called after each piece that was read, or read again, and each small thing that was done; not while waiting.
        progress: called with (bytes done, bytes in all) for objects over 64 MiB.
    """

    key: ObjectKey
    ticket: Ticket
    expected_sha256: str | None = None
    expected_size: int | None = None
    overwrite: Overwrite = "if_different"
    doubt: str | None = None
    verify: Verify = "readback"
    stopped: Callable[[], bool] = _never
    step: Callable[[], None] = _unseen
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
    def failed(cls, error: BaseException) -> TargetResult:
        """The result of a target that failed with this error."""
        if isinstance(error, StorageError):
            return cls("FAILED", str(error), error.name, error.retryable)
        # Not one of ours, so nothing is known about the next run: let it try.
        kind = type(error).__name__
        return cls("FAILED", public_message(f"{kind}: {error}"), kind, retryable=True)


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

    whole: bytes

    def __init__(self, content: bytes, digest: str, before_publish: Callable[[], None]) -> None:
        self.whole = content
        self.size = len(content)
        self._digest = digest
        self._before_publish = before_publish

    def chunks(self) -> Iterator[bytes]:
        yield self.whole

    def sha256(self) -> str:
        return self._digest

    def checked(self) -> None:
        """It is read again in one piece."""

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
        return copy_opened(order, source, targets)


def copy_opened(order: CopyOrder, source: OpenObject, targets: Mapping[str, Node]) -> CopyReport:
    """The same for a source that is open already; the caller closes it."""
    size = source.version.size
    if order.expected_size is not None and size != order.expected_size:
        raise SourceCorrupt(
            f"the source of {order.key} has {size:,} bytes, the job expects {order.expected_size:,}"
        )
    run = _Run(order, source, targets)
    try:
        run.look_at_targets()
        if size <= SMALL_BYTES:
            run.copy_small()
        else:
            run.copy_large()
        run.look_again()
        source.check_unchanged()
    finally:
        run.close()
    return CopyReport(size, run.digest, {name: run.results[name] for name in targets})


class _Run:
    """One pass over the targets."""

    def __init__(self, order: CopyOrder, source: OpenObject, targets: Mapping[str, Node]) -> None:
        self.order = order
        self.source = source
        self.targets = targets
        self.small = source.version.size <= SMALL_BYTES
        self.places: dict[str, Place] = {}
        self.results: dict[str, TargetResult] = {}
        self.digest: str | None = None
        self._seen = 0
        self._told = 0

    def close(self) -> None:
        for place in self.places.values():
            place.close()

    def look_at_targets(self) -> None:
        """Find out what the targets hold now; ``results`` has those that cannot be asked."""

        def look(name: str) -> None:
            self.places[name] = self.targets[name].look(self.order.key)

        self._settle(self._each(look, list(self.targets)))

    def copy_small(self) -> None:
        """Read the source whole, compare it with each target, write where it differs."""
        content = self.source.read()
        self.digest = sha256(content).hexdigest()
        self._check_digest(self.digest)
        incoming = _Small(content, self.digest, self._before_publish)
        comparable = self._comparable()

        def bring(name: str) -> None:
            found = self.places[name].found
            if found is not None and name in comparable and _holds(found, content):
                self._already_ok(name)
            else:
                self._write(name, incoming)

        self._settle(self._each(bring, self._open_targets()))

    def copy_large(self) -> None:
        """Hash both sides where sizes agree; then read the source once for all that need it."""
        comparable = self._comparable()
        if comparable:
            self._compare(comparable)
        writes: dict[str, Callable[[Incoming], None]] = {}
        for name in self._open_targets():
            try:
                self._check_overwrite(name)
            except (TargetExists, NodeUnreachable) as error:
                self.results[name] = TargetResult.failed(error)
            else:
                writes[name] = partial(self._write, name)
        if not writes:
            return
        digest, errors = fan_out(
            self.source,
            writes,
            on_chunk=self._on_chunk,
            on_checked=self._go_on,
            check_digest=self._check_digest,
            before_publish=self._before_publish,
        )
        self.digest = digest or self.digest
        self._settle(errors)

    def look_again(self) -> None:
        """What was there already must have outlived what this run wrote: two nodes may be one directory."""

        def look(name: str) -> None:
            found = self.places[name].found
            try:
                if found is not None:
                    found.check_unchanged()
            except SourceChanged as error:
                raise TargetChanged(
                    f"{self.order.key} on node {name} was written meanwhile; "
                    "is the directory of another target the same one?"
                ) from error

        states = {name: result.state for name, result in self.results.items()}
        if "COMPLETED" in states.values():
            self._settle(self._each(look, [name for name in states if states[name] == "ALREADY_OK"]))

    def _compare(self, comparable: Mapping[str, OpenObject]) -> None:
        digests: dict[str, str] = {}
        opened = {"": self.source, **comparable}  # "" is no node's name

        def hash_of(name: str) -> None:
            digest = sha256()
            for chunk in opened[name].chunks():
                self._go_on()
                digest.update(chunk)
            digests[name] = digest.hexdigest()

        errors = self._each(hash_of, list(opened))
        source_error = errors.pop("")
        if source_error is not None:
            raise source_error
        self.digest = digests[""]
        self._check_digest(self.digest)
        for name, error in errors.items():
            if error is None and digests[name] == self.digest:
                self._settle(self._each(self._already_ok, [name]))
            elif isinstance(error, SourceChanged):
                continue  # the target is being written by somebody else: not the same, as far as we know
            elif error is not None:
                self._settle({name: error})

    def _already_ok(self, name: str) -> None:
        # A run that was killed just after it published has left its temporary name, and may not have flushed the copy.
        self.places[name].keep(self.order.ticket)
        self.results[name] = TargetResult("ALREADY_OK")

    def _write(self, name: str, incoming: Incoming) -> None:
        self._check_overwrite(name)
        self.places[name].write(incoming, self.order.ticket, verify=self.order.verify)
        self.results[name] = TargetResult("COMPLETED")

    def _check_overwrite(self, name: str) -> None:
        if self.places[name].found is None:
            return
        what = f"node {name} holds something else under {self.order.key}"
        if self.order.overwrite == "never":
            raise TargetExists(f"{what}; overwrite is 'never'")
        if self.order.doubt is not None:
            raise NodeUnreachable(f"{what}, which may be newer than the source: {self.order.doubt}")

    def _comparable(self) -> dict[str, OpenObject]:
        """The targets that may hold the same content, as far as size and place tell."""
        if self.order.overwrite == "always":
            return {}
        taken = {self.source.version.place}
        comparable = {}
        for name in self._open_targets():
            found = self.places[name].found
            if found is None:
                continue
            own = found.version.place is None or found.version.place not in taken
            taken.add(found.version.place)
            if own and found.version.size == self.source.version.size:
                comparable[name] = found
        return comparable

    def _open_targets(self) -> list[str]:
        return [name for name in self.targets if name not in self.results]

    def _on_chunk(self, size: int) -> None:
        self._check_stopped()
        if size:
            self.order.step()
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

    def _go_on(self) -> None:
        """After a piece, if anybody still wants the rest."""
        self.order.step()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self.order.stopped():
            raise Stopped(f"the run was cancelled; {self.order.key} was not published")

    def _settle(self, errors: Mapping[str, BaseException | None]) -> None:
        """Keep each target's failure; a failure of the source or the run is everybody's."""
        for name, error in errors.items():
            if error is None:
                continue
            if isinstance(error, WholeJobError | KeyboardInterrupt | SystemExit):
                raise error
            self.results[name] = TargetResult.failed(error)

    def _each(self, function: Callable[[str], None], names: list[str]) -> dict[str, BaseException | None]:
        """Call the function for every name.

        Side by side for large objects and for nodes across the network; else a thread costs more than it gains,
        also where each copy is flushed to the disk (there other jobs run meanwhile: 900 objects/s instead of 600).
        """
        errors: dict[str, BaseException | None] = {}

        def call(name: str) -> None:
            try:
                function(name)
            except BaseException as error:  # noqa: BLE001 - a panic of native code too: it is this target's result
                errors[name] = error
            else:
                errors[name] = None
            self.order.step()

        if self.small:
            beside = [name for name in names if self.targets[name].waits_for == "network"]
            if len(beside) == len(names):
                beside = beside[1:]
        else:
            beside = names[1:]
        threads: dict[str, threading.Thread] = {}
        for name in beside:
            thread = threading.Thread(target=call, args=(name,), name=f"copy-{name}", daemon=True)
            with contextlib.suppress(RuntimeError):  # the system gives no more: it is done in this one
                thread.start()
                threads[name] = thread
        for name in names:
            if name not in threads:
                call(name)
        for thread in threads.values():
            thread.join()
        return errors


def _holds(target: OpenObject, content: bytes) -> bool:
    try:
        return target.read() == content
    except SourceChanged:
        # It is the target that is being written by somebody else: not the same, as far as we know.
        return False
