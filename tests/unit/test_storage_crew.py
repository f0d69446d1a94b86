from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from tests.support.waiting import eventually
from workers.storage import crew as crew_module
from workers.storage.crew import Crew

pytestmark = pytest.mark.job_processing

#: No call of a test takes that long, so one thread is always enough.
AMPLE = timedelta(seconds=60)
SHORT = timedelta(milliseconds=1)
NONE = timedelta(0)


@pytest.fixture
def make() -> Iterator[Callable[..., Crew]]:
    crews = []

    def make(patience: timedelta, limit: int = 16) -> Crew:
        crews.append(Crew(limit, patience=patience, name="test-crew"))
        return crews[-1]

    yield make
    for crew in crews:
        crew.close()
    # They end when they have heard of it: the next test counts its own.
    eventually(lambda: not threads_of_tests(), 10, "its threads have ended")


def threads_of_tests() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "test-crew"]


async def test_results_and_errors_come_back(make: Callable[..., Crew]) -> None:
    crew = make(AMPLE)

    def fail(stopped: object) -> None:
        raise ValueError("as expected")

    assert await crew.run(lambda stopped: 42) == 42
    with pytest.raises(ValueError, match="as expected"):
        await crew.run(fail)


async def test_a_panic_of_native_code_is_an_error_of_its_call(make: Callable[..., Crew]) -> None:
    class Panic(BaseException):
        pass

    def panic(stopped: object) -> None:
        raise Panic

    crew = make(AMPLE)
    with pytest.raises(Panic):
        await crew.run(panic)
    assert await crew.run(lambda stopped: 1) == 1


async def test_quick_calls_share_one_thread(make: Callable[..., Crew]) -> None:
    crew = make(AMPLE)
    names = await asyncio.gather(*(crew.run(lambda stopped: threading.get_ident()) for _ in range(200)))
    assert len(set(names)) == 1


async def test_calls_run_in_the_order_in_which_they_came(make: Callable[..., Crew]) -> None:
    crew = make(AMPLE)
    order: list[int] = []
    await asyncio.gather(*(crew.run(lambda stopped, n=n: order.append(n)) for n in range(100)))  # type: ignore[misc]
    assert order == list(range(100))


async def test_a_call_that_hangs_holds_up_nobody(make: Callable[..., Crew]) -> None:
    crew = make(SHORT)
    go_on = threading.Event()
    hanging = asyncio.create_task(crew.run(lambda stopped: go_on.wait(10)))
    results = await asyncio.gather(*(crew.run(lambda stopped, n=n: n) for n in range(50)))  # type: ignore[misc]
    assert results == list(range(50))
    assert not hanging.done()
    go_on.set()
    assert await hanging


@pytest.mark.parametrize("patience", [NONE, SHORT])
async def test_a_result_does_not_wait_for_the_call_behind_it(
    make: Callable[..., Crew], patience: timedelta
) -> None:
    """Results are handed back several at a time, but not when the next one hangs."""
    crew = make(patience, limit=1)
    go_on = threading.Event()
    first = asyncio.create_task(crew.run(lambda stopped: "done"))
    second = asyncio.create_task(crew.run(lambda stopped: go_on.wait(10)))
    assert await first == "done"
    assert not second.done()
    go_on.set()
    await second


async def test_without_patience_every_call_has_a_thread_at_once(make: Callable[..., Crew]) -> None:
    crew = make(NONE)
    together = threading.Barrier(16)
    await asyncio.gather(*(crew.run(lambda stopped: together.wait(10)) for _ in range(16)))


@pytest.mark.parametrize("patience", [NONE, SHORT])
async def test_there_are_never_more_threads_than_the_limit(
    make: Callable[..., Crew], patience: timedelta
) -> None:
    crew = make(patience, limit=3)
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def count(stopped: object) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(30)
        with lock:
            running -= 1

    await asyncio.gather(*(crew.run(count) for _ in range(30)))
    assert most == 3
    assert len(threads_of_tests()) == 3


