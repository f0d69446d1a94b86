"""One large object, read once, to several nodes at the same time.

In:  an open object and a function per target. Out: its hash, and each target's error or None.

The calling thread reads and hashes; each target writes and verifies in a thread of its own, fed through a
short queue, so memory stays flat and the slowest target sets the pace. A target that fails stops taking; the
others go on. A copy is published only after the end of the stream, and the stream ends only if the source was
the same from its first to its last byte and is what the job expects.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Final

from workers.storage.errors import SourceChanged
from workers.storage.node import Incoming, OpenObject

#: Chunks on their way to one target. With chunks of 1 to 4 MiB: at most 16 MiB, shared between the targets.
QUEUE_CHUNKS: Final = 4
#: While a target is behind, the run's own checks (was it cancelled?) are repeated this often.
_PATIENCE_S: Final = 0.5

#: Writes the content to one node; raises if it could not.
Write = Callable[[Incoming], None]


class _End:
    """The stream is complete and may be published."""


_END: Final = _End()


class Lane(Incoming):
    """The way to one target."""

    def __init__(self, size: int, on_checked: Callable[[], None], before_publish: Callable[[], None]) -> None:
        self.size = size
        self._on_checked = on_checked
        self._before_publish = before_publish
        self._queue: queue.Queue[bytes | BaseException | _End] = queue.Queue(QUEUE_CHUNKS)
        self._digest = ""
        self.closed = False

    def chunks(self) -> Iterator[bytes]:
        """See ``Incoming.chunks``. Raises what made the reader give up."""
        while True:
            match self._queue.get():
                case bytes() as chunk:
                    yield chunk
                case _End():
                    return
                case BaseException() as error:
                    raise error

    def sha256(self) -> str:
        """See ``Incoming.sha256``."""
        return self._digest

    def checked(self) -> None:
        """See ``Incoming.checked``."""
        self._on_checked()

    def before_publish(self) -> None:
        """See ``Incoming.before_publish``."""
        self._before_publish()

    def put(self, piece: bytes | _End, while_waiting: Callable[[], None]) -> None:
        """Hand on a piece; waits while the target is behind, returns at once when it has given up."""
        while not self.closed:
            try:
                self._queue.put(piece, timeout=_PATIENCE_S)
            except queue.Full:
                while_waiting()
            else:
                return

    def finish(self, digest: str, while_waiting: Callable[[], None]) -> None:
        """Tell the target that all has come."""
        self._digest = digest
        self.put(_END, while_waiting)

    def abort(self, error: BaseException) -> None:
        """Tell the target to give up, before anything that still waits for it."""
        self._empty()
        self._queue.put(error)

    def close(self) -> None:
        """Called by the target's thread when it takes no more."""
        self.closed = True
        self._empty()  # the reader may be waiting for room

    def _empty(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return


def fan_out(
    source: OpenObject,
    writes: Mapping[str, Write],
    *,
    on_chunk: Callable[[int], None],
    on_checked: Callable[[], None],
    check_digest: Callable[[str], None],
    before_publish: Callable[[], None],
) -> tuple[str | None, dict[str, BaseException | None]]:
    """Read the source once and give it to every write.

    Args:
        source: what to read.
        writes: target name to the function that stores it there.
        on_chunk: called with the size of each piece, and with 0 now and then while a target is behind; raises
            to stop.
        on_checked: called by each target for each piece of its copy that it has read again; raises to stop that one.
        check_digest: called with the hash of the whole; raises to stop.
        before_publish: called by each target just before its copy becomes visible; raises to stop.

    Returns:
        The hash (None if every target had failed before the end) and, for each target, its error or None.

    Raises:
        Exception: what reading, ``on_chunk``, ``check_digest`` or ``before_publish`` (before the end of the
            stream) raised. All targets have given up by then, and nothing was published.
    """
    lanes = {name: Lane(source.version.size, on_checked, before_publish) for name in writes}
    errors: dict[str, BaseException | None] = dict.fromkeys(writes)
    threads: list[threading.Thread] = []
    try:
        for name, write in writes.items():
            thread = threading.Thread(
                target=_serve, args=(name, lanes[name], write, errors), name=f"copy-to-{name}", daemon=True
            )
            thread.start()
            threads.append(thread)
        digest = _read(source, lanes, on_chunk)
        if digest is not None:
            check_digest(digest)
            before_publish()
    except BaseException as error:
        for lane in lanes.values():
            lane.abort(error)
        for thread in threads:
            thread.join()
        raise
    if digest is not None:
        _finish(lanes, digest, on_chunk)
    for thread in threads:
        thread.join()
    return digest, errors


def _read(source: OpenObject, lanes: Mapping[str, Lane], on_chunk: Callable[[int], None]) -> str | None:
    hasher = sha256()
    seen = 0
    for chunk in source.chunks():
        on_chunk(len(chunk))
        seen += len(chunk)
        # To the targets first: they write while this thread hashes.
        for lane in lanes.values():
            lane.put(chunk, lambda: on_chunk(0))
        hasher.update(chunk)
        if all(lane.closed for lane in lanes.values()):
            return None
    if seen != source.version.size:
        raise SourceChanged(f"{seen:,} of {source.version.size:,} bytes came: the source changed meanwhile")
    return hasher.hexdigest()


def _finish(lanes: Mapping[str, Lane], digest: str, on_chunk: Callable[[int], None]) -> None:
    """Let the targets publish. From here on each fails by itself."""
    for lane in lanes.values():
        try:
            lane.finish(digest, lambda: on_chunk(0))
        except Exception as error:  # noqa: BLE001 - reported as this target's result
            lane.abort(error)


def _serve(name: str, lane: Lane, write: Write, errors: dict[str, BaseException | None]) -> None:
    try:
        write(lane)
    except BaseException as error:  # noqa: BLE001 - a panic of native code too: it is this target's result
        errors[name] = error
    finally:
        lane.close()
