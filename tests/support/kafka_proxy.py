"""A TCP proxy before one broker that understands enough of Kafka's protocol to lose exactly one request or answer.

In:  rules, asked for each request and each answer. Out: it is passed on, swallowed, kept, or the connection is cut.

The broker must advertise the proxy's address (``advertised``); loopback only. Rules are called in the proxy's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
#: Kafka's numbers for the requests that rules ask for.
PRODUCE: Final = 0
ADD_PARTITIONS_TO_TXN: Final = 24
ADD_OFFSETS_TO_TXN: Final = 25
END_TXN: Final = 26
TXN_OFFSET_COMMIT: Final = 28
CONSUMER_GROUP_HEARTBEAT: Final = 68


class Action(enum.Enum):
    """What happens to a frame."""

    PASS = "pass"
    #: It is never seen by the other side; the connection stays.
    SWALLOW = "swallow"
    #: The connection is closed instead of passing it on.
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client. ``frame`` is the whole of it, without its length."""

    api: int
    version: int
    correlation: int
    client_id: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The broker's answer to a request. ``frame`` begins with the correlation id."""

    request: Request
    frame: bytes


def _pass(_: object) -> Action:
    return Action.PASS


class KafkaProxy:
    """Made and ended by ``running``. ``on_request`` and ``on_answer`` may be replaced at any time."""

    def __init__(self, port: int, broker_port: int) -> None:
        self.port = port
        self.broker_port = broker_port
        self.on_request: Callable[[Request], Action] = _pass
        #: Frames: they go to the client instead.
        self.on_answer: Callable[[Answer], Action | Sequence[bytes]] = _pass
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        #: When the last request of each kind came, and what brings those of its connection.
        self._latest: dict[int, tuple[float, asyncio.AbstractEventLoop, asyncio.Task[None]]] = {}

    @property
    def bootstrap_servers(self) -> str:
        """For clients."""
        return f"{HOST}:{self.port}"

    @property
    def advertised(self) -> Mapping[str, str]:
        """For the broker's ``extra`` settings."""
        return {"advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}"}

    def pass_everything(self) -> None:
        """No rules any more."""
        self.on_request = self.on_answer = _pass

    def deliver_late(self, request: Request, timeout_s: float = 10.0) -> bytes:
        """Bring a request that was kept back to the broker after all, as a straggler of the network would come. Its answer."""
        with socket.create_connection((HOST, self.broker_port), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request.frame)) + request.frame)
            with connection.makefile("rb") as stream:
                (size,) = struct.unpack(">i", stream.read(4))
                return stream.read(size)

    def quiet_s(self, api: int) -> float:
        """Since the last request of this kind."""
        return time.monotonic() - self._latest[api][0]

    def close_connection_of(self, api: int) -> None:
        """Of the last request of this kind, as a broker closes those that are idle."""
        _, loop, task = self._latest[api]
        loop.call_soon_threadsafe(task.cancel)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Until ``stop``."""
        # Not asyncio's server: one that is closed leaves whom it is just accepting with an open socket (CPython 3.11).
        loop = asyncio.get_running_loop()
        with socket.create_server((HOST, self.port), backlog=128) as listener:
            listener.setblocking(False)
            loop.add_reader(listener, self._accept, listener)
            ready.set()
            await stop.wait()
            loop.remove_reader(listener)
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = listener.accept()
            task = asyncio.create_task(self._serve(accepted))
            self._connections[task] = accepted
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Also of a task that was cancelled before it began.
        self._connections.pop(task).close()

    async def _serve(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        try:
            # A broker that is away, a client that is gone: the other side is closed as well, and that is all.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._connection(reader, writer)
        finally:
            # What a client has not read yet is not waited for.
            writer.transport.abort()
            await _closed(writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(HOST, self.broker_port)
        waiting: dict[int, Request] = {}
        directions = [
            asyncio.create_task(self._requests(reader, broker_writer, waiting)),
            asyncio.create_task(self._answers(broker_reader, writer, waiting)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            broker_writer.transport.abort()  # nor is a broker that reads no longer
            raise
        finally:
            broker_writer.close()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            await _closed(broker_writer)

    async def _requests(
        self, reader: asyncio.StreamReader, broker: asyncio.StreamWriter, waiting: dict[int, Request]
    ) -> None:
        while True:
            frame = await _frame(reader)
            api, version, correlation, length = struct.unpack_from(">hhih", frame)
            client_id = frame[10 : 10 + max(length, 0)].decode()
            request = Request(api, version, correlation, client_id, frame)
            task = asyncio.current_task()
            assert task is not None
            self._latest[api] = (time.monotonic(), task.get_loop(), task)
            action = self.on_request(request)
            if action is Action.CUT:
                return
            if action is Action.PASS:
                waiting[correlation] = request
                broker.write(struct.pack(">i", len(frame)) + frame)
                await broker.drain()

    async def _answers(
        self, broker: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: dict[int, Request]
    ) -> None:
        while True:
            frame = await _frame(broker)
            (correlation,) = struct.unpack_from(">i", frame)
            action = self.on_answer(Answer(waiting.pop(correlation), frame))
            if action is Action.CUT:
                return
            frames = (
                {Action.PASS: [frame], Action.SWALLOW: []}[action] if isinstance(action, Action) else action
            )
            for each in frames:
                writer.write(struct.pack(">i", len(each)) + each)
            await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Until its socket is: a connection that broke is closed as well."""
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


@contextlib.contextmanager
def running(broker_port: int) -> Iterator[KafkaProxy]:
    """A proxy before the broker that listens, or will listen, on this port."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    proxy = KafkaProxy(port, broker_port)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(proxy.serve(ready, stop))
        loop.close()

    thread = threading.Thread(target=run, name="kafka proxy", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