async def test_a_cancelled_call_is_told_and_waited_for(make: Callable[..., Crew]) -> None:
    crew = make(AMPLE)
    started, events = threading.Event(), []

    def work(stopped: Callable[[], bool]) -> None:
        assert not stopped()
        started.set()
        while not stopped():  # a thread can only ask, as a copy does after each piece
            time.sleep(0.001)
        events.append("stopped")

    task = asyncio.create_task(crew.run(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events.append("cancelled")
    assert events == ["stopped", "cancelled"]


@pytest.mark.parametrize("patience", [NONE, AMPLE])
async def test_a_call_that_is_cancelled_before_its_turn_never_runs(
    make: Callable[..., Crew], patience: timedelta
) -> None:
    crew = make(patience, limit=1)
    go_on, ran = threading.Event(), []
    first = asyncio.create_task(crew.run(lambda stopped: go_on.wait(10)))
    second = asyncio.create_task(crew.run(lambda stopped: ran.append(1)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await first
    assert await crew.run(lambda stopped: "next") == "next"
    assert ran == []


async def test_a_cancelled_call_that_hangs_is_left_behind(
    make: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "LET_GO", timedelta(milliseconds=1))
    crew = make(SHORT)
    started, go_on = threading.Event(), threading.Event()

    def hang(stopped: object) -> None:
        started.set()
        go_on.wait(60)

    task = asyncio.create_task(crew.run(hang))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not go_on.is_set()
    assert await crew.run(lambda stopped: "next") == "next"
    go_on.set()


@pytest.mark.parametrize("patience", [SHORT, NONE])
async def test_another_thread_takes_the_place_of_one_that_hangs(
    make: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch, patience: timedelta
) -> None:
    """As many hanging calls as there may be threads would stop the copies between healthy nodes, until a restart."""
    monkeypatch.setattr(crew_module, "LET_GO", timedelta(0))
    crew, release = make(patience, limit=2), threading.Event()
    before = len(threads_of_tests())
    begun = threading.Semaphore(0)

    def hang(_: object) -> None:
        begun.release()
        release.wait(60)

    for _ in range(3):
        hanging = [asyncio.ensure_future(crew.run(hang)) for _ in range(2)]
        for _ in hanging:
            assert await asyncio.to_thread(begun.acquire, timeout=30)
        for one in hanging:
            one.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        async with asyncio.timeout(30):
            assert await crew.run(lambda _: "done") == "done"
    release.set()
    eventually(lambda: len(threads_of_tests()) - before <= 2, 30, "those that hung have ended")
    assert crew._left_behind == 0


@pytest.mark.parametrize("patience", [SHORT, NONE])
async def test_what_waits_already_gets_the_places_of_those_that_hang(
    make: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch, patience: timedelta
) -> None:
    """Copies between healthy nodes, while all threads wait for one that answers nobody."""
    monkeypatch.setattr(crew_module, "LET_GO", timedelta(0))
    crew, release = make(patience), threading.Event()
    begun = threading.Semaphore(0)

    def hang(_: object) -> None:
        begun.release()
        release.wait(60)

    hanging = [asyncio.ensure_future(crew.run(hang)) for _ in range(16)]
    for _ in hanging:
        assert await asyncio.to_thread(begun.acquire, timeout=30)
    waiting = [asyncio.ensure_future(crew.run(lambda _: "done")) for _ in range(3)]
    await asyncio.sleep(0)
    for one in hanging:
        one.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    async with asyncio.timeout(30):
        assert await asyncio.gather(*waiting) == ["done"] * 3
    release.set()


@pytest.mark.parametrize("patience", [NONE, SHORT])
@pytest.mark.parametrize("how", ["cancelled, ends between", "cancelled, ends later", "pending, ends later"])
def test_another_event_loop_can_follow(make: Callable[..., Crew], patience: timedelta, how: str) -> None:
    """Also when the first one was given up with a call on its way."""
    crew = make(patience)
    started, go_on = threading.Event(), threading.Event()

    def late(stopped: object) -> None:
        started.set()
        go_on.wait(10)

    errors: list[object] = []

    async def follow() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, error: errors.append(error))
        assert await crew.run(lambda stopped: 1) == 1
        go_on.set()
        while crew._started_at:
            await asyncio.sleep(0)
        numbers = range(40)
        assert await asyncio.gather(*(crew.run(lambda stopped, n=n: n) for n in numbers)) == list(numbers)  # type: ignore[misc]

    first = asyncio.new_event_loop()
    task = first.create_task(crew.run(late))
    first.run_until_complete(asyncio.sleep(0))
    assert started.wait(10)
    if how.startswith("cancelled"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crew_module, "LET_GO", timedelta(milliseconds=1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                first.run_until_complete(task)
    first.close()
    if how.endswith("between"):
        go_on.set()
        eventually(lambda: not crew._started_at, 10, "the call has ended")
    asyncio.run(asyncio.wait_for(follow(), 10))
    assert errors == []
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it was given up on purpose


@pytest.mark.parametrize("patience", [NONE, AMPLE])
async def test_closing_ends_the_threads_after_what_waits_and_a_later_call_gets_new_ones(
    make: Callable[..., Crew], patience: timedelta
) -> None:
    crew = make(patience)
    await asyncio.gather(*(crew.run(lambda stopped: None) for _ in range(5)))
    threads = threads_of_tests()
    assert threads
    waiting = asyncio.create_task(crew.run(lambda stopped: "still done"))
    await asyncio.sleep(0)
    crew.close()
    assert await waiting == "still done"
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    crew.close()
    for _ in range(2):
        assert await asyncio.gather(*(crew.run(lambda stopped: 1) for _ in range(20))) == [1] * 20
        crew.close()
    eventually(lambda: not threads_of_tests(), 10, "none is left")
    assert (crew._threads, crew._idle, crew._called) == (0, 0, 0)


async def test_a_crew_that_is_closed_all_the_time_forgets_no_call(make: Callable[..., Crew]) -> None:
    """Two managers may have one handler, and one of them stop while the other one works."""
    crew = make(SHORT, limit=4)
    closing = True

    async def close() -> None:
        while closing:
            crew.close()
            await asyncio.sleep(0)

    closer = asyncio.create_task(close())
    async with asyncio.timeout(30):
        for _ in range(50):
            assert await asyncio.gather(*(crew.run(lambda stopped: 1) for _ in range(8))) == [1] * 8
    closing = False
    await closer
    crew.close()
    eventually(lambda: not threads_of_tests(), 10, "none is left")
    assert (crew._threads, crew._idle, crew._called) == (0, 0, 0)


@pytest.mark.parametrize("patience", [NONE, timedelta(microseconds=50), SHORT])
async def test_no_call_is_ever_forgotten(make: Callable[..., Crew], patience: timedelta) -> None:
    """Threads that come and go all the time lose neither a call nor count of each other."""
    crew = make(patience, limit=4)

    def work(n: int) -> int:
        time.sleep(0.0001 * (n % 3))  # work that takes now more, now less than the threads' patience
        return 1

    async def one_after_another(many: int) -> int:
        total = 0
        for n in range(many):
            total += await crew.run(lambda stopped, n=n: work(n))  # type: ignore[misc]
        return total

    async with asyncio.timeout(30):
        assert await asyncio.gather(*(one_after_another(60) for _ in range(10))) == [60] * 10
        while crew._idle < crew._threads:
            await asyncio.sleep(0)
    assert crew._called == 0
    assert not crew._waiting
    assert not crew._started_at


def no_more_threads(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("patience", [AMPLE, NONE])
async def test_a_thread_that_the_system_refuses_costs_one_call(
    make: Callable[..., Crew], patience: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = make(patience)
    ran: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError, match="gives no thread"):
            await crew.run(lambda stopped: ran.append(1))
    async with asyncio.timeout(30):
        await crew.run(lambda stopped: ran.append(2))
    assert ran == [2]


async def test_where_the_system_gives_no_second_thread_a_call_waits_for_the_first(
    make: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = make(NONE)
    running, go_on = threading.Event(), threading.Event()

    def first(stopped: object) -> int:
        running.set()
        go_on.wait(30)
        return 1

    one = asyncio.create_task(crew.run(first))
    while not running.is_set():  # not in a thread of the loop's own: to end those it starts one more
        await asyncio.sleep(0)
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    two = asyncio.create_task(crew.run(lambda stopped: 2))
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(30):
        assert (await one, await two) == (1, 2)
