"""What those who wait for a job get to hear of its statuses."""

from __future__ import annotations

import asyncio

import pytest

from schemas.codec import Codec
from schemas.errors import KafkaUnreachable, QueueClosed, UnknownSchema
from schemas.records import StatusChange, StatusWriter, decode_status
from streams.jobinfo import StatusSeen
from streams.settings import load_settings
from streams.watch import StatusWatch
from tests.support.statuses import JOB_ID, status

pytestmark = pytest.mark.job_processing

CHANGE = status()
VALUE = StatusWriter(Codec()).encode(CHANGE)
#: As a worker writes it that has another registry number, or another release's schema.
NUMBERED = b"\x00\x00\x00\x00\x07" + VALUE[10:]
PLACE = ("t.jobs.status", 0, 5)


async def heard(look_up: list[StatusChange]) -> list[StatusSeen | Exception]:
    """What a listener hears of the record if the look-up knows these."""

    def read(value: bytes) -> StatusChange:
        assert value == NUMBERED
        if not look_up:
            raise UnknownSchema(value[:5])
        return look_up[0]

    told: list[StatusSeen | Exception] = []
    watch = StatusWatch(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), Codec(), read)
    watch._listeners[JOB_ID] = [told.append]
    await watch._hand_out(JOB_ID.encode(), NUMBERED, PLACE)
    return told


async def test_a_status_of_a_schema_that_is_new_here_is_looked_up_and_handed_out() -> None:
    """Left out, whoever waits for the job would wait for ever."""
    with pytest.raises(UnknownSchema):
        decode_status(Codec(), NUMBERED)
    assert await heard([CHANGE]) == [StatusSeen(CHANGE, PLACE)]


async def test_a_status_of_a_schema_that_nobody_knows_is_left_out() -> None:
    assert await heard([]) == []


@pytest.mark.parametrize("already_reading", [True, False])
async def test_who_waits_is_told_when_the_watch_is_closed(
    monkeypatch: pytest.MonkeyPatch, *, already_reading: bool
) -> None:
    """Nobody else would ever end the waiting."""
    told: asyncio.Queue[StatusSeen | Exception] = asyncio.Queue()

    async def reading(started: asyncio.Future[None]) -> None:
        if already_reading:
            started.set_result(None)
        await asyncio.Event().wait()

    async def waiting() -> object:
        async with watch.listening(JOB_ID, told.put_nowait):
            return await told.get()

    watch = StatusWatch(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), Codec(), lambda _: CHANGE)
    monkeypatch.setattr(watch, "_run", reading)
    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)  # it is in there now
    await watch.close()
    (outcome,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 10)
    assert isinstance(outcome, QueueClosed)
    (later,) = await asyncio.gather(waiting(), return_exceptions=True)
    assert isinstance(later, QueueClosed)


async def test_closing_waits_for_a_failed_reading_to_let_go_of_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who leaves the loop at once would end with sockets open, and a warning of a task that was destroyed."""
    stopped = False

    class Consumer:
        def __init__(self, **_: object) -> None:
            """It connects when it is started."""

        async def start(self) -> None:
            raise KafkaUnreachable("127.0.0.1:1", 1.0)

        async def stop(self) -> None:
            nonlocal stopped
            for _ in range(9):
                await asyncio.sleep(0)
            stopped = True

    watch = StatusWatch(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), Codec(), lambda _: CHANGE)
    monkeypatch.setattr("streams.watch.AIOKafkaConsumer", Consumer)
    monkeypatch.setattr(watch, "_stable_ends", dict)
    with pytest.raises(KafkaUnreachable):
        async with watch.listening(JOB_ID, lambda _: None):
            pytest.fail("nobody reads")
    assert not stopped
    await watch.close()
    assert stopped


async def test_who_listens_again_while_a_failed_reading_comes_to_its_end_gets_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the old one nobody reads any more: the caller would wait for ever."""
    readings = 0
    ending = asyncio.Event()

    class Consumer:
        def __init__(self, **_: object) -> None:
            nonlocal readings
            readings += 1

        async def start(self) -> None:
            """At once."""

        def assign(self, _: object) -> None:
            """Nothing is assigned."""

        async def getmany(self, timeout_ms: int) -> dict[object, list[object]]:
            if readings == 1:
                raise KafkaUnreachable("127.0.0.1:1", 1.0)
            await asyncio.Event().wait()
            return {}

        async def stop(self) -> None:
            await ending.wait()  # asyncio's tasks take their time

    told: asyncio.Queue[StatusSeen | Exception] = asyncio.Queue()
    watch = StatusWatch(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), Codec(), lambda _: CHANGE)
    monkeypatch.setattr("streams.watch.AIOKafkaConsumer", Consumer)
    monkeypatch.setattr(watch, "_stable_ends", dict)
    async with watch.listening(JOB_ID, told.put_nowait):
        assert isinstance(await asyncio.wait_for(told.get(), 10), KafkaUnreachable)
        async with asyncio.timeout(10), watch.listening(JOB_ID, told.put_nowait):
            assert readings == 2
    ending.set()
    await watch.close()
