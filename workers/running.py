"""Run a worker until a signal says stop: what the commands ``worker`` and ``up`` share.

In:  a manager. Out: an exit code. SIGTERM, a closed terminal and the first Ctrl-C drain; a second one ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog

from schemas.errors import PipelineError
from workers.console import FAILED, INTERRUPTED, OK, USAGE, ending_signals, exit_code
from workers.contained import contained_task
from workers.loop_watch import LoopWatch
from workers.manager import WorkerManager
from workers.parent_death import HOPELESS, is_supervised
from workers.watchdog import watchdog

T = TypeVar("T")

log = structlog.get_logger("rustfs_workers.running")

_LOOK_S: Final = 1.0
_SECOND: Final = timedelta(seconds=1)
#: The threads that poll and commit wait so long for the interpreter while handlers are busy, each time that Kafka has answered.
#: With Python's five milliseconds critical jobs behind 200,000 low ones started after 135 ms (p99, on a slow machine), after 96 with
#: one, and no fewer jobs were done; half of it brings nothing more. The process is ours alone: embedded workers leave it as it is.
_SWITCH_S: Final = 0.001
#: A handler may hold the event loop for as long as a run may take, and for so long where that is less.
_LEAST_HELD_S: Final = 60.0
#: After the drain, for what Python and asyncio wait for.
_LAST_S: Final = 5.0


async def run_until_signal(
    manager: WorkerManager,
    ready: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    *,
    last_s: float | None = None,
) -> int:
    """Start, wait, drain. 0 after SIGTERM, 130 after Ctrl-C.

    Whoever has started a worker with this ends its process soon: ``last_s`` after that at the latest, whatever handlers have left behind.

    Args:
        manager: what runs.
        ready: called when it has started.
        check: called now and then; it raises if there is no sense in going on, and then nothing is waited for.
        last_s: what the command needs in the end for other things; five seconds if it does not say.

    Raises:
        PipelineError, KafkaException: why the worker could not start, or not go on.
    """
    stop = asyncio.Event()
    received: list[signal.Signals] = []

    def on_signal(number: int, _frame: object) -> None:
        # Python calls it between two lines of whatever runs, also of a handler that holds the event loop, and in the middle of
        # a line of the log.
        if received and number == signal.SIGTERM and is_supervised():
            return
        received.append(signal.Signals(number))
        if len(received) > 1:
            with contextlib.suppress(OSError):
                os.write(2, b"stopped at once; what was running will be run again\n")
            os._exit(INTERRUPTED if number == signal.SIGINT else 128 + number)
        held.hurry(manager.config.drain_timeout / _SECOND, 128 + number)
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(on_first_signal)

    def on_first_signal() -> None:
        log.info("draining; once more to stop at once", signal=received[0].name)
        stop.set()

    waiting: tuple[asyncio.Task[object], ...] = ()
    loop = asyncio.get_running_loop()
    held = LoopWatch(max(manager.config.job_timeout / _SECOND, _LEAST_HELD_S), code=FAILED)
    before = {number: signal.signal(number, on_signal) for number in ending_signals()}
    loop.set_task_factory(contained_task)
    # What is loaded by now stays: looking for garbage in it stopped everything for 50 ms, twice a second under load.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
    watch = contextlib.ExitStack()
    started = False
    try:
        await manager.start()
        started = True
        watch.enter_context(watchdog())
        held.start()
        ready()
        stopping = asyncio.create_task(stop.wait(), name="signal")
        failing = asyncio.create_task(manager.wait(), name="failure")
        waiting = (stopping, failing)
        while not (stopping.done() or failing.done()):
            await asyncio.wait((stopping, failing), timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            try:
                check()
            except PipelineError:
                await manager.shutdown(timedelta(0))
                raise
        if not stopping.done():
            failing.result()
    except asyncio.CancelledError:
        # Nobody cancels this but asyncio, when something has ended its loop: a callback that a job has left there.
        if started:
            manager.process.fail_at_work(
                PipelineError("a job has ended the event loop: sys.exit in a callback")
            )
        raise
    finally:
        for task in waiting:
            task.cancel()
        try:
            await manager.shutdown()
        finally:
            held.stop()
            watch.close()
        for number, handler in before.items():
            # The end is near, and bounded: whoever asks for it once more must not keep `up` from stopping its Kafka.
            signal.signal(number, signal.SIG_IGN if started else handler)
        code = INTERRUPTED if received and received[0] is signal.SIGINT else OK
        if manager.failed is not None:
            code = exit_code(manager.failed)  # while it drained, perhaps: the log says why
        if started:
            _end_soon(code, sys.exception(), _LAST_S if last_s is None else last_s)
    return code


def run_interruptible(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, for a command that has called ``take_for_ctrl_c``: SIGTERM and a closed terminal cancel ``main`` as well.

    Raised in whatever runs, as a signal's handler raises, an interrupt might hit a job's handler, and be that job's failure.

    Raises:
        KeyboardInterrupt: one of them came. Whatever ``main`` raises.
    """
    received: list[int] = []

    async def cancelled_by_signals() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - this is one

        def on_signal(number: int, _frame: object) -> None:
            received.append(number)
            if len(received) == 1:  # a later one finds it ending already
                loop.call_soon_threadsafe(task.cancel)

        before = {
            number: signal.signal(number, on_signal)
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is signal.default_int_handler
        }
        try:
            return await main
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        if not received:
            raise
        raise KeyboardInterrupt from None


def run(main: Callable[[], Coroutine[None, None, int]]) -> int:
    """An event loop for a command, whatever jobs do to it. The exit code."""
    try:
        return asyncio.run(main())
    except SystemExit as error:
        log.exception("a job has ended the worker: sys.exit in a callback of the event loop", code=error.code)
        return FAILED


def _end_soon(code: int, error: BaseException | None, last_s: float) -> None:
    """Python waits for its threads, and asyncio for its tasks and its own: what handlers have left there may go on for hours."""

    def end() -> None:
        if error is not None:
            log.error("worker failed", error=str(error))  # whoever would say it waits
        log.error("ended by force: something that handlers have left behind goes on", seconds=last_s)
        failed = code if error is None else exit_code(error)
        os._exit(HOPELESS if failed == USAGE and is_supervised() else failed)

    last = threading.Timer(last_s, end)
    last.daemon = True
    last.start()
